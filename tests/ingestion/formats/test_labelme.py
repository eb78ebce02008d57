"""LabelMe's JSON, a file for each picture."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask as rle_codec
from PIL import Image

from tlray.errors import DataError
from tlray.ingestion.formats import labelme
from tlray.ingestion.formats.base import Index
from tlray.ingestion.formats.listing import Listing


def shape(label: Any, kind: str, *points: list[float], **more: Any) -> dict[str, Any]:
    return {
        "label": label, "points": list(points), "group_id": None, "shape_type": kind, "flags": {}, **more
    }  # fmt: skip


CAT = shape("cat", "rectangle", [10, 20], [4, 5])  # drawn from the lower right corner
DOG = shape("dog", "polygon", [1, 2], [11, 2], [6, 12])


def tree(*shapes: dict[str, Any], name: str = "a.jpg", **more: Any) -> dict[str, Any]:
    return {
        "version": "5.4.1", "flags": {}, "shapes": list(shapes), "imagePath": name, "imageData": "SECRET" * 9,
        "imageHeight": 36, "imageWidth": 48, **more,
    }  # fmt: skip


def put(folder: Path, **files: Any) -> Path:
    """Files by path: JSON trees, text, or pictures (never opened)."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def index(root: Path, column: str = "objects") -> Index:
    return labelme.index(Listing.open(str(root)), column)


def rows(root: Path) -> list[tuple[str, str | None, list[str], list[list[float]]]]:
    found = index(root).table.to_pylist()
    return [(r["path"], r["split"], r["objects"]["category"], r["objects"]["bbox"]) for r in found]


def shapes_of(root: Path) -> list[dict[str, Any]]:
    (row,) = index(root, "mask").table.to_pylist()
    assert row["mask"]["paths"] == []
    return json.loads(row["mask"]["shapes"])  # type: ignore[no-any-return]


def test_json_beside_pictures(tmp_path: Path) -> None:
    put(
        tmp_path,
        **{"a.json": tree(CAT, DOG), "a.jpg": "", "b.json": tree(name="b.jpg"), "b.jpg": "", "c.jpg": ""},
    )
    look = labelme.look(Listing.open(str(tmp_path)))
    assert look is not None and (set(look.pictures), look.lacks) == ({"a.jpg", "b.jpg"}, "")
    assert rows(tmp_path) == [
        ("a.jpg", None, ["cat", "dog"], [[4, 5, 6, 15], [1, 2, 10, 10]]),
        ("b.jpg", None, [], []),
    ]
    assert index(tmp_path).table["stated_width"].to_pylist() == [48, 48]
    assert {f.kind: f.count for f in index(tmp_path).findings} == {"no_label_file": 1}


@pytest.mark.parametrize("name", ["..\\images\\train\\a.jpg", "../images/train/a.jpg", "a.jpg", ""])
def test_json_in_a_folder_beside(tmp_path: Path, name: str) -> None:
    put(tmp_path, **{"labels/train/a.json": tree(CAT, name=name), "images/train/a.jpg": ""})
    put(tmp_path, **{"labels/val/a.json": tree(CAT, name=name), "images/val/a.jpg": ""})
    assert [(path, split) for path, split, *_ in rows(tmp_path)] == [
        ("images/train/a.jpg", "train"),
        ("images/val/a.jpg", "validation"),
    ]
    assert index(tmp_path).findings == []


def test_a_picture_found_by_image_path(tmp_path: Path) -> None:
    put(tmp_path, **{"0.json": tree(CAT, name="a.jpg"), "a.jpg": ""})
    assert rows(tmp_path)[0][0] == "a.jpg" and [f.kind for f in index(tmp_path).findings] == ["name_differs"]


