"""Search: many trials of one configuration, the best one's bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tlray.observer import Emit

if TYPE_CHECKING:
    from tlray.config import Config
    from tlray.search.tuner import SearchResult, TuneOptions

__all__ = ["explain", "tune"]


def explain(config: Config) -> list[dict[str, Any]]:
    """What a search would cost, by depth; see `tlray.search.tuner.explain`."""
    from tlray.search.tuner import explain

    return explain(config)


def tune(
    config: Config, emit: Emit | None = None, fresh: bool = False, options: TuneOptions | None = None
) -> SearchResult:
    """Run or go on with the search of this name; see `tlray.search.tuner.run`."""
    from tlray.search.tuner import run

    return run(config, emit, fresh, options)
