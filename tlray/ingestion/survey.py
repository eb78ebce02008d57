"""The layout, task and labels of a source, from file names and label files alone; no picture is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from tlray.data import schema
from tlray.errors import DataError, about
from tlray.ingestion import formats, plan, source_splits
from tlray.ingestion.findings import Finding
from tlray.ingestion.formats import base
from tlray.ingestion.formats.base import Index, Look
from tlray.ingestion.formats.listing import Listing
from tlray.ingestion.names import unify
from tlray.ingestion.report import count_table, finding_lines


@dataclass(frozen=True)
class Survey:
    """A source read in one format for one task."""

    source: str
    listing: Listing
    format: str
    look: Look
    index: Index
    task: Any  # `tlray.tasks.base.Task`
    table: pa.Table  # of the index, each class name in one spelling
    names: dict[str, list[str]]  # class names by label column, where the layout numbers its classes itself
    findings: list[Finding]
    splits: set[str]  # those that the source states, also those without any usable picture

    @property
    def root(self) -> str:
        """URI of the folder that the paths of the index are relative to."""
        return self.listing.root

    @property
    def kinds(self) -> Mapping[str, schema.Kind]:
        """Label column -> what it holds."""
        columns: Mapping[str, schema.Kind] = self.task.columns
        return columns

    @property
    def about(self) -> str:
        """Layout and task in one line."""
        return f"Layout: {self.format} ({self.look.summary}); task: {self.task.name}"

    def counts(self) -> dict[str, Counter[str]]:
        """Split ("all" where the source states none) -> class -> number of labels."""
        by_split: dict[str, Counter[str]] = {split: Counter() for split in self.pictures()}
        classes = plan.classes(self.table, self.kinds)
        for row, split in enumerate(self.table["split"].to_pylist()):
            if classes is not None:
                by_split[split or "all"].update(classes[row])
        return by_split

    def pictures(self) -> dict[str, int]:
        """Split ("all" where the source states none) -> number of pictures."""
        counts = Counter(split or "all" for split in self.table["split"].to_pylist())
        order = (*dict.fromkeys(schema.SPLITS.values()), "all")
        return {split: counts[split] for split in order if counts[split]}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "source": self.source,
            "format": self.format,
            "task": self.task.name,
            "summary": self.look.summary,
            "pictures": self.pictures(),
            "counts": {split: dict(counts) for split, counts in self.counts().items()},
            "names": self.names,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def to_text(self) -> str:
        """For a terminal."""
        lines = [self.about, *count_table(self.counts(), self.pictures()), *finding_lines(self.findings)]
        for column, names in self.names.items():
            lines.append(f"Classes of {column} in their order: {', '.join(names[:50])}")
        return "\n".join(lines)


def survey(
    source: str,
    format: str = "auto",
    task: str = "auto",
    merge_classes: bool = False,
    one_class: bool = False,
) -> Survey:
    """Find layout and task of a source and read its labels; settings as of `tlray.ingestion.ingest.ingest`.

    Raises DataError where no layout explains it, two do, or the layout has no labels for the task;
    ConfigError for an unknown format or task.
    """
    listing = Listing.open(source)
    with about(lambda: f"{source}; the label file read last: {listing.last or 'none'}"):
        return _survey(source, listing, format, task, merge_classes, one_class)


def _survey(
    source: str, listing: Listing, format: str, task: str, merge_classes: bool, one_class: bool
) -> Survey:
    from tlray import tasks  # here, because Ray's workers import this package and need no models

    wanted_task = None if task == "auto" else tasks.load({"name": task}, "--task")
    if format == "auto":
        name, look = formats.find(listing, tuple(wanted_task.columns) if wanted_task is not None else ())
    else:
        name = format
        look = formats.load(name).look(listing) or Look(f"--format {name}", (), ())
    gives = look.gives or formats.load(name).GIVES
    if wanted_task is not None:
        column = next((c for c in gives if c in wanted_task.columns), None)
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
    # Which kinds of labels a table holds is known only after all rows were read.
    present = [c for c in gives if c in index.table.column_names]
    if wanted_task is None:
        wanted_task = tasks.load({"name": tasks.for_columns(present[:1], index.kinds)[0]})
    elif not set(wanted_task.columns) <= set(present):
        raise DataError(
            f"{source}: format {name} gives {', '.join(present)}, no labels for --task {task}; "
            f"accepted: {', '.join(_tasks(tuple(present)))}"
        )
    unused = {*base.TYPES} - set(wanted_task.columns)
    columns = [c for c in index.table.column_names if c not in unused]
    index = replace(index, table=index.table.select(columns))
    table, names, respelled = unify(index.table, wanted_task.columns, index.names, merge_classes)
    plan.check_classes(source, table, wanted_task.columns, look.summary, one_class)
    splits, empty = source_splits.stated(listing, look, index)
    findings = [*listing.findings, *index.findings, *respelled, *empty]
    return Survey(source, listing, name, look, index, wanted_task, table, dict(names), findings, splits)


def _tasks(columns: tuple[str, ...]) -> list[str]:
    from tlray import tasks

    return sorted({name for column in columns for name in tasks.for_columns([column])})
