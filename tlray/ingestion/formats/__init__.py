"""Layouts of labelled pictures, one file each; found by the file's name, so a new layout is a new file.

`find` chooses by evidence: every format says which pictures of a listing its label files speak of, and
the one that explains most of them is read. Nothing is read by default: class folders are taken only where
no label file and no name speaks against them (`tlray.ingestion.formats.folder`).
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
_CLOSE = 0.9  # of the pictures that the best format explains: who explains as many may be meant as well


def names() -> list[str]:
    """Formats that exist: the modules here that say which labels they give."""
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
    """Name of the format that explains most of a listing, and what it explains.

    ``columns``: label columns one of which is wanted; none = any. Raises DataError, which says what was
    seen and the nearest layout, where no format explains it or two do.
    """
    suitable = [n for n in names() if not columns or set(load(n).GIVES) & set(columns)]
    looks = {name: look for name in suitable if (look := load(name).look(listing)) is not None}
    ready = {
        name: look
        for name, look in looks.items()
        if not look.lacks and (not columns or not look.gives or set(look.gives) & set(columns))
    }
    if any(look.labels for look in looks.values()):
        # Folders alone are no evidence where there are label files, be it of a form that cannot be read.
        ready = {name: look for name, look in ready.items() if look.labels}
    if not ready:
        raise DataError(_refusal(listing, looks, columns))
    ready = _without_masks_as_pictures(ready)
    most_pictures = max(len(look.pictures) for look in ready.values())
    best = [name for name, look in ready.items() if len(look.pictures) >= _CLOSE * most_pictures]
    # Folders prove nothing: whatever else explains as much is meant (lfw/Aaron_Eckhart_0001.jpg).
    best = [name for name in best if name != "folder"] or best
    # Of two that read the same label files one is a special case of the other: more files, more evidence.
    most_labels = max(len(ready[name].labels) for name in best)
    widest_reading = [n for n in best if all(set(ready[m].labels) <= set(ready[n].labels) for m in best)]
    if len(widest_reading) == 1 and (len(best) == 1 or most_labels > 0):
        return widest_reading[0], ready[widest_reading[0]]
    choices = " or ".join(f"{name} ({ready[name].summary})" for name in best)
    raise DataError(f"{listing.root}: may be {choices}; accepted: one of them as --format")


def _without_masks_as_pictures(ready: dict[str, Look]) -> dict[str, Look]:
    """Looks without label files that take many of another's for pictures are wrong: those are masks."""
    labels = set().union(*(look.labels for look in ready.values()))
    return {
        name: look
        for name, look in ready.items()
        if look.labels or sum(path in labels for path in look.pictures) <= (1 - _CLOSE) * len(look.pictures)
    }


def _refusal(listing: Listing, looks: dict[str, Look], columns: Collection[str]) -> str:
    """One line: what was seen, the nearest layout and what it lacks, and how to say a layout by force."""
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
    """What to do about a source in which nothing is a label."""
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
