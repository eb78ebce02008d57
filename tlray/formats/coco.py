"""COCO: JSON of ``images``, ``annotations`` and ``categories``, as annotations/instances_train2017.json or
Roboflow's train/_annotations.coco.json.

The split stands in the file's name, else in its folder's, else in the picture's folder. Where there are
instances_*.json other JSON files are passed over. Boxes of crowds are left out; an object without ``bbox``
has the box around its ``segmentation``. For masks outlines are painted in the file's order, those of crowds
and boxes without an outline as unknown pixels.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tlray.errors import DataError, StorageError
from tlray.findings import Finding, Severity, finding
from tlray.formats import outlines
from tlray.formats.base import Index, Look, objects, table
from tlray.formats.listing import Listing, split_in
from tlray.formats.markup import text_of_head
from tlray.formats.places import Places, folder_split, names_in_head, unlabelled
from tlray.schema import MASK, OBJECTS

GIVES: tuple[str, ...] = (OBJECTS, MASK)
_LISTS = ("images", "annotations", "categories")
_KEYS = re.compile(r'"(?:images|annotations|categories)"\s*:\s*\[')
_SIGNS = ('"file_name"', '"image_id"', '"category_id"', '"supercategory"', '"coco_url"', '"bbox"')
_LOOKED_INTO = 50  # JSON files whose first bytes are read, those with COCO's names first
_UNKNOWN_IMAGES = 0.2  # of the annotations: with more of unknown pictures the file has lost its pictures
_ACCEPTED = "COCO's instances"

Tree = dict[str, list[dict[str, Any]]]


def look(listing: Listing) -> Look | None:
    """JSON files with COCO's keys, and the pictures of the folders that they name."""
    chosen, others = _chosen(listing)
    if not chosen:
        if not others:
            return None
        file, kind = others[0]
        lacks = f"{file} is {kind}; accepted: {_ACCEPTED}"
        return Look(f"{len(others)} .json of COCO", [], [file for file, _ in others], lacks)
    names = [name for file in chosen for name in names_in_head(listing, file, "file_name")]
    stems = {posixpath.basename(name.replace("\\", "/")).lower() for name in names}
    named = {path for path in listing.pictures if posixpath.basename(path).lower() in stems}
    folders = {posixpath.dirname(path) for path in named}
    pictures = [path for path in listing.pictures if posixpath.dirname(path) in folders]
    if not names:  # a file whose first bytes are annotations or licences
        pictures = listing.pictures
    lacks = "" if pictures else f"no picture is there of the names in {chosen[0]}, as {names[0]}"
    return Look(f"{len(chosen)} .json of COCO", pictures, chosen, lacks)


def _chosen(listing: Listing) -> tuple[list[str], list[tuple[str, str]]]:
    """(files to read, files of COCO's other kinds with what they are)."""
    files = listing.labels(".json")

    def rank(file: str) -> tuple[bool, int, str]:
        name = posixpath.basename(file).lower()
        return not ("coco" in name or name.startswith("instances")), file.count("/"), file

    instances = [f for f in files if posixpath.basename(f).lower().startswith("instances_")]
    some = instances or sorted(files, key=rank)[:_LOOKED_INTO]
    kinds = {file: _kind(listing, file) for file in some}
    full = [file for file in some if kinds[file] == ""]
    # Keypoints beside instances are of the same pictures; alone they have boxes, too.
    no_keypoints = [file for file in full if "keypoints" not in posixpath.basename(file).lower()]
    others = [(file, kind) for file, kind in kinds.items() if kind]
    return sorted(no_keypoints or full), others


