"""Tables of boxes, one a row: TensorFlow's tools, Roboflow, VoTT, RetinaNet, AutoML, Open Images, Kaggle.

A header names the columns of the picture, the class and the numbers of the box (see `tabular.boxes`; case,
blanks and underscores do not count), or one column ``bbox`` with "[x, y, w, h]". Tables without a header are
RetinaNet's ``path,x1,y1,x2,y2,class``, TensorFlow's and AutoML's. An empty box means that the picture shows
no object. Numbers are px, or shares of the sides where none is above 1. A table may be that of one split.
"""

from __future__ import annotations

import csv
import io
import math
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tlray.data.schema import OBJECTS, SPLITS
from tlray.errors import DataError
from tlray.ingestion.findings import Finding, finding
from tlray.ingestion.formats.base import Index, Look, objects, table
from tlray.ingestion.formats.heuristics import folder_split
from tlray.ingestion.formats.listing import Listing, lines_of
from tlray.ingestion.formats.picture_paths import Lookup, PicturePaths
from tlray.ingestion.formats.tabular.boxes import (
    CENTRED,
    CORNERS,
    ENDINGS,
    LISTED,
    SIZED,
    Shape,
    first_lines,
    number,
    shape_of,
)

GIVES: tuple[str, ...] = (OBJECTS,)
_LOOKED_INTO = 50  # tables whose first bytes are read
_EMPTY = ("", "nan", "null", "none", "na", "n/a")


@dataclass
class _Table:
    """The shape of a table, and the content of its rows."""

    shape: Shape
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)  # x, y, w, h
    owners: list[int] = field(default_factory=list)  # for each box the number of its picture
    classes: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    pictures: dict[str, int] = field(default_factory=dict)
    splits: dict[str, str | None] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def file(self) -> str:
        return self.shape.file


def look(listing: Listing) -> Look | None:
    """Tables with columns of boxes whose first rows name pictures that exist."""
    tables, lacking = _tables(listing)
    files = [t.file for t in tables] or [shape.file for shape in lacking]
    summary = f"{', '.join(files[:3])}{', ...' if len(files) > 3 else ''} of boxes"
    if not tables:
        return Look(summary, [], files, f"{files[0]}: {lacking[0].lacks}") if lacking else None
    for t in tables:
        try:
            rows = [row for _, row in t.shape.rows(first_lines(listing.head(t.file)))][:20]
            names = [t.shape.cell(row, "path") for row in rows]
            lookup = _lookup(listing, PicturePaths(listing), t.shape, names)
            if any(lookup.several(name) for name in names):
                return Look(summary, listing.pictures, files)
        except DataError:  # a name of two pictures: `index` says so
            return Look(summary, listing.pictures, files)
    return Look(
        summary, listing.pictures, files, f"no picture that the first rows of {files[0]} name is there"
    )


