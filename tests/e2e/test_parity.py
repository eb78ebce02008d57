"""What validation saw is what the endpoint sees, and what `evaluate` says is what the endpoint delivers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from tests.toys import LABELS, dataset
from tlray import bundle, stream, tasks
from tlray.backbone import Backbone
from tlray.config import Serving
from tlray.dataset import Dataset
from tlray.evaluate import evaluate
from tlray.image import Preprocess
from tlray.serve import deploy
from tlray.serve.model import Served, load_predictor


def saved(folder: Path, data: Dataset) -> str:
    """A bundle whose head has learnt a little from six pictures."""
    torch.manual_seed(1)
    task, backbone = tasks.load({"name": "classification"}), Backbone("resnet10t-nano", "builtin", size=48)
    module = task.build(backbone, LABELS)
    backbone.freeze("all")
    preprocess = Preprocess(size=(48, 48), mean=backbone.mean, std=backbone.std)
    source = stream.Source(data.uri, "train", task, tuple(LABELS), preprocess)
    batch = stream.make_batch(source, data.fingerprint, 0, np.arange(6))
    optimizer = torch.optim.AdamW(module.head.parameters(), lr=0.03)
    for _ in range(8):
        loss = module(batch.x_BCHW, batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model = bundle.Model(module.eval(), task, backbone.spec(), 0, preprocess, LABELS, data.fingerprint)
    golden = [p["bytes"] for p in data.rows("test", [0, 1])["image"].to_pylist()]
    bundle.save(str(folder), model, {}, {}, golden)
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
    uri = dataset(tmp_path / "d", train=6, test=40)
    data = Dataset.open(uri)
    model = saved(tmp_path / "b", data)
    told = evaluate(model, uri, "test")
    accuracy = told["metrics"]["accuracy"]
    assert accuracy > 0, "the comparison would mean little"

    task, labels = tasks.load({"name": "classification"}), data.labels()
    preprocess = bundle.read_manifest(model).preprocess
    source = stream.Source(uri, "test", task, tuple(labels), preprocess)
    validated = stream.make_batch(source, data.fingerprint, 0, np.arange(40)).x_BCHW

    rows = data.rows("test", range(40)).to_pylist()
    served, hits = [Served("toy", None, model)], 0
    with deploy.start(served, Serving(port=0), load=telling) as server:
        url = f"{server.url}/v1/models/toy/predict"
        for number, row in enumerate(rows):
            headers = {"Content-Type": "image/jpeg"}
            reply = httpx.post(
                url, content=row["image"]["bytes"], headers=headers, timeout=60, trust_env=False
            )
            assert reply.status_code == 200, reply.text
            (prediction,) = reply.json()["predictions"]
            assert prediction["seen"] == digest(validated[number])
            hits += prediction["label"] == labels[row["label"]]
    assert hits / len(rows) == accuracy
