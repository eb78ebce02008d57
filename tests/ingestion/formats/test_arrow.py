"""Hugging Face data sets with the pictures inside, as the library itself writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tlray.data import schema, synthetic
from tlray.errors import DataError
from tlray.ingestion import writer
from tlray.ingestion.formats import arrow
from tlray.ingestion.formats.listing import Listing

datasets = pytest.importorskip("datasets")


def pictures(number: int) -> list[dict[str, Any]]:
    import numpy as np

    rng = np.random.default_rng(0)
    return [{"bytes": synthetic.picture(n % 3, 32, rng), "path": f"{n}.jpg"} for n in range(number)]


def data(number: int = 6, **columns: tuple[Any, list[Any]]) -> Any:
    features = {"image": datasets.Image(), **{name: kind for name, (kind, _) in columns.items()}}
    values = {"image": pictures(number), **{name: list(cells) for name, (_, cells) in columns.items()}}
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def classes(*names: str) -> Any:
    return datasets.ClassLabel(names=list(names))


def save(root: Path, **splits: Any) -> Listing:
    datasets.DatasetDict(splits).save_to_disk(str(root))
    return Listing.open(str(root))


def parquet(root: Path, **splits: Any) -> Listing:
    (root / "data").mkdir(parents=True)
    for split, rows in splits.items():
        rows.to_parquet(str(root / "data" / f"{split}-00000-of-00001.parquet"))
    return Listing.open(str(root))


@pytest.mark.parametrize("write", [save, parquet])
def test_labels_by_name_and_pictures_by_row(tmp_path: Path, write: Any) -> None:
    train = data(6, label=(classes("dog", "cat"), [0, 1, 0, 1, 0, 1]))
    listing = write(tmp_path / "d", train=train, validation=train.select([1, 2]))
    look = arrow.look(listing)
    assert look is not None and not look.lacks
    assert set(look.labels) >= set(look.pictures)
    index = arrow.index(listing, "label")
    assert index.names == {"label": ["dog", "cat"]}  # the order is theirs
    assert index.table.select(["path", "split", "label", "source"]).to_pylist()[:2] == [
        {"path": "train/0", "split": "train", "label": "dog", "source": "row:train:0:"},
        {"path": "train/1", "split": "train", "label": "cat", "source": "row:train:1:"},
    ]
    assert index.table["split"].to_pylist().count("validation") == 2
    turned = index.table.take([7, 3, 0, 6])
    read = writer.read(listing.root, turned["path"].to_pylist(), turned["source"].to_pylist())
    theirs = [picture["bytes"] for picture in pictures(6)]
    assert list(read) == [theirs[2], theirs[3], theirs[0], theirs[1]]


def test_groups_are_read_once_a_call_whatever_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = data(40, label=(classes("a", "b"), [0, 1] * 20))
    (tmp_path / "d").mkdir()
    rows.to_parquet(str(tmp_path / "d" / "train.parquet"), batch_size=4)  # ten groups
    listing = Listing.open(str(tmp_path / "d"))
    table = arrow.index(listing, "label").table
    assert table.num_rows == 40
    monkeypatch.setattr(writer, "_KEPT_BYTES", 0)
    groups = writer._Groups(listing.root)
    asked: list[int] = []
    read_group = groups._data.read_group
    monkeypatch.setattr(
        groups._data, "read_group", lambda split, i, columns: asked.append(i) or read_group(split, i, columns)
    )
    order = [n * 7 % 40 for n in range(40)]
    theirs = [picture["bytes"] for picture in pictures(40)]
    assert groups.pictures("train", order) == [theirs[n] for n in order]
    assert sorted(asked) == list(range(10))


def test_a_split_whose_labels_are_hidden_is_left_out(tmp_path: Path) -> None:
    kind = classes("a", "b")
    listing = parquet(
        tmp_path / "d", train=data(6, label=(kind, [0, 1] * 3)), test=data(4, label=(kind, [-1] * 4))
    )
    index = arrow.index(listing, "label")
    assert set(index.table["split"].to_pylist()) == {"train"}
    notes = {f.kind: f for f in index.findings}
    assert notes["split_without_labels"].severity == "warning"
    assert notes["split_without_labels"].message == "split test has no labels: its 4 pictures are left out"


def test_some_rows_without_a_label_are_an_error(tmp_path: Path) -> None:
    listing = parquet(tmp_path / "d", train=data(6, label=(classes("a", "b"), [0, 1, -1, 1, 0, -1])))
    with pytest.raises(DataError, match=r"train row 2: label '-1' is no class \('-1' 2 times in 6 rows\)"):
        arrow.index(listing, "label")


def test_several_classes_and_boxes(tmp_path: Path) -> None:
    kind = datasets.List(classes("a", "b"))
    listing = parquet(tmp_path / "d", train=data(3, labels=(kind, [[0, 1], [], [1]])))
    index = arrow.index(listing, "labels")
    assert index.table["labels"].to_pylist() == [["a", "b"], [], ["b"]]
    assert index.names == {"labels": ["a", "b"]}
    kind = {"bbox": datasets.List(datasets.List(datasets.Value("float32"))), "category": datasets.List(
        classes("a", "b")
    )}  # fmt: skip
    boxes = [{"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": [1]}, {"bbox": [], "category": []}]
    listing = parquet(tmp_path / "e", train=data(2, objects=(kind, boxes)))
    index = arrow.index(listing, "objects")
    assert index.table["objects"].to_pylist() == [
        {"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": ["b"]},
        {"bbox": [], "category": []},
    ]
    assert index.names == {"objects": ["a", "b"]}


def saved_boxes(root: Path, rows: list[dict[str, Any]]) -> Listing:
    number, flag = datasets.List(datasets.Value("float32")), datasets.List(datasets.Value("bool"))
    kind = {"bbox": datasets.List(number), "category": datasets.List(classes("a", "b"))}
    kind |= {name: flag for name in rows[0] if name not in kind}
    return parquet(root, train=data(len(rows), objects=(kind, rows)))


def test_crowds_and_difficult_objects_stay_what_they_are(tmp_path: Path) -> None:
    box = [1.0, 2.0, 3.0, 4.0]
    rows = [
        {"bbox": [box, box], "category": [1, 0], "difficult": [False, True], "iscrowd": [False, False]},
        {"bbox": [box], "category": [1], "difficult": [False], "iscrowd": None},
        {"bbox": [], "category": [], "difficult": [], "iscrowd": []},
    ]
    found = arrow.index(saved_boxes(tmp_path / "d", rows), "objects").table["objects"]
    assert schema.flags_of(found.type) == ["difficult"]  # no box is of a crowd
    assert [schema.flagged(row, "difficult") for row in found.to_pylist()] == [[False, True], [False], []]
    rows[1]["iscrowd"] = [True]
    found = arrow.index(saved_boxes(tmp_path / "e", rows), "objects").table["objects"]
    assert [schema.flagged(row, "iscrowd") for row in found.to_pylist()] == [[False, False], [True], []]
    rows[1]["iscrowd"] = [True, False]
    with pytest.raises(
        DataError, match=r"train row 1: iscrowd = \[true, false\] beside 1 boxes; accepted: 0"
    ):
        arrow.index(saved_boxes(tmp_path / "f", rows), "objects")


def test_one_file_and_numbers_without_names(tmp_path: Path) -> None:
    rows = data(6, label=(datasets.Value("int64"), [10, 2, 10, 2, 10, 2]))
    rows.to_parquet(str(tmp_path / "all.parquet"))
    listing = Listing.open(str(tmp_path / "all.parquet"))
    index = arrow.index(listing, "label")
    assert index.names == {"label": ["2", "10"]}
    assert index.table["split"].to_pylist() == ["train"] * 6
    assert index.table["source"][0].as_py() == "row:train:0:all.parquet"
    read = writer.read(listing.root, ["train/0"], ["row:train:0:all.parquet"])
    assert list(read) == [pictures(1)[0]["bytes"]]


def test_numbers_beyond_the_names(tmp_path: Path) -> None:
    rows = data(2, label=(datasets.Value("int64"), [0, 7]))
    table = rows.data.table
    features = {"image": {"_type": "Image"}, "label": schema.class_label(["a", "b"])}
    marked = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    import pyarrow.parquet as pq

    (tmp_path / "d").mkdir()
    pq.write_table(marked, tmp_path / "d" / "train.parquet")
    with pytest.raises(DataError, match=r"train row 1 column 'label': 7; accepted: 0 to 1, or -1"):
        arrow.index(Listing.open(str(tmp_path / "d")), "label")


def test_no_labels_and_other_splits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column beside image"):
        arrow.index(parquet(tmp_path / "a", train=data(2)), "label")
    kind = classes("a", "b")
    rows = data(4, label=(kind, [0, 1, 0, 1]), caption=(datasets.Value("string"), list("wxyz")))
    index = arrow.index(save(tmp_path / "b", train=rows, extra=rows), "label")
    notes = {f.kind: f.examples for f in index.findings}
    assert notes == {"other_split": ["extra: 4 rows"], "unused_column": ["caption"]}


def test_a_data_set_of_ours_is_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "d", train=data(2, label=(classes("a", "b"), [0, 1])))
    (tmp_path / "d" / "dataset.json").write_text("{}")
    listing = Listing.open(str(tmp_path / "d"))
    look = arrow.look(listing)
    assert look is not None and look.lacks.startswith("it is a data set already; accepted: data.uri=")
    with pytest.raises(DataError, match="is a data set already"):
        arrow.index(listing, "label")


def test_other_files_are_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert arrow.look(Listing.open(str(tmp_path))) is None
    datasets.Dataset.from_dict({"file_name": ["a.jpg"], "label": ["x"]}).to_parquet(
        str(tmp_path / "metadata.parquet")
    )
    assert arrow.look(Listing.open(str(tmp_path))) is None  # paths, no pictures: a table
