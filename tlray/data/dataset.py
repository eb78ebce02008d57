"""The data set on storage: splits, labels and rows of tlray's own shards and of Hugging Face's files.

Opened unchanged:
    dataset.json + data/<split>-*.parquet    what ingest publishes
    Parquet files                            ``to_parquet``, hub layout, split folders or a split column
    a ``save_to_disk`` folder                .arrow streams of a Dataset or DatasetDict

A *group* is what is read at once: a Parquet row group or an Arrow record batch. Groups have one global
order per split (by file name, then position), and a row's global index counts through it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray import storage
from tlray.data import extensions, shards
from tlray.data import schema as columns_of
from tlray.data.image import EXTENSIONS
from tlray.data.labels import ACCEPTED, Fault, find_fault, fits, is_hidden
from tlray.data.schema import ID, IMAGE, IMAGE_TYPE, LABEL, SPLIT, SPLITS, Kind
from tlray.errors import DataError

MANIFEST = "dataset.json"
_LAYOUTS = "a data set of `tlray ingest`, Parquet files, or a folder of datasets' save_to_disk"
_READERS = 16  # threads that read labels: object storage is all waiting
_NO_LABEL = {2**bits - 1 for bits in (7, 8, 15, 16, 31, 32, 63, 64)}  # the largest that a type holds


def split_name(name: str) -> str:
    """The name tlray gives a split: val, valid and dev are validation; an unknown one stays as it is."""
    return SPLITS.get(name.lower(), name)


@dataclass(frozen=True)
class _Group:
    """One readable piece: rows of a row group, all (``take`` None) or those at these positions."""

    file: int
    index: int
    rows: int
    take: tuple[int, ...] | None = None


class Dataset:
    """A data set at a URI; threads may share one, and only its URI is pickled. See the module's docstring."""

    def __init__(self, uri: str) -> None:
        self.uri = storage.absolute(uri)
        if storage.unfinished(self.uri):
            raise DataError(f"{uri}: is being written, or its writer died; run ingest again")
        found = _find(self.uri)
        self._manifest: dict[str, Any] = found.manifest
        self._paths = [path for _, path in found.files]
        self._sizes, self._marks = found.sizes, found.marks
        with ThreadPoolExecutor(1 if storage.is_local(self.uri) else 8) as pool:
            self._files = list(pool.map(self._open_file, self._paths))
        self._handles = shards.Handles()
        self._names, self.schema = self._common_schema()
        self._groups = self._by_split([split for split, _ in found.files])

    @classmethod
    def open(cls, uri: str) -> Dataset:
        """Find the layout and read all footers, no rows. Raises DataError, StorageError."""
        return cls(uri)

    def __reduce__(self) -> tuple[type[Dataset], tuple[str]]:
        return Dataset, (self.uri,)

    def __repr__(self) -> str:
        return f"Dataset({self.uri}: " + ", ".join(f"{s} {self.num_rows(s)}" for s in self.splits) + ")"

    # ---- what is there

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
        """Rows of a split. Raises DataError where there is no such split."""
        return sum(self.group_rows(split))

    def group_rows(self, split: str) -> list[int]:
        """Rows of each group, in global order."""
        return [group.rows for group in self._groups[self._split(split)]]

    def labels(self, column: str = LABEL) -> list[str]:
        """Class names of a label column, in label order.

        Where nobody named the classes of an integer column, the numbers that occur are their names.
        Raises DataError.
        """
        self.require([column])
        known = self._manifest.get("labels", {}).get(column) or columns_of.class_names(self.schema, column)
        if known:
            return [str(name) for name in known]
        kind = self.schema.field(column).type
        if not pa.types.is_integer(kind):
            raise DataError(
                f"{self.uri} column {column!r}: holds {kind} without class names; accepted: named classes"
            )
        seen: set[int] = set()
        for split in self.splits:
            found = pc.unique(self.read(split, [column])[column]).to_pylist()
            # What stands for "no label" is no class; `check_labels` refuses it where labels are needed.
            seen.update(value for value in found if value is not None and value >= 0)
        seen -= {value for value in _NO_LABEL if value == max(seen, default=None) and value - 1 not in seen}
        if not seen:
            raise DataError(f"{self.uri} column {column!r}: holds no label; accepted: 0, 1, ...")
        rows = sum(self.num_rows(split) for split in self.splits)
        if max(seen) >= 1000 + 10 * rows:
            raise DataError(
                f"{self.uri} column {column!r}: has label {max(seen)}, and {rows} rows; accepted: classes "
                "numbered 0, 1, ..., or class names"
            )
        return [str(number) for number in range(max(seen) + 1)]

    def check_labels(self, split: str, column: str, kind: Kind, num_classes: int) -> None:
        """Raise DataError unless every row of a split has a label of this kind.

        Reads labels alone, and only where the files' footers do not tell. Masks are pictures: nulls are
        found where a footer counts them, and their pixels are looked at when they are used.
        """
        self.require([column])
        stored, split = self.schema.field(column).type, self._split(split)
        if not fits(kind, stored):
            raise DataError(f"{self.uri} column {column!r}: holds {stored}; accepted: {ACCEPTED[kind]}")
        if not self.num_rows(split):
            raise DataError(f"{self.uri}: split {split!r} has no rows; accepted: one or more")

        def look(group: _Group) -> Fault | None:
            if self._is_sound(group, column, kind, num_classes):
                return None
            return find_fault(kind, self._values(split, group, column), num_classes)

        groups, num_threads = self._groups[split], 1 if storage.is_local(self.uri) else _READERS
        with ThreadPoolExecutor(num_threads) as pool:
            looked_at = zip(groups, pool.map(look, groups), strict=True)
            first = next(((group, fault) for group, fault in looked_at if fault is not None), None)
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
        """Raise DataError for the first row of a split without a picture, as far as footers count them."""
        split = self._split(split)
        for group in self._groups[split]:
            if self._summary(group, IMAGE).nulls:
                fault = find_fault("mask", self._values(split, group, IMAGE), 0)
                if fault is not None:
                    raise self._fault(group, fault._replace(accepted="an encoded picture"), IMAGE)

    def _is_sound(self, group: _Group, column: str, kind: Kind, num_classes: int) -> bool:
        """Whether a footer tells that labels are as they should be, or of masks that no more is known."""
        summary = self._summary(group, column)
        if kind == "mask":
            return not summary.nulls
        if kind not in ("class", "identity") or summary.nulls != 0 or summary.least is None:
            return False
        return bool(summary.least >= 0 and summary.greatest < num_classes)

    def _summary(self, group: _Group, column: str) -> shards.Summary:
        theirs = next(theirs for theirs, ours in self._names[group.file].items() if ours == column)
        file = self._files[group.file]
        bytes_ = ".bytes" if _is_picture(file.schema.field(theirs).type) else ""
        with shards.reading(self._place(group.file)):
            return file.summary(group.index, theirs + bytes_)

    def _values(self, split: str, group: _Group, column: str) -> pa.Array:
        """A column of one group."""
        return self._read(split, group, 0, [column])[column].combine_chunks()

    def _fault(self, group: _Group, fault: Fault, column: str) -> DataError:
        """Name file, row and column; rows are counted from 0."""
        row = fault.row if group.take is None else group.take[fault.row]
        row += sum(self._files[group.file].rows[: group.index])
        theirs = next(theirs for theirs, ours in self._names[group.file].items() if ours == column)
        return DataError(
            f"{self._place(group.file)} row {row} column {theirs + fault.part!r}: {fault.value}; accepted: "
            f"{fault.accepted}"
        )

    def require(self, columns: Iterable[str]) -> None:
        """Raise DataError naming the first of these columns that is not there in every file."""
        for column in columns:
            if column in self.schema.names:
                continue
            without = [p for p, n in zip(self._paths, self._names, strict=True) if column not in n.values()]
            where = f" in {without[0]}" if 0 < len(without) < len(self._paths) else ""
            there = ", ".join(self.schema.names)
            raise DataError(f"{self.uri}: no column {column!r}{where}; there: {there}")

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 hex of the content: ingest's own, else over paths, sizes and footers (no rows are read)."""
        if "fingerprint" in self._manifest:
            return str(self._manifest["fingerprint"])
        digest = hashlib.sha256(json.dumps(self._marks).encode())
        for path, size, file in zip(self._paths, self._sizes, self._files, strict=True):
            digest.update(json.dumps([path, size, file.facts()], sort_keys=True, default=str).encode())
        return digest.hexdigest()

    # ---- rows

    def read_group(self, split: str, i: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Group ``i`` of a split; columns: all by default. Columns have the types of ``schema``."""
        split = self._split(split)
        group = self._groups[split][i]
        return self._read(split, group, sum(g.rows for g in self._groups[split][:i]), columns)

    def read(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Columns of a whole split in global order; by default all but the pictures."""
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
        at = np.asarray(indices, dtype=np.int64)
        if at.size == 0:
            return pa.schema([self.schema.field(n) for n in columns or self.schema.names]).empty_table()
        if at.min() < 0 or at.max() >= starts[-1]:
            worst = at.min() if at.min() < 0 else at.max()
            raise DataError(f"{self.uri} {split}: row {worst}; accepted: 0 to {starts[-1] - 1}")
        group_of = np.searchsorted(starts, at, side="right") - 1
        tables, order = [], []
        for g in np.unique(group_of):
            mine = np.flatnonzero(group_of == g)
            tables.append(self.read_group(split, int(g), columns).take(pa.array(at[mine] - starts[g])))
            order.append(mine)
        return pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(order))))

    def _read(self, split: str, group: _Group, start: int, columns: Sequence[str] | None) -> pa.Table:
        """Rows of one group, whose first has global index ``start``."""
        wanted = list(columns) if columns is not None else list(self.schema.names)
        self.require(wanted)
        own = self._names[group.file]  # name in the file -> name here
        stored = [theirs for theirs, ours in own.items() if ours in wanted]
        with shards.reading(self._place(group.file)):
            table = self._handles.read(self._files[group.file], group.index, stored)
        if group.take is not None:
            table = table.take(pa.array(group.take, pa.int64()))
        table = table.rename_columns([own[name] for name in table.column_names])
        made: dict[str, Callable[[], Any]] = {
            ID: lambda: pa.array([f"{split}-{i}" for i in range(start, start + group.rows)]),
            SPLIT: lambda: pa.array([split] * group.rows, pa.string()),
        }
        arrays = [
            _cast(table[name], self.schema.field(name)) if name in table.column_names else made[name]()
            for name in wanted
        ]
        fields = [self.schema.field(name) for name in wanted]
        if IMAGE in wanted:
            self._check_bytes(group, arrays[wanted.index(IMAGE)])
        return pa.table(arrays, pa.schema(fields, metadata=self.schema.metadata))

    def _check_bytes(self, group: _Group, image: Any) -> None:
        held = pc.struct_field(image, "bytes")
        if (
            group.rows
            and held.null_count == group.rows
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
        """Names of each file's columns here, and the schema of what all files have, id and split added."""
        own, first, first_path = bool(self._manifest), self._files[0].schema, self._paths[0]
        names = [_names(first, storage.join(self.uri, first_path), own)]
        for file, path in zip(self._files[1:], self._paths[1:], strict=True):
            if file.schema.equals(first, check_metadata=True):
                names.append(names[0])
                continue
            names.append(_names(file.schema, storage.join(self.uri, path), own))
            self._check_same(first, file.schema, path)
        features = columns_of.features(first)
        fields: dict[str, pa.Field] = {}
        meaning: dict[str, Any] = {}
        for theirs, ours in names[0].items():
            if all(ours in other.values() for other in names):
                fields[ours] = pa.field(ours, IMAGE_TYPE if ours == IMAGE else self._type(theirs))
                if theirs in features:
                    meaning[ours] = features[theirs]
        for made in (SPLIT, ID):
            if made not in fields:
                fields[made] = pa.field(made, pa.string())
                meaning[made] = {"dtype": "string", "_type": "Value"}
        metadata = {"huggingface": json.dumps({"info": {"features": meaning}})}
        return names, pa.schema(list(fields.values()), metadata=metadata)

    def _type(self, column: str) -> pa.DataType:
        """The type of a column, by the first file that has more than nulls in it."""
        held = [file.schema.field(column).type for file in self._files if column in file.schema.names]
        return _plain(next((kind for kind in held if not pa.types.is_null(kind)), held[0]))

    def _check_same(self, first: pa.Schema, other: pa.Schema, path: str) -> None:
        """What two files both have must mean the same."""
        for column in set(first.names) & set(other.names):
            place, there = f"{self.uri}/{path}: column {column!r}", other.field(column).type
            here, is_image = first.field(column).type, _is_picture(other.field(column).type)
            empty = pa.types.is_null(there) or pa.types.is_null(here)
            if _plain(there) != _plain(here) and not is_image and not empty:
                raise DataError(f"{place} holds {there}, but {here} in {self._paths[0]}; accepted: one type")
            if columns_of.class_names(first, column) != columns_of.class_names(other, column):
                raise DataError(f"{place} has other class names than in {self._paths[0]}; accepted: the same")

    def _by_split(self, splits: Sequence[str | None]) -> dict[str, list[_Group]]:
        """Groups of each split; where the layout names none, the split column does, else all is train."""
        found: dict[str, list[_Group]] = defaultdict(list)
        for number, (split, file) in enumerate(zip(splits, self._files, strict=True)):
            theirs = next((t for t, ours in self._names[number].items() if ours == SPLIT), None)
            for index, rows in enumerate(file.rows):
                if split is not None or theirs is None:
                    found[split or "train"].append(_Group(number, index, rows))
                    continue
                with shards.reading(self._place(number)):
                    values = self._handles.read(file, index, [theirs])[theirs].to_pylist()
                positions: dict[str, list[int]] = defaultdict(list)
                for i, value in enumerate(values):
                    positions[str(value or "train")].append(i)
                for value, at in positions.items():
                    found[value].append(
                        _Group(number, index, len(at), None if len(at) == rows else tuple(at))
                    )
            if split is not None and not file.rows:
                found[split] += []
        ours = [split_name(name) for name in found]
        if len(set(ours)) < len(ours):  # both val and dev, say: they are two splits, by their own names
            return dict(found)
        return {split_name(name): groups for name, groups in found.items()}


# ---- layouts


@dataclass(frozen=True)
class _Found:
    files: list[tuple[str | None, str]]  # (split or None, path relative to the URI)
    sizes: list[int]
    manifest: dict[str, Any]
    marks: list[str]  # what `datasets` calls the content it saved: Arrow streams have no footers to tell


def _find(uri: str) -> _Found:
    """The files of a data set and their splits, in global order."""
    sizes = {f.path: f.size for f in storage.walk(uri)}
    manifest: dict[str, Any] = {}
    marks: list[str] = []
    files: list[tuple[str | None, str]]
    if MANIFEST in sizes:
        manifest = storage.read_json(storage.join(uri, MANIFEST))
        shards = [p for p in manifest.get("files", sizes) if p.endswith(".parquet")]
        for path in shards:
            if path not in sizes:
                raise DataError(f"{uri}/{path}: missing, though {MANIFEST} lists it")
        files = [(_split_of(path), path) for path in sorted(shards)]
    elif "dataset_dict.json" in sizes:
        names = storage.read_json(storage.join(uri, "dataset_dict.json")).get("splits", [])
        states = {name: storage.read_json(storage.join(uri, name, "state.json")) for name in names}
        files = [(name, f"{name}/{path}") for name in names for path in _saved(states[name])]
        marks = [str(states[name].get("_fingerprint")) for name in names]
    elif "state.json" in sizes:
        state = storage.read_json(storage.join(uri, "state.json"))
        files = [(state.get("_split"), path) for path in _saved(state)]
        marks = [str(state.get("_fingerprint"))]
    elif list(sizes) == [""]:
        files = [(_split_of(storage.name(uri)), "")] if uri.endswith((".parquet", ".arrow")) else []
    else:
        files = [(_split_of(path), path) for path in sorted(sizes) if path.endswith(".parquet")]
    if not files:
        if any(path.lower().endswith(EXTENSIONS) for path in sizes):
            raise DataError(f"{uri}: holds pictures, no data set; run `tlray ingest` on it first")
        there = ", ".join(sorted({p.split("/")[0] for p in sizes})[:5]) or "nothing"
        raise DataError(f"{uri}: no data set; accepted: {_LAYOUTS}; there: {there}")
    return _Found(files, [sizes.get(path, 0) for _, path in files], manifest, marks)


def _saved(state: dict[str, Any]) -> list[str]:
    """The files of one ``save_to_disk`` folder, in their order."""
    return [str(entry["filename"]) for entry in state.get("_data_files", [])]


def _split_of(path: str) -> str | None:
    """The split that a path names: ``train-00000-of-00002.parquet``, ``train/x.parquet``, ``val.parquet``."""
    stem = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    sharded = re.fullmatch(r"(\w[\w.-]*?)-\d{5}-of-\d{5}(-\w+)?", stem)
    if sharded:
        return sharded[1]
    parts = [*path.split("/")[:-1][::-1], stem]
    for part in [stem, *parts]:
        if part.lower() in SPLITS:
            return part
    words = [
        word for part in [stem, *parts] for word in re.split(r"[-_. 0-9]+", part) if word.lower() in SPLITS
    ]
    return words[0] if words else None


def _names(schema: pa.Schema, place: str, own: bool) -> dict[str, str]:
    """Name in the file -> name here: the one picture column is the image, the one class column the label."""
    names = {name: name for name in schema.names}
    features = columns_of.features(schema)
    if IMAGE not in names:
        marked = [n for n in schema.names if (features.get(n) or {}).get("_type") == "Image"]
        pictures = marked or [f.name for f in schema if _is_picture(f.type)]
        if len(pictures) != 1:
            several = (
                f" ({', '.join(pictures)} are pictures: rename the one that is meant)" if pictures else ""
            )
            raise DataError(f"{place}: no column {IMAGE!r}{several}; there: {', '.join(schema.names)}")
        names[pictures[0]] = IMAGE
    elif not own and not _is_picture(schema.field(IMAGE).type) and not _is_bytes(schema.field(IMAGE).type):
        kind = schema.field(IMAGE).type
        raise DataError(
            f"{place} column {IMAGE!r}: holds {kind}; accepted: struct<bytes, path> or encoded bytes"
        )
    if LABEL not in names and not own:
        classes = [n for n in schema.names if (features.get(n) or {}).get("_type") == "ClassLabel"]
        plain = [n for n in ("labels",) if n in names and pa.types.is_integer(schema.field(n).type)]
        if len(classes or plain) == 1:
            names[(classes or plain)[0]] = LABEL
    return names


def _is_picture(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} == {
        "bytes",
        "path",
    }


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type under which a column is given out: other writers' large and coded text is plain text."""
    kind = extensions.plain(kind)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.string() if pa.types.is_large_string(kind) else kind


def _cast(column: Any, field: pa.Field) -> Any:
    if field.name != IMAGE or column.type == IMAGE_TYPE:
        return column if column.type == field.type else column.cast(field.type)
    chunks = []
    for chunk in column.chunks:
        if _is_bytes(chunk.type):
            data, path = chunk.cast(pa.binary()), pa.nulls(len(chunk), pa.string())
        else:  # the fields in another order, or large
            data, path = chunk.field("bytes").cast(pa.binary()), chunk.field("path").cast(pa.string())
        chunks.append(pa.StructArray.from_arrays([data, path], fields=list(IMAGE_TYPE), mask=chunk.is_null()))
    return pa.chunked_array(chunks, IMAGE_TYPE)
