"""The columns of a file: their names and types in a data set of tlray."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from tlray.data import extensions, schema
from tlray.data.schema import IMAGE, IMAGE_TYPE, LABEL
from tlray.errors import DataError


def names_of(file_schema: pa.Schema, place: str, own: bool) -> dict[str, str]:
    """Name in the file -> name in the data set.

    The only column of pictures is the image, the only column of classes the label.
    ``own``: the file was written by ingest. Raises DataError where no single column holds pictures.
    """
    names = {name: name for name in file_schema.names}
    features = schema.features(file_schema)
    if IMAGE not in names:
        declared = [n for n in file_schema.names if (features.get(n) or {}).get("_type") == "Image"]
        pictures = declared or [f.name for f in file_schema if is_picture(f.type)]
        if len(pictures) != 1:
            several = (
                f" ({', '.join(pictures)} are pictures: rename the one that is meant)" if pictures else ""
            )
            raise DataError(f"{place}: no column {IMAGE!r}{several}; there: {', '.join(file_schema.names)}")
        names[pictures[0]] = IMAGE
    else:
        stored = file_schema.field(IMAGE).type
        if not own and not is_picture(stored) and not _is_bytes(stored):
            raise DataError(
                f"{place} column {IMAGE!r}: holds {stored}; accepted: struct<bytes, path> or encoded bytes"
            )
    if LABEL not in names and not own:
        classes = [n for n in file_schema.names if (features.get(n) or {}).get("_type") == "ClassLabel"]
        integers = [n for n in ("labels",) if n in names and pa.types.is_integer(file_schema.field(n).type)]
        if len(classes or integers) == 1:
            names[(classes or integers)[0]] = LABEL
    return names


def is_picture(kind: pa.DataType) -> bool:
    """Whether a type is a struct of bytes and path."""
    return pa.types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} == {
        "bytes",
        "path",
    }


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type that a column has here: strings for other writers' large and dictionary-coded strings."""
    kind = extensions.plain(kind)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.string() if pa.types.is_large_string(kind) else kind


def cast(column: Any, field: pa.Field) -> Any:
    """A column in the type of ``field``; encoded bytes become pictures without a path."""
    if field.name != IMAGE or column.type == IMAGE_TYPE:
        return column if column.type == field.type else column.cast(field.type)
    chunks = []
    for chunk in column.chunks:
        if _is_bytes(chunk.type):
            data, path = chunk.cast(pa.binary()), pa.nulls(len(chunk), pa.string())
        else:  # its fields are in another order, or of large types
            data, path = chunk.field("bytes").cast(pa.binary()), chunk.field("path").cast(pa.string())
        chunks.append(pa.StructArray.from_arrays([data, path], fields=list(IMAGE_TYPE), mask=chunk.is_null()))
    return pa.chunked_array(chunks, IMAGE_TYPE)
