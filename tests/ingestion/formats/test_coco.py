"""COCO's JSON: of its own site, Roboflow, CVAT, Label Studio and scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask as rle_codec

from tlray.data import schema
from tlray.errors import DataError
from tlray.ingestion.formats import coco
from tlray.ingestion.formats.base import Index, Look
from tlray.ingestion.formats.listing import Listing

TREE: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 90, "name": "dog"}],
    "annotations": [
        {"image_id": 7, "category_id": 90, "bbox": [1, 2, 3.5, 4], "iscrowd": 0},
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9]},
        {"image_id": 8, "category_id": 1, "bbox": [0, 0, 99, 99], "iscrowd": 1},
    ],
}
SQUARE = [2, 3, 12, 3, 12, 13, 2, 13]


def put(folder: Path, name: str, tree: Any = TREE, pictures: str | None = None) -> Path:
    """A file below the folder; pictures a.jpg and b.jpg (never opened) in another folder of it."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(tree if isinstance(tree, str) else json.dumps(tree))
    if pictures is not None:
        (folder / pictures).mkdir(parents=True, exist_ok=True)
        for picture in ("a.jpg", "b.jpg"):
            (folder / pictures / picture).write_bytes(b"")
    return folder


def changed(part: str, number: int, **values: Any) -> dict[str, Any]:
    """The tree with other values in one item; None takes a key away."""
    tree = json.loads(json.dumps(TREE))
    tree[part][number] |= values
    return {name: [{k: v for k, v in x.items() if v is not None} for x in tree[name]] for name in tree}


def index(root: Path, column: str = "objects") -> Index:
    return coco.index(Listing.open(str(root)), column)


def look(root: Path) -> Look | None:
    return coco.look(Listing.open(str(root)))


def rows(root: Path) -> list[tuple[str, str | None, list[str], list[list[float]]]]:
    found = index(root).table.to_pylist()
    return [(r["path"], r["split"], r["objects"]["category"], r["objects"]["bbox"]) for r in found]


def kinds(root: Path) -> dict[str, int]:
    return {f.kind: f.count for f in index(root).findings}


@pytest.mark.parametrize(
    ("file", "pictures", "split"),
    [
        ("annotations/instances_train2017.json", "train2017", "train"),
        ("annotations/instances_val2017.json", "images/val2017", "validation"),
        ("annotations/instances_val2017.json", "data/val", "validation"),
        ("annotations/instances_test.json", "test", "test"),
        ("annotations/instances_default.json", "images", None),
        ("annotations/instances_default.json", "images/default", None),
        ("valid/_annotations.coco.json", "valid", "validation"),
        ("train/labels.json", "train/data", "train"),
        ("labels.json", "data", None),
        ("labels.json", "Train", "train"),
        ("labels.json", ".", None),
    ],
)
def test_where_files_and_pictures_lie(tmp_path: Path, file: str, pictures: str, split: str | None) -> None:
    root = put(tmp_path, file, TREE, pictures)
    at = "" if pictures == "." else f"{pictures}/"
    seen = look(root)
    assert seen is not None and len(seen.pictures) == 2 and list(seen.labels) == [file] and not seen.lacks
    assert rows(root) == [
        (f"{at}a.jpg", split, ["dog", "cat"], [[1, 2, 3.5, 4], [0, 0, 9, 9]]),
        (f"{at}b.jpg", split, ["cat"], [[0, 0, 99, 99]]),
    ]
    crowds = [schema.flagged(row["objects"], "iscrowd") for row in index(root).table.to_pylist()]
    assert crowds == [[False, False], [True]] and not index(root).ignored and kinds(root) == {}


def test_instances_of_several_splits_and_what_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "annotations/instances_train2017.json", TREE, "train2017")
    put(tmp_path, "annotations/instances_val2017.json", TREE, "val2017")
    put(tmp_path, "annotations/captions_train2017.json", "{broken")
    put(tmp_path, "annotations/person_keypoints_train2017.json", TREE)
    (tmp_path / "val2017" / "c.jpg").write_bytes(b"")
    assert [(path, split) for path, split, *_ in rows(tmp_path)] == [
        ("train2017/a.jpg", "train"),
        ("train2017/b.jpg", "train"),
        ("val2017/a.jpg", "validation"),
        ("val2017/b.jpg", "validation"),
    ]
    assert not index(tmp_path).ignored and kinds(tmp_path) == {"no_label_file": 1}


