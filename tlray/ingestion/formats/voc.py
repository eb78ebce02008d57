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
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from tlray.data.schema import OBJECTS, SPLITS
from tlray.errors import DataError, StorageError
from tlray.ingestion.findings import Finding, Severity, finding
from tlray.ingestion.formats import markup, outlines, pairs
from tlray.ingestion.formats.base import Index, Look, objects, stated_side, table
from tlray.ingestion.formats.heuristics import folder_split
from tlray.ingestion.formats.listing import Listing, is_picture, lines_of, split_in, stem
from tlray.ingestion.formats.picture_paths import PicturePaths, in_same_folders

GIVES: tuple[str, ...] = (OBJECTS,)
_YES = ("1", "true")
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_SAMPLE = 24  # files whose first bytes are read to recognize the format
_ACCEPTED = "a VOC annotation"
_MISSING = 0.5  # share of the names in lists: if more are missing, the lists belong to other files


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

    objects: list[
        tuple[str, list[float], bool]
    ]  # class, corners as stated, whether these are edges in any case
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
    splits, bases, of_lists = _splits(listing, files)
    listed = [file for file in files if file in splits or not _is_below(file, bases)]
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


# ---- splits


def _splits(listing: Listing, files: Sequence[str]) -> tuple[dict[str, str], list[str], list[Finding]]:
    """(label file -> split, by lists; folders below which lists decide; findings about the lists)."""
    if listing.named:
        return {}, [], []
    by_base: dict[str, list[str]] = defaultdict(list)
    other_lists: dict[str, list[str]] = defaultdict(list)
    for path in listing.labels(".txt"):
        parts = path.split("/")
        position = next((n for n, part in enumerate(parts[:-1]) if part.lower() == "imagesets"), None)
        if position is not None and [part.lower() for part in parts[position + 1 : -1]] in (["main"], []):
            by_base["/".join(parts[:position])].append(path)
        elif position is None:
            other_lists[posixpath.dirname(path)].append(path)
    splits: dict[str, str] = {}
    findings: list[Finding] = []
    bases: list[str] = []
    chosen = [(base, lists) for base, paths in sorted(by_base.items()) if (lists := _chosen(paths))]
    for base, lists in chosen or _outside(listing, other_lists, files):
        bases.append(base)
        listed_splits, notes = _read_lists(listing, base, lists, files)
        splits |= listed_splits
        findings += notes
    return splits, bases, findings


