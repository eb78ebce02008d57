"""The Protocol of a format, a layout of labelled pictures, and the types that it uses."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import pyarrow as pa

from tlray.data import schema
from tlray.ingestion.findings import Finding
from tlray.ingestion.formats.listing import Listing

OBJECTS_TYPE = pa.struct([("bbox", pa.list_(pa.list_(pa.float64()))), ("category", pa.list_(pa.string()))])
"""Boxes of a picture in an index: x, y, width, height and class name of each; with lists for those
`schema.FLAGS` that the index has."""

MASK_TYPE = pa.struct([("paths", pa.list_(pa.string())), ("shapes", pa.string())])
"""A mask in an index: its files (usually one), or outlines as JSON; see `tlray.data.masks`."""

TYPES: dict[str, pa.DataType] = {
    schema.LABEL: pa.string(),
    schema.LABELS: pa.list_(pa.string()),
    schema.OBJECTS: OBJECTS_TYPE,
    schema.MASK: MASK_TYPE,
}
"""Label columns of an index. Classes are names; the data set that is written has their numbers."""

STATED = (("stated_width", pa.int32()), ("stated_height", pa.int32()))
"""Size of the picture that its label file states, px; null where it states none."""

Boxes = Sequence[tuple[str, Sequence[float]]]  # class, (x, y, width, height)


@dataclass(frozen=True)
class Look:
    """Which pictures of a listing a format explains, known from names and the first bytes of label files.

    A listing is read by the format that explains most of its pictures. ``lacks`` is why this format cannot be
    read, for the message ("" = it can be read).
    """

    summary: str  # what is there, as in "12 .xml of Pascal VOC"
    pictures: Collection[str]  # pictures that the label files are about
    labels: Collection[str]  # label files
    lacks: str = ""
    gives: tuple[str, ...] = ()  # label columns that this source has, the usual one first; (): all of GIVES


@dataclass(frozen=True)
class Index:
    """Pictures with their labels as a layout states them, not yet compared with the pictures.

    ``table`` has the columns path (relative to the listing's root), split (null where the layout has
    none), the label columns (types as in `TYPES`), and where the layout states them `STATED` and ``source``
    (where the picture's bytes are, if not in the file at ``path``; see `tlray.ingestion.writer.read`).
    """

    table: pa.Table
    names: Mapping[str, list[str]] = field(default_factory=dict)  # class names by column, where numbered
    kinds: Mapping[str, schema.Kind] = field(default_factory=dict)  # by column, where not the usual one
    relative: bool = False  # boxes are in shares of the picture's sides, not in px
    mask_code: Any = None  # `tlray.data.masks.MaskCode`, from pixels of mask files to ids; None: as stored
    ignored: Mapping[str, int] = field(default_factory=dict)  # numbers of files and boxes left out, by kind
    findings: Sequence[Finding] = ()
    lists: Sequence[str] = ()  # files that state splits, in addition to the label files of the look


class Format(Protocol):
    """What a module of this package has to offer."""

    GIVES: ClassVar[tuple[str, ...]]
    """Label columns that this layout can hold, the usual one first."""

    def look(self, listing: Listing) -> Look | None:
        """Which pictures of the listing this layout explains; None where it has no label files there.

        Reads names, the first bytes of label files, and the headers of a few pictures at most. Never raises
        DataError: mistakes in the files are found by `index`.
        """
        ...

    def index(self, listing: Listing, column: str) -> Index:
        """The pictures and their labels in the label column that is wanted, one of GIVES.

        Raises DataError, one line with file and row, for labels that cannot be read.
        """
        ...


def table(rows: Sequence[Mapping[str, Any]], *columns: str) -> pa.Table:
    """The table of an index, sorted by path, of rows with path, split and these label columns, and perhaps
    keys of `STATED` and ``source``."""
    kinds = [("path", pa.string()), ("split", pa.string()), *((name, TYPES[name]) for name in columns)]
    if schema.OBJECTS in columns:
        flags = [flag for flag in schema.FLAGS if any(flag in row[schema.OBJECTS] for row in rows)]
        kinds[2 + columns.index(schema.OBJECTS)] = (schema.OBJECTS, schema.with_flags(OBJECTS_TYPE, flags))
    present = set().union(*(row.keys() for row in rows)) if rows else set()
    kinds += [(name, kind) for name, kind in (*STATED, ("source", pa.string())) if name in present]
    index_table = pa.Table.from_pylist([dict(row) for row in rows], schema=pa.schema(kinds))
    return index_table.sort_by("path")


def stated_side(value: Any) -> int | None:
    """A side of a picture as a label file states it, px; None where it is no number or 0, which means not
    known."""
    is_side = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**31
    return round(value) if is_side else None


def objects(boxes: Boxes, **flags: Sequence[bool]) -> dict[str, Any]:
    """Boxes of one picture as a value of the column ``objects``, with those of `schema.FLAGS` that any box
    has."""
    plain = {"bbox": [list(box) for _, box in boxes], "category": [name for name, _ in boxes]}
    return plain | {name: list(values) for name, values in flags.items() if any(values)}
