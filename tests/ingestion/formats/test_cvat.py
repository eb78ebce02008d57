"""CVAT for images 1.1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask as rle_codec

from tlray.errors import DataError
from tlray.ingestion.formats import cvat
from tlray.ingestion.formats.base import Index
from tlray.ingestion.formats.listing import Listing

META = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><id>1</id><name>t</name><mode>annotation</mode><labels>
    <label><name>dog</name><color>#fff</color><attributes></attributes></label>
    <label><name>cat</name></label><label><name>cow</name></label>
  </labels></task><dumped>2024-01-01</dumped></meta>
"""
BOX = '<box label="cat" occluded="0" xtl="5.00" ytl="6.00" xbr="25.00" ybr="16.00" z_order="0"></box>'


def image(name: str, *shapes: str, more: str = "") -> str:
    return f'<image id="0" name="{name}" width="48" height="36"{more}>{"".join(shapes)}</image>\n'


def put(folder: Path, text: str, *pictures: str) -> Path:
    for path in pictures:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")
    (folder / "annotations.xml").write_text(META + text + "</annotations>\n")
    return folder


def index(root: Path, column: str = "objects") -> Index:
    return cvat.index(Listing.open(str(root)), column)


def rows(root: Path) -> list[tuple[str, str | None, list[str], list[list[float]]]]:
    found = index(root).table.to_pylist()
    return [(r["path"], r["split"], r["objects"]["category"], r["objects"]["bbox"]) for r in found]


def kinds(result: Index) -> dict[str, int]:
    return {f.kind: f.count for f in result.findings}


def test_a_task(tmp_path: Path) -> None:
    text = image("a.jpg", BOX) + image("sub/b.png")
    root = put(tmp_path, text, "images/a.jpg", "images/sub/b.png", "images/c.jpg")
    look = cvat.look(Listing.open(str(root)))
    assert look is not None and (len(look.pictures), list(look.labels), look.lacks) == (
        3,
        ["annotations.xml"],
        "",
    )
    assert rows(root) == [
        ("images/a.jpg", None, ["cat"], [[5, 6, 20, 10]]),
        ("images/sub/b.png", None, [], []),
    ]
    assert index(root).table["stated_width"].to_pylist() == [48, 48]
    assert kinds(index(root)) == {"no_label_file": 1, "class_never": 2}


def test_a_project_with_subsets(tmp_path: Path) -> None:
    text = image("a.jpg", BOX, more=' subset="Train"') + image("a.jpg", more=' subset="Validation"')
    root = put(tmp_path, text, "images/Train/a.jpg", "images/Validation/a.jpg")
    assert [(path, split) for path, split, *_ in rows(root)] == [
        ("images/Train/a.jpg", "train"),
        ("images/Validation/a.jpg", "validation"),
    ]


SHAPES = [
    '<box label="dog" xtl="10" ytl="10" xbr="30" ybr="20" rotation="90.00" z_order="2"/>',
    '<polygon label="cat" points="1.00,2.00;11.00,2.00;6.00,12.00" z_order="1"/>',
    '<ellipse label="cow" cx="20" cy="20" rx="4" ry="6" z_order="0"/>',
    '<mask label="dog" rle="1, 4, 1" left="40" top="30" width="3" height="2" z_order="3"/>',
    '<points label="cat" points="1,2"/>',
    '<tag label="cat"/>',
]


def test_boxes_around_shapes(tmp_path: Path) -> None:
    root = put(tmp_path, image("a.jpg", *SHAPES), "a.jpg")
    _, _, names, boxes = rows(root)[0]
    assert names == ["cow", "cat", "dog", "dog"]
    assert boxes == [
        pytest.approx(b) for b in ([16, 14, 8, 12], [1, 2, 10, 10], [15, 5, 10, 20], [40, 30, 3, 2])
    ]
    assert kinds(index(root)) == {"box_rotated": 1, "shapes_left_out": 2}
    assert dict(index(root).ignored) == {"<points>": 1, "<tag>": 1}


