"""CreateML's JSON, as Apple's tool and Roboflow write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tlray.errors import DataError
from tlray.ingestion.formats import createml
from tlray.ingestion.formats.base import Index
from tlray.ingestion.formats.listing import Listing


def item(name: str, *boxes: tuple[Any, ...], key: str = "image") -> dict[str, Any]:
    sides = ("x", "y", "width", "height")
    return {
        key: name,
        "annotations": [{"label": b[0], "coordinates": dict(zip(sides, b[1:], strict=True))} for b in boxes],
    }


def put(folder: Path, name: str, tree: Any, *pictures: str) -> Path:
    for path in (name, *pictures):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")
    (folder / name).write_text(tree if isinstance(tree, str) else json.dumps(tree), encoding="utf-8-sig")
    return folder


def index(root: Path) -> Index:
    return createml.index(Listing.open(str(root)), "objects")


def rows(root: Path) -> list[tuple[str, str | None, list[str], list[list[float]]]]:
    found = index(root).table.to_pylist()
    return [(r["path"], r["split"], r["objects"]["category"], r["objects"]["bbox"]) for r in found]


def test_roboflow_s_splits(tmp_path: Path) -> None:
    cat = ("cat", 20, 20, 10, 10.0)
    put(tmp_path, "train/_annotations.createml.json", [item("a.jpg", cat)], "train/a.jpg")
    put(tmp_path, "valid/_annotations.createml.json", [item("a.jpg")], "valid/a.jpg")
    look = createml.look(Listing.open(str(tmp_path)))
    assert look is not None and (len(look.pictures), len(look.labels), look.lacks) == (2, 2, "")
    assert rows(tmp_path) == [
        ("train/a.jpg", "train", ["cat"], [[15, 15, 10, 10]]),
        ("valid/a.jpg", "validation", [], []),
    ]
    assert index(tmp_path).findings == []


def test_apple_s_names_of_keys_and_folders_of_pictures(tmp_path: Path) -> None:
    tree = [item("a.JPG", ("1", 5, 5, 10, 10), key="imagefilename"), item("sub\\b.png", key="imagefilename")]
    tree[0]["annotation"] = tree[0].pop("annotations")
    tree[0]["annotation"][0]["label"] = 1
    put(tmp_path, "annotations.json", tree, "images/a.jpg", "images/sub/b.png", "images/c.png")
    assert [(path, names) for path, _, names, _ in rows(tmp_path)] == [
        ("images/a.jpg", ["1"]),
        ("images/sub/b.png", []),
    ]
    assert {f.kind: f.count for f in index(tmp_path).findings} == {
        "path_other_case": 1, "path_backslash": 1, "no_label_file": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ('[{"image": "a.jpg", "annotations": []},', r"l\.json: line 1, no valid JSON; accepted: CreateML"),
        ([item("a.jpg"), {"annotations": []}], r"l\.json: \[1\]: no 'image'"),
        ([item("a.jpg"), item("")], r"l\.json: \[1\]: image = ''"),
        ([item("a.jpg"), {"image": "b.jpg"}], r"\[1\]: no 'annotations'"),
        ([item("a.jpg"), item("./a.jpg")], r"\[1\]: 'a\.jpg' stands in l\.json: \[0\], too"),
        ([item("a.jpg", ("", 1, 2, 3, 4))], r"\[0\]\.annotations\[0\]: label = ''; accepted: the name"),
        ([item("a.jpg", ("x", 1, None, 3, 4))], r"annotations\[0\]: coordinates\.y = None; accepted: x, y"),
        ([item("c.jpg"), item("d.jpg")], r"2 of 2 pictures .* not there, first: .*l\.json: \[0\]: 'c\.jpg'"),
    ],
)  # fmt: skip
def test_mistakes_name_their_place(tmp_path: Path, tree: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as error:
        index(put(tmp_path, "l.json", tree, "a.jpg", "b.jpg"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "tree",
    [
        [1, 2],
        [{"id": 1, "annotations": [{"result": []}], "data": {"image": "a.jpg"}}],  # Label Studio
        {"image": "a.jpg", "annotations": []},
        [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}],
    ],
)
def test_json_of_something_else(tmp_path: Path, tree: Any) -> None:
    listing = Listing.open(str(put(tmp_path, "l.json", tree, "a.jpg")))
    assert createml.look(listing) is None
    with pytest.raises(DataError, match="no JSON of CreateML; accepted"):
        createml.index(listing, "objects")


def test_pictures_that_are_not_there(tmp_path: Path) -> None:
    look = createml.look(Listing.open(str(put(tmp_path, "l.json", [item("c.jpg")], "a.jpg"))))
    assert look is not None and look.lacks == "no picture is there of the names in l.json, as c.jpg"