def index(listing: Listing, column: str) -> Index:
    """Table of (path, split, objects), with sizes where the tables state them.

    Raises DataError for cells that are no numbers, incomplete boxes, pictures in two tables or splits, and
    where most of the pictures are missing.
    """
    tables, lacking = _tables(listing)
    if not tables and lacking:
        raise DataError(f"{listing.where(lacking[0].file)}: {lacking[0].lacks}")
    if not tables:
        raise DataError(
            f"{listing.root}: no table of boxes; accepted: a .csv with the columns filename, class, xmin, "
            "ymin, xmax, ymax"
        )
    findings: list[Finding] = []
    homes: dict[str, str] = {}  # picture -> its table
    rows: list[dict[str, Any]] = []
    units = set()
    names = _class_table(listing)
    picture_paths = PicturePaths(listing)
    for t in tables:
        num_double = _read(listing, t, picture_paths)
        # Otherwise a new split would be cut in place of this one.
        if not t.pictures and t.shape.split and len(tables) > 1:
            raise DataError(
                f"{listing.where(t.file)}: no row below the header, so no picture of {t.shape.split}; "
                "accepted: one row at least, or no such table"
            )
        if num_double:
            findings.append(
                Finding("info", "double_box", num_double, f"{num_double} rows of {t.file} stand there twice")
            )
        findings += _unused(t)
        if t.boxes:
            units.add(_is_relative(listing, t))
        rows += _table_rows(listing, t, names, homes)
    if len(units) > 1:
        raise DataError(
            f"{listing.root}: boxes are px in one table and shares in another; accepted: one of them"
        )
    picture_paths.check(len(homes))
    findings += picture_paths.findings()
    without_row = sorted(set(listing.pictures) - set(homes))
    has_splits = {row["split"] for row in rows} - {None}
    if has_splits:
        without_split = [row["path"] for row in rows if row["split"] is None]
        findings += finding("warning", "no_split", without_split, "{n} pictures are in no split: left out")
        rows = [row for row in rows if row["split"] is not None]
    findings += finding(
        "warning", "no_row", without_row,
        "{n} pictures stand in no row (which is not a row without a box): left out",
    )  # fmt: skip
    class_order = (
        {column: list(dict.fromkeys(names.values()))} if names and _is_numbering(names, rows) else {}
    )
    return Index(table(rows, column), class_order, relative=units == {True}, findings=findings)


