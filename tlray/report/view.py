"""What the report says: from the files of a run to headline, plots and tables, free of HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from tlray.config import Config
from tlray.config.tree import flatten
from tlray.errors import redact_tree
from tlray.figures import charts
from tlray.figures.charts import Column, Line, Point, Section, Table
from tlray.report.formatting import plain, short
from tlray.report.run_files import Json, ReportedGoal, RunFiles, equal
from tlray.storage.json_values import finite

FREEZE, RATE = "model.freeze", "optim.lr"
MOST_FILES = 100  # shown of those that were left out


class Tile(NamedTuple):
    name: str
    value: str
    more: str = ""


class Head(NamedTuple):
    """The first thing that a reader sees."""

    metric: str
    value: float | None
    error: float | None  # its standard error
    where: str
    task: str
    data: str
    tiles: list[Tile]
    others: list[tuple[str, float | None, float | None]]  # the evaluation's other metrics, standard errors


class TrialLine(NamedTuple):
    """A row of the table of trials; ``spark`` are points of a polyline in a box of 72 x 20."""

    id: str
    params: list[Any]
    status: str
    epochs: int
    best: float | None
    seconds: float
    cost: float  # share of the dearest trial, 0..1
    winner: bool
    equal: bool  # within one standard error of the winner
    spark: str


class TrialLines(NamedTuple):
    params: list[tuple[str, str]]  # (dotted key, the shortest name that tells it from the others)
    rows: list[TrialLine]
    goal: str
    caption: str
    heatmap: bytes | None


class Finding(NamedTuple):
    severity: str  # error, warning, info
    message: str
    examples: list[str]


class Data(NamedTuple):
    caption: str
    findings: list[Finding]
    tables: list[Section]


def headline(run: RunFiles) -> Head:
    """Metric, task, data, winner, time."""
    measured: Json = run.evaluation.get("metrics") or run.manifest.get("metrics") or {}
    goal = run.goal.name if run.goal else next(iter(measured), "")
    value = finite(measured.get(goal, run.winner.get("best")))
    where = f"on {run.evaluation['split']}" if run.evaluation.get("split") else "best epoch"
    if value is None and run.goal:
        seen = [v for v in (finite(e.get(f"val_{goal}", e.get(goal))) for e in run.epochs) if v is not None]
        value = (max(seen) if run.goal.direction == "max" else min(seen)) if seen else None
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
    elif RATE.split(".")[1] in run.config.get("optim", {}):
        optim = run.config["optim"]
        tiles.append(
            Tile("optimiser", str(optim.get("optimizer", "")), f"learning rate {plain(optim['lr'])}")
        )
    stages_s = run.stages
    seconds = sum(s for _, s in stages_s) or sum(float(e.get("seconds") or 0) for e in run.epochs)
    if seconds:
        epochs = len(run.epochs)
        longest = "most of it " + max(stages_s, key=lambda item: item[1])[0] if stages_s else ""
        tiles.append(
            Tile(
                "time", charts.duration(seconds), f"{epochs} epochs" if epochs and not run.trials else longest
            )
        )
    if all_trials := run.trials.get("trials"):
        states = [str(t.get("status")) for t in all_trials]
        order = {"finished": 0, "stopped": 1}
        ends = ", ".join(
            f"{states.count(s)} {s}" for s in sorted(set(states), key=lambda s: (order.get(s, 2), s))
        )
        tiles.append(Tile("trials", str(len(all_trials)), ends))
    rows = run.evaluation.get("rows") or []
    data = run.data_uri.rstrip("/").rsplit("/", 1)[-1]
    if rows:
        labels = run.evaluation.get("labels") or []
        tiles.append(Tile("data", data or "?", f"{len(rows)} pictures scored, {len(labels)} labels"))
    errors = run.errors
    others = [(k, finite(v), finite(errors.get(k))) for k, v in measured.items() if k != goal]
    task = str(run.task_settings.get("name", ""))
    return Head(goal, value, finite(errors.get(goal)), where, task, run.data_uri, tiles, others)


def curves(run: RunFiles) -> list[Section]:
    """Loss, metrics and learning rate by epoch; behind the winner's, the other trials'."""
    epochs, goal = run.epochs, run.goal.name if run.goal else ""
    names = list(dict.fromkeys(k for e in epochs for k, v in e.items() if isinstance(v, (int, float))))
    decides = f"val_{goal}" if f"val_{goal}" in names or not goal else goal
    losses = [n for n in names if n.endswith("loss") and n != decides]
    scores = [n for n in names if n.startswith("val_") and n not in losses and n != decides]
    scores = ([decides] if decides in names else []) + (scores[:2] if not run.trials else [])
    found = []
    for title, keys in (("Loss", losses[:3]), (goal or "Metrics", scores), ("Learning rate", ["lr"])):
        lines = [
            Line(
                _curve_name(key, run),
                [finite(e.get(key)) for e in epochs],
                [float(e.get("epoch", i)) for i, e in enumerate(epochs, start=1)],
            )
            for key in keys
            if any(finite(e.get(key)) is not None for e in epochs)
        ]
        behind = {"Loss": "val_loss", "Learning rate": ""}.get(title, decides)
        lines += [line for t in run.trials.get("trials", []) if (line := _behind(t, run, behind)) is not None]
        if lines:
            found.append(Section(title.replace("_", " ").capitalize(), svgs=[charts.curves(lines, "")]))
    return found


def trials(run: RunFiles) -> TrialLines | None:
    """The table of trials, best first, and the result over freeze depth and learning rate."""
    all_trials: list[Json] = run.trials.get("trials", [])
    if not all_trials:
        return None
    sign = -1 if run.goal is None or run.goal.direction == "max" else 1
    worst = math.inf
    winner, level = run.trials.get("best"), equal(run.trials, run.errors)

    def place(trial: Json) -> tuple[float, bool]:
        value = finite(trial.get("best"))
        return worst if value is None else sign * value, trial["id"] != winner

    ordered = sorted(all_trials, key=place)
    keys = list(dict.fromkeys(key for t in all_trials for key in t["params"]))
    dearest = max((float(t.get("seconds") or 0) for t in all_trials), default=0.0) or 1.0
    rows = [
        TrialLine(
            str(t["id"]),
            [t["params"].get(key) for key in keys],
            str(t.get("status", "")),
            int(t.get("epochs") or 0),
            finite(t.get("best")),
            float(t.get("seconds") or 0),
            float(t.get("seconds") or 0) / dearest,
            t["id"] == winner,
            t["id"] in level,
            _spark([v for _, v in _curve(t, _decides(run))]),
        )
        for t in ordered
    ]
    total = sum(row.seconds for row in rows)
    lost = sum(row.seconds for row in rows if row.status == "stopped")
    caption = f"{len(rows)} trials cost {charts.duration(total)} of training together"
    caption += f", {charts.duration(lost)} of it in those stopped early." if lost else "."
    goal = run.goal.name if run.goal else "best"
    if level:
        caption += (
            f" ≈: within one standard error of the winner, {run.errors[goal]:.4f}: these pictures do not "
            f"tell them apart ({', '.join(level)})."
        )
    if beyond := {k: v for k, v in run.trials.get("extended", {}).items() if v}:
        said = "; ".join(f"{short(k)} {', '.join(map(plain, v))}" for k, v in beyond.items())
        caption += f" Tried beyond the search's space, where the winner had an axis' last value: {said}."
    if told := [line for row in run.trials.get("averages", []) for line in row["told"]]:
        caption += f" Averages of weights: {'; '.join(told)}."
    return TrialLines([(k, short(k, keys)) for k in keys], rows, goal, caption, _heatmap(run, all_trials))


def baseline(run: RunFiles) -> list[Section]:
    """What linear probes of the frozen features came to before the trials."""
    probes: list[Json] = run.trials.get("probes") or []
    if not probes:
        return []
    goal = run.goal.name if run.goal else "best"
    columns = [Column("backbone"), Column("features"), Column("dimensions"), Column("L2", 4)]
    columns += [Column("held-out loss", 4), Column(goal, 4)]
    own = run.config.get("model", {}).get("backbone")
    rows = [
        [
            p["params"].get("model.backbone", own), one["place"], one["dimensions"], one["l2"],
            one["held_out_loss"], one["value"],
        ]
        for p in probes
        for one in p["places"]
    ]  # fmt: skip
    seconds, pictures = sum(p["seconds"] for p in probes), max(p["pictures"] for p in probes)
    caption = (
        f"Logistic regressions over the frozen features of {pictures} training pictures, fitted before the "
        f"trials in {charts.duration(seconds)}; what fine-tuning adds is what it has above them. A held-out "
        "fifth of these pictures chose the strength of L2."
    )
    return [Section("Probe of frozen features", caption, tables=[Table(columns, rows)])]


def cost(run: RunFiles) -> list[Section]:
    """What trials that trained side by side cost, as it was planned and as it was measured."""
    plans: list[Json] = run.trials.get("plans") or []
    if not plans:
        return []
    columns = [
        Column("freeze depth"), Column("begins after"), Column("trials"),
        *(Column(name, 2) for name in ("prefix, ms", "step, ms")), Column("kept, MB", 1), Column("decision"),
        *(Column(name, 0) for name in ("alone, s", "steps predicted, s", "steps measured, s")),
    ]  # fmt: skip
    rows = [
        [
            d["depth"], d["stage"], d["trials"], 1e3 * d["prefix_s"], 1e3 * d["suffix_s"],
            d["kept_bytes"] / 2**20, d["decision"], d["naive_s"],
            d["suffix_s"] * d.get("measured_pictures", 0), d.get("measured_s"),
        ]
        for plan in plans
        for d in plan["depths"]
    ]  # fmt: skip
    naive, planned, took = (
        sum(plan.get(k, 0.0) for plan in plans) for k in ("naive_s", "planned_s", "took_s")
    )
    caption = (
        f"Each trial for itself and to its end would take {charts.duration(naive)}, side by side "
        f"{charts.duration(planned)}; with early stopping, validation and bundles it took "
        f"{charts.duration(took)}. Prefix and step: a picture's, measured before the search began."
    )
    return [Section("Cost by freeze depth", caption, tables=[Table(columns, rows)])]


def evidence(run: RunFiles) -> list[Section]:
    """How well scores from before the search foretold what trials came to."""
    told: list[Json] = run.trials.get("scores") or []
    rho: dict[str, float | None] = run.trials.get("correlation") or {}
    if not told or not rho:
        return []
    goal = run.goal.name if run.goal else "best"
    columns = [
        Column("backbone"), Column("freeze depth"), Column("after"),
        *(Column(name, 4) for name in (*rho, goal)),
    ]  # fmt: skip
    rows = [[s["backbone"], s["depth"], s["stage"], *(s[name] for name in rho), s["best"]] for s in told]
    known = [s for s in told if s["best"] is not None]
    said = ", ".join(f"{name} {value:.2f}" for name, value in rho.items() if value is not None)
    caption = (
        f"Scores of frozen features, taken before the search where the trials begin, beside the best {goal} "
        f"these came to. Rank correlation (Spearman) over {len(known)} places: {said or 'none, too few'}. "
        "At 1 the scores have the order of the results, at 0 they say nothing."
    )
    name = next(iter(rho))
    points = [(s[name], s["best"], f"{s['backbone']}, {s['stage']}") for s in known]
    svgs = [charts.scatter(points, f"{name} score", goal)] if len(points) > 1 else []
    return [Section("Scores beside results", caption, svgs=svgs, tables=[Table(columns, rows)])]


def data(preflight: Json) -> Data | None:
    """What ingest's pre-flight (preflight.py: `Report`) says of the data."""
    if not preflight:
        return None
    counts: dict[str, dict[str, int]] = preflight.get("counts") or {}
    sums = {split: sum(by_class.values()) for split, by_class in counts.items()}
    kept: dict[str, int] = preflight.get("taken") or sums  # data sets of an older version tell no pictures
    listed = preflight.get("num_files")
    caption = (
        f"{listed} pictures listed, {sum(kept.values())} taken"
        if listed
        else f"{sum(kept.values())} pictures"
    )
    caption += ": " + ", ".join(f"{split} {number}" for split, number in kept.items()) + "." if kept else "."
    found = [
        Finding(
            str(f.get("severity", "info")),
            str(f.get("message", f.get("kind", ""))),
            list(f.get("examples", [])),
        )
        for f in preflight.get("findings", [])
    ]
    tables = []
    classes = list(dict.fromkeys(name for by_class in counts.values() for name in by_class))
    if len(classes) > 1:
        most = max(number for by_class in counts.values() for number in by_class.values())
        first = next(iter(counts.values()))
        classes.sort(key=lambda name: -first.get(name, 0))
        rows = [[name, *(counts[split].get(name, 0) for split in counts)] for name in classes]
        columns = [Column("class"), *(Column(split, most=most) for split in counts)]
        counted = "Pictures" if kept == sums else "Labels"
        tables.append(Section(f"{counted} by class", tables=[Table(columns, rows)]))
    if left := preflight.get("quarantined"):
        rows = [[q.get("path"), q.get("reason", q.get("kind"))] for q in left[:MOST_FILES]]
        more = f"The first {MOST_FILES} of {len(left)}." if len(left) > MOST_FILES else ""
        tables.append(Section("Left out", more, tables=[Table([Column("file"), Column("why")], rows)]))
    return Data(caption, found, tables)


