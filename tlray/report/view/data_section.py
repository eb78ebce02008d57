"""The data of a run, as the pre-flight of `ingest` saw them."""

from __future__ import annotations

from typing import NamedTuple

from tlray.figures.charts import Column, Section, Table
from tlray.report.run_files import Json

MOST_FILES = 100  # most files that are listed of those left out


class Finding(NamedTuple):
    severity: str  # error, warning, info
    message: str
    examples: list[str]


class Data(NamedTuple):
    caption: str
    findings: list[Finding]
    tables: list[Section]


def data(preflight: Json) -> Data | None:
    """The pictures, findings and classes in the report of ingest's pre-flight (preflight.json)."""
    if not preflight:
        return None
    counts: dict[str, dict[str, int]] = preflight.get("counts") or {}
    sums = {split: sum(by_class.values()) for split, by_class in counts.items()}
    kept: dict[str, int] = preflight.get("taken") or sums  # older versions of tlray stored no such counts
    listed = preflight.get("num_files")
    caption = (
        f"{listed} pictures listed, {sum(kept.values())} taken"
        if listed
        else f"{sum(kept.values())} pictures"
    )
    caption += ": " + ", ".join(f"{split} {number}" for split, number in kept.items()) + "." if kept else "."
    findings = [
        Finding(
            str(f.get("severity", "info")),
            str(f.get("message", f.get("kind", ""))),
            list(f.get("examples", [])),
        )
        for f in preflight.get("findings", [])
    ]
    tables = []
    classes = list(dict.fromkeys(name for by_class in counts.values() for name in by_class))
    if len(classes) > 1:
        most = max(number for by_class in counts.values() for number in by_class.values())
        first = next(iter(counts.values()))
        classes.sort(key=lambda name: -first.get(name, 0))
        rows = [[name, *(counts[split].get(name, 0) for split in counts)] for name in classes]
        columns = [Column("class"), *(Column(split, most=most) for split in counts)]
        counted = "Pictures" if kept == sums else "Labels"
        tables.append(Section(f"{counted} by class", tables=[Table(columns, rows)]))
    if left := preflight.get("quarantined"):
        rows = [[q.get("path"), q.get("reason", q.get("kind"))] for q in left[:MOST_FILES]]
        more = f"The first {MOST_FILES} of {len(left)}." if len(left) > MOST_FILES else ""
        tables.append(Section("Left out", more, tables=[Table([Column("file"), Column("why")], rows)]))
    return Data(caption, findings, tables)
