"""What long work tells of itself while it runs; the command line shows it, a notebook may."""

from __future__ import annotations

from typing import Any, Protocol


class Observer(Protocol):
    """Is told of progress; every method may be called from any thread."""

    def begin(self) -> None:
        """All checks are passed, and the long part begins."""

    def event(self, event: dict[str, Any]) -> None:
        """Something happened: an epoch, a trial, a note; ``event["kind"]`` says what."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` rows or pictures of a stage."""
