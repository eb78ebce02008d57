"""Which files are tables of labelled pictures, and what their columns mean."""

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
_TABLES = 50  # of one ending that are looked into: on object storage each costs a request


@dataclass(frozen=True)
class LabelTable:
    """One file with a column of paths."""

    rows: records.Records
    path: str  # the column
    lookup: Lookup
    split: str | None  # that the file's or folder's name says
    pictures: Sequence[str | None]  # of each row, null where none is there

    @property
    def file(self) -> str:
        return self.rows.file

    def others(self) -> dict[str, Sequence[Any]]:
        """The columns beside the path."""
        return {name: values for name, values in self.rows.columns.items() if name != self.path}


@dataclass(frozen=True)
class Lost:
    """One file whose cells name no picture that is there, and the column that seems to be one of paths."""

    rows: records.Records
    column: str
    why: str = ""  # what keeps it from being read, where that is known


@dataclass(frozen=True)
class Group:
    """Tables of the same columns, which are read as one."""

    tables: list[LabelTable]
    splits: roles.SplitColumns = field(default_factory=roles.SplitColumns)
    labels: roles.Labels | None = None
    why_not: str = ""  # why no column is one of labels


def candidates(listing: Listing) -> list[str]:
    """Files that may be tables of pictures, by their names."""
    ends: Counter[str] = Counter()
    kept = []
    for path in sorted(listing.labels(*records.ENDINGS), key=lambda path: (path.count("/"), path)):
        name = path.rpartition("/")[2]
        if SUBMISSION.search(name) or "ImageSets" in path.split("/"):
            continue
        end = posixpath.splitext(path)[1].lower()
        if end in (*records.LISTS, ".json") and not listing.named and _belongs_to_picture(listing, path):
            continue
        ends[end] += 1
        if ends[end] <= _TABLES:
            kept.append(path)
    return kept


def _belongs_to_picture(listing: Listing, path: str) -> bool:
    """Whether a text file is that of one picture, which lies beside it or in a folder beside."""
    own = posixpath.splitext(path)[0]
    parts = own.split("/")
    beside = [own, *("/".join([*parts[:n], "images", *parts[n + 1 :]]) for n in range(len(parts) - 1))]
    return any(stem.lower() in listing.by_stem for stem in beside)


def find(listing: Listing, files: Sequence[str], head: bool = False) -> tuple[list[LabelTable], list[Lost]]:
    """Files whose cells name pictures; and the others, with the column that seems to name some or ""."""
    there: list[LabelTable] = []
    lost: list[Lost] = []
    for path in files:
        if not path.lower().endswith(".parquet") and unsupported.tool_of(path, listing.head_text(path)):
            continue
        name = posixpath.splitext(path)[0].rpartition("/")[2]
        split = heuristics.folder_split(path) or split_in(_words(name))
        lookup = PicturePaths(listing).lookup(path, posixpath.dirname(path), split=split)

        def names(cell: str, lookup: Lookup = lookup) -> bool:
            return bool(lookup.several(cell))

        first: records.Records | None = None
        shape = boxes.shape_of(path, listing.head(path)) if path.lower().endswith(boxes.ENDINGS) else None
        for read in records.read(listing, path, names, head):
            if (shape and not shape.has_header) or boxes.holds_boxes(list(read.columns)):
                first = None
                break
            try:
                column = roles.path_column(read.columns, names)
            except roles.Unclear as reason:
                lost.append(Lost(read, "", str(reason)))
                first = None
                break
            if column is not None:
                values = [cells.text(value) for value in read.columns[column]]
                there.append(
                    LabelTable(read, column, lookup, split, [lookup.find(value) for value in values])
                )
                first = None
                break
            first = first or read
        if first is not None:
            lost.append(Lost(first, roles.named_path_column(first.columns, is_picture) or ""))
    return there, lost


def _words(name: str) -> str:
    """A name with its words apart: trainLabels -> train Labels."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


def grouped(tables: Sequence[LabelTable]) -> list[Group]:
    """Tables by their columns, with the roles that these have."""
    same: dict[frozenset[str], list[LabelTable]] = defaultdict(list)
    for t in tables:
        same[frozenset(t.rows.columns)].append(t)
    made = []
    for members in same.values():
        columns = merged(members)
        splits = roles.split_columns(columns)
        try:
            chosen = roles.labels({n: v for n, v in columns.items() if n not in splits.columns})
        except roles.Unclear as reason:
            made.append(Group(members, splits, why_not=str(reason)))
        else:
            made.append(Group(members, splits, chosen))
    return made


def merged(tables: Sequence[LabelTable]) -> dict[str, list[Any]]:
    """The columns of tables, one below the other, without those of paths."""
    names = list(dict.fromkeys(name for t in tables for name in t.others()))
    return {
        name: [v for t in tables for v in t.others().get(name, [None] * len(t.rows.rows))] for name in names
    }
