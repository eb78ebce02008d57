"""Apple's CreateML: a JSON list of ``{"image": name, "annotations": [{"label", "coordinates"}]}``.

Coordinates are centre x, centre y, width and height in px. The file is beside the pictures, in the root or
in the folder of each split, as train/_annotations.createml.json of Roboflow.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Any

from tlray.data.schema import OBJECTS
from tlray.errors import DataError, StorageError
from tlray.ingestion.formats import markup
from tlray.ingestion.formats.base import Index, Look, objects, table
from tlray.ingestion.formats.heuristics import folder_split
from tlray.ingestion.formats.listing import Listing, split_in
from tlray.ingestion.formats.pairs import unlabelled
from tlray.ingestion.formats.picture_paths import PicturePaths, in_same_folders

GIVES: tuple[str, ...] = (OBJECTS,)
_IMAGE = ("image", "imagefilename", "filename")
_ANNOTATIONS = ("annotations", "annotation")
_SIDES = ("x", "y", "width", "height")
_LOOKED_INTO = 50
_ACCEPTED = 'CreateML, a list of {"image": ..., "annotations": [...]}'
_NAME = re.compile(rf'"(?:{"|".join(_IMAGE)})"\s*:')


def look(listing: Listing) -> Look | None:
    """JSON lists with CreateML's keys, and all pictures in the folders of those that they name."""
    chosen = _chosen(listing)
    if not chosen:
        return None
    names = [
        name for file in chosen for name in markup.names_in_head(listing.head_text(file), "|".join(_IMAGE))
    ]
    pictures = in_same_folders(listing, names)
    lacks = "" if pictures else f"no picture is there of the names in {chosen[0]}, as {names[0]}"
    return Look(f"{len(chosen)} .json of CreateML", pictures, chosen, lacks)


def _chosen(listing: Listing) -> list[str]:
    def rank(file: str) -> tuple[bool, int, str]:
        return "createml" not in file.lower(), file.count("/"), file

    return sorted(f for f in sorted(listing.labels(".json"), key=rank)[:_LOOKED_INTO] if _is_list(listing, f))


def _is_list(listing: Listing, file: str) -> bool:
    try:
        head = listing.head_text(file).lstrip()
    except StorageError:
        return False
    # Label Studio writes lists with "annotations", too, but no such coordinates.
    has_annotations = (
        head.startswith("[") and bool(_NAME.search(head)) and bool(re.search(r'"annotations?"\s*:', head))
    )
    return has_annotations and (
        '"coordinates"' in head or not re.search(r'"annotations?"\s*:\s*\[\s*\{', head)
    )


def index(listing: Listing, column: str) -> Index:
    """Table of (path, split, objects); boxes are (x, y, width, height) in px, x and y the left upper corner.

    Raises DataError for JSON that is invalid or incomplete, and for pictures with two entries.
    """
    chosen = _chosen(listing)
    if not chosen:
        raise DataError(f"{listing.root}: no JSON of CreateML; accepted: {_ACCEPTED}")
    picture_paths = PicturePaths(listing)
    rows: list[dict[str, Any]] = []
    homes: dict[str, str] = {}
    splits = [split_in(posixpath.basename(file)) or folder_split(file) for file in chosen]
    for file, split, data in zip(chosen, splits, listing.read_all(chosen), strict=True):
        where = listing.where(file)
        items = _read(where, data)
        names = [_value(f"{where}: [{number}]", item, _IMAGE, str) for number, item in enumerate(items)]
        find = picture_paths.lookup(where, posixpath.dirname(file), names, split)
        for number, (name, item) in enumerate(zip(names, items, strict=True)):
            place = f"{where}: [{number}]"
            path = find(name, place)
            if path in homes:
                raise DataError(f"{place}: {path!r} stands in {homes[path]}, too; accepted: once")
            homes[path] = f"{file}: [{number}]"
            annotations = _value(place, item, _ANNOTATIONS, list)
            boxes = [_box(f"{place}.annotations[{n}]", value) for n, value in enumerate(annotations)]
            rows.append({"path": path, "split": split or folder_split(path), OBJECTS: objects(boxes)})
    picture_paths.check(len(rows))
    no_entry, num_masks = unlabelled(listing, homes, "entry in a CreateML file")
    return Index(table(rows, OBJECTS), ignored=num_masks, findings=[*picture_paths.findings(), *no_entry])


def _read(where: str, data: bytes) -> list[dict[str, Any]]:
    items = markup.parse_json(where, data, _ACCEPTED)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DataError(f"{where}: no list of objects; accepted: {_ACCEPTED}")
    return items


def _value(place: str, item: Mapping[str, Any], keys: tuple[str, ...], kind: type) -> Any:
    for key in keys:
        if isinstance(value := item.get(key), kind) and (value or kind is list):
            return value
    key = next((key for key in keys if key in item), keys[0])
    problem = f"{key} = {str(item[key])[:60]!r}" if key in item else f"no {key!r}"
    raise DataError(f"{place}: {problem}; accepted: {_ACCEPTED}")


def _box(place: str, item: Any) -> tuple[str, list[float]]:
    label = item.get("label") if isinstance(item, dict) else None
    if isinstance(label, bool) or not isinstance(label, str | int | float) or not str(label).strip():
        raise DataError(f"{place}: label = {label!r}; accepted: the name of a class")
    sides = item.get("coordinates")
    values: list[Any] = [sides.get(side) if isinstance(sides, dict) else None for side in _SIDES]
    for side, value in zip(_SIDES, values, strict=True):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(f"{place}: coordinates.{side} = {value!r}; accepted: {', '.join(_SIDES)} in px")
    x, y, width, height = values
    return str(label), [x - width / 2, y - height / 2, float(width), float(height)]
