"""CVAT for images 1.1: an XML of ``<annotations>`` with an ``<image>`` for each picture.

Pictures are in ``images`` beside it or anywhere below. The split is the ``subset`` of an image, else the name
of its folder. Boxes are those of ``<box>`` and those around turned boxes, ``<polygon>``, ``<ellipse>`` and
``<mask>``; points, lines, cuboids, skeletons and tags are not read. Masks are painted in the order of
``z_order``, boxes as unknown pixels.
"""

from __future__ import annotations

import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from tlray.data.schema import MASK, OBJECTS, SPLITS
from tlray.errors import DataError, StorageError
from tlray.ingestion.findings import finding
from tlray.ingestion.formats import markup, outlines
from tlray.ingestion.formats.base import Index, Look, objects, stated_side, table
from tlray.ingestion.formats.heuristics import folder_split
from tlray.ingestion.formats.listing import Listing
from tlray.ingestion.formats.pairs import unlabelled
from tlray.ingestion.formats.picture_paths import PicturePaths

GIVES: tuple[str, ...] = (OBJECTS, MASK)
_LOOKED_INTO = 24
_ACCEPTED = "CVAT for images 1.1"
_TRACKS = "is CVAT for video (tracks); accepted: the same task exported as CVAT for images 1.1"
_Size = tuple[int | None, int | None]
_LEFT_OUT = ("points", "polyline", "cuboid", "skeleton", "tag")


def look(listing: Listing) -> Look | None:
    """XML with CVAT's root element, and all pictures, since their names may be beyond the first bytes."""
    chosen = _chosen(listing)
    if not chosen:
        return None
    heads = {file: listing.head_text(file) for file in chosen}
    video = next((file for file in chosen if "<track" in heads[file] and "<image " not in heads[file]), None)
    lacks = f"{video} {_TRACKS}" if video else "" if listing.pictures else "no picture is there"
    return Look(f"{len(chosen)} .xml of CVAT", listing.pictures, chosen, lacks)


def _chosen(listing: Listing) -> list[str]:
    files = sorted(listing.labels(".xml"), key=lambda file: (file.count("/"), file))[:_LOOKED_INTO]
    return sorted(file for file in files if _is_cvat(listing, file))


def _is_cvat(listing: Listing, file: str) -> bool:
    try:
        head = listing.head_text(file)
    except StorageError:
        return False
    signs = ("<image ", "<track ", "<meta>", "<version>")
    return markup.root_element(head) == "annotations" and any(s in head for s in signs)


@dataclass(frozen=True)
class _Shape:
    label: str
    outline: list[float]  # polygon
    kind: str
    rle: dict[str, Any] | None = None


@dataclass
class _Notes:
    ignored: Counter[str] = field(default_factory=Counter)
    rotated: list[str] = field(default_factory=list)
    boxes: list[str] = field(default_factory=list)


