"""`import tlray`: data, runs and models as objects, on a real Ray and with a real server."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import tlray
from tests.toys import scenes_dataset
from tlray import config
from tlray.bundle import bundle
from tlray.data import synthetic
from tlray.data.dataset import Dataset
from tlray.errors import (
    BundleError,
    ConfigError,
    DataError,
    PictureError,
    RegistryError,
    RunError,
    StorageError,
)
from tlray.tasks import load as load_task
from tlray.training import fit as training

SETTINGS = {"input.size": 32, "train.batch_size": 16, "search.probe": False, "search.extend": False}
SPACE = {"optim.lr": {"choice": [0.01, 0.003]}}


class Recorder:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.begun, self.stages, self.kinds = 0, set[str](), set[str]()

    def begin(self) -> None:
        self.begun += 1

    def event(self, event: dict[str, Any]) -> None:
        self.kinds.add(event["kind"])

    def progress(self, stage: str, done: int, total: int) -> None:
        self.stages.add(stage)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("notebook")
    synthetic.draw(str(where / "pictures"), 10, 48)
    return where


@pytest.fixture(scope="module")
def ingested(folder: Path, ray_local: Any) -> tuple[tlray.Data, Recorder]:
    observer = Recorder()
    return tlray.ingest(folder / "pictures", folder / "data", observer=observer), observer


@pytest.fixture(scope="module")
def data(ingested: tuple[tlray.Data, Recorder]) -> tlray.Data:
    return ingested[0]


@pytest.fixture(scope="module")
def searched(data: tlray.Data, folder: Path) -> tuple[tlray.Run, Recorder]:
    observer = Recorder()
    overrides = {**SETTINGS, "runs": str(folder / "runs"), "search.space": SPACE, "search.soup": 0}
    overrides |= {"search.cache": None}
    run = tlray.tune(
        data, backbone="resnet10t-nano", epochs=1, name="mine", overrides=overrides, observer=observer
    )
    return run, observer


@pytest.fixture(scope="module")
def run(searched: tuple[tlray.Run, Recorder]) -> tlray.Run:
    return searched[0]


@pytest.fixture(scope="module")
def model(run: tlray.Run) -> tlray.Model:
    return tlray.load(run)


@pytest.fixture(scope="module")
def files(folder: Path) -> list[Path]:
    """Three pictures of different sizes, losslessly stored."""
    rng = np.random.default_rng(0)
    paths = []
    for number, (width, height) in enumerate(((40, 30), (32, 50), (64, 64))):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels).resize((width, height)).save(paths[-1])
    return paths


def test_the_import_is_light_and_has_all_names(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "began = time.perf_counter()\n"
        "import tlray\n"
        "print(time.perf_counter() - began)\n"
        "heavy = {'torch', 'ray', 'pandas', 'numpy', 'pyarrow', 'pydantic', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert set(dir(tlray)) == set(tlray.__all__)\n"
        "for name in tlray.__all__: assert getattr(tlray, name), name\n"
        "assert not {'torch', 'ray', 'pandas'} & set(sys.modules)\n"
        "try: tlray.nothing\n"
        "except AttributeError as error: assert 'nothing' in str(error)\n"
        "else: raise AssertionError\n"
        "from tlray import storage, Data\n"
    )
    seconds = [
        float(
            subprocess.run(
                [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
            ).stdout
        )
        for _ in range(2)
    ]
    assert min(seconds) < 0.2  # 0.003 s on two idle cores


def test_data_shows_what_it_holds(ingested: tuple[tlray.Data, Recorder], folder: Path) -> None:
    data, observer = ingested
    assert observer.stages == {"list", "inspect", "write"}
    assert data.task == "classification" and len(data.labels["label"]) == 10
    assert sum(data.splits.values()) == 100 and set(data.splits) == {"train", "validation", "test"}
    assert "train" in repr(data) and "10 classes" in repr(data)
    assert data.findings
    page = data._repr_html_()
    assert page.count("<img") == 12 and data.labels["label"][0] in page
    assert tlray.Data(str(folder / "data")).uri == data.uri
    with pytest.raises(StorageError, match="nothing: not found"):
        tlray.Data(folder / "nothing")


def test_a_run_has_metrics_trials_and_a_table(searched: tuple[tlray.Run, Recorder]) -> None:
    run, observer = searched
    assert observer.begun and {"search_start", "trial_end"} <= observer.kinds
    assert 0 <= run.metrics["accuracy"] <= 1 and run.metrics.standard_errors["accuracy"] > 0
    assert "accuracy" in repr(run.metrics) and "±" in repr(run.metrics)
    trials = run.trials
    assert isinstance(trials, pd.DataFrame) and len(trials) == 2
    assert sorted(trials["optim.lr"]) == [0.003, 0.01]
    assert list(trials["winner"]) == [True, False] and trials["accuracy"].is_monotonic_decreasing
    page = run._repr_html_()
    assert all(name in page for name in (*trials["trial"], "mine", "accuracy"))
    assert "http" not in page and "<script" not in page
    assert Path(run.report).is_file()
    assert tlray.Run(run.uri).metrics == run.metrics


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run lies here; accepted"):
        tlray.Run(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    begun = tlray.Run(tmp_path)
    with pytest.raises(RunError, match="not finished"):
        _ = begun.metrics
    assert begun.trials.empty and "winner" in begun.trials.columns


def test_all_kinds_of_pictures_are_the_same_picture(model: tlray.Model, files: list[Path]) -> None:
    expected = model.predict(files)
    assert [len(one["labels"]) for one in expected] == [10] * 3
    opened = [Image.open(file) for file in files]
    for same in (
        [str(file) for file in files],
        [file.as_uri() for file in files],
        [file.read_bytes() for file in files],
        opened,
        [np.asarray(picture) for picture in opened],
    ):
        assert model.predict(same) == expected
        assert model(same[1]) == expected[1]
    assert model.predict([]) == []


def test_pixels_of_every_mode_are_predicted(model: tlray.Model, files: list[Path]) -> None:
    grey = Image.open(files[0]).convert("L")
    expected = model(grey)
    assert model(np.asarray(grey)) == expected
    assert model(grey.convert("RGBA")) == expected and model(grey.convert("I")) == expected
    assert model(grey.convert("F")) == expected
    assert model(grey.convert("CMYK"))["labels"] and model(grey.convert("1"))["labels"]


def test_a_pil_image_is_turned_as_its_file_is(model: tlray.Model, files: list[Path]) -> None:
    turned = Image.open(files[0])
    exif = turned.getexif()
    exif[0x0112] = 6
    out = io.BytesIO()
    turned.save(out, "PNG", exif=exif)
    whole = model(out.getvalue())
    assert model(Image.open(io.BytesIO(out.getvalue()))) == whole != model(files[0])


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (np.zeros((8, 8, 3)), r"array of float64, shape \(8, 8, 3\): accepted: uint8, \(H, W, 3\)"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\): accepted: uint8, \(H, W, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\): accepted"),
        (7, "picture of type int: accepted: a path, a URI, bytes, a PIL image or an array"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_line(model: tlray.Model, picture: Any, said: str) -> None:
    for act in (model, lambda one: model.predict([one]), lambda one: model.embed([one])):
        with pytest.raises(DataError, match=said) as caught:
            act(picture)
        assert "\n" not in str(caught.value)


def test_a_bad_file_is_named(model: tlray.Model, files: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    for act in (model.predict, model.embed):
        with pytest.raises(PictureError, match=r"bad\.jpg: no picture"):
            act([files[0], bad])
        with pytest.raises(DataError, match="pictures: one PosixPath; accepted: a list"):
            act(files[0])
    first, error = model.predict([files[0], bad], None, "return")
    assert first == model(files[0]) and isinstance(error, PictureError)
    with pytest.raises(ConfigError, match="min_score"):
        model(files[0], min_score=0.5)


def test_embeddings(model: tlray.Model, files: list[Path]) -> None:
    vectors = model.embed([*files] * 30)  # more than one batch
    assert vectors.shape[0] == 90 and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[:3], vectors[-3:], atol=1e-5)
    assert model.embed(files, model.stages[0]).shape[1] != vectors.shape[1]
    with pytest.raises(ConfigError, match="nothing"):
        model.embed(files, "nothing")
    with pytest.raises(DataError, match="empty list"):
        model.embed([])


def test_evaluation_shows_its_progress(
    model: tlray.Model, data: tlray.Data, capfd: pytest.CaptureFixture[str]
) -> None:
    metrics = model.evaluate(data, split="test")
    rows = data.splits["test"]
    assert f"evaluate: {rows} in" in capfd.readouterr().err
    assert len(metrics.rows) == rows and metrics.split == "test"
    right = sum(row["truth"] == row["prediction"] for row in metrics.rows)
    assert metrics["accuracy"] == pytest.approx(right / rows)
    with pytest.raises(DataError, match="nothing"):
        model.evaluate(data, split="nothing")


def test_promoted_models_are_loaded_by_name_and_served(
    run: tlray.Run, model: tlray.Model, files: list[Path], tmp_path: Path
) -> None:
    models = str(tmp_path / "models")
    assert tlray.promote(run, "mine", models) == "mine@1"
    assert tlray.promote(model, "mine", models) == "mine@2"
    for source in ("mine", "mine@1", Path(run.uri), model.uri):
        assert tlray.load(source, models)(files[0]) == model(files[0])
    with pytest.raises(RegistryError, match="accepted: mine@live, mine@1, mine@2"):
        tlray.load("mine@3", models)
    with pytest.raises(BundleError, match="no bundle"):
        tlray.load(tmp_path / "nowhere", models)
    with tlray.serve("mine", models=models, cpus_per_replica=0.5) as server:
        reply = httpx.post(
            f"{server.url}/v1/models/mine/predict", content=files[0].read_bytes(), timeout=30, trust_env=False
        ).raise_for_status()
    answer = reply.json()["predictions"][0]["labels"]
    expected = model(files[0])["labels"]
    assert [one["label"] for one in answer] == [one["label"] for one in expected[: len(answer)]]
    assert [one["probability"] for one in answer] == pytest.approx(
        [one["probability"] for one in expected[: len(answer)]], abs=1e-5
    )
    with pytest.raises(ConfigError, match=r"serve\.replicas.*tlray\.serve"):
        tlray.serve("mine", models=models, replicas=2)


def test_a_prediction_is_drawn_as_its_task_draws_it(tmp_path: Path) -> None:
    uri = scenes_dataset(tmp_path / "data", load_task({"name": "detection"}).columns, train=16, validation=8)
    made = config.Config().override({"data.uri": uri, "input.size": 64, "task.name": "detection"})
    untrained = training.check(training.resolve_config(made))
    untrained.module.eval()
    picture = Dataset.open(uri).rows("train", [0])["image"].to_pylist()[0]["bytes"]
    bundle.save(str(tmp_path / "bundle"), untrained, {}, made.model_dump(mode="json"), [picture])
    model = tlray.load(tmp_path / "bundle")
    prediction = model(picture, min_score=0)
    assert prediction["objects"]
    drawn = prediction.draw()
    plain = Image.open(io.BytesIO(picture)).convert("RGB")
    assert drawn.size == plain.size and (np.asarray(drawn) != np.asarray(plain)).any()
    assert 'src="data:image/jpeg;base64,' in prediction._repr_html_()
    assert repr(prediction) == prediction.summary() and "\n" not in repr(prediction)
    data = tlray.Data(uri)  # not of ingest: the task is that of its columns
    assert data.task == "detection" and data.findings == "" and data._repr_html_().count("<img") == 12


def test_settings_come_from_arguments_a_recipe_and_the_data(data: tlray.Data, tmp_path: Path) -> None:
    from tlray.api.notebook import _settings

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: yours\ntask: {name: multilabel}\nmodel: {weights: none}\n")
    made = _settings(data, "resnet18", 3, None, None, {"optim.lr": 0.1})
    assert (made.data.uri, made.model.weights, made.train.epochs) == (data.uri, "timm", 3)
    assert made.task["name"] == "classification" and made.optim.lr == 0.1
    made = _settings(data.uri, "resnet18", None, "mine", recipe, None)
    assert (made.name, made.task["name"], made.model.weights) == ("mine", "multilabel", "none")
    with pytest.raises(ConfigError, match=r"optim\.lr = -1 \(overrides\): accepted"):
        tlray.tune(data, overrides={"optim.lr": -1})
    with pytest.raises(ConfigError, match=r"train\.epochs = 0 \(argument\): accepted"):
        tlray.train(data, epochs=0)
    with pytest.raises(DataError, match="nowhere"):
        tlray.train(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"data\.uri = ''"):
        tlray.tune()


def test_backbones_are_listed() -> None:
    names = tlray.list_backbones()
    assert names[0] == "resnet10t-nano" and len(names) == len(set(names)) > 500
    assert tlray.list_backbones("resnet10t*") == ["resnet10t-nano", "resnet10t"]
    assert set(names) < set(tlray.list_backbones(pretrained=False))
