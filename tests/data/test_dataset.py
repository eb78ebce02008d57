from __future__ import annotations

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tlray import storage
from tlray.data import schema, shards
from tlray.data.dataset import Dataset, split_name
from tlray.data.schema import IMAGE_TYPE
from tlray.errors import DataError, StorageError

NAMES = ["cat", "dog", "owl"]


def picture(number: int) -> dict[str, Any]:
    return {"bytes": b"picture %d" % number * 20, "path": f"{number}.jpg"}


def own_table(split: str, rows: int, start: int = 0) -> pa.Table:
    kinds = schema.dataset_schema({"label": (pa.int64(), schema.class_label(NAMES))})
    values = [
        {
            "image": picture(i),
            "split": split,
            "id": f"id{i}",
            "width": 8,
            "height": 6,
            "label": i % 3,
        }
        for i in range(start, start + rows)
    ]
    return pa.Table.from_pylist(values, kinds)


def write_own(folder: Path, manifest: bool = True) -> str:
    """Two shards of train (10 and 7 rows, groups of 4), one of validation (5)."""
    (folder / "data").mkdir(parents=True)
    shards_of = {
        "train-00000-of-00002": own_table("train", 10),
        "train-00001-of-00002": own_table("train", 7, 10),
        "validation-00000-of-00001": own_table("validation", 5, 17),
    }
    for name, table in shards_of.items():
        pq.write_table(table, folder / f"data/{name}.parquet", row_group_size=4)
    if manifest:
        facts = {
            "format": 1,
            "splits": {"train": 17, "validation": 5},
            "labels": {"label": NAMES},
            "fingerprint": "f" * 64,
            "files": {f"data/{name}.parquet": "0" for name in shards_of},
        }
        storage.write_json(str(folder / "dataset.json"), facts)
    return str(folder)


def hugging_face(rows: int, image: str = "image", label: str = "label", start: int = 0) -> datasets.Dataset:
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=NAMES)})
    values = {image: [picture(i) for i in range(start, start + rows)], label: [i % 3 for i in range(rows)]}
    return datasets.Dataset.from_dict(values, features=features)


@pytest.fixture(params=["local", "s3"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    folder = write_own(tmp_path / "own")
    if request.param == "local":
        return folder
    uri = f"{request.getfixturevalue('s3_uri')}/own"
    storage.upload(folder, uri)
    return uri


def test_own_layout(own: str) -> None:
    data = Dataset.open(own)
    assert data.splits == ["train", "validation"]
    assert (data.num_rows("train"), data.num_rows("validation")) == (17, 5)
    assert data.group_rows("train") == [4, 4, 2, 4, 3]
    assert data.labels() == NAMES
    assert data.fingerprint == "f" * 64
    assert data.schema.names == ["image", "split", "id", "width", "height", "label"]
    assert schema.class_names(data.schema) == NAMES
    group = data.read_group("train", 2)
    assert group.schema == data.schema
    assert group["id"].to_pylist() == ["id8", "id9"]
    assert group["image"].to_pylist() == [picture(8), picture(9)]
    whole = data.read("train")
    assert "image" not in whole.column_names
    assert whole["id"].to_pylist() == [f"id{i}" for i in range(17)]
    assert data.read("validation", ["label"]).to_pydict() == {"label": [2, 0, 1, 2, 0]}


def test_rows_by_global_index_in_the_order_asked_for(own: str) -> None:
    data = Dataset.open(own)
    wanted = [16, 0, 9, 9, 3]
    rows = data.rows("train", wanted)
    assert rows["id"].to_pylist() == [f"id{i}" for i in wanted]
    assert rows["image"].to_pylist() == [picture(i) for i in wanted]
    assert data.rows("train", [], ["id"]).num_rows == 0
    for index in (17, -1):
        with pytest.raises(DataError, match=f"row {index}; accepted: 0 to 16"):
            data.rows("train", [index])


def test_threads_share_one_and_pickling_sends_the_uri_alone(own: str) -> None:
    data = pickle.loads(pickle.dumps(Dataset.open(own)))
    assert len(pickle.dumps(data)) < 300
    groups = [0, 1, 2, 3, 4] * 12
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda i: data.read_group("train", i)["image"].to_pylist(), groups))
    starts = [0, 4, 8, 10, 14, 17]
    for group, images in zip(groups, read, strict=True):
        assert images == [picture(i) for i in range(starts[group], starts[group + 1])]


