"""The masks of a source, what was found out about each, and the usual names of ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tlray.data.masks import UNKNOWN
from tlray.ingestion.findings import SHOWN, Finding

TABLES = (
    "classes.txt (`value name` a line), labelmap.txt, class_dict.csv or label_colors.txt (name and r, g, b)"
)
"""Tables beside the masks that say which class a value or a colour is."""


@dataclass
class MaskSet:
    """All masks of a source."""

    source: str
    rows: list[dict[str, Any]]  # path and `preflight.INSPECTED_MASK` of each
    names: list[str] | None  # by id, where the source states them
    kinds: list[str | None]  # why a picture or its mask cannot be used; None where it can
    reasons: list[str | None]
    findings: list[Finding]

    def usable(self) -> list[int]:
        """Rows whose mask is not left out."""
        return [i for i, kind in enumerate(self.kinds) if kind is None]

    def leave_out(self, row: int, kind: str, reason: str) -> None:
        """Mark a mask as unusable, with the reason."""
        self.kinds[row], self.reasons[row] = kind, reason

    def note(
        self, severity: Any, kind: str, message: str, examples: Sequence[str] = (), count: int = 1
    ) -> None:
        """Add a finding about the masks."""
        self.findings.append(Finding(severity, kind, count, message, list(examples)[:SHOWN]))

    def pixels(self, column: str = "mask_values") -> Counter[int]:
        """Number of pixels of each value in the usable masks."""
        total: Counter[int] = Counter()
        for i in self.usable():
            for value, count in zip(self.rows[i][column], self.rows[i]["mask_counts"], strict=True):
                total[value] += count
        return total


def two_names(masks: MaskSet) -> list[str]:
    """Names for background and object."""
    names = masks.names or ["object"]
    return ["background", names[0]] if len(names) == 1 else list(names)


def numbers(pixels: Iterable[int]) -> list[str]:
    """Numbers as names, for ids without names."""
    most = max((value for value in pixels if 0 <= value < UNKNOWN), default=-1)
    return [str(number) for number in range(most + 1)]
