"""COCO's JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs as pafs

from tlray import formats
from tlray.errors import DataError
from tlray.formats import coco

FS = pafs.LocalFileSystem()
TREE: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 90, "name": "dog"}],
    "annotations": [
        {"image_id": 7, "category_id": 90, "bbox": [1, 2, 3.5, 4], "iscrowd": 0},
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9]},
        {"image_id": 8, "category_id": 1, "bbox": [0, 0, 99, 99], "iscrowd": 1},
    ],
}


def put(folder: Path, name: str, tree: Any = TREE, pictures: str | None = None) -> str:
    """A file below the folder; pictures a.jpg and b.jpg (never opened) in another folder of it."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(tree if isinstance(tree, str) else json.dumps(tree))
    if pictures is not None:
        (folder / pictures).mkdir(parents=True, exist_ok=True)
        for picture in ("a.jpg", "b.jpg"):
            (folder / pictures / picture).write_bytes(b"")
    return str(folder)


def rows(root: str) -> list[tuple[str, str | None, list[str], list[list[float]]]]:
    found = coco.index(FS, root).to_pylist()
    return [(r["path"], r["split"], r["objects"]["category"], r["objects"]["bbox"]) for r in found]


@pytest.mark.parametrize(
    ("file", "pictures", "split"),
    [
        ("annotations/instances_train2017.json", "train2017", "train"),
        ("annotations/instances_val2017.json", "images/val2017", "validation"),
        ("annotations/instances_test.json", "test", "test"),
        ("annotations/instances_default.json", "images", None),
        ("valid/_annotations.coco.json", "valid", "validation"),
        ("labels.json", "data", None),
        ("labels.json", ".", None),
    ],
)
def test_where_files_and_pictures_lie(tmp_path: Path, file: str, pictures: str, split: str | None) -> None:
    root = put(tmp_path, file, TREE, pictures)
    at = "" if pictures == "." else f"{pictures}/"
    assert formats.find(FS, root) == "coco"
    assert rows(root) == [
        (f"{at}a.jpg", split, ["dog", "cat"], [[1, 2, 3.5, 4], [0, 0, 9, 9]]),
        (f"{at}b.jpg", split, [], []),
    ]
    assert json.loads(coco.index(FS, root).schema.metadata[b"ignored"]) == {"boxes of crowds": 1}


def test_instances_of_several_splits_and_what_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "annotations/instances_train2017.json", TREE, "train2017")
    put(tmp_path, "annotations/instances_val2017.json", TREE, "val2017")
    put(tmp_path, "annotations/captions_train2017.json", "{broken")
    (tmp_path / "val2017" / "c.jpg").write_bytes(b"")
    root = str(tmp_path)
    assert [(path, split) for path, split, *_ in rows(root)] == [
        ("train2017/a.jpg", "train"),
        ("train2017/b.jpg", "train"),
        ("val2017/a.jpg", "validation"),
        ("val2017/b.jpg", "validation"),
    ]
    ignored = json.loads(coco.index(FS, root).schema.metadata[b"ignored"])
    assert ignored == {"boxes of crowds": 2, "pictures in no file": 1}


def changed(part: str, number: int, **values: Any) -> dict[str, Any]:
    tree = json.loads(json.dumps(TREE))
    tree[part][number] |= values
    return {name: [{k: v for k, v in x.items() if v is not None} for x in tree[name]] for name in tree}


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ('{"images": [\n{"id": 1,]}', r"labels\.json: line 2, no valid JSON"),
        ({"images": [], "categories": []}, "labels.json: no list of objects 'annotations'"),
        (changed("images", 1, file_name=None), r"images\[1\]: no 'file_name'"),
        (
            changed("images", 1, file_name="../../b.jpg"),
            r"images\[1\]: '../../b.jpg'; accepted: a path below",
        ),
        (
            changed("images", 1, file_name="./a.jpg"),
            r"images\[1\]: 'a.jpg' stands in labels.json; accepted: once",
        ),
        (
            changed("annotations", 1, category_id=5),
            r"labels.json: annotations\[1\]: category_id = 5; accepted",
        ),
        (changed("images", 0, id=[1]), r"images\[0\]: id = \[1\]; accepted: a number or text"),
        (changed("annotations", 0, image_id=[1]), r"annotations\[0\]: image_id = \[1\]; accepted: an id"),
        (changed("annotations", 0, image_id=5), r"annotations\[0\]: image_id = 5"),
        (changed("annotations", 0, bbox=[1, 2, 3]), r"annotations\[0\]: bbox = \[1, 2, 3\]; accepted: x, y"),
        (changed("annotations", 0, bbox=None), r"annotations\[0\]: bbox = None"),
    ],
)
def test_mistakes_name_their_place(tmp_path: Path, tree: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as error:
        coco.index(FS, put(tmp_path, "labels.json", tree, "."))
    assert "\n" not in str(error.value)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    root = put(tmp_path, "labels.json", TREE, ".")
    text = json.dumps(TREE).replace("cat", "caf\xe9")
    (tmp_path / "labels.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"labels\.json: no valid JSON; accepted: COCO's instances$"):
        coco.index(FS, root)


def test_two_files_need_splits(tmp_path: Path) -> None:
    put(tmp_path, "instances_a.json", TREE, ".")
    with pytest.raises(DataError, match=r"instances_a\.json: one of 2 files, and of no split"):
        coco.index(FS, put(tmp_path, "instances_train.json"))