def _kind(listing: Listing, file: str) -> str | None:
    """ "" for instances, what it is for COCO's other kinds, None for JSON of something else."""
    try:
        head = text_of_head(listing.head(file)).lstrip()
    except StorageError:
        return None
    if head.startswith("["):
        if '"image_id"' in head and '"score"' in head:
            return "a list of COCO results, which has no names of pictures"
        return None
    if not head.startswith("{") or not _KEYS.search(head) or not any(sign in head for sign in _SIGNS):
        return None
    if '"segments_info"' in head or posixpath.basename(file).lower().startswith("panoptic"):
        return "COCO panoptic, whose objects are in PNG files"
    if '"caption"' in head or posixpath.basename(file).lower().startswith("captions"):
        return "COCO captions, which have no objects"
    if posixpath.basename(file).lower().startswith("image_info"):
        return "COCO image info, which has no objects"
    return ""


@dataclass
class _Notes:
    """What is odd in the files read so far, with examples."""

    id_types: list[str] = field(default_factory=list)
    double_ids: list[str] = field(default_factory=list)
    double_names: list[str] = field(default_factory=list)
    never: list[str] = field(default_factory=list)
    unknown_images: list[str] = field(default_factory=list)
    from_outlines: list[str] = field(default_factory=list)
    no_outlines: list[str] = field(default_factory=list)
    num_outlines: int = 0
    ignored: Counter[str] = field(default_factory=Counter)

    def findings(self) -> list[Finding]:
        rows: list[tuple[Severity, str, list[str], str]] = [
            (
                "warning",
                "annotation_id_double",
                self.double_ids,
                "ids stand for several annotations (all taken)",
            ),
            (
                "warning",
                "class_double",
                self.double_names,
                "names stand for several categories (taken as one class)",
            ),
            (
                "warning",
                "unknown_image",
                self.unknown_images,
                "annotations are of no picture of the file (left out)",
            ),
            (
                "warning",
                "no_outline",
                self.no_outlines,
                "objects have no outline (their box is unknown pixels)",
            ),
            ("info", "class_never", self.never, "categories that no annotation has"),
            (
                "info",
                "id_type",
                self.id_types,
                "ids are text in one place and numbers in another (taken as equal)",
            ),
            (
                "info",
                "box_of_polygon",
                self.from_outlines,
                "objects have no bbox (the box around their outline taken)",
            ),
        ]
        return [
            f for level, kind, examples, text in rows for f in finding(level, kind, examples, f"{{n}} {text}")
        ]


def index(listing: Listing, column: str) -> Index:
    """Table of (path, split, objects or mask) and stated sizes; boxes are (x, y, width, height) in px.

    Raises DataError for JSON that cannot be read or lacks something, ids that stand for two pictures or two
    categories, unknown categories, pictures that stand in two places, and files of no split among others.
    """
    chosen, others = _chosen(listing)
    if not chosen:
        if others:
            raise DataError(f"{listing.where(others[0][0])}: is {others[0][1]}; accepted: {_ACCEPTED}")
        raise DataError(
            f"{listing.root}: no COCO file; accepted: annotations/instances_*.json beside pictures"
        )
    splits = [split_in(posixpath.basename(f)) or folder_split(f) for f in chosen]
    if None in splits and any(splits):
        raise DataError(
            f"{listing.where(chosen[splits.index(None)])}: one of {len(chosen)} files, and of no split"
            "; accepted: names with train, val or test"
        )
    notes, places = _Notes(), Places(listing)
    trees = {
        f: _read(listing.where(f), data) for f, data in zip(chosen, listing.read_all(chosen), strict=True)
    }
    classes = [name for file, tree in trees.items() for name in _classes(listing.where(file), tree).values()]
    names, ids = outlines.numbered(listing.root, classes) if column == MASK else ([], {})
    rows: list[dict[str, Any]] = []
    homes: dict[str, str] = {}  # picture -> where it is named
    for (file, tree), split in zip(trees.items(), splits, strict=True):
        where = listing.where(file)
        stated = [_file_name(where, number, item) for number, item in enumerate(tree["images"])]
        find = places.lookup(where, posixpath.dirname(file), stated, split)
        by_image = _annotations(where, tree, notes)
        for number, item in enumerate(tree["images"]):
            here = f"{where}: images[{number}]"
            path = find(stated[number], here)
            if path in homes:
                raise DataError(f"{here}: {path!r} stands in {homes[path]}, too; accepted: once")
            homes[path] = f"{file}: images[{number}]"
            width, height = _side(item.get("width")), _side(item.get("height"))
            found = by_image[_plain(item["id"])]
            value = _mask(found, ids, width, height, notes) if column == MASK else _objects(found, notes)
            rows.append({"path": path, "split": split or folder_split(path), column: value,
                         "stated_width": width, "stated_height": height})  # fmt: skip
    places.check(len(rows))
    if column == MASK and notes.no_outlines and not notes.num_outlines:
        raise DataError(
            f"{notes.no_outlines[0]}: no segmentation, as no object; accepted: outlines for masks"
        )
    without, masks = unlabelled(listing, homes, "entry in a COCO file")
    findings = [*notes.findings(), *places.findings(), *without]
    ignored = {kind: number for kind, number in (notes.ignored + Counter(masks)).items() if number}
    given = {MASK: names} if column == MASK else {}
    return Index(table(rows, column), names=given, ignored=ignored, findings=findings)


