"""Which trials train side by side, what they would cost, and what a later search finds again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from tests.search.test_tuner import draw, settings
from tlray import search
from tlray.config import Config, parse
from tlray.errors import RunError
from tlray.search import cost as plan
from tlray.search.feature_cache import FeatureCache
from tlray.search.group import Group, spread, together
from tlray.search.group import plan as search_plan
from tlray.search.resources import trial_resources
from tlray.search.searcher import trial_settings
from tlray.training.run import Run
from tlray.training.worker import LocalWorker


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return draw(tmp_path_factory.mktemp("data"))


def given(config: Config, *params: dict[str, Any]) -> list[dict[str, Any]]:
    return [trial_settings(config, one) for one in params]


def ids(groups: Any) -> list[list[str]]:
    return [[one["id"] for one in group] for group in groups]


def test_trials_that_see_the_same_batches_train_side_by_side(data: str, tmp_path: Path) -> None:
    config = settings(data, tmp_path)
    lr = [{"optim.lr": v, "model.freeze": d} for v in (0.1, 0.2) for d in (0, "all")]
    other = [{"input.size": 48, "optim.lr": 0.1}, {"augment.mixup": 0.2}, {"train.batch_size": 8}]
    trials = given(config, *lr, *other)
    names = [one["id"] for one in trials]
    assert ids(together(trials, 16)) == [names[:4], *([name] for name in names[4:])]
    assert ids(together(trials[:4], 3)) == [names[:3], names[3:4]]


def test_depths_part_where_there_are_more_workers(data: str, tmp_path: Path) -> None:
    config = settings(data, tmp_path)
    trials = given(config, *({"optim.lr": v, "model.freeze": d} for d in (0, 2, "all") for v in (0.1, 0.2)))
    for workers, depths in ((1, [3]), (2, [1, 2]), (3, [1, 1, 1]), (8, [1, 1, 1])):
        groups = spread([list(trials)], workers)
        found = [{json.loads(one["tree"])["model"]["freeze"] for one in group} for group in groups]
        assert sorted(map(len, found)) == depths
        assert sorted(one["id"] for group in groups for one in group) == sorted(t["id"] for t in trials)


def test_a_depth_that_cannot_train_leaves_the_others_alone(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No memory for the steps of one depth shows while the plan is made."""
    config = settings(data, tmp_path)
    trials = given(config, *({"optim.lr": v, "model.freeze": d} for d in (0, "all") for v in (0.1, 0.2)))
    plain = plan._step_seconds

    def breaks(run: Run, *args: Any) -> float:
        if run.model.freeze_depth == 0 or everywhere:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(run, *args)

    monkeypatch.setattr(plan, "_step_seconds", breaks)
    everywhere = False
    group = Group(1, lambda event: None)
    begun = group.begin([one["tree"] for one in trials])
    assert sorted(begun["failed"]) == sorted(one["id"] for one in trials[:2])
    assert all("does not fit into GPU memory" in reason for reason in begun["failed"].values())
    (row,) = begun["plan"]["depths"]
    assert (row["depth"], row["trials"]) == (5, 2)
    group.end([one["id"] for one in trials], keep=[])
    group.epoch()
    everywhere = True
    with pytest.raises(RunError, match="does not fit into GPU memory; accepted: a smaller batch"):
        search_plan(trials, LocalWorker(1))


def test_as_many_trials_at_once_as_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's parts lie on one GPU, and more than fit would wait for ever."""

    def at_once(nodes: list[tuple[int, int]], scale: dict[str, Any], wanted: Any = "auto") -> int:
        found = [{"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in nodes]
        monkeypatch.setattr(ray, "nodes", lambda: found)
        tree = {"name": "t", "data": {"uri": "/d"}, "scale": scale, "search": {"max_concurrent": wanted}}
        return trial_resources(parse(tree, "test")).concurrent

    assert at_once([(4, 0)], {}) == 1 == at_once([(4, 0)], {}, 2)
    assert at_once([(32, 4)], {}) == 4 == at_once([(32, 4)], {}, 9)
    assert at_once([(32, 4)], {}, 2) == 2
    assert at_once([(32, 2)], {"gpus_per_worker": 0.4}) == 4
    assert at_once([(32, 3), (32, 3)], {"gpus_per_worker": 2}) == 2


def test_explain_trains_nothing_and_leaves_nothing(data: str, tmp_path: Path) -> None:
    config = settings(data, tmp_path / "runs").override(
        {
            "augment.views": 1, "search.cache": str(tmp_path / "cache"),
            "search.space": {
                "model.freeze": {"choice": [0, 2, "all"]}, "optim.lr": {"choice": [0.03, 0.01]},
            },
        }
    )  # fmt: skip
    (plan,) = search.explain(config)
    assert [d["depth"] for d in plan["depths"]] == [0, 2, 5] and plan["rows"] == 48 and plan["views"] == 1
    assert all(d["trials"] == 2 and d["epochs"] == 5 for d in plan["depths"])
    naive = sum(10 * 48 * (d["prefix_s"] + d["suffix_s"]) for d in plan["depths"])
    ceiling = 48 * max(d["prefix_s"] for d in plan["depths"]) + sum(
        10 * 48 * d["suffix_s"] for d in plan["depths"]
    )
    assert plan["naive_s"] == pytest.approx(naive) and plan["ceiling_s"] == pytest.approx(ceiling)
    assert plan["ceiling_s"] <= plan["planned_s"] <= plan["naive_s"]
    assert not (tmp_path / "runs").exists() and not (tmp_path / "cache").exists()


def test_a_later_search_finds_the_features(ray_local: Any, data: str, tmp_path: Path) -> None:
    config = settings(data, tmp_path, scheduler="none").override(
        {
            "augment.views": 2, "train.epochs": 4, "search.cache": str(tmp_path / "cache"),
            "search.space": {"optim.lr": {"choice": [0.03, 0.01]}}, "search.cache_dtype": "fp32",
        }
    )  # fmt: skip
    first = search.tune(config)
    kept = {entry.digest: entry.created for entry in FeatureCache(str(tmp_path / "cache")).ls()}
    assert len(kept) == 2  # views
    plan = json.loads(Path(config.run_uri, "trials.json").read_text())["plans"][0]
    (depth,) = plan["depths"]
    assert depth["decision"] == "store" and depth["measured_pictures"] == 2 * 4 * 48
    assert depth["measured_s"] > 0

    second = search.tune(config.override({"name": "later"}))
    assert {e.digest: e.created for e in FeatureCache(str(tmp_path / "cache")).ls()} == kept
    for one, other in zip(first.trials, second.trials, strict=True):
        assert [p["train_loss"] for p in one["curve"]] == [p["train_loss"] for p in other["curve"]]
