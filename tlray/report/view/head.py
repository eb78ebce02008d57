"""The top of the report: the metric that decides, and tiles of facts."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from tlray.figures import charts
from tlray.report.formatting import plain, short
from tlray.report.run_files import Json, RunFiles
from tlray.storage.json_values import finite


class Tile(NamedTuple):
    """A fact: its name, its value, and a detail in small print."""

    name: str
    value: str
    more: str = ""


class Head(NamedTuple):
    """The top of the report."""

    metric: str
    value: float | None
    error: float | None  # its standard error
    where: str
    task: str
    data: str
    tiles: list[Tile]
    others: list[tuple[str, float | None, float | None]]  # the evaluation's other metrics, standard errors


def headline(run: RunFiles) -> Head:
    """The metric that decides with its standard error, the other metrics, and the tiles."""
    metrics: Json = run.evaluation.get("metrics") or run.manifest.get("metrics") or {}
    goal = run.goal.name if run.goal else next(iter(metrics), "")
    value = finite(metrics.get(goal, run.winner.get("best")))
    where = f"on {run.evaluation['split']}" if run.evaluation.get("split") else "best epoch"
    if value is None and run.goal:
        by_epoch = [finite(epoch.get(f"val_{goal}", epoch.get(goal))) for epoch in run.epochs]
        known = [value for value in by_epoch if value is not None]
        value = (max(known) if run.goal.direction == "max" else min(known)) if known else None
    errors = run.errors
    others = [(name, finite(v), finite(errors.get(name))) for name, v in metrics.items() if name != goal]
    task = str(run.task_settings.get("name", ""))
    return Head(goal, value, finite(errors.get(goal)), where, task, run.data_uri, _tiles(run), others)


def _tiles(run: RunFiles) -> list[Tile]:
    """Backbone, winner or optimiser, time, trials and data, as far as they are known."""
    tiles = []
    backbone = run.manifest.get("backbone", {}).get("name") or run.config.get("model", {}).get("backbone")
    if backbone:
        depth, stages = run.manifest.get("freeze_depth"), run.manifest.get("stages")
        of = f" of {stages}" if isinstance(stages, int) else ""
        frozen = "" if depth is None else f"{depth}{of} stages frozen" if depth else "all of it trained"
        tiles.append(Tile("backbone", str(backbone), frozen))
    if run.winner:
        params = ", ".join(f"{short(k)} {plain(v)}" for k, v in run.winner["params"].items())
        params = f"of {', '.join(run.winner['of'])}" if "of" in run.winner else params
        kind = "trial " if run.winner in run.trials.get("trials", []) else ""
        tiles.append(Tile("winner", f"{kind}{run.winner['id']}", params))
    elif "lr" in run.config.get("optim", {}):
        optim = run.config["optim"]
        tiles.append(
            Tile("optimiser", str(optim.get("optimizer", "")), f"learning rate {plain(optim['lr'])}")
        )
    stages_s = run.stages
    seconds = sum(s for _, s in stages_s) or sum(float(epoch.get("seconds") or 0) for epoch in run.epochs)
    if seconds:
        epochs = len(run.epochs)
        longest = "most of it " + max(stages_s, key=lambda item: item[1])[0] if stages_s else ""
        more = f"{epochs} epochs" if epochs and not run.trials else longest
        tiles.append(Tile("time", charts.duration(seconds), more))
    if all_trials := run.trials.get("trials"):
        counts = Counter(str(trial.get("status")) for trial in all_trials)
        first = {"finished": 0, "stopped": 1}
        statuses = sorted(counts, key=lambda status: (first.get(status, 2), status))
        ends = ", ".join(f"{counts[status]} {status}" for status in statuses)
        tiles.append(Tile("trials", str(len(all_trials)), ends))
    if rows := run.evaluation.get("rows"):
        name = run.data_uri.rstrip("/").rsplit("/", 1)[-1]
        labels = run.evaluation.get("labels") or []
        tiles.append(Tile("data", name or "?", f"{len(rows)} pictures scored, {len(labels)} labels"))
    return tiles
