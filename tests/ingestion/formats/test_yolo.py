"""YOLO's folders of text files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tlray.errors import DataError
from tlray.ingestion import formats
from tlray.ingestion.formats import yolo
from tlray.ingestion.formats.listing import Listing

NAMES = "names: [cat, dog]\n"


def made(folder: Path, files: dict[str, str], encoding: str = "utf-8") -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding, errors="surrogateescape")
    return str(folder)


def rows(root: str) -> list[tuple[str, str | None, list[str], list[list[float]]]]:
    found = yolo.index(Listing.open(root), "objects").table.to_pylist()
    return [(r["path"], r["split"], r["objects"]["category"], r["objects"]["bbox"]) for r in found]


def test_boxes_outlines_and_empty_pictures(tmp_path: Path) -> None:
    root = made(
        tmp_path,
        {
            "data.yaml": NAMES, "labels/lost.txt": "0 .5 .5 .5 .5", "labels/classes.txt": "x\ny\n",
            "images/a.jpg": "", "labels/a.txt": "1 0.5 0.5 0.5 0.25\n\n0 0.25 0.5 0.5 0.5 0.25 0.75\n",
            "images/b.png": "", "images/c.jpg": "", "labels/c.txt": "",
        },
    )  # fmt: skip
    assert formats.find(Listing.open(root))[0] == "yolo"
    assert rows(root) == [
        ("images/a.jpg", None, ["dog", "cat"], [[0.25, 0.375, 0.5, 0.25], [0.25, 0.5, 0.25, 0.25]]),
        ("images/b.png", None, [], []),
        ("images/c.jpg", None, [], []),
    ]
    index = yolo.index(Listing.open(root), "objects")
    counts = {finding.kind: finding.count for finding in index.findings}
    # labels/classes.txt has other names than data.yaml, which is taken.
    assert index.relative
    assert counts == {"no_label_file": 1, "no_object": 1, "label_without_picture": 1, "other_names": 2}


@pytest.mark.parametrize(
    ("picture", "label", "yaml", "split"),
    [
        ("images/train/a.jpg", "labels/train/a.txt", NAMES, "train"),
        ("images/val2017/a.jpg", "labels/val2017/a.txt", NAMES, "validation"),
        ("valid/images/a.jpg", "valid/labels/a.txt", "val: ../valid/images\n" + NAMES, "validation"),
        ("test/images/a.jpg", "test/labels/a.txt", "names: {0: cat, 1: dog}\n", "test"),
        ("images/one/a.jpg", "labels/one/a.txt", "path: ../x\ntrain: images/one\n" + NAMES, "train"),
    ],
)  # fmt: skip
def test_splits(tmp_path: Path, picture: str, label: str, yaml: str, split: str) -> None:
    root = made(tmp_path, {"data.yaml": yaml, picture: "", label: "1 0.5 0.5 1 1"})
    assert formats.find(Listing.open(root))[0] == "yolo"
    assert rows(root) == [(picture, split, ["dog"], [[0, 0, 1, 1]])]


def test_names_from_a_list_of_classes(tmp_path: Path) -> None:
    root = made(
        tmp_path, {"classes.txt": "cat\nbig dog\n", "images/a.jpg": "", "labels/a.txt": "1 .5 .5 1 1"}
    )
    assert rows(root)[0][2] == ["big dog"]


@pytest.mark.parametrize("folder", ["", "data/", "my set/lists/"])
def test_lists_of_the_splits_lie_in_any_folder(tmp_path: Path, folder: str) -> None:
    names = ("a", "b", "c", "d")
    files = {f"images/{n}.jpg": "x" for n in names} | {f"labels/{n}.txt": "0 .5 .5 .5 .5\n" for n in names}
    files |= {f"{folder}train.txt": "data/images/a.jpg\ndata/images/b.jpg\n", "classes.txt": "cat\n"}
    files |= {f"{folder}test.txt": "data/images/c.jpg\ndata/images/d.jpg\n"}
    found = {path: split for path, split, *_ in rows(made(tmp_path, files))}
    assert found == {f"images/{n}.jpg": "train" if n in "ab" else "test" for n in names}


def test_texts_of_windows_powershell(tmp_path: Path) -> None:
    files = {"data.yaml": NAMES, "images/a.jpg": "", "labels/a.txt": "1 .5 .5 1 1"}
    root = made(tmp_path, files, encoding="utf-16")
    assert formats.find(Listing.open(root))[0] == "yolo"
    assert rows(root)[0][2] == ["dog"]


def test_ids_may_have_gaps(tmp_path: Path) -> None:
    yaml = "nc: 4\nnames: {0: cat, 3: dog}"
    root = made(tmp_path, {"data.yaml": yaml, "images/a.jpg": "", "labels/a.txt": "3 .5 .5 1 1"})
    assert rows(root)[0][2] == ["dog"]


def test_names_in_place_of_ids_are_refused(tmp_path: Path) -> None:
    files = {"classes.txt": "cat\n", "images/a.jpg": "", "labels/a.txt": "cat .5 .5 1 1\n"}
    root = made(tmp_path, files)
    assert formats.find(Listing.open(root))[0] == "yolo"
    with pytest.raises(DataError, match=r"a\.txt line 1: 'cat .5 .5 1 1'; accepted: numbers, class x y"):
        yolo.index(Listing.open(root), "objects")


@pytest.mark.parametrize(
    ("text", "yaml", "says"),
    [
        ("0 .5 .5 1 1\n7 .5 .5 1 1", NAMES, r"a\.txt line 2: class 7; accepted: 0 \(cat\), 1 \(dog\)"),
        ("0 .5 .5 1", NAMES, r"a\.txt line 1: 4 numbers; accepted"),
        ("cat .5 .5 1 1", NAMES, r"a\.txt line 1: 'cat .5 .5 1 1'; accepted: numbers"),
        ("0 320 240 64 64", NAMES, r"a\.txt line 1: 320 \(px\?\); accepted: shares"),
        ("", "names: [cat\nx: y", r"data\.yaml line 2: no valid YAML"),
        ("", "names: {a: b}", r"data\.yaml: names = .*accepted: a list"),
        ("0 .5 .5 1 1\n\udce9", NAMES, r"a\.txt line 2: no text in UTF-8; accepted: UTF-8"),
        ("", "names: [c\udce9t]", r"data\.yaml line 1: no text in UTF-8"),
        ("0 .5 .5 .2 .2 .9", NAMES, r"a\.txt line 1: 6 numbers, .*a confidence"),
        ("", "nc: 3\n" + NAMES, r"data\.yaml: nc = 3, but names holds 2; accepted"),
        ("", "nc: 2", "no names of classes; accepted: data.yaml with names, .*classes.txt"),
    ],
)
def test_mistakes_name_their_place(tmp_path: Path, text: str, yaml: str, says: str) -> None:
    root = made(tmp_path, {"data.yaml": yaml, "images/a.jpg": "", "labels/a.txt": text})
    with pytest.raises(DataError, match=says) as error:
        yolo.index(Listing.open(root), "objects")
    assert "\n" not in str(error.value)
