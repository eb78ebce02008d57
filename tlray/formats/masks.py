"""Pictures and masks of class ids: ``[<split>/]images/*`` beside ``[<split>/]masks/*.png``, or the other
way round (``images/<split>``), matched by stem. ``classes.txt`` (one name a line) names the ids."""

from __future__ import annotations

import json
import posixpath

import pyarrow as pa
from pyarrow import fs as pafs

from tlray.errors import DataError, PictureError
from tlray.formats import SPLITS, is_picture, read_all, text_of, walk
from tlray.image import decode_mask

_MASKS = ("masks", "annotations", "labels", "segmentations")
_SAMPLE = 4  # masks that are opened to know the layout
Key = tuple[str | None, str]  # split, stem


def fits(fs: pafs.FileSystem, root: str) -> int:
    """3 (surer than class folders and tables) where most masks have a picture of the same stem and those
    that are looked at hold ids, no colours."""
    pictures, masks = _pairs(walk(fs, root))
    both = sorted(pictures.keys() & masks.keys(), key=lambda key: masks[key])
    if not both or 2 * len(both) < len(masks):
        return 0
    some = [masks[key][0] for key in both[:: max(1, len(both) // _SAMPLE)][:_SAMPLE]]
    return 3 * any(map(_is_mask, read_all(fs, [posixpath.join(root, path) for path in some])))


def index(fs: pafs.FileSystem, root: str) -> pa.Table:
    """Table of (path, split, mask), sorted by path; what has no partner is counted as ignored.

    Raises DataError where no picture has a mask, two files have one stem, or classes.txt is no text.
    """
    files = walk(fs, root)
    pictures, masks = _pairs(files)
    for paths in (*pictures.values(), *masks.values()):
        if len(paths) > 1:
            raise DataError(f"{root}: {paths[0]} and {paths[1]}: one stem; accepted: one file of each")
    both = sorted(pictures.keys() & masks.keys(), key=lambda key: pictures[key])
    if not both:
        raise DataError(f"{root}: no picture has a mask; accepted: images/a.jpg beside masks/a.png")
    table = pa.table(
        {
            "path": pa.array([pictures[k][0] for k in both], pa.string()),
            "split": pa.array([k[0] for k in both], pa.string()),
            "mask": pa.array([masks[k][0] for k in both], pa.string()),
        }
    )
    alone = {
        "picture without mask": len(pictures) - len(both),
        "mask without picture": len(masks) - len(both),
    }
    told = {"ignored": json.dumps({kind: n for kind, n in alone.items() if n})}
    if "classes.txt" in files:
        listing = posixpath.join(root, "classes.txt")
        lines = text_of(listing, next(read_all(fs, [listing]))).splitlines()
        told["names"] = json.dumps({"mask": [line.strip() for line in lines if line.strip()]})
    return table.replace_schema_metadata(told)


def _pairs(files: list[str]) -> tuple[dict[Key, list[str]], dict[Key, list[str]]]:
    """Paths of pictures and of masks, by (split, stem)."""
    pictures: dict[Key, list[str]] = {}
    masks: dict[Key, list[str]] = {}
    for path in files:
        stem, ending = posixpath.splitext(path)
        *folders, name = stem.split("/")
        splits = [SPLITS[f.lower()] for f in folders if f.lower() in SPLITS]
        kinds = [f.lower() for f in folders if f.lower() not in SPLITS]
        if len(splits) > 1 or len(kinds) != 1:
            continue
        key = (splits[0] if splits else None, name)
        if kinds[0] == "images" and is_picture(path):
            pictures.setdefault(key, []).append(path)
        elif kinds[0] in _MASKS and ending.lower() == ".png":
            masks.setdefault(key, []).append(path)
    return pictures, masks


def _is_mask(data: bytes) -> bool:
    try:
        decode_mask(data)
    except PictureError:
        return False
    return True
