"""LabelMe's JSON (also X-AnyLabeling's): one file for each picture, with ``shapes`` of a label and points.

A picture is found by the name of its JSON, else by ``imagePath``. Splits come from names of folders. A box is
that around a shape, or around the shapes of one ``group_id`` and label. Masks are painted in the order of the
file. ``imageData`` is not read. Points and lines have no box. The label __ignore__ means unknown pixels,
_background_ the background.
"""

from __future__ import annotations

import base64
import math
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tlray.data import image
from tlray.data.schema import MASK, OBJECTS
from tlray.errors import DataError, PictureError, StorageError
from tlray.ingestion.findings import Finding, finding
from tlray.ingestion.formats import markup, outlines, pairs
from tlray.ingestion.formats.base import Index, Look, objects, stated_side, table
from tlray.ingestion.formats.heuristics import folder_split
from tlray.ingestion.formats.listing import Listing, stem
from tlray.ingestion.formats.picture_paths import PicturePaths

GIVES: tuple[str, ...] = (OBJECTS, MASK)
_SAMPLE = 24  # files whose first bytes are read to recognize the format
_AT_ONCE = 32  # files in memory at once, since each may contain its picture
_ACCEPTED = "LabelMe's JSON"
_IGNORE = "__ignore__"
_BACKGROUND = "_background_"
_SHAPES = re.compile(r'"shapes"\s*:\s*\[')
_LINES = ("point", "points", "line", "linestrip")