def test_boxes_around_shapes_and_groups(tmp_path: Path) -> None:
    circle = shape("c", "circle", [10, 10], [13, 14])
    parts = [shape("g", "polygon", [n, n], [n + 2, n], [n, n + 3], group_id=5) for n in (1, 20)]
    left_out = [
        shape("p", "point", [1, 1]),
        shape("l", "line", [1, 1], [2, 2]),
        shape("__ignore__", "rectangle", [0, 0], [9, 9]),
    ]
    old = {"label": "old", "points": [[0, 0], [4, 0], [4, 8]]}
    put(tmp_path, **{"a.json": tree(circle, *parts, *left_out, old), "a.jpg": ""})
    _, _, names, boxes = rows(tmp_path)[0]
    assert names == ["c", "g", "old"]
    assert boxes == [pytest.approx([5, 5, 10, 10]), [1, 1, 21, 22], [0, 0, 4, 8]]
    assert dict(index(tmp_path).ignored) == {
        "shapes without area (point)": 1, "shapes without area (line)": 1, "objects of __ignore__": 1,
    }  # fmt: skip
    assert [f.kind for f in index(tmp_path).findings] == ["shapes_left_out"]


def test_masks(tmp_path: Path) -> None:
    pixels = np.zeros((6, 5), np.uint8)
    pixels[1:4, 2:] = 255
    png = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(png, "PNG")
    painted = shape("a", "mask", [45, 30], [49, 35], mask=base64.b64encode(png.getvalue()).decode())
    ignored, ground = (
        shape("__ignore__", "rectangle", [0, 0], [9, 9]),
        shape("_background_", "rectangle", [1, 1], [2, 2]),
    )
    root = put(tmp_path, **{"a.json": tree(DOG, painted, ground, ignored), "a.jpg": ""})
    result = index(root, "mask")
    assert result.names == {"mask": ["background", "a", "dog"]}
    unknown, dog, runs, background = shapes_of(root)
    assert (unknown["id"], dog, background["id"]) == (255, {"id": 2, "polygons": [[1, 2, 11, 2, 6, 12]]}, 0)
    expected_HW = np.zeros((36, 48), np.uint8)
    expected_HW[31:34, 47:] = 1  # of the five columns two reach out of the picture
    whole = rle_codec.frPyObjects(runs["rle"], 36, 48)
    assert runs["id"] == 1 and np.array_equal(rle_codec.decode([whole])[:, :, 0], expected_HW)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"shapes": [\n}', r"a\.json: line 2, no valid JSON; accepted: LabelMe's"),
        (tree(shape("", "polygon")), r"a\.json: shapes\[0\]: label = ''; accepted: the name of a class"),
        (tree(shape(None, "polygon")), r"shapes\[0\]: label = None"),
        (tree(shape("x", "polygon", [1, 2], [3])), r"shapes\[0\] \(x\): points = .*accepted: a list of"),
        (tree(shape("x", "polygon", [1, float("nan")])), r"shapes\[0\] \(x\): points = \[\[1, nan\]\]"),
        (tree(shape("x", "cuboid", [1, 2])), r"shape_type = 'cuboid'; accepted: rectangle, polygon"),
        (tree(shape("x", "mask", [1, 2], [3, 4], mask="?")), r"shapes\[0\] \(x\): mask that cannot be read"),
        (tree(name="x.jpg") | {"shapes": {}}, "shapes is no list"),
        ({"a": 1}, r"no \.json with shapes; accepted: LabelMe's"),
    ],
)  # fmt: skip
def test_mistakes_name_their_place(tmp_path: Path, content: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as error:
        index(put(tmp_path, **{"a.json": content, "a.jpg": ""}))
    assert "\n" not in str(error.value) and "SECRET" not in str(error.value)


def test_json_of_something_else(tmp_path: Path) -> None:
    put(
        tmp_path, **{"a.json": {"images": [], "annotations": []}, "a.jpg": "", "b.json": "[1]", "c.json": "{"}
    )
    assert labelme.look(Listing.open(str(tmp_path))) is None
    put(tmp_path, **{"d.json": tree(CAT, name="a.jpg"), "c.json": "{}"})
    assert dict(index(tmp_path).ignored) == {".json of another kind": 3}