def _table_rows(
    listing: Listing, t: _Table, names: dict[str, str], homes: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Rows of the index for the pictures of one table."""
    boxes: list[list[tuple[str, Sequence[float]]]] = [[] for _ in t.pictures]
    for owner, name, box in zip(t.owners, t.classes, t.boxes, strict=True):
        boxes[owner].append((names.get(name, name), box))
    has_sizes = bool(t.sizes)
    for picture, owner in t.pictures.items():
        if picture in homes:
            raise DataError(
                f"{listing.where(t.file)}: {picture} stands in {homes[picture]}, too; accepted: one table "
                "for each picture (one of them can be named as the source)"
            )
        homes[picture] = t.file
        size = t.sizes.get(picture, (None, None))
        stated_size = {"stated_width": size[0], "stated_height": size[1]} if has_sizes else {}
        yield {"path": picture, "split": t.splits[picture], OBJECTS: objects(boxes[owner]), **stated_size}


def _unused(t: _Table) -> list[Finding]:
    """Findings about columns that are not read and about tables without classes."""
    unused = t.shape.unused
    findings = finding(
        "info", "unused_column", [f"{t.file}: {n}" for n in unused], "{n} columns of the table are not used"
    )
    if "class" not in t.shape.columns:
        text = f"no column of {t.file} is one of classes: every box is of the class 'object'"
        findings.append(Finding("warning", "no_class_column", 1, text, [t.file]))
    return findings


def _tables(listing: Listing) -> tuple[list[_Table], list[Shape]]:
    """(tables of boxes, shapes of those that lack a column)."""
    files = listing.labels(*ENDINGS)[:_LOOKED_INTO]
    shapes = [shape for file in files if (shape := shape_of(file, listing.head(file))) is not None]
    return [_Table(shape) for shape in shapes if not shape.lacks], [shape for shape in shapes if shape.lacks]


# ---- rows


def _lookup(listing: Listing, picture_paths: PicturePaths, shape: Shape, names: Sequence[str]) -> Lookup:
    return picture_paths.lookup(listing.where(shape.file), posixpath.dirname(shape.file), names, shape.split)


def _read(listing: Listing, t: _Table, picture_paths: PicturePaths) -> int:
    """Read the rows of a table into it; returns the number of repeated rows."""
    where, shape = listing.where(t.file), t.shape
    try:
        rows = list(shape.rows(io.StringIO(listing.text(t.file), newline="")))
    except csv.Error as error:
        raise DataError(
            f"{where}: no valid table ({error}); accepted: cells between {shape.delimiter!r}"
        ) from None
    lookup = _lookup(listing, picture_paths, shape, [shape.cell(row, "path") for _, row in rows])
    picture_of: dict[str, str] = {}  # each path is looked up once, since it is in a row for every box
    known_boxes: set[tuple[Any, ...]] = set()
    num_double = 0
    decimal_comma = shape.delimiter != ","
    for line, row in rows:
        place = f"{where} line {line}"
        name = shape.cell(row, "path")
        if not name:
            raise DataError(f"{place}: no name of a picture; accepted: one in every row")
        if name not in picture_of:
            picture_of[name] = lookup(name, place)
        picture = picture_of[name]
        owner = t.pictures.setdefault(picture, len(t.pictures))
        _note_split(place, t, row, picture)
        _note_size(place, t, row, picture, decimal_comma)
        box = _box(place, shape, row, decimal_comma)
        if box is None:
            continue
        label = shape.cell(row, "class") if "class" in shape.columns else "object"
        if label.lower() in _EMPTY[:-2]:
            raise DataError(f"{place}: a box of class {label!r}; accepted: a name")
        key = (owner, label, *box)
        if key in known_boxes:
            num_double += 1
            continue
        known_boxes.add(key)
        t.boxes.append(box)
        t.owners.append(owner)
        t.classes.append(label)
        t.lines.append(line)
    return num_double


def _note_split(place: str, t: _Table, row: Sequence[str], picture: str) -> None:
    text = t.shape.cell(row, "split").lower()
    split = SPLITS.get(text) if text else None
    if text and split is None and text != "unassigned" and t.shape.cell(row, "split") != "":
        raise DataError(f"{place}: split {text!r}; accepted: train, validation (val, valid), test")
    split = split or t.shape.split or folder_split(picture)
    if t.splits.setdefault(picture, split) != split:
        raise DataError(f"{place}: {picture} is in {t.splits[picture]}, too; accepted: one split")


def _note_size(place: str, t: _Table, row: Sequence[str], picture: str, decimal_comma: bool) -> None:
    cells = t.shape.cell(row, "width"), t.shape.cell(row, "height")
    width, height = (number(cell, decimal_comma) for cell in cells)
    if math.isnan(width) or math.isnan(height) or width < 1 or height < 1:
        return
    size = int(width), int(height)
    if t.sizes.setdefault(picture, size) != size:
        raise DataError(
            f"{place}: {picture} is {size[0]} x {size[1]} px, in another row {t.sizes[picture][0]} x "
            f"{t.sizes[picture][1]}; accepted: one size"
        )


def _box(
    place: str, shape: Shape, row: Sequence[str], decimal_comma: bool
) -> tuple[float, float, float, float] | None:
    """x, y, width, height; None where the cells are empty."""
    if shape.box == LISTED:
        text = shape.cell(row, "bbox")
        cells = [c for c in re.split(r"[,\s;]+", text.strip("[]() ")) if c]
        expected = "[x, y, width, height]"
        if not cells or text.lower() in _EMPTY:
            return None
    else:
        cells = [shape.cell(row, name) for name in shape.box]
        expected = ", ".join(shape.box)
        text = ", ".join(cells)
    if all(cell.lower() in _EMPTY for cell in cells):
        return None
    numbers = [number(cell, decimal_comma and shape.box != LISTED) for cell in cells]
    if len(numbers) != 4 or not math.isfinite(sum(numbers)):
        raise DataError(f"{place}: box {text!r}; accepted: four numbers {expected}, or all empty")
    a, b, c, d = numbers
    if shape.box == CORNERS:
        return a, b, c - a, d - b
    return (a - c / 2, b - d / 2, c, d) if shape.box == CENTRED else (a, b, c, d)


def _is_relative(listing: Listing, t: _Table) -> bool:
    """Whether boxes are in shares of the sides. Raises DataError where some are and some are not, and where
    they are written in another form than the columns say."""
    where = listing.where(t.file)
    _check_not_centred(where, t)
    is_share = [max(x, y, x + w, y + h, w, h) <= 1.01 for x, y, w, h in t.boxes]
    if all(is_share):
        return True
    if sum(is_share) >= 0.9 * len(is_share) and len(is_share) > 1:
        row = is_share.index(False)
        raise DataError(
            f"{where} line {t.lines[row]}: box of {_listed(t.boxes[row])} among {sum(is_share)} in shares of "
            "the sides; accepted: all in px, or all from 0 to 1"
        )
    reversed_boxes = [n for n, (_, _, w, h) in enumerate(t.boxes) if w < 0 or h < 0]
    if 2 * len(reversed_boxes) > len(t.boxes):
        raise DataError(
            f"{where} line {t.lines[reversed_boxes[0]]}: {len(reversed_boxes)} of {len(t.boxes)} "
            f"boxes end before they begin; accepted: {', '.join(t.shape.box)} with the larger numbers last"
        )
    if t.shape.box in (LISTED, SIZED) and t.sizes:
        _check_sized(where, t)
    return False


def _check_not_centred(where: str, t: _Table) -> None:
    """Raises DataError where columns x, y seem to hold centres: read as corners, boxes lead out of the
    pictures."""
    if t.shape.box not in (SIZED, LISTED) or any(max(box) > 1.01 for box in t.boxes):
        return
    num_outside = sum(x + w > 1.01 or y + h > 1.01 for x, y, w, h in t.boxes)
    if num_outside and all(
        abs(x - 0.5) + w / 2 <= 0.51 and abs(y - 0.5) + h / 2 <= 0.51 for x, y, w, h in t.boxes
    ):
        raise DataError(
            f"{where}: {num_outside} of {len(t.boxes)} boxes lead out of their pictures as x, y of the "
            "corner, "
            "and all fit as centres; accepted: x, y of the upper left corner, or columns x_center, y_center, "
            "width, height"
        )


def _check_sized(where: str, t: _Table) -> None:
    """Raises DataError where columns of sizes seem to hold corners: read as sizes, boxes lead out of the
    pictures."""
    paths = list(t.pictures)
    num_outside = num_as_corners = 0
    for owner, (x, y, w, h) in zip(t.owners, t.boxes, strict=True):
        width, height = t.sizes.get(paths[owner], (10**9, 10**9))
        num_outside += x + w > width + 1 or y + h > height + 1
        num_as_corners += x < w <= width + 1 and y < h <= height + 1
    if num_outside >= len(t.boxes) / 10 and num_as_corners == len(t.boxes):
        raise DataError(
            f"{where}: {num_outside} of {len(t.boxes)} boxes lead out of their pictures as "
            f"{', '.join(t.shape.box)}, and all fit as corners; accepted: x, y, width, height, or columns "
            "xmin, ymin, xmax, ymax"
        )


def _listed(box: Sequence[float]) -> str:
    return ", ".join(f"{v:g}" for v in box)


# ---- class tables


def _class_table(listing: Listing) -> dict[str, str]:
    """Class in the tables -> class name, from classes.csv of RetinaNet (name, number) or class-descriptions
    of Open Images (code, name)."""
    names: dict[str, str] = {}
    for file in [
        f for f in listing.files if f.lower().endswith(".csv") and "class" in posixpath.basename(f).lower()
    ]:
        rows = [row for row in csv.reader(lines_of(listing.text(file))) if any(row)]
        if not rows or any(len(row) != 2 for row in rows):
            continue
        if all(row[0].startswith("/") for row in rows[-3:]):  # /m/01g317: Person
            names |= {code.strip(): name.strip() for code, name in rows}
        elif all(row[1].strip().isdecimal() for row in rows):
            numbered = sorted((int(number), name.strip()) for name, number in rows)
            names |= {name: name for _, name in numbered}
    return names


def _is_numbering(names: dict[str, str], rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the class table names all classes of the rows."""
    return {name for row in rows for name in row[OBJECTS]["category"]} <= set(names.values())
