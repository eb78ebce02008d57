"""Arrow columns of a data set and what they mean.

A picture is the ``Image`` feature of Hugging Face datasets (struct of bytes and path) and a class
its ``ClassLabel``; the features stand in the Arrow schema's metadata under ``huggingface``, where
that library writes and looks for them, so that either side reads the other's files unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa

Row = dict[str, Any]  # one row of a data set: its label columns, id and path
Target = dict[str, np.ndarray | np.generic]  # one row's annotation in model space, by name

IMAGE = "image"  # struct<bytes, path>: the encoded picture, and where it came from below the source's root
SPLIT = "split"  # string: which split the row belongs to
ID = "id"  # string: stable name of the row: hash of path and content
WIDTH, HEIGHT = "width", "height"  # int32, px: as stored and shown (EXIF orientation applied)
LABEL = "label"  # int64: position in the list of class names
LABELS = "labels"  # list of such: a picture of several classes
OBJECTS = "objects"  # lists of equal length: bbox (x, y, width, height) in source px, category, some `FLAGS`
MASK = "mask"  # an encoded picture of the same size whose pixel values are class ids

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
"""How people call a split -> its name here."""

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
OBJECTS_TYPE = pa.struct([("bbox", pa.list_(pa.list_(pa.float32(), 4))), ("category", pa.list_(pa.int64()))])
DIFFICULT, CROWD = "difficult", "iscrowd"
FLAGS = (DIFFICULT, CROWD)
"""Lists of objects that are there where any object of the data has the flag: hard to tell even for people
(Pascal VOC), or a box around many (COCO). Metrics count neither as to be found."""
Kind = Literal["class", "identity", "classes", "objects", "mask"]
"""What a label column means: one class; one person (class names of all splits); several; boxes; pixels."""

TYPES: dict[Kind, pa.DataType] = {
    "class": pa.int64(),
    "identity": pa.int64(),
    "classes": pa.list_(pa.int64()),
    "objects": OBJECTS_TYPE,
    "mask": IMAGE_TYPE,
}
_COMMON = {IMAGE: IMAGE_TYPE, SPLIT: pa.string(), ID: pa.string(), WIDTH: pa.int32(), HEIGHT: pa.int32()}


def with_flags(objects: pa.DataType, flags: Iterable[str]) -> pa.DataType:
    """The type of objects, with lists for these flags."""
    return pa.struct([*objects, *(pa.field(name, pa.list_(pa.bool_())) for name in flags)])


def flags_of(objects: pa.DataType) -> list[str]:
    """The flags that a type of objects has lists for."""
    return [name for name in FLAGS if objects.get_field_index(name) >= 0]


def flagged(objects: Mapping[str, Any], flag: str) -> list[bool]:
    """Whether each object of a row has a flag; none has, where there is no list."""
    values = objects.get(flag)
    return [False] * len(objects["category"]) if values is None else [bool(value) for value in values]


def class_label(names: list[str]) -> dict[str, Any]:
    """Hugging Face feature of an integer class column."""
    return {"names": names, "_type": "ClassLabel"}


def feature(kind: Kind, names: list[str], flags: Iterable[str] = ()) -> dict[str, Any]:
    """Hugging Face feature of a label column of some kind; ``flags``: of objects."""
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
    """Class names of a label column, in label order; None where the schema carries none."""
    found = features(schema).get(column, {})
    found = found[0] if isinstance(found, list) and found else found  # how older files write a list
    for key in ("category", "feature"):
        found = found.get(key, found) if isinstance(found, dict) else {}
    names = found.get("names") if isinstance(found, dict) else None
    return list(names) if names else None