# ---- the file


def _read(where: str, data: bytes) -> Tree:
    try:
        tree = json.loads(data)
    except ValueError as error:
        place = f"line {error.lineno}, " if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{where}: {place}no valid JSON; accepted: {_ACCEPTED}") from None
    for name in _LISTS:
        part = tree.get(name) if isinstance(tree, dict) else None
        if not isinstance(part, list) or not all(isinstance(item, dict) for item in part):
            raise DataError(f"{where}: no list of objects {name!r}; accepted: {', '.join(_LISTS)}")
    for name, keys in (("images", ("id",)), ("categories", ("id", "name"))):
        for number, item in enumerate(tree[name]):
            if lacking := [key for key in keys if key not in item]:
                raise DataError(f"{where}: {name}[{number}]: no {lacking[0]!r}; accepted: {', '.join(keys)}")
            if _plain(item["id"]) is None:
                raise DataError(f"{where}: {name}[{number}]: id = {item['id']!r}; accepted: a number or text")
    return tree  # type: ignore[no-any-return]


def _plain(id_: Any) -> int | str | None:
    """An id as a number or text; None for what is neither (true, null, a list, a fraction)."""
    if isinstance(id_, bool):
        return None
    if isinstance(id_, float):
        return int(id_) if math.isfinite(id_) and id_ == int(id_) else None
    return id_ if isinstance(id_, int | str) else None


def _known(id_: Any) -> int | str:
    """An id that `_read` has seen to be one."""
    plain = _plain(id_)
    assert plain is not None
    return plain


def _file_name(where: str, number: int, item: Mapping[str, Any]) -> str:
    """How an image is called; by its address where it has no file name."""
    for key in ("file_name", "coco_url", "flickr_url"):
        if isinstance(value := item.get(key), str) and value.strip():
            return value
    value = item.get("file_name")
    what = f"file_name = {value!r}" if "file_name" in item else "no 'file_name'"
    raise DataError(f"{where}: images[{number}]: {what}; accepted: the path of a picture")


def _side(value: Any) -> int | None:
    """A stated side of a picture, px; None where it is no number, or 0 (not known)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**31:
        return None
    return round(value)


def _classes(where: str, tree: Tree) -> dict[int | str, str]:
    """Class names by id, in the file's order."""
    classes: dict[int | str, str] = {}
    for number, item in enumerate(tree["categories"]):
        name, here = item["name"], f"{where}: categories[{number}]"
        if isinstance(name, bool) or not isinstance(name, int | float | str) or not str(name).strip():
            raise DataError(f"{here}: name = {name!r}; accepted: the name of a class")
        id_ = _known(item["id"])
        if classes.get(id_, str(name)) != str(name):
            raise DataError(
                f"{here}: id = {id_!r} is {classes[id_]!r} and {name!r}; accepted: one category an id"
            )
        classes[id_] = str(name)
    return classes


