"""Extension types of Arrow, refused before pyarrow makes one of them.

A file names an extension type in the metadata of its schema. As soon as pyarrow reads that schema it calls
the Python class that some library registered under the name, and the class decides what runs: Ray's
`ray.data.arrow_pickled_object` unpickles every value that is looked at, and its tensor types may unpickle
while the schema is read. So every schema is read here, first with the names made unknown, which gives plain
types and calls nobody. The few types of `PLAIN` are pyarrow's own, in C++, around plain values.
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
_NAME, _UNKNOWN = b"ARROW:extension:name", b"tlray:extension:name"  # of one length: offsets stay right
_MAGIC = b"ARROW1"


def parquet_schema(footer: pq.FileMetaData, place: str) -> pa.Schema:
    """The Arrow schema of a Parquet file. Raises DataError for an extension type, ArrowInvalid for damage."""
    stored = (footer.metadata or {}).get(b"ARROW:schema")
    if stored is not None:
        try:
            message = base64.b64decode(stored, validate=True)
        except binascii.Error as error:
            raise pa.ArrowInvalid(f"its Arrow schema: {error}") from None
        _refuse(message, place)
    schema = footer.schema.to_arrow_schema()
    _refuse_types(schema, place)  # Parquet has logical types of its own that Arrow reads as extensions
    return schema


def stream_schema(message: bytes, place: str) -> pa.Schema:
    """The schema of an Arrow stream's first message. Raises DataError for an extension type, ArrowInvalid."""
    _refuse(message, place)
    schema = ipc.read_schema(pa.py_buffer(message))
    _refuse_types(schema, place)
    return schema


def open_file(source: pa.NativeFile, place: str, accepted: Collection[str] = PLAIN) -> Any:
    """A reader of a file in Arrow's file format. Raises DataError for an extension type, ArrowInvalid."""
    size, tail = source.size(), 4 + len(_MAGIC)
    end = source.read_at(min(size, tail), max(0, size - tail))
    length = int.from_bytes(end[:4], "little", signed=True)
    if not end.endswith(_MAGIC) or not 0 < length <= size - tail:
        raise pa.ArrowInvalid("no whole Arrow file")
    footer = source.read_at(length, size - tail - length)
    if _NAME in footer:
        # The schema that counts is the footer's, and pyarrow reads a footer as the end of a file only.
        alone = _MAGIC + b"\0\0" + footer.replace(_NAME, _UNKNOWN) + end
        _refuse_names(ipc.open_file(pa.py_buffer(alone)).schema, place, accepted)
    reader = ipc.open_file(source)
    _refuse_types(reader.schema, place, accepted)
    return reader


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values below an extension type; any other type as it is."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _refuse(message: bytes, place: str) -> None:
    if _NAME in message:
        _refuse_names(ipc.read_schema(pa.py_buffer(message.replace(_NAME, _UNKNOWN))), place, PLAIN)


def _refuse_names(schema: pa.Schema, place: str, accepted: Collection[str]) -> None:
    """Refuse the extension types that a schema with unknown names still tells of."""
    for path, field in _fields(schema):
        name = (field.metadata or {}).get(_UNKNOWN)
        if name is not None and name.decode("utf-8", "replace") not in accepted:
            raise _refusal(place, path, name.decode("utf-8", "replace"), accepted)


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
    """All fields at any depth with their dotted paths."""
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
