"""Numbers that JSON can hold: it has neither NaN nor infinity."""

from __future__ import annotations

import math
from typing import Any


def finite(value: Any) -> float | None:
    """A finite number (no bool) as float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def without_nan(tree: Any) -> Any:
    """A tree of plain values with None in place of NaN and infinity; its keys become text, tuples lists."""
    if isinstance(tree, dict):
        return {str(key): without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_nan(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