def test_roboflow_with_the_category_of_all_others(tmp_path: Path) -> None:
    tree = changed("images", 0, width=640, height=480, license=1, date_captured="2024", extra={"name": "x"})
    tree["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
    root = put(tmp_path, "train/_annotations.coco.json", {"info": {}, "licenses": [], **tree}, "train")
    put(tmp_path, "valid/_annotations.coco.json", tree, "valid")
    assert [split for _, split, *_ in rows(root)] == ["train", "train", "validation", "validation"]
    assert kinds(root) == {"class_never": 2}
    assert index(root).table["stated_width"].to_pylist() == [640, None, 640, None]


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ("images\\a.jpg", "path_backslash"),
        ("C:\\data\\pictures\\a.jpg", "path_elsewhere"),
        ("/home/ann/data/a.jpg", "path_elsewhere"),
        ("../../upload/1/a.jpg", "path_elsewhere"),
        ("https://example.org/x/images/a.jpg?token=1", "path_elsewhere"),
        ("images/%61.jpg", "path_quoted"),
        ("A.JPG", "path_other_case"),
        ("a.png", "path_ending"),
        ("a", None),
        ("../images/a.jpg", None),
        ("./a.jpg", None),
    ],
)
def test_paths_of_elsewhere(tmp_path: Path, written: str, kind: str | None) -> None:
    put(tmp_path, "annotations/instances_default.json", changed("images", 0, file_name=written), "images")
    assert [path for path, *_ in rows(tmp_path)] == ["images/a.jpg", "images/b.jpg"]
    assert set(kinds(tmp_path)) == ({kind} if kind else set())
    seen = look(tmp_path)
    assert seen is not None and len(seen.pictures) == 2


def test_a_url_alone(tmp_path: Path) -> None:
    tree = changed("images", 0, file_name=None, coco_url="http://images.cocodataset.org/val2017/a.jpg")
    assert rows(put(tmp_path, "labels.json", tree, "images"))[0][0] == "images/a.jpg"


def test_names_in_other_letters(tmp_path: Path) -> None:
    put(tmp_path, "labels.json", changed("images", 0, file_name="caf\u00e9.jpg"), "images")
    (tmp_path / "images" / "cafe\u0301.jpg").write_bytes(b"")
    assert rows(tmp_path)[1][0] == "images/cafe\u0301.jpg"
    assert kinds(tmp_path) == {"path_other_case": 1, "no_label_file": 1}


def test_names_that_are_in_two_folders(tmp_path: Path) -> None:
    put(tmp_path, "instances_val.json", TREE, "train")
    put(tmp_path, "instances_val.json", TREE, "val")
    assert [path for path, *_ in rows(tmp_path)] == ["val/a.jpg", "val/b.jpg"]
    (tmp_path / "instances_val.json").rename(tmp_path / "labels.json")
    with pytest.raises(
        DataError, match=r"labels\.json: pictures of these names lie in train and in val; accepted"
    ):
        index(tmp_path)


def test_masks_are_not_taken_for_the_pictures(tmp_path: Path) -> None:
    put(tmp_path, "labels.json", TREE, "images")
    put(tmp_path, "labels.json", TREE, "masks")
    assert rows(tmp_path)[0][0] == "images/a.jpg" and dict(index(tmp_path).ignored)["pictures of masks"] == 2


def test_boxes_of_outlines(tmp_path: Path) -> None:
    mask_HW = np.zeros((30, 20), np.uint8)
    mask_HW[5:15, 4:9] = 1
    packed = rle_codec.encode(np.asfortranarray(mask_HW))
    flat = mask_HW.ravel(order="F")
    counts = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    outlines = [
        [SQUARE, [1, 20, 5, 20, 5, 25]],
        {"size": [30, 20], "counts": counts},
        {"size": [30, 20], "counts": packed["counts"].decode()},
    ]
    tree = json.loads(json.dumps(TREE))
    tree["annotations"] = [
        {"id": n, "image_id": 7, "category_id": 1, "segmentation": outline, **box}
        for n, (outline, box) in enumerate(
            zip(outlines, ({}, {"bbox": []}, {"bbox": [0, 0, 0, 0]}), strict=True)
        )
    ]
    root = put(tmp_path, "labels.json", tree, ".")
    assert rows(root)[0][3] == [[1, 3, 11, 22], [4, 5, 5, 10], [4, 5, 5, 10]]
    assert kinds(root) == {"class_never": 1, "box_of_polygon": 3}


