"""Every task learns and is judged by two workers as by one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
from ray.train.torch import TorchTrainer
from safetensors.torch import load_file

from tests.toys import scenes_dataset
from tlray import config, storage, tasks
from tlray.config import Config
from tlray.training import fit, loop, rundir
from tlray.training.defaults import resolve_auto
from tlray.training.worker import LocalWorker, Worker

# Their heads have a batch norm, which sees each worker's rows alone: the metric is compared, not the weights.
BATCH_NORM = {"face_recognition"}


def settings(name: str, folder: Path, run: str) -> Config:
    """Two epochs of three steps; the backbone fixed, for its batch norm sees each worker's rows alone."""
    tree = config.parse(
        {
            "task": {"name": name}, "name": run, "runs": str(folder / name), "input": {"size": 48},
            "data": {"uri": str(folder / name / "data")}, "model": {"freeze": "all"},
            "train": {"epochs": 2, "batch_size": 8}, "optim": {"lr": 1e-3},
        },
        "test",
    )  # fmt: skip
    return resolve_auto(tree)


def learn(chosen: Config, worker: Worker) -> None:
    for _ in loop.epochs(chosen, worker, lambda event: None):
        pass


def both(trees: dict[str, Any]) -> None:
    """What each of the two workers does."""
    for tree in trees.values():
        learn(config.parse(tree, "test"), fit.Member(1))


@pytest.mark.slow
def test_two_workers_learn_what_one_learns(ray_local: Any, tmp_path: Path) -> None:
    names = tasks.names()
    for name in names:
        task = tasks.load({"name": name})
        scenes_dataset(tmp_path / name / "data", task.columns, train=20, validation=9)
        learn(settings(name, tmp_path, "one"), LocalWorker(1))
    trees = {name: settings(name, tmp_path, "two").model_dump(mode="json") for name in names}
    # With a batch norm that learns the workers' weights differ; they still end together.
    own = settings("classification", tmp_path, "own").override({"model.freeze": 0, "train.epochs": 4})
    trees["own"] = own.model_dump(mode="json")
    TorchTrainer(
        both,
        train_loop_config=trees,
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(storage_path=str(tmp_path / "ray")),
    ).fit()
    assert len(storage.read_json(str(tmp_path / "classification" / "own" / rundir.METRICS))["epochs"]) == 4
    for name in names:
        one, two = (tmp_path / name / run for run in ("one", "two"))
        stories = [storage.read_json(str(run / rundir.METRICS))["epochs"] for run in (one, two)]
        assert [len(story) for story in stories] == [2, 2]
        assert stories[0][-1]["step"] == stories[1][-1]["step"] == 6, name
        assert stories[1][-1]["best"] == pytest.approx(stories[0][-1]["best"], abs=1e-4), name
        weights = [load_file(run / "best" / "weights.safetensors") for run in (one, two)]
        for key, value in weights[0].items() if name not in BATCH_NORM else ():
            assert torch.allclose(value.float(), weights[1][key].float(), atol=2e-3), (name, key)
