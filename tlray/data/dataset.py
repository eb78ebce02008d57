"""A data set on storage: its splits, labels and rows.

These are read as they are:
    dataset.json + data/<split>-*.parquet    what ingest publishes
    Parquet files                            ``to_parquet``, hub layout, split folders or a split column
    a ``save_to_disk`` folder                .arrow streams of a Dataset or DatasetDict

A *group* is the unit of reading: a Parquet row group or an Arrow record batch. The groups of a split are in
one global order (by file name, then position); a row's global index is its position in that order.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray import storage
from tlray.data import layout, schema, shards
from tlray.data.columns import cast, is_picture, names_of, plain_type
from tlray.data.labels import ACCEPTED, Fault, find_fault, fits, is_hidden
from tlray.data.schema import ID, IMAGE, IMAGE_TYPE, LABEL, SPLIT, SPLITS, Kind
from tlray.errors import DataError

_READERS = 16  # threads that read labels from object storage, which is mostly waiting
_NO_LABEL = {2**bits - 1 for bits in (7, 8, 15, 16, 31, 32, 63, 64)}  # largest values of integer types


def split_name(name: str) -> str:
    """tlray's name of a split: val, valid and dev are validation; unknown names are kept."""
    return SPLITS.get(name.lower(), name)


@dataclass(frozen=True)
class _Group:
    """A group of a split: all rows of a file's group, or those at the positions ``take``."""

    file: int
    index: int
    rows: int
    take: tuple[int, ...] | None = None


