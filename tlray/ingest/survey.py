"""What a source holds, known from names and label files alone: layout, task, labels. No picture is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from tlray import formats, schema
from tlray.errors import DataError
from tlray.findings import Finding
from tlray.formats import base
from tlray.formats.base import Index, Look
from tlray.formats.listing import Listing


@dataclass(frozen=True)
class Survey:
    """A source as one format and one task see it; `tlray ingest --dry-run` shows it."""

    source: str
    listing: Listing
    format: str
    look: Look
    index: Index
    task: Any  # `tlray.tasks.base.Task`

    @property
    def root(self) -> str:
        """URI that the paths of the index are relative to."""
        return self.listing.root

    @property
    def kinds(self) -> Mapping[str, schema.Kind]:
        """Label columns and what they mean."""
        columns: Mapping[str, schema.Kind] = self.task.columns
        return columns

    @property
    def table(self) -> pa.Table:
        """Rows of the index, all label columns of the task among them."""
        return self.index.table

    @property
    def findings(self) -> list[Finding]:
        """What was noticed so far."""
        return [*self.listing.findings, *self.index.findings]


def survey(source: str, format: str = "auto", task: str = "auto") -> Survey:
    """Find layout and task of a source and read its labels.

    Raises DataError where no layout explains it, two do, or the layout has no labels for the task;
    ConfigError for an unknown format or task.
    """
    from tlray import tasks  # here, because Ray's workers import this package and need no models

    listing = Listing.open(source)
    wanted = None if task == "auto" else tasks.load({"name": task}, "--task")
    if format == "auto":
        name, look = formats.find(listing, tuple(wanted.columns) if wanted is not None else ())
    else:
        name = format
        look = formats.load(name).look(listing) or Look(f"--format {name}", (), ())
    gives = look.gives or formats.load(name).GIVES
    if wanted is not None:
        column = next((c for c in gives if c in wanted.columns), None)
        if column is None:
            raise DataError(
                f"{source}: format {name} gives no labels for --task {task}; "
                f"accepted: {', '.join(_tasks(gives)) or 'another format'}"
            )
    else:
        column = gives[0]
    index = formats.load(name).index(listing, column)
    if index.table.num_rows == 0:
        raise DataError(f"{source}: format {name} ({look.summary}) names no picture")
    # A table may hold one kind of labels only, which its format learns when it reads all rows.
    present = [c for c in gives if c in index.table.column_names]
    if wanted is None:
        wanted = tasks.load({"name": tasks.for_columns(present[:1], index.kinds)[0]})
    elif not set(wanted.columns) <= set(present):
        raise DataError(
            f"{source}: format {name} gives {', '.join(present)}, no labels for --task {task}; "
            f"accepted: {', '.join(_tasks(tuple(present)))}"
        )
    unused = {*base.TYPES} - set(wanted.columns)
    kept = [c for c in index.table.column_names if c not in unused]
    index = replace(index, table=index.table.select(kept))
    return Survey(source, listing, name, look, index, wanted)


def _tasks(columns: tuple[str, ...]) -> list[str]:
    from tlray import tasks

    return sorted({name for column in columns for name in tasks.for_columns([column])})


def counts(survey: Survey) -> dict[str, Counter[str]]:
    """Split ("" where the layout has none) -> class -> how often the labels name it; empty for masks."""
    from tlray.ingest import plan

    by_split: dict[str, Counter[str]] = {}
    classes = plan.classes(survey.table, survey.kinds)
    for row, split in enumerate(survey.table["split"].to_pylist()):
        here = by_split.setdefault(split or "", Counter())
        if classes is not None:
            here.update(classes[row])
    return by_split
