"""The files of a data set, read by group: Parquet (row groups) and Arrow streams (record batches)."""

from __future__ import annotations

import contextlib
import functools
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from tlray import storage
from tlray.data import extensions
from tlray.errors import DataError

_MAX_IDLE = 16  # open files kept for the next read, per data set and process
_PEEK = 4096  # bytes: the header of a record batch is smaller unless it has hundreds of columns


class Summary(NamedTuple):
    """Statistics of a column in a group, as far as they are known without reading it; None: unknown."""

    nulls: int | None = None
    least: Any = None
    greatest: Any = None


class Shard(Protocol):
    """A file of groups; immutable, so threads may share it. Extension types other than `extensions.PLAIN` are
    refused."""

    schema: pa.Schema
    rows: list[int]  # number of rows of each group

    def facts(self) -> Any:
        """JSON-able facts that identify the content, known without reading rows."""
        ...

    def summary(self, index: int, leaf: str) -> Summary:
        """Statistics of a column in a group; ``leaf``: its dotted path, such as ``image.bytes``."""
        ...

    def connect(self) -> Any:
        """A new handle, for one thread at a time."""
        ...

    def group(self, handle: Any, index: int, columns: Sequence[str]) -> pa.Table:
        """Columns of one group. Raises ArrowInvalid where the file is damaged."""
        ...


class Parquet:
    """A Parquet file; opening reads its footer only."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        with self._source() as source:
            self._footer = extensions.parquet_footer(source, uri)
        self.schema = self._footer.schema.to_arrow_schema()
        self.rows = [self._footer.row_group(i).num_rows for i in range(self._footer.num_row_groups)]

    def _source(self) -> Any:
        fs, path = storage.open_fs(self._uri)
        return fs.open_input_file(path)

    def facts(self) -> Any:
        return self._footer.to_dict()

    @functools.cached_property
    def _leaves(self) -> dict[str, int]:
        parquet = self._footer.schema
        return {parquet.column(i).path: i for i in range(len(parquet))}

    def summary(self, index: int, leaf: str) -> Summary:
        column = self._leaves.get(leaf)
        statistics = None if column is None else self._footer.row_group(index).column(column).statistics
        if statistics is None:
            return Summary()
        has_bounds = statistics.has_min_max and statistics.physical_type in ("INT32", "INT64")
        bounds = (statistics.min, statistics.max) if has_bounds else (None, None)
        return Summary(statistics.null_count if statistics.has_null_count else None, *bounds)

    def connect(self) -> Any:
        # pre_buffer merges the ranges of neighbouring columns: fewer requests to S3.
        source = self._source()
        return pq.ParquetFile(source, metadata=self._footer, pre_buffer=True, arrow_extensions_enabled=False)

    def group(self, handle: Any, index: int, columns: Sequence[str]) -> pa.Table:
        # A column's name also reads all of its leaves. Callers have threads of their own, so none here.
        return handle.read_row_group(index, columns=list(columns), use_threads=False)


class ArrowStream:
    """A file in Arrow's stream format, as ``datasets`` saves it.

    A stream has no table of contents, so opening reads the header of each batch (a small request on S3). A
    batch is always read with all of its columns: on S3, Parquet is the better format.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        source = self.connect()
        size, position = source.size(), 0
        self._places: list[tuple[int, int]] = []  # (offset, length) of each batch with its header, bytes
        self.rows: list[int] = []
        schema = None
        while position < size:
            peek = source.read_at(_PEEK, position)
            prefix, length = _header_length(peek)
            if length == 0:
                break
            if prefix + length > len(peek):
                peek = source.read_at(prefix + length, position)
            kind, rows, body = _message(peek[prefix : prefix + length])
            end = position + prefix + length + body
            if end > size:
                raise pa.ArrowInvalid(f"truncated: {size} bytes, {end} or more expected")
            if kind == _SCHEMA:
                schema = extensions.stream_schema(source.read_at(end - position, position), uri)
            elif kind == _RECORD_BATCH:
                self._places.append((position, end - position))
                self.rows.append(rows)
            else:
                raise pa.ArrowInvalid("a stream with dictionaries; accepted: plain columns")
            position = end
        if schema is None:
            raise pa.ArrowInvalid("no schema")
        self.schema = schema

    def facts(self) -> Any:
        return [str(self.schema), self.rows, self._places]

    def summary(self, index: int, leaf: str) -> Summary:
        if not storage.is_local(self._uri):
            return Summary()  # counting would read the whole batch
        name, *inner = leaf.split(".")
        column = self.group(self.connect(), index, [name])[name]
        for part in inner:
            column = pc.struct_field(column, part)
        return Summary(column.null_count)

    def connect(self) -> Any:
        fs, path = storage.open_fs(self._uri)
        # With a memory map, columns that are not used are not read.
        return pa.memory_map(path) if storage.is_local(self._uri) else fs.open_input_file(path)

    def group(self, handle: Any, index: int, columns: Sequence[str]) -> pa.Table:
        start, length = self._places[index]
        handle.seek(start)
        message = ipc.read_message(pa.BufferReader(handle.read_buffer(length)))
        return pa.Table.from_batches([ipc.read_record_batch(message, self.schema)]).select(list(columns))


