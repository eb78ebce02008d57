"""The frozen part computed once changes nothing: trials side by side, or from tables, equal trials alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.contract.test_backbones import FAMILIES
from tests.toys import dataset, scenes_dataset
from tlray import config, tasks
from tlray.config import Config
from tlray.data import loader
from tlray.models.backbone import Backbone, Boundary, Features
from tlray.search.feature_cache import FeatureCache
from tlray.search.features import PrefixBatches, from_arrays, to_arrays
from tlray.training import loop
from tlray.training.defaults import resolve_auto
from tlray.training.loop import Loop
from tlray.training.worker import LocalWorker

TRIALS = ((0, 1e-3), (2, 1e-3), (2, 4e-3), (0.6, 1e-3), ("all", 1e-3), ("all", 4e-3))  # depth, rate


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are made in this process: tests/data/test_loader.py shows that Ray Data makes the same ones."""

    def pipeline(source: loader.Source, plan: Any) -> Iterator[loader.Batch]:
        fingerprint = loader.Dataset.open(source.uri).fingerprint
        for epoch, rows in plan:
            yield loader.make_batch(source, fingerprint, epoch, rows)

    monkeypatch.setattr(loader, "pipeline", pipeline)


def settings(uri: str, folder: Path, task: str, name: str, freeze: Any, lr: float, **more: Any) -> Config:
    tree = {
        "name": name, "runs": str(folder), "data": {"uri": uri}, "input": {"size": 64},
        "task": {"name": task}, "model": {"freeze": freeze, "drop_rate": 0.1}, "optim": {"lr": lr},
        "train": {"epochs": 2, "batch_size": 8}, "track": {"tensorboard": False},
        "search": {"cache": str(folder / "cache"), "cache_dtype": "fp32"},
    }  # fmt: skip
    return resolve_auto(config.parse(tree, "test").override(more))


def grid(uri: str, folder: Path, task: str, **more: Any) -> list[Config]:
    return [
        settings(uri, folder, task, f"t{number}", freeze, lr, **more)
        for number, (freeze, lr) in enumerate(TRIALS)
    ]


def train(
    configs: list[Config], keep: str | None = None, told: list[dict[str, Any]] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Stories of these trials, side by side; ``keep``: where features behind pixels are kept."""
    told = [] if told is None else told

    def feed(made: Loop) -> PrefixBatches:
        boundaries = {run.boundary for run in made.runs} - {None}
        return PrefixBatches(made, dict.fromkeys(boundaries, keep) if keep else {})

    made = Loop(configs, LocalWorker(1), told.append, feed, sparing=True)
    stories: dict[str, list[dict[str, Any]]] = {one.name: [] for one in configs}
    for records in made.epochs():
        for name, record in records.items():
            stories[name].append(record)
    assert not made.refused and not any(run.error for run in made.runs)
    for run in made.runs:
        run.publish_best()
    return stories


def same(one: Config, other: Config, stories: Any, tolerance: float = 0.0) -> None:
    a, b = stories
    assert [r["step"] for r in a] == [r["step"] for r in b] == [3, 6]
    for x, y in zip(a, b, strict=True):
        for key in ("train_loss", "goal", "lr"):
            assert x[key] == pytest.approx(y[key], rel=tolerance, abs=tolerance), (one.name, key)
    weights = [load_file(Path(c.run_uri, "best", "weights.safetensors")) for c in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        if tolerance:
            assert torch.allclose(value.float(), weights[1][name].float(), atol=tolerance), (one.name, name)
        else:
            assert torch.equal(value, weights[1][name]), (one.name, name)


@pytest.mark.parametrize("task", tasks.names())
def test_side_by_side_equals_alone(task: str, tmp_path: Path) -> None:
    """Bit for bit in fp32 on one CPU worker: losses, metrics, weights, whatever trains beside."""
    uri = scenes_dataset(tmp_path / "data", tasks.load({"name": task}).columns, train=20, validation=9)
    alone = grid(uri, tmp_path / "alone", task)
    stories = {c.name: list(loop.epochs(c, LocalWorker(1), lambda event: None)) for c in alone}
    beside = grid(uri, tmp_path / "beside", task)
    found = train(beside)
    for one, other in zip(alone, beside, strict=True):
        same(one, other, (stories[one.name], found[other.name]))


@pytest.mark.parametrize(
    ("task", "keep"), [*((name, "store") for name in tasks.names()), ("detection", "memory")]
)
def test_from_tables_equals_computed(task: str, keep: str, tmp_path: Path) -> None:
    """Two views of each picture, one an epoch, mixed in every way that the task's labels can follow; the
    trial at the pixels learns beside the others."""
    known = tasks.load({"name": task})
    uri = scenes_dataset(tmp_path / "data", known.columns, train=20, validation=9)
    more = {"augment.views": 2, **{f"augment.{key}": 0.5 for key in known.supported_augmentations}}
    computed, kept = (grid(uri, tmp_path / n, task, **more) for n in ("computed", "kept"))
    stories, found = train(computed), train(kept, keep)
    for one, other in zip(computed, kept, strict=True):
        same(one, other, (stories[one.name], found[other.name]))


def test_without_trials_at_the_pixels_too(tmp_path: Path) -> None:
    uri = dataset(tmp_path / "data", train=20, validation=9)
    more = {"augment.views": 1}
    computed, kept = (grid(uri, tmp_path / n, "classification", **more)[1:] for n in ("computed", "kept"))
    stories, found = train(computed), train(kept, "store")
    for one, other in zip(computed, kept, strict=True):
        same(one, other, (stories[one.name], found[other.name]))


@pytest.mark.parametrize("fault", ["cannot be written", "removed at once"])
def test_a_store_that_keeps_nothing_changes_nothing(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features are computed with each batch then, and the user is told."""
    uri = dataset(tmp_path / "data", train=20, validation=9)
    more = {"augment.views": 1}
    computed, kept = (grid(uri, tmp_path / n, "classification", **more)[1:4] for n in ("computed", "kept"))
    told: list[dict[str, Any]] = []
    stories = train(computed)
    if fault == "cannot be written":
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "cache").touch()
    else:
        monkeypatch.setattr(FeatureCache, "find", lambda self, key: None)
    found = train(kept, "store", told)
    for one, other in zip(computed, kept, strict=True):
        same(one, other, (stories[one.name], found[other.name]))
    notes = [event["text"] for event in told if event["kind"] == "note"]
    assert len(notes) == 1 and "features are not kept, but computed with each batch" in notes[0], notes


