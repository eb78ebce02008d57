"""How good weights are on a split, and how sure that is: metrics as a whole and in parts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from tlray.tasks.base import TIE, Goal, Metrics, Prediction, Row

BLOCKS = 10  # parts of a split, by which the noise of a value or of a comparison is known


class Judged:
    """Metrics of one set of weights over the validation split, as a whole and in `BLOCKS` parts."""

    def __init__(self, whole: Metrics, blocks: Sequence[Metrics]) -> None:
        self.whole, self.values = whole, whole.compute()
        self.parts = [block.compute() for block in blocks]  # NaN where a block has no value


class Gain(NamedTuple):
    """How much better one set of weights is than another, and the standard error of that."""

    mean: float  # above 0: better
    error: float


def gain(new: Judged, old: Judged, name: str, direction: str) -> Gain:
    """Of a metric: the difference as a whole, its standard error by the differences of the blocks.

    Both have seen the same pictures, so that what makes a block hard for both does not count as noise.
    """
    sign = 1.0 if direction == "max" else -1.0
    both = zip(new.parts, old.parts, strict=True)
    steps = [sign * (a[name] - b[name]) for a, b in both if math.isfinite(a[name]) and math.isfinite(b[name])]
    mean = sign * (new.values[name] - old.values[name])
    if len(steps) < 2:
        return Gain(mean, math.inf)
    centre = sum(steps) / len(steps)
    variance = sum((step - centre) ** 2 for step in steps) / (len(steps) - 1)
    return Gain(mean, math.sqrt(variance / len(steps)))


def standard_error(judged: Judged, name: str) -> float:
    """Of a metric's value on these pictures, by its spread over the blocks; NaN where there are too few."""
    values = [part[name] for part in judged.parts if math.isfinite(part[name])]
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def worth_it(new: Judged, old: Judged, goal: Goal) -> bool:
    """Whether the goal is no worse, and it or the log loss is better by more than its standard error."""
    if goal.beats(old.values, new.values):
        return False
    found = [gain(new, old, goal.name, goal.direction)]
    if TIE in new.values:
        found.append(gain(new, old, TIE, "min"))
    return any(one.mean > one.error for one in found)


class Parts:
    """Metrics of a split and of each of its `BLOCKS` parts; rows go to the parts in turn."""

    def __init__(self, make: Any, blocks: bool = True) -> None:
        self.metrics: list[Metrics] = [
            make() for _ in range(1 + (BLOCKS if blocks else 0))
        ]  # the whole first
        self._seen = 0

    def update(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> None:
        """Add rows, in their order."""
        whole, *blocks = self.metrics
        whole.update(predictions, rows)
        for number, block in enumerate(blocks):
            chosen = slice((number - self._seen) % BLOCKS, None, BLOCKS)
            block.update(predictions[chosen], rows[chosen])
        self._seen += len(rows)

    def states(self) -> list[Any]:
        """For another worker's `merge`."""
        return [metrics.state() for metrics in self.metrics]

    def merge(self, states: Sequence[Any]) -> None:
        """Add what another worker has seen."""
        for metrics, state in zip(self.metrics, states, strict=True):
            metrics.merge(state)

    def judged(self) -> Judged:
        """What all of it comes to."""
        return Judged(self.metrics[0], self.metrics[1:])
