"""Values as text: cells, settings, keys."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from tlray.figures.charts import Column


def cell(value: Any, column: Column | None = None) -> str:
    """A table's cell as text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"  # noqa: RUF001
    if isinstance(value, float) and column is not None and column.digits is not None:
        return f"{value:.{column.digits}f}"
    return plain(value)


def sort_key(value: Any) -> str:
    """The value that the page's script sorts a cell by: numbers exact, text in lower case, "" for none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value).lower()
    return repr(value) if math.isfinite(value) else ""


def plain(value: Any) -> str:
    """Any setting or count as short text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        text = ", ".join(plain(item) for item in value[:6])
        return text + (f", … ({len(value)})" if len(value) > 6 else "")
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in list(value.items())[:6])
    return str(value)


def short(key: str, others: Sequence[str] = ()) -> str:
    """The last part of a dotted key, or the whole key where another one ends with the same part."""
    last = key.rsplit(".", 1)[-1]
    return key if sum(o.rsplit(".", 1)[-1] == last for o in others) > 1 else last.replace("_", " ")


def slug(text: str) -> str:
    """A text as an id in HTML."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"
