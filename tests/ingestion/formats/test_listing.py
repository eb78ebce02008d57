"""A source, listed once."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests import toys
from tlray.errors import DataError, StorageError
from tlray.ingestion.formats.listing import Listing, below, counts_by_ending, lines_of, split_in, text_of


def lay(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(toys.picture(0, 0) if name.lower().endswith("jpg") else b"x")
    return root


def test_files_folders_and_pictures_without_hidden_ones_and_junk(tmp_path: Path) -> None:
    root = lay(tmp_path, "a/b.JPG", "a/c.txt", ".git/x.jpg", "__MACOSX/a/b.jpg", "Thumbs.db", "a/.hidden.jpg")
    listing = Listing.open(str(root))
    assert (listing.files, listing.pictures, listing.folders) == (["a/b.JPG", "a/c.txt"], ["a/b.JPG"], ["a"])
    assert listing.findings == []


def test_names_in_any_case(tmp_path: Path) -> None:
    listing = Listing.open(str(lay(tmp_path, "Images/P0.JPG", "Images/P0.TXT", "x/a.jpg", "x/A.jpg")))
    assert listing.match("images/p0.txt") == "Images/P0.TXT"
    assert listing.picture("images/p0") == "Images/P0.JPG"
    assert (listing.match("x/a.jpg"), listing.match("X/a.jpg")) == ("x/a.jpg", None)  # two, but for the case


@pytest.mark.skipif(
    sys.platform != "linux", reason="names that are no UTF-8 need a filesystem that takes them"
)
def test_links_and_names_that_cannot_be_used_do_not_stop_the_rest(tmp_path: Path) -> None:
    root = lay(tmp_path / "in", "a/b.jpg")
    (root / "a" / "broken.jpg").symlink_to("nowhere.jpg")
    (root / "a" / "loop").symlink_to(root)
    (root / "linked").symlink_to(lay(tmp_path / "elsewhere", "c.jpg"))
    Path(os.fsdecode(os.fsencode(root) + b"/a/caf\xe9.jpg")).write_bytes(b"x")
    listing = Listing.open(str(root))
    assert listing.files == ["a/b.jpg", "linked/c.jpg"]
    kinds = {finding.kind: finding.examples for finding in listing.findings}
    assert kinds == {
        "broken_link": ["a/broken.jpg"],
        "link_loop": ["a/loop"],
        "name_not_utf8": ["a/caf\ufffd.jpg"],
    }


def test_a_label_file_stands_for_its_folder(tmp_path: Path) -> None:
    root = lay(tmp_path, "annotations/instances.json", "annotations/other.json", "images/a.jpg", "data.yaml")
    assert Listing.open(str(root / "data.yaml")).named == "data.yaml"
    listing = Listing.open(str(root / "annotations" / "instances.json"))
    assert (listing.root, listing.named) == (str(root), "annotations/instances.json")
    assert listing.labels(".json") == ["annotations/instances.json"]  # no other label file is read


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("data.zip", "is an archive; accepted: the folder that it unpacks to"),
        ("a.jpg", "is one picture; accepted: a folder"),
        ("a.docx", "is no label file; accepted: a folder, or a file ending in"),
        ("missing", "not found; accepted: a folder or table"),
    ],
)
def test_sources_that_are_none(tmp_path: Path, name: str, says: str) -> None:
    if name != "missing":
        lay(tmp_path, name)
    with pytest.raises(DataError, match=says):
        Listing.open(str(tmp_path / name))


def test_texts(tmp_path: Path) -> None:
    assert text_of("x", "\ufeffä".encode()) == "ä"
    assert text_of("x", "ä".encode("utf-16")) == "ä"
    with pytest.raises(DataError, match="x line 2: no text in UTF-8"):
        text_of("x", b"a\n\xe9")
    assert lines_of("a\r\n\r\nb\u2028c\rd") == ["a", "", "b\u2028c", "d"]


def test_words_of_names() -> None:
    assert (split_in("instances_train2017.json"), split_in("valid"), split_in("trains")) == (
        "train",
        "validation",
        None,
    )
    assert (below("./a/../b.jpg"), below("../a"), below("/a"), below(".")) == ("b.jpg", None, None, None)
    assert counts_by_ending(["a.jpg", "b.JPG", "c"]) == "2 .jpg, 1 without ending"


def test_pipes_are_passed_over_and_refused_as_a_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "labels.csv")
    (tmp_path / "a.jpg").write_bytes(b"")
    listing = Listing.open(str(tmp_path))
    assert listing.files == ["a.jpg"]
    assert [(f.kind, f.count, f.examples) for f in listing.findings] == [("no_file", 1, ["labels.csv"])]
    with pytest.raises(StorageError, match=r"labels\.csv: is a pipe, a socket or a device; accepted: a file"):
        Listing.open(str(tmp_path / "labels.csv"))
