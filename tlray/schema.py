"""Arrow columns of a data set and what they mean.

A picture is the ``Image`` feature of Hugging Face datasets (struct of bytes and path) and a class
its ``ClassLabel``; the features stand in the Arrow schema's metadata under ``huggingface``, where
that library writes and looks for them, so that either side reads the other's files unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

IMAGE = "image"  # struct<bytes, path>: the encoded picture, and where it came from below the source's root
SPLIT = "split"  # string: which split the row belongs to
ID = "id"  # string: stable name of the row: hash of path and content
WIDTH, HEIGHT = "width", "height"  # int32, px: as stored and shown (EXIF orientation applied)
LABEL = "label"  # int64: position in the list of class names

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_COMMON = {IMAGE: IMAGE_TYPE, SPLIT: pa.string(), ID: pa.string(), WIDTH: pa.int32(), HEIGHT: pa.int32()}


def class_label(names: list[str]) -> dict[str, Any]:
    """Hugging Face feature of an integer class column."""
    return {"names": names, "_type": "ClassLabel"}


def dataset_schema(columns: Mapping[str, tuple[pa.DataType, Any]]) -> pa.Schema:
    """Schema of an ingested data set: the common columns, then label columns name -> (type, feature)."""
    fields = [pa.field(name, kind) for name, kind in _COMMON.items()]
    features: dict[str, Any] = {
        name: {"dtype": str(kind), "_type": "Value"} for name, kind in _COMMON.items() if name != IMAGE
    }
    features[IMAGE] = {"_type": "Image"}
    for name, (kind, feature) in columns.items():
        fields.append(pa.field(name, kind))
        features[name] = feature
    ordered = {field.name: features[field.name] for field in fields}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": ordered}})})


def features(schema: pa.Schema) -> dict[str, Any]:
    """Hugging Face features of a schema by column; empty where it carries none."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return {}
    found = json.loads(raw).get("info", {}).get("features", {})
    return found if isinstance(found, dict) else {}


def class_names(schema: pa.Schema, column: str = LABEL) -> list[str] | None:
    """Class names of an integer column, in label order; None where the schema carries none."""
    names = features(schema).get(column, {}).get("names")
    return list(names) if names else None
