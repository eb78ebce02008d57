"""Folders and tables of pictures -> shards, manifest and report.

Most tests run the two passes in this process, blocks in reverse order (`here`); some on a real Ray.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.roundtrip.runner import map_here
from tlray import storage
from tlray.data import masks, schema, synthetic
from tlray.data.dataset import Dataset
from tlray.errors import ConfigError, DataError, StorageError
from tlray.ingestion import ingest as module
from tlray.ingestion import plan, writer
from tlray.ingestion.ingest import ingest


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do in this process what Ray's tasks do."""
    monkeypatch.setattr(module, "_map", map_here)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 drawn pictures in train / validation / test."""
    folder = tmp_path_factory.mktemp("drawn") / "pictures"
    synthetic.draw(str(folder), 20, size=48)
    return folder


@pytest.fixture
def flat(drawn: Path, tmp_path: Path) -> Path:
    """Two classes of 31 and 14, without splits."""
    kinds = synthetic.KINDS
    for kind in kinds[:2]:
        shutil.copytree(drawn / "train" / kind, tmp_path / "flat" / kind)
    for n in range(17):
        (tmp_path / "flat" / kinds[0] / f"more{n}.jpg").write_bytes(
            synthetic.picture(0, 40, np.random.default_rng(n))
        )
    return tmp_path / "flat"


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def table(target: Path, split: str) -> pa.Table:
    files = sorted((target / "data").glob(f"{split}-*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files])


def paths(target: Path, split: str) -> list[str]:
    return [picture["path"] for picture in table(target, split)["image"].to_pylist()]


def kinds_of(result: module.IngestResult) -> dict[str, str]:
    return {f.kind: f.severity for f in result.report.findings}


def test_a_folder_with_splits(here: None, drawn: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    result = ingest(str(drawn), str(tmp_path / "data"), progress=lambda *a: told.append(a))
    assert result.splits == {"train": 140, "validation": 30, "test": 30}
    assert result.labels == {"label": sorted(synthetic.KINDS)}
    data = Dataset.open(str(tmp_path / "data"))
    assert data.labels() == sorted(synthetic.KINDS)
    assert data.fingerprint == result.fingerprint
    assert {split: data.num_rows(split) for split in data.splits} == result.splits
    assert data.schema.equals(
        schema.dataset_schema({"label": (pa.int64(), schema.class_label(data.labels()))})
    )
    ids: set[str] = set()
    for split in data.splits:
        rows = data.rows(split, range(data.num_rows(split))).to_pylist()
        ids.update(row["id"] for row in rows)
        for row in rows:
            path = row["image"]["path"]
            assert row["image"]["bytes"] == (drawn / path).read_bytes()
            assert path.split("/")[:2] == [split, data.labels()[row["label"]]]
            assert (row["split"], row["width"], row["height"]) == (split, 48, 48)
        labels = [row["label"] for row in rows]
        assert labels != sorted(labels)  # classes are mixed
    assert len(ids) == 200
    for stage in ("list", "inspect", "write"):
        assert [t for t in told if t[0] == stage][-1] == (stage, 200, 200)
    assert result.report.to_text() == (tmp_path / "data" / "preflight.txt").read_text()
    assert json.loads((tmp_path / "data" / "preflight.json").read_text()) == result.report.to_dict()


def test_same_bytes_on_ray_whatever_the_order(
    ray_local: Any,
    request: pytest.FixtureRequest,
    drawn: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "SHARD_ROWS", 64)  # several shards
    monkeypatch.setattr(plan, "GROUP_ROWS", 32)
    on_ray = ingest(str(drawn), str(tmp_path / "ray"), seed=3)
    request.getfixturevalue("here")
    alone = ingest(str(drawn), str(tmp_path / "here"), seed=3)
    assert content(tmp_path / "ray") == content(tmp_path / "here")
    assert len(list((tmp_path / "ray" / "data").glob("train-*-of-00003.parquet"))) == 3
    assert on_ray.fingerprint == alone.fingerprint
    files = json.loads((tmp_path / "ray" / "dataset.json").read_text())["files"]
    assert files == {
        name: hashlib.sha256(data).hexdigest()
        for name, data in content(tmp_path / "ray").items()
        if name.endswith(".parquet")
    }
    other = ingest(str(drawn), str(tmp_path / "other"), seed=4)
    assert other.fingerprint != alone.fingerprint
    assert sorted(paths(tmp_path / "other", "train")) == sorted(paths(tmp_path / "here", "train"))


def test_a_fault_in_a_ray_task_is_one_line(ray_local: Any, flat: Path, tmp_path: Path) -> None:
    """The source changes between the passes."""

    def change(stage: str, done: int, total: int) -> None:
        if stage == "write" and done == 0:
            next(flat.rglob("*.jpg")).write_bytes(b"other bytes")

    with pytest.raises(StorageError, match=r"\.jpg: has changed while it was ingested; try again"):
        ingest(str(flat), str(tmp_path / "data"), progress=change)
    assert not (tmp_path / "data").exists()


def test_hugging_face_reads_it(
    here: None, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    ingest(str(drawn), str(tmp_path / "data"))
    loaded = datasets.load_dataset(
        "parquet", data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache")
    )
    ours = Dataset.open(str(tmp_path / "data"))
    assert {split: len(rows) for split, rows in loaded.items()} == {s: ours.num_rows(s) for s in ours.splits}
    assert loaded["train"].features["label"].names == sorted(synthetic.KINDS)
    row = loaded["train"][0]
    assert isinstance(row["image"], Image.Image)
    assert row["image"].size == (48, 48)
    assert row["id"] == ours.rows("train", [0])["id"][0].as_py()


def test_rows_are_grouped_and_cut(
    here: None, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (plan.GROUP_ROWS, plan.SHARD_ROWS) == (128, 1024)
    assert list(writer._groups([1] * 300)) == [(0, 128), (128, 256), (256, 300)]
    big = writer.GROUP_BYTES // 2
    assert list(writer._groups([big, big, big, big + 1, 4 * big, 1])) == [
        (0, 2),
        (2, 3),
        (3, 4),
        (4, 5),
        (5, 6),
    ]
    rows = pa.table(
        {"split": ["train"] * 1300, "num_bytes": [10] * 1300, "path": [str(n) for n in range(1300)]}
    )
    cut = plan.shards(rows, seed=0)
    assert [(s["name"], s["num_rows"]) for s in cut] == [
        ("data/train-00000-of-00002.parquet", 1024),
        ("data/train-00001-of-00002.parquet", 276),
    ]
    monkeypatch.setattr(plan, "SHARD_BYTES", 128 * 10)
    assert [s["num_rows"] for s in plan.shards(rows, seed=0)] == [128] * 10 + [20]


def test_splits_are_cut_by_class(here: None, flat: Path, tmp_path: Path) -> None:
    result = ingest(str(flat), str(tmp_path / "a"), validation=0.2, test=0.1)
    assert result.splits == {"train": 32, "validation": 9, "test": 4}
    assert result.report.counts["validation"] == {synthetic.KINDS[1]: 3, synthetic.KINDS[0]: 6}
    assert result.report.counts["test"] == {synthetic.KINDS[1]: 1, synthetic.KINDS[0]: 3}
    ingest(str(flat), str(tmp_path / "b"), validation=0.2, test=0.1, seed=1)
    assert set(paths(tmp_path / "a", "test")) != set(paths(tmp_path / "b", "test"))


def test_validation_is_cut_from_train_only(here: None, drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn / "train", tmp_path / "in" / "train")
    shutil.copytree(drawn / "test", tmp_path / "in" / "test")
    result = ingest(str(tmp_path / "in"), str(tmp_path / "data"), validation=0.25)
    assert {p.split("/")[0] for p in paths(tmp_path / "data", "validation")} == {"train"}
    assert {p.split("/")[0] for p in paths(tmp_path / "data", "test")} == {"test"}
    assert set(result.report.counts["validation"]) == set(synthetic.KINDS)
    without = ingest(str(tmp_path / "in"), str(tmp_path / "data"), validation=0)
    assert set(without.splits) == {"train", "test"}


def test_duplicates_stay_on_one_side(here: None, flat: Path, tmp_path: Path) -> None:
    kind = flat / synthetic.KINDS[0]
    for n, source in enumerate(sorted(kind.iterdir())[:8]):
        shutil.copy(source, kind / f"copy{n}.jpg")
        Image.open(source).save(kind / f"again{n}.jpg", quality=95)
    for seed in range(4):
        result = ingest(str(flat), str(tmp_path / "data"), validation=0.3, test=0.3, seed=seed)
        found = kinds_of(result)
        assert "exact_duplicates" in found
        assert not [kind for kind in found if kind.endswith("across_splits")]
        assert min(result.splits.values()) >= 8


def test_leaks_of_the_given_splits_are_errors(here: None, drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn, tmp_path / "in")
    kind = synthetic.KINDS[3]
    shutil.copy(drawn / "train" / kind / "0000.jpg", tmp_path / "in" / "test" / kind / "leak.jpg")
    result = ingest(str(tmp_path / "in"), str(tmp_path / "data"))
    assert kinds_of(result)["exact_across_splits"] == "error"
    assert f"train: train/{kind}/0000.jpg" in (tmp_path / "data" / "preflight.txt").read_text()
    with pytest.raises(DataError, match=r"fatal \(strict\), first: pictures with same bytes across splits"):
        ingest(str(tmp_path / "in"), str(tmp_path / "new"), strict=True)
    assert set(content(tmp_path / "new")) == {"preflight.json", "preflight.txt"}
    (tmp_path / "in" / "test" / kind / "leak.jpg").unlink()
    ingest(str(tmp_path / "in"), str(tmp_path / "new"))  # a report alone stands in nobody's way
    assert (tmp_path / "new" / "dataset.json").exists()


def test_bad_pictures_are_left_out(here: None, flat: Path, tmp_path: Path) -> None:
    kind = flat / synthetic.KINDS[0]
    whole = (kind / "more0.jpg").read_bytes()
    (kind / "empty.jpg").write_bytes(b"")
    (kind / "text.png").write_text("no picture")
    (kind / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (kind / "gone.jpg").symlink_to(tmp_path / "nowhere")
    result = ingest(str(flat), str(tmp_path / "data"), max_bad_share=0.1)
    left = {q["path"].split("/")[1]: q["kind"] for q in result.report.quarantined}
    expected = {"empty.jpg": "empty", "text.png": "not_a_picture", "cut.jpg": "truncated"}
    assert {name: left[name] for name in expected} == expected
    assert all(q["reason"] for q in result.report.quarantined)
    assert sum(result.splits.values()) == len(list(flat.rglob("*.*"))) - 4
    assert (kind / "empty.jpg").exists()  # the source is never touched
    with pytest.raises(
        DataError, match=r"pictures are unusable \(.*first: .*accepted: at most 5\.0% \(max_bad_share\)"
    ):
        ingest(str(flat), str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_a_class_that_is_not_in_train(here: None, drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn, tmp_path / "in")
    shutil.copytree(drawn / "test" / synthetic.KINDS[0], tmp_path / "in" / "test" / "aardvark")
    result = ingest(str(tmp_path / "in"), str(tmp_path / "data"))
    assert result.labels["label"] == sorted(synthetic.KINDS)
    assert kinds_of(result)["class_not_in_train"] == "error"
    assert not [p for p in paths(tmp_path / "data", "test") if "aardvark" in p]
    shutil.rmtree(tmp_path / "in" / "train")
    with pytest.raises(DataError, match="no train split among test, validation"):
        ingest(str(tmp_path / "in"), str(tmp_path / "data"))


def test_spellings_of_a_class(here: None, drawn: Path, tmp_path: Path) -> None:
    """macOS writes folders decomposed, and people write Cat and cat."""
    one, two = sorted((drawn / "train").iterdir())[:2]
    for split, names in (("train", ("caf\u00e9", "Cat", "cat ")), ("val", ("cafe\u0301", "cat", "Cat"))):
        for source, name in zip((one, two, two), names, strict=True):
            shutil.copytree(source, tmp_path / "in" / split / name)
    result = ingest(str(tmp_path / "in"), str(tmp_path / "data"))
    assert result.labels == {"label": ["Cat", "caf\u00e9", "cat"]}
    assert result.report.counts["validation"] == {"Cat": 14, "caf\u00e9": 14, "cat": 14}
    assert kinds_of(result)["similar_names"] == "warning"
    assert kinds_of(result)["names_cleaned"] == "info"
    similar = next(f for f in result.report.findings if f.kind == "similar_names")
    assert similar.examples == ["'Cat' (28 labels) = 'cat' (28 labels)"]
    merged = ingest(str(tmp_path / "in"), str(tmp_path / "data"), merge_classes=True)
    assert merged.labels == {"label": ["Cat", "caf\u00e9"]}
    assert json.loads((tmp_path / "data" / "dataset.json").read_text())["settings"]["merge_classes"] is True
    assert Dataset.open(str(tmp_path / "data")).labels() == ["Cat", "caf\u00e9"]


def test_shrink(here: None, flat: Path, tmp_path: Path) -> None:
    kind = flat / synthetic.KINDS[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(kind / "more1.jpg").resize((160, 80)).save(kind / "wide.jpg", exif=exif)
    ingest(str(flat), str(tmp_path / "data"), max_side=40)
    rows = {
        r["image"]["path"].split("/")[1]: r
        for s in ("train", "validation", "test")
        for r in table(tmp_path / "data", s).to_pylist()
    }
    assert (rows["wide.jpg"]["width"], rows["wide.jpg"]["height"]) == (20, 40)
    assert Image.open(io.BytesIO(rows["wide.jpg"]["image"]["bytes"])).size == (20, 40)
    assert (rows["0000.jpg"]["width"], rows["0000.jpg"]["height"]) == (40, 40)
    assert rows["more1.jpg"]["image"]["bytes"] == (kind / "more1.jpg").read_bytes()  # it is 40 px already


def test_a_table(here: None, drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn / "train", tmp_path / "in" / "photos")
    kinds = synthetic.KINDS[:3]
    names = [f"photos/{kind}/{n:04d}.jpg" for kind in kinds for n in range(12)]
    lines = ["file,label,split"] + [
        f"{name},{name.split('/')[1]},{'test' if n % 4 == 0 else ''}" for n, name in enumerate(names)
    ]
    (tmp_path / "in" / "labels.csv").write_text("\n".join(lines))
    for source in (tmp_path / "in", tmp_path / "in" / "labels.csv"):
        result = ingest(str(source), str(tmp_path / "data"), validation=0.2)
        assert result.splits == {"train": 21, "validation": 6, "test": 9}
        assert result.labels["label"] == sorted(kinds)
    (tmp_path / "in" / "labels.csv").write_text("\n".join([*lines, "photos/none.jpg,striped-disc,train"]))
    result = ingest(str(tmp_path / "in"), str(tmp_path / "data"))
    assert [(q["path"], q["kind"]) for q in result.report.quarantined] == [("photos/none.jpg", "unreadable")]


def test_from_and_to_s3(here: None, flat: Path, s3_uri: str, tmp_path: Path) -> None:
    storage.upload(flat, f"{s3_uri}/in")
    result = ingest(f"{s3_uri}/in", f"{s3_uri}/out")
    ingest(str(flat), str(tmp_path / "out"))
    storage.download(f"{s3_uri}/out", tmp_path / "fetched")
    here_files, there_files = content(tmp_path / "out"), content(tmp_path / "fetched")
    names_source = ("preflight.json", "preflight.txt", "preview.html")
    assert here_files.keys() == there_files.keys()
    assert {n: d for n, d in here_files.items() if n not in names_source} == {
        n: d for n, d in there_files.items() if n not in names_source
    }
    assert Dataset.open(f"{s3_uri}/out").fingerprint == result.fingerprint
    ingest(f"{s3_uri}/in", f"{s3_uri}/out", validation=0)  # replaced, nothing of the old one left
    assert not [f.path for f in storage.walk(f"{s3_uri}/out") if "validation" in f.path]
    assert not storage.unfinished(f"{s3_uri}/out")


@pytest.mark.parametrize("s3", [False, True])
def test_a_failed_write_leaves_nothing(
    here: None,
    flat: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    s3: bool,
) -> None:
    target = f"{request.getfixturevalue('s3_uri')}/out" if s3 else str(tmp_path / "data")

    def fail(*args: Any) -> str:
        raise StorageError("disk full")

    monkeypatch.setattr(writer, "_write_shard", fail)
    with pytest.raises(StorageError, match="disk full"):
        ingest(str(flat), target)
    assert not storage.exists(target)


def test_an_older_data_set_is_replaced_whole_or_kept(
    here: None, drawn: Path, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "data"
    ingest(str(drawn), str(target))
    before = content(target)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_write_shard", lambda *args: (_ for _ in ()).throw(StorageError("disk full")))
        with pytest.raises(StorageError, match="disk full"):
            ingest(str(flat), str(target))
    assert content(target) == before
    ingest(str(flat), str(target))
    assert len(Dataset.open(str(target)).labels()) == 2


def test_mistakes_are_said_before_anything_starts(flat: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "data")
    with pytest.raises(DataError, match="nowhere: not found"):
        ingest(str(tmp_path / "nowhere"), target)
    with pytest.raises(DataError, match="lies in the source"):
        ingest(str(flat), str(flat / "data"))
    with pytest.raises(DataError, match="holds the source"):
        ingest(str(flat), str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="is there and no data set"):
        ingest(str(flat), str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(ConfigError, match=r"validation \+ test = 1\.1"):
        ingest(str(flat), target, validation=0.6, test=0.5)
    with pytest.raises(ConfigError, match="test = -1"):
        ingest(str(flat), target, test=-1)
    with pytest.raises(ConfigError, match="max_side = 3: accepted: 16 px or more"):
        ingest(str(flat), target, max_side=3)
    with pytest.raises(ConfigError, match="did you mean 'folder'"):
        ingest(str(flat), target, format="foldr")
    with pytest.raises(ConfigError, match="unknown task"):
        ingest(str(flat), target, task="clasification")
    (flat / "hat").mkdir()
    with pytest.raises(DataError, match="flat/hat: class folder without pictures"):
        ingest(str(flat), target)
    assert not (tmp_path / "data").exists()


@pytest.mark.realdata
@pytest.mark.slow
def test_clothing(ray_local: Any, realdata: Path, tmp_path: Path) -> None:
    result = ingest(str(realdata / "clothing"), str(tmp_path / "data"), max_side=128)
    assert result.splits == {"train": 3068, "validation": 341, "test": 372}
    assert len(result.labels["label"]) == 10
    # One photograph of this collection lies in two classes; no other picture looks like another class's.
    conflicts = [f for f in result.report.findings if f.kind == "near_label_conflict"]
    assert [f.count for f in conflicts] == [1]
    assert not [k for k in kinds_of(result) if k.endswith("across_splits")]


def test_pictures_in_tars_and_rows_are_read_where_they_are(here: None, tmp_path: Path) -> None:
    """Both passes with sources in place of files: a tar, and rows of a Parquet file."""
    rng = np.random.default_rng(0)
    data = [synthetic.picture(n % 3, 40, rng) for n in range(6)]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for n, picture in enumerate(data):
            info = tarfile.TarInfo(f"{n}.jpg")
            info.size = len(picture)
            tar.addfile(info, io.BytesIO(picture))
    with tarfile.open(tmp_path / "x.tar") as tar:
        in_tar = [f"tar:x.tar:{member.offset_data}:{member.size}" for member in tar]
    (tmp_path / "rows").mkdir()
    held = pa.StructArray.from_arrays(
        [pa.array(data), pa.nulls(6, pa.string())], fields=list(schema.IMAGE_TYPE)
    )
    pq.write_table(pa.table({"image": held}), tmp_path / "rows" / "train.parquet", row_group_size=2)
    in_rows = [f"row:train:{n}:" for n in range(6)]
    names = [f"{n}" for n in range(6)]
    for root, sources in ((tmp_path, in_tar), (tmp_path / "rows", in_rows)):
        index = pa.table({"path": names, "source": sources, "label": ["a", "b"] * 3, "split": ["train"] * 6})
        seen = module._inspect(str(root), index, None, lambda *done: None)
        assert seen["kind"].null_count == 6
        assert seen["sha256"].to_pylist() == [hashlib.sha256(picture).hexdigest() for picture in data]
        planned = plan.shards(plan.encoded(seen, {"label": "class"}, {"label": ["a", "b"]}), 0)
        columns = {"label": (pa.int64(), schema.class_label(["a", "b"]))}
        target = tmp_path / f"out-{root.name}"
        module._write(str(root), str(target), planned, columns, None, masks.AS_STORED, lambda *done: None)
        rows = table(target, "train").to_pylist()
        assert {row["image"]["path"]: row["image"]["bytes"] for row in rows} == dict(
            zip(names, data, strict=True)
        )
    gone = ["row:train:99:", "tar:gone.tar:0:9"]
    broken = pa.table({"path": ["a", "b"], "source": gone, "split": ["train"] * 2})
    for row, says in ((0, "no row 99"), (1, "not found")):
        seen = module._inspect(str(tmp_path / "rows"), broken.slice(row, 1), None, lambda *done: None)
        assert seen["kind"].to_pylist() == ["unreadable"]
        assert says in seen["reason"][0].as_py()
