"""The prefix store: what a frozen part of a network gives for every row of a split, computed once.

    CACHE/DIGEST/part-00000.arrow ...   rows in order, as many in each part but the last; Arrow IPC files with
                                        one record batch, uncompressed, a tensor column for each output
    CACHE/DIGEST/entry.json             written last: whoever finds it finds the parts
    CACHE/used/DIGEST                   when it was last looked for, seconds since 1970; what eviction goes by

DIGEST is that of a `Key`, so an entry never changes its content: a second writer that comes too late drops
its own. Readers map the files and never lose them, whatever becomes of the entry meanwhile.
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

FORMAT = 1  # part of every digest: a reader never meets files that it does not know
MARKER = "entry.json"
PART_BYTES = 32 * 2**20
STALE_S = 3600  # a writer that added nothing for so long is taken for dead
USED_EVERY_S = 60
_WIDE = 4096  # bytes of a row from which rows are converted one by one, while they lie in the CPU's cache
_DIGEST = re.compile(r"[0-9a-f]{16}")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Key:
    """All that the outputs depend on. Equal keys mean equal outputs, but for the noise of float sums."""

    data: str  # fingerprint of the data set
    split: str
    view: str  # what was done to the pictures: JSON of preprocessing, augmentation, seed, number of the view
    backbone: str  # its name, settings and the sha256 of the prefix's weights
    boundary: str  # which stages' outputs: "5 pooled", "3 of 1,2,3"
    dtype: str  # as stored: fp32 | fp16 | bf16

    def __post_init__(self) -> None:
        assert self.dtype in _STORED, self.dtype

    @property
    def digest(self) -> str:
        """Name of the entry's folder."""
        facts = json.dumps([FORMAT, asdict(self)], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Entry:
    """One entry as `FeatureCache.ls` lists it; times in seconds since 1970."""

    digest: str
    key: Key
    rows: int
    bytes: int
    created: float
    used: float
    max_error: dict[str, float]  # of each output; see `Shards`


class FeatureCache:
    """Entries below one URI. ``limit_mb``: what all of them together may take, kept to by every `write`."""

    def __init__(self, uri: str, limit_mb: int | None = None) -> None:
        self.uri, self.limit_mb = storage.absolute(uri), limit_mb
        self._marked: dict[str, float] = {}

    def __contains__(self, key: Key) -> bool:
        """Whether an entry lies here; reads none of it, and marks nothing."""
        return storage.exists(storage.join(self._place(key.digest), MARKER))

    def find(self, key: Key) -> Shards | None:
        """The outputs of this key, None where they are not there, or are damaged (a warning says so).

        Marks the entry as used now, at most once a minute, where the store can be written. What lies on s3
        is copied once and shared by all who hold it in this process; the copy's space is free again when
        the last of them closes it, or with the process.
        """
        place, damage = self._place(key.digest), None
        for _ in range(2):  # the second look: it may just have been replaced
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
            log.warning("%s: damaged (%s); taken for absent", place, damage)
        return None

    @contextlib.contextmanager
    def write(self, key: Key, num_rows: int) -> Iterator[Writer]:
        """A writer to fill with ``num_rows`` rows; published whole when the block ends, or not at all.

        An error within leaves nothing. If another writer has published the same key meanwhile, that one
        stays; one that was there from the start is replaced. Raises StorageError for fewer or more rows, for
        values that the dtype cannot hold, and for an entry larger than the store's limit.
        """
        place = self._place(key.digest)
        before = key in self
        if self._is_half(place):
            storage.delete(place)
        with contextlib.suppress(_Late), storage.publish(place, MARKER) as folder:
            writer = Writer(folder, place, key, num_rows, self.limit_mb)
            yield writer
            writer.finish()
            if not before and key in self:
                raise _Late
        if self.limit_mb is not None:
            try:
                self.gc(keep={key.digest})
            except StorageError as error:  # the entry is there all the same
                log.warning("%s: may now take more than %d MB (%s)", self.uri, self.limit_mb, error)

    def ls(self) -> list[Entry]:
        """What is there, the longest unused first: in the order in which `gc` evicts."""
        found = [entry for digest in self._digests() if (entry := self._entry(digest)) is not None]
        return sorted(found, key=lambda entry: entry.used)

    def rm(self, digests: Sequence[str]) -> list[Entry]:
        """Remove entries by their digests, or beginnings that fit one only.

        Raises StorageError, before any is removed, for one that fits none or several.
        """
        there = self.ls()
        chosen: dict[str, Entry] = {}
        for wanted in digests:
            fits = [entry for entry in there if wanted and entry.digest.startswith(wanted)]
            if len(fits) != 1:
                accepted = ", ".join(sorted(e.digest for e in fits or there)[:8]) or "nothing, it is empty"
                said = f"{len(fits)} entries begin so" if fits else "no such entry"
                raise StorageError(f"{wanted!r}: {said} in {self.uri}; accepted: {accepted}")
            chosen[fits[0].digest] = fits[0]
        for digest in chosen:
            self._remove(digest)
        return list(chosen.values())

    def gc(self, limit_mb: int | None = None, keep: Container[str] = ()) -> list[Entry]:
        """Remove leftovers, then the longest unused entries until the rest fits; returns those entries.

        Without any limit only leftovers go. Digests in ``keep`` stay, and count.
        """
        self.sweep()
        limit_mb = self.limit_mb if limit_mb is None else limit_mb
        if limit_mb is None:
            return []
        there = self.ls()
        excess, gone = sum(entry.bytes for entry in there) - limit_mb * 2**20, []
        for entry in there:
            if excess > 0 and entry.digest not in keep:
                self._remove(entry.digest)
                gone.append(entry)
                excess -= entry.bytes
        return gone

    def sweep(self) -> list[str]:
        """Remove what writers left that died an hour ago or earlier, and halves of entries; returns names."""
        gone = storage.sweep(self.uri, MARKER, STALE_S)
        whole = set()
        for digest in self._digests():
            if self._is_half(self._place(digest)):
                self._remove(digest)
                gone.append(digest)
            else:
                whole.add(digest)
        used = storage.join(self.uri, "used")
        for digest in storage.listdir(used) if storage.is_dir(used) else []:
            if digest not in whole:
                storage.delete(storage.join(used, digest))
        return gone

    def _place(self, digest: str) -> str:
        return storage.join(self.uri, digest)

    @staticmethod
    def _is_half(place: str) -> bool:
        """Whether a removal died there. Asked in this order, no step of a writer looks like it."""
        return (
            storage.is_dir(place)
            and not storage.unfinished(place)
            and not storage.exists(storage.join(place, MARKER))
        )

    def _digests(self) -> list[str]:
        """Names of folders that are, or will be, entries; whatever else lies here is not ours to touch."""
        if not storage.is_dir(self.uri):
            if storage.exists(self.uri):
                raise StorageError(f"{self.uri}: is a file; accepted: the folder of a store")
            return []
        there = storage.listdir(self.uri)
        return [entry for entry in there if _DIGEST.fullmatch(entry)]

    def _entry(self, digest: str) -> Entry | None:
        try:
            facts = storage.read_json(storage.join(self._place(digest), MARKER))
        except StorageError:
            return None  # being written, being removed, or `sweep`'s to remove
        try:
            used = facts["created"]
            with contextlib.suppress(StorageError):
                used = max(used, float(storage.read_json(storage.join(self.uri, "used", digest))))
            return Entry(
                digest, Key(**facts["key"]), facts["rows"], facts["bytes"], facts["created"], used,
                facts["max_error"],
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            log.warning("%s: damaged (%s); taken for absent", self._place(digest), error)
            return None

    def _remove(self, digest: str) -> None:
        place = self._place(digest)
        try:
            storage.delete(storage.join(place, MARKER))  # first: nobody shall find half of it
            storage.delete(place)
            storage.delete(storage.join(self.uri, "used", digest))
        except StorageError:
            if storage.exists(place):  # else another one removed it in the same instant
                raise

    def _mark(self, digest: str) -> None:
        if time.monotonic() - self._marked.get(digest, -USED_EVERY_S) < USED_EVERY_S:
            return
        self._marked[digest] = time.monotonic()
        with contextlib.suppress(StorageError):  # a store that may only be read serves all the same
            storage.write_json(storage.join(self.uri, "used", digest), time.time())


class Writer:
    """Takes rows in order and lays them into parts."""

    def __init__(self, folder: Path, place: str, key: Key, num_rows: int, limit_mb: int | None) -> None:
        assert num_rows > 0, num_rows
        self._folder, self._place, self._key, self._limit_mb = folder, place, key, limit_mb
        self._num_rows, self._rows, self._parts, self._filled = num_rows, 0, 0, 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._max_error: dict[str, float] = {}
        self._buffers: dict[str, Any] = {}

    def add(self, outputs: Mapping[str, Any]) -> None:
        """The next rows: float32 arrays (B, ...) with the same names and shapes in every call.

        A value becomes the nearest one of the stored type (ties to even; bf16 is the upper half of fp32).
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
            os.utime(self._folder)  # alive; see `FeatureCache.sweep`

    def finish(self) -> None:
        """Write what is left, and the marker."""
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
        """Rows as stored, (B, size), their error noted."""
        assert outputs.dtype == np.float32, outputs.dtype
        x = np.ascontiguousarray(outputs).reshape(len(outputs), -1)
        kind = self._key.dtype
        if kind == "fp32" or not x.size:
            return x.astype(_STORED[kind])
        if not np.abs(x).max() <= _LARGEST[kind]:  # so written, NaN is refused too
            accepted = "fp32" if kind == "bf16" else "bf16, fp32"
            raise StorageError(
                f"{name}: holds values that are not finite or beyond {_LARGEST[kind]:g}, the largest of "
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
            # Other readers of the file see the shape; a lone number is a tensor of one.
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
    """The rows of an entry; threads may share it. Close it, or let it go: its maps go with the last user."""

    def __init__(self, mapped: _Mapped) -> None:
        facts = mapped.facts
        self._mapped: _Mapped | None = mapped
        self.num_rows: int = facts["rows"]
        self.nbytes: int = facts["bytes"]
        self.shapes: dict[str, tuple[int, ...]] = {n: tuple(shape) for n, shape in facts["shapes"].items()}
        # Largest absolute difference between what was added and what `gather` gives.
        self.max_error: dict[str, float] = facts["max_error"]

    def gather(self, rows: Any) -> dict[str, Any]:
        """Rows by number, in the order asked for, any of them any number of times: float32 (N, ...) each.

        Only those rows are read. Raises IndexError for a number outside 0 ... num_rows - 1.
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
        """Let the maps go; nothing gathered before is lost."""
        self._mapped = None

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Late(Exception):
    """Another writer has published this key meanwhile."""


class _Damaged(Exception):
    """Files are not what the marker says."""


class _Mapped:
    """The files of one entry, mapped: they may be removed or replaced and stay readable here."""

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
        except (OSError, KeyError, TypeError, ValueError, DataError) as error:  # Arrow's own are among them
            raise _Damaged(f"{type(error).__name__}: {error}") from None

    def _view(self, column: Any, shape: list[int]) -> Any:
        """A column as it lies in the file: (rows, size) of the stored type, no byte copied."""
        flat = column.storage.flatten().to_numpy(zero_copy_only=True)
        return flat.view(_STORED[self._kind]).reshape(len(column), _size(shape))

    def gather(self, name: str, parts: Any, offsets: Any) -> Any:
        """Rows given by part and place in it, float32 (N, size)."""
        views = self._columns[name]
        stored_type, size = views[0].dtype, views[0].shape[1]
        out = np.empty((len(parts), size), np.float32)
        if size * stored_type.itemsize >= _WIDE:
            for to, part, offset in zip(out, parts.tolist(), offsets.tolist(), strict=True):
                _decode(views[part][offset], self._kind, to)
            return out
        stored = out if stored_type == np.float32 else np.empty(out.shape, stored_type)
        if len(views) == 1:
            np.take(views[0], offsets, axis=0, out=stored, mode="clip")  # "raise" would copy once more
        else:
            for part in np.unique(parts):
                here = np.flatnonzero(parts == part)
                stored[here] = views[part][offsets[here]]
        return out if stored is out else _decode(stored, self._kind, out)


def _open(path: str) -> Any:
    return extensions.open_file(pa.memory_map(path), path, accepted=["arrow.fixed_shape_tensor"])


def _mapped(place: str, key: Key) -> _Mapped:
    """An entry's files, mapped once in this process."""
    if storage.is_local(place):
        with storage.local_copy(place) as folder:
            return _Mapped(folder, key)
    with _sharing:  # two threads shall not fetch the same
        stamp = place, storage.read_bytes(storage.join(place, MARKER))
        found = _shared.get(stamp)
        if found is None:
            # The copy is unlinked at once: maps keep its bytes, and no killed process leaves them behind.
            with storage.local_copy(place) as folder:
                found = _shared[stamp] = _Mapped(folder, key)
        return found


_sharing = threading.Lock()
_shared: weakref.WeakValueDictionary[tuple[str, bytes], _Mapped] = weakref.WeakValueDictionary()

# fp16 and bf16 are handled as the integers of their bits.
_STORED: dict[str, Any] = {
    "fp32": np.dtype("<f4"), "fp16": np.dtype("<i2"), "bf16": np.dtype("<u2"),
}  # fmt: skip
_LARGEST = {"fp16": 65504.0, "bf16": float.fromhex("0x1.fep127")}


def _decode(stored: Any, kind: str, out: Any) -> Any:
    """Stored values as float32, into ``out``. numpy's own cast from fp16 takes four times as long."""
    if kind == "fp32":
        out[...] = stored
    elif kind == "bf16":
        np.left_shift(stored, 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        # Exponent and mantissa move to fp32's places, the sign stays; then the exponents' bias is mended.
        # (No infinities: the writer refuses them.)
        bits = out.view(np.int32)
        np.left_shift(stored, 13, out=bits, dtype=np.int32)
        np.bitwise_and(bits, np.int32(-0x70000001), out=bits)
        np.multiply(out, np.float32(2.0**112), out=out)
        # Subnormals of fp16 pass through those of fp32, which are 0 where training flushes them (loop.py).
        size = stored & 0x7FFF
        small = (size > 0) & (size < 0x400)
        if small.any():
            out[small] = stored[small].view(np.float16)
    return out


def _part(number: int) -> str:
    return f"part-{number:05d}.arrow"


def _size(shape: Sequence[int]) -> int:
    """Values in a row."""
    return int(np.prod(shape, dtype=np.int64))