def index(listing: Listing, column: str) -> Index:
    """Table of (path, split, objects or mask) and stated sizes; boxes are (x, y, width, height) in px.

    Raises DataError for XML that is invalid or incomplete, tracks of a video, unknown labels, and
    pictures with two entries.
    """
    chosen = _chosen(listing)
    if not chosen:
        raise DataError(f"{listing.root}: no XML with <annotations>; accepted: {_ACCEPTED}")
    notes, picture_paths = _Notes(), PicturePaths(listing)
    trees = {
        file: markup.parse_xml(listing.where(file), data, _ACCEPTED)
        for file, data in zip(chosen, listing.read_all(chosen), strict=True)
    }
    classes: dict[str, None] = {}
    images: list[tuple[str, Element, str, list[_Shape]]] = []  # file, element, where it stands, shapes
    for file, tree in trees.items():
        where = listing.where(file)
        stated_labels = [
            name for label in tree.iterfind("meta//labels/label") if (name := _text(label.findtext("name")))
        ]
        classes |= dict.fromkeys(stated_labels)
        if tree.find("track") is not None:
            raise DataError(f"{where}: {_TRACKS}")
        for number, item in enumerate(tree.findall("image")):
            place = f"{where}: image {item.get('name') or number!r}"
            shapes = list(_shapes(place, item, stated_labels, notes))
            classes |= dict.fromkeys(shape.label for shape in shapes)
            images.append((file, item, place, shapes))
    if not images:
        raise DataError(f"{listing.where(chosen[0])}: no <image>; accepted: {_ACCEPTED}")
    names, ids = outlines.numbered(listing.root, classes) if column == MASK else ([], {})
    finds = {}
    for file in trees:
        image_names = [item.get("name") or "" for image_file, item, *_ in images
                  if image_file == file and _in_subset(item, listing) is None]  # fmt: skip
        finds[file] = picture_paths.lookup(listing.where(file), posixpath.dirname(file), image_names)
    subsets = {(item.get("subset") or "").strip().lower() for _, item, *_ in images}
    rows: list[dict[str, Any]] = []
    homes: dict[str, str] = {}
    for file, item, place, shapes in images:
        if not (item.get("name") or "").strip():
            raise DataError(f"{place}: no name; accepted: the path of a picture")
        path = _in_subset(item, listing) or finds[file](item.get("name") or "", place)
        if path in homes:
            raise DataError(f"{place}: {path!r} stands in {homes[path]}, too; accepted: once")
        homes[path] = place
        subset = SPLITS.get((item.get("subset") or "").strip().lower())
        value = _mask(shapes, ids, notes) if column == MASK else _objects(shapes)
        width, height = _size(item)
        rows.append({"path": path, "split": subset or folder_split(path), column: value,
                     "stated_width": width, "stated_height": height})  # fmt: skip
    picture_paths.check(len(rows))
    used = {shape.label for *_, shapes in images for shape in shapes}
    no_entry, masks = unlabelled(listing, homes, "entry in a CVAT file")
    other_subsets = sorted(subset for subset in subsets if subset and subset not in (*SPLITS, "default"))
    kinds = [f"{kind}: {number}" for kind, number in notes.ignored.items()]
    findings = [
        *picture_paths.findings(),
        *no_entry,
        *finding(
            "info", "class_never", [name for name in classes if name not in used], "{n} labels in no picture"
        ),
        *finding("info", "subset_unknown", other_subsets, "{n} subsets are called by no split"),
        *finding("info", "box_rotated", notes.rotated, "{n} turned boxes (the box around was taken)"),
        *finding("warning", "shapes_left_out", kinds, "{n} kinds of shapes are no boxes or areas (left out)"),
        *finding("warning", "no_outline", notes.boxes, "{n} boxes have no outline (they are unknown pixels)"),
    ]
    return Index(
        table(rows, column), names={MASK: names} if column == MASK else {},
        ignored={**notes.ignored, **masks}, findings=findings,
    )  # fmt: skip


def _in_subset(item: Element, listing: Listing) -> str | None:
    """The picture of an image in the folder of its subset, as in exports of projects; None where it is not
    there."""
    name, subset = item.get("name") or "", item.get("subset") or ""
    paths = [posixpath.join(folder, subset, name) for folder in ("images", "") if subset]
    return next((path for p in paths if (path := listing.match(p)) is not None), None)


def _text(text: str | None) -> str:
    """A label in one spelling, since two systems may have written the list of labels and the shapes."""
    return unicodedata.normalize("NFC", text or "").strip()


def _size(image: Element) -> _Size:
    """The stated (width, height) of an image, px."""
    width, height = (stated_side(markup.number(image.get(name))) for name in ("width", "height"))
    return width, height


def _shapes(
    image_place: str, image: Element, stated_labels: Sequence[str], notes: _Notes
) -> Iterator[_Shape]:
    size = _size(image)
    items = [item for item in image if item.tag in _READERS or item.tag in _LEFT_OUT]
    # Higher shapes are painted later; the sort is stable.
    for item in sorted(items, key=lambda item: int(item.get("z_order") or 0) if _is_int(item) else 0):
        label = _text(item.get("label"))
        if item.tag in _LEFT_OUT:
            notes.ignored[f"<{item.tag}>"] += 1
            continue
        place = f"{image_place}: <{item.tag}>" + (f" ({label})" if label else "")
        if not label:
            raise DataError(f"{place}: no label; accepted: the name of a class")
        if stated_labels and label not in stated_labels:
            raise DataError(f"{place}: label = {label!r}; accepted: {', '.join(stated_labels[:20])}")
        yield _READERS[item.tag](place, item, label, notes, size)