def look(listing: Listing) -> Look | None:
    """The .json files, where some of a sample have shapes, and the pictures of their names."""
    files = listing.labels(".json")
    # Of many .json files only those with the name of a picture can be LabelMe's, if there are any.
    with_picture = [file for file, pair in pairs.paired(listing, files).items() if pair.pictures] or files
    sample = with_picture[:: max(1, len(with_picture) // _SAMPLE)]
    with_shapes = [file for file in sample if _has_shapes(listing, file)]
    if not with_shapes:
        return None
    labels = [file for file in with_picture if file in with_shapes or file not in sample]
    pictures = {pair.pictures[0] for pair in pairs.paired(listing, labels).values() if pair.pictures}
    lacks = "" if pictures else f"no picture is there of its name, as {stem(labels[0])}.jpg"
    if lacks and re.search(r'"imageData"\s*:\s*"', listing.head_text(labels[0])):
        lacks += " (imageData holds a copy; accepted: the pictures as files, see labelme_export_json)"
    return Look(f"{len(labels)} .json of LabelMe", pictures, labels, lacks)


def _has_shapes(listing: Listing, file: str) -> bool:
    try:
        head = listing.head_text(file).lstrip()
    except StorageError:
        return False
    keys = ('"imagePath"', '"points"', '"imageData"', '"flags"')
    return head.startswith("{") and bool(_SHAPES.search(head)) and any(key in head for key in keys)


@dataclass(frozen=True)
class _Shape:
    """One shape as a polygon, or as a mask (H, W) of bool at the first corner of the polygon."""

    label: str
    group: Any
    polygon: list[float]
    mask: Any = None


@dataclass(frozen=True)
class _File:
    name: str  # of the picture
    size: tuple[int | None, int | None]
    shapes: list[_Shape]


@dataclass
class _Notes:
    ignored: Counter[str] = field(default_factory=Counter)


def index(listing: Listing, column: str) -> Index:
    """Table of (path, split, objects or mask) and stated sizes; boxes are (x, y, width, height) in px.

    Raises DataError for JSON that is invalid or incomplete, two files of one picture, and where most
    pictures are missing.
    """
    files = listing.labels(".json")
    notes = _Notes()
    contents = {file: item for file, item in _read_all(listing, files, notes) if item is not None}
    if not contents:
        raise DataError(f"{listing.root}: no .json with shapes; accepted: {_ACCEPTED}, one for each picture")
    picture_paths = PicturePaths(listing)
    names_in_files = {file: item.name for file, item in contents.items()}
    pictures, of_names = pairs.pictures_of(listing, picture_paths, names_in_files, ".json")
    picture_paths.check(len(pictures), {posixpath.dirname(picture) for picture in pictures.values()})
    labels = sorted({shape.label for item in contents.values() for shape in item.shapes} - {_IGNORE})
    names, ids = outlines.numbered(listing.root, labels) if column == MASK else ([], {})
    ids[_IGNORE] = outlines.UNKNOWN
    rows: list[dict[str, Any]] = []
    for file, picture in pictures.items():
        item = contents[file]
        value = _mask(listing.where(file), item, ids) if column == MASK else _objects(item.shapes, notes)
        rows.append({"path": picture, "split": folder_split(file) or folder_split(picture), column: value,
                     "stated_width": item.size[0], "stated_height": item.size[1]})  # fmt: skip
    no_file, masks = pairs.unlabelled(listing, pictures.values(), ".json")
    findings: list[Finding] = [*of_names, *picture_paths.findings(), *no_file]
    lines = [f"{kind}: {number}" for kind, number in notes.ignored.items() if kind.startswith("shapes")]
    findings += finding("warning", "shapes_left_out", lines, "{n} kinds of shapes have no area (left out)")
    ignored = dict(notes.ignored + Counter(masks))
    return Index(
        table(rows, column), names={MASK: names} if column == MASK else {}, ignored=ignored, findings=findings
    )


# ---- the files


def _read_all(listing: Listing, files: Sequence[str], notes: _Notes) -> Iterator[tuple[str, _File | None]]:
    """(file, its content; None for JSON of another kind)."""
    for start in range(0, len(files), _AT_ONCE):
        batch = files[start : start + _AT_ONCE]
        for file, data in zip(batch, listing.read_all(batch), strict=True):
            yield file, _read(listing.where(file), data, notes)


def _read(where: str, data: bytes, notes: _Notes) -> _File | None:
    tree = markup.parse_json(where, data, _ACCEPTED)
    if not isinstance(tree, dict) or "shapes" not in tree:
        notes.ignored[".json of another kind"] += 1
        return None
    if not isinstance(tree["shapes"], list):
        raise DataError(f"{where}: shapes is no list; accepted: {_ACCEPTED}")
    name = tree.get("imagePath")
    shapes = [_shape(f"{where}: shapes[{n}]", item, notes) for n, item in enumerate(tree["shapes"])]
    size = (stated_side(tree.get("imageWidth")), stated_side(tree.get("imageHeight")))
    return _File(name if isinstance(name, str) else "", size, [shape for shape in shapes if shape])


def _shape(place: str, item: Any, notes: _Notes) -> _Shape | None:
    """The shape; None where it has no area."""
    label = item.get("label") if isinstance(item, dict) else None
    if isinstance(label, bool) or not isinstance(label, str | int | float) or not str(label).strip():
        raise DataError(f"{place}: label = {label!r}; accepted: the name of a class")
    points = _points(f"{place} ({label})", item.get("points"))
    kind = item.get("shape_type") or "polygon"
    mask = None
    if kind in ("rectangle", "mask") and len(points) >= 2:
        x, y, width, height = outlines.around([value for point in points for value in point])
        if kind == "mask":
            mask = _pixels(f"{place} ({label})", item.get("mask"))
            width, height = mask.shape[1], mask.shape[0]
        polygon = outlines.rectangle(x, y, width, height)
    elif kind == "circle" and len(points) >= 2:
        (cx, cy), (x, y) = points[:2]
        radius = math.hypot(x - cx, y - cy)
        polygon = outlines.ellipse(cx, cy, radius, radius)
    elif kind in ("polygon", "rotation", "quadrilateral") and len(points) >= 3:
        polygon = [value for point in points for value in point]
    elif kind in (*_LINES, "polygon", "rectangle", "circle", "rotation", "mask", "quadrilateral"):
        notes.ignored[f"shapes without area ({kind})"] += 1
        return None
    else:
        raise DataError(
            f"{place} ({label}): shape_type = {kind!r}; accepted: rectangle, polygon, circle, mask"
        )
    return _Shape(str(label), item.get("group_id"), polygon, mask)


def _points(place: str, points: Any) -> list[list[float]]:
    is_list = isinstance(points, list) and all(isinstance(p, list) and len(p) == 2 for p in points)
    if not is_list or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for p in points for v in p
    ):
        raise DataError(f"{place}: points = {str(points)[:60]}; accepted: a list of [x, y] in px")
    return points  # type: ignore[no-any-return]


def _pixels(place: str, text: Any) -> Any:
    """The mask of a shape, (H, W) bool."""
    try:
        return image.decode_mask(base64.b64decode(text if isinstance(text, str) else "", validate=True)) > 0
    except (ValueError, PictureError):
        raise DataError(f"{place}: mask that cannot be read; accepted: a PNG in base64") from None


# ---- labels


def _objects(shapes: Sequence[_Shape], notes: _Notes) -> dict[str, Any]:
    grouped: dict[tuple[str, Any], list[list[float]]] = {}
    for number, shape in enumerate(shapes):
        if shape.label in (_IGNORE, _BACKGROUND):
            notes.ignored[f"objects of {shape.label}"] += 1
            continue
        # As LabelMe's own converters do, shapes of one group become one object.
        group = ("group", str(shape.group)) if shape.group is not None else ("shape", number)
        grouped.setdefault((shape.label, group), []).append(shape.polygon)
    return objects([(label, outlines.around(*polygons)) for (label, _), polygons in grouped.items()])


def _mask(where: str, item: _File, ids: Mapping[str, int]) -> dict[str, Any]:
    shapes: list[dict[str, Any]] = []
    for shape in item.shapes:
        if shape.mask is None:
            shapes.append({"id": ids[shape.label], "polygons": [shape.polygon]})
            continue
        width, height = item.size
        if width is None or height is None:
            raise DataError(f"{where}: a mask, but no imageWidth and imageHeight; accepted: both, in px")
        corner = (round(shape.polygon[0]), round(shape.polygon[1]))
        shapes.append({"id": ids[shape.label], "rle": outlines.runs_of(shape.mask, *corner, width, height)})
    return outlines.mask(shapes)
