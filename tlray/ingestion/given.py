"""Splits that a source gives, those of which nothing can be read among them: they are never made anew."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Collection

import pyarrow as pa

from tlray.errors import DataError
from tlray.ingestion.findings import Finding, finding
from tlray.ingestion.formats import evidence
from tlray.ingestion.formats.base import Index, Look
from tlray.ingestion.formats.listing import LABEL_ENDINGS, Listing, stem

_ACCEPTED = "accepted: labelled pictures there, or no such split"


def splits(listing: Listing, look: Look, index: Index) -> tuple[set[str], list[Finding]]:
    """(splits that are given, findings), known from the rows of an index and from names.

    Raises DataError where validation is given by name and no row is of it: what is made in its place would
    be taken for it.
    """
    given = set(index.table["split"].to_pylist()) - {None}
    # Who names one label file as the source leaves the others aside.
    empty = {} if listing.named else _without_rows(listing, {*look.labels, *index.lists}, index.table, given)
    if "validation" in empty:
        raise DataError(
            f"{listing.where(empty['validation'])}: is the validation split and gives no labelled picture; "
            f"{_ACCEPTED}"
        )
    text = "{n} splits give no labelled picture, and none is made in their place"
    shown = [f"{split}: {place}" for split, place in empty.items()]
    return given | set(empty), finding("warning", "split_without_labels", shown, text)


def check(source: str, given: Collection[str], good: pa.Table, bad: pa.Table) -> list[Finding]:
    """Findings of splits of which no picture is left. Raises DataError where that is validation."""
    there = set(good["split"].to_pylist())
    findings: list[Finding] = []
    for split in sorted(set(given) - there - {"train"}):
        lost = [row for row in bad.select(["path", "split", "reason"]).to_pylist() if row["split"] == split]
        shown = [f"{row['path']}: {row['reason']}" for row in lost]
        if lost and split == "validation":
            raise DataError(
                f"{source}: none of the {len(lost)} pictures of the validation split can be used, first: "
                f"{shown[0]}; {_ACCEPTED}"
            )
        text = f"none of the {{n}} pictures of the split {split} can be used, and no other is made"
        findings += finding("warning", "split_unusable", shown, text)
    return findings


def _without_rows(
    listing: Listing, files: Collection[str], table: pa.Table, there: Collection[str]
) -> dict[str, str]:
    """Split -> the folder or file that is called by it, where no row is of that split though the one of train
    beside it is read: a label file among ``files``, or a folder of pictures."""
    read = _above(table["path"].to_pylist()) | set(files)
    beside: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # name -> path, of what may be splits
    for folder in listing.folders:
        parent, name = posixpath.split(folder)
        beside[parent, "/"][name] = folder
    for file in listing.labels(*LABEL_ENDINGS):
        parent, name = posixpath.split(file)
        beside[parent, posixpath.splitext(name)[1].lower()][stem(name)] = file
    found: dict[str, str] = {}
    for members in beside.values():
        named = evidence.splits_among(members)
        if any(split == "train" and members[name] in read for name, split in named.items()):
            for name, split in named.items():
                if split not in there and split != "train":
                    found.setdefault(split, members[name])
    return found


def _above(paths: list[str]) -> set[str]:
    """The folders above these paths."""
    above: set[str] = set()
    for folder in {posixpath.dirname(path) for path in paths}:
        while folder and folder not in above:
            above.add(folder)
            folder = posixpath.dirname(folder)
    return above
