"""What a layout of labelled pictures is: the Protocol of a format, and the few types that cross it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import pyarrow as pa

from tlray.data import schema
from tlray.ingestion.findings import Finding
from tlray.ingestion.formats.listing import Listing

OBJECTS_TYPE = pa.struct([("bbox", pa.list_(pa.list_(pa.float64()))), ("category", pa.list_(pa.string()))])
"""Boxes of a picture in an index: x, y, width, height each, and the names of their classes; lists for
`schema.FLAGS` beside them where the index has any."""

MASK_TYPE = pa.struct([("paths", pa.list_(pa.string())), ("shapes", pa.string())])
"""A mask in an index: its files (mostly one), or outlines as JSON; see `tlray.data.masks`."""

TYPES: dict[str, pa.DataType] = {
    schema.LABEL: pa.string(),
    schema.LABELS: pa.list_(pa.string()),
    schema.OBJECTS: OBJECTS_TYPE,
    schema.MASK: MASK_TYPE,
}
"""Label columns of an index. Classes are names here; numbers are given when the data set is written."""

STATED = (("stated_width", pa.int32()), ("stated_height", pa.int32()))
"""Size of the picture as its label file states it, px; null where it does not."""

Boxes = Sequence[tuple[str, Sequence[float]]]  # class, (x, y, width, height)


@dataclass(frozen=True)
class Look:
    """What a format explains of a listing, known from names and from the first bytes of label files.

    A listing is read by the format that explains most of its pictures. ``lacks`` says what keeps this
    format from being read ("" = nothing does): such a look is never read, but it names the reason.
    """

    summary: str  # what was seen, as in "12 .xml of Pascal VOC"
    pictures: Collection[str]  # pictures that the label files speak of
    labels: Collection[str]  # label files: of whichever look explains more, the others' count as left over
    lacks: str = ""
    gives: tuple[str, ...] = ()  # label columns that this source really has, the usual one first; (): GIVES


@dataclass(frozen=True)
class Index:
    """Pictures with their labels as a layout states them; nothing is compared with the pictures yet.

    ``table`` has the columns path (relative to the listing's root), split (null where the layout has
    none), the label columns (types as in `TYPES`), and where the layout states them `STATED` and ``source``
    (where the picture's bytes are, if not in the file at ``path``; see `tlray.ingestion.writer.read`).
    """

    table: pa.Table
    names: Mapping[str, list[str]] = field(default_factory=dict)  # class names by column, if it numbers them
    kinds: Mapping[str, schema.Kind] = field(default_factory=dict)  # by column, where not the usual one
    relative: bool = False  # boxes are in shares of the picture's sides, not in px
    mask_code: Any = None  # `tlray.data.masks.MaskCode`: how pixels of mask files become ids; None: as stored
    ignored: Mapping[str, int] = field(default_factory=dict)  # files and boxes passed over, by kind
    findings: Sequence[Finding] = ()
    lists: Sequence[str] = ()  # files that say the splits, beside the label files of the look


class Format(Protocol):
    """What a module in this package offers."""

    GIVES: ClassVar[tuple[str, ...]]
    """Label columns that this layout can hold, the usual one first."""

    def look(self, listing: Listing) -> Look | None:
        """What of the listing this layout explains; None where it sees nothing of its own.

        Reads names, and the first bytes of label files; opens no picture beyond a few headers. Never
        raises DataError: what is wrong with its files is for `index` to say.
        """
        ...

    def index(self, listing: Listing, column: str) -> Index:
        """The pictures and their labels; ``column`` (one of GIVES) is the label column that is wanted.

        Raises DataError, one line with file and row, for labels that cannot be read.
        """
        ...


def table(rows: Sequence[Mapping[str, Any]], *columns: str) -> pa.Table:
    """The table of an index: rows of path, split and these label columns (more keys of `STATED` and source
    where a row has them), sorted by path."""
    kinds = [("path", pa.string()), ("split", pa.string()), *((name, TYPES[name]) for name in columns)]
    if schema.OBJECTS in columns:
        flags = [flag for flag in schema.FLAGS if any(flag in row[schema.OBJECTS] for row in rows)]
        kinds[2 + columns.index(schema.OBJECTS)] = (schema.OBJECTS, schema.with_flags(OBJECTS_TYPE, flags))
    present = set().union(*(row.keys() for row in rows)) if rows else set()
    kinds += [(name, kind) for name, kind in (*STATED, ("source", pa.string())) if name in present]
    index_table = pa.Table.from_pylist([dict(row) for row in rows], schema=pa.schema(kinds))
    return index_table.sort_by("path")


def objects(boxes: Boxes, **flags: Sequence[bool]) -> dict[str, Any]:
    """Boxes of one picture as a value of the column ``objects``, with those `schema.FLAGS` that any has."""
    plain = {"bbox": [list(box) for _, box in boxes], "category": [name for name, _ in boxes]}
    return plain | {name: list(values) for name, values in flags.items() if any(values)}
