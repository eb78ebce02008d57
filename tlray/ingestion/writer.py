"""Writes one shard: pictures are read from the source, perhaps shrunk, and written as Parquet. Runs in Ray's
tasks."""

from __future__ import annotations

import functools
import hashlib
import io
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tlray import storage
from tlray.data import image, masks, schema
from tlray.data.dataset import Dataset
from tlray.data.masks import MaskCode
from tlray.errors import DataError, PictureError, StorageError, about
from tlray.ingestion.formats.base import STATED
from tlray.ingestion.plan import GROUP_ROWS

GROUP_BYTES = 256 * 2**20  # encoded pictures in a row group, before any shrinking
_READERS = 8  # threads that read pictures in one task: most of the time is waiting for object storage
_KEPT_BYTES = 256 * 2**20  # row groups of a source that are kept in memory


def read(
    root: str, paths: Sequence[str], sources: Sequence[str | None] | None = None
) -> Iterator[bytes | StorageError]:
    """Pictures in order, a few at a time in memory. An error takes the place of its picture and is not
    raised.

    ``sources`` says where the bytes of a picture are, if not in the file at its path: as
    ``tar:<path>:<offset>:<length>`` in a file below the root, as ``row:<split>:<number>:<path>`` in a row of
    a data set there.
    """
    places = [source or path for source, path in zip(sources or paths, paths, strict=True)]
    if sources is not None and any(source and source.startswith("row:") for source in sources):
        yield from _read_rows(root, places)
        return
    ranges = {source for source in sources or () if source is not None}

    def read_one(place: str) -> bytes | StorageError:
        try:
            if place not in ranges:
                return storage.read_bytes(storage.join(root, place))
            path, offset, length = place.removeprefix("tar:").rsplit(":", 2)
            data = storage.read_range(storage.join(root, path), int(offset), int(length))
            if len(data) < int(length):
                return StorageError(f"{storage.join(root, path)}: ends before byte {offset} + {length}")
            return data
        except StorageError as error:
            return error

    yield from storage.in_threads(read_one, places, _READERS, 2 * _READERS)


def _read_rows(root: str, sources: Sequence[str]) -> Iterator[bytes | StorageError]:
    """Pictures in rows of data sets; each row group is read once for many rows."""
    for start in range(0, len(sources), GROUP_ROWS):
        parts = [source.split(":", 3) for source in sources[start : start + GROUP_ROWS]]
        pictures: list[bytes | StorageError] = [StorageError(f"{root}: no such row")] * len(parts)
        members_of: dict[tuple[str, str], list[int]] = {}
        for n, (_, split, _, path) in enumerate(parts):
            members_of.setdefault((storage.join(root, path), split), []).append(n)
        for (uri, split), members in members_of.items():
            try:
                of_file = _groups_of(uri).pictures(split, [int(parts[n][2]) for n in members])
            except (StorageError, DataError) as error:
                of_file = [StorageError(str(error))] * len(members)
            for n, picture in zip(members, of_file, strict=True):
                pictures[n] = picture
        yield from pictures


@functools.lru_cache(maxsize=2)
def _groups_of(uri: str) -> _Groups:
    return _Groups(uri)


class _Groups:
    """Pictures of a data set by row. The row groups read last are kept, since rows come in a random order."""

    def __init__(self, uri: str) -> None:
        self._data = Dataset.open(uri)
        self._kept: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()

    def pictures(self, split: str, rows: Sequence[int]) -> list[bytes | StorageError]:
        """The encoded pictures of these rows, in their order. Raises DataError, StorageError."""
        starts = np.concatenate([[0], np.cumsum(self._data.group_rows(split))])
        if max(rows) >= starts[-1]:
            raise StorageError(f"{self._data.uri} {split}: no row {max(rows)}; has changed, try again")
        groups = np.searchsorted(starts, rows, side="right") - 1
        encoded: list[bytes | StorageError] = [b""] * len(rows)
        for group in np.unique(groups):
            column = self._group(split, int(group))[schema.IMAGE]
            for n in np.flatnonzero(groups == group).tolist():
                value = column[int(rows[n] - starts[group])].as_py()
                data = value["bytes"] if value is not None else None
                encoded[n] = data or StorageError(f"{self._data.uri} {split} row {rows[n]}: holds no picture")
        return encoded

    def _group(self, split: str, number: int) -> pa.Table:
        key = (split, number)
        if key not in self._kept:
            self._kept[key] = self._data.read_group(split, number, [schema.IMAGE])
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(table.nbytes for table in self._kept.values()) > _KEPT_BYTES:
            self._kept.popitem(last=False)
        return self._kept[key]


