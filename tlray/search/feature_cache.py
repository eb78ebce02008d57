"""The feature cache: outputs of the frozen part of a network for every row of a split, computed once.

    CACHE/DIGEST/part-00000.arrow ...   rows in order, equally many in each part but the last; Arrow IPC files
                                        with one uncompressed record batch, a tensor column for each output
    CACHE/DIGEST/entry.json             the marker, written last: where it exists, the parts are complete
    CACHE/used/DIGEST                   when the entry was last used, in seconds since 1970, for eviction

DIGEST is that of a `Key`, so the content of an entry never changes: of two processes that write the same
entry the second drops its own. Readers map the files, so they can read on after an entry was removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import threading
import time
import weakref
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tlray import storage
from tlray.data import extensions
from tlray.errors import DataError, StorageError

FORMAT = 1  # part of every digest, so that a reader never finds files of another format
MARKER = "entry.json"
PART_BYTES = 32 * 2**20
STALE_S = 3600  # a writer that has added nothing for so long is considered dead
USED_EVERY_S = 60  # an entry is marked as used at most this often
_WIDE = 4096  # rows of so many bytes or more are converted one by one, while they are in the CPU's cache
_DIGEST = re.compile(r"[0-9a-f]{16}")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Key:
    """Everything that the outputs depend on. Equal keys mean equal outputs, up to rounding in float sums."""

    data: str  # fingerprint of the data set
    split: str
    view: str  # how pictures are rendered: JSON of preprocessing, augmentation, seed and number of the view
    backbone: str  # its settings, and the sha256 of the prefix's weights
    boundary: str  # depth, number of stages and outputs: "5 of 5, pooled", "3 of 5, 1,2,3"
    dtype: str  # of the stored values: fp32 | fp16 | bf16

    def __post_init__(self) -> None:
        assert self.dtype in _STORED, self.dtype

    @property
    def digest(self) -> str:
        """Name of the entry's folder."""
        facts = json.dumps([FORMAT, asdict(self)], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Entry:
    """An entry as `FeatureCache.ls` lists it; times in seconds since 1970."""

    digest: str
    key: Key
    rows: int
    bytes: int
    created: float
    used: float
    max_error: dict[str, float]  # of each output; see `Shards`


class FeatureCache:
    """The entries below one URI. ``limit_mb``: the most that they may take; `write` evicts older ones."""

    def __init__(self, uri: str, limit_mb: int | None = None) -> None:
        self.uri, self.limit_mb = storage.absolute(uri), limit_mb
        self._marked: dict[str, float] = {}

    def __contains__(self, key: Key) -> bool:
        """Whether there is an entry of this key. It is not read, and not marked as used."""
        return storage.exists(storage.join(self._folder(key.digest), MARKER))

    def find(self, key: Key) -> Shards | None:
        """The outputs of this key; None where there are none, or where they are damaged (with a warning).

        Marks the entry as used, where the cache can be written. An entry on S3 is downloaded once and shared
        by all readers of this process; its disk space is free again when the last of them closes it.
        """
        place, damage = self._folder(key.digest), None
        for _ in range(2):  # twice, because another process may just have replaced it
            if key not in self:
                return None
            try:
                shards = Shards(_mapped(place, key))
            except _Damaged as error:
                damage = error
            except StorageError:
                if key in self:
                    raise
            else:
                self._mark(key.digest)
                return shards
        if damage is not None:
            log.warning("%s: damaged (%s); ignored", place, damage)
        return None

    @contextlib.contextmanager
    def write(self, key: Key, num_rows: int) -> Iterator[Writer]:
        """A writer for ``num_rows`` rows; the entry is published whole when the block ends.

        An error in the block leaves nothing behind. An entry of the same key that existed before the block is
        replaced; one that another process has published meanwhile stays. Raises StorageError for fewer or
        more rows, for values that the dtype cannot hold, and for an entry larger than the cache's limit.
        """
        place = self._folder(key.digest)
        existed = key in self
        if self._is_half_removed(place):
            storage.delete(place)
        with contextlib.suppress(_Late), storage.publish(place, MARKER) as folder:
            writer = Writer(folder, place, key, num_rows, self.limit_mb)
            yield writer
            writer.finish()
            if not existed and key in self:
                raise _Late
        if self.limit_mb is not None:
            try:
                self.gc(keep={key.digest})
            except StorageError as error:  # the new entry is complete all the same
                log.warning("%s: may now take more than %d MB (%s)", self.uri, self.limit_mb, error)

    def ls(self) -> list[Entry]:
        """All entries, the longest unused first, which is the order in which `gc` evicts them."""
        entries = [entry for digest in self._digests() if (entry := self._entry(digest)) is not None]
        return sorted(entries, key=lambda entry: entry.used)

    def rm(self, digests: Sequence[str]) -> list[Entry]:
        """Remove entries by their digests, or by beginnings of digests; returns the removed entries.

        Raises StorageError, before anything is removed, where a beginning fits no entry or several.
        """
        entries = self.ls()
        chosen: dict[str, Entry] = {}
        for beginning in digests:
            fits = [entry for entry in entries if beginning and entry.digest.startswith(beginning)]
            if len(fits) != 1:
                accepted = ", ".join(sorted(e.digest for e in fits or entries)[:8]) or "nothing, it is empty"
                problem = f"{len(fits)} entries begin so" if fits else "no such entry"
                raise StorageError(f"{beginning!r}: {problem} in {self.uri}; accepted: {accepted}")
            chosen[fits[0].digest] = fits[0]
        for digest in chosen:
            self._remove(digest)
        return list(chosen.values())

    def gc(self, limit_mb: int | None = None, keep: Container[str] = ()) -> list[Entry]:
        """Remove leftovers, then the longest unused entries until the rest fits; returns the evicted entries.

        Without a limit only leftovers are removed. Entries whose digests are in ``keep`` are not evicted, but
        count.
        """
        self.sweep()
        limit_mb = self.limit_mb if limit_mb is None else limit_mb
        if limit_mb is None:
            return []
        entries = self.ls()
        excess, evicted = sum(entry.bytes for entry in entries) - limit_mb * 2**20, []
        for entry in entries:
            if excess > 0 and entry.digest not in keep:
                self._remove(entry.digest)
                evicted.append(entry)
                excess -= entry.bytes
        return evicted

    def sweep(self) -> list[str]:
        """Remove leftovers of writers that died an hour ago or earlier, and half-removed entries.

        Returns their names.
        """
        removed = storage.sweep(self.uri, MARKER, STALE_S)
        complete = set()
        for digest in self._digests():
            if self._is_half_removed(self._folder(digest)):
                self._remove(digest)
                removed.append(digest)
            else:
                complete.add(digest)
        used = storage.join(self.uri, "used")
        for digest in storage.listdir(used) if storage.is_dir(used) else []:
            if digest not in complete:
                storage.delete(storage.join(used, digest))
        return removed

    def _folder(self, digest: str) -> str:
        return storage.join(self.uri, digest)

    @staticmethod
    def _is_half_removed(place: str) -> bool:
        """Whether a removal was interrupted here.

        The order of the three checks matters: in this order none of a writer's states passes all of them.
        """
        return (
            storage.is_dir(place)
            and not storage.unfinished(place)
            and not storage.exists(storage.join(place, MARKER))
        )

    def _digests(self) -> list[str]:
        """Names of folders that are, or will be, entries; other files here are never touched."""
        if not storage.is_dir(self.uri):
            if storage.exists(self.uri):
                raise StorageError(f"{self.uri}: is a file; accepted: the folder of a feature cache")
            return []
        return [name for name in storage.listdir(self.uri) if _DIGEST.fullmatch(name)]

    def _entry(self, digest: str) -> Entry | None:
        """An entry as its marker describes it; None where it is incomplete or damaged."""
        try:
            facts = storage.read_json(storage.join(self._folder(digest), MARKER))
        except StorageError:
            return None  # it is being written or removed, or `sweep` will remove it
        try:
            used = facts["created"]
            with contextlib.suppress(StorageError):
                used = max(used, float(storage.read_json(storage.join(self.uri, "used", digest))))
            return Entry(
                digest, Key(**facts["key"]), facts["rows"], facts["bytes"], facts["created"], used,
                facts["max_error"],
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            log.warning("%s: damaged (%s); ignored", self._folder(digest), error)
            return None

    def _remove(self, digest: str) -> None:
        place = self._folder(digest)
        try:
            storage.delete(storage.join(place, MARKER))  # first, so that no one finds half an entry
            storage.delete(place)
            storage.delete(storage.join(self.uri, "used", digest))
        except StorageError:
            if storage.exists(place):  # otherwise another process has removed it at the same time
                raise

    def _mark(self, digest: str) -> None:
        """Mark an entry as used now, at most every ``USED_EVERY_S`` seconds."""
        if time.monotonic() - self._marked.get(digest, -USED_EVERY_S) < USED_EVERY_S:
            return
        self._marked[digest] = time.monotonic()
        with contextlib.suppress(StorageError):  # a read-only cache can be used all the same
            storage.write_json(storage.join(self.uri, "used", digest), time.time())


class Writer:
    """Takes the rows of an entry in order and writes them in parts."""

    def __init__(self, folder: Path, place: str, key: Key, num_rows: int, limit_mb: int | None) -> None:
        assert num_rows > 0, num_rows
        self._folder, self._place, self._key, self._limit_mb = folder, place, key, limit_mb
        # `_filled`: rows in the buffers that are not written yet.
        self._num_rows, self._rows, self._parts, self._filled = num_rows, 0, 0, 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._max_error: dict[str, float] = {}
        self._buffers: dict[str, Any] = {}

    def add(self, outputs: Mapping[str, Any]) -> None:
        """Add the next rows: float32 arrays (B, ...) with the same names and shapes in every call.

        Values are rounded to the nearest one of the stored type (ties to even; bf16 is the upper half of
        fp32).
        """
        if not self._shapes:
            self._begin(outputs)
        assert {name: x.shape[1:] for name, x in outputs.items()} == self._shapes, "other names or shapes"
        sizes = {len(x) for x in outputs.values()}
        assert len(sizes) == 1, f"{sizes} rows"
        (num,) = sizes
        if self._rows + num > self._num_rows:
            raise StorageError(f"{self._place}: more than the {self._num_rows} rows that were announced")
        stored = {name: self._encode(name, x) for name, x in outputs.items()}
        start = 0
        while start < num:
            take = min(num - start, self._part_rows - self._filled)
            for name, rows in stored.items():
                self._buffers[name][self._filled : self._filled + take] = rows[start : start + take]
            self._filled, start = self._filled + take, start + take
            if self._filled == self._part_rows:
                self._flush()
        self._rows += num
        with contextlib.suppress(OSError):
            os.utime(self._folder)  # shows `FeatureCache.sweep` that this writer is alive

    def finish(self) -> None:
        """Write the last part and the marker."""
        if self._rows != self._num_rows:
            raise StorageError(f"{self._place}: {self._rows} rows of {self._num_rows}; nothing is kept")
        if self._filled:
            self._flush()
        facts = {
            "key": asdict(self._key), "rows": self._rows, "part_rows": self._part_rows,
            "shapes": self._shapes, "max_error": self._max_error, "created": time.time(),
            "bytes": sum(file.stat().st_size for file in self._folder.iterdir()),
        }  # fmt: skip
        storage.write_json(str(self._folder / MARKER), facts)

    def _begin(self, outputs: Mapping[str, Any]) -> None:
        assert outputs, "no outputs"
        self._shapes = {name: tuple(x.shape[1:]) for name, x in outputs.items()}
        self._max_error = dict.fromkeys(outputs, 0.0)
        dtype = _STORED[self._key.dtype]
        row_bytes = sum(_size(shape) for shape in self._shapes.values()) * dtype.itemsize
        total_mb = -(-row_bytes * self._num_rows // 2**20)
        if self._limit_mb is not None and total_mb > self._limit_mb:
            raise StorageError(
                f"search.cache_mb = {self._limit_mb}: {self._num_rows} rows of {row_bytes} bytes take "
                f"{total_mb} MB; accepted: {total_mb} or more"
            )
        self._part_rows = min(self._num_rows, max(1, PART_BYTES // max(1, row_bytes)))
        self._buffers = {
            name: np.empty((self._part_rows, _size(shape)), dtype) for name, shape in self._shapes.items()
        }

    def _encode(self, name: str, outputs: Any) -> Any:
        """Rows as stored, (B, size); keeps the largest error of rounding in `max_error`."""
        assert outputs.dtype == np.float32, outputs.dtype
        x = np.ascontiguousarray(outputs).reshape(len(outputs), -1)
        kind = self._key.dtype
        if kind == "fp32" or not x.size:
            return x.astype(_STORED[kind])
        if not np.abs(x).max() <= _LARGEST[kind]:  # not "> _LARGEST", which is false for NaN
            accepted = "fp32" if kind == "bf16" else "bf16, fp32"
            raise StorageError(
                f"{name}: has values that are not finite or beyond {_LARGEST[kind]:g}, the largest of "
                f"{kind}; accepted: {accepted}"
            )
        if kind == "fp16":
            stored = x.astype(np.float16).view(np.int16)
        else:
            bits = x.view(np.uint32)
            stored = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
        error = float(np.abs(_decode(stored, kind, np.empty_like(x)) - x).max())
        self._max_error[name] = max(self._max_error[name], error)
        return stored

    def _flush(self) -> None:
        columns, fields = [], []
        for name, buffer in self._buffers.items():
            rows = buffer[: self._filled]
            if self._key.dtype == "fp16":
                rows = rows.view(np.float16)
            # A tensor column, so that other readers of the file see the shape; a scalar is a tensor of one.
            column = pa.FixedShapeTensorArray.from_numpy_ndarray(
                rows.reshape(self._filled, *(self._shapes[name] or (1,)))
            )
            columns.append(column)
            fields.append(pa.field(name, column.type, nullable=False, metadata={"dtype": self._key.dtype}))
        schema = pa.schema(fields)
        path = str(self._folder / _part(self._parts))
        with storage.faults(path), pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, schema) as file:
            file.write_batch(pa.record_batch(columns, schema=schema))
        self._parts, self._filled = self._parts + 1, 0


class Shards:
    """The rows of an entry, in files that are mapped into memory. Threads may share it.

    The files are unmapped when the last reader closes it or is deleted.
    """

    def __init__(self, mapped: _Mapped) -> None:
        facts = mapped.facts
        self._mapped: _Mapped | None = mapped
        self.num_rows: int = facts["rows"]
        self.nbytes: int = facts["bytes"]
        self.shapes: dict[str, tuple[int, ...]] = {n: tuple(shape) for n, shape in facts["shapes"].items()}
        # The largest absolute difference between values that were added and those that `gather` returns.
        self.max_error: dict[str, float] = facts["max_error"]

    def gather(self, rows: Any) -> dict[str, Any]:
        """Outputs of these rows, in this order, float32 (N, ...) each; a row may be asked for more than once.

        Only these rows are read. Raises IndexError for a number outside 0 ... num_rows - 1.
        """
        assert self._mapped is not None, "closed"
        rows = np.asarray(rows, np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < self.num_rows:
            raise IndexError(f"rows {rows.min()} ... {rows.max()}; accepted: 0 ... {self.num_rows - 1}")
        parts, offsets = np.divmod(rows, self._mapped.facts["part_rows"])
        return {
            name: self._mapped.gather(name, parts, offsets).reshape(len(rows), *shape)
            for name, shape in self.shapes.items()
        }

    def close(self) -> None:
        """Release the files; arrays gathered before stay valid."""
        self._mapped = None

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Late(Exception):
    """Another process has published the same key meanwhile."""


class _Damaged(Exception):
    """The files do not agree with the marker."""


class _Mapped:
    """The files of one entry, mapped into memory: readable even after they were removed or replaced."""

    def __init__(self, folder: Path, key: Key) -> None:
        try:
            self.facts: dict[str, Any] = json.loads((folder / MARKER).read_bytes())
            if self.facts["key"] != asdict(key):
                raise _Damaged("another key's")
            self._kind = key.dtype
            rows, part_rows = self.facts["rows"], self.facts["part_rows"]
            self._columns: dict[str, list[Any]] = {name: [] for name in self.facts["shapes"]}
            for n, start in enumerate(range(0, rows, part_rows)):
                batch = _open(str(folder / _part(n))).get_batch(0)
                if batch.num_rows != min(part_rows, rows - start):
                    raise _Damaged(f"{_part(n)}: {batch.num_rows} rows")
                for name, columns in self._columns.items():
                    columns.append(self._view(batch.column(name), self.facts["shapes"][name]))
        except (OSError, KeyError, TypeError, ValueError, DataError) as error:  # includes Arrow's errors
            raise _Damaged(f"{type(error).__name__}: {error}") from None

    def _view(self, column: Any, shape: list[int]) -> Any:
        """A column as it is in the file, not copied: (rows, size) of the stored type."""
        flat = column.storage.flatten().to_numpy(zero_copy_only=True)
        return flat.view(_STORED[self._kind]).reshape(len(column), _size(shape))

    def gather(self, name: str, parts: Any, offsets: Any) -> Any:
        """The rows at these offsets of these parts, float32 (N, size)."""
        views = self._columns[name]
        stored_type, size = views[0].dtype, views[0].shape[1]
        out = np.empty((len(parts), size), np.float32)
        if size * stored_type.itemsize >= _WIDE:
            for row, part, offset in zip(out, parts.tolist(), offsets.tolist(), strict=True):
                _decode(views[part][offset], self._kind, row)
            return out
        stored = out if stored_type == np.float32 else np.empty(out.shape, stored_type)
        if len(views) == 1:
            np.take(views[0], offsets, axis=0, out=stored, mode="clip")  # mode "raise" would copy once more
        else:
            for part in np.unique(parts):
                of_part = np.flatnonzero(parts == part)
                stored[of_part] = views[part][offsets[of_part]]
        return out if stored is out else _decode(stored, self._kind, out)


def _open(path: str) -> Any:
    return extensions.open_file(pa.memory_map(path), path, accepted=["arrow.fixed_shape_tensor"])


def _mapped(place: str, key: Key) -> _Mapped:
    """The files of an entry. Those on S3 are downloaded and mapped once in this process."""
    if storage.is_local(place):
        with storage.local_copy(place) as folder:
            return _Mapped(folder, key)
    with _sharing:  # so that two threads do not download the same entry
        version = place, storage.read_bytes(storage.join(place, MARKER))
        mapped = _shared.get(version)
        if mapped is None:
            # The files are deleted when the block ends, and readable while they are mapped; so a process that
            # is killed leaves none behind.
            with storage.local_copy(place) as folder:
                mapped = _shared[version] = _Mapped(folder, key)
        return mapped


_sharing = threading.Lock()
_shared: weakref.WeakValueDictionary[tuple[str, bytes], _Mapped] = weakref.WeakValueDictionary()

# fp16 and bf16 are handled as integers with the same bits.
_STORED: dict[str, Any] = {
    "fp32": np.dtype("<f4"), "fp16": np.dtype("<i2"), "bf16": np.dtype("<u2"),
}  # fmt: skip
_LARGEST = {"fp16": 65504.0, "bf16": float.fromhex("0x1.fep127")}


def _decode(stored: Any, kind: str, out: Any) -> Any:
    """Convert stored values to float32, in ``out``; four times as fast as numpy from fp16."""
    if kind == "fp32":
        out[...] = stored
    elif kind == "bf16":
        np.left_shift(stored, 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        # Shift exponent and mantissa to their places in fp32, keep the sign, then correct the exponent's
        # bias. There are no infinities: the writer refuses them.
        bits = out.view(np.int32)
        np.left_shift(stored, 13, out=bits, dtype=np.int32)
        np.bitwise_and(bits, np.int32(-0x70000001), out=bits)
        np.multiply(out, np.float32(2.0**112), out=out)
        # Subnormals of fp16 become subnormals of fp32 in between, which are lost where training flushes those
        # to 0 (see loop.py).
        size = stored & 0x7FFF
        small = (size > 0) & (size < 0x400)
        if small.any():
            out[small] = stored[small].view(np.float16)
    return out


def _part(number: int) -> str:
    return f"part-{number:05d}.arrow"


def _size(shape: Sequence[int]) -> int:
    """The number of values in a row."""
    return int(np.prod(shape, dtype=np.int64))
