"""What was found in pictures and labels, with how bad it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["error", "warning", "info"]
"""error: figures measured on this data would mislead; warning: training suffers, or data was left out;
info: good to know."""

SHOWN = 20  # examples that are kept of each finding


@dataclass(frozen=True)
class Finding:
    """One thing found: ``count`` pictures (or boxes, or classes), and up to `SHOWN` examples as text."""

    severity: Severity
    kind: str  # one word, for programs
    count: int
    message: str
    examples: list[str] = field(default_factory=list)


def finding(severity: Severity, kind: str, examples: Sequence[str], message: str) -> list[Finding]:
    """A finding of as many things as there are examples, ``{n}`` in the message being their number; none
    where there are none."""
    if not examples:
        return []
    text = message.replace("{n}", str(len(examples)))
    return [Finding(severity, kind, len(examples), text, list(examples[:SHOWN]))]