def time(run: RunFiles) -> Section | None:
    """Seconds by stage, as a bar each."""
    stages = run.stages
    if not stages:
        return None
    total = charts.duration(sum(seconds for _, seconds in stages))
    return Section("Time", f"{total} in all.", svgs=[charts.stage_bar(stages)])


def changed(config: Json) -> Table | None:
    """Settings that are not the defaults."""
    standard = flatten(Config().model_dump(mode="json"))
    rows = [
        [key, plain(value), plain(standard[key]) if key in standard else None]
        for key, value in flatten(redact_tree(config)).items()
        if key not in standard or standard[key] != value
    ]
    return Table([Column("setting"), Column("value"), Column("default")], rows) if rows else None


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """Versions and identities that it takes to make this run again."""
    found = [("run", run.uri)]
    for name in ("created", "fingerprint"):
        if run.manifest.get(name):
            found.append(("data fingerprint" if name == "fingerprint" else name, str(run.manifest[name])))
    if "seed" in run.config:
        found.append(("seed", str(run.config["seed"])))
    if pre := run.manifest.get("preprocess"):
        found.append(("preprocessing", ", ".join(f"{k} {plain(v)}" for k, v in redact_tree(pre).items())))
    return found + [(str(k), plain(v)) for k, v in sorted(run.manifest.get("versions", {}).items())]


