"""Pascal VOC folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs as pafs

from tlray import formats
from tlray import ingest as ingestion
from tlray.dataset import Dataset
from tlray.errors import DataError
from tlray.formats import voc

FS = pafs.LocalFileSystem()
CAT = ("cat", 1, 1, 40, 30)  # the corner pixel to pixel (40, 30), both included


def annotation(*objects: tuple[str, int, int, int, int], extra: str = "") -> str:
    boxes = [
        f"<object><name>{name}</name><part><bndbox><xmin>0</xmin></bndbox></part><bndbox><xmin>{x0}</xmin>"
        f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1 in objects
    ]
    return f"<annotation><filename>other.jpg</filename>{''.join(boxes)}{extra}</annotation>"


def made(folder: Path, **files: str) -> str:
    """VOC folders with a picture (never opened) for each annotation; lists are named as their files."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        if name in ("train", "val", "test", "trainval", "cat_train"):
            (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(text, errors="surrogateescape")
        else:
            (folder / "Annotations" / f"{name}.xml").write_text(text)
            (folder / "JPEGImages" / f"{name}.png").write_bytes(b"")
    return str(folder)


def rows(root: str) -> list[tuple[str, str | None, list[str], list[list[float]]]]:
    found = voc.index(FS, root).to_pylist()
    return [(r["path"], r["split"], r["objects"]["category"], r["objects"]["bbox"]) for r in found]


def test_boxes_splits_and_empty_pictures(tmp_path: Path) -> None:
    root = made(
        tmp_path, a=annotation(), b=annotation(CAT, ("dog", 5, 6, 7, 8)),
        c=annotation(CAT), d=annotation(CAT),
        train="b 1\n\n", val="a\n", trainval="b\nc\n", cat_train="d\n",
    )  # fmt: skip
    assert formats.find(FS, root) == "voc"
    assert rows(root) == [
        ("JPEGImages/a.png", "validation", [], []),
        ("JPEGImages/b.png", "train", ["cat", "dog"], [[0, 0, 40, 30], [4, 5, 3, 3]]),
    ]
    (tmp_path / "JPEGImages" / "bare.jpg").write_bytes(b"")
    ignored = json.loads(voc.index(FS, root).schema.metadata[b"ignored"])
    assert ignored == {"in no list of ImageSets/Main": 2, "pictures without .xml": 1}


def test_without_lists_and_with_trainval_alone(tmp_path: Path) -> None:
    root = made(tmp_path, b=annotation(CAT), a=annotation(CAT))
    assert [(path, split) for path, split, *_ in rows(root)] == [
        ("JPEGImages/a.png", None),
        ("JPEGImages/b.png", None),
    ]
    made(tmp_path, trainval="a\n", test="b\n")
    assert [split for _, split, *_ in rows(root)] == ["train", "test"]
    (tmp_path / "JPEGImages" / "a.png").unlink()  # ingest will say that it cannot be read
    assert rows(root)[0][0] == "JPEGImages/a.jpg"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a": annotation(CAT)[:60]}, r"a\.xml line 1, column \d+: no valid XML; accepted"),
        ({"a": "<?xml version='1.0' encoding='nonsense'?>" + annotation()}, r"a\.xml: no valid XML"),
        ({"a": annotation(), "train": "a\nb\udce9\n"}, r"train\.txt line 2: no text in UTF-8; accepted"),
        ({"a": annotation(extra="<object/>")}, r"a\.xml: object 1: no <name>"),
        ({"a": annotation(CAT).replace("xmax", "xmux")}, r"a\.xml: object 1 \(cat\): no <xmax>; accepted"),
        ({"a": annotation(CAT).replace(">40<", ">x<")}, r"object 1 \(cat\): <xmax> = 'x'"),
        ({"a": annotation(), "train": "\nb\n"}, r"train\.txt line 2: 'b' has no Annotations/b\.xml"),
        (
            {"a": annotation(), "train": "a\n", "test": "a\n"},
            r"test\.txt line 1: 'a' stands in train\.txt line 1",
        ),
        ({}, r"Annotations: no \.xml file"),
    ],
)
def test_mistakes_name_their_place(tmp_path: Path, files: dict[str, str], says: str) -> None:
    with pytest.raises(DataError, match=says) as error:
        voc.index(FS, made(tmp_path, **files))
    assert "\n" not in str(error.value)


@pytest.mark.realdata
def test_blood_cells(realdata: Path) -> None:
    table = voc.index(FS, str(realdata / "bccd"))
    splits = table["split"].to_pylist()
    assert {s: splits.count(s) for s in splits} == {"train": 205, "validation": 87, "test": 72}
    names = [name for row in table["objects"].to_pylist() for name in row["category"]]
    assert {n: names.count(n) for n in names} == {"RBC": 4155, "WBC": 372, "Platelets": 361}


@pytest.mark.realdata
@pytest.mark.slow
def test_blood_cells_become_a_data_set(
    realdata: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ingestion, "_map", lambda blocks, work, **settings: [work(block, **settings) for block in blocks]
    )
    result = ingestion.ingest(str(realdata / "bccd"), str(tmp_path / "data"), max_side=160)
    assert result.splits == {"train": 205, "validation": 87, "test": 72}
    assert result.labels == {"objects": ["Platelets", "RBC", "WBC"]}
    assert result.report.counts["test"] == {"Platelets": 69, "RBC": 805, "WBC": 71}
    assert {f.kind: f.count for f in result.report.findings}["box_dropped"] == 2  # of 1 px
    row = Dataset.open(str(tmp_path / "data")).read("test", ["objects", "width", "height"]).to_pylist()[0]
    boxes = np.array(row["objects"]["bbox"])
    assert (row["width"], row["height"]) == (160, 120)  # and the boxes have shrunk with the picture
    assert (boxes[:, :2] + boxes[:, 2:] <= [160.01, 120.01]).all() and boxes.max() > 40
