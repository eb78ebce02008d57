from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tlray import storage
from tlray.config import Config
from tlray.errors import ConfigError
from tlray.training import rundir, tracking


def settings(**changes: Any) -> Config:
    return Config().override({f"track.{key}": value for key, value in changes.items()})


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(e.step, round(e.value, 6)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_numbers_become_tensorboard_scalars(tmp_path: Path) -> None:
    tracker = tracking.Tracker(str(tmp_path), settings())
    tracker.log({"train_loss": 0.5, "val_accuracy": 0.25, "best": None, "nan": float("nan"), "x": True}, 10)
    tracker.log({"train_loss": 0.25, "val_accuracy": 0.5}, 20)
    tracker.close()
    tracker.close()
    assert scalars(tmp_path / rundir.TENSORBOARD) == {
        "train_loss": [(10, 0.5), (20, 0.25)],
        "validation/accuracy": [(10, 0.25), (20, 0.5)],
    }


def test_steps_done_again_are_told_once(tmp_path: Path) -> None:
    first = tracking.Tracker(str(tmp_path), settings())
    first.log({"train_loss": 3.0}, 10)
    first.log({"train_loss": 2.0}, 20)
    first.close()
    again = tracking.Tracker(str(tmp_path), settings())  # the run went on from step 10
    again.log({"train_loss": 1.0}, 20)
    again.close()
    assert scalars(tmp_path / rundir.TENSORBOARD)["train_loss"] == [(10, 3.0), (20, 1.0)]


def test_nothing_is_written_when_switched_off(tmp_path: Path) -> None:
    tracker = tracking.Tracker(str(tmp_path), settings(tensorboard=False))
    tracker.log({"train_loss": 0.5}, 1)
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_a_run_on_s3_has_its_events_there(s3_uri: str, tmp_path: Path) -> None:
    run = storage.join(s3_uri, "runs", "a")
    tracker = tracking.Tracker(run, settings())
    tracker.log({"train_loss": 0.5}, 1)
    assert (
        len(storage.listdir(storage.join(run, rundir.TENSORBOARD))) == 1
    )  # before the end: a killed run has them
    tracker.close()
    storage.download(storage.join(run, rundir.TENSORBOARD), tmp_path)
    assert scalars(tmp_path) == {"train_loss": [(1, 0.5)]}


def test_mlflow_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"track.mlflow = 'file:x': the package mlflow is not installed"):
        tracking.check(settings(mlflow="file:x"))
    tracking.check(settings())


def test_mlflow_gets_settings_and_metrics_and_one_run_for_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    class Client:
        def __init__(self, tracking_uri: str) -> None:
            calls.append(("client", tracking_uri))

        def get_experiment_by_name(self, name: str) -> None:
            return None

        def create_experiment(self, name: str) -> str:
            return "7"

        def create_run(self, experiment: str, run_name: str) -> Any:
            calls.append(("run", experiment, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))

        def update_run(self, run: str, status: str) -> None:
            calls.append(("again", run, status))

        def log_param(self, run: str, key: str, value: str) -> None:
            calls.append(("param", run, key, value))

        def log_metric(self, run: str, key: str, value: float, step: int) -> None:
            calls.append(("metric", run, key, value, step))

        def set_terminated(self, run: str) -> None:
            calls.append(("end", run))

    fake = types.ModuleType("mlflow")
    fake.MlflowClient = Client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    made = settings(mlflow="http://tracking", tensorboard=False)
    tracker = tracking.Tracker(str(tmp_path), made)
    tracker.log({"val_accuracy": 0.5}, 3)
    tracker.close()
    assert ("param", "abc", "optim.weight_decay", "0.05") in calls
    assert calls[-2:] == [("metric", "abc", "val_accuracy", 0.5, 3), ("end", "abc")]
    tracking.Tracker(str(tmp_path), made).close()
    assert ("again", "abc", "RUNNING") in calls
    assert len([c for c in calls if c[0] == "run"]) == 1
