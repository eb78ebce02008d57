"""Where the winner stands at the end of an axis, the next value beyond it is tried.

Only the inside of a grid tells where the best is. So once all trials are over, each axis of numbers of which
the winner has the first or the last value gets one more, a step of the same kind away, and a trial that is
the winner with that value; at most `MOST` times at each end. This holds for the optimiser's axes: freeze
depths end where they end, and longer or larger has a price that is the user's to name.
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
    """The space with the values that its axes got beyond those of the configuration."""
    return Space(
        tuple(
            axis if axis.values is None else replace(axis, values=(*axis.values, *extended.get(axis.key, ())))
            for axis in space.axes
        )
    )


def beyond(axis: Axis, value: Any) -> float | None:
    """The next value where ``value`` is the lowest or the highest of an axis of numbers; else None.

    Evenly spaced values go on by their step, all others by the ratio of the last two; so do evenly spaced
    ones where a step more would not be above 0, as all of them are.
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
    """Whether values have one distance; of two nobody can tell."""
    steps = [b - a for a, b in itertools.pairwise(ranked)]
    return len(steps) > 1 and all(math.isclose(step, steps[0], rel_tol=0.01) for step in steps)


def trials(
    config: Config, space: Space, extended: dict[str, list[Any]], winner: Params
) -> tuple[list[Params], list[str]]:
    """Trials one step beyond the axes' ends, and what to tell of them; ``extended`` takes their values."""
    found, notes = [], []
    for axis in wider(space, extended).axes:
        value = winner.get(axis.key)
        new = beyond(axis, value)
        if new is None or new in (axis.values or ()):
            continue
        own = next(one.values for one in space.axes if one.key == axis.key) or ()
        same_end = [v for v in extended.get(axis.key, []) if (v < min(own)) == (new < min(own))]
        if len(same_end) >= MOST:
            continue
        given = f"the winner has {axis.key} = {value:g}, the end of its axis"
        try:
            new = accepted(config, axis.key, new)
        except ConfigError:
            notes.append(f"{given}, and {new:g} is not accepted there")
            continue
        extended.setdefault(axis.key, []).append(new)
        found.append({**winner, axis.key: new})
        notes.append(f"{given}: {new:g} is tried as well")
    return found, notes