class _Ids:
    """Ids of a file, found across types where that is clear: 1 and "1"."""

    def __init__(self, ids: Sequence[int | str], notes: _Notes, where: str) -> None:
        self._ids, self._notes, self._where = set(ids), notes, where
        count = Counter(str(id_) for id_ in ids)
        self._by_text = {str(id_): id_ for id_ in ids if count[str(id_)] == 1}
        self._others: set[str] = set()

    def find(self, id_: Any) -> int | str | None:
        """The id that is meant; None for an unknown one."""
        plain = _plain(id_)
        if plain is None or plain in self._ids:
            return plain
        same = self._by_text.get(str(plain).strip())
        if same is not None and str(plain) not in self._others:
            self._others.add(str(plain))
            self._notes.id_types.append(f"{self._where}: {plain!r} and {same!r}")
        return same


@dataclass(frozen=True)
class _Object:
    """One annotation; ``box`` is None where there is none, ``outline`` polygons, an RLE, or None."""

    here: str
    name: str
    box: list[float] | None
    outline: list[list[float]] | dict[str, Any] | None
    crowd: bool


def _images(where: str, tree: Tree) -> dict[int | str, int]:
    """Position of each image by its id."""
    images: dict[int | str, int] = {}
    for number, item in enumerate(tree["images"]):
        id_ = _known(item["id"])
        if id_ in images:
            first = tree["images"][images[id_]].get("file_name")
            raise DataError(
                f"{where}: images[{number}]: id = {id_!r} of {item.get('file_name')!r} is that of "
                f"images[{images[id_]}] ({first!r}), too; accepted: an id of its own for every picture"
            )
        images[id_] = number
    return images


def _annotations(where: str, tree: Tree, notes: _Notes) -> dict[int | str | None, list[_Object]]:
    """Objects by the id of their picture."""
    images = _images(where, tree)
    classes = _classes(where, tree)
    by_name: dict[str, list[Any]] = defaultdict(list)
    for id_, name in classes.items():
        by_name[name].append(id_)
    notes.double_names += [
        f"{where}: {name!r}, ids {_listed(ids)}" for name, ids in by_name.items() if len(ids) > 1
    ]
    image_ids, category_ids = _Ids(list(images), notes, where), _Ids(list(classes), notes, where)
    by_image: dict[int | str | None, list[_Object]] = {id_: [] for id_ in images}
    seen_ids: Counter[Any] = Counter()
    used: set[int | str] = set()
    unknown: list[str] = []
    for number, item in enumerate(tree["annotations"]):
        here = f"{where}: annotations[{number}]"
        for key, kind in (("segments_info", "panoptic"), ("caption", "captions")):
            if key in item and "category_id" not in item:
                raise DataError(f"{here}: {key}: is COCO {kind}; accepted: {_ACCEPTED}")
        image = image_ids.find(item.get("image_id"))
        if image not in images:
            unknown.append(f"{here}: image_id = {item.get('image_id')!r}")
            continue
        category = category_ids.find(item.get("category_id"))
        if category is None or category not in classes:
            raise DataError(
                f"{here}: category_id = {item.get('category_id')!r}; accepted: an id that the file holds"
            )
        used.add(category)
        if (own := _plain(item.get("id"))) is not None:
            seen_ids[own] += 1
        by_image[image].append(_object(here, classes[category], item))
    if len(unknown) > _UNKNOWN_IMAGES * len(tree["annotations"]):
        raise DataError(f"{unknown[0]}; accepted: an id that the file holds")
    notes.unknown_images += unknown
    notes.double_ids += [f"{where}: id = {own!r}, {n} times" for own, n in seen_ids.items() if n > 1]
    notes.never += [f"{where}: {name}" for id_, name in classes.items() if id_ not in used]
    return by_image


