"""Curves over the epochs of the winner and of the other trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from tlray.figures import charts
from tlray.figures.charts import Line, Section
from tlray.report.run_files import Json, RunFiles
from tlray.storage.json_values import finite


def curves(run: RunFiles) -> list[Section]:
    """Loss, metrics and learning rate by epoch; the other trials' curves are behind the winner's."""
    epochs, goal = run.epochs, run.goal.name if run.goal else ""
    names = list(dict.fromkeys(k for e in epochs for k, v in e.items() if isinstance(v, (int, float))))
    decides = f"val_{goal}" if f"val_{goal}" in names or not goal else goal
    losses = [n for n in names if n.endswith("loss") and n != decides]
    scores = [n for n in names if n.startswith("val_") and n not in losses and n != decides]
    scores = ([decides] if decides in names else []) + (scores[:2] if not run.trials else [])
    sections = []
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
        others = (_other_curve(trial, run, behind) for trial in run.trials.get("trials", []))
        lines += [line for line in others if line is not None]
        if lines:
            sections.append(Section(title.replace("_", " ").capitalize(), svgs=[charts.curves(lines, "")]))
    return sections


def _curve_name(key: str, run: RunFiles) -> str:
    """A curve's name in the legend, without what the plot's title says."""
    losses = {"train_loss": "train", "val_loss": "validation"}
    name = losses.get(key, key.removeprefix("val_").replace("_", " "))
    return "winner" if run.trials and name == goal_name(run).replace("_", " ") else name


def _other_curve(trial: Json, run: RunFiles, key: str) -> Line | None:
    """A trial's curve, drawn behind the winner's; None where it has none, or is the winner's own."""
    if not key:
        return None
    objects = isinstance(next(iter(trial.get("curve") or []), None), Mapping)
    if not objects and key.removeprefix("val_") != goal_name(run):
        return None
    is_winner = trial["id"] == run.trials.get("best")
    if is_winner and run.epochs and any(finite(e.get(key)) is not None for e in run.epochs):
        return None
    points = trial_curve(trial, key.removeprefix("val_") if not objects else key)
    if all(value is None for _, value in points):
        return None
    kind: Literal["main", "other", "faded"] = (
        "main" if is_winner else "other" if trial.get("status") == "finished" else "faded"
    )
    label = "winner" if is_winner else str(trial.get("status", "other"))
    return Line(label, [v for _, v in points], [x for x, _ in points], kind)


def goal_name(run: RunFiles) -> str:
    """The metric that decides; "" where it is not known."""
    return run.goal.name if run.goal else ""


def trial_curve(trial: Json, metric: str) -> list[tuple[float, float | None]]:
    """(epoch, value) of a trial. Its stored curve is a list of numbers (the goal's), or of one object an
    epoch."""
    points: list[tuple[float, float | None]] = []
    for i, item in enumerate(trial.get("curve") or [], start=1):
        if isinstance(item, Mapping):
            epoch = float(item.get("epoch", i))
            points.append((epoch, finite(item.get(metric, item.get(f"val_{metric}")))))
        else:
            points.append((float(i), finite(item)))
    return points
