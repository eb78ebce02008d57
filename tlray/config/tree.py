"""Configurations as plain trees: their dotted keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, in the tree's order. A list is a value, and so is an empty mapping."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def within(key: str, groups: Iterable[str]) -> bool:
    """Whether a dotted key is one of the given ones, or lies below one."""
    return any(f"{key}.".startswith(f"{group}.") for group in groups)
