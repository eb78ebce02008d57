"""Pascal VOC: one .xml for each picture (``<annotation>`` with ``<object>`` and ``<bndbox>``).

The .xml files are in ``Annotations`` beside ``JPEGImages``, in any folder beside ``images``, or beside the
pictures (LabelImg, Roboflow). A picture is found by the name of its .xml, else by ``<filename>``. Splits come
from ``ImageSets/Main/{train,val,test}.txt``, else from such lists in another folder, else from names of
folders. Where there are lists, pictures in none of them are left out, and trainval.txt serves in place of a
missing train.txt or val.txt.

Pixels are numbered from 1 and both corners belong to the box (VOC development kit), so a box from 1 to the
width covers the whole picture. Tools that count from 0 (Roboflow, CVAT) are recognized by a corner below 1,
or by fractions in most boxes; then the corners of all files are taken as edges.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from tlray.data.schema import OBJECTS
from tlray.errors import DataError, StorageError
from tlray.ingestion.findings import Finding, Severity, finding
from tlray.ingestion.formats import markup, outlines, pairs, voc_lists
from tlray.ingestion.formats.base import Index, Look, objects, stated_side, table
from tlray.ingestion.formats.heuristics import folder_split
from tlray.ingestion.formats.listing import Listing, stem
from tlray.ingestion.formats.picture_paths import PicturePaths, in_same_folders

GIVES: tuple[str, ...] = (OBJECTS,)
_YES = ("1", "true")
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_SAMPLE = 24  # files whose first bytes are read to recognize the format
_ACCEPTED = "a VOC annotation"


def look(listing: Listing) -> Look | None:
    """The .xml files, where some of a sample are annotations, and the pictures of their names."""
    files = listing.labels(".xml")
    sample = files[:: max(1, len(files) // _SAMPLE)]
    other_files = {file for file in sample if not _is_annotation(listing, file)}
    if not files or len(other_files) == len(sample):
        return None
    labels = [file for file in files if file not in other_files]
    pictures = {pair.pictures[0] for pair in pairs.paired(listing, labels).values() if pair.pictures}
    if len(pictures) < len(labels) / 2:  # perhaps they can be found by <filename>
        pictures |= set(
            in_same_folders(listing, (_stated_name(listing, f) for f in sample if f not in other_files))
        )
    summary = f"{len(labels)} .xml of Pascal VOC"
    lacks = "" if pictures else f"no picture is there of its name, as {stem(labels[0])}.jpg"
    return Look(summary, pictures, labels, lacks)


def _is_annotation(listing: Listing, file: str) -> bool:
    try:
        head = listing.head_text(file)
    except StorageError:
        return False
    # An empty or broken file among annotations counts as one of them; `index` names the mistake.
    return markup.root_element(head) == "annotation"


def _stated_name(listing: Listing, file: str) -> str:
    name = re.search("<filename>(.*?)</filename>", listing.head_text(file), re.DOTALL)
    return name[1].strip() if name else ""


@dataclass
class _Notes:
    """Oddities in the files read so far, as examples for findings."""

    swapped: list[str] = field(default_factory=list)
    rotated: list[str] = field(default_factory=list)
    by_polygon: list[str] = field(default_factory=list)
    from_zero: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    num_boxes: int = 0
    num_fractions: int = 0

    def findings(self, from_zero: bool) -> list[Finding]:
        evidence = self.from_zero or ["most boxes have fractions"]
        kinds: list[tuple[Severity, str, list[str], str]] = [
            ("warning", "box_swapped", self.swapped, "boxes with exchanged corners (put right)"),
            ("info", "box_rotated", self.rotated, "rotated boxes (the box around was taken)"),
            ("info", "box_of_polygon", self.by_polygon, "objects are a <polygon> (the box around was taken)"),
        ]
        findings = [
            f
            for level, kind, examples, text in kinds
            for f in finding(level, kind, examples, f"{{n}} {text}")
        ]
        if from_zero:
            findings += finding(
                "info", "pixels_from_zero", evidence[:1], "coordinates are counted from 0, not from 1"
            )
        return findings


@dataclass(frozen=True)
class _File:
    """The content of one .xml."""

    objects: list[tuple[str, list[float], bool]]  # class, corners as stated, whether these are edges
    difficult: list[bool]
    filename: str
    size: tuple[int | None, int | None]


def index(listing: Listing, column: str) -> Index:
    """Table of (path, split, objects) and stated sizes; boxes are (x, y, width, height) in px.

    Raises DataError for .xml that is invalid or incomplete, two files of one picture, lists that name
    a picture in two splits, and where most pictures are missing.
    """
    files = listing.labels(".xml")
    if not files:
        raise DataError(f"{listing.root}: no .xml file; accepted: one for each picture, as Annotations/*.xml")
    notes = _Notes()
    splits, bases, of_lists = voc_lists.splits(listing, files)
    listed = [file for file in files if file in splits or not voc_lists.is_below(file, bases)]
    notes.ignored["in no list of a split"] = len(files) - len(listed)
    contents: dict[str, _File] = {}
    for file, data in zip(listed, listing.read_all(listed), strict=True):
        tree = markup.parse_xml(listing.where(file), data, _ACCEPTED)
        if tree.tag == "annotation":
            items = _items(tree, notes)
            contents[file] = _File(
                list(_objects(listing.where(file), items, notes)),
                [(item.findtext("difficult") or "").strip().lower() in _YES for _, item in items],
                (tree.findtext("filename") or "").strip(),
                (_side(tree, "size/width", "imagesize/ncols"), _side(tree, "size/height", "imagesize/nrows")),
            )
        else:
            notes.ignored[".xml of another kind"] += 1
    if not contents:
        raise DataError(f"{listing.root}: {len(files)} .xml, none with <annotation>; accepted: Pascal VOC")
    picture_paths = PicturePaths(listing)
    pictures, of_names = pairs.pictures_of(
        listing, picture_paths, {file: content.filename for file, content in contents.items()}, ".xml"
    )
    picture_paths.check(len(pictures), {posixpath.dirname(picture) for picture in pictures.values()})
    from_zero = bool(notes.from_zero) or 2 * notes.num_fractions > notes.num_boxes
    rows = []
    for file, picture in pictures.items():
        boxes = [(name, _box(sides, edges or from_zero)) for name, sides, edges in contents[file].objects]
        split = splits.get(file) or folder_split(file) or folder_split(picture)
        width, height = contents[file].size
        rows.append({"path": picture, "split": split,
                     OBJECTS: objects(boxes, difficult=contents[file].difficult),
                     "stated_width": width, "stated_height": height})  # fmt: skip
    # Pictures that lists leave out are left out on purpose.
    unread = pairs.paired(listing, sorted(set(files) - set(contents)))
    left_aside = {picture for pair in unread.values() for picture in pair.pictures}
    no_file, masks = pairs.unlabelled(listing, {*pictures.values(), *left_aside}, ".xml")
    findings = [*of_lists, *of_names, *notes.findings(from_zero), *picture_paths.findings(), *no_file]
    ignored = dict(notes.ignored + Counter(masks))
    return Index(table(rows, OBJECTS), ignored=ignored, findings=findings)


# ---- objects


def _items(tree: Element, notes: _Notes) -> list[tuple[int, Element]]:
    """The objects that are not deleted, with their numbers in the file."""
    items = list(enumerate(tree.findall("object"), 1))
    not_deleted = [(n, item) for n, item in items if (item.findtext("deleted") or "").strip() != "1"]
    notes.ignored["deleted objects"] += len(items) - len(not_deleted)  # of the old LabelMe
    return not_deleted


def _objects(
    file: str, items: Sequence[tuple[int, Element]], notes: _Notes
) -> Iterable[tuple[str, list[float], bool]]:
    """(class, corners, whether these are edges in any case) of each object."""
    for number, item in items:
        name = (item.findtext("name") or "").strip()
        where = f"{file}: object {number}" + (f" ({name})" if name else "")
        if not name:
            raise DataError(f"{where}: no <name>; accepted: the name of a class")
        box = item.find("bndbox")
        if box is not None:
            yield name, _corners(where, box, notes), False
        elif (outline := _outline(where, item, notes)) is not None:
            x, y, width, height = outlines.around(outline)
            yield name, [x, y, x + width, y + height], True
        else:
            raise DataError(f"{where}: no <bndbox>; accepted: a <bndbox> of {', '.join(_SIDES)} in px")


def _corners(where: str, box: Element, notes: _Notes) -> list[float]:
    sides = [_number(where, box, side, f"a <bndbox> of {', '.join(_SIDES)} in px") for side in _SIDES]
    x0, y0, x1, y1 = sides
    if x0 > x1 or y0 > y1:
        notes.swapped.append(f"{where}: {x0:g}, {y0:g} to {x1:g}, {y1:g}")
        x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    notes.num_boxes += 1
    notes.num_fractions += any(math.isfinite(v) and v != int(v) for v in sides)
    if min(x0, y0) < 1:
        notes.from_zero.append(f"{where}: {x0:g}, {y0:g}")
    return [x0, y0, x1, y1]


def _outline(where: str, item: Element, notes: _Notes) -> list[float] | None:
    """The outline of an object without <bndbox>: a polygon of Roboflow or LabelMe, a turned box of
    roLabelImg."""
    rotated = item.find("robndbox")
    if rotated is not None:
        accepted = "a <robndbox> of cx, cy, w, h, angle"
        cx, cy, w, h, angle = (_number(where, rotated, n, accepted) for n in ("cx", "cy", "w", "h", "angle"))
        notes.rotated.append(where)
        return outlines.rectangle(cx - w / 2, cy - h / 2, w, h, math.degrees(angle))
    polygon = item.find("polygon")
    if polygon is None:
        return None
    accepted = "a <polygon> of x1, y1, x2, y2 and so on"
    points = polygon.findall("pt")
    if points:
        values = [_number(where, pt, axis, accepted) for pt in points for axis in ("x", "y")]
    else:
        num = sum(1 for child in polygon if re.fullmatch(r"x\d+", child.tag))
        values = [_number(where, polygon, f"{axis}{n}", accepted) for n in range(1, num + 1) for axis in "xy"]
    if not values:
        raise DataError(f"{where}: <polygon> without points; accepted: {accepted}")
    notes.by_polygon.append(where)
    return values


def _number(where: str, parent: Element, tag: str, accepted: str) -> float:
    text = parent.findtext(tag)
    try:
        return float(text or "")
    except ValueError:
        problem = f"no <{tag}>" if text is None else f"<{tag}> = {text!r}"
        raise DataError(f"{where}: {problem}; accepted: {accepted}") from None


def _box(sides: list[float], edges: bool) -> list[float]:
    x0, y0, x1, y1 = sides
    return [x0, y0, x1 - x0, y1 - y0] if edges else [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]


def _side(tree: Element, *tags: str) -> int | None:
    """A stated side of the picture, px, from the first of these tags that has one."""
    sides = (stated_side(markup.number(tree.findtext(tag))) for tag in tags)
    return next((side for side in sides if side is not None), None)
