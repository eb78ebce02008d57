"""Tables of boxes, one a row: TensorFlow's tools, Roboflow, VoTT, RetinaNet, AutoML, Open Images, Kaggle.

A header names the picture, the class and the sides of the box (`_COLUMNS`: upper and lower case, blanks and
underscores are the same), or one column ``bbox`` with "[x, y, w, h]". Without a header there are RetinaNet's
``path,x1,y1,x2,y2,class``, TensorFlow's and AutoML's. A row whose box is empty: the picture shows no object.
Numbers are px, or shares of the sides where none is above 1. One table may be one split.
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

from tlray.errors import DataError
from tlray.findings import Finding, finding
from tlray.formats.base import Index, Look, objects, table
from tlray.formats.listing import Listing, is_picture, lines_of, split_in, split_of, text_of
from tlray.formats.references import References
from tlray.schema import OBJECTS, SPLITS

GIVES: tuple[str, ...] = (OBJECTS,)
_ENDINGS = (".csv", ".tsv")
_LOOKED_INTO = 50  # tables whose first bytes are read
# What columns are called, without blanks, underscores, dots and dashes; of several the first.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "path": ("filename", "filepath", "file", "path", "image", "imagepath", "imagename", "imagefile",
             "imagefilename", "imageid", "imgpath", "imgname", "img", "imgid", "images", "uri", "imageuri",
             "name", "id"),
    "class": ("class", "label", "classname", "labelname", "category", "categoryname", "classes", "labels",
              "species", "objectclass", "object", "classid", "labelid", "categoryid", "type"),
    "x1": ("xmin", "x1", "left", "bboxxmin", "minx", "boxleft", "topleftx", "xtl"),
    "y1": ("ymin", "y1", "top", "bboxymin", "miny", "boxtop", "toplefty", "ytl"),
    "x2": ("xmax", "x2", "right", "bboxxmax", "maxx", "boxright", "bottomrightx", "xbr"),
    "y2": ("ymax", "y2", "bottom", "bboxymax", "maxy", "boxbottom", "bottomrighty", "ybr"),
    "x": ("x", "bboxx", "boxx"),
    "y": ("y", "bboxy", "boxy"),
    "cx": ("xcenter", "centerx", "cx", "xcentre", "centrex"),
    "cy": ("ycenter", "centery", "cy", "ycentre", "centrey"),
    "w": ("w", "bboxwidth", "boxwidth", "bboxw", "boxw", "width"),
    "h": ("h", "bboxheight", "boxheight", "bboxh", "boxh", "height"),
    "bbox": ("bbox", "box", "boundingbox"),
    "width": ("imagewidth", "imgwidth", "imagew", "imgw", "picturewidth", "width"),
    "height": ("imageheight", "imgheight", "imageh", "imgh", "pictureheight", "height"),
    "split": ("split", "set", "subset", "mlset", "mluse", "dataset"),
}  # fmt: skip
_CORNERS, _SIZED, _CENTRED = ("x1", "y1", "x2", "y2"), ("x", "y", "w", "h"), ("cx", "cy", "w", "h")
_EMPTY = ("", "nan", "null", "none", "na", "n/a")
_SET = {"train": "train", "validation": "validation", "validate": "validation", "test": "test"}
_NAN = math.nan


@dataclass
class _Table:
    """A table's shape: where each column is, and how its box is written."""

    file: str
    columns: dict[str, int]
    box: tuple[str, ...]  # _CORNERS, _SIZED, _CENTRED or ("bbox",)
    delimiter: str
    has_header: bool
    split: str | None  # of the whole table
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)  # x, y, w, h
    owners: list[int] = field(default_factory=list)  # number of each box's picture
    classes: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    pictures: dict[str, int] = field(default_factory=dict)
    splits: dict[str, str | None] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)


def look(listing: Listing) -> Look | None:
    """Tables with the columns of boxes; by their first rows they name pictures that are there."""
    tables = _tables(listing)
    if not tables:
        return None
    files = [t.file for t in tables]
    summary = f"{', '.join(files[:3])}{', ...' if len(files) > 3 else ''} of boxes"
    for t in tables:
        try:
            references = _references(listing, t)
            rows = [row for _, row in _rows(t, _first_lines(listing.head(t.file)))][:20]
            if rows and any(references.find(_cell(row, t, "path")) for row in rows):
                return Look(summary, listing.pictures, files)
        except DataError:  # a name of two pictures: `index` says so
            return Look(summary, listing.pictures, files)
    return Look(
        summary, listing.pictures, files, f"no picture that the first rows of {files[0]} name is there"
    )


