"""How good weights are on a split, and how sure that is: metrics as a whole and in parts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from tlray.data.schema import Row
from tlray.tasks.base import TIE, Goal, Metrics, Prediction

SHARE = "accuracy"  # the metric that is a share of independent pictures
BLOCKS = 10  # parts of a split, by which the noise of a value or of a comparison is known


class Evaluation:
    """Metrics of one set of weights over the validation split, as a whole and in `BLOCKS` parts.

    Computed once, when they are asked for: some take longer than the network.
    ``left_out``: each part is the split without one block, as where pictures are compared with one another.
    """

    def __init__(self, whole: Metrics, blocks: Sequence[Metrics], left_out: bool = False) -> None:
        self.whole, self._blocks, self.left_out = whole, blocks, left_out

    @cached_property
    def values(self) -> dict[str, float]:
        """Metrics by name."""
        return self.whole.compute()

    @cached_property
    def parts(self) -> list[dict[str, float]]:
        """Those of each part; NaN where a part has no value."""
        return [block.compute() for block in self._blocks]


class Gain(NamedTuple):
    """How much better one set of weights is than another, and the standard error of that."""

    mean: float  # above 0: better
    error: float


def gain(new: Evaluation, old: Evaluation, name: str, direction: str) -> Gain:
    """Of a metric: the difference as a whole, its standard error by the differences of the parts.

    Both have seen the same pictures, so that what makes a block hard for both does not count as noise.
    """
    sign = 1.0 if direction == "max" else -1.0
    both = zip(new.parts, old.parts, strict=True)
    steps = [sign * (a[name] - b[name]) for a, b in both if math.isfinite(a[name]) and math.isfinite(b[name])]
    mean = sign * (new.values[name] - old.values[name])
    if len(steps) < 2:
        return Gain(mean, math.inf)
    return Gain(mean, _jackknife(steps) if new.left_out else statistics.stdev(steps) / math.sqrt(len(steps)))


def _jackknife(values: Sequence[float]) -> float:
    """The standard error of a figure by its values without one block after the other (Efron and Stein, Ann.
    Statist. 9, 1981)."""
    return math.sqrt((len(values) - 1) * statistics.pvariance(values))


def share_error(share: float, num_rows: int) -> float:
    """The standard error of a share of independent rows."""
    return math.sqrt(share * (1 - share) / num_rows)


def is_significantly_better(new: Evaluation, old: Evaluation, goal: Goal) -> bool:
    """Whether the goal is no worse, and it or the log loss is better by more than its standard error."""
    if goal.beats(old.values, new.values):
        return False
    found = [gain(new, old, goal.name, goal.direction)]
    if TIE in new.values:
        found.append(gain(new, old, TIE, "min"))
    return any(one.mean > one.error for one in found)


class SplitEvaluation:
    """Metrics of a split and of each of its `BLOCKS` parts; rows go to the parts in turn.

    ``by``: a column of whole numbers; rows with the same one go to the same part, and are left out together.
    """

    def __init__(self, make: Callable[[], Metrics], blocks: bool = True, by: str | None = None) -> None:
        self._make, self._by = make, by
        self.metrics = [make() for _ in range(1 + (BLOCKS if blocks else 0))]  # the whole first
        self._sizes = [0] * BLOCKS
        self._seen = 0

    def update(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> None:
        """Add rows, in their order."""
        whole, *blocks = self.metrics
        whole.update(predictions, rows)
        places = [self._seen + i if self._by is None else int(row[self._by]) for i, row in enumerate(rows)]
        for number, block in enumerate(blocks):
            chosen = [i for i, place in enumerate(places) if place % BLOCKS == number]
            block.update([predictions[i] for i in chosen], [rows[i] for i in chosen])
            self._sizes[number] += len(chosen)
        self._seen += len(rows)

    def states(self) -> list[Any]:
        """For another worker's `merge`."""
        return [self._sizes, *(metrics.state() for metrics in self.metrics)]

    def merge(self, states: Sequence[Any]) -> None:
        """Add what another worker has seen."""
        sizes, *others = states
        self._sizes = [a + b for a, b in zip(self._sizes, sizes, strict=True)]
        self._seen += sum(sizes)
        for metrics, state in zip(self.metrics, others, strict=True):
            metrics.merge(state)

    def judged(self) -> Evaluation:
        """What all of it comes to."""
        if self._by is None:
            return Evaluation(self.metrics[0], self.metrics[1:])
        return Evaluation(self.metrics[0], self._without(), left_out=True)

    def _without(self) -> list[Metrics]:
        """The whole without one part, for each part that has rows."""
        states = [b.state() for b, size in zip(self.metrics[1:], self._sizes, strict=False) if size]
        found = []
        for left_out in range(len(states)):
            rest = self._make()
            for number, state in enumerate(states):
                if number != left_out:
                    rest.merge(state)
            found.append(rest)
        return found

    def standard_errors(self) -> dict[str, float]:
        """Of each metric, where it is known.

        Of the accuracy that of a share; of all others by the jackknife: how the metric moves as one part
        after the other is left out. The spread over the parts would not do: few pictures have another mAP
        than many, and none of pairs of pictures may be in one part.
        Where nothing moves, as when everything is right, nothing is known.
        """
        without = [rest.compute() for rest in self._without()]
        if len(without) < 2:
            return {}
        found = {}
        for name in without[0]:
            values = [one[name] for one in without]
            found[name] = _jackknife(values) if all(map(math.isfinite, values)) else math.nan
        if SHARE in found:
            found[SHARE] = share_error(self.metrics[0].compute()[SHARE], self._seen)
        return {name: error for name, error in found.items() if error > 0}
