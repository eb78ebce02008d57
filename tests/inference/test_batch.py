"""A job over every picture: the same results as one by one, and a killed one goes on."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests import toys
from tlray import tasks
from tlray.bundle import bundle
from tlray.bundle.predictor import Predictor
from tlray.data.dataset import Dataset
from tlray.data.image import Preprocess
from tlray.errors import DataError
from tlray.inference import batch, inputs
from tlray.models.backbone import Backbone

PRE = Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)


def made_bundle(folder: Path) -> str:
    """A classifier that has learnt nothing but says something about each picture."""
    torch.manual_seed(1)
    task, backbone = tasks.load({"name": "classification"}), Backbone("resnet10t-nano", "builtin", size=32)
    module = task.build(backbone, toys.LABELS).eval()
    torch.nn.init.normal_(module.head.weight, std=0.3)
    model = bundle.Model(module, task, backbone.spec(), 0, PRE, toys.LABELS, "f")
    bundle.save(str(folder), model, {"accuracy": 0.5}, {"name": "toy"})
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toys.dataset(tmp_path_factory.mktemp("data") / "d", group_rows=8, train=27, test=5)


@pytest.fixture(scope="module")
def whole(
    ray_local: Any, model: str, data: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any]]:
    """Predictions of the whole data set in small parts: where, and what was said of them."""
    out = str(tmp_path_factory.mktemp("whole") / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "PART_ROWS", 8)
        return out, batch.predict(model, inputs.Inputs.dataset(data), out)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "PART_ROWS", 8)


def rows_of(out: str) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted(Path(out, "data").glob("*.parquet"))]
    return pa.concat_tables([t.replace_schema_metadata(None) for t in tables]).to_pylist()


def test_parts_end_where_row_groups_end() -> None:
    assert inputs.cuts([8, 8, 8, 3], 16) == [(0, 16), (16, 27)]
    assert inputs.cuts([5, 5, 5], 8) == [(0, 5), (5, 10), (10, 15)]
    assert inputs.cuts([20, 3], 8) == [(0, 8), (8, 16), (16, 23)]  # a group larger than a part
    assert inputs.cuts([0, 4, 0], 8) == [(0, 4)] and inputs.cuts([], 8) == []


def test_predictions_are_those_of_one_by_one(
    model: str, data: str, whole: tuple[str, dict[str, Any]]
) -> None:
    out, manifest = whole
    assert (manifest["rows"], manifest["num_rows"], manifest["num_errors"]) == (32, 32, 0)
    assert len(manifest["parts"]) == 5
    predictor, opened = Predictor(model), Dataset.open(data)
    rows = rows_of(out)
    assert [row["id"] for row in rows] == [
        *opened.read("test", ["id"])["id"].to_pylist(), *opened.read("train", ["id"])["id"].to_pylist()
    ]  # fmt: skip
    for row in rows[::5]:
        index = int(row["id"].removeprefix(row["split"]))
        picture = opened.rows(row["split"], [index])["image"][0].as_py()
        one = predictor.predict([picture["bytes"]])[0]
        prediction = json.loads(row["prediction"])
        assert row["path"] == picture["path"] and row["error"] is None and row["label"] == index % 3
        assert [item["label"] for item in prediction["labels"]] == [item["label"] for item in one["labels"]]
        assert prediction["probability"] == pytest.approx(one["probability"], abs=1e-4)
        assert (row["predicted"], row["probability"]) == (
            one["label"],
            pytest.approx(one["probability"], abs=1e-4),
        )
    assert not Path(out, batch.PLAN).exists()


def test_a_killed_job_goes_on(
    model: str, data: str, small: None, whole: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    out, source = str(tmp_path / "out"), inputs.Inputs.dataset(data)

    def kill(stage: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch.predict(model, source, out, kill)
    # Usually some of the five; all, where the other processes were quicker than the kill.
    first = {path.name: path.stat().st_mtime_ns for path in Path(out, "data").glob("*.parquet")}
    assert first and not Path(out, batch.PREDICTIONS).exists() and Path(out, batch.PLAN).exists()
    other = inputs.Inputs.dataset(data, ["test"])
    with pytest.raises(DataError, match=r"holds other work .*accepted: the same model, data and settings"):
        batch.predict(model, other, out)
    progress: list[int] = []
    manifest = batch.predict(model, source, out, lambda stage, done, total: progress.append(done))
    assert manifest["rows"] < 32 and progress[0] == 32 - manifest["rows"] and progress[-1] == 32
    for name, when in first.items():
        assert Path(out, "data", name).stat().st_mtime_ns == when  # not done again
    assert rows_of(out) == rows_of(whole[0])
    assert Path(out, batch.PREDICTIONS).read_bytes() == Path(whole[0], batch.PREDICTIONS).read_bytes()
    again = batch.predict(model, source, out)
    assert again["rows"] == 0 and again["num_rows"] == 32


def test_pictures_as_they_lie_and_bad_ones(ray_local: Any, model: str, small: None, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for n in range(9):
        (folder / "sub" / f"{n}.jpg").write_bytes(toys.picture(n % 3, n))
    (folder / "bad.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("passed over")
    source = inputs.find([str(folder)], [])
    manifest = batch.predict(model, source, str(tmp_path / "out"))
    assert (manifest["num_rows"], manifest["num_errors"]) == (10, 1)
    rows = rows_of(str(tmp_path / "out"))
    assert [row["path"] for row in rows] == ["bad.jpg", *(f"sub/{n}.jpg" for n in range(9))]
    assert rows[0]["error"].startswith("not_a_picture: ") and rows[0]["prediction"] is None
    one = Predictor(model).predict([(folder / "sub" / "4.jpg").read_bytes()])[0]
    assert rows[5]["predicted"] == one["label"] and rows[5]["error"] is None
    few = [str(folder / "sub" / "1.jpg"), str(folder / "bad.jpg")]
    manifest = batch.predict(model, inputs.find(few, []), str(tmp_path / "few"))
    assert [row["path"] for row in rows_of(str(tmp_path / "few"))] == sorted(few)
    assert manifest["num_errors"] == 1


def test_a_broken_picture_in_a_data_set_is_a_row(ray_local: Any, model: str, tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(picture, "PNG")
    images = [{"bytes": b, "path": f"{n}.png"} for n, b in enumerate([picture.getvalue(), b"broken"])]
    (tmp_path / "d").mkdir()
    pq.write_table(pa.table({"image": images, "probability": [1, 2]}), tmp_path / "d" / "train.parquet")
    manifest = batch.predict(model, inputs.Inputs.dataset(str(tmp_path / "d")), str(tmp_path / "out"))
    rows = rows_of(str(tmp_path / "out"))
    assert manifest["num_errors"] == 1 and [row["error"] is None for row in rows] == [True, False]
    assert rows[1]["probability"] is None and 0 < rows[0]["probability"] <= 1  # ours, not the data's


def test_mistakes(model: str, data: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not found; accepted: a data set, pictures"):
        inputs.find([str(tmp_path / "none")], [])
    with pytest.raises(DataError, match="no split 'nothing'"):
        inputs.find([data], ["nothing"])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("x")
    with pytest.raises(DataError, match="holds no picture"):
        inputs.find([str(tmp_path / "in")], [])
    with pytest.raises(DataError, match="has no splits"):
        inputs.find([str(tmp_path / "in")], ["train"])
    with pytest.raises(DataError, match=r"holds other files \(a.txt\)"):
        batch.predict(model, inputs.Inputs.dataset(data), str(tmp_path / "in"))


def test_a_row_without_a_picture_is_a_row(tmp_path: Path) -> None:
    uri = toys.dataset(tmp_path / "d", train=3)
    path = tmp_path / "d/data/train-00000-of-00001.parquet"
    table = pq.read_table(path)
    image = table.schema.field("image")
    nulls = pa.array([table["image"][0].as_py(), None, {"bytes": None, "path": "a.jpg"}], image.type)
    pq.write_table(table.set_column(0, image, nulls), path)
    source = inputs.Inputs.dataset(uri)
    plan = pa.Table.from_pylist(source.plan(8))
    made = batch._render(plan, uri, source.fingerprint, source.columns, PRE)
    assert made["fault"].to_pylist() == [None]
    errors = [row["error"] for row in made["rows"][0].as_py()]
    assert errors[0] is None
    assert [error.split(":")[0] for error in errors[1:]] == ["empty", "empty"]
