"""Finds the files that are tables of labelled pictures, and what their columns mean."""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tlray.ingestion.formats import heuristics, unsupported
from tlray.ingestion.formats.listing import Listing, is_picture, split_in
from tlray.ingestion.formats.picture_paths import Lookup, PicturePaths
from tlray.ingestion.formats.tabular import boxes, cells, records, roles

SUBMISSION = re.compile(r"sample[_ -]?submission", re.IGNORECASE)
_MOST_TABLES = 50  # files of each ending that are read: on object storage each costs a request


@dataclass(frozen=True)
class LabelTable:
    """One file with a column of paths."""

    rows: records.Records
    path: str  # the column
    lookup: Lookup
    split: str | None  # by the name of the file or of its folder
    pictures: Sequence[str | None]  # of each row; None for a missing one

    @property
    def file(self) -> str:
        return self.rows.file

    def others(self) -> dict[str, Sequence[Any]]:
        """The columns beside the path."""
        return {name: values for name, values in self.rows.columns.items() if name != self.path}


@dataclass(frozen=True)
class WithoutPictures:
    """A table whose cells name no picture that exists, and the column that seems to hold paths."""

    rows: records.Records
    column: str
    reason: str = ""  # why it cannot be read, where that is known


@dataclass(frozen=True)
class Group:
    """Tables with the same columns, which are read as one."""

    tables: list[LabelTable]
    splits: roles.SplitColumns = field(default_factory=roles.SplitColumns)
    labels: roles.Labels | None = None
    problem: str = ""  # why no column holds labels


def candidates(listing: Listing) -> list[str]:
    """Files that may be tables of pictures, judged by their names."""
    num_of_ending: Counter[str] = Counter()
    chosen = []
    for path in sorted(listing.labels(*records.ENDINGS), key=lambda path: (path.count("/"), path)):
        name = path.rpartition("/")[2]
        if SUBMISSION.search(name) or "ImageSets" in path.split("/"):
            continue
        ending = posixpath.splitext(path)[1].lower()
        if ending in (*records.LISTS, ".json") and not listing.named and _belongs_to_picture(listing, path):
            continue
        num_of_ending[ending] += 1
        if num_of_ending[ending] <= _MOST_TABLES:
            chosen.append(path)
    return chosen


def _belongs_to_picture(listing: Listing, path: str) -> bool:
    """Whether a text file is the label file of one picture, which lies beside it or in a folder beside."""
    path_stem = posixpath.splitext(path)[0]
    parts = path_stem.split("/")
    expected = [
        path_stem,
        *("/".join([*parts[:n], "images", *parts[n + 1 :]]) for n in range(len(parts) - 1)),
    ]
    return any(stem.lower() in listing.by_stem for stem in expected)


def find(
    listing: Listing, files: Sequence[str], head: bool = False
) -> tuple[list[LabelTable], list[WithoutPictures]]:
    """(tables whose cells name pictures that exist, other tables)."""
    label_tables: list[LabelTable] = []
    without_pictures: list[WithoutPictures] = []
    for path in files:
        if not path.lower().endswith(".parquet") and unsupported.tool_of(path, listing.head_text(path)):
            continue
        name = posixpath.splitext(path)[0].rpartition("/")[2]
        split = heuristics.folder_split(path) or split_in(_words(name))
        lookup = PicturePaths(listing).lookup(path, posixpath.dirname(path), split=split)

        def names(cell: str, lookup: Lookup = lookup) -> bool:
            return bool(lookup.several(cell))

        unmatched: records.Records | None = None
        shape = boxes.shape_of(path, listing.head(path)) if path.lower().endswith(boxes.ENDINGS) else None
        for read in records.read(listing, path, names, head):
            if (shape and not shape.has_header) or boxes.holds_boxes(list(read.columns)):
                unmatched = None
                break
            try:
                column = roles.path_column(read.columns, names)
            except roles.UnclearColumns as reason:
                without_pictures.append(WithoutPictures(read, "", str(reason)))
                unmatched = None
                break
            if column is not None:
                values = [cells.text(value) for value in read.columns[column]]
                label_tables.append(
                    LabelTable(read, column, lookup, split, [lookup.find(value) for value in values])
                )
                unmatched = None
                break
            unmatched = unmatched or read
        if unmatched is not None:
            without_pictures.append(
                WithoutPictures(unmatched, roles.named_path_column(unmatched.columns, is_picture) or "")
            )
    return label_tables, without_pictures


def _words(name: str) -> str:
    """A name with blanks between its words: trainLabels -> train Labels."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


def grouped(tables: Sequence[LabelTable]) -> list[Group]:
    """Groups of tables with the same columns, and the roles of these."""
    tables_of_columns: dict[frozenset[str], list[LabelTable]] = defaultdict(list)
    for t in tables:
        tables_of_columns[frozenset(t.rows.columns)].append(t)
    groups = []
    for members in tables_of_columns.values():
        columns = merged(members)
        splits = roles.split_columns(columns)
        try:
            chosen = roles.labels({n: v for n, v in columns.items() if n not in splits.columns})
        except roles.UnclearColumns as reason:
            groups.append(Group(members, splits, problem=str(reason)))
        else:
            groups.append(Group(members, splits, chosen))
    return groups


def merged(tables: Sequence[LabelTable]) -> dict[str, list[Any]]:
    """The columns of several tables as one, without those of paths."""
    names = list(dict.fromkeys(name for t in tables for name in t.others()))
    return {
        name: [v for t in tables for v in t.others().get(name, [None] * len(t.rows.rows))] for name in names
    }
