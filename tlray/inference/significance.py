"""Metrics of a split with their standard errors, and whether one set of weights is significantly better.

A split is divided into `BLOCKS` parts. How the metrics differ between the parts says how much they vary by
chance.
"""
from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from tlray.data.schema import Row
from tlray.tasks.base import TIE, Goal, Metrics, Prediction

SHARE = "accuracy"  # the metric that is a share of independent pictures
BLOCKS = 10


class Evaluation:
    """Metrics of one set of weights over a split and over parts of it.

    A metric is computed when it is first asked for, because some take longer than the network.
    ``left_out``: each part is the split without one block (jackknife), for metrics that compare pictures with
    one another; otherwise each part is one block.
    """

    def __init__(self, whole: Metrics, blocks: Sequence[Metrics], left_out: bool = False) -> None:
        self.whole, self._blocks, self.left_out = whole, blocks, left_out

    @cached_property
    def values(self) -> dict[str, float]:
        """The metrics of the whole split, by name."""
        return self.whole.compute()

    @cached_property
    def parts(self) -> list[dict[str, float]]:
        """The metrics of each part; NaN where a part has no value."""
        return [block.compute() for block in self._blocks]


class Gain(NamedTuple):
    """By how much one set of weights is better than another, with the standard error of that difference."""

    mean: float  # above 0: better; below 0: worse
    error: float


def gain(new: Evaluation, old: Evaluation, name: str, direction: str) -> Gain:
    """The gain in one metric: the difference over the whole split, with the standard error from the parts.

    The parts are compared in pairs, because a block that is hard for both sets of weights is not noise.
    """
    sign = 1.0 if direction == "max" else -1.0
    pairs = [(a[name], b[name]) for a, b in zip(new.parts, old.parts, strict=True)]
    differences = [sign * (a - b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    mean = sign * (new.values[name] - old.values[name])
    if len(differences) < 2:
        return Gain(mean, math.inf)
    if new.left_out:
        return Gain(mean, _jackknife(differences))
    return Gain(mean, statistics.stdev(differences) / math.sqrt(len(differences)))


def _jackknife(values: Sequence[float]) -> float:
    """The standard error of a figure from its values with one block left out at a time (Efron and Stein, Ann.
    Statist. 9, 1981)."""
    return math.sqrt((len(values) - 1) * statistics.pvariance(values))


def share_error(share: float, num_rows: int) -> float:
    """The standard error of a share among independent rows (binomial)."""
    return math.sqrt(share * (1 - share) / num_rows)


def is_significantly_better(new: Evaluation, old: Evaluation, goal: Goal) -> bool:
    """Whether the goal is not worse, and it or the log loss is better by more than the standard error."""
    if goal.beats(old.values, new.values):
        return False
    gains = [gain(new, old, goal.name, goal.direction)]
    if TIE in new.values:
        gains.append(gain(new, old, TIE, "min"))
    return any(one.mean > one.error for one in gains)


class SplitEvaluation:
    """Collects the metrics of a split and of its `BLOCKS` blocks; each next row goes to the next block.

    ``by``: a column of whole numbers; rows with the same number go to the same block, so that they are left
    out together.
    """

    def __init__(self, make: Callable[[], Metrics], blocks: bool = True, by: str | None = None) -> None:
        self._make, self._by = make, by
        self.metrics = [make() for _ in range(1 + (BLOCKS if blocks else 0))]  # the whole split first
        self._sizes = [0] * BLOCKS
        self._seen = 0

    def update(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> None:
        """Add the next rows of the split."""
        whole, *blocks = self.metrics
        whole.update(predictions, rows)
        places = [self._seen + i if self._by is None else int(row[self._by]) for i, row in enumerate(rows)]
        for number, block in enumerate(blocks):
            chosen = [i for i, place in enumerate(places) if place % BLOCKS == number]
            block.update([predictions[i] for i in chosen], [rows[i] for i in chosen])
            self._sizes[number] += len(chosen)
        self._seen += len(rows)

    def states(self) -> list[Any]:
        """Plain values for `merge` in another worker."""
        return [self._sizes, *(metrics.state() for metrics in self.metrics)]

    def merge(self, states: Sequence[Any]) -> None:
        """Add the `states` of another worker."""
        sizes, *others = states
        self._sizes = [a + b for a, b in zip(self._sizes, sizes, strict=True)]
        self._seen += sum(sizes)
        for metrics, state in zip(self.metrics, others, strict=True):
            metrics.merge(state)

    def evaluation(self) -> Evaluation:
        """The evaluation of all rows that were added."""
        if self._by is None:
            return Evaluation(self.metrics[0], self.metrics[1:])
        return Evaluation(self.metrics[0], self._without(), left_out=True)

    def _without(self) -> list[Metrics]:
        """The metrics of the split without one block, for each block that has rows."""
        states = [b.state() for b, size in zip(self.metrics[1:], self._sizes, strict=False) if size]
        rests = []
        for left_out in range(len(states)):
            rest = self._make()
            for number, state in enumerate(states):
                if number != left_out:
                    rest.merge(state)
            rests.append(rest)
        return rests

    def standard_errors(self) -> dict[str, float]:
        """The standard error of each metric, where it is known.

        For the accuracy it is that of a share. For the others it is the jackknife's: how the metric changes
        when one block is left out. The spread between the blocks themselves would be wrong: mAP of few
        pictures differs systematically from mAP of many, and a block may hold no pair of pictures to compare.
        A metric that does not change at all, as when everything is right, has no known error.
        """
        without = [rest.compute() for rest in self._without()]
        if len(without) < 2:
            return {}
        errors = {}
        for name in without[0]:
            values = [metrics[name] for metrics in without]
            errors[name] = _jackknife(values) if all(map(math.isfinite, values)) else math.nan
        if SHARE in errors:
            errors[SHARE] = share_error(self.metrics[0].compute()[SHARE], self._seen)
        return {name: error for name, error in errors.items() if error > 0}