def index(listing: Listing, column: str) -> Index:
    """Table of (path, split, objects), with sizes where the tables state them.

    Raises DataError for cells that are no numbers, boxes half empty, pictures in two tables or splits, and
    where most of the pictures named are not there.
    """
    tables = _tables(listing)
    if not tables:
        raise DataError(
            f"{listing.root}: no table of boxes; accepted: a .csv with the columns filename, class, xmin, "
            "ymin, xmax, ymax"
        )
    findings: list[Finding] = []
    homes: dict[str, str] = {}  # picture -> its table
    rows: list[dict[str, Any]] = []
    shares = set()
    names = _class_table(listing)
    for t in tables:
        references = _references(listing, t)
        num_double = _read(listing, t, references)
        if not t.pictures and t.split and len(tables) > 1:  # else a split that is given would be made anew
            raise DataError(
                f"{listing.where(t.file)}: no row below the header, so no picture of {t.split}; accepted: "
                "one row at least, or no such table"
            )
        references.check()
        findings += references.findings()
        if num_double:
            findings.append(
                Finding("info", "double_box", num_double, f"{num_double} rows of {t.file} stand there twice")
            )
        if t.boxes:
            shares.add(_is_relative(listing, t))
        rows += _table_rows(listing, t, names, homes)
    if len(shares) > 1:
        raise DataError(
            f"{listing.root}: boxes are px in one table and shares in another; accepted: one of them"
        )
    without = sorted(set(listing.pictures) - set(homes))
    given = {row["split"] for row in rows} - {None}
    if given:
        none = [row["path"] for row in rows if row["split"] is None]
        findings += finding("warning", "no_split", none, "{n} pictures are in no split: left out")
        rows = [row for row in rows if row["split"] is not None]
    findings += finding(
        "warning", "no_row", without,
        "{n} pictures stand in no row (which is not a row without a box): left out",
    )  # fmt: skip
    ordered = {column: list(dict.fromkeys(names.values()))} if names and _is_numbering(names, rows) else {}
    return Index(table(rows, column), ordered, relative=shares == {True}, findings=findings)


def _table_rows(
    listing: Listing, t: _Table, names: dict[str, str], homes: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Rows of an index of one table's pictures."""
    boxes: list[list[tuple[str, Sequence[float]]]] = [[] for _ in t.pictures]
    for owner, name, box in zip(t.owners, t.classes, t.boxes, strict=True):
        boxes[owner].append((names.get(name, name), box))
    has_sizes = bool(t.sizes)
    for picture, number in t.pictures.items():
        if picture in homes:
            raise DataError(
                f"{listing.where(t.file)}: {picture} stands in {homes[picture]}, too; accepted: one table "
                "for each picture (one of them can be named as the source)"
            )
        homes[picture] = t.file
        size = t.sizes.get(picture, (None, None))
        stated = {"stated_width": size[0], "stated_height": size[1]} if has_sizes else {}
        yield {"path": picture, "split": t.splits[picture], OBJECTS: objects(boxes[number]), **stated}


# ---- what a table is


def _tables(listing: Listing) -> list[_Table]:
    """Tables of boxes; of copies in folders above and below those nearest to the pictures are all read."""
    files = listing.labels(*_ENDINGS)[:_LOOKED_INTO]
    return [t for file in files if (t := _table(file, listing.head(file))) is not None]


def _table(file: str, head: bytes) -> _Table | None:
    lines = [line for line in _first_lines(head) if line.strip()]
    if not lines:
        return None
    delimiter = max(",;\t", key=lines[0].count)
    if not lines[0].count(delimiter):
        return None
    first = next(csv.reader([lines[0]], delimiter=delimiter))
    shape = _of_header(first) or _without_header(first)
    if shape is None:
        return None
    columns, box, has_header = shape
    own = split_in(posixpath.splitext(posixpath.basename(file))[0]) or split_of(file)
    return _Table(file, columns, box, delimiter, has_header, own)


def _of_header(cells: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...], bool] | None:
    """Columns by what they are called."""
    plain = [re.sub(r"[\s_.\-/]", "", cell.strip().strip("\"'").lower()) for cell in cells]
    columns: dict[str, int] = {}
    for what, synonyms in _COLUMNS.items():
        there = next((name for name in synonyms if name in plain), None)
        if there is not None:
            columns[what] = plain.index(there)
    box = next(
        (kind for kind in (_CORNERS, _CENTRED, _SIZED, ("bbox",)) if all(name in columns for name in kind)),
        None,
    )
    if box is None or "path" not in columns:
        return None
    # x, y, width, height: these are the box's, and the picture's only where other columns are called so.
    if "w" in box and columns["w"] == columns.get("width"):
        del columns["width"], columns["height"]
    elif "w" not in box:
        columns.pop("w", None), columns.pop("h", None)
    if "class" not in columns and box != ("bbox",):
        return None
    return columns, box, True


