"""Boxes as stated against pictures as they are."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tlray.data import image, schema
from tlray.errors import DataError
from tlray.ingestion.boxes import compare, turned
from tlray.ingestion.formats.base import OBJECTS_TYPE

Row = dict[str, Any]


def row(path: str, size: tuple[int | None, int | None], *boxes: list[float], **more: Any) -> Row:
    """A picture of that upright size with boxes of the class cat."""
    objects = {"bbox": list(boxes), "category": ["cat"] * len(boxes)}
    return {"path": path, "width": size[0], "height": size[1], "orientation": 1, "objects": objects, **more}


def stated(width: int, height: int, orientation: int = 1) -> Row:
    return {"stated_width": width, "stated_height": height, "orientation": orientation}


def run(*rows: Row, relative: bool = False) -> tuple[dict[str, list[list[float]]], dict[str, int]]:
    """Boxes by path, and the number of each finding by kind."""
    kinds = {
        "path": pa.string(), "width": pa.int32(), "height": pa.int32(), "orientation": pa.int32(),
        "objects": OBJECTS_TYPE, "stated_width": pa.int32(), "stated_height": pa.int32(),
    }  # fmt: skip
    seen, findings = compare("src", pa.Table.from_pylist(list(rows), schema=pa.schema(kinds)), relative)
    assert seen.column_names == ["path", "width", "height", "orientation", "objects"]
    return {r["path"]: r["objects"]["bbox"] for r in seen.to_pylist()}, {f.kind: f.count for f in findings}


SOUND = [row(f"p{n}", (48, 36), [1, 2, 3, 4 + n], **stated(48, 36)) for n in range(9)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_as_pixels_do(orientation: int) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[25:35, 5:25] = 255  # x 5, y 25, 20 x 10
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(out, "PNG", exif=exif)
    upright_HW = np.asarray(image.decode(out.getvalue()))[..., 0]
    box = turned(np.array([[5.0, 25, 20, 10]]), np.array([[60.0, 40]]), np.array([orientation]))[0]
    x, y, w, h = box.astype(int)
    ys, xs = np.nonzero(upright_HW > 128)
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x, y, x + w, y + h)


def test_flags_stay_with_their_boxes() -> None:
    kinds = [("path", pa.string()), *((name, pa.int32()) for name in ("width", "height", "orientation"))]
    one = row("a", (48, 36), [1, 2, 3, 4], [1, 2, 3, 4], [5, 5, 9, 9])
    one["objects"]["difficult"] = [False, False, True]
    rows = [one, row("b", (48, 36), [1, 2, 3, 4])]  # where a row has no list, no object has the flag
    type_ = pa.schema([*kinds, ("objects", schema.with_flags(OBJECTS_TYPE, ["difficult"]))])
    seen, _ = compare("src", pa.Table.from_pylist(rows, schema=type_), False)
    assert [r["objects"]["difficult"] for r in seen.to_pylist()] == [[False, True], [False]]


def test_sound_boxes_stay_as_they_are() -> None:
    boxes, kinds = run(*SOUND, row("none", (10, 10)), row("broken", (None, None), [1, 2, 3, 4]))
    assert boxes["p3"] == [[1, 2, 3, 7]] and boxes["none"] == [] and boxes["broken"] == [[1, 2, 3, 4]]
    assert kinds == {}


def test_a_table_without_boxes_is_left_alone() -> None:
    table = pa.table({"path": ["a"], "label": ["x"]})
    assert compare("src", table, False) == (table, [])


def test_boxes_of_the_stored_picture_are_turned() -> None:
    boxes, kinds = run(*SOUND, row("e", (40, 60), [5, 25, 20, 10], **stated(60, 40, 6)))
    assert boxes["e"] == [[5, 5, 10, 20]]
    assert kinds == {"box_turned": 1}


def test_boxes_of_the_upright_picture_are_not_turned() -> None:
    boxes, kinds = run(*SOUND, row("e", (40, 60), [5, 5, 10, 20], **stated(40, 60, 6)))
    assert boxes["e"] == [[5, 5, 10, 20]] and kinds == {}


def test_a_header_s_size_does_not_turn_boxes_that_only_fit_upright() -> None:
    tall = row("e", (40, 60), [5, 5, 10, 50], **stated(60, 40, 6))
    boxes, kinds = run(*SOUND, tall, row("f", (40, 60), [5, 5, 10, 10], **stated(60, 40, 6)))
    assert boxes["e"] == [[5, 5, 10, 50]] and boxes["f"] == [[5, 5, 10, 10]]
    assert kinds == {"size_of_stored": 2}


def test_half_turns_are_doubtful_unless_others_tell() -> None:
    half = row("h", (48, 36), [1, 2, 3, 4], **stated(48, 36, 3))
    assert run(*SOUND, half) == ({**run(*SOUND)[0], "h": [[1, 2, 3, 4]]}, {"exif_doubtful": 1})
    stored = row("e", (40, 60), [5, 25, 20, 10], **stated(60, 40, 6))
    boxes, kinds = run(*SOUND, half, stored)
    assert boxes["h"] == [[44, 30, 3, 4]] and kinds == {"box_turned": 2}
    upright = row("e", (40, 60), [5, 5, 10, 20], **stated(40, 60, 6))
    assert run(*SOUND, half, upright)[1] == {}


def test_boxes_of_a_larger_copy_are_scaled() -> None:
    boxes, kinds = run(row("s", (48, 36), [10, 20, 30, 40], **stated(480, 360)))
    assert boxes["s"] == [[1, 2, 3, 4]] and kinds == {"box_scaled": 1}
    boxes, _ = run(row("s", (40, 60), [50, 250, 200, 100], **stated(600, 400, 6)))  # and turned
    assert boxes["s"] == [[5, 5, 10, 20]]


def test_other_sizes_are_a_warning_and_fatal_for_many() -> None:
    other = row("o", (48, 36), [1, 2, 3, 4], **stated(36, 36))
    assert run(*SOUND, other)[1] == {"size_differs": 1}
    with pytest.raises(
        DataError, match=r"src: 1 of 3 pictures .* another size .*as o: 48 x 36 px, stated 36 x 36"
    ):
        run(*SOUND[:2], other)


def test_exchanged_sides_are_known_by_boxes_that_fit() -> None:
    rows = [row(f"p{n}", (60, 40), [30, 2, 20 + n, 4], **stated(40, 60)) for n in range(3)]
    boxes, kinds = run(*rows)
    assert boxes["p0"] == [[30, 2, 20, 4]] and kinds == {"size_exchanged": 3}
    with pytest.raises(DataError, match="another size"):
        run(*[row(f"p{n}", (60, 40), [3, 2, 20 + n, 4], **stated(40, 60)) for n in range(3)])


def test_shares_become_pixels() -> None:
    rows = [row("a", (48, 36), [0.2, 0.2, 0.5, 0.5]), row("b", (10, 20), [0, 0, 1, 1])]
    boxes, kinds = run(*rows)
    assert boxes == {"a": [pytest.approx([9.6, 7.2, 24, 18])], "b": [[0, 0, 10, 20]]}
    assert kinds == {"boxes_in_shares": 2}
    assert run(*rows, relative=True) == (boxes, {})
    with pytest.raises(DataError, match="1 of 2 boxes lie within 0 to 1, as in a, others do not, as in c"):
        run(rows[0], row("c", (48, 36), [1, 2, 30, 4]))


def test_boxes_of_larger_pictures_are_refused() -> None:
    with pytest.raises(DataError, match=r"boxes of 2 of 2 pictures reach far out .*a \(48 x 36 px\).*shrunk"):
        run(row("a", (48, 36), [60, 30, 20, 10]), row("b", (48, 36), [60, 70, 9, 9]))
    with pytest.raises(DataError, match="taken as two corners they would fit"):
        run(row("a", (48, 36), [20, 10, 40, 30]), row("b", (48, 36), [20, 20, 47, 35]))
    assert run(row("a", (48, 36), [20, 10, 30, 28]))[1] == {}  # 2 px: the task clips it


def test_unstated_boxes_that_only_fit_as_stored_are_turned() -> None:
    rows = [
        row("a", (40, 60), [35, 5, 20, 10], orientation=6),
        row("b", (40, 60), [5, 5, 10, 10], orientation=6),
    ]
    boxes, kinds = run(*rows)
    assert boxes == {"a": [[25, 35, 10, 20]], "b": [[25, 5, 10, 10]]} and kinds == {"box_turned": 2}


def test_negative_sides_and_doubles() -> None:
    boxes, kinds = run(*SOUND, row("n", (48, 36), [30, 20, -10, -5], [20, 15, 10, 5], [1, 1, 2, 2]))
    assert boxes["n"] == [[20, 15, 10, 5], [1, 1, 2, 2]]
    assert kinds == {"box_swapped": 1, "box_double": 1}
