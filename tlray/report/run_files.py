"""The files of a run's folder for the report, any of which may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tlray.storage.json_values import finite

Json = dict[str, Any]


class ReportedGoal(NamedTuple):
    """The metric that decides, and its better direction (max, min)."""

    name: str
    direction: str


@dataclass
class RunFiles:
    """The content of each file; an empty dict for a file that is missing."""

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
        # The manifest's come first: they include what was chosen on validation, as thresholds.
        task = self.manifest.get("task") or self.config.get("task")
        return dict(task) if isinstance(task, Mapping) else {}

    @property
    def winner(self) -> Json:
        """The row of the best trial, probe or average; empty for a single training."""
        best = self.trials.get("best")
        return next((row for row in contenders(self.trials) if row["id"] == best), {})

    @property
    def errors(self) -> Json:
        """Standard errors of the evaluation's metrics, which only small data sets have."""
        return dict(self.evaluation.get("standard_errors") or {})

    @property
    def epochs(self) -> list[Json]:
        """Epochs of the winner or of the single training, in order."""
        epochs = self.metrics.get("epochs") or []
        if not epochs and isinstance(next(iter(self.winner.get("curve") or []), None), Mapping):
            epochs = self.winner["curve"]
        return [dict(epoch) for epoch in epochs if isinstance(epoch, Mapping)]

    @property
    def stages(self) -> list[tuple[str, float]]:
        """(name, seconds) in the order in which they ran."""
        stages = [*self.trials.get("stages", []), *self.metrics.get("stages", [])]
        return [(str(s["name"]), float(s["seconds"])) for s in stages if finite(s.get("seconds")) is not None]


def contenders(search: Mapping[str, Any]) -> list[Json]:
    """The rows of trials.json that can win: trials, probes, and averages that were judged."""
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
    """Ids of contenders within one standard error of the winner, which these pictures cannot tell apart.

    ``search``: as in trials.json; ``errors``: standard errors of the winner's metrics, empty where unknown.
    """
    error = finite(errors.get(search.get("goal", {}).get("name")))
    rows = [row for row in contenders(search) if row["status"] != "failed"]
    values = {row["id"]: finite(row["best"]) for row in rows}
    best = values.pop(search.get("best"), None)
    if error is None or best is None:
        return []
    return [id_ for id_, value in values.items() if value is not None and abs(value - best) <= error]