def test_outlines_for_masks(tmp_path: Path) -> None:
    rle = {"size": [30, 20], "counts": [0, 600]}
    tree = changed("annotations", 0, segmentation=[SQUARE])
    tree["annotations"][2]["segmentation"] = rle
    tree["annotations"].append(
        {"image_id": 8, "category_id": 1, "segmentation": [[0.1, 0.1, 0.2, 0.2, 0.1, 0.3]]}
    )
    result = index(put(tmp_path, "labels.json", tree, "."), "mask")
    shapes = [json.loads(row["mask"]["shapes"]) for row in result.table.to_pylist()]
    assert shapes == [
        [{"id": 255, "polygons": [[0, 0, 9, 0, 9, 9, 0, 9]]}, {"id": 2, "polygons": [SQUARE]}],
        [
            {"id": 255, "rle": rle},
            {"id": 1, "polygons": [[0.1, 0.1, 0.2, 0.2, 0.1, 0.3]], "relative": True},
        ],
    ]
    assert result.names == {"mask": ["background", "cat", "dog"]}
    assert dict(result.ignored) == {"outlines of crowds (unknown pixels)": 1}
    assert {f.kind for f in result.findings} == {"no_outline"}


def test_boxes_alone_make_no_masks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels\.json: annotations\[0\].*: no segmentation, as no object"):
        index(put(tmp_path, "labels.json", TREE, "."), "mask")


def test_odd_ids_and_names_are_findings(tmp_path: Path) -> None:
    tree = json.loads(json.dumps(TREE))
    tree["annotations"][0] |= {"image_id": "7", "category_id": 90.0, "id": 1}
    tree["annotations"][1] |= {"id": 1}
    tree["categories"].append({"id": 91, "name": "cat"})
    root = put(tmp_path, "labels.json", tree, ".")
    assert rows(root)[0][2] == ["dog", "cat"]
    assert kinds(root) == {"id_type": 1, "annotation_id_double": 1, "class_double": 1, "class_never": 1}