def _heatmap(run: RunFiles, all_trials: Sequence[Json]) -> bytes | None:
    if not any(FREEZE in t["params"] or RATE in t["params"] for t in all_trials):
        return None
    stages = run.manifest.get("stages")
    model, optim = run.config.get("model", {}), run.config.get("optim", {})
    points = [
        Point(
            t["params"].get(RATE, optim.get("lr", "?")),
            t["params"].get(FREEZE, model.get("freeze", "?")),
            value,
            t.get("status") != "finished",
        )
        for t in all_trials
        if (value := finite(t.get("best"))) is not None
    ]
    if not points:
        return None
    points.sort(key=lambda p: freeze_order(p.y, stages if isinstance(stages, int) else None))
    goal = run.goal or ReportedGoal("best", "max")
    name = goal.name.replace("_", " ")
    return charts.heatmap(points, "learning rate", "frozen", name, goal.direction == "max")


def _curve_name(key: str, run: RunFiles) -> str:
    """Of a curve in the legend: what the plot's title leaves open."""
    losses = {"train_loss": "train", "val_loss": "validation"}
    name = losses.get(key, key.removeprefix("val_").replace("_", " "))
    return "winner" if run.trials and name == _decides(run).replace("_", " ") else name


def _decides(run: RunFiles) -> str:
    return run.goal.name if run.goal else ""


