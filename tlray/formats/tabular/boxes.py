"""What a table of boxes is: which column is the picture, the class and the sides of the box."""

from __future__ import annotations

import csv
import io
import math
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tlray.formats.evidence import folder_split
from tlray.formats.listing import HEAD, is_picture, lines_of, split_in, start_of_text
from tlray.schema import SPLITS

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
CORNERS, SIZED, CENTRED = ("x1", "y1", "x2", "y2"), ("x", "y", "w", "h"), ("cx", "cy", "w", "h")
LISTED = ("bbox",)


@dataclass(frozen=True)
class Shape:
    """Where each column of a table is, and how its box is written (`CORNERS`, `SIZED`, ...)."""

    file: str
    columns: dict[str, int]
    box: tuple[str, ...]
    delimiter: str
    has_header: bool
    split: str | None  # of the whole table

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
    first = next(csv.reader([lines[0]], delimiter=delimiter))
    shape = _of_header(first) or _without_header(first)
    if shape is None:
        return None
    columns, box, has_header = shape
    own = split_in(posixpath.splitext(posixpath.basename(file))[0]) or folder_split(file)
    return Shape(file, columns, box, delimiter, has_header, own)


def _of_header(cells: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...], bool] | None:
    """Columns by what they are called."""
    plain = [re.sub(r"[\s_.\-/]", "", cell.strip().strip("\"'").lower()) for cell in cells]
    columns: dict[str, int] = {}
    for what, synonyms in _COLUMNS.items():
        there = next((name for name in synonyms if name in plain), None)
        if there is not None:
            columns[what] = plain.index(there)
    box = next(
        (kind for kind in (CORNERS, CENTRED, SIZED, LISTED) if all(name in columns for name in kind)),
        None,
    )
    if box is None or "path" not in columns:
        return None
    # x, y, width, height: these are the box's, and the picture's only where other columns are called so.
    if "w" in box and columns["w"] == columns.get("width"):
        del columns["width"], columns["height"]
    elif "w" not in box:
        columns.pop("w", None), columns.pop("h", None)
    if "class" not in columns and box != LISTED:
        return None
    return columns, box, True


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
