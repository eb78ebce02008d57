"""Search: many trials of one configuration, the best one's bundle."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlray.config import Config
    from tlray.search.driver import SearchResult

__all__ = ["explain", "tune"]


def explain(config: Config) -> list[dict[str, Any]]:
    """What a search would cost, by depth; see `tlray.search.driver.explain`."""
    from tlray.search.driver import explain

    return explain(config)


def tune(
    config: Config, emit: Callable[[dict[str, Any]], None] | None = None, fresh: bool = False
) -> SearchResult:
    """Run or go on with the search of this name; see `tlray.search.driver.run`."""
    from tlray.search.driver import run

    return run(config, emit, fresh)
