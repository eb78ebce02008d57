"""On-disk layouts of labelled pictures, one file each; found by the file's name.

A format module offers ``fits(fs, root) -> int`` (how sure it is that this is its layout, 0 = not at
all) and ``index(fs, root, **options) -> pyarrow.Table`` with the columns path (relative to the folder
of the data), split (null where the layout has none) and its label columns, classes as text, sorted by
path. The table's schema metadata may carry, under ``ignored``, a JSON object of files left aside by kind.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol, cast

import pyarrow as pa
from pyarrow import fs as pafs

from tlray.errors import ConfigError, DataError, nearest

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
