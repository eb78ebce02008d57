"""COCO: ``instances_*.json`` (in ``annotations/`` or elsewhere) that name pictures, their boxes and classes.

The split stands in the file's name (instances_train2017.json) or in its folder's (train/_annotations.coco
.json). Where there are instances_*.json other JSON files are passed over. Boxes of crowds are left out.
"""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from tlray.errors import DataError
from tlray.formats import is_picture, objects_table, read_all, split_in, walk

_LISTS = ("images", "annotations", "categories")


def fits(fs: pafs.FileSystem, root: str) -> int:
    """3 (surer than folders and tables) where such a file lies beside or above pictures."""
    files = walk(fs, root)
    return 3 * int(bool(_annotations(fs, root, files)) and any(map(is_picture, files)))


def index(fs: pafs.FileSystem, root: str) -> pa.Table:
    """Table of (path, split, objects), sorted by path; boxes are (x, y, width, height) in px.

    Raises DataError for JSON that cannot be read or lacks something, unknown pictures and classes, two
    files without a split in their names, and pictures that stand in two.
    """
    files = walk(fs, root)
    there = set(filter(is_picture, files))
    chosen = _annotations(fs, root, files)
    splits = [split_in(posixpath.basename(f)) or split_in(posixpath.dirname(f)) for f in chosen]
    if not chosen:
        raise DataError(f"{root}: no COCO file; accepted: annotations/instances_*.json beside pictures")
    if len(chosen) > 1 and None in splits:
        raise DataError(
            f"{posixpath.join(root, chosen[splits.index(None)])}: one of {len(chosen)} files, and of no split"
            "; accepted: names with train, val or test"
        )
    rows, ignored = [], Counter[str]()
    homes: dict[str, str] = {}  # picture -> the file that names it
    contents = read_all(fs, [posixpath.join(root, file) for file in chosen])
    for file, split, data in zip(chosen, splits, contents, strict=True):
        where = posixpath.join(root, file)
        tree = _read(where, data)
        folder = _folder(file, split, [str(item.get("file_name")) for item in tree["images"]], there)
        boxes, crowds = _boxes(where, tree)
        ignored["boxes of crowds"] += crowds
        for number, item in enumerate(tree["images"]):
            path = posixpath.normpath(posixpath.join(folder, str(item["file_name"])))
            if path.startswith(("../", "/")):
                raise DataError(
                    f"{where}: images[{number}]: {item['file_name']!r}; accepted: a path below {root}"
                )
            if path in homes:
                raise DataError(
                    f"{where}: images[{number}]: {path!r} stands in {homes[path]}; accepted: once"
                )
            homes[path] = file
            rows.append((path, split, boxes[item["id"]]))
    ignored["pictures in no file"] += len(there - set(homes))
    return objects_table(rows, ignored)


def _annotations(fs: pafs.FileSystem, root: str, files: list[str]) -> list[str]:
    """The files to read, relative to ``root``."""
    found = [file for file in files if file.lower().endswith(".json")]
    instances = [file for file in found if posixpath.basename(file).startswith("instances_")]
    return instances or [file for file in found if _looks(fs, posixpath.join(root, file))]


def _looks(fs: pafs.FileSystem, path: str) -> bool:
    """Whether a JSON file begins as COCO's do, so that a gigabyte need not be read to know."""
    with fs.open_input_stream(path) as stream:
        head = stream.read(64 * 1024)
    return head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{") and any(
        f'"{name}"'.encode() in head for name in _LISTS
    )


def _read(where: str, data: bytes) -> dict[str, list[dict[str, Any]]]:
    try:
        tree = json.loads(data)
    except ValueError as error:
        place = f"line {error.lineno}, " if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{where}: {place}no valid JSON; accepted: COCO's instances") from None
    for name in _LISTS:
        part = tree.get(name) if isinstance(tree, dict) else None
        if not isinstance(part, list) or not all(isinstance(item, dict) for item in part):
            raise DataError(f"{where}: no list of objects {name!r}; accepted: {', '.join(_LISTS)}")
    for name, keys in (("images", ("id", "file_name")), ("categories", ("id", "name"))):
        for number, item in enumerate(tree[name]):
            if lacking := [key for key in keys if key not in item]:
                raise DataError(f"{where}: {name}[{number}]: no {lacking[0]!r}; accepted: {', '.join(keys)}")
            if not isinstance(item["id"], int | str):
                raise DataError(f"{where}: {name}[{number}]: id = {item['id']!r}; accepted: a number or text")
    return tree  # type: ignore[no-any-return]


def _boxes(
    where: str, tree: dict[str, list[dict[str, Any]]]
) -> tuple[dict[Any, list[tuple[str, list[float]]]], int]:
    """Objects by picture, and how many boxes are crowds'."""
    names = {item["id"]: str(item["name"]) for item in tree["categories"]}
    found: dict[Any, list[tuple[str, list[float]]]] = {item["id"]: [] for item in tree["images"]}
    crowds = 0
    for number, item in enumerate(tree["annotations"]):
        here = f"{where}: annotations[{number}]"
        if item.get("iscrowd"):
            crowds += 1
            continue
        for key, known in (("image_id", found), ("category_id", names)):
            id_ = item.get(key)
            if not isinstance(id_, int | str) or id_ not in known:
                raise DataError(f"{here}: {key} = {id_!r}; accepted: an id that the file holds")
        box = item.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
            raise DataError(f"{here}: bbox = {box!r}; accepted: x, y, width, height in px")
        found[item["image_id"]].append((names[item["category_id"]], [float(v) for v in box]))
    return found, crowds


def _folder(file: str, split: str | None, names: list[str], there: set[str]) -> str:
    """Where the pictures of a file lie: the likely folder that has most of them, looked for by a sample."""
    above = posixpath.dirname(file)
    tail = posixpath.splitext(posixpath.basename(file))[0].rpartition("_")[2]  # train2017
    likely = [above, "", *(f"{top}{end}" for top in ("", "images/") for end in (tail, split or tail))]
    likely += ["images", *sorted({posixpath.dirname(path) for path in there})]
    sample = names[:: max(1, len(names) // 100)]
    return max(
        likely, key=lambda folder: sum(posixpath.normpath(posixpath.join(folder, n)) in there for n in sample)
    )