def _is_int(item: Element) -> bool:
    return (item.get("z_order") or "0").lstrip("-").isdigit()


def _numbers(place: str, item: Element, *names: str) -> list[float]:
    values = []
    for name in names:
        text = item.get(name)
        try:
            values.append(float(text or ""))
        except ValueError:
            problem = f"no {name}" if text is None else f"{name} = {text!r}"
            raise DataError(f"{place}: {problem}; accepted: {', '.join(names)} in px") from None
    return values


def _rotation(place: str, item: Element, notes: _Notes) -> float:
    degrees = _numbers(place, item, "rotation")[0] if item.get("rotation") else 0.0
    if degrees:
        notes.rotated.append(place)
    return degrees


def _box(place: str, item: Element, label: str, notes: _Notes, size: _Size) -> _Shape:
    x0, y0, x1, y1 = _numbers(place, item, "xtl", "ytl", "xbr", "ybr")
    turned = _rotation(place, item, notes)
    return _Shape(label, outlines.rectangle(x0, y0, x1 - x0, y1 - y0, turned), "box")


def _ellipse(place: str, item: Element, label: str, notes: _Notes, size: _Size) -> _Shape:
    cx, cy, rx, ry = _numbers(place, item, "cx", "cy", "rx", "ry")
    return _Shape(label, outlines.ellipse(cx, cy, rx, ry, _rotation(place, item, notes)), "ellipse")


def _polygon(place: str, item: Element, label: str, notes: _Notes, size: _Size) -> _Shape:
    text = item.get("points") or ""
    try:
        points = [[float(value) for value in point.split(",")] for point in text.split(";") if point.strip()]
        polygon = [value for x, y in points for value in (x, y)]
    except ValueError:
        raise DataError(f"{place}: points = {text[:60]!r}; accepted: x,y;x,y;... in px") from None
    if len(points) < 3:
        raise DataError(f"{place}: {len(points)} points; accepted: three or more")
    return _Shape(label, polygon, "polygon")


def _painted(place: str, item: Element, label: str, notes: _Notes, size: _Size) -> _Shape:
    left, top, width, height = (int(v) for v in _numbers(place, item, "left", "top", "width", "height"))
    try:
        runs = [int(run) for run in (item.get("rle") or "").split(",")]
    except ValueError:
        runs = []
    if sum(runs) != width * height or min(runs) < 0:
        raise DataError(f"{place}: rle of {sum(runs)} pixels; accepted: {width} x {height}")
    if size[0] is None or size[1] is None:
        raise DataError(f"{place}: a mask, but no width and height of the image; accepted: both, in px")
    # CVAT's runs go along the rows, in a part of the picture.
    part_HW = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    rle = outlines.runs_of(part_HW, left, top, size[0], size[1])
    return _Shape(label, outlines.rectangle(left, top, width, height), "mask", rle)


_READERS = {"box": _box, "ellipse": _ellipse, "polygon": _polygon, "mask": _painted}


def _objects(shapes: Sequence[_Shape]) -> dict[str, Any]:
    return objects([(shape.label, outlines.around(shape.outline)) for shape in shapes])


def _mask(shapes: Sequence[_Shape], ids: Mapping[str, int], notes: _Notes) -> dict[str, Any]:
    mask_shapes: list[dict[str, Any]] = []
    for shape in shapes:
        id_ = ids[shape.label]
        if shape.kind == "box":
            id_ = outlines.UNKNOWN
            notes.boxes.append(shape.label)
        outline = {"polygons": [shape.outline]} if shape.rle is None else {"rle": shape.rle}
        mask_shapes.append({"id": id_, **outline})
    return outlines.mask(mask_shapes)
