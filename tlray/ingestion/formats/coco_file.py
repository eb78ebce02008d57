"""The content of one COCO file: its pictures, classes and objects, with all ids resolved and all values
checked."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tlray.errors import DataError
from tlray.ingestion.findings import Finding, Severity, finding
from tlray.ingestion.formats import markup

ACCEPTED = "COCO's instances"
_LISTS = ("images", "annotations", "categories")
_UNKNOWN_IMAGES = 0.2  # share of annotations that may be of pictures that the file does not list

Tree = dict[str, list[dict[str, Any]]]


@dataclass
class Notes:
    """Oddities in the files read so far, as examples for findings."""

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
        kinds: list[tuple[Severity, str, list[str], str]] = [
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
            f
            for level, kind, examples, text in kinds
            for f in finding(level, kind, examples, f"{{n}} {text}")
        ]


def read(where: str, data: bytes) -> Tree:
    tree = markup.parse_json(where, data, ACCEPTED)
    for name in _LISTS:
        part = tree.get(name) if isinstance(tree, dict) else None
        if not isinstance(part, list) or not all(isinstance(item, dict) for item in part):
            raise DataError(f"{where}: no list of objects {name!r}; accepted: {', '.join(_LISTS)}")
    for name, keys in (("images", ("id",)), ("categories", ("id", "name"))):
        for number, item in enumerate(tree[name]):
            if lacking := [key for key in keys if key not in item]:
                raise DataError(f"{where}: {name}[{number}]: no {lacking[0]!r}; accepted: {', '.join(keys)}")
            if plain_id(item["id"]) is None:
                raise DataError(f"{where}: {name}[{number}]: id = {item['id']!r}; accepted: a number or text")
    return tree  # type: ignore[no-any-return]


def plain_id(id_: Any) -> int | str | None:
    """An id as a number or text; None for what is neither (true, null, a list, a fraction)."""
    if isinstance(id_, bool):
        return None
    if isinstance(id_, float):
        return int(id_) if math.isfinite(id_) and id_ == int(id_) else None
    return id_ if isinstance(id_, int | str) else None


def _known(id_: Any) -> int | str:
    """An id that `read` has checked."""
    plain = plain_id(id_)
    assert plain is not None
    return plain


def file_name(where: str, number: int, item: Mapping[str, Any]) -> str:
    """The file name of an image, or its URL where it has none."""
    for key in ("file_name", "coco_url", "flickr_url"):
        if isinstance(value := item.get(key), str) and value.strip():
            return value
    value = item.get("file_name")
    problem = f"file_name = {value!r}" if "file_name" in item else "no 'file_name'"
    raise DataError(f"{where}: images[{number}]: {problem}; accepted: the path of a picture")


def classes_of(where: str, tree: Tree) -> dict[int | str, str]:
    """Class names by id, in the order of the file."""
    classes: dict[int | str, str] = {}
    for number, item in enumerate(tree["categories"]):
        name, place = item["name"], f"{where}: categories[{number}]"
        if isinstance(name, bool) or not isinstance(name, int | float | str) or not str(name).strip():
            raise DataError(f"{place}: name = {name!r}; accepted: the name of a class")
        id_ = _known(item["id"])
        if classes.get(id_, str(name)) != str(name):
            raise DataError(
                f"{place}: id = {id_!r} is {classes[id_]!r} and {name!r}; accepted: one category an id"
            )
        classes[id_] = str(name)
    return classes


class _Ids:
    """The ids of a file; 1 finds "1" and the other way round, where only one of them is there."""

    def __init__(self, ids: Sequence[int | str], notes: Notes, where: str) -> None:
        self._ids, self._notes, self._where = set(ids), notes, where
        count = Counter(str(id_) for id_ in ids)
        self._by_text = {str(id_): id_ for id_ in ids if count[str(id_)] == 1}
        self._others: set[str] = set()

    def find(self, id_: Any) -> int | str | None:
        """The id of the file that is meant; None for an unknown one."""
        plain = plain_id(id_)
        if plain is None or plain in self._ids:
            return plain
        other_type = self._by_text.get(str(plain).strip())
        if other_type is not None and str(plain) not in self._others:
            self._others.add(str(plain))
            self._notes.id_types.append(f"{self._where}: {plain!r} and {other_type!r}")
        return other_type


@dataclass(frozen=True)
class Object:
    """One annotation; ``outline`` is polygons or an RLE."""

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
            first_name = tree["images"][images[id_]].get("file_name")
            raise DataError(
                f"{where}: images[{number}]: id = {id_!r} of {item.get('file_name')!r} is that of "
                f"images[{images[id_]}] ({first_name!r}), too; accepted: an id of its own for every picture"
            )
        images[id_] = number
    return images


def annotations_of(where: str, tree: Tree, notes: Notes) -> dict[int | str | None, list[Object]]:
    """Objects by the id of their picture."""
    images = _images(where, tree)
    classes = classes_of(where, tree)
    by_name: dict[str, list[Any]] = defaultdict(list)
    for id_, name in classes.items():
        by_name[name].append(id_)
    notes.double_names += [
        f"{where}: {name!r}, ids {_listed(ids)}" for name, ids in by_name.items() if len(ids) > 1
    ]
    image_ids, category_ids = _Ids(list(images), notes, where), _Ids(list(classes), notes, where)
    by_image: dict[int | str | None, list[Object]] = {id_: [] for id_ in images}
    seen_ids: Counter[Any] = Counter()
    used: set[int | str] = set()
    unknown: list[str] = []
    for number, item in enumerate(tree["annotations"]):
        place = f"{where}: annotations[{number}]"
        for key, kind in (("segments_info", "panoptic"), ("caption", "captions")):
            if key in item and "category_id" not in item:
                raise DataError(f"{place}: {key}: is COCO {kind}; accepted: {ACCEPTED}")
        image = image_ids.find(item.get("image_id"))
        if image not in images:
            unknown.append(f"{place}: image_id = {item.get('image_id')!r}")
            continue
        category = category_ids.find(item.get("category_id"))
        if category is None or category not in classes:
            raise DataError(
                f"{place}: category_id = {item.get('category_id')!r}; accepted: an id that the file holds"
            )
        used.add(category)
        if (annotation_id := plain_id(item.get("id"))) is not None:
            seen_ids[annotation_id] += 1
        by_image[image].append(_object(place, classes[category], item))
    if len(unknown) > _UNKNOWN_IMAGES * len(tree["annotations"]):
        raise DataError(f"{unknown[0]}; accepted: an id that the file holds")
    notes.unknown_images += unknown
    notes.double_ids += [
        f"{where}: id = {annotation_id!r}, {n} times" for annotation_id, n in seen_ids.items() if n > 1
    ]
    notes.never += [f"{where}: {name}" for id_, name in classes.items() if id_ not in used]
    return by_image


def _listed(ids: Sequence[Any]) -> str:
    return ", ".join(map(repr, ids[:4]))


def _object(place: str, name: str, item: Mapping[str, Any]) -> Object:
    box = item.get("bbox")
    if box is not None and box != []:
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise DataError(f"{place}: bbox = {box!r}; accepted: x, y, width, height in px")
        box = [float(value) for value in box]
    outline = _outline(place, item.get("segmentation"))
    if not box and outline is None and not item.get("iscrowd"):
        raise DataError(f"{place}: bbox = {box!r}; accepted: x, y, width, height in px, or a segmentation")
    return Object(place, name, box or None, outline, bool(item.get("iscrowd")))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _outline(place: str, value: Any) -> list[list[float]] | dict[str, Any] | None:
    """Polygons of three points or more, or an RLE; None where there is neither."""
    if value is None or value == [] or value == {}:
        return None
    if isinstance(value, dict):
        size, counts = value.get("size"), value.get("counts")
        has_size = isinstance(size, list) and len(size) == 2 and all(map(_is_number, size))
        if not has_size or not isinstance(counts, list | str):
            raise DataError(f"{place}: segmentation without size and counts; accepted: RLE or polygons")
        return value
    if isinstance(value, list) and all(map(_is_number, value)):
        value = [value]  # a single polygon, not in a list
    polygons: list[Any] = value if isinstance(value, list) else [value]
    for number, polygon in enumerate(polygons):
        if not isinstance(polygon, list) or len(polygon) % 2 or not all(map(_is_number, polygon)):
            shown = repr(polygon) if len(repr(polygon)) < 60 else f"{repr(polygon)[:60]}..."
            raise DataError(f"{place}: segmentation[{number}] = {shown}; accepted: x, y, x, y, ... in px")
    return [polygon for polygon in polygons if len(polygon) >= 6] or None
