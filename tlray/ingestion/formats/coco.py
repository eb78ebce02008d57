"""COCO: JSON of ``images``, ``annotations`` and ``categories``, as annotations/instances_train2017.json or
Roboflow's train/_annotations.coco.json.

The split is in the name of the file, of its folder, or of the picture's folder. Where there are
instances_*.json, other JSON files are not read. Boxes of crowds keep their ``iscrowd``; an object without
``bbox`` gets the box around its ``segmentation``. In masks, outlines are painted in the order of the file;
crowds, and boxes without an outline, become unknown pixels.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tlray.data.schema import MASK, OBJECTS
from tlray.errors import DataError, StorageError
from tlray.ingestion.formats import coco_file, outlines
from tlray.ingestion.formats.base import Index, Look, objects, stated_side, table
from tlray.ingestion.formats.heuristics import folder_split
from tlray.ingestion.formats.listing import Listing, split_in
from tlray.ingestion.formats.markup import names_in_head
from tlray.ingestion.formats.pairs import unlabelled
from tlray.ingestion.formats.picture_paths import PicturePaths, in_same_folders

GIVES: tuple[str, ...] = (OBJECTS, MASK)
_KEYS = re.compile(r'"(?:images|annotations|categories)"\s*:\s*\[')
_SIGNS = ('"file_name"', '"image_id"', '"category_id"', '"supercategory"', '"coco_url"', '"bbox"')
_LOOKED_INTO = 50  # JSON files whose first bytes are read, those with usual names of COCO first


def look(listing: Listing) -> Look | None:
    """JSON files with COCO's keys, and all pictures in the folders of those that they name."""
    chosen, other_kinds = _chosen(listing)
    if not chosen:
        if not other_kinds:
            return None
        file, kind = other_kinds[0]
        lacks = f"{file} is {kind}; accepted: {coco_file.ACCEPTED}"
        return Look(f"{len(other_kinds)} .json of COCO", [], [file for file, _ in other_kinds], lacks)
    names = [name for file in chosen for name in names_in_head(listing.head_text(file), "file_name")]
    # The first bytes of a file may hold annotations or licences only.
    pictures = in_same_folders(listing, names) if names else listing.pictures
    lacks = "" if pictures else f"no picture is there of the names in {chosen[0]}, as {names[0]}"
    return Look(f"{len(chosen)} .json of COCO", pictures, chosen, lacks)


def _chosen(listing: Listing) -> tuple[list[str], list[tuple[str, str]]]:
    """(files to read, (file, kind) of COCO's other kinds)."""
    files = listing.labels(".json")

    def rank(file: str) -> tuple[bool, int, str]:
        name = posixpath.basename(file).lower()
        return not ("coco" in name or name.startswith("instances")), file.count("/"), file

    instances = [f for f in files if posixpath.basename(f).lower().startswith("instances_")]
    candidates = instances or sorted(files, key=rank)[:_LOOKED_INTO]
    kinds = {file: _kind(listing, file) for file in candidates}
    instance_files = [file for file in candidates if kinds[file] == ""]
    # Files of keypoints repeat the boxes of the instances, so they are read only where those are missing.
    without_keypoints = [
        file for file in instance_files if "keypoints" not in posixpath.basename(file).lower()
    ]
    other_kinds = [(file, kind) for file, kind in kinds.items() if kind]
    return sorted(without_keypoints or instance_files), other_kinds


def _kind(listing: Listing, file: str) -> str | None:
    """ "" for instances, a description for COCO's other kinds, None for any other JSON."""
    try:
        head = listing.head_text(file).lstrip()
    except StorageError:
        return None
    if head.startswith("["):
        if '"image_id"' in head and '"score"' in head:
            return "a list of COCO results, which has no names of pictures"
        return None
    if not head.startswith("{") or not _KEYS.search(head) or not any(sign in head for sign in _SIGNS):
        return None
    if '"items"' in head and '"images"' not in head:  # Datumaro's own
        return None
    if '"segments_info"' in head or posixpath.basename(file).lower().startswith("panoptic"):
        return "COCO panoptic, whose objects are in PNG files"
    if '"caption"' in head or posixpath.basename(file).lower().startswith("captions"):
        return "COCO captions, which have no objects"
    if posixpath.basename(file).lower().startswith("image_info"):
        return "COCO image info, which has no objects"
    return ""


