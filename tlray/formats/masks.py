"""Pictures and masks of class ids: ``[<split>/]images/*`` beside ``[<split>/]masks/*.png``, or the other
way round (``images/<split>``), matched by stem. ``classes.txt`` (one name a line) names the ids."""

from __future__ import annotations

import json
import posixpath

import pyarrow as pa
from pyarrow import fs as pafs

from tlray.errors import DataError
from tlray.formats import SPLITS
from tlray.image import EXTENSIONS

_MASKS = ("masks", "annotations", "labels", "segmentations")
Key = tuple[str | None, str]  # split, stem


def fits(fs: pafs.FileSystem, root: str) -> int:
    """3 (surer than class folders and tables) where pictures have masks of the same stem."""
    pictures, masks = _walk(fs, root)
    return 3 if pictures.keys() & masks.keys() else 0


def index(fs: pafs.FileSystem, root: str) -> pa.Table:
    """Table of (path, split, mask), sorted by path; what has no partner is counted as ignored.

    Raises DataError where no picture has a mask.
    """
    pictures, masks = _walk(fs, root)
    both = sorted(pictures.keys() & masks.keys(), key=lambda key: pictures[key])
    if not both:
        raise DataError(f"{root}: no picture has a mask; accepted: images/a.jpg beside masks/a.png")
    table = pa.table(
        {
            "path": pa.array([pictures[k] for k in both], pa.string()),
            "split": pa.array([k[0] for k in both], pa.string()),
            "mask": pa.array([masks[k] for k in both], pa.string()),
        }
    )
    alone = {
        "picture without mask": len(pictures) - len(both),
        "mask without picture": len(masks) - len(both),
    }
    told = {"ignored": json.dumps({kind: n for kind, n in alone.items() if n})}
    listing = posixpath.join(root, "classes.txt")
    if fs.get_file_info(listing).type == pafs.FileType.File:
        with fs.open_input_stream(listing) as stream:
            names = [line.strip() for line in stream.read().decode().splitlines() if line.strip()]
        told["names"] = json.dumps({"mask": names})
    return table.replace_schema_metadata(told)


def _walk(fs: pafs.FileSystem, root: str) -> tuple[dict[Key, str], dict[Key, str]]:
    """Paths of pictures and of masks below ``root``, by (split, stem)."""
    pictures: dict[Key, str] = {}
    masks: dict[Key, str] = {}
    if fs.get_file_info(root).type != pafs.FileType.Directory:
        return pictures, masks
    start = len(root.rstrip("/")) + 1
    for info in fs.get_file_info(pafs.FileSelector(root, recursive=True)):
        path = info.path[start:]
        stem, ending = posixpath.splitext(path)
        parts = stem.split("/")
        folders = [part.lower() for part in parts[:-1]]
        if info.type != pafs.FileType.File or any(part.startswith(".") for part in parts):
            continue
        split = next((SPLITS[f] for f in folders if f in SPLITS), None)
        kinds = [f for f in folders if f not in SPLITS]
        if len(folders) - len(kinds) > 1 or len(kinds) != 1:
            continue
        if kinds[0] == "images" and ending.lower() in EXTENSIONS:
            pictures[split, parts[-1]] = path
        elif kinds[0] in _MASKS and ending.lower() == ".png":
            masks[split, parts[-1]] = path
    return pictures, masks
