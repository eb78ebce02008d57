"""Pictures beside masks of class ids."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import fs as pafs

from tlray import formats
from tlray.errors import DataError
from tlray.formats import masks
from tlray.image import encode_mask

FS = pafs.LocalFileSystem()
IDS = encode_mask(np.array([[0, 1], [1, 255]], np.uint8))


def colours() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(out, "PNG")
    return out.getvalue()


def made(folder: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def rows(root: str) -> list[tuple[str, str | None, str]]:
    return [(r["path"], r["split"], r["mask"]) for r in masks.index(FS, root).to_pylist()]


@pytest.mark.parametrize(
    ("picture", "mask", "split"),
    [
        ("images/a.jpg", "masks/a.png", None),
        ("train/images/a.jpg", "train/masks/a.png", "train"),
        ("images/val/a.JPG", "annotations/val/a.PNG", "validation"),
        ("test/images/a.png", "test/labels/a.png", "test"),
    ],
)
def test_layouts(tmp_path: Path, picture: str, mask: str, split: str | None) -> None:
    root = made(tmp_path, {picture: b"x", mask: IDS, "images/.hidden.jpg": b"", "README.md": b""})
    assert formats.find(FS, root) == "masks"
    assert rows(root) == rows(root + "/") == [(picture, split, mask)]


def test_names_and_what_has_no_partner(tmp_path: Path) -> None:
    files = {f"images/{n}.jpg": b"x" for n in "abc"} | {f"masks/{n}.png": IDS for n in "abz"}
    root = made(tmp_path, {**files, "classes.txt": b"\xef\xbb\xbfground\r\nbig dog\r\n\r\n"})
    found = masks.index(FS, root)
    assert found["path"].to_pylist() == ["images/a.jpg", "images/b.jpg"]
    told = {key: json.loads(value) for key, value in found.schema.metadata.items()}
    assert told[b"names"] == {"mask": ["ground", "big dog"]}
    assert told[b"ignored"] == {"picture without mask": 1, "mask without picture": 1}


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"images/a.jpg": b"x", "labels/a.png": colours()}, "folder"),  # two classes of pictures
        ({"images/a.jpg": b"x", "masks/a.png": b"no picture"}, "folder"),
        (
            {"images/a.jpg": b"x", "masks/a.png": IDS, "masks/b.png": IDS, "masks/c.png": IDS},
            "folder",  # one name in three is chance
        ),
        ({"cat/images/a.jpg": b"x", "cat/masks/a.png": IDS}, "folder"),
        ({"images/train/a.jpg": b"x", "masks/test/a.png": IDS}, "folder"),
        ({"images/a.jpg": b"x", "labels/a.txt": b"0 .5 .5 1 1", "classes.txt": b"cat"}, "yolo"),
        ({"images/a.jpg": b"x", "images/a.png": b"x", "labels/a.txt": b"0 .5 .5 1 1"}, "yolo"),
    ],
)
def test_other_layouts_are_left_to_others(tmp_path: Path, files: dict[str, bytes], found: str) -> None:
    root = made(tmp_path, files)
    assert masks.fits(FS, root) == 0
    assert formats.find(FS, root) == found
    assert masks.fits(FS, str(tmp_path / "nowhere")) == 0


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"images/a.jpg": b"", "images/a.png": b""}, r": images/a\.jpg and images/a\.png: one stem"),
        ({"masks/a.png": IDS, "labels/a.png": IDS}, r": labels/a\.png and masks/a\.png: one stem; accepted"),
        ({"classes.txt": b"ground\ncaf\xe9\n"}, r"classes\.txt line 2: no text in UTF-8; accepted"),
    ],
)
def test_mistakes_name_their_place(tmp_path: Path, files: dict[str, bytes], says: str) -> None:
    root = made(tmp_path, {"images/x.jpg": b"", "masks/x.png": IDS, **files})
    with pytest.raises(DataError, match=says) as error:
        masks.index(FS, root)
    assert "\n" not in str(error.value)


def test_nothing_that_has_a_mask(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no picture has a mask; accepted: images"):
        masks.index(FS, made(tmp_path, {"images/a.jpg": b"", "masks/b.png": IDS}))
