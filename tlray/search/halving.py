"""Which trials stop early: successive halving (ASHA, arXiv 1810.05934) where many trials arrive together.

Ray's ASHAScheduler compares each result with those that came before it. Of trials that train side by side and
reach a rung at the same time the first one would always continue, however bad it is. Here all trials that
reach a rung together are judged together, and compared with those that reached it before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler

from tlray.config import Search
from tlray.search.trial_log import TrialRow
from tlray.tasks.base import Goal


class SuccessiveHalving(FIFOScheduler):
    """A scheduler for Ray Tune. Rungs are grace, grace * factor, grace * factor^2, ... epochs.

    A result has ``epoch``, ``record`` and ``beside``: the best values so far, by id, of the trials of a group
    that have just trained this epoch.
    """

    def __init__(self, search: Search, goal: Goal, longest: int, spared: str | None = None) -> None:
        """``longest``: the most epochs that a trial has; ``spared``: the id of a trial that never stops."""
        self._spared = spared
        self._sign = 1.0 if goal.direction == "max" else -1.0
        self._factor = search.reduction_factor
        self._scores: dict[int, dict[str, float]] = {}
        self._behind: set[str] = set()
        rung = search.grace_epochs
        while search.scheduler == "asha" and rung < longest:
            self._scores[rung] = {}
            rung *= self._factor

    def restore_trial(self, row: TrialRow) -> None:
        """Put a trial from before a restart back on its rungs."""
        for point in row["curve"]:
            self.judge(point["epoch"], {row["id"]: point.get("best")})

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop a trial that falls behind.

        The first result of a group judges the whole group; the results that follow only look it up.
        """
        id_, epoch = trial.config["id"], result["epoch"]
        if "failed" in result or epoch not in self._scores:
            return str(self.CONTINUE)
        if id_ not in self._scores[epoch]:
            # Tune has flattened the result.
            together = {k.removeprefix("beside/"): v for k, v in result.items() if k.startswith("beside/")}
            self._behind |= self.judge(epoch, together or {id_: result["record/best"]})
        return str(self.STOP if id_ in self._behind else self.CONTINUE)

    def judge(self, epoch: int, best: Mapping[str, float | None]) -> set[str]:
        """Put trials on the rung of ``epoch`` and return those that must stop.

        ``best``: their best values so far, by id. Of all trials on the rung the best 1/factor continue, at
        least one. Equal trials continue together or stop together; where all are equal, all continue. NaN and
        None are the worst values.
        """
        if epoch not in self._scores:
            return set()
        rung = self._scores[epoch]
        for id_, value in best.items():
            rung[id_] = -np.inf if value is None or value != value else self._sign * value
        scores, num_continue = np.array(list(rung.values())), max(1, round(len(rung) / self._factor))
        top = scores.max()
        behind = {id_ for id_ in best if rung[id_] < top and (scores >= rung[id_]).sum() > num_continue}
        return behind - {self._spared}