def mask_files(root: str, values: Sequence[Mapping[str, Any]]) -> Iterator[list[bytes] | StorageError]:
    """The files of each mask (a value of `formats.base.MASK_TYPE`), or the first error of reading them."""
    paths_of_masks = [mask["paths"] or [] for mask in values]
    contents = read(root, [path for paths in paths_of_masks for path in paths])
    for paths in paths_of_masks:
        files = [next(contents) for _ in paths]
        faults = [file for file in files if isinstance(file, StorageError)]
        yield faults[0] if faults else [file for file in files if isinstance(file, bytes)]


def canvases(rows: pa.Table, sizes: Sequence[image.Size]) -> list[image.Size]:
    """The size on which the outlines of each picture were drawn: the stated one, else that of the picture."""
    if not {name for name, _ in STATED} <= set(rows.column_names):
        return list(sizes)
    columns = (rows[name].to_pylist() for name, _ in STATED)
    return [(w, h) if w and h else size for w, h, size in zip(*columns, sizes, strict=True)]


def write_block(
    block: pa.Table, root: str, stage: str, kinds: pa.Schema, max_side: int | None, code: MaskCode
) -> pa.Table:
    """Write the shards of a block. Errors are returned in a column, because Ray would wrap an exception."""
    written = []
    for n, name in enumerate(block["name"].to_pylist()):
        rows = pa.Table.from_struct_array(block["rows"].combine_chunks()[n].values)
        row = {"name": name, "num_rows": rows.num_rows, "sha256": "", "error": None}
        try:
            row["sha256"] = _write_shard(root, storage.join(stage, name), rows, kinds, max_side, code)
        except StorageError as error:
            row["error"] = str(error)
        written.append(row)
    kind = [("name", pa.string()), ("num_rows", pa.int64()), ("sha256", pa.string()), ("error", pa.string())]
    return pa.Table.from_pylist(written, schema=pa.schema(kind))


class _Hashing(io.RawIOBase):
    """A stream that hashes what is written to it; Parquet is written from front to back."""

    def __init__(self, sink: Any) -> None:
        self.sink, self.sha256 = sink, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.sink.write(data)
        return len(data)


def _write_shard(
    root: str, uri: str, rows: pa.Table, kinds: pa.Schema, max_side: int | None, code: MaskCode
) -> str:
    """Write one shard and return its sha256. Raises StorageError, for a changed source too."""
    fs, path = storage.open_fs(uri)
    with storage.faults(uri):
        if storage.is_local(uri):
            fs.create_dir(path.rpartition("/")[0])
        with fs.open_output_stream(path) as stream:
            sink = _Hashing(stream)
            # Encoded pictures do not get smaller, and readers fetch them as they lie.
            pictures = [name for name in (schema.IMAGE, schema.MASK) if name in kinds.names]
            packed = {name: "none" if name in pictures else "zstd" for name in kinds.names}
            packed |= {f"{name}.{part}": "none" for name in pictures for part in ("bytes", "path")}
            columns = [name for name in kinds.names if name not in (*pictures, schema.ID)]
            writer = pq.ParquetWriter(
                pa.PythonFile(sink, mode="w"),
                kinds,
                compression=packed,
                use_dictionary=columns,
                write_statistics=columns,
                version="2.6",
                data_page_version="1.0",
            )
            with writer:
                for start, stop in _groups(rows["num_bytes"].to_pylist()):
                    group = _pictures(root, rows.slice(start, stop - start), kinds, max_side, code)
                    writer.write_table(group, row_group_size=stop - start)
    return sink.sha256.hexdigest()


