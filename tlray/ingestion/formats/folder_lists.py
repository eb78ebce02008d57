"""Text files that list the pictures of each split, beside class folders.

As ``meta/train.txt`` and ``meta/test.txt`` with a line for each picture, ``pie/1011328`` or
``pie/1011328.jpg``. The name of the file is that of the split.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection
from typing import NamedTuple

from tlray.errors import DataError, StorageError
from tlray.ingestion.findings import Finding, finding
from tlray.ingestion.formats.listing import HEAD, Listing, lines_of, split_in, stem
from tlray.ingestion.formats.picture_paths import PicturePaths, plain

_LOOKED_AT = 20  # lines that are read to recognize a list


class ListedSplits(NamedTuple):
    """The split of each picture that is in a list, the files of the lists, and findings about them."""

    splits: dict[str, str]
    files: list[str]
    findings: list[Finding]


def lists(listing: Listing) -> dict[str, str]:
    """Text file -> split, for files that list pictures of a split, recognized by their first lines."""
    split_of_list = {}
    for path in listing.labels(".txt"):
        split = split_in(stem(path).rpartition("/")[2])
        if split is None:
            continue
        try:
            head = listing.head_text(path)
        except StorageError:
            continue
        lines = lines_of(head) if len(listing.head(path)) < HEAD else lines_of(head)[:-1]
        names = [line for line in lines if line.strip()][:_LOOKED_AT]
        # Without the class folder in the path, a number could be anything.
        if not names or not all("/" in plain(name).strip("/") for name in names):
            continue
        lookup = PicturePaths(listing).lookup(path, posixpath.dirname(path), names)
        if all(map(lookup.several, names)):
            split_of_list[path] = split
    return split_of_list


def read(listing: Listing, pictures: Collection[str]) -> ListedSplits:
    """The splits of pictures by lists. Raises DataError for a line that names no picture or several, and for
    a picture in the lists of two splits."""
    split_of_list, splits, picture_paths, list_of = (
        lists(listing),
        dict[str, str](),
        PicturePaths(listing),
        dict[str, str](),
    )
    for path, split in split_of_list.items():
        names = lines_of(listing.text(path))
        lookup = picture_paths.lookup(path, posixpath.dirname(path), [name for name in names if name.strip()])
        for number, name in enumerate(names, 1):
            if not name.strip():
                continue
            where = f"{listing.where(path)} line {number}"
            picture = lookup(name, where)
            if splits.setdefault(picture, split) != split:
                raise DataError(
                    f"{where}: {name.strip()} stands in {list_of[picture]} too; accepted: one split"
                )
            list_of[picture] = path
    picture_paths.check(len(list_of))
    missing = [where if not name else f"{where}: {name}" for where, name in picture_paths.missing]
    notes = finding("warning", "missing_picture", missing, "{n} pictures that lists name are not there")
    if not split_of_list:
        return ListedSplits({}, [], [])
    if "train" not in split_of_list.values():
        splits = {picture: splits.get(picture, "train") for picture in pictures}
    outside = sorted(set(pictures) - splits.keys())
    notes += finding("warning", "in_no_list", outside, "{n} pictures are in no list of a split (left out)")
    return ListedSplits(
        {p: splits[p] for p in pictures if p in splits},
        list(split_of_list),
        [*picture_paths.findings(), *notes],
    )
