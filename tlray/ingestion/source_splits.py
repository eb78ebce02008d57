"""The splits that a source states itself, also those in which nothing is labelled.

Such a split is never made anew from other pictures.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Collection

import pyarrow as pa

from tlray.errors import DataError
from tlray.ingestion.findings import Finding, finding
from tlray.ingestion.formats import heuristics
from tlray.ingestion.formats.base import Index, Look
from tlray.ingestion.formats.listing import LABEL_ENDINGS, Listing, stem

_ACCEPTED = "accepted: labelled pictures there, or no such split"


def stated(listing: Listing, look: Look, index: Index) -> tuple[set[str], list[Finding]]:
    """(splits that the source states, findings), from the rows of an index and from names.

    Raises DataError where names state a validation split and no row belongs to it: a split cut from
    train would be mistaken for that one.
    """
    splits = set(index.table["split"].to_pylist()) - {None}
    # Whoever names a single label file as the source wants no other file to be read.
    empty = {} if listing.named else _without_rows(listing, {*look.labels, *index.lists}, index.table, splits)
    if "validation" in empty:
        raise DataError(
            f"{listing.where(empty['validation'])}: is the validation split and gives no labelled picture; "
            f"{_ACCEPTED}"
        )
    text = "{n} splits give no labelled picture, and none is made in their place"
    examples = [f"{split}: {place}" for split, place in empty.items()]
    return splits | set(empty), finding("warning", "split_without_labels", examples, text)


def check_usable(source: str, splits: Collection[str], usable: pa.Table, unusable: pa.Table) -> list[Finding]:
    """Findings about stated splits that have no usable picture. Raises DataError for validation."""
    with_pictures = set(usable["split"].to_pylist())
    findings: list[Finding] = []
    for split in sorted(set(splits) - with_pictures - {"train"}):
        rows = [
            row for row in unusable.select(["path", "split", "reason"]).to_pylist() if row["split"] == split
        ]
        reasons = [f"{row['path']}: {row['reason']}" for row in rows]
        if rows and split == "validation":
            raise DataError(
                f"{source}: none of the {len(rows)} pictures of the validation split can be used, first: "
                f"{reasons[0]}; {_ACCEPTED}"
            )
        text = f"none of the {{n}} pictures of the split {split} can be used, and no other is made"
        findings += finding("warning", "split_unusable", reasons, text)
    return findings


def _without_rows(
    listing: Listing, label_files: Collection[str], table: pa.Table, splits_of_rows: Collection[str]
) -> dict[str, str]:
    """Split -> the file or folder named after it, for splits that no row belongs to.

    Only files and folders beside a train split that is read count: one of ``label_files``, or a folder with
    pictures of the table.
    """
    read = _folders_above(table["path"].to_pylist()) | set(label_files)
    siblings: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # (folder, ending) -> name -> path
    for folder in listing.folders:
        parent, name = posixpath.split(folder)
        siblings[parent, "/"][name] = folder
    for file in listing.labels(*LABEL_ENDINGS):
        parent, name = posixpath.split(file)
        siblings[parent, posixpath.splitext(name)[1].lower()][stem(name)] = file
    empty: dict[str, str] = {}
    for paths in siblings.values():
        split_of = heuristics.splits_among(paths)
        if any(split == "train" and paths[name] in read for name, split in split_of.items()):
            for name, split in split_of.items():
                if split not in splits_of_rows and split != "train":
                    empty.setdefault(split, paths[name])
    return empty


def _folders_above(paths: list[str]) -> set[str]:
    above: set[str] = set()
    for folder in {posixpath.dirname(path) for path in paths}:
        while folder and folder not in above:
            above.add(folder)
            folder = posixpath.dirname(folder)
    return above