def _groups(num_bytes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Row groups (start, stop) of 128 rows, or fewer where pictures are so large that memory would not
    suffice."""
    start, num_held = 0, 0
    for row, size in enumerate(num_bytes):
        if row > start and (row - start == GROUP_ROWS or num_held + size > GROUP_BYTES):
            yield start, row
            start, num_held = row, 0
        num_held += size
    yield start, len(num_bytes)


def _pictures(root: str, rows: pa.Table, kinds: pa.Schema, max_side: int | None, code: MaskCode) -> pa.Table:
    """The rows of a row group with their pictures, which are read a second time and shrunk where wanted."""
    encoded, ids, sizes, ratios = [], [], [], []
    inspected = zip(*(rows[name].to_pylist() for name in ("path", "sha256", "width", "height")), strict=True)
    paths = rows["path"].to_pylist()
    sources = rows["source"].to_pylist() if "source" in rows.column_names else None
    for data, (path, sha256, width, height) in zip(read(root, paths, sources), inspected, strict=True):
        if isinstance(data, StorageError):
            raise data
        if hashlib.sha256(data).hexdigest() != sha256:
            raise StorageError(f"{storage.join(root, path)}: has changed while it was ingested; try again")
        with about(storage.join(root, path)):
            shrunk = data if max_side is None else image.shrink(data, max_side)
        encoded.append(shrunk)
        sizes.append((width, height) if shrunk is data else image.source_size(shrunk))
        ratios.append((sizes[-1][0] / width, sizes[-1][1] / height))
        ids.append(hashlib.sha256(f"{path}\0{sha256}".encode()).hexdigest()[:32])
    common = {
        schema.IMAGE: pa.StructArray.from_arrays(
            [pa.array(encoded, pa.binary()), pa.array(paths, pa.string())], names=["bytes", "path"]
        ),
        schema.ID: pa.array(ids, pa.string()),
        schema.WIDTH: pa.array([w for w, _ in sizes], pa.int32()),
        schema.HEIGHT: pa.array([h for _, h in sizes], pa.int32()),
    }
    labels = {name: rows[name] for name in kinds.names if name not in common}
    if schema.MASK in labels:
        labels[schema.MASK] = _masks(root, rows, code, sizes)
    if schema.OBJECTS in labels and set(ratios) != {(1.0, 1.0)}:
        labels[schema.OBJECTS] = pa.array(
            [
                {**row, "bbox": [[x * sx, y * sy, w * sx, h * sy] for x, y, w, h in row["bbox"]]}
                for row, (sx, sy) in zip(labels[schema.OBJECTS].to_pylist(), ratios, strict=True)
            ],
            kinds.field(schema.OBJECTS).type,
        )
    return pa.table({name: {**common, **labels}[name] for name in kinds.names}).cast(kinds)


def _masks(root: str, rows: pa.Table, code: MaskCode, sizes: Sequence[image.Size]) -> pa.Array:
    """The masks as PNG of class ids in ``sizes``; a file that is such a PNG is taken as it is."""
    values = rows[schema.MASK].to_pylist()
    full_sizes = list(zip(rows["width"].to_pylist(), rows["height"].to_pylist(), strict=True))
    turns = rows["mask_turn"].to_pylist()
    canvas_sizes = canvases(rows, full_sizes)
    encoded, paths = [], []
    for n, files in enumerate(mask_files(root, values)):
        if isinstance(files, StorageError):
            raise files
        is_one_file = len(files) == 1 and values[n]["shapes"] is None and code == masks.AS_STORED
        if is_one_file and turns[n] == 1 and masks.is_plain(files[0], sizes[n]):
            encoded.append(files[0])
        else:
            path = rows["path"][n]
            try:
                ids_HW = masks.read(files, values[n]["shapes"], code, canvas_sizes[n])
                ids_HW = masks.fitted(ids_HW, full_sizes[n], turns[n])
            except PictureError as error:
                raise StorageError(f"{path}: its mask has changed while it was ingested: {error}") from None
            encoded.append(image.encode_mask(masks.resized(ids_HW, sizes[n])))
        paths.append((values[n]["paths"] or [""])[0])
    return pa.StructArray.from_arrays(
        [pa.array(encoded, pa.binary()), pa.array(paths, pa.string())], names=["bytes", "path"]
    )