def index(listing: Listing, column: str) -> Index:
    """Table of (path, split, objects or mask) and stated sizes; boxes are (x, y, width, height) in px.

    Raises DataError for JSON that is invalid or incomplete, ids of two pictures or of two categories, unknown
    categories, pictures with two entries, and files of no split beside files of splits.
    """
    chosen, other_kinds = _chosen(listing)
    if not chosen:
        if other_kinds:
            raise DataError(
                f"{listing.where(other_kinds[0][0])}: is {other_kinds[0][1]}; accepted: {coco_file.ACCEPTED}"
            )
        raise DataError(
            f"{listing.root}: no COCO file; accepted: annotations/instances_*.json beside pictures"
        )
    splits = [split_in(posixpath.basename(f)) or folder_split(f) for f in chosen]
    if None in splits and any(splits):
        raise DataError(
            f"{listing.where(chosen[splits.index(None)])}: one of {len(chosen)} files, and of no split"
            "; accepted: names with train, val or test"
        )
    notes, picture_paths = coco_file.Notes(), PicturePaths(listing)
    trees = {
        f: coco_file.read(listing.where(f), data)
        for f, data in zip(chosen, listing.read_all(chosen), strict=True)
    }
    classes = [
        name
        for file, tree in trees.items()
        for name in coco_file.classes_of(listing.where(file), tree).values()
    ]
    names, ids = outlines.numbered(listing.root, classes) if column == MASK else ([], {})
    rows: list[dict[str, Any]] = []
    homes: dict[str, str] = {}  # picture -> its entry
    for (file, tree), split in zip(trees.items(), splits, strict=True):
        where = listing.where(file)
        file_names = [coco_file.file_name(where, number, item) for number, item in enumerate(tree["images"])]
        find = picture_paths.lookup(where, posixpath.dirname(file), file_names, split)
        by_image = coco_file.annotations_of(where, tree, notes)
        for number, item in enumerate(tree["images"]):
            place = f"{where}: images[{number}]"
            path = find(file_names[number], place)
            if path in homes:
                raise DataError(f"{place}: {path!r} stands in {homes[path]}, too; accepted: once")
            homes[path] = f"{file}: images[{number}]"
            width, height = stated_side(item.get("width")), stated_side(item.get("height"))
            annotations = by_image[coco_file.plain_id(item["id"])]
            value = _mask(annotations, ids, notes) if column == MASK else _objects(annotations, notes)
            rows.append({"path": path, "split": split or folder_split(path), column: value,
                         "stated_width": width, "stated_height": height})  # fmt: skip
    picture_paths.check(len(rows))
    if column == MASK and notes.no_outlines and not notes.num_outlines:
        raise DataError(
            f"{notes.no_outlines[0]}: no segmentation, as no object; accepted: outlines for masks"
        )
    no_entry, num_masks = unlabelled(listing, homes, "entry in a COCO file")
    findings = [*notes.findings(), *picture_paths.findings(), *no_entry]
    ignored = dict(notes.ignored + Counter(num_masks))
    class_names = {MASK: names} if column == MASK else {}
    return Index(table(rows, column), names=class_names, ignored=ignored, findings=findings)


# ---- labels


def _objects(annotations: Sequence[coco_file.Object], notes: coco_file.Notes) -> dict[str, Any]:
    boxes, crowds = [], []
    for item in annotations:
        box = item.box
        if item.outline is not None and (box is None or min(box[2:]) == 0):
            box = _around(item)
            notes.from_outlines.append(f"{item.here}: {item.name}")
        if box is None:
            notes.ignored["objects of no pixel"] += 1
            continue
        boxes.append((item.name, box))
        crowds.append(item.crowd)
    return objects(boxes, iscrowd=crowds)


def _around(item: coco_file.Object) -> list[float] | None:
    if isinstance(item.outline, dict):
        try:
            return outlines.around_runs(item.outline["size"], item.outline["counts"])
        except (ValueError, TypeError) as error:
            raise DataError(f"{item.here}: segmentation: {error}; accepted: COCO's RLE") from None
    return outlines.around(*(item.outline or []))


def _mask(
    annotations: Sequence[coco_file.Object], ids: Mapping[str, int], notes: coco_file.Notes
) -> dict[str, Any]:
    shapes: list[dict[str, Any]] = []
    for item in annotations:
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
            relative = all(0 <= value <= 1 for polygon in outline for value in polygon)
            shapes.append({"id": id_, "polygons": outline} | ({"relative": True} if relative else {}))
    return outlines.mask(shapes)
