"""Writes what happens to trials into the log of trials, and reports it as events."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import tune

from tlray.observer import Emit
from tlray.search.placement import TrialHandle
from tlray.search.trial_log import TrialLog


class NoDisplay(tune.ProgressReporter):
    """In place of Ray Tune's display in notebooks, which would clear what the cell has printed."""

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        return False

    def report(self, trials: list[Any], done: bool, *sys_info: str) -> None:
        """Nothing."""


class TrialStopper(tune.Stopper):
    """The user's stopping criteria, asked for each trial.

    Tune ends trials at once where a stopper ends the whole search; they would leave no bundle. So in that
    case each trial stops after its present epoch, and ``stop_search`` keeps new ones from starting.
    """

    def __init__(self, criteria: Any, stop_search: Callable[[], None]) -> None:
        """``criteria``: as of tune.RunConfig: a Stopper, a function, or lowest values by metric."""
        self._criteria, self._stop_search = criteria, stop_search

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if "failed" in result:  # it has ended, and has no metrics
            return False
        if isinstance(self._criteria, Mapping):
            return any(result.get(name, -math.inf) >= value for name, value in self._criteria.items())
        if isinstance(self._criteria, tune.Stopper) and self._criteria.stop_all():
            self._stop_search()
            return True
        return bool(self._criteria(trial_id, result))

    def stop_all(self) -> bool:
        return False

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: Any) -> TrialStopper:
        return self


class TrialReporter(tune.Callback):
    """Ray Tune's callback of a search."""

    def __init__(self, trial_log: TrialLog, emit: Emit, epochs: int, side_by_side: int = 1) -> None:
        """``epochs``: of a trial that is not stopped early; ``side_by_side``: at most, of a process."""
        self.trial_log, self.emit, self.epochs = trial_log, emit, epochs
        self.lost = "the trial's process died (out of memory, or its machine was lost)"
        if side_by_side > 1:
            self.lost += f"; to use less memory: search.side_by_side = {side_by_side // 2}"

    # Tune saves and copies its callbacks for Tuner.restore, which is not how a search is continued here.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: Any) -> TrialReporter:
        return self

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        id_, params = trial.config["id"], trial.config["params"]
        if trial.last_result.get("epoch"):  # it was paused, or its process died
            return
        self.trial_log.start(id_, params, [trial.config["id"] for trial in trials])
        self._emit("trial_start", id_, params=params, epochs=self.epochs)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "record" not in result:
            return
        id_, record = trial.config["id"], result["record"]
        # If the trial begins again in another process, it does not report these epochs again.
        trial.config["epochs_told"] = result["epoch"]
        if self.trial_log.epoch(id_, record):
            facts = {"goal_name": self.trial_log.goal.name, "again": result["again"]}
            self._emit("trial_epoch", id_, **{**record, **facts})

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        id_, last, handle = trial.config["id"], trial.last_result, trial.temporary_state.ray_actor
        if "failed" in last:
            self._over(id_, "failed", last["failed"], bundle=not isinstance(handle, TrialHandle))
            return
        status, bundle = "finished" if last.get("ended") else "stopped", True
        if isinstance(handle, TrialHandle):
            # Trials that train side by side write their bundles only where the log needs them.
            bundle = any(row["id"] == id_ for row in self.trial_log.with_bundles([id_]))
            try:
                reason = ray.get(handle.end(bundle))
            except ray.exceptions.RayError:
                reason = self.lost
            if reason is not None:
                self._over(id_, "failed", reason, bundle=False)
                return
        self._over(id_, status, bundle=bundle)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_pickled_error() or trial.get_error()
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        died = isinstance(error, ray.exceptions.RayActorError) or not lines
        self._over(trial.config["id"], "failed", self.lost if died else lines[-1][:300])

    def rule_out(self, id_: str, params: dict[str, Any], reason: str) -> None:
        """A trial will not be run, for this reason."""
        self.trial_log.rule_out(id_, params, reason)
        self._emit_end(self.trial_log.rows[id_])

    def _over(self, id_: str, status: str, reason: str | None = None, bundle: bool = True) -> None:
        """A trial is over; ``bundle``: whether it has left one."""
        self._emit_end(self.trial_log.end(id_, status, reason, bundle))

    def _emit_end(self, row: dict[str, Any]) -> None:
        facts = {k: row[k] for k in ("status", "epochs", "best", "seconds", "params")}
        best = self.trial_log.best
        self._emit(
            "trial_end", row["id"], **facts, **({"reason": row["reason"]} if "reason" in row else {}),
            goal_name=self.trial_log.goal.name, winner=best["id"] if best else None,
        )  # fmt: skip

    def _emit(self, kind: str, id_: str, **facts: Any) -> None:
        self.emit({"kind": kind, "run": self.trial_log.run_uri, "id": id_, **facts})
