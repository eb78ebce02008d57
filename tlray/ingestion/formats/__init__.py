"""Layouts of labelled pictures, one module each, found by its name: a new layout is a new file.

`find` chooses the format whose label files name most pictures of a source. No format is a default: class
folders are taken only where no label file and no name speaks against them (`tlray.ingestion.formats.folder`).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection
from types import ModuleType
from typing import cast

from tlray import storage
from tlray.errors import ConfigError, DataError, nearest
from tlray.ingestion.formats.base import Format, Look
from tlray.ingestion.formats.listing import ARCHIVES, Listing, counts_by_ending

_ALIASES = {"csv": "table"}
_CLOSE = 0.9  # a format that explains this share of what the best one explains may be meant as well


def names() -> list[str]:
    """The formats: modules of this package with ``GIVES``."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if hasattr(_module(m.name), "GIVES"))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"tlray.ingestion.formats.{name}")


def load(name: str) -> Format:
    """The format of that name. Raises ConfigError."""
    name = _ALIASES.get(name, name)
    if name not in names():
        raise ConfigError(f"--format {name}: unknown format; {nearest(name, ['auto', *names()])}")
    return cast(Format, _module(name))


def find(listing: Listing, columns: Collection[str] = ()) -> tuple[str, Look]:
    """(name of the format that explains most pictures of a listing, what it explains).

    ``columns``: label columns of which one is wanted; none = any. Raises DataError with what is there and the
    nearest layout, where no format explains it or two do.
    """
    suitable = [n for n in names() if not columns or set(load(n).GIVES) & set(columns)]
    looks = {name: look for name in suitable if (look := load(name).look(listing)) is not None}
    ready = {
        name: look
        for name, look in looks.items()
        if not look.lacks and (not columns or not look.gives or set(look.gives) & set(columns))
    }
    if any(look.labels for look in looks.values()):
        # Folders alone prove nothing where there are label files, even label files that cannot be read.
        ready = {name: look for name, look in ready.items() if look.labels}
    if not ready:
        raise DataError(_refusal(listing, looks, columns))
    ready = _without_masks_as_pictures(ready)
    most_pictures = max(len(look.pictures) for look in ready.values())
    best = [name for name, look in ready.items() if len(look.pictures) >= _CLOSE * most_pictures]
    # Any other format that explains as much is preferred to class folders (lfw/Aaron_Eckhart_0001.jpg).
    best = [name for name in best if name != "folder"] or best
    # A format that reads all label files of the others and more is meant: theirs are a special case of its
    # own.
    most_labels = max(len(ready[name].labels) for name in best)
    widest_reading = [n for n in best if all(set(ready[m].labels) <= set(ready[n].labels) for m in best)]
    if len(widest_reading) == 1 and (len(best) == 1 or most_labels > 0):
        return widest_reading[0], ready[widest_reading[0]]
    choices = " or ".join(f"{name} ({ready[name].summary})" for name in best)
    raise DataError(f"{listing.root}: may be {choices}; accepted: one of them as --format")


def _without_masks_as_pictures(ready: dict[str, Look]) -> dict[str, Look]:
    """The looks without those that take the masks of another look for pictures."""
    labels = set().union(*(look.labels for look in ready.values()))
    return {
        name: look
        for name, look in ready.items()
        if look.labels or sum(path in labels for path in look.pictures) <= (1 - _CLOSE) * len(look.pictures)
    }


def _refusal(listing: Listing, looks: dict[str, Look], columns: Collection[str]) -> str:
    """The message where no format fits: what is there, the nearest layout and what it lacks, and --format."""
    endings = counts_by_ending(listing.files)
    force = f"--format {'|'.join(name for name in names() if name != 'unsupported')}"
    if not listing.files:
        return f"{listing.root}: holds no files; accepted: labelled pictures"
    if looks:
        rejected = {name: look for name, look in looks.items() if look.lacks} or looks
        name, look = max(
            rejected.items(),
            key=lambda item: (bool(item[1].labels), len(item[1].pictures), len(item[1].labels)),
        )
        return (
            f"{listing.root}: holds {endings}; nearest layout: {name} ({look.summary}), but {look.lacks}; "
            f"another can be said by {force}"
        )
    labels = f" for {', '.join(sorted(columns))}" if columns else ""
    return (
        f"{listing.root}: holds {endings}, no layout of labelled pictures{labels} found; accepted: "
        f"{_way_out(listing)}; a layout can be said by {force}"
    )


def _way_out(listing: Listing) -> str:
    """What to do about a source without any labels."""
    archive = next((path for path in listing.files if path.lower().endswith(ARCHIVES)), None)
    if archive is not None and not listing.pictures:
        return f"the folder that {archive} unpacks to"
    if len(listing.pictures) == len(listing.files):
        name = storage.name(listing.root)
        return (
            f"label files beside the pictures or a folder for each class; where {name} is a part of a data "
            "set, the folder above"
        )
    return "label files or class folders, see README"