def test_masks(tmp_path: Path) -> None:
    result = index(put(tmp_path, image("a.jpg", *SHAPES), "a.jpg"), "mask")
    assert result.names == {"mask": ["background", "dog", "cat", "cow"]}
    shapes: list[dict[str, Any]] = json.loads(result.table.to_pylist()[0]["mask"]["shapes"])
    assert [shape["id"] for shape in shapes] == [255, 3, 2, 1]
    assert shapes[2]["polygons"] == [[1, 2, 11, 2, 6, 12]]
    expected_HW = np.zeros((36, 48), np.uint8)
    expected_HW[30:32, 40:43] = [[0, 1, 1], [1, 1, 0]]
    whole = rle_codec.frPyObjects(shapes[3]["rle"], 36, 48)
    assert np.array_equal(rle_codec.decode([whole])[:, :, 0], expected_HW)
    assert kinds(result)["no_outline"] == 1


def test_video_is_refused_by_name(tmp_path: Path) -> None:
    root = put(
        tmp_path,
        '<track id="0" label="cat"><box frame="0" xtl="1" ytl="1" xbr="2" ybr="2"/></track>',
        "a.jpg",
    )
    look = cvat.look(Listing.open(str(root)))
    says = (
        "annotations.xml is CVAT for video (tracks); accepted: the same task exported as CVAT for images 1.1"
    )
    assert look is not None and look.lacks == says
    with pytest.raises(DataError, match=r"annotations\.xml: is CVAT for video \(tracks\); accepted"):
        index(root)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (image("a.jpg", BOX.replace("cat", "cats")), r"image 'a\.jpg': <box> \(cats\): label = 'cats'; acc"),
        (image("a.jpg", BOX.replace('"cat"', '""')), r"image 'a\.jpg': <box>: no label"),
        (image("a.jpg", BOX.replace("25.00", "x")), r"<box> \(cat\): xbr = 'x'; accepted: xtl, ytl"),
        (image("a.jpg", BOX.replace("xbr", "z")), r"<box> \(cat\): no xbr"),
        (image("a.jpg", '<polygon label="cat" points="1,2;3"/>'), r"<polygon> \(cat\): points = '1,2;3'"),
        (image("a.jpg", '<polygon label="cat" points="1,2;3,4"/>'), r"2 points; accepted: three or more"),
        (image("a.jpg", '<mask label="cat" rle="1,2" left="0" top="0" width="9" height="1"/>'), "rle of 3"),
        (image("a.jpg") + image("a.jpg"), r"image 'a\.jpg': 'a\.jpg' stands in .*, too; accepted: once"),
        (image(""), r"image 0: no name; accepted"),
        (image("a.jpg") + "<", r"annotations\.xml line 9, column 1: no valid XML"),
        ("", r"annotations\.xml: no <image>"),
    ],
)  # fmt: skip
def test_mistakes_name_their_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as error:
        index(put(tmp_path, text, "a.jpg"))
    assert "\n" not in str(error.value)


def test_other_xml(tmp_path: Path) -> None:
    put(tmp_path, "", "a.jpg")
    for text in ("<annotation><object/></annotation>", "<annotations><annotation/></annotations>", "none"):
        (tmp_path / "annotations.xml").write_text(text)
        assert cvat.look(Listing.open(str(tmp_path))) is None
    with pytest.raises(DataError, match="no XML with <annotations>; accepted: CVAT for images"):
        index(tmp_path)


def test_labels_in_another_form_of_letters(tmp_path: Path) -> None:
    box = BOX.replace("cat", "cafe\u0301")
    root = put(tmp_path, image("a.jpg", box), "images/a.jpg")
    text = (root / "annotations.xml").read_text().replace("<name>cat</name>", "<name>caf\u00e9</name>")
    (root / "annotations.xml").write_text(text)
    assert rows(root)[0][2] == ["caf\u00e9"]
