"""WebDataset tars."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tlray.data import synthetic
from tlray.errors import DataError, StorageError
from tlray.ingestion import writer
from tlray.ingestion.formats import webdataset
from tlray.ingestion.formats.listing import Listing


def tar(path: Path, **members: bytes | str) -> Path:
    """A tar as webdataset's ShardWriter writes it; names with ``__`` for the dot, ``_0`` for folders none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as out:
        for name, value in members.items():
            data = value if isinstance(value, bytes) else value.encode()
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def picture(n: int) -> bytes:
    return synthetic.picture(n % 3, 64, np.random.default_rng(n))


def shard(path: Path, first: int, number: int = 4) -> Path:
    members: dict[str, bytes | str] = {}
    for n in range(first, first + number):
        members |= {f"{n:09}__cls": str(n % 2), f"{n:09}__jpg": picture(n)}
    return tar(path, **members)


def test_classes_splits_and_bytes(tmp_path: Path) -> None:
    shard(tmp_path / "animals-train-000000.tar", 0)
    shard(tmp_path / "animals-train-000001.tar", 4)
    shard(tmp_path / "animals-val-000000.tar", 8)
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    listing = Listing.open(str(tmp_path))
    look = webdataset.look(listing)
    assert look is not None and not look.lacks and len(look.labels) == 3
    index = webdataset.index(listing, "label")
    assert index.names == {"label": ["dog", "cat"]}
    rows = index.table.to_pylist()
    assert [row["split"] for row in rows] == ["train"] * 8 + ["validation"] * 4
    assert rows[5]["path"] == "animals-train-000001.tar/000000005.jpg"
    assert [row["label"] for row in rows] == ["dog", "cat"] * 6
    read = writer.read(listing.root, index.table["path"].to_pylist(), index.table["source"].to_pylist())
    assert list(read) == [picture(n) for n in range(12)]


def test_one_tar_and_json_labels(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {}
    for n in range(4):
        said = {"label": ["cat", "dog"][n % 2], "width": 64, "photographer": f"p{n}"}
        members |= {f"a/{n}__png": picture(n), f"a/{n}__json": json.dumps(said)}
    listing = Listing.open(str(tar(tmp_path / "x.tar", **members)))
    assert webdataset.look(listing) is not None
    index = webdataset.index(listing, "label")
    assert index.table["label"].to_pylist() == ["cat", "dog"] * 2
    assert index.table["path"][0].as_py() == "x.tar/a/0.png"
    assert index.table["split"].null_count == 4
    assert [f.examples for f in index.findings] == [["photographer"]]


def test_several_classes(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {}
    for n, labels in enumerate([["a", "b"], [], ["b"]]):
        members |= {f"{n}__jpg": picture(n), f"{n}__json": json.dumps({"labels": labels})}
    index = webdataset.index(Listing.open(str(tar(tmp_path / "x.tar", **members))), "labels")
    assert index.table["labels"].to_pylist() == [["a", "b"], [], ["b"]]


def test_words_as_text_are_classes_and_captions_are_not(tmp_path: Path) -> None:
    words: dict[str, bytes | str] = {}
    captions: dict[str, bytes | str] = {}
    for n in range(12):
        words |= {f"{n}__jpg": picture(n), f"{n}__txt": ["cat", "dog"][n % 2]}
        captions |= {f"{n}__jpg": picture(n), f"{n}__txt": f"a picture with the number {n}"}
    index = webdataset.index(Listing.open(str(tar(tmp_path / "a.tar", **words))), "label")
    assert set(index.table["label"].to_pylist()) == {"cat", "dog"}
    with pytest.raises(DataError, match="none of the columns txt is known as one of labels"):
        webdataset.index(Listing.open(str(tar(tmp_path / "b.tar", **captions))), "label")


def test_incomplete_samples_are_counted(tmp_path: Path) -> None:
    whole: dict[str, bytes | str] = {"a__jpg": picture(0), "a__cls": "0", "d__jpg": picture(3), "d__cls": "1"}
    path = tar(tmp_path / "x.tar", **whole, b__jpg=picture(1), c__cls="1")
    index = webdataset.index(Listing.open(str(path)), "label")
    assert index.table.num_rows == 2
    assert {f.kind: f.examples for f in index.findings} == {
        "no_picture": ["x.tar/c"],
        "no_label": ["x.tar/b"],
    }


def test_a_tar_of_files_is_no_webdataset(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", **{"cat/0__jpg": picture(0), "dog/1__jpg": picture(1)})
    look = webdataset.look(Listing.open(str(path)))
    assert look is not None and look.lacks == "no member is a label (.cls, .json, .txt); unpack it"
    path = tar(tmp_path / "y.tar", notes__txt="hello")
    assert webdataset.look(Listing.open(str(path))) is None


def test_damaged_tars_and_bad_labels(tmp_path: Path) -> None:
    whole = shard(tmp_path / "x.tar", 0).read_bytes()
    (tmp_path / "x.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(DataError, match=r"x\.tar: damaged or no tar"):
        webdataset.index(Listing.open(str(tmp_path / "x.tar")), "label")
    (tmp_path / "x.tar").write_bytes(whole[:2000])
    with pytest.raises(DataError, match=r"x\.tar: damaged or no tar"):
        webdataset.index(Listing.open(str(tmp_path / "x.tar")), "label")
    path = tar(tmp_path / "y.tar", a__jpg=picture(0), a__json="{")
    with pytest.raises(DataError, match=r"y\.tar/a\.json: no JSON in UTF-8"):
        webdataset.index(Listing.open(str(path)), "label")
    path = tar(tmp_path / "z.tar", a__jpg=picture(0), a__png=picture(1), a__cls="0")
    with pytest.raises(DataError, match=r"z\.tar: a has two pictures \(a\.jpg, a\.png\); accepted: one"):
        webdataset.index(Listing.open(str(path)), "label")


def test_a_tar_that_has_changed(tmp_path: Path) -> None:
    shard(tmp_path / "x.tar", 0)
    (data,) = writer.read(str(tmp_path), ["x.tar/0.jpg"], ["tar:x.tar:100:99999999"])
    assert isinstance(data, StorageError) and "ends before" in str(data)


def test_links_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", 0)
    with tarfile.open(path, "a") as out:
        link = tarfile.TarInfo("evil.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(link)
        label = tarfile.TarInfo("evil.cls")
        label.size = 1
        out.addfile(label, io.BytesIO(b"1"))
    index = webdataset.index(Listing.open(str(path)), "label")
    assert index.table.num_rows == 4