class Dataset:
    """A data set at a URI. Threads may share it; only the URI is pickled. See the module's docstring."""

    def __init__(self, uri: str) -> None:
        self.uri = storage.absolute(uri)
        if storage.unfinished(self.uri):
            raise DataError(f"{uri}: is being written, or its writer died; run ingest again")
        self._layout = layout.find(self.uri)
        self._manifest = self._layout.manifest
        self._paths = [path for _, path in self._layout.files]
        with ThreadPoolExecutor(1 if storage.is_local(self.uri) else 8) as pool:
            self._files = list(pool.map(self._open_file, self._paths))
        self._handles = shards.Handles()
        self._names, self.schema = self._common_schema()
        self._groups = self._by_split([split for split, _ in self._layout.files])

    @classmethod
    def open(cls, uri: str) -> Dataset:
        """Find the files and read their footers, but no rows. Raises DataError, StorageError."""
        return cls(uri)

    def __reduce__(self) -> tuple[type[Dataset], tuple[str]]:
        return Dataset, (self.uri,)

    def __repr__(self) -> str:
        return f"Dataset({self.uri}: " + ", ".join(f"{s} {self.num_rows(s)}" for s in self.splits) + ")"

    # ---- splits and labels

    @property
    def task(self) -> str | None:
        """Name of the task that ingest read the labels for; None: the data set is not of ingest."""
        name = self._manifest.get("task")
        return name if isinstance(name, str) else None

    @property
    def splits(self) -> list[str]:
        """Names of the splits: train, validation, test, then others."""
        order = ["train", "validation", "test"]
        return sorted(self._groups, key=lambda s: (order.index(s) if s in order else len(order), s))

    def num_rows(self, split: str) -> int:
        """Number of rows of a split. Raises DataError where there is no such split."""
        return sum(self.group_rows(split))

    def group_rows(self, split: str) -> list[int]:
        """Number of rows of each group, in global order."""
        return [group.rows for group in self._groups[self._split(split)]]

    def labels(self, column: str = LABEL) -> list[str]:
        """Class names of a label column, in label order.

        An integer column without class names has the numbers from 0 to its largest label as names.
        Raises DataError.
        """
        self.require([column])
        names = self._manifest.get("labels", {}).get(column) or schema.class_names(self.schema, column)
        if names:
            return [str(name) for name in names]
        kind = self.schema.field(column).type
        if not pa.types.is_integer(kind):
            raise DataError(
                f"{self.uri} column {column!r}: holds {kind} without class names; accepted: named classes"
            )
        numbers: set[int] = set()
        for split in self.splits:
            values = pc.unique(self.read(split, [column])[column]).to_pylist()
            # Nulls, negative numbers and the type's largest one mean "no label"; `check_labels` refuses them.
            numbers.update(value for value in values if value is not None and value >= 0)
        numbers -= {v for v in _NO_LABEL if v == max(numbers, default=None) and v - 1 not in numbers}
        if not numbers:
            raise DataError(f"{self.uri} column {column!r}: holds no label; accepted: 0, 1, ...")
        rows = sum(self.num_rows(split) for split in self.splits)
        if max(numbers) >= 1000 + 10 * rows:
            raise DataError(
                f"{self.uri} column {column!r}: has label {max(numbers)}, and {rows} rows; accepted: classes "
                "numbered 0, 1, ..., or class names"
            )
        return [str(number) for number in range(max(numbers) + 1)]

    def check_labels(self, split: str, column: str, kind: Kind, num_classes: int) -> None:
        """Raise DataError unless every row of a split has a label of this kind.

        Reads the labels of groups only where the files' footers do not prove them valid. Of masks only nulls
        are found, by the footers' counts; their pixels are checked when they are used.
        """
        self.require([column])
        stored, split = self.schema.field(column).type, self._split(split)
        if not fits(kind, stored):
            raise DataError(f"{self.uri} column {column!r}: holds {stored}; accepted: {ACCEPTED[kind]}")
        if not self.num_rows(split):
            raise DataError(f"{self.uri}: split {split!r} has no rows; accepted: one or more")

        def check(group: _Group) -> Fault | None:
            if self._is_valid(group, column, kind, num_classes):
                return None
            return find_fault(kind, self._values(split, group, column), num_classes)

        groups, num_threads = self._groups[split], 1 if storage.is_local(self.uri) else _READERS
        with ThreadPoolExecutor(num_threads) as pool:
            checked = zip(groups, pool.map(check, groups), strict=True)
            first = next(((group, fault) for group, fault in checked if fault is not None), None)
            pool.shutdown(cancel_futures=True)
        if first is None:
            return
        if all(is_hidden(kind, self._values(split, group, column)) for group in groups):
            raise DataError(
                f"{self.uri}: split {split!r} has no labels (column {column!r} is null or -1 in all "
                f"{self.num_rows(split)} rows); accepted: a split with labels"
            )
        raise self._fault(*first, column)

    def check_pictures(self, split: str) -> None:
        """Raise DataError for the first row without a picture, where a footer counts nulls."""
        split = self._split(split)
        for group in self._groups[split]:
            if self._summary(group, IMAGE).nulls:
                fault = find_fault("mask", self._values(split, group, IMAGE), 0)
                if fault is not None:
                    raise self._fault(group, fault._replace(accepted="an encoded picture"), IMAGE)

    def _is_valid(self, group: _Group, column: str, kind: Kind, num_classes: int) -> bool:
        """Whether a footer proves a group's labels valid; masks count as valid unless it counts nulls."""
        summary = self._summary(group, column)
        if kind == "mask":
            return not summary.nulls
        if kind not in ("class", "identity") or summary.nulls != 0 or summary.least is None:
            return False
        return bool(summary.least >= 0 and summary.greatest < num_classes)

    def _summary(self, group: _Group, column: str) -> shards.Summary:
        theirs = next(theirs for theirs, ours in self._names[group.file].items() if ours == column)
        file = self._files[group.file]
        bytes_ = ".bytes" if is_picture(file.schema.field(theirs).type) else ""
        with shards.reading(self._place(group.file)):
            return file.summary(group.index, theirs + bytes_)

    def _values(self, split: str, group: _Group, column: str) -> pa.Array:
        """A column of one group."""
        return self._read(split, group, 0, [column])[column].combine_chunks()

    def _fault(self, group: _Group, fault: Fault, column: str) -> DataError:
        """The error for a fault, with file, row (from 0) and column."""
        row = fault.row if group.take is None else group.take[fault.row]
        row += sum(self._files[group.file].rows[: group.index])
        theirs = next(theirs for theirs, ours in self._names[group.file].items() if ours == column)
        return DataError(
            f"{self._place(group.file)} row {row} column {theirs + fault.part!r}: {fault.value}; accepted: "
            f"{fault.accepted}"
        )

    def require(self, columns: Iterable[str]) -> None:
        """Raise DataError for the first of these columns that is missing in some file."""
        for column in columns:
            if column in self.schema.names:
                continue
            without = [p for p, n in zip(self._paths, self._names, strict=True) if column not in n.values()]
            where = f" in {without[0]}" if 0 < len(without) < len(self._paths) else ""
            there = ", ".join(self.schema.names)
            raise DataError(f"{self.uri}: no column {column!r}{where}; there: {there}")

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 hex: as ingest wrote it, else over paths, sizes and footers, without reading rows."""
        if "fingerprint" in self._manifest:
            return str(self._manifest["fingerprint"])
        digest = hashlib.sha256(json.dumps(self._layout.fingerprints).encode())
        for path, size, file in zip(self._paths, self._layout.sizes, self._files, strict=True):
            digest.update(json.dumps([path, size, file.facts()], sort_keys=True, default=str).encode())
        return digest.hexdigest()

    # ---- rows

    def read_group(self, split: str, i: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Group ``i`` of a split: all or some columns, with the types of ``schema``."""
        split = self._split(split)
        group = self._groups[split][i]
        return self._read(split, group, sum(g.rows for g in self._groups[split][:i]), columns)

    def read(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of a split in global order; by default all columns but the pictures."""
        split = self._split(split)
        wanted = list(columns) if columns is not None else [n for n in self.schema.names if n != IMAGE]
        self.require(wanted)
        start, tables = 0, []
        for group in self._groups[split]:
            tables.append(self._read(split, group, start, wanted))
            start += group.rows
        empty = pa.schema([self.schema.field(n) for n in wanted]).empty_table()
        return pa.concat_tables(tables) if tables else empty

    def rows(self, split: str, indices: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """The rows at these global indices, in the order asked for. Raises DataError beyond the end."""
        split = self._split(split)
        starts = np.concatenate([[0], np.cumsum(self.group_rows(split))])
        index_N = np.asarray(indices, dtype=np.int64)
        if index_N.size == 0:
            return pa.schema([self.schema.field(n) for n in columns or self.schema.names]).empty_table()
        if index_N.min() < 0 or index_N.max() >= starts[-1]:
            worst = index_N.min() if index_N.min() < 0 else index_N.max()
            raise DataError(f"{self.uri} {split}: row {worst}; accepted: 0 to {starts[-1] - 1}")
        group_N = np.searchsorted(starts, index_N, side="right") - 1
        tables, order = [], []
        for g in np.unique(group_N):
            asked = np.flatnonzero(group_N == g)
            tables.append(self.read_group(split, int(g), columns).take(pa.array(index_N[asked] - starts[g])))
            order.append(asked)
        return pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(order))))

    def _read(self, split: str, group: _Group, start: int, columns: Sequence[str] | None) -> pa.Table:
        """A group's rows; ``start``: the global index of its first row."""
        wanted = list(columns) if columns is not None else list(self.schema.names)
        self.require(wanted)
        names = self._names[group.file]  # name in the file -> name here
        stored = [theirs for theirs, ours in names.items() if ours in wanted]
        with shards.reading(self._place(group.file)):
            table = self._handles.read(self._files[group.file], group.index, stored)
        if group.take is not None:
            table = table.take(pa.array(group.take, pa.int64()))
        table = table.rename_columns([names[name] for name in table.column_names])
        generated: dict[str, Callable[[], Any]] = {
            ID: lambda: pa.array([f"{split}-{i}" for i in range(start, start + group.rows)]),
            SPLIT: lambda: pa.array([split] * group.rows, pa.string()),
        }
        arrays = [
            cast(table[name], self.schema.field(name)) if name in table.column_names else generated[name]()
            for name in wanted
        ]
        fields = [self.schema.field(name) for name in wanted]
        if IMAGE in wanted:
            self._check_bytes(group, arrays[wanted.index(IMAGE)])
        return pa.table(arrays, pa.schema(fields, metadata=self.schema.metadata))

    def _check_bytes(self, group: _Group, image: Any) -> None:
        """Raise DataError where pictures are paths without bytes."""
        if (
            group.rows
            and pc.struct_field(image, "bytes").null_count == group.rows
            and pc.struct_field(image, "path").null_count < group.rows
        ):
            raise DataError(
                f"{self.uri}/{self._paths[group.file]}: holds paths of pictures, not their bytes; accepted: "
                "embedded pictures (save with embed_external_files=True, or ingest the folder)"
            )

    # ---- opening

    def _split(self, name: str) -> str:
        if name in self._groups:
            return name
        if split_name(name) in self._groups:
            return split_name(name)
        raise DataError(f"{self.uri}: no split {name!r}; there: {', '.join(self.splits)}")

    def _place(self, file: int) -> str:
        return storage.join(self.uri, self._paths[file])

    def _open_file(self, path: str) -> shards.Shard:
        place = storage.join(self.uri, path)
        with shards.reading(place):
            return shards.ArrowStream(place) if place.endswith(".arrow") else shards.Parquet(place)

    def _common_schema(self) -> tuple[list[dict[str, str]], pa.Schema]:
        """The column names of each file, and the schema of columns that all files have, plus id and split."""
        own, first, first_path = bool(self._manifest), self._files[0].schema, self._paths[0]
        names = [names_of(first, storage.join(self.uri, first_path), own)]
        for file, path in zip(self._files[1:], self._paths[1:], strict=True):
            if file.schema.equals(first, check_metadata=True):
                names.append(names[0])
                continue
            names.append(names_of(file.schema, storage.join(self.uri, path), own))
            self._check_same(first, file.schema, path)
        features = schema.features(first)
        fields: dict[str, pa.Field] = {}
        known_features: dict[str, Any] = {}
        for theirs, ours in names[0].items():
            if all(ours in other.values() for other in names):
                fields[ours] = pa.field(ours, IMAGE_TYPE if ours == IMAGE else self._type(theirs))
                if theirs in features:
                    known_features[ours] = features[theirs]
        for name in (SPLIT, ID):
            if name not in fields:
                fields[name] = pa.field(name, pa.string())
                known_features[name] = {"dtype": "string", "_type": "Value"}
        metadata = {"huggingface": json.dumps({"info": {"features": known_features}})}
        return names, pa.schema(list(fields.values()), metadata=metadata)

    def _type(self, column: str) -> pa.DataType:
        """The type of a column in the first file where it is not of type null."""
        types = [file.schema.field(column).type for file in self._files if column in file.schema.names]
        return plain_type(next((kind for kind in types if not pa.types.is_null(kind)), types[0]))

    def _check_same(self, first: pa.Schema, other: pa.Schema, path: str) -> None:
        """Raise DataError where two files have a column of different types or class names."""
        for column in set(first.names) & set(other.names):
            place = f"{self.uri}/{path}: column {column!r}"
            kind, first_kind = other.field(column).type, first.field(column).type
            empty = pa.types.is_null(kind) or pa.types.is_null(first_kind)
            if plain_type(kind) != plain_type(first_kind) and not is_picture(kind) and not empty:
                raise DataError(
                    f"{place} holds {kind}, but {first_kind} in {self._paths[0]}; accepted: one type"
                )
            if schema.class_names(first, column) != schema.class_names(other, column):
                raise DataError(f"{place} has other class names than in {self._paths[0]}; accepted: the same")

    def _by_split(self, splits: Sequence[str | None]) -> dict[str, list[_Group]]:
        """Groups of each split: by the file's split, else by its split column, else all are train."""
        groups: dict[str, list[_Group]] = defaultdict(list)
        for number, (split, file) in enumerate(zip(splits, self._files, strict=True)):
            theirs = next((t for t, ours in self._names[number].items() if ours == SPLIT), None)
            for index, rows in enumerate(file.rows):
                if split is not None or theirs is None:
                    groups[split or "train"].append(_Group(number, index, rows))
                    continue
                with shards.reading(self._place(number)):
                    values = self._handles.read(file, index, [theirs])[theirs].to_pylist()
                positions: dict[str, list[int]] = defaultdict(list)
                for i, value in enumerate(values):
                    positions[str(value or "train")].append(i)
                for value, at in positions.items():
                    groups[value].append(
                        _Group(number, index, len(at), None if len(at) == rows else tuple(at))
                    )
            if split is not None and not file.rows:
                groups[split] += []
        if len({split_name(name) for name in groups}) < len(groups):  # val and dev, say, keep their own names
            return dict(groups)
        return {split_name(name): own for name, own in groups.items()}
