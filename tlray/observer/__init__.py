"""What long work reports while it runs; the command line and notebooks show it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Emit = Callable[[dict[str, Any]], None]
"""Called with an event: an epoch, a trial, a note; ``event["kind"]`` says which."""

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total): so many rows or pictures of a stage are done."""


class Observer(Protocol):
    """Receives progress; every method may be called from any thread."""

    def begin(self) -> None:
        """All checks have passed, and the long part begins."""

    def event(self, event: dict[str, Any]) -> None:
        """An event happened; see `Emit`."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` rows or pictures of a stage; see `Progress`."""
