"""Recognizes tables of boxes: which columns are the picture, the class and the numbers of the box."""

from __future__ import annotations

import csv
import io
import math
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tlray.data.schema import SPLITS
from tlray.ingestion.formats.heuristics import folder_split
from tlray.ingestion.formats.listing import HEAD, is_picture, lines_of, split_in, start_of_text

# Names of columns, without blanks, underscores, dots and dashes; the first that is there counts.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "path": ("filename", "filepath", "file", "path", "image", "imagepath", "imagename", "imagefile",
             "imagefilename", "imageid", "imgpath", "imgname", "img", "imgid", "images", "uri", "imageuri",
             "frame", "picture", "photo", "patientid", "name", "id"),
    "class": ("class", "label", "classname", "labelname", "category", "categoryname", "classes", "labels",
              "species", "objectclass", "objectname", "object", "cls", "target", "classtext", "labeltext",
              "classid", "labelid", "categoryid", "type"),
    "bbox": ("bbox", "box", "boundingbox", "bndbox"),
    "width": ("imagewidth", "imgwidth", "imagew", "imgw", "picturewidth", "width"),
    "height": ("imageheight", "imgheight", "imageh", "imgh", "pictureheight", "height"),
    "split": ("split", "set", "subset", "mlset", "mluse", "dataset"),
}  # fmt: skip
# The numbers of a box; each name may have one of _PREFIXES before it.
_SIDES: dict[str, tuple[str, ...]] = {
    "x1": ("xmin", "x1", "left", "minx", "topleftx", "xtl", "startx", "xstart", "xleft", "leftx"),
    "y1": ("ymin", "y1", "top", "miny", "toplefty", "ytl", "starty", "ystart", "ytop", "topy"),
    "x2": ("xmax", "x2", "right", "maxx", "bottomrightx", "xbr", "endx", "xend", "xright", "rightx"),
    "y2": ("ymax", "y2", "bottom", "maxy", "bottomrighty", "ybr", "endy", "yend", "ybottom", "bottomy"),
    "cx": ("xcenter", "centerx", "cx", "xcentre", "centrex", "xc"),
    "cy": ("ycenter", "centery", "cy", "ycentre", "centrey", "yc"),
    "w": ("w", "width"),
    "h": ("h", "height"),
}
_SIDES |= {"x": ("x", "x0", *_SIDES["x1"]), "y": ("y", "y0", *_SIDES["y1"])}
_FROM_ZERO = {"x0": "x1", "y0": "y1", "x1": "x2", "y1": "y2"}  # corners that are counted from 0
_PREFIXES = ("boundingbox", "bndbox", "bbox", "box", "bb", "roi", "region", "rect")
_NAMES_OF_CLASSES = ("name", "classname", "labelname", "categoryname", "label", "category", "species")
CORNERS, SIZED, CENTRED = ("x1", "y1", "x2", "y2"), ("x", "y", "w", "h"), ("cx", "cy", "w", "h")
LISTED = ("bbox",)
ENDINGS = (".csv", ".tsv")
_ROWS = 200  # rows that are read to recognize a column by its cells


@dataclass(frozen=True)
class Shape:
    """The position of each column of a table, and how its boxes are written (`CORNERS`, `SIZED`, ...)."""

    file: str
    columns: dict[str, int]
    box: tuple[str, ...]
    delimiter: str
    has_header: bool
    split: str | None  # of the whole table
    unused: tuple[str, ...] = ()  # columns that are not read
    lacks: str = ""  # why the table cannot be read, though it has boxes

    def rows(self, lines: Sequence[str] | io.StringIO) -> Iterator[tuple[int, list[str]]]:
        """(line, cells) of each row that is not empty."""
        reader = csv.reader(lines, delimiter=self.delimiter)
        for number, row in enumerate(reader):
            if (number or not self.has_header) and any(cell.strip() for cell in row):
                yield reader.line_num, row

    def cell(self, row: Sequence[str], column: str) -> str:
        """The text of a row in that column, "" where it has none."""
        position = self.columns.get(column)
        return row[position].strip() if position is not None and position < len(row) else ""


def shape_of(file: str, head: bytes) -> Shape | None:
    """The shape of a table, from its first bytes; None where it has no boxes."""
    lines = [line for line in first_lines(head) if line.strip()]
    if not lines:
        return None
    delimiter = max(",;\t", key=lines[0].count)
    if not lines[0].count(delimiter):
        return None
    rows = list(csv.reader(lines[: _ROWS + 1], delimiter=delimiter))
    shape = _of_header(rows[0], rows[1:]) or _without_header(rows[0])
    if shape is None:
        return None
    columns, box, has_header = shape
    split = split_in(posixpath.splitext(posixpath.basename(file))[0]) or folder_split(file)
    used_positions = columns.values()
    unused = tuple(
        name.strip()
        for n, name in enumerate(rows[0])
        if has_header and name.strip() and n not in used_positions
    )
    return Shape(
        file,
        columns,
        box,
        delimiter,
        has_header,
        split,
        tuple(filter(None, unused)),
        _lacks(columns, box, rows[0]),
    )


def _lacks(columns: dict[str, int], box: tuple[str, ...], header: Sequence[str]) -> str:
    """Why a table of boxes cannot be read; "" where it can."""
    if {"x3", "y3"} <= set(map(_plain, header)):
        return "columns x1, y1 to x3, y3 or more are outlines; accepted: columns xmin, ymin, xmax, ymax"
    if "path" not in columns:
        return "no column names the picture; accepted: one called filename (image, path, ...)"
    if "class" not in columns and box != LISTED:
        return "no column names the class; accepted: one called class (label, category, ...)"
    return ""


