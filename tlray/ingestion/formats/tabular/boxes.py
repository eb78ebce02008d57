"""What a table of boxes is: which column is the picture, the class and the sides of the box."""

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

# What columns are called, without blanks, underscores, dots and dashes; of several the first.
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
_ROWS = 200  # that are looked at to know a column by its cells


@dataclass(frozen=True)
class Shape:
    """Where each column of a table is, and how its box is written (`CORNERS`, `SIZED`, ...)."""

    file: str
    columns: dict[str, int]
    box: tuple[str, ...]
    delimiter: str
    has_header: bool
    split: str | None  # of the whole table
    unused: tuple[str, ...] = ()  # columns that say nothing of picture, class, box, size or split
    lacks: str = ""  # why the table cannot be read, though it holds boxes

    def rows(self, lines: Sequence[str] | io.StringIO) -> Iterator[tuple[int, list[str]]]:
        """(line, cells) of each row that is not empty."""
        reader = csv.reader(lines, delimiter=self.delimiter)
        for number, row in enumerate(reader):
            if (number or not self.has_header) and any(cell.strip() for cell in row):
                yield reader.line_num, row

    def cell(self, row: Sequence[str], column: str) -> str:
        """A row's text in that column, "" where it has none."""
        at = self.columns.get(column)
        return row[at].strip() if at is not None and at < len(row) else ""


def shape_of(file: str, head: bytes) -> Shape | None:
    """The shape of a table, known from its first bytes; None where it holds no boxes."""
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
    own = split_in(posixpath.splitext(posixpath.basename(file))[0]) or folder_split(file)
    used = columns.values()
    unused = tuple(
        name.strip() for n, name in enumerate(rows[0]) if has_header and name.strip() and n not in used
    )
    return Shape(
        file,
        columns,
        box,
        delimiter,
        has_header,
        own,
        tuple(filter(None, unused)),
        _lacks(columns, box, rows[0]),
    )


def _lacks(columns: dict[str, int], box: tuple[str, ...], header: Sequence[str]) -> str:
    """What keeps a table of boxes from being read."""
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
    """Where the numbers of a box are among columns of these plain names, and what they say."""
    bare = list(names)
    for n, name in enumerate(names):
        prefix = next((p for p in _PREFIXES if name.startswith(p) and len(name) > len(p)), "")
        bare[n] = name.removeprefix(prefix)
    if {"x0", "y0", "x1", "y1"} <= set(bare) and "x2" not in bare:
        bare = [_FROM_ZERO.get(name, name) for name in bare]
    # Of bbox_width and width the first is the box's.
    order = sorted(range(len(bare)), key=lambda n: bare[n] == names[n])
    for kind in (CORNERS, CENTRED, SIZED):
        at = {side: next((n for s in _SIDES[side] for n in order if bare[n] == s), -1) for side in kind}
        if -1 not in at.values():
            return at, kind
    return None


def holds_boxes(names: Sequence[str]) -> bool:
    """Whether columns of these names are those of boxes, of whatever is in them. A region of interest
    (``Roi.X1`` of GTSRB) may be part of a classification."""
    plain = [name for name in map(_plain, names) if not name.startswith("roi")]
    others = {*_COLUMNS["bbox"], "regionshapeattributes", "bboxx", "bboxx1"}
    return _sides(plain) is not None or any(name in others for name in plain)


def _of_header(
    cells: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[dict[str, int], tuple[str, ...], bool] | None:
    """Columns by what they are called, and by what the first rows hold."""
    plain = list(map(_plain, cells))
    columns: dict[str, int] = {}
    for what, synonyms in _COLUMNS.items():
        there = next((name for name in synonyms if name in plain), None)
        if there is not None:
            columns[what] = plain.index(there)
    sides = _sides(plain)
    if sides is not None:
        columns |= sides[0]
    elif "bbox" not in columns:
        return None
    box = sides[1] if sides is not None else LISTED
    # x, y, width, height: these are the box's, and the picture's only where other columns are called so.
    for own, picture in (("w", "width"), ("h", "height")):
        if own in box and columns[own] == columns.get(picture):
            del columns[picture]
    _by_cells(columns, plain, rows)
    return columns, box, True


def _by_cells(columns: dict[str, int], plain: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Put right what the names alone leave open: a path in a column of another name, and the names of
    classes beside their numbers, as in YOLOv5's tables (class 0, name cat)."""
    cells = [[row[n].strip() if n < len(row) else "" for row in rows] for n in range(len(plain))]
    if rows:
        pictures = [n for n, values in enumerate(cells) if all(map(is_picture, values))]
        if pictures and columns.get("path") not in pictures:
            columns["path"] = pictures[0]
    if "class" in columns and rows and all(map(str.isdecimal, cells[columns["class"]])):
        for name in _NAMES_OF_CLASSES:
            at = plain.index(name) if name in plain else -1
            if at < 0 or at in columns.values() or any(map(str.isdecimal, cells[at])):
                continue
            pairs = set(zip(cells[columns["class"]], cells[at], strict=True))
            if len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}):
                columns["class"] = at
                return


def _without_header(cells: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...], bool] | None:
    """RetinaNet's, AutoML's and TensorFlow's rows."""
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
    """e: empty, n: a number, p: a picture's name, t: other text."""
    cell = cell.strip()
    if not cell:
        return "e"
    if is_picture(cell):
        return "p"
    return "t" if math.isnan(number(cell, True)) else "n"


def first_lines(head: bytes) -> list[str]:
    """Whole lines of a table's first bytes."""
    lines = lines_of(start_of_text(head))
    return lines[:-1] if len(head) >= HEAD else lines  # the last one may be cut off


def number(cell: str, comma: bool) -> float:
    """A cell's number, NaN where it is none; a comma may be its point where the separator is another sign."""
    text = cell.strip()
    if comma and "," in text and "." not in text:
        text = text.replace(",", ".")
    try:
        return float(text) if "_" not in text else math.nan
    except ValueError:
        return math.nan