@pytest.mark.parametrize(("dtype", "error"), [("fp16", 2e-3), ("bf16", 2e-2)])
def test_from_rounded_tables_within_their_rounding(tmp_path: Path, dtype: str, error: float) -> None:
    """Half floats keep 11 bits of a feature, brain floats 8: losses and weights of trials follow.

    By SGD, as Adam's first steps are as large for a gradient of rounding errors as for any other.
    """
    uri = dataset(tmp_path / "data", train=20, validation=9)
    more = {"augment.views": 1, "search.cache_dtype": dtype, "optim.optimizer": "sgd"}
    computed, kept = (grid(uri, tmp_path / n, "classification", **more)[1:] for n in ("computed", "kept"))
    stories, found = train(computed), train(kept, "store")
    for one, other in zip(computed, kept, strict=True):
        same(one, other, (stories[one.name], found[other.name]), error)
    losses = [[r["train_loss"] for told in some.values() for r in told] for some in (stories, found)]
    assert losses[0] != losses[1], "nothing was rounded"


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_backbone_goes_on_from_features(family: str) -> None:
    """For every depth, and for heads that read pooled features or maps: the same bits."""
    name, size, num_stages = FAMILIES[family]
    torch.manual_seed(0)
    backbone = Backbone(name, size=size).eval()
    backbone.freeze("all")
    x = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    reads = tuple(range(num_stages))[-2:] if backbone.strides[0] else None
    boundaries = [Boundary(d, r) for d in range(1, num_stages + 1) for r in {None, reads}]
    found = backbone.features(x, boundaries)
    for boundary, features in found.items():
        kept: Features = from_arrays(to_arrays(features), (size, size))
        for given in (features, kept):
            if boundary.reads is None:
                assert torch.equal(backbone.pooled(given), backbone.pooled(x)), boundary
            else:
                maps = zip(backbone.pyramid(given, reads), backbone.pyramid(x, reads), strict=True)
                assert all(torch.equal(a, b) for a, b in maps), boundary


def test_pixels_are_not_read_behind_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = dataset(tmp_path / "data", train=20, validation=9)
    configs = [settings(uri, tmp_path, "classification", "t", "all", 1e-3, **{"augment.views": 1})]
    train(configs, "store")
    rendered: list[Any] = []
    plain = loader.render
    monkeypatch.setattr(loader, "render", lambda *args: rendered.append(args) or plain(*args))
    again = [c.override({"name": "again"}) for c in configs]
    train(again, "store")
    assert len(rendered) == 9  # the validation split, once