def _listed(ids: Sequence[Any]) -> str:
    return ", ".join(map(repr, ids[:4]))


def _object(here: str, name: str, item: Mapping[str, Any]) -> _Object:
    box = item.get("bbox")
    if box is not None and box != []:
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise DataError(f"{here}: bbox = {box!r}; accepted: x, y, width, height in px")
        box = [float(value) for value in box]
    outline = _outline(here, item.get("segmentation"))
    if not box and outline is None and not item.get("iscrowd"):
        raise DataError(f"{here}: bbox = {box!r}; accepted: x, y, width, height in px, or a segmentation")
    return _Object(here, name, box or None, outline, bool(item.get("iscrowd")))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _outline(here: str, value: Any) -> list[list[float]] | dict[str, Any] | None:
    """Polygons of three points or more, or an RLE; None where there are neither."""
    if value is None or value == [] or value == {}:
        return None
    if isinstance(value, dict):
        size, counts = value.get("size"), value.get("counts")
        sized = isinstance(size, list) and len(size) == 2 and all(map(_is_number, size))
        if not sized or not isinstance(counts, list | str):
            raise DataError(f"{here}: segmentation without size and counts; accepted: RLE or polygons")
        return value
    if isinstance(value, list) and all(map(_is_number, value)):
        value = [value]  # a polygon that lacks the list around it
    polygons: list[Any] = value if isinstance(value, list) else [value]
    for number, polygon in enumerate(polygons):
        if not isinstance(polygon, list) or len(polygon) % 2 or not all(map(_is_number, polygon)):
            what = repr(polygon) if len(repr(polygon)) < 60 else f"{repr(polygon)[:60]}..."
            raise DataError(f"{here}: segmentation[{number}] = {what}; accepted: x, y, x, y, ... in px")
    return [polygon for polygon in polygons if len(polygon) >= 6] or None


# ---- labels


def _objects(found: Sequence[_Object], notes: _Notes) -> dict[str, Any]:
    boxes = []
    for item in found:
        if item.crowd:
            notes.ignored["boxes of crowds"] += 1
            continue
        box = item.box
        if item.outline is not None and (box is None or not any(box)):
            box = _around(item)
            notes.from_outlines.append(f"{item.here}: {item.name}")
        if box is None:
            notes.ignored["objects of no pixel"] += 1
            continue
        boxes.append((item.name, box))
    return objects(boxes)


def _around(item: _Object) -> list[float] | None:
    if isinstance(item.outline, dict):
        try:
            return outlines.around_runs(item.outline["size"], item.outline["counts"])
        except (ValueError, TypeError) as error:
            raise DataError(f"{item.here}: segmentation: {error}; accepted: COCO's RLE") from None
    return outlines.around(*(item.outline or []))


def _mask(
    found: Sequence[_Object], ids: Mapping[str, int], width: int | None, height: int | None, notes: _Notes
) -> dict[str, Any]:
    shapes: list[dict[str, Any]] = []
    for item in found:
        id_, outline = ids[item.name], item.outline
        if item.crowd:
            id_ = outlines.UNKNOWN
            notes.ignored["outlines of crowds (unknown pixels)"] += 1
        if outline is None and item.box is not None:
            id_, outline = outlines.UNKNOWN, [outlines.rectangle(*item.box)]
            notes.no_outlines.append(f"{item.here}: {item.name}")
        elif outline is not None:
            notes.num_outlines += 1
        if isinstance(outline, dict):
            shapes.append({"id": id_, "rle": {"size": outline["size"], "counts": outline["counts"]}})
        elif outline:
            shares = all(0 <= value <= 1 for polygon in outline for value in polygon)
            shapes.append({"id": id_, "polygons": outline} | ({"relative": True} if shares else {}))
    return outlines.mask(shapes)
