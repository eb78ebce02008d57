"""Splits of the rows of tables: by a column, the name of a table, lists of pictures, or names of folders."""

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
    """The split of each row, by a column or by the name of its table."""
    if group.splits.named is not None:
        return _named(listing, group.splits.named, columns[group.splits.named], places)
    if group.splits.flags:
        return _flagged(listing, group.splits.flags, columns, places)
    return [t.split for t in group.tables for _ in t.rows.rows]


def _named(listing: Listing, name: str, values: Sequence[Any], places: Sequence[Place]) -> list[str | None]:
    """Splits by a column of names. Raises DataError for a name that is no split."""
    splits: list[str | None] = []
    for place, text in zip(places, map(cells.text, values), strict=True):
        split = None if cells.is_missing(text) else roles.split_name(text, name)
        if split is None and not cells.is_missing(text):
            raise DataError(
                f"{where(listing, place)}: {name} = {text!r}; accepted: train, validation, test or empty"
            )
        splits.append(split)
    return splits


def _flagged(
    listing: Listing, flags: Mapping[str, str], columns: Mapping[str, Sequence[Any]], places: Sequence[Place]
) -> list[str | None]:
    """Splits by columns of yes and no, one for each split. Raises DataError for any other cell."""
    # The split of rows that are in none of them.
    default_split = "test" if list(flags.values()) == ["train"] else "train"
    splits: list[str | None] = [default_split for _ in places]
    for flag, split in flags.items():
        for n, text in enumerate(map(cells.text, columns[flag])):
            yes = cells.yes_or_no(text)
            if yes is None:
                raise DataError(f"{where(listing, places[n])}: {flag} = {text!r}; accepted: 0 or 1")
            if yes and splits[n] not in (default_split, split):
                conflict = f"is of {splits[n]} and {split}"
                raise DataError(f"{where(listing, places[n])}: {conflict}; accepted: one split")
            if yes:
                splits[n] = split
    return splits


def with_lists(listing: Listing, rows: list[Row], groups: Sequence[Group], notes: list[Finding]) -> list[Row]:
    """Splits by lists without labels (train.txt, val.txt), where the tables with labels state none.

    Pictures in no list become train where no list is of train; otherwise they are left out. Raises DataError
    for a picture in two splits.
    """
    if any(row.split for row in rows):
        return rows
    labelled = {row.path for row in rows}
    split_of: dict[str, tuple[str, str]] = {}
    for group in groups:
        if group.labels is not None:
            continue
        places = [(t.file, row) for t in group.tables for row in t.rows.rows]
        pictures = [picture for t in group.tables for picture in t.pictures]
        splits = of_rows(listing, group, merged(group.tables), places)
        for (file, _), picture, name in zip(places, pictures, splits, strict=True):
            if name is None or picture is None or picture not in labelled:
                continue
            if split_of.setdefault(picture, (name, file))[0] != name:
                raise DataError(
                    f"{listing.where(file)}: {picture} stands in {split_of[picture][1]} too; accepted: one "
                    "split"
                )
    if not split_of:
        return rows
    if "train" not in {name for name, _ in split_of.values()}:
        return [replace(row, split=split_of.get(row.path, ("train", ""))[0]) for row in rows]
    outside = [row.path for row in rows if row.path not in split_of]
    notes += finding("warning", "in_no_list", outside, "{n} pictures are in no list of a split (left out)")
    return [replace(row, split=split_of[row.path][0]) for row in rows if row.path in split_of]


def with_folders(rows: list[Row], notes: list[Finding]) -> list[Row]:
    """Splits by the names of the pictures' folders, where nothing else states them."""
    if any(row.split for row in rows):
        unsplit = [f"{row.file} row {row.line}: {row.path}" for row in rows if not row.split]
        notes += finding("warning", "no_split", unsplit, "{n} rows name no split: taken as train")
        return rows
    folders = [heuristics.folder_split(row.path) for row in rows]
    if "train" not in folders or None in folders:
        return rows
    return [replace(row, split=split) for row, split in zip(rows, folders, strict=True)]


def without_copies(rows: list[Row], notes: list[Finding]) -> list[Row]:
    """Rows without those of tables that only repeat the tables of splits (all.csv beside train.csv,
    val.csv)."""
    in_splits = {row.path for row in rows if row.split}
    tables_without_split = defaultdict(list)
    for row in rows:
        if not row.split:
            tables_without_split[row.file].append(row)
    copies = [
        f
        for f, table_rows in tables_without_split.items()
        if in_splits and all(row.path in in_splits for row in table_rows)
    ]
    tables_with_splits = {row.file for row in rows if row.split}
    copies = [file for file in copies if file not in tables_with_splits]
    notes += finding(
        "info", "repeated_table", copies, "{n} tables only repeat those of the splits (not used)"
    )
    return [row for row in rows if row.file not in copies]