def test_open_files_are_few(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for number in range(40):
        pq.write_table(own_table("train", 2, 2 * number), tmp_path / f"d/train-{number:05}-of-00040.parquet")
    data = Dataset.open(str(tmp_path / "d"))
    before = len(os.listdir("/proc/self/fd"))
    assert data.read("train")["id"].to_pylist() == [f"id{i}" for i in range(80)]
    assert len(os.listdir("/proc/self/fd")) <= before + shards._MAX_IDLE


def _first_id(data: Dataset, queue: multiprocessing.Queue[str]) -> None:
    queue.put(data.read_group("train", 1)["id"][0].as_py())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_open_one_works_after_a_fork(own: str) -> None:
    data = Dataset.open(own)
    data.read_group("train", 1)
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[str] = context.Queue()
    child = context.Process(target=_first_id, args=(data, queue))
    child.start()
    assert queue.get(timeout=20) == "id4"
    child.join(10)


def test_relative_uri_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_own(tmp_path / "own")
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(Dataset.open("own"))
    monkeypatch.chdir("/")
    assert pickle.loads(sent).num_rows("train") == 17


# ---- Hugging Face


def layout_parquet_files(folder: Path) -> None:
    hugging_face(7).to_parquet(folder / "train.parquet", batch_size=3)
    hugging_face(4, start=7).to_parquet(folder / "val.parquet")


def layout_hub(folder: Path) -> None:
    (folder / "data").mkdir()
    hugging_face(4).to_parquet(folder / "data/train-00000-of-00002.parquet", batch_size=3)
    hugging_face(7).select(range(4, 7)).to_parquet(folder / "data/train-00001-of-00002.parquet")
    hugging_face(4, start=7).to_parquet(folder / "data/validation-00000-of-00001-a1b2.parquet")


def layout_split_folders(folder: Path) -> None:
    for split, table in (("train", hugging_face(7)), ("dev", hugging_face(4, start=7))):
        (folder / split).mkdir()
        table.to_parquet(folder / split / "part-0.parquet")


def layout_dict_on_disk(folder: Path) -> None:
    both = datasets.DatasetDict({"train": hugging_face(7), "valid": hugging_face(4, start=7)})
    both.save_to_disk(str(folder), num_shards={"train": 2, "valid": 1})


LAYOUTS = [layout_parquet_files, layout_hub, layout_split_folders, layout_dict_on_disk]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", ["local", "s3"])
def test_hugging_face_layouts(
    layout: Any, place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "d").mkdir()
    layout(tmp_path / "d")
    uri = str(tmp_path / "d")
    if place == "s3":
        uri = f"{request.getfixturevalue('s3_uri')}/d"
        storage.upload(tmp_path / "d", uri)
    data = Dataset.open(uri)
    assert data.splits == ["train", "validation"]
    assert (data.num_rows("train"), data.num_rows("validation")) == (7, 4)
    assert data.labels() == NAMES
    assert data.read("train")["label"].to_pylist() == [0, 1, 2, 0, 1, 2, 0]
    assert data.read("validation", ["id"])["id"].to_pylist() == [f"validation-{i}" for i in range(4)]
    assert data.rows("train", [6, 0])["image"].to_pylist() == [picture(6), picture(0)]
    assert data.rows("val", [1])["id"].to_pylist() == ["validation-1"]
    assert not {"width", "height"} & set(data.schema.names)
    first = data.read_group("train", 0)
    assert first.schema == data.schema
    assert first["split"].to_pylist() == ["train"] * len(first)
    assert len(data.fingerprint) == 64
    assert Dataset.open(uri).fingerprint == data.fingerprint


def test_one_data_set_on_disk_with_record_batches_as_groups(tmp_path: Path) -> None:
    hugging_face(2500).save_to_disk(str(tmp_path / "d"), num_shards=2)
    data = Dataset.open(str(tmp_path / "d"))
    assert data.splits == ["train"] and data.num_rows("train") == 2500
    assert len(data.group_rows("train")) > 2
    wanted = [2499, 1250, 1249, 0, 1001]
    assert data.rows("train", wanted)["image"].to_pylist() == [picture(i) for i in wanted]


@pytest.mark.parametrize(("image", "label"), [("img", "label"), ("image", "labels"), ("photo", "fine")])
def test_other_names_of_the_one_image_and_label_column(tmp_path: Path, image: str, label: str) -> None:
    hugging_face(5, image, label).to_parquet(tmp_path / "train.parquet")
    data = Dataset.open(str(tmp_path))
    assert set(data.schema.names) == {"image", "label", "id", "split"}
    assert data.labels() == NAMES
    assert data.read_group("train", 0)["image"].to_pylist() == [picture(i) for i in range(5)]
    assert schema.features(data.schema)["image"]["_type"] == "Image"


def test_labels_without_names_and_plain_bytes(tmp_path: Path) -> None:
    table = pa.table(
        {"image": pa.array([b"a", None, b"c"], pa.large_binary()), "labels": pa.array([2, 0, 2], pa.int32())}
    )
    pq.write_table(table, tmp_path / "x.parquet")
    data = Dataset.open(str(tmp_path / "x.parquet"))
    assert data.splits == ["train"]
    assert data.labels() == ["0", "1", "2"]
    images = data.read_group("train", 0)["image"].to_pylist()
    assert images == [{"bytes": b"a", "path": None}, None, {"bytes": b"c", "path": None}]


def test_split_column_decides_where_no_name_does(tmp_path: Path) -> None:
    splits = ["train", "val", "train", "test", "val", "train"]
    table = pa.table({"image": [picture(i) for i in range(6)], "split": splits, "label": [0, 1, 2, 0, 1, 2]})
    pq.write_table(table, tmp_path / "all.parquet", row_group_size=4)
    data = Dataset.open(str(tmp_path))
    assert data.splits == ["train", "validation", "test"]
    assert data.group_rows("train") == [2, 1]
    assert data.rows("train", [2, 1])["image"].to_pylist() == [picture(5), picture(2)]
    assert data.read("validation", ["id", "label"]).to_pydict() == {
        "id": ["validation-0", "validation-1"],
        "label": [1, 1],
    }


def test_ours_is_read_by_the_datasets_library(tmp_path: Path) -> None:
    uri = write_own(tmp_path / "own")
    theirs = datasets.Dataset.from_parquet(
        f"{uri}/data/train-00000-of-00002.parquet", cache_dir=str(tmp_path / "c")
    )
    assert theirs.features["label"].names == NAMES
    assert isinstance(theirs.features["image"], datasets.Image)


# ---- names of splits


@pytest.mark.parametrize("there", ["validation", "val", "valid", "dev"])
@pytest.mark.parametrize("asked", ["validation", "val", "valid", "dev"])
def test_names_of_validation(tmp_path: Path, there: str, asked: str) -> None:
    hugging_face(3).to_parquet(tmp_path / f"{there}.parquet")
    assert Dataset.open(str(tmp_path)).num_rows(asked) == 3
    assert split_name(there) == "validation"


def test_two_kinds_of_validation_stay_two(tmp_path: Path) -> None:
    hugging_face(3).to_parquet(tmp_path / "val.parquet")
    hugging_face(4).to_parquet(tmp_path / "dev.parquet")
    data = Dataset.open(str(tmp_path))
    assert (data.num_rows("val"), data.num_rows("dev")) == (3, 4)
    with pytest.raises(DataError, match="no split 'validation'; there: dev, val"):
        data.num_rows("validation")


def test_missing_split(own: str) -> None:
    with pytest.raises(DataError, match="no split 'test'; there: train, validation"):
        Dataset.open(own).read_group("test", 0)


# ---- what is refused


def test_missing_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet: no column 'image'; there: text, label"):
        Dataset.open(str(tmp_path))
    pq.write_table(pa.table({"image": [picture(0)], "coarse": [0]}), tmp_path / "train.parquet")
    data = Dataset.open(str(tmp_path))
    for call in (data.labels, lambda: data.read("train", ["label"])):
        with pytest.raises(DataError, match="no column 'label'; there: image, coarse"):
            call()


def test_ambiguous_names(tmp_path: Path) -> None:
    features = {name: datasets.Image() for name in ("left", "right")}
    both = datasets.Dataset.from_dict(
        {"left": [picture(0)], "right": [picture(1)]}, features=datasets.Features(features)
    )
    both.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"left, right are pictures: rename"):
        Dataset.open(str(tmp_path))


