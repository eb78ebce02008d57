"""Class folders, with and without splits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from tlray import formats
from tlray.errors import ConfigError, DataError
from tlray.formats import folder

FS = pafs.LocalFileSystem()


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
    return [(r["path"], r["split"], r["label"]) for r in folder.index(FS, root).to_pylist()]


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
    table = folder.index(FS, root)
    assert table["path"].to_pylist() == ["dog/a.jpg", "dog/b.heic", "dog/photo"]
    assert json.loads(table.schema.metadata[b"ignored"]) == {".txt": 2, "in no class folder": 1}


@pytest.mark.parametrize("split", ["", "train/"])
def test_an_empty_class_folder_is_named(tmp_path: Path, split: str) -> None:
    root = lay(tmp_path, f"{split}dog/a.jpg", f"{split}cat/readme.txt", f"{split}cow/")
    with pytest.raises(DataError, match=rf"{split}cat: class folder without pictures"):
        folder.index(FS, root)


def test_a_folder_beside_the_splits_is_named(tmp_path: Path) -> None:
    root = lay(tmp_path, "train/dog/a.jpg", "test/dog/a.jpg", "unlabelled/a.jpg")
    with pytest.raises(DataError, match=r"unlabelled: a folder of pictures beside the splits test, train"):
        folder.index(FS, root)


def test_one_split_under_two_names(tmp_path: Path) -> None:
    root = lay(tmp_path, "train/dog/a.jpg", "val/dog/a.jpg", "valid/dog/b.jpg")
    with pytest.raises(DataError, match="two folders for one split among train, val, valid"):
        folder.index(FS, root)


def test_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures in class folders"):
        folder.index(FS, lay(tmp_path, "a.jpg"))
    with pytest.raises(DataError, match="no pictures in class folders"):
        folder.index(FS, str(tmp_path / "missing"))


def test_found_by_itself(tmp_path: Path) -> None:
    assert formats.find(FS, lay(tmp_path, "dog/a.jpg")) == "folder"
    assert {"folder", "csv"} <= set(formats.names())
    with pytest.raises(
        DataError, match=r"no layout of labelled pictures found; accepted formats: .*csv, .*folder"
    ):
        formats.find(FS, str(tmp_path / "dog"))
    with pytest.raises(ConfigError, match="did you mean 'folder'"):
        formats.load("foldr")
