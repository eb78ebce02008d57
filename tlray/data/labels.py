"""Checks of label columns by their kind, made before work begins and for many rows at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.data.schema import FLAGS, Kind, flags_of

ACCEPTED: dict[Kind, str] = {
    "class": "integers, the positions of class names",
    "identity": "integers, the positions of people's names",
    "classes": "lists of integers, the positions of class names",
    "objects": "a struct of lists: bbox (x, y, width, height), category (integer), flags (bool), if any",
    "mask": "struct<bytes, path>",
}


class Fault(NamedTuple):
    """The first row without a valid label."""

    row: int  # index into the checked values
    part: str  # of the column: "", or a field such as ".category"
    value: str
    accepted: str


def fits(kind: Kind, column: pa.DataType) -> bool:
    """Whether a column's type can hold labels of a kind; a column of nulls only counts as fitting."""
    if pa.types.is_null(column):
        return True
    if kind in ("class", "identity"):
        return bool(pa.types.is_integer(column))
    if kind == "classes":
        return _is_list(column) and bool(pa.types.is_integer(column.value_type))
    if not pa.types.is_struct(column):
        return False
    parts = {field.name: field.type for field in column}
    if kind == "mask":
        return set(parts) == {"bytes", "path"}
    boxes, category = parts.get("bbox"), parts.get("category")
    return (
        boxes is not None and _is_list(boxes) and _is_list(boxes.value_type)
        and _is_number(boxes.value_type.value_type)
        and category is not None and _is_list(category) and bool(pa.types.is_integer(category.value_type))
        and all(_is_flags(parts[flag]) for flag in FLAGS if flag in parts)
    )  # fmt: skip


def find_fault(kind: Kind, values: pa.Array, num_classes: int) -> Fault | None:
    """The first row without a valid label, in a column that `fits`; None where all are valid."""
    null = _first(values.is_null())
    if null is not None:
        return Fault(null, "", "null", ACCEPTED[kind])
    if kind in ("class", "identity"):
        return _ids(values, np.arange(len(values)), "", num_classes)
    if kind == "classes":
        return _ids(*_flat(values), "", num_classes)
    if kind == "objects":
        return _objects(values, num_classes)
    return _null_part(values, "bytes", "an encoded mask")


def is_hidden(kind: Kind, values: pa.Array) -> bool:
    """Whether no row has a label: all are null or -1, which Hugging Face writes for hidden labels."""
    if values.null_count == len(values):
        return True
    if kind == "mask":
        return bool(pc.struct_field(values, "bytes").null_count == len(values))
    if kind == "objects":
        values = pc.struct_field(values, "category")
    if kind in ("classes", "objects"):
        values = pc.list_flatten(values)
    numbers = values.drop_null().to_numpy(zero_copy_only=False)
    return len(values) > 0 and bool((numbers == -1).all())


def _objects(values: pa.Array, num_classes: int) -> Fault | None:
    for part in ("bbox", "category"):
        if fault := _null_part(values, part, "a list"):
            return fault
    boxes, category = pc.struct_field(values, "bbox"), pc.struct_field(values, "category")
    counts = [_lengths(column) for column in (boxes, category)]
    row = _first(counts[0] != counts[1])
    if row is not None:
        return Fault(
            row, "", f"{counts[0][row]} in bbox, {counts[1][row]} in category", "one category for each box"
        )
    for flag in flags_of(values.type):
        column = pc.struct_field(values, flag)
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)  # NaN: null, no flags
        row = _first(~np.isnan(lengths) & (lengths != counts[1]))
        row = _first([None in (values or ()) for values in column.to_pylist()]) if row is None else row
        if row is not None:
            return Fault(row, f".{flag}", _short(column[row]), "true or false for each box")
    return _ids(*_flat(category), ".category", num_classes) or _boxes(*_flat(boxes))


def _boxes(boxes: pa.Array, rows: np.ndarray) -> Fault | None:
    """The first invalid box; ``rows``: the row of each box."""
    accepted = "4 finite numbers: x, y, width, height in px, the latter two not negative"

    def fault(index: int) -> Fault:
        return Fault(int(rows[index]), ".bbox", _short(boxes[index]), accepted)

    null = _first(boxes.is_null())
    if null is not None:
        return fault(null)
    wrong_length = _first(_lengths(boxes) != 4)
    if wrong_length is not None:
        return fault(wrong_length)
    numbers = pc.list_flatten(boxes).cast(pa.float64(), safe=False)
    box_N4 = numbers.to_numpy(zero_copy_only=False).reshape(-1, 4)  # null becomes NaN
    wrong = _first(~np.isfinite(box_N4).all(axis=1) | (box_N4[:, 2:] < 0).any(axis=1))
    return None if wrong is None else fault(wrong)


def _ids(ids: pa.Array, rows: np.ndarray, part: str, num_classes: int) -> Fault | None:
    """The first invalid class id; ``rows``: the row of each id."""
    accepted = f"0 to {num_classes - 1}, as there are {num_classes} classes" if num_classes > 1 else "0"
    wrong = _first(ids.is_null())
    if wrong is None:
        numbers = ids.to_numpy(zero_copy_only=False)
        wrong = _first((numbers < 0) | (numbers >= num_classes))
    return None if wrong is None else Fault(int(rows[wrong]), part, _short(ids[wrong]), accepted)


def _null_part(values: pa.Array, part: str, accepted: str) -> Fault | None:
    row = _first(pc.struct_field(values, part).is_null())
    return None if row is None else Fault(row, f".{part}", "null", accepted)


def _flat(lists: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """All values of lists without nulls, and the row of each value."""
    return pc.list_flatten(lists), np.repeat(np.arange(len(lists)), _lengths(lists))


def _lengths(lists: pa.Array) -> np.ndarray:
    lengths: np.ndarray = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    return lengths


def _first(wrong: Any) -> int | None:
    indices = np.flatnonzero(np.asarray(wrong))
    return int(indices[0]) if len(indices) else None


def _short(value: pa.Scalar) -> str:
    text = "null" if value.as_py() is None else repr(value.as_py()).replace("None", "null")
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_flags(kind: pa.DataType) -> bool:
    if pa.types.is_null(kind):
        return True
    return _is_list(kind) and bool(
        pa.types.is_boolean(kind.value_type) or pa.types.is_integer(kind.value_type)
    )


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
