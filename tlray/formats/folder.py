"""Class folders: ``<class>/**/picture`` or ``<split>/<class>/**/picture``.

Folders below a class folder belong to the class. Hidden files and folders are passed over. A file is
taken for a picture when its name ends like one or has no ending at all; others are counted by ending.
"""

from __future__ import annotations

import json
import posixpath
from collections import Counter

import pyarrow as pa
from pyarrow import fs as pafs

from tlray.errors import DataError
from tlray.formats import SPLITS
from tlray.image import EXTENSIONS

# Pictures that tlray cannot open: listed too, so that the report names each instead of losing them.
_OTHER_PICTURES = (".jpe", ".jfif", ".pbm", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".dng", ".cr2")
_NO_CLASS = "in no class folder"

Parts = tuple[str, ...]


def fits(fs: pafs.FileSystem, root: str) -> int:
    """1 where pictures lie in folders below ``root``."""
    files, _, _ = _walk(fs, root)
    return int(any(len(parts) > 1 for parts in files))


def index(fs: pafs.FileSystem, root: str) -> pa.Table:
    """Table of (path, split, label), sorted by path.

    Raises DataError for a folder without pictures, an empty class folder, and folders beside the splits.
    """
    files, folders, ignored = _walk(fs, root)
    splits = _splits(root, files, folders)
    depth = 1 if splits is None else 2  # folders above the picture that have a meaning
    rows = [parts for parts in files if len(parts) > depth]
    if len(rows) < len(files):
        ignored[_NO_CLASS] += len(files) - len(rows)
    if not rows:
        raise DataError(
            f"{root}: no pictures in class folders; accepted: <class>/*.jpg or <split>/<class>/*.jpg"
        )
    full = {parts[:depth] for parts in rows}
    for parts in sorted(folders):
        if len(parts) == depth and parts not in full:
            raise DataError(
                f"{posixpath.join(root, *parts)}: class folder without pictures; accepted: at least one "
                "picture, or no such folder"
            )
    table = pa.table(
        {
            "path": pa.array(["/".join(parts) for parts in rows], pa.string()),
            "split": pa.array([splits[parts[0]] if splits else None for parts in rows], pa.string()),
            "label": pa.array([parts[depth - 1] for parts in rows], pa.string()),
        }
    ).sort_by("path")
    return table.replace_schema_metadata({"ignored": json.dumps(ignored, sort_keys=True)})


def _walk(fs: pafs.FileSystem, root: str) -> tuple[list[Parts], set[Parts], Counter[str]]:
    """Candidate pictures and folders as parts below ``root``, and what was passed over."""
    try:
        found = fs.get_file_info(pafs.FileSelector(root, recursive=True))
    except (FileNotFoundError, NotADirectoryError):
        return [], set(), Counter()
    files: list[Parts] = []
    folders: set[Parts] = set()
    ignored: Counter[str] = Counter()
    start = len(root.rstrip("/")) + 1
    for info in found:
        parts = tuple(info.path[start:].strip("/").split("/"))
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue
        if info.type == pafs.FileType.Directory:
            folders.add(parts)
            continue
        folders.update(parts[:n] for n in range(1, len(parts)))  # object stores list no folders
        ending = posixpath.splitext(parts[-1])[1].lower()
        if not ending or ending in EXTENSIONS or ending in _OTHER_PICTURES:
            files.append(parts)
        else:
            ignored[ending] += 1
    return sorted(files), folders, ignored


def _splits(root: str, files: list[Parts], folders: set[Parts]) -> dict[str, str] | None:
    """Top folder -> split's name, or None where the top folders are the classes."""
    tops = {parts[0] for parts in files if len(parts) > 1}
    # A class may well be called "train": a split holds class folders, not pictures.
    deep = {parts[0] for parts in folders if len(parts) > 1}
    named = {top: SPLITS[top.lower()] for top in sorted(tops & deep) if top.lower() in SPLITS}
    if not named or ("train" not in named.values() and set(named) != tops):
        return None
    beside = sorted(tops - set(named))
    if beside:
        raise DataError(
            f"{posixpath.join(root, beside[0])}: a folder of pictures beside the splits {', '.join(named)}; "
            "accepted there: train, validation (val, valid), test"
        )
    if len(set(named.values())) < len(named):
        raise DataError(f"{root}: two folders for one split among {', '.join(named)}; accepted: one each")
    return named
