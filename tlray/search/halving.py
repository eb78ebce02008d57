"""Which candidates of a group stop: successive halving (ASHA, arXiv 1810.05934) where many arrive together.

Ray's ASHAScheduler judges each result as it comes, by those before it: of candidates that train side by
side and reach a rung in the same moment the first always goes on, whatever it is worth. Here all that reach
a rung together are judged together, beside those that reached it before.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tlray.config import Search
from tlray.tasks.base import Goal


class SuccessiveHalving:
    """Scores by rung; rungs are grace, grace * factor, grace * factor^2, ... epochs."""

    def __init__(self, search: Search, goal: Goal, longest: int, spared: str | None = None) -> None:
        """``spared``: a trial that is never stopped."""
        self._spared = spared
        self._sign = 1.0 if goal.direction == "max" else -1.0
        self._factor = search.reduction_factor
        self._scores: dict[int, dict[str, float]] = {}
        rung = search.grace_epochs
        while search.scheduler == "asha" and rung < longest:
            self._scores[rung] = {}
            rung *= self._factor

    def tell(self, epoch: int, best: Mapping[str, float | None]) -> set[str]:
        """Take the best values so far of trials that have done ``epoch`` epochs; which of them shall stop.

        The best 1/factor of all that came to this rung go on, the best one in any case; equals go on together
        or not at all, and all where there is no difference yet. NaN and None are the worst.
        """
        if epoch not in self._scores:
            return set()
        here = self._scores[epoch]
        for name, value in best.items():
            here[name] = -np.inf if value is None or value != value else self._sign * value
        scores, places = np.array(list(here.values())), max(1, round(len(here) / self._factor))
        top = scores.max()
        fall_behind = {name for name in best if here[name] < top and (scores >= here[name]).sum() > places}
        return fall_behind - {self._spared}