def _without_header(cells: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...], bool] | None:
    """RetinaNet's, AutoML's and TensorFlow's rows."""
    kinds = "".join(map(_kind, cells))
    corners = dict(zip(_CORNERS, range(1, 5), strict=True))
    if re.fullmatch("pnnnn[tn]|peeee[te]", kinds):
        return {"path": 0, "class": 5, **corners}, _CORNERS, False
    if re.fullmatch("pnntnnnn", kinds):
        return (
            {"path": 0, "width": 1, "height": 2, "class": 3, "x1": 4, "y1": 5, "x2": 6, "y2": 7},
            _CORNERS,
            False,
        )
    if (
        len(cells) >= 9
        and re.match("[te]p[te]", kinds)
        and cells[0].strip().lower() in (*_SET, "unassigned", "")
    ):
        return {"split": 0, "path": 1, "class": 2, "x1": 3, "y1": 4, "x2": 7, "y2": 8}, _CORNERS, False
    return None


def _kind(cell: str) -> str:
    """e: empty, n: a number, p: a picture's name, t: other text."""
    cell = cell.strip()
    if not cell:
        return "e"
    if is_picture(cell):
        return "p"
    return "t" if math.isnan(_number(cell, True)) else "n"


def _first_lines(head: bytes) -> list[str]:
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    lines = lines_of(head.decode(encoding, errors="replace").lstrip("\ufeff"))
    return lines[:-1] if len(head) >= 64 * 1024 else lines  # the last one may be cut off


# ---- rows


def _rows(t: _Table, lines: Sequence[str] | io.StringIO) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of each row that is not empty."""
    reader = csv.reader(lines, delimiter=t.delimiter)
    for number, row in enumerate(reader):
        if (number or not t.has_header) and any(cell.strip() for cell in row):
            yield reader.line_num, row


def _cell(row: Sequence[str], t: _Table, column: str) -> str:
    at = t.columns.get(column)
    return row[at].strip() if at is not None and at < len(row) else ""


def _references(listing: Listing, t: _Table) -> References:
    own = posixpath.dirname(t.file)
    folders = [own, posixpath.join(own, "images")]
    if t.split:
        names = [name for name, split in SPLITS.items() if split == t.split]
        near = [f for f in listing.folders if posixpath.basename(f).lower() in names]
        folders = [own, *near, *(posixpath.join(f, "images") for f in near), folders[1]]
    return References(listing, t.file, [*folders, ""], bare=True, split=t.split or "")


def _read(listing: Listing, t: _Table, references: References) -> int:
    """Fill a table; returns how many rows are there twice."""
    where = listing.where(t.file)
    text = text_of(where, listing.read(t.file))
    seen: set[tuple[Any, ...]] = set()
    num_double = 0
    comma = t.delimiter != ","
    try:
        for line, row in _rows(t, io.StringIO(text, newline="")):
            here = f"line {line}"
            name = _cell(row, t, "path")
            if not name:
                raise DataError(f"{where} {here}: no name of a picture; accepted: one in every row")
            picture = references.path(name, here)
            number = t.pictures.setdefault(picture, len(t.pictures))
            _note_split(where, here, t, row, picture)
            _note_size(where, here, t, row, picture, comma)
            box = _box(where, here, t, row, comma)
            if box is None:
                continue
            label = _cell(row, t, "class") if "class" in t.columns else "object"
            if label.lower() in _EMPTY[:-2]:
                raise DataError(f"{where} {here}: a box of class {label!r}; accepted: a name")
            key = (number, label, *box)
            if key in seen:
                num_double += 1
                continue
            seen.add(key)
            t.boxes.append(box)
            t.owners.append(number)
            t.classes.append(label)
            t.lines.append(line)
    except csv.Error as error:
        raise DataError(
            f"{where}: no valid table ({error}); accepted: cells between {t.delimiter!r}"
        ) from None
    return num_double


def _note_split(where: str, here: str, t: _Table, row: Sequence[str], picture: str) -> None:
    text = _cell(row, t, "split").lower()
    split = (SPLITS.get(text) or _SET.get(text)) if text else None
    if text and split is None and text != "unassigned" and _cell(row, t, "split") != "":
        raise DataError(f"{where} {here}: split {text!r}; accepted: train, validation (val, valid), test")
    split = split or t.split or split_of(picture)
    if t.splits.setdefault(picture, split) != split:
        raise DataError(f"{where} {here}: {picture} is in {t.splits[picture]}, too; accepted: one split")


def _note_size(where: str, here: str, t: _Table, row: Sequence[str], picture: str, comma: bool) -> None:
    cells = _cell(row, t, "width"), _cell(row, t, "height")
    width, height = (_number(cell, comma) for cell in cells)
    if math.isnan(width) or math.isnan(height) or width < 1 or height < 1:
        return
    size = int(width), int(height)
    if t.sizes.setdefault(picture, size) != size:
        raise DataError(
            f"{where} {here}: {picture} is {size[0]} x {size[1]} px, in another row {t.sizes[picture][0]} x "
            f"{t.sizes[picture][1]}; accepted: one size"
        )


def _box(
    where: str, here: str, t: _Table, row: Sequence[str], comma: bool
) -> tuple[float, float, float, float] | None:
    """x, y, width, height; None where the cells are empty."""
    if t.box == ("bbox",):
        text = _cell(row, t, "bbox")
        cells = [c for c in re.split(r"[,\s;]+", text.strip("[]() ")) if c]
        what = "[x, y, width, height]"
        if not cells or text.lower() in _EMPTY:
            return None
    else:
        cells = [_cell(row, t, name) for name in t.box]
        what = ", ".join(t.box)
        text = ", ".join(cells)
    if all(cell.lower() in _EMPTY for cell in cells):
        return None
    numbers = [_number(cell, comma and t.box != ("bbox",)) for cell in cells]
    if len(numbers) != 4 or not math.isfinite(sum(numbers)):
        raise DataError(f"{where} {here}: box {text!r}; accepted: four numbers {what}, or all empty")
    a, b, c, d = numbers
    if t.box == _CORNERS:
        return a, b, c - a, d - b
    return (a - c / 2, b - d / 2, c, d) if t.box == _CENTRED else (a, b, c, d)


def _number(cell: str, comma: bool) -> float:
    """A cell's number, NaN where it is none; a comma may be its point where the separator is another sign."""
    text = cell.strip()
    if comma and "," in text and "." not in text:
        text = text.replace(",", ".")
    try:
        return float(text) if "_" not in text else _NAN
    except ValueError:
        return _NAN