def _plain(name: str) -> str:
    return re.sub(r"[\s_.\-/]", "", name.strip().strip("\"'").lower())


def _sides(names: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...]] | None:
    """(position of each number of a box, their meaning) among columns of these names; None where there is no
    box."""
    short_names = list(names)
    for n, name in enumerate(names):
        prefix = next((p for p in _PREFIXES if name.startswith(p) and len(name) > len(p)), "")
        short_names[n] = name.removeprefix(prefix)
    if {"x0", "y0", "x1", "y1"} <= set(short_names) and "x2" not in short_names:
        short_names = [_FROM_ZERO.get(name, name) for name in short_names]
    # bbox_width beside width is the width of the box.
    order = sorted(range(len(short_names)), key=lambda n: short_names[n] == names[n])
    for kind in (CORNERS, CENTRED, SIZED):
        positions = {
            side: next((n for s in _SIDES[side] for n in order if short_names[n] == s), -1) for side in kind
        }
        if -1 not in positions.values():
            return positions, kind
    return None


def holds_boxes(names: Sequence[str]) -> bool:
    """Whether columns of these names are those of boxes. A region of interest (``Roi.X1`` of GTSRB) is not,
    since it may be part of a classification."""
    plain_names = [name for name in map(_plain, names) if not name.startswith("roi")]
    other_names = {*_COLUMNS["bbox"], "regionshapeattributes", "bboxx", "bboxx1"}
    return _sides(plain_names) is not None or any(name in other_names for name in plain_names)


def _of_header(
    cells: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[dict[str, int], tuple[str, ...], bool] | None:
    """(columns, box, True) by the header, and by what the first rows hold."""
    plain_names = list(map(_plain, cells))
    columns: dict[str, int] = {}
    for role, synonyms in _COLUMNS.items():
        synonym = next((name for name in synonyms if name in plain_names), None)
        if synonym is not None:
            columns[role] = plain_names.index(synonym)
    sides = _sides(plain_names)
    if sides is not None:
        columns |= sides[0]
    elif "bbox" not in columns:
        return None
    box = sides[1] if sides is not None else LISTED
    # width and height beside x and y are those of the box; those of the picture need columns of their own.
    for side, whole in (("w", "width"), ("h", "height")):
        if side in box and columns[side] == columns.get(whole):
            del columns[whole]
    _by_cells(columns, plain_names, rows)
    return columns, box, True


def _by_cells(columns: dict[str, int], plain_names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Correct what names alone get wrong: a path in a column of another name, and class names beside their
    numbers, as in tables of YOLOv5 (class 0, name cat)."""
    cells = [[row[n].strip() if n < len(row) else "" for row in rows] for n in range(len(plain_names))]
    if rows:
        pictures = [n for n, values in enumerate(cells) if all(map(is_picture, values))]
        if pictures and columns.get("path") not in pictures:
            columns["path"] = pictures[0]
    if "class" in columns and rows and all(map(str.isdecimal, cells[columns["class"]])):
        for name in _NAMES_OF_CLASSES:
            position = plain_names.index(name) if name in plain_names else -1
            if position < 0 or position in columns.values() or any(map(str.isdecimal, cells[position])):
                continue
            pairs = set(zip(cells[columns["class"]], cells[position], strict=True))
            if len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}):
                columns["class"] = position
                return


def _without_header(cells: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...], bool] | None:
    """(columns, box, False) of tables as RetinaNet, AutoML and TensorFlow write them without header."""
    kinds = "".join(map(_kind, cells))
    corners = dict(zip(CORNERS, range(1, 5), strict=True))
    if re.fullmatch("pnnnn[tn]|peeee[te]", kinds):
        return {"path": 0, "class": 5, **corners}, CORNERS, False
    if re.fullmatch("pnntnnnn", kinds):
        return (
            {"path": 0, "width": 1, "height": 2, "class": 3, "x1": 4, "y1": 5, "x2": 6, "y2": 7},
            CORNERS,
            False,
        )
    if (
        len(cells) >= 9
        and re.match("[te]p[te]", kinds)
        and cells[0].strip().lower() in (*SPLITS, "unassigned", "")
    ):
        return {"split": 0, "path": 1, "class": 2, "x1": 3, "y1": 4, "x2": 7, "y2": 8}, CORNERS, False
    return None


def _kind(cell: str) -> str:
    """e: empty, n: a number, p: the name of a picture, t: other text."""
    cell = cell.strip()
    if not cell:
        return "e"
    if is_picture(cell):
        return "p"
    return "t" if math.isnan(number(cell, True)) else "n"


def first_lines(head: bytes) -> list[str]:
    """The whole lines in the first bytes of a table."""
    lines = lines_of(start_of_text(head))
    return lines[:-1] if len(head) >= HEAD else lines  # the last one may be cut off


def number(cell: str, comma: bool) -> float:
    """The number in a cell, NaN where it is none. ``comma``: a decimal comma is possible."""
    text = cell.strip()
    if comma and "," in text and "." not in text:
        text = text.replace(",", ".")
    try:
        return float(text) if "_" not in text else math.nan
    except ValueError:
        return math.nan
