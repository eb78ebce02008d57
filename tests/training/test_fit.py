"""The loop: what is frozen stays, what was interrupted goes on exactly, every row counts once."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.toys import LABELS, dataset, scenes_dataset
from tlray import config, report
from tlray.bundle.predictor import Predictor
from tlray.data.dataset import Dataset
from tlray.errors import ConfigError, DataError, RunError, StorageError
from tlray.tasks import classification
from tlray.training import checkpoint, fit, loop, resume
from tlray.training.candidate import schedule
from tlray.training.defaults import resolve_auto
from tlray.training.worker import LocalWorker


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("train") / "d", train=50, validation=11)


def make(uri, folder, **changes):
    base = {
        "data": {"uri": uri}, "runs": str(folder), "input": {"size": 32},
        "train": {"epochs": 2, "batch_size": 16}, "optim": {"lr": 0.003},
    }  # fmt: skip
    return resolve_auto(config.parse(base, "test").override(changes))


def run(settings, stop_after=None):
    records = []
    training = loop.epochs(settings, LocalWorker(1), lambda event: None)
    for record in training:
        records.append(record)
        if stop_after and len(records) == stop_after:
            training.close()
    return records


def weights(folder):
    return load_file(folder / "weights.safetensors")


@pytest.mark.parametrize("depth", [2, "all"])
def test_frozen_stages_stay_bit_for_bit(ray_local, uri, tmp_path, depth):
    settings = make(uri, tmp_path, **{"model.freeze": depth, "train.epochs": 1})
    model = fit.check(settings)
    frozen = {n for n, p in model.module.backbone.named_parameters() if not p.requires_grad}
    before = {k: v.clone() for k, v in model.module.backbone.state_dict().items()}
    run(settings)
    after = weights(tmp_path / "run" / "best")
    moved = {k for k, v in before.items() if not torch.equal(v, after[f"backbone.{k}"])}
    assert frozen and not frozen & moved
    layers = {name.split(".")[1] for name in frozen}
    assert not {k for k in moved if k.split(".")[1] in layers}, "running statistics of a frozen stage moved"
    assert bool(moved) == (depth != "all")


def test_learning_happens_and_the_story_is_told(ray_local, uri, tmp_path):
    settings = make(uri, tmp_path, **{"train.epochs": 3})
    records = run(settings)
    assert [r["epoch"] for r in records] == [1, 2, 3] and records[-1]["step"] == 12
    assert records[-1]["train_loss"] < records[0]["train_loss"] < math.log(3) + 0.1
    assert records[-1]["best"] == max(r["goal"] for r in records) > 0.8
    told = json.loads((tmp_path / "run/metrics.json").read_text())
    assert told["epochs"] == records and {s["name"] for s in told["stages"]} >= {"train", "validate"}
    assert len(checkpoint.listing(settings.run_uri)) == 2
    assert run(settings) == []  # the same name again: there is nothing left to do


def test_an_interrupted_run_ends_with_the_same_weights(ray_local, uri, tmp_path):
    whole = make(uri, tmp_path / "a", **{"train.checkpoint_every_steps": 3})
    run(whole)
    broken = make(uri, tmp_path / "b", **{"train.checkpoint_every_steps": 3, "train.keep_checkpoints": 9})
    run(broken, stop_after=1)
    folder = tmp_path / "b/run/checkpoints"
    for late in [f for f in folder.iterdir() if f.name > "step-00000003"]:
        late.rename(tmp_path / late.name)  # as if killed at step 5: the newest is in the middle of an epoch
    again = run(broken)
    assert [r["epoch"] for r in again] == [1, 2]
    ours, theirs = weights(folder / "step-00000008"), weights(tmp_path / "a/run/checkpoints/step-00000008")
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_a_damaged_checkpoint_is_passed_over(ray_local, uri, tmp_path, caplog):
    settings = make(uri, tmp_path)
    run(settings, stop_after=2)
    newest = tmp_path / "run/checkpoints/step-00000008/optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    assert [r["epoch"] for r in run(settings)] == [2]
    assert "damaged, the checkpoint before it is tried" in caplog.text


def test_a_run_without_progress_stops_early(ray_local, uri, tmp_path):
    settings = make(uri, tmp_path, **{"train.epochs": 9, "train.early_stop_epochs": 2, "optim.lr": 1e-9})
    records = run(settings)
    assert len(records) < 9 and len(records) >= 3


def test_mistakes_are_found_before_training(uri, tmp_path):
    for changes, error, words in [
        ({"model.backbone": "resnet10t-nanno"}, ConfigError, "resnet10t-nano"),
        ({"model.freeze": 99}, ConfigError, "model.freeze = 99"),
        ({"data.validation_split": "holdout"}, DataError, "no split 'holdout'"),
        ({"scale.num_workers": 3}, ConfigError, "num_workers = 3"),
        ({"task": {"name": "classify"}}, ConfigError, "did you mean 'classification'"),
        ({"data.uri": str(tmp_path / "nowhere")}, StorageError, "nowhere: not found"),
    ]:
        with pytest.raises(error, match=words) as caught:
            fit.check(make(uri, tmp_path, **changes))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("split", "labels", "words"),
    [
        ("train", [0, 1, -1, 0] * 6, "row 2 column 'label': -1; accepted: 0 to 2, as there are 3 classes"),
        ("validation", [0, 1, 2, None] * 3, "row 3 column 'label': null; accepted"),
        ("validation", [-1] * 12, "split 'validation' has no labels"),
        ("train", [0.0, 1.0] * 12, "column 'label': holds double.*accepted"),
    ],
)
def test_rows_without_labels_are_found_before_training(tmp_path, split, labels, words):
    foreign = dataset(tmp_path / "d", train=24, validation=12, test=4)
    path = f"{foreign}/data/{split}-00000-of-00001.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("label")
    if split == "train" and isinstance(labels[0], float):  # one type in all files
        for other in ("validation", "test"):
            place = f"{foreign}/data/{other}-00000-of-00001.parquet"
            rest = pq.read_table(place)
            pq.write_table(rest.set_column(at, "label", rest["label"].cast("float64")), place)
    pq.write_table(table.set_column(at, "label", pa.array(labels)), path)
    with pytest.raises(DataError, match=words):
        fit.check(make(foreign, tmp_path))


def test_labels_that_are_hidden_in_another_split_are_in_nobodys_way(tmp_path):
    foreign = dataset(tmp_path / "d", train=24, validation=12, test=4)
    path = f"{foreign}/data/test-00000-of-00001.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("label")
    pq.write_table(table.set_column(at, "label", pa.array([-1] * 4)), path)
    assert fit.check(make(foreign, tmp_path)).labels == LABELS


def test_the_schedule_warms_up_and_comes_down():
    factors = [schedule(s, 100, 10, 0.01) for s in range(100)]
    assert factors[0] == 0.1 and factors[9] == 1.0 and factors[-1] == pytest.approx(0.01)
    assert factors[9:] == sorted(factors[9:], reverse=True)


def test_a_validation_split_that_cannot_verify_is_refused_before_training(tmp_path):
    single = scenes_dataset(tmp_path / "d", {"label": "identity"}, train=6, validation=2)
    settings = make(single, tmp_path, task={"name": "face_recognition"})
    with pytest.raises(DataError, match=r"validation.*no pair.*verification_accuracy.*has no value"):
        fit.check(settings)
    empty = dataset(tmp_path / "e", train=20, validation=0)
    with pytest.raises(DataError, match=r"data\.validation_split = 'validation'.*no rows"):
        fit.check(make(empty, tmp_path))
    with pytest.raises(DataError, match=r"data\.train_split = 'train'.*no rows"):
        fit.check(make(dataset(tmp_path / "f", train=0, validation=20), tmp_path))


@pytest.mark.parametrize("early", [None, 1])
def test_a_goal_that_never_has_a_value_leaves_the_last_weights(ray_local, uri, tmp_path, monkeypatch, early):
    compute = classification.Metrics.compute
    monkeypatch.setattr(
        classification.Metrics, "compute", lambda self: {**compute(self), "accuracy": float("nan")}
    )
    settings = make(uri, tmp_path, **{"train.early_stop_epochs": early})
    records = run(settings)
    assert [math.isnan(r["goal"]) for r in records] == [True] * (early or 2)
    found = fit.result(settings)
    assert found["epochs"] == (early or 2) and found["note"].startswith("no epoch had a value of accuracy")
    newest = checkpoint.listing(settings.run_uri)[-1]
    last = weights(tmp_path / "run" / "checkpoints" / newest)
    kept = weights(tmp_path / "run" / "best")
    assert all(torch.equal(kept[k], last[k]) for k in kept)
    assert math.isnan(Predictor(str(tmp_path / "run" / "best")).manifest.metrics["accuracy"])
    report.write(settings.run_uri)


def test_the_same_name_goes_on_and_what_the_story_lost_is_written_again(ray_local, uri, tmp_path):
    settings = make(uri, tmp_path)
    run(settings)
    fingerprint = Dataset.open(uri).fingerprint
    assert resume.check_training(settings, fingerprint) == []
    with pytest.raises(ConfigError, match=r"optim\.lr = 0\.5: this run began with 0\.003"):
        resume.check_training(settings.override({"optim.lr": 0.5}), fingerprint)
    (tmp_path / "run/metrics.json").unlink()
    more = settings.override({"train.epochs": 3})
    assert run(settings) == [] and fit.result(settings)["epochs"] == 2
    assert [r["epoch"] for r in run(more)] == [3]
    assert fit.result(more)["steps"] == 12


def test_what_workers_died_of_is_kept_whole(tmp_path):
    def died():
        raise ValueError("odd\nno such layer")

    wrapped = RuntimeError("a worker died")
    try:
        died()
    except ValueError as error:
        wrapped.__cause__ = error
    settings = make("", tmp_path, name="a")
    told = fit._explain(settings, wrapped)
    place = tmp_path / "a" / "error.txt"
    assert isinstance(told, RunError) and "\n" not in str(told)
    assert str(told).endswith(f": no such layer; the whole traceback is in {place}")
    assert "in died" in place.read_text() and "a worker died" in place.read_text()
    wrapped.__cause__ = DataError("train row 3: no picture")
    assert fit._explain(settings, wrapped) is wrapped.__cause__


def test_a_checked_configuration_is_not_checked_again(tmp_path, monkeypatch) -> None:
    """Checking builds a model, which takes seconds, and `api.train` has done so before Ray starts."""

    class TrainingBegins(Exception):
        pass

    def begins(scale) -> None:
        raise TrainingBegins

    calls = []
    plain = fit.check
    monkeypatch.setattr(fit, "check", lambda config: calls.append(config) or plain(config))
    monkeypatch.setattr(fit.runtime, "resources", begins)
    settings = make(dataset(tmp_path / "data", train=20, validation=9), tmp_path)
    for checked, count in ((True, 0), (False, 1)):
        with pytest.raises(TrainingBegins):
            fit.fit(settings, checked=checked)
        assert len(calls) == count