# The fields of Arrow's Message flatbuffer that say where the batches of a stream are. pyarrow reads a message
# with its body only, so it would read the whole file for that.
# Layout: https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format
_SCHEMA, _RECORD_BATCH = 1, 3  # values of MessageHeader


def _header_length(data: bytes) -> tuple[int, int]:
    """Number of bytes before the flatbuffer, and of it; the latter is 0 at the stream's end."""
    first, second = struct.unpack_from("<Ii", data + bytes(8))
    prefix, length = (8, second) if first == 0xFFFFFFFF else (4, first)  # 4: before Arrow 0.15
    if not 0 <= length < 1 << 28:
        raise pa.ArrowInvalid("no Arrow stream")
    return prefix, length


def _message(data: bytes) -> tuple[int, int, int]:
    """Kind of a message, number of rows (of a record batch), and bytes of its body."""
    table = struct.unpack_from("<I", data)[0]
    kind_at, header_at, body_at = (_field(data, table, number) for number in (1, 2, 3))
    kind = data[kind_at] if kind_at else 0
    body = struct.unpack_from("<q", data, body_at)[0] if body_at else 0
    rows = 0
    if kind == _RECORD_BATCH:
        batch = header_at + struct.unpack_from("<I", data, header_at)[0]
        rows_at = _field(data, batch, 0)
        rows = struct.unpack_from("<q", data, rows_at)[0] if rows_at else 0
    if body < 0 or rows < 0:
        raise pa.ArrowInvalid("no Arrow stream")
    return kind, rows, body


def _field(data: bytes, table: int, number: int) -> int:
    """Position of a table's field; 0 where it has its default value."""
    slots = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, slots)[0]
    entry = 4 + 2 * number
    offset = struct.unpack_from("<H", data, slots + entry)[0] if entry < size else 0
    return table + offset if offset else 0


@contextlib.contextmanager
def reading(place: str) -> Iterator[None]:
    """Turn errors of reading into DataError (damaged) or StorageError (out of reach) with the file's name."""
    try:
        with storage.faults(place):
            yield
    except (pa.ArrowException, struct.error) as error:
        raise DataError(f"{place}: damaged or no such file format ({str(error).splitlines()[0]})") from None


class Handles:
    """A pool of open files for many threads: each read has a handle of its own, and a few are kept.

    A forked process opens new ones.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._idle: list[tuple[Shard, Any]] = []

    def read(self, shard: Shard, index: int, columns: Sequence[str]) -> pa.Table:
        """Columns of one group of a shard."""
        if self._pid != os.getpid():
            self._reset()
        handle = None
        with self._lock:
            for i in range(len(self._idle) - 1, -1, -1):
                if self._idle[i][0] is shard:
                    handle = self._idle.pop(i)[1]
                    break
        handle = shard.connect() if handle is None else handle
        table = shard.group(handle, index, columns)  # a handle that failed is not used again
        with self._lock:
            self._idle.append((shard, handle))
            del self._idle[:-_MAX_IDLE]
        return table
