"""The table of trials, and the result over freeze depth and learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from tlray.figures import charts
from tlray.figures.charts import Point
from tlray.report.formatting import plain, short
from tlray.report.run_files import Json, ReportedGoal, RunFiles, equal
from tlray.report.view.plots import goal_name, trial_curve
from tlray.storage.json_values import finite

FREEZE, RATE = "model.freeze", "optim.lr"


class TrialLine(NamedTuple):
    """A row of the table of trials; ``spark`` are points of a polyline in a box of 72 x 20."""

    id: str
    params: list[Any]
    status: str
    epochs: int
    best: float | None
    seconds: float
    cost: float  # its seconds divided by those of the longest trial, 0..1
    winner: bool
    equal: bool  # within one standard error of the winner
    spark: str


class TrialLines(NamedTuple):
    params: list[tuple[str, str]]  # (dotted key, the shortest name that tells it from the others)
    rows: list[TrialLine]
    goal: str
    caption: str
    heatmap: bytes | None


def trials(run: RunFiles) -> TrialLines | None:
    """The table of trials, best first, and the heat map over freeze depth and learning rate."""
    all_trials: list[Json] = run.trials.get("trials", [])
    if not all_trials:
        return None
    sign = -1 if run.goal is None or run.goal.direction == "max" else 1
    worst = math.inf
    winner, equals = run.trials.get("best"), equal(run.trials, run.errors)

    def place(trial: Json) -> tuple[float, bool]:
        value = finite(trial.get("best"))
        return worst if value is None else sign * value, trial["id"] != winner

    ordered = sorted(all_trials, key=place)
    keys = list(dict.fromkeys(key for t in all_trials for key in t["params"]))
    longest = max((float(t.get("seconds") or 0) for t in all_trials), default=0.0) or 1.0
    rows = [
        TrialLine(
            str(t["id"]),
            [t["params"].get(key) for key in keys],
            str(t.get("status", "")),
            int(t.get("epochs") or 0),
            finite(t.get("best")),
            float(t.get("seconds") or 0),
            float(t.get("seconds") or 0) / longest,
            t["id"] == winner,
            t["id"] in equals,
            _spark([v for _, v in trial_curve(t, goal_name(run))]),
        )
        for t in ordered
    ]
    total = sum(row.seconds for row in rows)
    stopped = sum(row.seconds for row in rows if row.status == "stopped")
    caption = f"{len(rows)} trials cost {charts.duration(total)} of training together"
    caption += f", {charts.duration(stopped)} of it in those stopped early." if stopped else "."
    goal = run.goal.name if run.goal else "best"
    if equals:
        caption += (
            f" ≈: within one standard error of the winner, {run.errors[goal]:.4f}: these pictures do not "
            f"tell them apart ({', '.join(equals)})."
        )
    if beyond := {k: v for k, v in run.trials.get("extended", {}).items() if v}:
        values = "; ".join(f"{short(k)} {', '.join(map(plain, v))}" for k, v in beyond.items())
        caption += f" Tried beyond the search's space, where the winner had an axis' last value: {values}."
    if averages := [line for row in run.trials.get("averages", []) for line in row["told"]]:
        caption += f" Averages of weights: {'; '.join(averages)}."
    return TrialLines([(k, short(k, keys)) for k in keys], rows, goal, caption, _heatmap(run, all_trials))


def _heatmap(run: RunFiles, all_trials: Sequence[Json]) -> bytes | None:
    """Each trial's best over freeze depth and learning rate; None where trials differ in neither."""
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


def _spark(values: Sequence[float | None], width: float = 72, height: float = 20) -> str:
    """Points of a polyline through the values; "" for fewer than two."""
    known = [(i, v) for i, v in enumerate(values) if v is not None]
    if len(known) < 2:
        return ""
    low, high = min(v for _, v in known), max(v for _, v in known)
    span, last = (high - low) or 1.0, known[-1][0] or 1
    points = ((2 + (width - 4) * i / last, height - 3 - (height - 6) * (v - low) / span) for i, v in known)
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def freeze_order(value: Any, num_stages: int | None = None) -> tuple[int, float, str]:
    """A key that sorts freeze settings by depth: counts and fractions, then stage names, then "all"."""
    if value == "all":
        return (2, 0.0, "")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return (1, 0.0, str(value))
    if isinstance(value, int) and value > 0:
        return (0, value / num_stages if num_stages else float(value), "")
    return (0, float(value), "")
