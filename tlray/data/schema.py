"""The Arrow columns of a data set and their meanings.

A picture is an ``Image`` feature of Hugging Face datasets (struct of bytes and path) and a class is a
``ClassLabel``. The features are stored in the Arrow schema's metadata under ``huggingface``, where that
library writes and reads them, so that each can read the other's files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa

Row = dict[str, Any]  # one row of a data set: its label columns, id and path
Target = dict[str, np.ndarray | np.generic]  # one row's annotation in model space, by name

IMAGE = "image"  # struct<bytes, path>: the encoded picture, and its path below the source's root
SPLIT = "split"  # string: the row's split
ID = "id"  # string: a stable name of the row, a hash of path and content
WIDTH, HEIGHT = "width", "height"  # int32, px: of the stored picture, EXIF orientation applied
LABEL = "label"  # int64: index of the class name
LABELS = "labels"  # list of such: all classes of the picture
OBJECTS = "objects"  # lists of equal length: bbox (x, y, width, height) in source px, category, some `FLAGS`
MASK = "mask"  # an encoded picture of the same size; its pixel values are class ids

SPLITS = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "validation": "validation",
    "validate": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "tst": "test",
}
"""Usual names of a split -> its name here."""

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
OBJECTS_TYPE = pa.struct([("bbox", pa.list_(pa.list_(pa.float32(), 4))), ("category", pa.list_(pa.int64()))])
DIFFICULT, CROWD = "difficult", "iscrowd"
FLAGS = (DIFFICULT, CROWD)
"""Optional lists of `OBJECTS`: whether an object is hard to recognise even for people (Pascal VOC), or its
box surrounds many objects (COCO). Metrics ignore both."""
Kind = Literal["class", "identity", "classes", "objects", "mask"]
"""The meaning of a label column: one class; one person; several classes; boxes; a class for each pixel."""

TYPES: dict[Kind, pa.DataType] = {
    "class": pa.int64(),
    "identity": pa.int64(),
    "classes": pa.list_(pa.int64()),
    "objects": OBJECTS_TYPE,
    "mask": IMAGE_TYPE,
}
_COMMON = {IMAGE: IMAGE_TYPE, SPLIT: pa.string(), ID: pa.string(), WIDTH: pa.int32(), HEIGHT: pa.int32()}


def with_flags(objects: pa.DataType, flags: Iterable[str]) -> pa.DataType:
    """A type of objects with lists for these flags added."""
    return pa.struct([*objects, *(pa.field(name, pa.list_(pa.bool_())) for name in flags)])


def flags_of(objects: pa.DataType) -> list[str]:
    """The flags for which a type of objects has lists."""
    return [name for name in FLAGS if objects.get_field_index(name) >= 0]


def flagged(objects: Mapping[str, Any], flag: str) -> list[bool]:
    """Whether each object of a row has a flag; without a list none has."""
    values = objects.get(flag)
    return [False] * len(objects["category"]) if values is None else [bool(value) for value in values]


def class_label(names: list[str]) -> dict[str, Any]:
    """Hugging Face feature of an integer class column."""
    return {"names": names, "_type": "ClassLabel"}


def feature(kind: Kind, names: list[str], flags: Iterable[str] = ()) -> dict[str, Any]:
    """Hugging Face feature of a label column; ``flags``: those of objects that are stored."""
    label = class_label(names)
    if kind == "classes":
        return {"feature": label, "_type": "List"}
    if kind == "objects":
        number = {"dtype": "float32", "_type": "Value"}
        box = {"feature": number, "length": 4, "_type": "List"}
        return {
            "bbox": {"feature": box, "_type": "List"},
            "category": {"feature": label, "_type": "List"},
            **{flag: {"feature": {"dtype": "bool", "_type": "Value"}, "_type": "List"} for flag in flags},
        }
    return {"_type": "Image", "names": names} if kind == "mask" else label


def dataset_schema(columns: Mapping[str, tuple[pa.DataType, Any]]) -> pa.Schema:
    """Schema of an ingested data set; ``columns``: label columns as name -> (type, feature)."""
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
    """Hugging Face features of a schema, by column; empty where it has none."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return {}
    stored = json.loads(raw).get("info", {}).get("features", {})
    return stored if isinstance(stored, dict) else {}


def class_names(schema: pa.Schema, column: str = LABEL) -> list[str] | None:
    """Class names of a label column, in label order; None where the schema has none."""
    stored = features(schema).get(column, {})
    stored = stored[0] if isinstance(stored, list) and stored else stored  # older files write a list so
    for key in ("category", "feature"):
        stored = stored.get(key, stored) if isinstance(stored, dict) else {}
    names = stored.get("names") if isinstance(stored, dict) else None
    return list(names) if names else None
