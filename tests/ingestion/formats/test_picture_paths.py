"""What label files mean by names of pictures, and the layouts of boxes told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tlray.errors import DataError
from tlray.ingestion import formats
from tlray.ingestion.formats.heuristics import folder_split
from tlray.ingestion.formats.listing import Listing
from tlray.ingestion.formats.pairs import unlabelled
from tlray.ingestion.formats.picture_paths import PicturePaths

LAYOUTS = ["coco", "createml", "cvat", "folder", "labelme", "voc"]
VOC = "<annotation><object><name>x</name></object></annotation>"
CVAT = '<annotations><image id="0" name="1.jpg" width="4" height="3"/></annotations>'
COCO: dict[str, Any] = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [], "categories": []}
CREATEML = [{"image": "1.jpg", "annotations": []}]
LABELME = {"version": "5.0", "flags": {}, "shapes": [], "imagePath": "1.jpg", "imageData": None}


def listing(*files: str) -> Listing:
    return Listing("root", files)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        (
            "voc",
            {"train/1.xml": VOC, "train/1.jpg": "", "train/2.jpg": "", "test/3.xml": VOC, "test/3.jpg": ""},
        ),
        ("voc", {"images/1.jpg": "", "annots/1.xml": VOC}),
        ("coco", {"train/_annotations.coco.json": COCO, "train/1.jpg": ""}),
        ("coco", {"annotations/instances_val.json": COCO, "images/1.jpg": ""}),
        ("createml", {"train/_annotations.createml.json": CREATEML, "train/1.jpg": ""}),
        ("labelme", {"cats/1.json": LABELME, "cats/1.jpg": "", "dogs/2.json": LABELME, "dogs/2.jpg": ""}),
        ("cvat", {"annotations.xml": CVAT, "images/1.jpg": ""}),
    ],
)
def test_layouts_of_boxes_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, files: dict[str, Any]
) -> None:
    monkeypatch.setattr(formats, "names", lambda: LAYOUTS)
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content if isinstance(content, str) else json.dumps(content))
    source = Listing.open(str(tmp_path))
    assert formats.find(source)[0] == name
    looks = [other for other in LAYOUTS if formats.load(other).look(source) is not None]
    assert set(looks) <= {name, "folder"}


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("Train/a.xml", "train"),
        ("x/train2017/images/a.jpg", "train"),
        ("val_01/a.jpg", "validation"),
        ("test-set/a.jpg", "test"),
        ("obj_valid_data/a.jpg", "validation"),
        ("test tubes/a.jpg", None),
        ("train.jpg", None),
        ("training data/a.jpg", "train"),
    ],
)
def test_splits_of_folders(path: str, split: str | None) -> None:
    assert folder_split(path) == split


def test_the_longest_end_of_a_foreign_path_decides() -> None:
    find = PicturePaths(listing("a/x/1.jpg", "a/y/1.jpg")).lookup("l.json", "", ["C:\\d\\y\\1.jpg"])
    assert find("C:\\d\\y\\1.jpg", "row 1") == "a/y/1.jpg"
    with pytest.raises(
        DataError, match=r"row 2: '/d/1\.jpg' may be a/x/1\.jpg or a/y/1\.jpg; accepted: a path"
    ):
        find("/d/1.jpg", "row 2")


def test_a_name_that_several_folders_have_is_refused_when_no_folder_has_all() -> None:
    picture_paths = PicturePaths(
        listing("cats/1.jpg", "cats/2.jpg", "dogs/1.jpg", "dogs/3.jpg", "dogs/4.jpg")
    )
    find = picture_paths.lookup("l.json", "", ["1.jpg", "2.jpg", "3.jpg", "4.jpg"])
    assert find("3.jpg", "row 3") == "dogs/3.jpg" and find("2.jpg", "row 2") == "cats/2.jpg"
    with pytest.raises(DataError, match=r"row 1: '1\.jpg' may be dogs/1\.jpg or cats/1\.jpg"):
        find("1.jpg", "row 1")


def test_a_backslash_in_a_name_that_is_there_is_no_separator() -> None:
    picture_paths = PicturePaths(listing("a\\1.jpg"))
    assert picture_paths.lookup("l", "", ["a\\1.jpg"])("a\\1.jpg", "row") == "a\\1.jpg"
    assert picture_paths.findings() == []


def test_pictures_without_labels_and_masks() -> None:
    source = listing("images/1.jpg", "images/2.jpg", "masks/1.png")
    findings, ignored = unlabelled(source, ["images/1.jpg"], ".xml")
    assert [(f.kind, f.examples) for f in findings] == [("no_label_file", ["images/2.jpg"])]
    assert ignored == {"pictures of masks": 1}


def test_a_mask_of_the_stated_name_is_not_taken_where_the_picture_has_another_ending() -> None:
    picture_paths = PicturePaths(listing("images/a.jpg", "masks/a.png"))
    assert picture_paths.lookup("l.json", "", ["a.png"])("a.png", "row") == "images/a.jpg"
    assert [f.kind for f in picture_paths.findings()] == ["path_ending"]


def test_a_name_of_several_pictures_is_that_of_the_label_file_s_split() -> None:
    lookup = PicturePaths(listing("train/1.jpg", "val/1.jpg", "x/2.jpg")).lookup("l", "", split="validation")
    assert lookup.find("1.jpg") == "val/1.jpg" and lookup.several("train/1.jpg") == ["train/1.jpg"]
    assert lookup.several("test/1.jpg") == [] and lookup.find("test/2.jpg") == "x/2.jpg"
