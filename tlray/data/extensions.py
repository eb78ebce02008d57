"""Refuses Arrow's extension types before pyarrow instantiates them.

A file names extension types in the metadata of its schema. When pyarrow reads the schema, it calls the Python
class that a library registered under the name, and that class may run anything: Ray's
`ray.data.arrow_pickled_object` unpickles each value on access, and Ray's tensor types may unpickle while the
schema is read. So schemas are first read here with the metadata key changed, which gives plain types and
calls no class. The types in `PLAIN` are pyarrow's own, written in C++ around plain values.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from tlray.errors import DataError

PLAIN = ("arrow.bool8", "arrow.json", "arrow.uuid")
_NAME, _UNKNOWN = b"ARROW:extension:name", b"tlray:extension:name"  # equally long: offsets stay valid
_SCHEMA, _NO_SCHEMA = b"ARROW:schema", b"tlray:schema"
_MAGIC = b"ARROW1"
_PEEK = 64 * 1024  # bytes at a file's end that are read first; most footers are smaller


def parquet_footer(source: pa.NativeFile, place: str) -> pq.FileMetaData:
    """The footer of a Parquet file. Raises DataError for an extension type, ArrowInvalid for damage."""
    footer, end = _footer(source, b"PAR1")
    # Reading a footer, pyarrow reads the Arrow schema in its metadata, too: that key is changed first.
    metadata = _parquet_metadata(footer.replace(_SCHEMA, _NO_SCHEMA) + end).metadata or {}
    if _NO_SCHEMA in metadata:
        try:
            message = base64.b64decode(metadata[_NO_SCHEMA], validate=True)
        except binascii.Error as error:
            raise pa.ArrowInvalid(f"its Arrow schema: {error}") from None
        _refuse(message, place)
    checked = _parquet_metadata(footer + end)
    # Arrow reads some of Parquet's own logical types as extension types, too.
    _refuse_types(checked.schema.to_arrow_schema(), place)
    return checked


def _parquet_metadata(end: bytes) -> pq.FileMetaData:
    """Parse the end of a Parquet file; pyarrow only takes whole files."""
    return pq.read_metadata(pa.BufferReader(b"PAR1" + end))


def _footer(source: pa.NativeFile, magic: bytes) -> tuple[bytes, bytes]:
    """A file's footer, and the bytes after it: its length and the magic number."""
    size, tail = source.size(), 4 + len(magic)
    start = max(0, size - _PEEK)
    peek = source.read_at(size - start, start)
    length = int.from_bytes(peek[-tail:][:4], "little", signed=True)
    if size < tail or not peek.endswith(magic) or not 0 < length <= size - tail:
        raise pa.ArrowInvalid("its footer is missing")
    if length + tail > len(peek):
        peek = source.read_at(length + tail, size - tail - length)
    return peek[-tail - length : -tail], peek[-tail:]


def stream_schema(message: bytes, place: str) -> pa.Schema:
    """The schema of an Arrow stream's first message. Raises DataError for an extension type, ArrowInvalid."""
    _refuse(message, place)
    schema = ipc.read_schema(pa.py_buffer(message))
    _refuse_types(schema, place)
    return schema


def open_file(source: pa.NativeFile, place: str, accepted: Collection[str] = PLAIN) -> Any:
    """A reader of a file in Arrow's file format. Raises DataError for an extension type, ArrowInvalid."""
    footer, end = _footer(source, _MAGIC)
    if _NAME in footer:
        # pyarrow takes the schema from the footer, and only takes whole files.
        footer_file = _MAGIC + b"\0\0" + footer.replace(_NAME, _UNKNOWN) + end
        _refuse_names(ipc.open_file(pa.py_buffer(footer_file)).schema, place, accepted)
    reader = ipc.open_file(source)
    _refuse_types(reader.schema, place, accepted)
    return reader


def plain(kind: pa.DataType) -> pa.DataType:
    """The storage type of an extension type; any other type unchanged."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _refuse(message: bytes, place: str) -> None:
    if _NAME in message:
        _refuse_names(ipc.read_schema(pa.py_buffer(message.replace(_NAME, _UNKNOWN))), place, PLAIN)


def _refuse_names(schema: pa.Schema, place: str, accepted: Collection[str]) -> None:
    """Refuse extension types named in a schema that was read with the changed metadata key."""
    for path, field in _fields(schema):
        name = (field.metadata or {}).get(_UNKNOWN, b"").decode("utf-8", "replace")
        if pa.types.is_run_end_encoded(field.type):  # pyarrow drops the metadata of fields inside it
            path, name = f"{path}.values", "in run-end encoding"
        if name and name not in accepted:
            raise _refusal(place, path, name, accepted)


def _refuse_types(schema: pa.Schema, place: str, accepted: Collection[str] = PLAIN) -> None:
    for path, field in _fields(schema):
        if isinstance(field.type, pa.BaseExtensionType) and field.type.extension_name not in accepted:
            raise _refusal(place, path, field.type.extension_name, accepted)


def _refusal(place: str, path: str, name: str, accepted: Collection[str]) -> DataError:
    return DataError(
        f"{place} column {path!r}: extension type {name}, and reading such types may run code; accepted: "
        f"plain Arrow types and {', '.join(accepted)}"
    )


def _fields(schema: pa.Schema) -> Iterator[tuple[str, pa.Field]]:
    """All fields at any depth, with dotted paths."""
    todo = [(field.name, field) for field in reversed(schema)]
    while todo:
        path, field = todo.pop()
        yield path, field
        kind = field.type
        if isinstance(kind, pa.BaseExtensionType):
            todo.append((path, pa.field(field.name, kind.storage_type)))
        elif pa.types.is_dictionary(kind):  # it has no fields of its own
            todo.append((path, pa.field(field.name, kind.value_type)))
        else:
            inner = [kind.field(i) for i in reversed(range(kind.num_fields))]
            todo += [(f"{path}.{child.name}", child) for child in inner]
