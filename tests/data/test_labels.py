"""Checks of labels over many rows at a time agree with a loop over Python values."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlray.data import schema
from tlray.data.labels import find_fault, fits, is_hidden
from tlray.data.schema import OBJECTS_TYPE, Kind

INTS = pa.list_(pa.int64())
BOXES = pa.struct(
    [("bbox", pa.list_(pa.list_(pa.float64()))), ("category", INTS)]
)  # of any length, unlike ours
FLAGGED = schema.with_flags(BOXES, ["iscrowd"])
MASK = schema.IMAGE_TYPE
SOUND = {"bbox": [[0, 0, 2, 2]], "category": [1]}


def objects(bbox: Any = ((0, 0, 2, 2),), category: Any = (1,)) -> dict[str, Any]:
    return {"bbox": bbox, "category": category}


@pytest.mark.parametrize(
    ("kind", "type_", "bad", "value"),
    [
        ("class", pa.int64(), None, "null"),
        ("class", pa.int8(), -1, "-1"),
        ("class", pa.uint64(), 2**64 - 1, str(2**64 - 1)),
        ("class", pa.int64(), 3, "3"),
        ("identity", pa.int32(), 3, "3"),
        ("classes", INTS, None, "null"),
        ("classes", INTS, [0, None], "null"),
        ("classes", pa.large_list(pa.int32()), [2, -1], "-1"),
        ("classes", pa.list_(pa.int64(), 2), [0, 7], "7"),
        ("objects", BOXES, None, "null"),
        ("objects", BOXES, objects(bbox=None), ".bbox: null"),
        ("objects", BOXES, objects(category=None), ".category: null"),
        ("objects", BOXES, objects(category=[]), "1 in bbox, 0 in category"),
        ("objects", BOXES, objects(category=[1, 1]), "1 in bbox, 2 in category"),
        ("objects", BOXES, objects(category=[3]), ".category: 3"),
        ("objects", BOXES, objects(category=[-1]), ".category: -1"),
        ("objects", BOXES, objects(category=[None]), ".category: null"),
        ("objects", BOXES, objects(bbox=[None]), ".bbox: null"),
        ("objects", BOXES, objects(bbox=[[1, 2, 3]]), ".bbox: [1.0, 2.0, 3.0]"),
        ("objects", BOXES, objects(bbox=[[]]), ".bbox: []"),
        ("objects", BOXES, objects(bbox=[[1, 2, 3, 4, 5]]), ".bbox: [1.0, 2.0, 3.0, 4.0, 5.0]"),
        ("objects", BOXES, objects(bbox=[[1, 2, None, 4]]), ".bbox: [1.0, 2.0, null, 4.0]"),
        ("objects", BOXES, objects(bbox=[[1, 2, math.nan, 4]]), ".bbox: [1.0, 2.0, nan, 4.0]"),
        ("objects", BOXES, objects(bbox=[[1, 2, math.inf, 4]]), ".bbox: [1.0, 2.0, inf, 4.0]"),
        ("objects", OBJECTS_TYPE, objects(bbox=[[1, 2, 3, -4]]), ".bbox: [1.0, 2.0, 3.0, -4.0]"),
        ("objects", FLAGGED, SOUND | {"iscrowd": [True, False]}, ".iscrowd: [True, False]"),
        ("objects", FLAGGED, SOUND | {"iscrowd": [None]}, ".iscrowd: [null]"),
        ("mask", MASK, None, "null"),
        ("mask", MASK, {"bytes": None, "path": "a.png"}, ".bytes: null"),
    ],
)
def test_the_first_wrong_row_is_named(kind: Kind, type_: pa.DataType, bad: Any, value: str) -> None:
    sound: Any = {
        "class": 0, "identity": 2, "classes": [0, 2], "objects": SOUND, "mask": {"bytes": b"x", "path": None},
    }[kind]  # fmt: skip
    assert fits(kind, type_)
    assert find_fault(kind, pa.array([sound] * 4, type_), 3) is None
    several = {"bbox": [[1, 1, 1, 1]] * 3, "category": [0, 1, 2]} if kind == "objects" else sound
    for rows in ([bad, sound], [several, sound, bad, sound, bad]):
        # A slice of a longer array, as readers may return it.
        fault = find_fault(kind, pa.array([sound, *rows], type_)[1:], 3)
        assert fault is not None and fault.row == rows.index(bad)
        assert (f"{fault.part}: " if fault.part else "") + fault.value == value
        assert fault.accepted


def test_no_row_and_no_object_is_no_fault() -> None:
    assert find_fault("objects", pa.array([{"bbox": [], "category": []}], OBJECTS_TYPE), 1) is None
    assert find_fault("classes", pa.array([[]], INTS), 1) is None
    for kind, type_ in schema.TYPES.items():
        assert find_fault(kind, pa.array([], type_), 1) is None
        assert fits(kind, type_) and fits(kind, pa.null())


@pytest.mark.parametrize(
    ("kind", "type_"),
    [
        ("class", pa.float64()),
        ("class", pa.string()),
        ("class", pa.bool_()),
        ("class", INTS),
        ("identity", pa.string()),
        ("classes", pa.int64()),
        ("classes", pa.list_(pa.string())),
        ("classes", pa.list_(pa.float32())),
        ("objects", pa.list_(OBJECTS_TYPE)),
        ("objects", pa.struct([("bbox", INTS), ("category", INTS)])),
        ("objects", pa.struct([("bbox", BOXES.field("bbox").type)])),
        ("objects", pa.struct([("bbox", BOXES.field("bbox").type), ("category", pa.list_(pa.string()))])),
        ("mask", pa.binary()),
        ("mask", pa.int64()),
    ],
)
def test_types_that_hold_no_labels_of_a_kind(kind: Kind, type_: pa.DataType) -> None:
    assert not fits(kind, type_)


@pytest.mark.parametrize(
    ("kind", "values", "type_", "expected"),
    [
        ("class", [-1, -1], pa.int64(), True),
        ("class", [None, -1], pa.int64(), True),
        ("class", [None, None], pa.int64(), True),
        ("class", [-1, 0], pa.int64(), False),
        ("class", [-2, -2], pa.int64(), False),
        ("classes", [[-1], None], INTS, True),
        ("classes", [[], []], INTS, False),
        ("classes", [[-1], [0]], INTS, False),
        ("objects", [{"bbox": [[0, 0, 1, 1]], "category": [-1]}], OBJECTS_TYPE, True),
        ("objects", [None], OBJECTS_TYPE, True),
        ("objects", [SOUND], OBJECTS_TYPE, False),
        ("mask", [{"bytes": None, "path": "a"}], MASK, True),
        ("mask", [{"bytes": b"x", "path": "a"}, None], MASK, False),
    ],
)
def test_splits_without_labels(kind: Kind, values: list[Any], type_: pa.DataType, expected: bool) -> None:
    assert is_hidden(kind, pa.array(values, type_)) is expected


numbers = st.one_of(st.none(), st.integers(-2, 5))
boxes = st.one_of(
    st.none(),
    st.lists(
        st.one_of(st.none(), st.floats(-1, 9, allow_subnormal=False), st.just(math.nan)),
        min_size=3,
        max_size=5,
    ),
)
rows = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {
            "bbox": st.one_of(st.none(), st.lists(boxes, max_size=3)),
            "category": st.one_of(st.none(), st.lists(numbers, max_size=3)),
        }
    ),
    st.just(SOUND),
)


def is_sound(row: Any) -> bool:
    """The same check of one row, in plain Python."""
    if row is None or row["bbox"] is None or row["category"] is None:
        return False
    return (
        len(row["bbox"]) == len(row["category"])
        and all(value is not None and 0 <= value < 3 for value in row["category"])
        and all(
            box is not None
            and len(box) == 4
            and all(value is not None and math.isfinite(value) for value in box)
            and min(box[2:]) >= 0
            for box in row["bbox"]
        )
    )


@given(st.lists(rows, max_size=5))
def test_objects_as_a_loop_finds_them(values: list[Any]) -> None:
    fault = find_fault("objects", pa.array(values, BOXES), 3)
    wrong = [i for i, row in enumerate(values) if not is_sound(row)]
    assert (fault is None) == (not wrong)
    assert fault is None or fault.row in wrong