def test_column_that_one_file_lacks(tmp_path: Path) -> None:
    hugging_face(3).to_parquet(tmp_path / "train.parquet")
    hugging_face(3).remove_columns("label").to_parquet(tmp_path / "test.parquet")
    with pytest.raises(DataError, match=r"no column 'label' in test\.parquet"):
        Dataset.open(str(tmp_path)).labels()


def test_files_that_disagree(tmp_path: Path) -> None:
    hugging_face(3).to_parquet(tmp_path / "train.parquet")
    other = hugging_face(3).cast_column("label", datasets.ClassLabel(names=NAMES[::-1]))
    other.to_parquet(tmp_path / "val.parquet")
    with pytest.raises(DataError, match="column 'label' has other class names"):
        Dataset.open(str(tmp_path))
    pq.write_table(pa.table({"image": [picture(0)], "label": ["cat"]}), tmp_path / "val.parquet")
    with pytest.raises(DataError, match=r"val\.parquet: column 'label' holds string, but int64 in train"):
        Dataset.open(str(tmp_path))


def test_text_labels(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [picture(0)], "label": ["cat"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="column 'label': holds string without class names"):
        Dataset.open(str(tmp_path)).labels()


def test_paths_without_bytes(tmp_path: Path) -> None:
    rows = [{"bytes": None, "path": "/somewhere/x.jpg"}]
    pq.write_table(
        pa.table({"image": pa.array(rows, schema.IMAGE_TYPE), "label": [0]}), tmp_path / "train.parquet"
    )
    with pytest.raises(DataError, match="paths of pictures, not their bytes"):
        Dataset.open(str(tmp_path)).read_group("train", 0)


def test_places_that_hold_no_data_set(tmp_path: Path, s3_uri: str) -> None:
    with pytest.raises(StorageError, match="nope: not found"):
        Dataset.open(str(tmp_path / "nope"))
    with pytest.raises(DataError, match=r"no data set; accepted: .* there: nothing"):
        Dataset.open(str(tmp_path))
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match=r"there: a\.txt"):
        Dataset.open(str(tmp_path))
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats/1.JPG").write_text("")
    with pytest.raises(DataError, match="run `tlray ingest` on it first"):
        Dataset.open(str(tmp_path))
    storage.write_bytes(f"{s3_uri}/d/.unfinished", b"")
    storage.upload(write_own(tmp_path / "own", manifest=False), f"{s3_uri}/d")
    with pytest.raises(DataError, match="is being written"):
        Dataset.open(f"{s3_uri}/d")