def _curve(trial: Json, metric: str) -> list[tuple[float, float | None]]:
    """(epoch, value) of a trial, whose curve holds either numbers (of the goal) or one object an epoch."""
    found = []
    for i, item in enumerate(trial.get("curve") or [], start=1):
        if isinstance(item, Mapping):
            at = float(item.get("epoch", i))
            found.append((at, finite(item.get(metric, item.get(f"val_{metric}")))))
        else:
            found.append((float(i), finite(item)))
    return found


def _behind(trial: Json, run: RunFiles, key: str) -> Line | None:
    """A trial's curve behind the winner's."""
    if not key:
        return None
    objects = isinstance(next(iter(trial.get("curve") or []), None), Mapping)
    if not objects and key.removeprefix("val_") != _decides(run):
        return None
    is_winner = trial["id"] == run.trials.get("best")
    if is_winner and run.epochs and any(finite(e.get(key)) is not None for e in run.epochs):
        return None
    points = _curve(trial, key.removeprefix("val_") if not objects else key)
    if all(value is None for _, value in points):
        return None
    kind: Literal["main", "other", "faded"] = (
        "main" if is_winner else "other" if trial.get("status") == "finished" else "faded"
    )
    label = "winner" if is_winner else str(trial.get("status", "other"))
    return Line(label, [v for _, v in points], [x for x, _ in points], kind)


def _spark(values: Sequence[float | None], width: float = 72, height: float = 20) -> str:
    """Points of a polyline through the values; "" for fewer than two."""
    seen = [(i, v) for i, v in enumerate(values) if v is not None]
    if len(seen) < 2:
        return ""
    low, high = min(v for _, v in seen), max(v for _, v in seen)
    span, last = (high - low) or 1.0, seen[-1][0] or 1
    places = ((2 + (width - 4) * i / last, height - 3 - (height - 6) * (v - low) / span) for i, v in seen)
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def freeze_order(value: Any, num_stages: int | None = None) -> tuple[int, float, str]:
    """Sorts freeze settings by depth: counts and fractions first, stage names, then "all"."""
    if value == "all":
        return (2, 0.0, "")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return (1, 0.0, str(value))
    if isinstance(value, int) and value > 0:
        return (0, value / num_stages if num_stages else float(value), "")
    return (0, float(value), "")
