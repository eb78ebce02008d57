"""Extends the search where the winner has the lowest or the highest value of an axis.

A value at the end of an axis may not be the best one: the next value beyond it has not been tried. So once
all trials are over, the axis gets that value, at the distance of its other values, and the search a trial
that has it and is otherwise like the winner; at most `MOST` times at each end. Only numbers of the optimiser
are extended: freeze depths have natural ends, and longer trainings and larger pictures cost more, which is
for the user to decide.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tlray.config import Config
from tlray.errors import ConfigError
from tlray.search.space import Axis, Params, Space, accepted

MOST = 2


def wider(space: Space, extended: Mapping[str, list[Any]]) -> Space:
    """The space with these values added to its axes."""
    return Space(
        tuple(
            axis if axis.values is None else replace(axis, values=(*axis.values, *extended.get(axis.key, ())))
            for axis in space.axes
        )
    )


def beyond(axis: Axis, value: Any) -> float | None:
    """The next value, where ``value`` is the lowest or the highest one of an axis of numbers; otherwise None.

    It continues evenly spaced values by their step, others by the ratio of the two at that end. The ratio is
    also used where a step would lead from positive values to 0 or below.
    """
    values = [v for v in axis.values or () if isinstance(v, int | float) and not isinstance(v, bool)]
    if not axis.key.startswith("optim.") or len(values) < 2 or len(values) < len(axis.values or ()):
        return None
    ranked = sorted(values)
    if value not in (ranked[0], ranked[-1]):
        return None
    end, before = (ranked[0], ranked[1]) if value == ranked[0] else (ranked[-1], ranked[-2])
    new = end + (end - before)
    if ranked[0] > 0 and (new <= 0 or not _even(ranked)):
        new = end * (end / before)
    whole = all(isinstance(v, int) for v in values)
    return max(1, round(new)) if whole else float(f"{new:.2g}")


def _even(ranked: Sequence[float]) -> bool:
    """Whether values are evenly spaced; False for two values, which do not show it."""
    steps = [b - a for a, b in itertools.pairwise(ranked)]
    return len(steps) > 1 and all(math.isclose(step, steps[0], rel_tol=0.01) for step in steps)


def trials(
    config: Config, space: Space, extended: dict[str, list[Any]], winner: Params
) -> tuple[list[Params], list[str]]:
    """Trials one step beyond the ends of axes, and notes on them; adds their values to ``extended``."""
    new_trials, notes = [], []
    for axis in wider(space, extended).axes:
        value = winner.get(axis.key)
        new = beyond(axis, value)
        if new is None or new in (axis.values or ()):
            continue
        own_values = next(own_axis.values for own_axis in space.axes if own_axis.key == axis.key) or ()
        same_end = [v for v in extended.get(axis.key, []) if (v < min(own_values)) == (new < min(own_values))]
        if len(same_end) >= MOST:
            continue
        at_end = f"the winner has {axis.key} = {value:g}, the end of its axis"
        try:
            new = accepted(config, axis.key, new)
        except ConfigError:
            notes.append(f"{at_end}, and {new:g} is not accepted there")
            continue
        extended.setdefault(axis.key, []).append(new)
        new_trials.append({**winner, axis.key: new})
        notes.append(f"{at_end}: {new:g} is tried as well")
    return new_trials, notes
