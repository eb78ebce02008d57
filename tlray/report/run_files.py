"""The files of a run's folder, as the report reads them: any part may be missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Json = dict[str, Any]


class ReportedGoal(NamedTuple):
    """The metric that decides, and which way is better (max, min)."""

    name: str
    direction: str


@dataclass
class RunFiles:
    """The files of a run's folder; an empty dict where one is missing."""

    uri: str
    config: Json = field(default_factory=dict)
    metrics: Json = field(default_factory=dict)
    trials: Json = field(default_factory=dict)
    evaluation: Json = field(default_factory=dict)
    manifest: Json = field(default_factory=dict)
    preflight: Json = field(default_factory=dict)
    goal: ReportedGoal | None = None

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.uri.rstrip("/").rsplit("/", 1)[-1])

    @property
    def data_uri(self) -> str:
        data = self.config.get("data")
        return str(data.get("uri", "")) if isinstance(data, Mapping) else ""

    @property
    def task_settings(self) -> Json:
        # The manifest's first: it also holds what was decided on validation.
        task = self.manifest.get("task") or self.config.get("task")
        return dict(task) if isinstance(task, Mapping) else {}

    @property
    def winner(self) -> Json:
        """The best trial, probe or average; empty for a plain training."""
        best = self.trials.get("best")
        return next((row for row in contenders(self.trials) if row["id"] == best), {})

    @property
    def errors(self) -> Json:
        """Standard errors of the evaluation's metrics, where there are few pictures."""
        return dict(self.evaluation.get("standard_errors") or {})

    @property
    def epochs(self) -> list[Json]:
        """Epochs of the winner or the plain training, in order."""
        found = self.metrics.get("epochs") or []
        if not found and isinstance(next(iter(self.winner.get("curve") or []), None), Mapping):
            found = self.winner["curve"]
        return [dict(epoch) for epoch in found if isinstance(epoch, Mapping)]

    @property
    def stages(self) -> list[tuple[str, float]]:
        """(name, seconds) in the order in which they ran."""
        stages = [*self.trials.get("stages", []), *self.metrics.get("stages", [])]
        return [(str(s["name"]), float(s["seconds"])) for s in stages if finite(s.get("seconds")) is not None]


def finite(value: Any) -> float | None:
    """A number that can be drawn, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def contenders(search: Mapping[str, Any]) -> list[Json]:
    """Trials, probes and averages that were kept, of what trials.json holds."""
    averages = [row for row in search.get("averages", []) if row["best"] is not None]
    return [*search.get("trials", []), *search.get("probes", []), *averages]


def ranked(search: Mapping[str, Any]) -> list[Json]:
    """The contenders, best first; of equal ones the winner first, those without a value last."""
    sign = -1 if search.get("goal", {}).get("direction", "max") == "max" else 1

    def place(row: Json) -> tuple[bool, float, bool]:
        value = finite(row.get("best"))
        return value is None, sign * (value or 0), row["id"] != search.get("best")

    return sorted(contenders(search), key=place)


def equal(search: Mapping[str, Any], errors: Mapping[str, Any]) -> list[str]:
    """Contenders whose best is within one standard error of the winner's: these pictures do not tell
    them apart.

    ``search``: as in trials.json; ``errors``: those of its winner's metrics, of few pictures alone.
    """
    error = finite(errors.get(search.get("goal", {}).get("name")))
    rows = [row for row in contenders(search) if row["status"] != "failed"]
    values = {row["id"]: finite(row["best"]) for row in rows}
    best = values.pop(search.get("best"), None)
    if error is None or best is None:
        return []
    return [id_ for id_, value in values.items() if value is not None and abs(value - best) <= error]