def test_missing_shard(own: str) -> None:
    storage.delete(f"{own}/data/train-00001-of-00002.parquet")
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet: missing, though dataset\.json"):
        Dataset.open(own)


@pytest.mark.parametrize("cut", [0, 3, 100, 2000])
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_damaged_files(tmp_path: Path, kind: str, cut: int) -> None:
    if kind == "parquet":
        hugging_face(9).to_parquet(tmp_path / "train.parquet")
        file = tmp_path / "train.parquet"
    else:
        hugging_face(9).save_to_disk(str(tmp_path))
        file = next(tmp_path.glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(DataError, match="damaged or no such file format") as caught:
        Dataset.open(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_foreign_bytes(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"train.{kind}"
    file.write_bytes(hashlib.sha256(b"").digest() * 200)
    with pytest.raises(DataError, match="damaged or no such file format"):
        Dataset.open(str(file))


# ---- fingerprint


def test_fingerprint_follows_the_content_not_the_place(tmp_path: Path) -> None:
    one = write_own(tmp_path / "one", manifest=False)
    two = str(shutil.copytree(one, tmp_path / "two"))
    first = Dataset.open(one).fingerprint
    assert Dataset.open(two).fingerprint == first
    pq.write_table(own_table("train", 10, 5), f"{two}/data/train-00000-of-00002.parquet", row_group_size=4)
    assert Dataset.open(two).fingerprint != first


def test_fingerprint_of_saved_data(tmp_path: Path) -> None:
    hugging_face(9).save_to_disk(str(tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first = Dataset.open(str(tmp_path / "one")).fingerprint
    assert Dataset.open(str(tmp_path / "two")).fingerprint == first
    state = json.loads((tmp_path / "two/state.json").read_text())
    (tmp_path / "two/state.json").write_text(json.dumps({**state, "_fingerprint": "other"}))
    assert Dataset.open(str(tmp_path / "two")).fingerprint != first


def test_s3_reads_only_what_is_asked_for(
    tmp_path: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading labels transfers a small part of a file: no read-ahead, no pictures."""
    values = [
        {**row, "image": {"bytes": os.urandom(20_000), "path": "x"}}
        for row in own_table("train", 64).to_pylist()
    ]
    pq.write_table(
        pa.Table.from_pylist(values, own_table("train", 0).schema),
        tmp_path / "train.parquet",
        row_group_size=16,
    )
    storage.upload(tmp_path, f"{s3_uri}/d")
    import s3fs.core

    sizes: list[int] = []
    real = s3fs.core.S3File._fetch_range

    def fetch(self: Any, start: int, end: int) -> bytes:
        sizes.append(end - start)
        return bytes(real(self, start, end))

    monkeypatch.setattr(s3fs.core.S3File, "_fetch_range", fetch)
    data = Dataset.open(f"{s3_uri}/d")
    assert data.read("train", ["label"])["label"].to_pylist() == [i % 3 for i in range(64)]
    assert 0 < sum(sizes) < 200_000
    data.read_group("train", 3)
    assert 320_000 < sum(sizes) < 600_000


def foreign(folder: Path, classes: bool = True, column: str = "label", **splits: Any) -> str:
    """Parquet of another tool: one file for each split, with these labels (a list or an Arrow array)."""
    folder.mkdir()
    for split, values in splits.items():
        values = values if isinstance(values, pa.Array) else pa.array(values, pa.int64())
        images = pa.array([picture(i) for i in range(len(values))], IMAGE_TYPE)
        table = pa.table({"image": images, column: values})
        meaning = {"image": {"_type": "Image"}, column: schema.class_label(NAMES)}
        metadata = {"huggingface": json.dumps({"info": {"features": meaning}})}
        table = table.replace_schema_metadata(metadata if classes else None)
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=4)
    return str(folder)


@pytest.mark.parametrize(("bad", "shown"), [(-1, "-1"), (3, "3"), (None, "null"), (2**40, str(2**40))])
@pytest.mark.parametrize("statistics", [True, False])
def test_a_row_without_a_label_is_named(tmp_path: Path, bad: Any, shown: str, statistics: bool) -> None:
    labels = [0, 1, 2] * 4
    data = Dataset.open(foreign(tmp_path / "d", train=labels, test=[*labels[:9], bad, 1, 1]))
    path = tmp_path / "d/test-00000-of-00001.parquet"
    if not statistics:
        pq.write_table(pq.read_table(path), path, row_group_size=4, write_statistics=False)
        data = Dataset.open(data.uri)
    data.check_labels("train", "label", "class", 3)
    with pytest.raises(DataError) as caught:
        data.check_labels("test", "label", "class", 3)
    assert str(caught.value).startswith(f"{path} row 9 column 'label': {shown}; accepted: ")


def test_labels_in_order_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Dataset.open(foreign(tmp_path / "d", train=[0, 1, 2] * 4))
    monkeypatch.setattr(shards.Parquet, "group", None)  # the footer has all that is needed
    data.check_labels("train", "label", "class", 3)
    data.check_pictures("train")


@pytest.mark.parametrize("values", [[-1] * 6, [None] * 6, [-1, None] * 3, pa.nulls(6)])
def test_a_split_without_labels(tmp_path: Path, values: Any) -> None:
    for classes in (True, False):
        data = Dataset.open(
            foreign(tmp_path / f"{classes}", classes, train=[0, 1, 2], validation=[2, 1], test=values)
        )
        assert data.labels() == (NAMES if classes else ["0", "1", "2"])
        for split in ("train", "validation"):
            data.check_labels(split, "label", "class", 3)
        words = r"split 'test' has no labels \(column 'label' is null or -1 in all 6 rows\)"
        with pytest.raises(DataError, match=words):
            data.check_labels("test", "label", "class", 3)


def test_numbers_that_stand_for_no_label_are_no_class(tmp_path: Path) -> None:
    for number, dtype in ((255, pa.uint8()), (127, pa.int8()), (2**64 - 1, pa.uint64()), (-100, pa.int64())):
        train, test = (pa.array(values, dtype) for values in ([0, 1, 2], [number, 1]))
        data = Dataset.open(foreign(tmp_path / f"{number}", False, train=train, test=test))
        assert data.labels() == ["0", "1", "2"]
        with pytest.raises(DataError, match=rf"row 0 column 'label': {number}; accepted: 0 to 2"):
            data.check_labels("test", "label", "class", 3)
    every = Dataset.open(foreign(tmp_path / "every", False, train=pa.array(range(256), pa.uint8())))
    assert len(every.labels()) == 256
    for values, words in (([-1, None], "holds no label"), ([0, 10**9], "has label 1000000000, and 2 rows")):
        with pytest.raises(DataError, match=words):
            Dataset.open(foreign(tmp_path / words[:3], False, train=values)).labels()


def test_rows_of_a_split_column_are_named_where_they_lie(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    table = pa.table(
        {
            "image": pa.array([picture(i) for i in range(12)], IMAGE_TYPE),
            "labels": pa.array([0, 1] * 4 + [0, 1, 7, 1], pa.int32()),
            "split": ["train", "test"] * 6,
        }
    )
    pq.write_table(table, tmp_path / "d/all.parquet", row_group_size=4)
    data = Dataset.open(str(tmp_path / "d"))
    data.check_labels("test", "label", "class", 2)
    with pytest.raises(DataError, match=r"all\.parquet row 10 column 'labels': 7; accepted: 0 to 1"):
        data.check_labels("train", "label", "class", 2)


def test_types_empty_splits_and_columns_that_are_missing(tmp_path: Path) -> None:
    data = Dataset.open(foreign(tmp_path / "d", train=pa.array([0.0, 1.0]), test=pa.array([], pa.float64())))
    with pytest.raises(DataError, match="column 'label': holds double; accepted: integers"):
        data.check_labels("train", "label", "class", 3)
    with pytest.raises(DataError, match="no column 'objects'"):
        data.check_labels("train", "objects", "objects", 3)
    data = Dataset.open(foreign(tmp_path / "e", train=[0, 1], test=[]))
    with pytest.raises(DataError, match="split 'test' has no rows"):
        data.check_labels("test", "label", "class", 3)


@pytest.mark.parametrize("layout", ["parquet", "plain bytes", "save_to_disk"])
def test_a_row_without_a_picture_is_named(tmp_path: Path, layout: str) -> None:
    rows = [picture(0), picture(1), None, picture(3)]
    if layout == "save_to_disk":
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
        saved = datasets.Dataset.from_dict({"image": rows, "label": [0] * 4}, features=features)
        saved.save_to_disk(str(tmp_path / "d"))
    else:
        image: pa.Array = pa.array(rows, IMAGE_TYPE)
        image = pc.struct_field(image, "bytes") if layout == "plain bytes" else image
        (tmp_path / "d").mkdir()
        pq.write_table(pa.table({"image": image, "label": [0] * 4}), tmp_path / "d/train.parquet")
    data = Dataset.open(str(tmp_path / "d"))
    with pytest.raises(
        DataError, match=r"d/.*\.(parquet|arrow) row 2 column 'image': null; accepted: an encoded"
    ):
        data.check_pictures("train")


def test_masks_without_pixels_are_named(tmp_path: Path) -> None:
    masks = pa.array([{"bytes": b"x", "path": None}, {"bytes": None, "path": "a.png"}], IMAGE_TYPE)
    data = Dataset.open(foreign(tmp_path / "d", False, "mask", train=masks))
    with pytest.raises(DataError, match=r"row 1 column 'mask\.bytes': null; accepted: an encoded mask"):
        data.check_labels("train", "mask", "mask", 3)
