"""What validation saw is what the endpoint sees, and what `evaluate` says is what the endpoint delivers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from tests.contract.test_tasks import PRE, Toy
from tests.toys import scenes_dataset
from tlray import tasks
from tlray.bundle import bundle
from tlray.config import Serving
from tlray.data import loader
from tlray.data.dataset import Dataset
from tlray.inference.evaluate import evaluate
from tlray.serving import deploy
from tlray.serving.model import Served, load_predictor

ROWS = 8


def saved(folder: Path, data: Dataset, name: str) -> str:
    """A bundle of a model that has learnt a little."""
    toy = Toy(name, ROWS, **tasks.load({"name": name}).defaults.task)  # as new trainings have it
    toy.learn(40)
    spec = toy.module.backbone.spec()
    model = bundle.Model(toy.module.eval(), toy.task, spec, 0, PRE, toy.labels, data.fingerprint)
    bundle.save(str(folder), model, {}, {}, toy.pictures[:2])
    return str(folder)


def telling(served: Served, settings: Serving) -> Any:
    """The predictor that is served, made to tell the tensor that it was given."""
    predictor: Any = load_predictor(served, settings)
    plain = predictor.predict_rendered

    def predict_rendered(x_BCHW: torch.Tensor, geometries: Any) -> Any:
        found = plain(x_BCHW, geometries)
        return [{**p, "seen": digest(x)} for p, x in zip(found, x_BCHW, strict=True)]

    predictor.predict_rendered = predict_rendered
    return predictor


def digest(x_CHW: torch.Tensor) -> str:
    return hashlib.sha256(np.ascontiguousarray(x_CHW.numpy()).tobytes()).hexdigest()


@pytest.mark.slow
def test_the_endpoint_sees_and_says_what_evaluation_does(ray_local: Any, tmp_path: Path) -> None:
    """Of every task, to the last digit."""
    models = {name: tasks.load({"name": name}) for name in tasks.names()}
    data = {
        name: Dataset.open(scenes_dataset(tmp_path / name, task.columns, test=ROWS))
        for name, task in models.items()
    }
    served = [Served(name, None, saved(tmp_path / f"{name}-bundle", data[name], name)) for name in models]
    with deploy.start(served, Serving(port=0, cpus_per_replica=0.5), load=telling) as server:
        for one in served:
            task, labels = models[one.name], tasks.labels_of(models[one.name], data[one.name])
            told = evaluate(one.uri, data[one.name].uri, "test")["metrics"]
            assert told[task.goal.name] > 0, f"{one.name}: the comparison would mean little"

            source = loader.Source(data[one.name].uri, "test", task, tuple(labels), PRE)
            validated = loader.make_batch(source, data[one.name].fingerprint, 0, np.arange(ROWS)).x_BCHW
            metrics = task.metrics(labels)
            whole = {"min_score": 0.001} if task.detects else {}  # what people are given is cut
            for number, row in enumerate(data[one.name].rows("test", range(ROWS)).to_pylist()):
                reply = httpx.post(
                    f"{server.url}/v1/models/{one.name}/predict", content=row["image"]["bytes"],
                    headers={"Content-Type": "image/jpeg"}, params=whole, timeout=60, trust_env=False,
                )  # fmt: skip
                assert reply.status_code == 200, reply.text
                (prediction,) = reply.json()["predictions"]
                assert prediction["seen"] == digest(validated[number])
                metrics.update([prediction], [row])
            assert json.dumps(metrics.compute()) == json.dumps(told), one.name
