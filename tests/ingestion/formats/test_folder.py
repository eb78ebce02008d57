"""Class folders, with and without splits."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tlray.errors import ConfigError, DataError
from tlray.ingestion import formats
from tlray.ingestion.formats import folder
from tlray.ingestion.formats.listing import Listing

CLASSES = ("cat", "dog")


def lay(root: Path, *names: str) -> str:
    for name in names:
        place = root / name
        if name.endswith("/"):
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"x")
    return str(root)


def rows(root: str) -> list[tuple[str, str | None, str]]:
    return [
        (r["path"], r["split"], r["label"])
        for r in folder.index(Listing.open(root), "label").table.to_pylist()
    ]


def test_classes_without_splits(tmp_path: Path) -> None:
    root = lay(tmp_path, "dog/b.JPG", "dog/a.png", "cat/deep/down/c.jpeg")
    assert rows(root) == [
        ("cat/deep/down/c.jpeg", None, "cat"),
        ("dog/a.png", None, "dog"),
        ("dog/b.JPG", None, "dog"),
    ]
    assert rows(root + "/") == rows(root)


def test_splits_by_any_of_their_names(tmp_path: Path) -> None:
    root = lay(tmp_path, "Train/dog/a.jpg", "val/dog/b.jpg", "test/dog/new/c.jpg")
    assert [r[:2] for r in rows(root)] == [
        ("Train/dog/a.jpg", "train"),
        ("test/dog/new/c.jpg", "test"),
        ("val/dog/b.jpg", "validation"),
    ]
    assert {r[2] for r in rows(root)} == {"dog"}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    root = lay(tmp_path, "train/a.jpg", "bus/b.jpg")
    assert [(r[1], r[2]) for r in rows(root)] == [(None, "bus"), (None, "train")]


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("training_set/", "test_set/"),  # as archives are unpacked, and as people call them
        ("training_set/training_set/", "Valid_Set/Valid_Set/"),
        ("seg_train/seg_train/", "seg_val/seg_val/"),
        ("TrainImages/", "ValImages/"),
        ("imagenet_train/", "imagenet_val/"),
        ("chest_xray/train/", "chest_xray/val/"),
        ("chest_xray/chest_xray/train/", "chest_xray/chest_xray/val/"),
        ("images/train/", "images/val/"),
        ("data/split 1/train/", "data/split 1/dev/"),
        ("train/images/", "val/images/"),
        ("train2017/", "val2017/"),
    ],
)
def test_splits_however_they_are_called_and_wrapped(tmp_path: Path, train: str, validation: str) -> None:
    root = lay(tmp_path, *(f"{split}{name}/1.jpg" for split in (train, validation) for name in CLASSES))
    other = "test" if "test" in validation else "validation"
    assert {(path.startswith(train), split, label) for path, split, label in rows(root)} == {
        (True, "train", "cat"), (True, "train", "dog"), (False, other, "cat"), (False, other, "dog"),
    }  # fmt: skip
    assert found(root) == "folder"


def test_splits_within_the_classes(tmp_path: Path) -> None:
    root = lay(tmp_path, *(f"{name}/{split}/1.jpg" for name in ("cat", "dog") for split in ("train", "val")))
    assert {row[1:] for row in rows(root)} == {
        (split, name) for name in ("cat", "dog") for split in ("train", "validation")
    }


def test_a_folder_of_layouts_around_the_classes_means_nothing(tmp_path: Path) -> None:
    assert {row[2] for row in rows(lay(tmp_path, "data/images/cat/a.jpg", "data/images/dog/a.jpg"))} == {
        "cat", "dog",
    }  # fmt: skip
    # So does any other that holds several, which is said; a class that is alone keeps its folders.
    other = lay(tmp_path / "other", "lfw/Ann_Lee/a.jpg", "lfw/Bo_Li/a.jpg")
    assert {row[2] for row in rows(other)} == {"Ann_Lee", "Bo_Li"}
    (said,) = folder.index(Listing.open(other), "label").findings
    assert (said.severity, said.kind, said.examples) == ("info", "wrapping_folder", ["lfw"])
    wrapped = lay(tmp_path / "wrapped", "set-v3/images/cat/a.jpg", "set-v3/images/dog/a.jpg")
    assert {row[2] for row in rows(wrapped)} == {"cat", "dog"}
    alone = lay(tmp_path / "alone", "Pets/2021/a.jpg", "Pets/b.jpg")
    assert {row[2] for row in rows(alone)} == {"Pets"}


def test_folders_in_class_folders_are_named(tmp_path: Path) -> None:
    root = lay(tmp_path, "fruit/apple/a.jpg", "fruit/pear/a.jpg", "stone/a.jpg")
    assert {row[2] for row in rows(root)} == {"fruit", "stone"}
    (nested,) = folder.index(Listing.open(root), "label").findings
    assert (nested.severity, nested.kind, nested.examples) == (
        "warning", "nested_folder", ["fruit/apple", "fruit/pear"],
    )  # fmt: skip


def test_pictures_of_a_split_in_no_class_folder_are_named(tmp_path: Path) -> None:
    root = lay(tmp_path, "train/dog/a.jpg", "train/cat/a.jpg", "test/test/1.jpg", "test/2.jpg")
    index = folder.index(Listing.open(root), "label")
    assert index.table["path"].to_pylist() == ["train/cat/a.jpg", "train/dog/a.jpg"]
    assert [(f.kind, f.examples) for f in index.findings] == [
        ("no_class_folder", ["test/2.jpg", "test/test/1.jpg"])
    ]


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    root = lay(
        tmp_path,
        "dog/a.jpg",
        "dog/photo",  # no ending: may be a picture
        "dog/b.heic",  # a picture that cannot be opened: to be named, not lost
        "dog/notes.txt",
        "dog/more.TXT",
        "dog/.hidden.jpg",
        ".cache/dog/x.jpg",
        "__MACOSX/dog/a.jpg",
        "loose.jpg",
    )
    index = folder.index(Listing.open(root), "label")
    assert index.table["path"].to_pylist() == ["dog/a.jpg", "dog/b.heic", "dog/photo"]
    assert dict(index.ignored) == {".txt": 2}
    assert [(f.severity, f.kind, f.count) for f in index.findings] == [("warning", "no_class_folder", 1)]


@pytest.mark.parametrize("split", ["", "train/"])
def test_an_empty_class_folder_is_named(tmp_path: Path, split: str) -> None:
    root = lay(tmp_path, f"{split}dog/a.jpg", f"{split}cat/readme.txt", f"{split}cow/")
    with pytest.raises(DataError, match=rf"{split}cat: class folder without pictures"):
        folder.index(Listing.open(root), "label")


def test_a_folder_beside_the_splits_is_named(tmp_path: Path) -> None:
    root = lay(tmp_path, "train/dog/a.jpg", "test/dog/a.jpg", "unlabelled/a.jpg")
    with pytest.raises(DataError, match=r"unlabelled: a folder of pictures beside the splits test, train;"):
        folder.index(Listing.open(root), "label")


def test_one_split_under_two_names(tmp_path: Path) -> None:
    root = lay(tmp_path, "train/dog/a.jpg", "val/dog/a.jpg", "valid/dog/b.jpg")
    with pytest.raises(DataError, match="two folders for one split among train, val, valid"):
        folder.index(Listing.open(root), "label")


def test_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures in class folders"):
        folder.index(Listing.open(lay(tmp_path, "a.jpg")), "label")
    with pytest.raises(DataError, match="missing: not found; accepted: a folder or table"):
        Listing.open(str(tmp_path / "missing"))


def found(root: str) -> str:
    return formats.find(Listing.open(root))[0]


def test_found_by_itself(tmp_path: Path) -> None:
    root = lay(tmp_path / "in", "dog/a.jpg", "cat/b.jpg")
    assert found(root) == "folder"
    with pytest.raises(
        DataError, match=r"holds 1 \.jpg, no layout of labelled pictures found; .*--format .*folder"
    ):
        found(f"{root}/dog")
    with pytest.raises(ConfigError, match="did you mean 'folder'"):
        formats.load("foldr")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["images/a.jpg", "images/b.jpg", "data/c.jpg"], "'data' and 'images' are each a name of layouts"),
        (["train/a.jpg", "test/b.jpg"], "'test' and 'train' are each a name of splits, not of a class"),
        (["a/x.jpg", "b/y.jpg", "a/x.xml"], r"1 \.xml \(a/x\.xml\) may hold the labels"),
        (["train_images/a.jpg", "test_images/b.jpg"], "'test_images' and 'train_images' are each"),
        (["asl_train/a.jpg", "asl_val/b.jpg"], "'asl_train' and 'asl_val' are each a name of splits"),
        (["Pet/cat/a.jpg", "Pet/dog/a.jpg", "Pet/Pet/cat/a.jpg"], "'Pet' lies in one of the same name"),
        (["cat/a.jpg", "dog/a.jpg", "b.jpg", "c.jpg", "d.jpg"], r"3 pictures are in no class folder"),
        ([f"{n}/{n}.jpg" for n in range(20)], "20 classes for 20 pictures is one for nearly every picture"),
    ],
)
def test_what_speaks_against_classes_is_named(tmp_path: Path, names: list[str], reason: str) -> None:
    root = lay(tmp_path, *names)
    with pytest.raises(DataError, match=f"nearest layout: folder .*{reason}"):
        found(root)


@pytest.mark.parametrize(
    "names",
    [
        ["train/a.jpg", "bus/b.jpg", "car/c.jpg"],  # a train is a vehicle, too
        ["cat/1.jpg", "dog/1.jpg", "cat/2.jpg", "dog/2.jpg"],  # numbers in each class
        ["cat/a.jpg", "dog/b.jpg", "README.txt", "notes.md"],
    ],
)
def test_what_looks_odd_and_is_none(tmp_path: Path, names: list[str]) -> None:
    assert found(lay(tmp_path, *names)) == "folder"


def test_a_list_of_the_classes_is_no_label_file(tmp_path: Path) -> None:
    root = lay(tmp_path, "cat/a.jpg", "dog/b.jpg")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert found(root) == "folder"


def test_pictures_beside_folders_of_their_masks_are_no_classes(tmp_path: Path) -> None:
    for n in range(3):
        for name, mode in (("photographs", "RGB"), ("drawn", "L")):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new(mode, (20, 10)).save(tmp_path / name / f"{n}.png")
    assert found(str(tmp_path)) != "folder"
