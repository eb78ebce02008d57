"""Data sets of Hugging Face with the pictures inside: a ``save_to_disk`` folder, or Parquet files.

`tlray.data.dataset` opens them; here their label columns become an index. Numbers of type ClassLabel become
class names; -1 and null mean no label, and a split without any label is left out.
`tlray.ingestion.writer.read` reads the pictures by their rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from tlray import storage
from tlray.data import schema, shards
from tlray.data.dataset import Dataset
from tlray.data.layout import MANIFEST
from tlray.data.schema import ID, IMAGE, LABEL, LABELS, OBJECTS, SPLIT, SPLITS
from tlray.errors import DataError, StorageError
from tlray.ingestion.findings import Finding, finding
from tlray.ingestion.formats.base import Index, Look, table
from tlray.ingestion.formats.listing import Listing
from tlray.ingestion.formats.tabular import cells, labels, records, roles
from tlray.ingestion.formats.tabular.rows import Row, index_rows, with_class_names, without_missing

GIVES: tuple[str, ...] = (LABEL, LABELS, OBJECTS)
_STATES = ("dataset_dict.json", "state.json")
_NO_LABEL = -1  # what Hugging Face writes where the labels are hidden


def look(listing: Listing) -> Look | None:
    """Arrow files with their state, or Parquet files that hold pictures."""
    if not listing.named and MANIFEST in listing:
        files = listing.labels(".parquet", ".json")
        root = storage.absolute(listing.root)
        return Look(
            f"{MANIFEST} of tlray ingest", files, files,
            f"it is a data set already; accepted: data.uri={root} in a training, or another SRC",
        )  # fmt: skip
    arrow = listing.labels(".arrow")
    states = [path for path in listing.files if path.rpartition("/")[2] in (*_STATES, "dataset_info.json")]
    if arrow and (listing.named or any(state in listing for state in _STATES)):
        return Look(f"{len(arrow)} .arrow of save_to_disk", arrow, [*arrow, *states])
    if arrow and not listing.pictures:
        lacks = "dataset_dict.json or state.json is not there; accepted: the folder that save_to_disk made"
        return Look(f"{len(arrow)} .arrow files", arrow, arrow, lacks)
    parquet = listing.labels(".parquet")
    if parquet and _holds_pictures(listing, parquet[0]):
        return Look(f"{len(parquet)} .parquet with pictures inside", parquet, [*parquet, *states])
    return None


def _holds_pictures(listing: Listing, path: str) -> bool:
    place = listing.where(path)
    try:
        with storage.faults(place):
            return records.embeds_pictures(shards.Parquet(place).schema)
    except (pa.ArrowException, StorageError):
        return False


def index(listing: Listing, column: str) -> Index:
    """Table of (path, split, source, and what there is of label, labels and objects).

    Raises DataError for numbers beyond the class names, columns of doubtful meaning, no labels at all.
    """
    if not listing.named and MANIFEST in listing:
        root = storage.absolute(listing.root)
        raise DataError(f"{root}: is a data set already; accepted: data.uri={root}, or another SRC")
    data = Dataset.open(listing.where(listing.named) if listing.named else listing.root)
    notes: list[Finding] = []
    splits = _known_splits(data, notes)
    columns, places, names = _columns(data, splits)
    try:
        chosen = roles.labels(columns)
    except roles.UnclearColumns as reason:
        raise DataError(f"{data.uri}: {reason}") from None
    unused = [name for name in columns if name not in chosen.columns]
    notes += finding("info", "unused_column", unused, "{n} columns are not used")
    read = labels.read(listing, chosen, columns, places, notes)
    rows = []
    for (split, number), label in zip(places, read, strict=True):
        if label.missing and chosen.column in names:
            label = replace(label, text=str(_NO_LABEL))
        digits = len(str(data.num_rows(split)))
        known_split = split if split in SPLITS.values() else None
        rows.append(Row(f"{split}/{number:0{digits}d}", known_split, label, split, number))
    rows = without_missing(listing, rows, notes)
    if not rows:
        raise DataError(f"{data.uri} column {chosen.column!r}: holds no label in any row; accepted: labels")
    numbered, rows = with_class_names(listing, rows, listing.labels(".parquet"), notes)
    rows_of_index, label_columns = index_rows(listing, rows, column)
    for row, where in zip(rows_of_index, rows, strict=True):
        row["source"] = source(where.file, where.line, listing.named)
    names_of_column = names.get(chosen.column)
    class_names = {name: names_of_column for name in label_columns} if names_of_column else numbered
    return Index(
        table(rows_of_index, *label_columns),
        names={n: v for n, v in class_names.items() if n in label_columns},
        findings=notes,
    )


def source(split: str, number: int, path: str = "") -> str:
    """Where the bytes of a picture are: a row of the data set at ``path`` below the root."""
    return f"row:{split}:{number}:{path}"


def _known_splits(data: Dataset, notes: list[Finding]) -> list[str]:
    """The splits to read: train, validation and test, or a single split of any name."""
    known_splits = [split for split in data.splits if split in SPLITS.values()]
    other_splits = [
        f"{split}: {data.num_rows(split)} rows" for split in data.splits if split not in known_splits
    ]
    if not known_splits and len(other_splits) > 1:
        raise DataError(f"{data.uri}: splits {', '.join(data.splits)}; accepted: train, validation, test")
    notes += finding(
        "warning", "other_split", other_splits if known_splits else [],
        "{n} splits are neither train nor validation nor test (left out)",
    )  # fmt: skip
    return known_splits or data.splits


def _columns(
    data: Dataset, splits: Sequence[str]
) -> tuple[dict[str, list[Any]], list[labels.Place], dict[str, list[str]]]:
    """(columns that may hold labels, with class names; place of each row; class names by column)."""
    features = schema.features(data.schema)
    plain = [
        field.name
        for field in data.schema
        if field.name not in (IMAGE, ID, SPLIT, schema.WIDTH, schema.HEIGHT) and records.is_plain(field.type)
    ]
    if not plain:
        raise DataError(f"{data.uri}: no column beside {IMAGE}; accepted: {roles.LABELS_ACCEPTED}")
    columns: dict[str, list[Any]] = {name: [] for name in plain}
    places: list[labels.Place] = []
    names = {name: class_names for name in plain if (class_names := _class_names(features.get(name)))}
    for split in splits:
        table = data.read(split, plain)
        for name in plain:
            values = table[name].to_pylist()
            if name in names:
                values = [
                    _named(value, names[name], f"{data.uri} {split} row {row} column {name!r}")
                    for row, value in enumerate(values)
                ]
            columns[name] += values
        places += [(split, row) for row in range(table.num_rows)]
    return columns, places, names


def _class_names(feature: Any) -> list[str]:
    """Class names of a column, or of the lists in it; empty where it has none."""
    if isinstance(feature, list):
        return _class_names(feature[0]) if feature else []
    if not isinstance(feature, Mapping):
        return []
    names = feature.get("names")
    if isinstance(names, list):
        return [str(name) for name in names]
    inner_features = [feature.get(key) for key in ("feature", "category", "categories", "label", "labels")]
    return next((class_names for part in inner_features if (class_names := _class_names(part))), [])


def _named(value: Any, names: Sequence[str], where: str) -> Any:
    """A value with class names in place of numbers, at any depth; None for -1."""
    if isinstance(value, list):
        return [_named(part, names, where) for part in value]
    if isinstance(value, dict):
        class_keys = [key for key in ("category", "categories", "label", "labels") if key in value]
        return {**value, **{key: _named(value[key], names, where) for key in class_keys[:1]}}
    if not isinstance(value, int) or isinstance(value, bool) or value == _NO_LABEL:
        return None if value == _NO_LABEL else value
    if not 0 <= value < len(names):
        raise DataError(f"{where}: {value}; accepted: 0 to {len(names) - 1}, or -1 for no label")
    return cells.text(names[value])
