"""Findings about pictures and labels, each with a severity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["error", "warning", "info"]
"""error: metrics measured on this data would mislead; warning: training suffers, or data was left out;
info: good to know."""

SHOWN = 20  # examples of each finding


@dataclass(frozen=True)
class Finding:
    """``count`` pictures (or boxes, or classes) of one kind, with up to `SHOWN` of them as examples."""

    severity: Severity
    kind: str  # one word, for programs
    count: int
    message: str
    examples: list[str] = field(default_factory=list)


def finding(severity: Severity, kind: str, examples: Sequence[str], message: str) -> list[Finding]:
    """A list with one finding of all the examples, empty without any; ``{n}`` in the message is their
    number."""
    if not examples:
        return []
    text = message.replace("{n}", str(len(examples)))
    return [Finding(severity, kind, len(examples), text, list(examples[:SHOWN]))]