def test_annotations_of_pictures_that_were_taken_out(tmp_path: Path) -> None:
    tree = json.loads(json.dumps(TREE))
    tree["annotations"] += [{"image_id": 7, "category_id": 1, "bbox": [n, 0, 5, 5]} for n in range(6)]
    tree["annotations"][-1]["image_id"] = 99
    root = put(tmp_path, "labels.json", tree, ".")
    assert len(rows(root)[0][2]) == 7 and kinds(root) == {"unknown_image": 1}


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ('{"images": [\n{"file_name": 1,]}', r"labels\.json: line 2, no valid JSON"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}], "categories": []}, "no list of objects 'ann"),
        (changed("images", 1, file_name=None), r"images\[1\]: no 'file_name'"),
        (changed("images", 1, file_name="./a.jpg"), r"images\[1\]: 'a.jpg' stands in labels.json: im"),
        (changed("images", 1, id=7), r"images\[1\]: id = 7 of 'b.jpg' is that of images\[0\] \('a.jpg'\)"),
        (changed("categories", 1, id=1), r"categories\[1\]: id = 1 is 'cat' and 'dog'; accepted: one"),
        (changed("categories", 1, name=" "), r"categories\[1\]: name = ' '; accepted: the name of a class"),
        (changed("annotations", 1, category_id=5), r"labels.json: annotations\[1\]: category_id = 5;"),
        (changed("annotations", 1, category_id=True), r"annotations\[1\]: category_id = True; accepted"),
        (changed("images", 0, id=[1]), r"images\[0\]: id = \[1\]; accepted: a number or text"),
        (changed("annotations", 0, image_id=[1]), r"annotations\[0\]: image_id = \[1\]; accepted: an id"),
        (changed("annotations", 0, image_id=5), r"annotations\[0\]: image_id = 5"),
        (changed("annotations", 0, bbox=[1, 2, 3]), r"annotations\[0\]: bbox = \[1, 2, 3\]; accepted: x, y"),
        (changed("annotations", 0, bbox=None), r"annotations\[0\]: bbox = None"),
        (changed("annotations", 0, segmentation=[[1, 2, 3]]), r"\[0\]: segmentation\[0\] = \[1, 2"),
        (changed("annotations", 0, bbox=[], segmentation={"size": [2, 2], "counts": [3]}), "runs of 3 p"),
    ],
)  # fmt: skip
def test_mistakes_name_their_place(tmp_path: Path, tree: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as error:
        index(put(tmp_path, "labels.json", tree, "."))
    assert "\n" not in str(error.value)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    root = put(tmp_path, "labels.json", TREE, ".")
    text = json.dumps(TREE).replace('"cat"', '"caf\xe9"')
    (tmp_path / "labels.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"labels\.json: no valid JSON; accepted: COCO's instances$"):
        index(root)
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "labels.json").write_bytes(text.encode(encoding))
        assert rows(root)[0][2] == ["dog", "caf\xe9"] and look(root) is not None


def test_several_files_have_splits_or_none(tmp_path: Path) -> None:
    put(tmp_path, "instances_a.json", TREE, ".")
    put(tmp_path, "instances_train.json")
    with pytest.raises(DataError, match=r"instances_a\.json: one of 2 files, and of no split"):
        index(tmp_path)
    (tmp_path / "instances_train.json").unlink()
    other = json.loads(json.dumps(TREE).replace("a.jpg", "c.jpg").replace("b.jpg", "d.jpg"))
    put(tmp_path, "instances_b.json", other)
    for name in ("c.jpg", "d.jpg"):
        (tmp_path / name).write_bytes(b"")
    assert [(path, split) for path, split, *_ in rows(tmp_path)] == [(f"{x}.jpg", None) for x in "abcd"]


@pytest.mark.parametrize(
    ("name", "tree", "says"),
    [
        ("r.json", [{"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}], "COCO results"),
        ("panoptic_val.json", {**TREE, "annotations": [{"image_id": 7, "segments_info": []}]}, "panoptic"),
        ("c.json", {**TREE, "annotations": [{"image_id": 7, "caption": "a cat"}]}, "COCO captions"),
    ],
)  # fmt: skip
def test_other_kinds_of_coco_are_refused_by_name(tmp_path: Path, name: str, tree: Any, says: str) -> None:
    root = put(tmp_path, name, tree, ".")
    seen = look(root)
    assert seen is not None and says in seen.lacks
    with pytest.raises(DataError, match=says):
        index(root)


def test_json_of_something_else(tmp_path: Path) -> None:
    assert look(put(tmp_path, "package.json", {"name": "x", "images": ["a"]}, ".")) is None
    assert look(put(tmp_path, "package.json", [1, 2])) is None


def test_a_file_that_is_named_is_the_only_one_that_is_read(tmp_path: Path) -> None:
    put(tmp_path, "annotations/instances_train.json", TREE, "images")
    put(tmp_path, "annotations/instances_minival.json", "{")
    listing = Listing.open(str(tmp_path / "annotations" / "instances_train.json"))
    assert coco.index(listing, "objects").table["path"].to_pylist() == ["images/a.jpg", "images/b.jpg"]


def test_most_pictures_missing(tmp_path: Path) -> None:
    put(tmp_path, "labels.json", TREE)
    (tmp_path / "x.jpg").write_bytes(b"")
    seen = look(tmp_path)
    assert seen is not None and seen.lacks == "no picture is there of the names in labels.json, as a.jpg"
    with pytest.raises(
        DataError, match=r"2 of 2 pictures .* not there, first: .*images\[0\]: 'a\.jpg'; looked for"
    ):
        index(tmp_path)


@pytest.mark.parametrize(
    ("written", "path", "says"),
    [
        ("../../c.jpg", "c.jpg", "with / between folders"),
        ("x\\c.jpg", "x/c.jpg", "this one is a Windows path"),
        ("D:/y/c.jpg", "y/c.jpg", "this one is a Windows path"),
        ("https://host/y/c.jpg", "host/y/c.jpg", "begins at another machine's root"),
    ],
)
def test_a_picture_that_is_missing_and_many_of_them(
    tmp_path: Path, written: str, path: str, says: str
) -> None:
    tree = changed("images", 1, file_name=written)
    put(tmp_path, "labels.json", tree)
    (tmp_path / "a.jpg").write_bytes(b"")
    assert [row[0] for row in rows(tmp_path)] == sorted(["a.jpg", path])
    (tmp_path / "a.jpg").rename(tmp_path / "x.jpg")
    tree["images"] = tree["images"][::-1]
    (tmp_path / "labels.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"2 of 2 pictures .* not there, first: .*images\[0\]") as error:
        index(tmp_path)
    assert says in str(error.value)
