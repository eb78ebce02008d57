"""Splits of the rows of tables: by a column, a table's name, lists of pictures, or the pictures' folders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tlray.errors import DataError
from tlray.ingestion.findings import Finding, finding
from tlray.ingestion.formats import heuristics
from tlray.ingestion.formats.listing import Listing
from tlray.ingestion.formats.tabular import cells, roles
from tlray.ingestion.formats.tabular.labels import Place, where
from tlray.ingestion.formats.tabular.rows import Row
from tlray.ingestion.formats.tabular.tables import Group, merged


def of_rows(
    listing: Listing, group: Group, columns: Mapping[str, Sequence[Any]], places: Sequence[Place]
) -> list[str | None]:
    """The split of each row by its column, or by the table's name."""
    if group.splits.named is not None:
        return _named(listing, group.splits.named, columns[group.splits.named], places)
    if group.splits.flags:
        return _flagged(listing, group.splits.flags, columns, places)
    return [t.split for t in group.tables for _ in t.rows.rows]


def _named(listing: Listing, name: str, values: Sequence[Any], places: Sequence[Place]) -> list[str | None]:
    """By a column of words. Raises DataError for one that is none of a split."""
    made: list[str | None] = []
    for place, text in zip(places, map(cells.text, values), strict=True):
        split = None if cells.is_missing(text) else roles.split_name(text, name)
        if split is None and not cells.is_missing(text):
            raise DataError(
                f"{where(listing, place)}: {name} = {text!r}; accepted: train, validation, test or empty"
            )
        made.append(split)
    return made


def _flagged(
    listing: Listing, flags: Mapping[str, str], columns: Mapping[str, Sequence[Any]], places: Sequence[Place]
) -> list[str | None]:
    """By columns of yes and no, each of a split. Raises DataError for a cell that is neither."""
    other = "test" if list(flags.values()) == ["train"] else "train"  # what a row is that is in none
    made: list[str | None] = [other for _ in places]
    for flag, split in flags.items():
        for n, text in enumerate(map(cells.text, columns[flag])):
            yes = cells.yes_or_no(text)
            if yes is None:
                raise DataError(f"{where(listing, places[n])}: {flag} = {text!r}; accepted: 0 or 1")
            if yes and made[n] not in (other, split):
                both = f"is of {made[n]} and {split}"
                raise DataError(f"{where(listing, places[n])}: {both}; accepted: one split")
            if yes:
                made[n] = split
    return made


def with_lists(listing: Listing, rows: list[Row], groups: Sequence[Group], notes: list[Finding]) -> list[Row]:
    """Splits by lists without labels (train.txt, val.txt), where the labelled tables give none. What is in no
    list is train where no list is of train, else left out. Raises DataError for a picture in two splits."""
    if any(row.split for row in rows):
        return rows
    known = {row.path for row in rows}
    split: dict[str, tuple[str, str]] = {}
    for group in groups:
        if group.labels is not None:
            continue
        places = [(t.file, row) for t in group.tables for row in t.rows.rows]
        pictures = [picture for t in group.tables for picture in t.pictures]
        own = of_rows(listing, group, merged(group.tables), places)
        for (file, _), picture, name in zip(places, pictures, own, strict=True):
            if name is None or picture is None or picture not in known:
                continue
            if split.setdefault(picture, (name, file))[0] != name:
                raise DataError(
                    f"{listing.where(file)}: {picture} stands in {split[picture][1]} too; accepted: one split"
                )
    if not split:
        return rows
    if "train" not in {name for name, _ in split.values()}:
        return [replace(row, split=split.get(row.path, ("train", ""))[0]) for row in rows]
    outside = [row.path for row in rows if row.path not in split]
    notes += finding("warning", "in_no_list", outside, "{n} pictures are in no list of a split (left out)")
    return [replace(row, split=split[row.path][0]) for row in rows if row.path in split]


def with_folders(rows: list[Row], notes: list[Finding]) -> list[Row]:
    """Splits by the folders that the pictures are in, where nothing else gives them."""
    if any(row.split for row in rows):
        without = [f"{row.file} row {row.line}: {row.path}" for row in rows if not row.split]
        notes += finding("warning", "no_split", without, "{n} rows name no split: taken as train")
        return rows
    folders = [heuristics.folder_split(row.path) for row in rows]
    if "train" not in folders or None in folders:
        return rows
    return [replace(row, split=split) for row, split in zip(rows, folders, strict=True)]


def without_copies(rows: list[Row], notes: list[Finding]) -> list[Row]:
    """Without tables that only repeat what those of the splits say (all.csv beside train.csv, val.csv)."""
    in_splits = {row.path for row in rows if row.split}
    whole = defaultdict(list)
    for row in rows:
        if not row.split:
            whole[row.file].append(row)
    copies = [f for f, own in whole.items() if in_splits and all(row.path in in_splits for row in own)]
    others = {row.file for row in rows if row.split}
    copies = [file for file in copies if file not in others]
    notes += finding(
        "info", "repeated_table", copies, "{n} tables only repeat those of the splits (not used)"
    )
    return [row for row in rows if row.file not in copies]
