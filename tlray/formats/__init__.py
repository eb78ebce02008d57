"""On-disk layouts of labelled pictures, one file each; found by the file's name.

A format module offers ``fits(fs, root) -> int`` (how sure it is that this is its layout, 0 = not at
all) and ``index(fs, root, **options) -> pyarrow.Table`` with the columns path (relative to the folder
of the data), split (null where the layout has none) and its label columns, classes as text, sorted by
path. The table's schema metadata may carry, under ``ignored``, a JSON object of files left aside by kind.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, cast

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from tlray import schema
from tlray.errors import ConfigError, DataError, nearest
from tlray.image import EXTENSIONS

SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}  # how a split may be called -> its name
OBJECTS_TYPE = pa.struct([("bbox", pa.list_(pa.list_(pa.float64()))), ("category", pa.list_(pa.string()))])
Boxes = Sequence[tuple[str, Sequence[float]]]  # class, (x, y, width, height)


class Format(Protocol):
    """What a module in this package offers."""

    def fits(self, fs: pafs.FileSystem, root: str) -> int: ...

    def index(self, fs: pafs.FileSystem, root: str) -> pa.Table: ...


def names() -> list[str]:
    """Formats that exist."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str) -> Format:
    """The format of that name. Raises ConfigError."""
    if name not in names():
        raise ConfigError(f"format = {name!r}: unknown format; {nearest(name, ['auto', *names()])}")
    return cast(Format, importlib.import_module(f"tlray.formats.{name}"))


def find(fs: pafs.FileSystem, root: str) -> str:
    """Name of the format that fits best what lies at ``root``. Raises DataError where none or two do."""
    sure = {name: load(name).fits(fs, root) for name in names()}
    best = max(sure.values())
    found = [name for name, value in sure.items() if value == best]
    if best == 0:
        raise DataError(
            f"{root}: no layout of labelled pictures found; accepted formats: {', '.join(names())}"
        )
    if len(found) > 1:
        raise DataError(f"{root}: may be {' or '.join(found)}; accepted: one of them as --format")
    return found[0]


def objects_table(
    rows: Sequence[tuple[str, str | None, Boxes]], ignored: Mapping[str, int], relative: bool = False
) -> pa.Table:
    """Table of (path, split, objects) with its metadata, sorted by path; ``relative``: boxes in shares."""
    objects = [
        {"bbox": [box for _, box in boxes], "category": [name for name, _ in boxes]} for *_, boxes in rows
    ]
    table = pa.table(
        {
            "path": pa.array([path for path, *_ in rows], pa.string()),
            "split": pa.array([split for _, split, _ in rows], pa.string()),
            schema.OBJECTS: pa.array(objects, OBJECTS_TYPE),
        }
    )
    told = {"ignored": json.dumps({k: n for k, n in ignored.items() if n}, sort_keys=True)}
    order = pc.sort_indices(table["path"])
    return table.take(order).replace_schema_metadata(told | ({"relative_boxes": "1"} if relative else {}))


def split_in(name: str) -> str | None:
    """The split that a file's or folder's name speaks of (instances_train2017, valid), if any."""
    words = re.findall("[a-z]+", name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def walk(fs: pafs.FileSystem, root: str) -> list[str]:
    """Files below ``root``, relative to it and sorted; hidden ones are passed over."""
    try:
        found = fs.get_file_info(pafs.FileSelector(root, recursive=True))
    except (FileNotFoundError, NotADirectoryError):
        return []
    start = len(root.rstrip("/")) + 1
    paths = [info.path[start:].strip("/") for info in found if info.type == pafs.FileType.File]
    return sorted(p for p in paths if not any(x.startswith(".") or x == "__MACOSX" for x in p.split("/")))


def read_all(fs: pafs.FileSystem, paths: Sequence[str]) -> Iterator[bytes]:
    """The contents of many small files, in order; object storage is all waiting."""

    def one(path: str) -> bytes:
        with fs.open_input_stream(path) as stream:
            return bytes(stream.read())

    with ThreadPoolExecutor(16) as pool:
        yield from pool.map(one, paths)


def text_of(where: str, data: bytes) -> str:
    """A small file's text, without a byte order mark. Raises DataError where it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{where} line {line}: no text in UTF-8; accepted: UTF-8") from None


def is_picture(path: str) -> bool:
    return posixpath.splitext(path)[1].lower() in EXTENSIONS