def _is_relative(listing: Listing, t: _Table) -> bool:
    """Whether numbers are shares. Raises DataError where they are neither, or corners taken for sizes."""
    where = listing.where(t.file)
    inside = [max(x, y, x + w, y + h, w, h) <= 1.01 for x, y, w, h in t.boxes]
    if all(inside):
        return True
    if sum(inside) >= 0.9 * len(inside) and len(inside) > 1:
        at = inside.index(False)
        raise DataError(
            f"{where} line {t.lines[at]}: box of {_listed(t.boxes[at])} among {sum(inside)} in shares of the "
            "sides; accepted: all in px, or all from 0 to 1"
        )
    reversed_ = [n for n, (_, _, w, h) in enumerate(t.boxes) if w < 0 or h < 0]
    if 2 * len(reversed_) > len(t.boxes):
        raise DataError(
            f"{where} line {t.lines[reversed_[0]]}: {len(reversed_)} of {len(t.boxes)} boxes end before they "
            f"begin; accepted: {', '.join(t.box)} with the larger numbers last"
        )
    if t.box in (("bbox",), _SIZED) and t.sizes:
        _check_sized(where, t)
    return False


def _check_sized(where: str, t: _Table) -> None:
    """Corners in columns of sizes: the boxes lead out of their pictures, and would not as corners."""
    paths = list(t.pictures)
    out = fits = 0
    for owner, (x, y, w, h) in zip(t.owners, t.boxes, strict=True):
        width, height = t.sizes.get(paths[owner], (10**9, 10**9))
        out += x + w > width + 1 or y + h > height + 1
        fits += x < w <= width + 1 and y < h <= height + 1
    if out >= len(t.boxes) / 10 and fits == len(t.boxes):
        raise DataError(
            f"{where}: {out} of {len(t.boxes)} boxes lead out of their pictures as {', '.join(t.box)}, and "
            "all fit as corners; accepted: x, y, width, height, or columns xmin, ymin, xmax, ymax"
        )


def _listed(box: Sequence[float]) -> str:
    return ", ".join(f"{v:g}" for v in box)


# ---- class tables


def _class_table(listing: Listing) -> dict[str, str]:
    """Class -> name, from RetinaNet's classes.csv (name, number) or Open Images' class-descriptions (code,
    name)."""
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
    """Whether a class table holds all classes that occur."""
    return {name for row in rows for name in row[OBJECTS]["category"]} <= set(names.values())
