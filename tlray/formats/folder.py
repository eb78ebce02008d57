"""Class folders: ``<class>/**/picture`` or ``<split>/<class>/**/picture``; for faces a folder is a person.

Folders below a class folder belong to the class. This reading has no label files that prove it, so it is
taken only where nothing speaks against it: label files, words of layouts or splits as classes, folders of
pictures beside folders of masks, a single class, a class for nearly every picture.
"""

from __future__ import annotations

import posixpath
from collections import Counter

from tlray.errors import DataError
from tlray.formats import evidence
from tlray.formats.base import Index, Look, table
from tlray.formats.listing import Listing, counts_by_ending, lines_of
from tlray.schema import LABEL, SPLITS

GIVES: tuple[str, ...] = (LABEL,)
_NO_CLASS = "in no class folder"
_MANY = 0.8  # classes per picture above which folders are rather records than classes
_FEW = 12  # pictures below which that means nothing

Parts = tuple[str, ...]


def look(listing: Listing) -> Look | None:
    """Pictures in folders below the root."""
    if listing.named:
        return None
    files = _candidates(listing)
    splits = _split_folders(listing, files)
    rows = [parts for parts in files if len(parts) > (2 if splits else 1)]
    if not rows:
        return None
    classes = Counter(parts[1 if splits else 0] for parts in rows)
    summary = f"{len(rows)} pictures in {len(classes)} folders"
    return Look(
        summary, ["/".join(parts) for parts in rows], [], _against(listing, classes, len(rows), bool(splits))
    )


def _against(listing: Listing, classes: Counter[str], num_pictures: int, has_splits: bool) -> str:
    """What speaks against folders being classes, "" where nothing does."""
    layout = [name for name in classes if evidence.is_layout_word(name)]
    if layout:
        return f"{_listed(layout)} {_is(layout)} a name of layouts, not of a class"
    as_split = [name for name in classes if evidence.is_split_word(name)]
    # A train is a vehicle, too; a test among other classes may be one. Two of them are splits.
    if as_split and (len(as_split) == len(classes) or len(as_split) > 1):
        return f"{_listed(as_split)} {_is(as_split)} a name of splits, not of a class"
    labels = [path for path in evidence.label_files(listing) if not _lists_classes(listing, path, classes)]
    if labels:
        return (
            f"{counts_by_ending(labels)} ({labels[0]}) may hold the labels, which no format could read; "
            "if they are none, take them away"
        )
    masks = evidence.parallel_folders(listing)
    if masks:
        return f"pictures in {masks[1]} look like masks of those in {masks[0]}"
    if len(classes) >= _MANY * num_pictures and num_pictures >= _FEW:
        return f"{len(classes)} classes for {num_pictures} pictures is one for nearly every picture"
    return ""


def _lists_classes(listing: Listing, path: str, classes: Counter[str]) -> bool:
    """Whether a text file only lists the classes, as classes.txt beside class folders may."""
    if not path.lower().endswith((".txt", ".names", ".json", ".csv")) or len(listing.head(path)) >= 64 * 1024:
        return False
    text = listing.head(path).decode("utf-8", errors="replace")
    return all(name in text for name in classes) and len(lines_of(text)) <= 4 * len(classes) + 4


def _listed(names: list[str]) -> str:
    return " and ".join(repr(name) for name in sorted(names)[:3])


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are each"


def index(listing: Listing, column: str) -> Index:
    """Table of (path, split, label).

    Raises DataError for a folder without pictures, an empty class folder, and folders beside the splits.
    """
    files = _candidates(listing)
    splits = _split_folders(listing, files)
    depth = 2 if splits else 1  # folders above the picture that have a meaning
    if splits:
        _check_splits(listing, files, splits)
    rows = [parts for parts in files if len(parts) > depth]
    if not rows:
        raise DataError(
            f"{listing.root}: no pictures in class folders; accepted: <class>/*.jpg or <split>/<class>/*.jpg"
        )
    full = {parts[:depth] for parts in rows}
    for folder in listing.folders:
        parts = tuple(folder.split("/"))
        if len(parts) == depth and parts not in full:
            raise DataError(
                f"{listing.where(folder)}: class folder without pictures; accepted: at least one "
                "picture, or no such folder"
            )
    made = [
        {"path": "/".join(parts), "split": splits.get(parts[0]), LABEL: parts[depth - 1]} for parts in rows
    ]
    taken = set(files)
    endings = Counter(
        posixpath.splitext(path)[1].lower() for path in listing.files if tuple(path.split("/")) not in taken
    )
    return Index(table(made, LABEL), ignored=endings + Counter({_NO_CLASS: len(files) - len(rows)}))


def _candidates(listing: Listing) -> list[Parts]:
    """Files that are pictures by their ending, or may be since they have none; as parts of the path."""
    bare = [path for path in listing.files if not posixpath.splitext(path)[1] and "/" in path]
    return [tuple(path.split("/")) for path in sorted({*listing.pictures, *bare})]


def _split_folders(listing: Listing, files: list[Parts]) -> dict[str, str]:
    """Top folder -> split's name; empty where the top folders are the classes."""
    tops = {parts[0] for parts in files if len(parts) > 1}
    # A class may well be called "train": a split holds class folders, not pictures.
    deep = {folder.split("/")[0] for folder in listing.folders if "/" in folder}
    named = {top: SPLITS[top.lower()] for top in sorted(tops & deep) if top.lower() in SPLITS}
    return named if "train" in named.values() or set(named) == tops else {}


def _check_splits(listing: Listing, files: list[Parts], splits: dict[str, str]) -> None:
    beside = sorted({parts[0] for parts in files if len(parts) > 1} - set(splits))
    if beside:
        raise DataError(
            f"{listing.where(beside[0])}: a folder of pictures beside the splits {', '.join(splits)}; "
            "accepted there: train, validation (val, valid), test"
        )
    if len(set(splits.values())) < len(splits):
        raise DataError(
            f"{listing.root}: two folders for one split among {', '.join(splits)}; accepted: one each"
        )