def _outside(
    listing: Listing, folders: dict[str, list[str]], files: Sequence[str]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Lists outside of ImageSets: train.txt and val.txt at the root, in splits/ or beside the .xml.

    Those in the folder nearest to the root whose first lines name .xml files, with the folder of these files.
    """
    for folder, paths in sorted(folders.items(), key=lambda item: (item[0].count("/"), item[0])):
        base = folder
        while base and not any(_is_below(file, [base]) for file in files):
            base = posixpath.dirname(base)
        by_end, by_end_lower = _by_ends(base, files)
        lists = []
        for path, kind in _chosen(paths, plainly=False):
            first_lines = [line for line in lines_of(listing.head_text(path)) if line.strip()][:_SAMPLE]
            if (
                sum(_listed_file(line, by_end, by_end_lower) is not None for line in first_lines)
                > len(first_lines) / 2
            ):
                lists.append((path, kind))
        if lists:
            return [(base, lists)]
    return []


def _is_below(path: str, folders: Iterable[str]) -> bool:
    return any(not folder or path.startswith(f"{folder}/") for folder in folders)


def _chosen(paths: Sequence[str], plainly: bool = True) -> list[tuple[str, str]]:
    """(list, split or "trainval"), for lists of splits: train.txt, else those of single classes
    (cat_train.txt).

    Not ``plainly``: for splits without such a list, any with the word in its name (train_list.txt).
    """
    plain: list[tuple[str, str]] = []
    of_classes: list[tuple[str, str]] = []
    for path in paths:
        name = posixpath.basename(stem(path)).lower()
        kind = "trainval" if name.endswith("trainval") else SPLITS.get(name.rpartition("_")[2])
        if kind is None and not plainly:
            kind = split_in(name)
        if kind is not None:
            is_plain = name in SPLITS or name == "trainval"
            (plain if is_plain else of_classes).append((path, kind))
    if not plainly:
        plain_kinds = {kind for _, kind in plain}
        return plain + [(path, kind) for path, kind in of_classes if kind not in plain_kinds]
    return plain or of_classes


def _by_ends(base: str, files: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Label files below a folder by every tail of their paths, as written and in lower case, since lists may
    name frames/0001 in Annotations."""
    by_end: dict[str, str] = {}
    for file in files:
        if _is_below(file, [base]):
            parts = stem(file).split("/")
            for n in range(len(parts)):
                by_end.setdefault("/".join(parts[n:]), file)
    return by_end, {name.lower(): file for name, file in by_end.items()}


def _read_lists(
    listing: Listing, base: str, lists: Sequence[tuple[str, str]], files: Sequence[str]
) -> tuple[dict[str, str], list[Finding]]:
    by_end, by_end_lower = _by_ends(base, files)
    split_and_place: dict[str, tuple[str, str]] = {}
    absent: list[str] = []
    repeated: list[str] = []
    total = 0
    order = {"train": 0, "validation": 1, "test": 2, "trainval": 3}
    kinds = {kind for _, kind in lists}
    for path, kind in sorted(lists, key=lambda item: order[item[1]]):
        if kind == "trainval" and {"train", "validation"} <= kinds:
            continue
        split = kind if kind != "trainval" else "validation" if "train" in kinds else "train"
        of_list: set[str] = set()
        for number, line in enumerate(lines_of(listing.text(path)), 1):
            if not line.strip():
                continue
            total += 1
            place = f"{listing.where(path)} line {number}"
            label_file = _listed_file(line, by_end, by_end_lower)
            if label_file is None:
                absent.append(f"{place}: {line.strip()!r}")
            elif label_file in of_list:
                repeated.append(f"{place}: {line.strip()!r}")
            elif label_file in split_and_place and split_and_place[label_file][0] != split:
                if kind == "trainval":
                    continue  # trainval lists train and val; the other names in it are the missing list
                raise DataError(
                    f"{place}: {line.strip()!r} stands in {split_and_place[label_file][1]}, too; accepted: "
                    "one split"
                )
            else:
                of_list.add(label_file)
                split_and_place.setdefault(label_file, (split, f"{posixpath.basename(path)} line {number}"))
    if len(absent) > _MISSING * total:
        raise DataError(
            f"{absent[0]} has no .xml, as {len(absent)} of {total} names in lists have none; accepted: "
            "lists of the pictures that have one"
        )
    return {file: split for file, (split, _) in split_and_place.items()}, [
        *finding("warning", "listed_without_labels", absent, "{n} names in lists have no .xml (left out)"),
        *finding("info", "listed_twice", repeated, "{n} names stand twice in a list"),
    ]


def _listed_file(line: str, by_end: dict[str, str], by_end_lower: dict[str, str]) -> str | None:
    """The label file that a line of a list means; the line may have a second column and endings."""
    text = line.strip().lstrip("./").replace("\\", "/")
    first_column, _, last_column = text.rpartition(" ") if " " in text else text.rpartition("\t")
    names = [text]
    if first_column.strip() and last_column.strip() in ("-1", "0", "1"):
        names.append(first_column.strip())
    elif last_column.lower().endswith(".xml"):  # PaddleDetection's lines: the picture and its .xml
        names.append(last_column.strip().removeprefix("./"))
    for name in list(names):
        if is_picture(name) or name.lower().endswith(".xml"):
            names += [stem(name), posixpath.basename(stem(name))]
    return next((f for name in names if (f := by_end.get(name) or by_end_lower.get(name.lower()))), None)


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
