"""Going deeper from what is known: order, heads, what is ruled out, and whether scores may say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.tune.search import Searcher
from safetensors.torch import load_file, save_file

from tests.search.test_searcher import opened, settings
from tests.search.test_searcher import wave as next_wave
from tests.search.test_tuner import draw
from tests.search.test_tuner import settings as small
from tlray import search, storage, tasks
from tlray.config import Config
from tlray.errors import BundleError, ConfigError, StorageError
from tlray.search import scores
from tlray.search.probe_first import ProbeFirst
from tlray.search.searcher import SCORE, TrialSearcher
from tlray.search.space import trial_id
from tlray.search.trial_log import RULED_OUT, TrialLog
from tlray.training.build import build_model
from tlray.training.rundir import HEAD

RESNET = "resnet10t-nano"  # five stages
LR = {"optim.lr": {"choice": [0.1, 0.01]}}
DEPTHS = {"model.freeze": {"choice": [0, 2, 0.6, "all"]}, **LR}


def deepening(runs: Path, space: dict[str, Any], **how: Any) -> Config:
    return settings(runs, space, sampler="grid", deepen=True, **how)


def finish(trial_log: TrialLog, wave: list[dict[str, Any]], value: Any) -> None:
    """End every trial of a wave with a result that ``value`` computes from its settings."""
    for one in wave:
        result = value(one["params"])
        trial_log.start(one["id"], one["params"])
        record = {"epoch": 1, "goal": result, "val_accuracy": result, "lr": 0.1, "seconds": 1.0}
        trial_log.epoch(one["id"], record)
        trial_log.end(one["id"], "finished")


def drive(sampler: TrialSearcher, trial_log: TrialLog, value: Any) -> list[list[dict[str, Any]]]:
    """All waves of a search, each finished before the next."""
    waves = []
    while step := next_wave(sampler):
        waves.append(step)
        finish(trial_log, step, value)
    return waves


def with_heads(trial_log: TrialLog, wave: list[dict[str, Any]]) -> None:
    """What trainings leave for others to start with."""
    for one in wave:
        storage.write_bytes(storage.join(trial_log.folder(one["id"]), HEAD), b"head")


def test_probes_come_first_and_the_best_head_is_the_start(tmp_path: Path) -> None:
    sampler, trial_log = opened(deepening(tmp_path, DEPTHS))
    order, waves = ["all", 0.6, 2, 0], []
    while step := next_wave(sampler):
        waves.append(step)
        finish(trial_log, step, lambda p: 0.5 + 0.1 * order.index(p["model.freeze"]) - p["optim.lr"])
        with_heads(trial_log, step)
    assert [{one["params"]["model.freeze"] for one in wave} for wave in waves] == [{d} for d in order]
    heads = [{json.loads(one["tree"])["model"]["head"] for one in wave} for wave in waves]
    best = next(one for one in waves[0] if one["params"]["optim.lr"] == 0.01)
    assert heads == [{None}, *[{f"{trial_log.folder(best['id'])}/{HEAD}"}] * 3]


def test_probes_without_a_head_are_no_start(tmp_path: Path) -> None:
    """Those of a search that was begun without `search.deepen`."""
    sampler, trial_log = opened(deepening(tmp_path, DEPTHS))
    waves = drive(sampler, trial_log, lambda p: 0.5)
    assert {json.loads(one["tree"])["model"]["head"] for wave in waves for one in wave} == {None}


def test_a_depth_that_result_to_less_ends_the_descent(tmp_path: Path) -> None:
    config = deepening(tmp_path, DEPTHS)
    sampler, trial_log = opened(config)
    value = {"all": 0.7, 0.6: 0.6, 2: 0.9, 0: 0.9}
    waves = drive(sampler, trial_log, lambda p: value[p["model.freeze"]])
    assert [wave[0]["params"]["model.freeze"] for wave in waves] == ["all", 0.6]
    left = [row for row in trial_log.rows.values() if row["status"] == RULED_OUT]
    assert {row["params"]["model.freeze"] for row in left} == {2, 0} and len(left) == 4
    reason = "after 1 epochs freeze depth 3 had reached accuracy 0.6, freeze depth 5 0.7"
    assert all(reason in row["reason"] for row in left)
    # Run again, the search has nothing to do; without deepening the depths are run after all.
    again, _ = opened(config)
    assert again.num_left == 0 and next_wave(again) == []
    wanted, _ = opened(config.override({"search.deepen": False}))
    assert {one["params"]["model.freeze"] for one in next_wave(wanted)} == {2, 0}


def test_depths_are_compared_after_as_many_epochs_and_as_many_tries(tmp_path: Path) -> None:
    config = deepening(tmp_path, DEPTHS)
    _, trial_log = opened(config)
    deeper = {"model.freeze": 0, "optim.lr": 0.1}

    def tell(freeze: Any, lr: float, *values: float) -> str | None:
        params = {"model.freeze": freeze, "optim.lr": lr}
        trial_log.start(trial_id(params), params)
        for epoch, value in enumerate(values, start=1):
            trial_log.epoch(trial_id(params), {"epoch": epoch, "goal": value, "seconds": 1.0})
        trial_log.end(trial_id(params), "stopped")
        return ProbeFirst(config, trial_log).ruled_out(deeper)

    assert tell("all", 0.1, 0.3, 0.5, 0.6) is None
    assert tell("all", 0.01, 0.2) is None
    assert tell(0.6, 0.1, 0.2) is None  # one try against two
    reason = "after 1 epochs freeze depth 3 had reached accuracy 0.2, freeze depth 5 0.3"
    assert reason in str(tell(0.6, 0.01, 0.1))
    assert tell(0.6, 0.01, 0.4, 0.55) is None  # less than 0.6, but ahead after two epochs


def test_each_lineage_descends_by_itself(tmp_path: Path) -> None:
    space = {"model.freeze": {"choice": [0, 2, "all"]}, "input.size": {"choice": [32, 64]}}
    sampler, trial_log = opened(deepening(tmp_path, space))

    def value(params: dict[str, Any]) -> float:
        return 0.1 if params["input.size"] == 32 and params["model.freeze"] == 2 else 0.5

    waves = drive(sampler, trial_log, value)
    assert [sorted(one["params"]["input.size"] for one in wave) for wave in waves] == [
        [32, 64],
        [32, 64],
        [64],
    ]


def test_in_tunes_hands_deeper_trials_wait(tmp_path: Path) -> None:
    sampler, trial_log = opened(deepening(tmp_path, {"model.freeze": {"choice": [0, "all"]}, **LR}))
    first, second = sampler.suggest("a"), sampler.suggest("b")
    assert {one["params"]["model.freeze"] for one in (first, second)} == {"all"}
    assert sampler.suggest("c") is None  # both probes run
    finish(trial_log, [first, second], lambda p: 0.5)
    sampler.on_trial_complete("a", {SCORE: 0.5})
    assert sampler.suggest("d") is None
    sampler.on_trial_complete("b", {SCORE: 0.5})
    deeper = [sampler.suggest(name) for name in "ef"]
    assert [one["params"]["model.freeze"] for one in deeper] == [0, 0]
    assert sampler.suggest("g") is None  # what they come to may ask for more
    finish(trial_log, deeper, lambda p: 0.6)
    for name in "ef":
        sampler.on_trial_complete(name, {SCORE: 0.6})
    assert sampler.suggest("h") == Searcher.FINISHED


def test_what_tpe_proposes_in_vain_does_not_count(tmp_path: Path) -> None:
    space = {
        "model.freeze": {"choice": [0, 2, 0.6, "all"]},
        "optim.lr": {"low": 1e-4, "high": 1e-1, "log": True},
    }
    sampler, trial_log = opened(settings(tmp_path, space, sampler="tpe", deepen=True, num_trials=12))
    value = {"all": 0.7, 0.6: 0.6, 2: 0.5, 0: 0.4}
    drive(sampler, trial_log, lambda p: value[p["model.freeze"]])
    status = [row["status"] for row in trial_log.rows.values()]
    assert RULED_OUT in status and status.count("finished") == 12


def told(*places: tuple[int, float, float | None]) -> list[dict[str, Any]]:
    """Scores by depth, all three the same, and results."""
    return [
        {"backbone": RESNET, "depth": d, "stage": "s", "linear": s, "knn": s, "logme": s, "best": best}
        for d, s, best in places
    ]


def test_rank_correlation_of_scores_and_results() -> None:
    rising = told((1, 0.1, 0.5), (2, 0.2, 0.6), (3, 0.9, 0.61))
    assert scores.correlation(rising, "max") == pytest.approx(dict.fromkeys(scores.NAMES, 1.0), abs=1e-4)
    assert scores.correlation(rising, "min")["linear"] == pytest.approx(-1.0, abs=1e-4)
    mixed = told((1, 0.1, 0.6), (2, 0.2, 0.5), (3, 0.3, 0.7), (4, 0.4, None))
    assert scores.correlation(mixed, "max")["linear"] == pytest.approx(0.5, abs=1e-4)
    assert scores.correlation(rising[:2], "max")["linear"] is None  # two points are always in some order
    flat = told((1, 0.1, 0.5), (2, 0.2, 0.5), (3, 0.9, 0.5))
    assert scores.correlation(flat, "max")["linear"] is None


@pytest.mark.parametrize(
    ("results", "out"),
    [((0.9, 0.8, 0.7, 0.6), True), ((0.9, 0.6, 0.8, 0.7), False), ((0.9, 0.8, 0.7), False)],
)
def test_scores_rule_out_only_what_the_results_support(
    tmp_path: Path, results: tuple[float, ...], out: bool
) -> None:
    # Sizes are lineages of their own, so that nothing but scores can rule a depth out.
    space = {"model.freeze": {"choice": [1, 2, 3, 4, "all"]}, "input.size": {"choice": [32, 48, 64, 80, 96]}}
    config = deepening(tmp_path, space, scores=True)
    _, trial_log = opened(config)
    trial_log.scores = told((5, 0.9, None), (4, 0.8, None), (3, 0.7, None), (2, 0.6, None), (1, 0.5, None))
    for (depth, size), value in zip([("all", 32), (4, 48), (3, 64), (2, 80)], results, strict=False):
        params = {"model.freeze": depth, "input.size": size}
        finish(trial_log, [{"id": f"t{size}", "params": params}], lambda p, value=value: value)
    reason = ProbeFirst(config, trial_log).ruled_out({"model.freeze": 1, "input.size": 96})
    assert (reason is not None) == out
    if reason is not None:
        assert "linear score 0.5, that of the best so far 0.9" in reason and "over 4 places" in reason
    quiet = config.override({"search.scores": False})
    assert ProbeFirst(quiet, trial_log).ruled_out({"model.freeze": 1, "input.size": 96}) is None


def test_a_head_is_taken_or_refused(tmp_path: Path) -> None:
    config = Config().override({"model.freeze": "all", "input.size": 32})
    task = tasks.load(config.task)
    given = build_model(config, task, ["a", "b", "c"], None, "")
    path = str(tmp_path / "weights.safetensors")
    save_file({k: v.contiguous() for k, v in given.module.state_dict().items()}, path)
    torch.manual_seed(1)
    taken = build_model(config.override({"model.head": path}), task, ["a", "b", "c"], None, "")
    for name, value in given.module.state_dict().items():
        assert torch.equal(value, taken.module.state_dict()[name])
    with pytest.raises(ConfigError, match=r"model\.head = .*does not fit; accepted: the head of a model"):
        build_model(config.override({"model.head": path}), task, ["a", "b"], None, "")
    with pytest.raises(StorageError, match="not found"):
        build_model(config.override({"model.head": str(tmp_path / "no")}), task, ["a", "b"], None, "")
    bad = str(tmp_path / "bad.safetensors")
    Path(bad).write_bytes(b"\x80\x04pickle")
    with pytest.raises(BundleError, match=r"model\.head = .*pickle"):
        build_model(config.override({"model.head": bad}), task, ["a", "b"], None, "")


@pytest.mark.parametrize("fuse", [True, False])
def test_a_search_goes_deeper_from_its_probe(ray_local: Any, tmp_path: Path, fuse: bool) -> None:
    config = small(draw(tmp_path / "data"), tmp_path / "runs", fuse=fuse, scheduler="none").override(
        {
            "train.epochs": 2, "search.deepen": True, "search.scores": fuse, "search.cache": None,
            "search.space": {"model.freeze": {"choice": [0, "all"]}, "optim.lr": {"choice": [0.03, 1e-6]}},
        }
    )  # fmt: skip
    found = search.tune(config)
    probes = [row for row in found.trials if row["params"]["model.freeze"] == "all"]
    assert [row["params"]["model.freeze"] for row in found.trials] == ["all", "all", 0, 0]
    best = max(probes, key=lambda row: row["best"])
    assert best["params"]["optim.lr"] == 0.03
    for row in found.trials[2:]:
        folder = Path(config.run_uri, "trials", row["id"])
        begun = json.loads((folder / "config.json").read_text())["model"]["head"]
        assert begun == str(Path(config.run_uri, "trials", best["id"], "head.safetensors"))
        if row["params"]["optim.lr"] == 1e-6:  # it stays next to where it began
            theirs, own = load_file(begun), load_file(folder / "head.safetensors")
            assert theirs.keys() == own.keys()
            for name, value in theirs.items():
                torch.testing.assert_close(own[name], value, atol=1e-3, rtol=0)
    story = json.loads(Path(config.run_uri, "trials.json").read_text())
    if fuse:
        assert [one["depth"] for one in story["scores"]] == [1, 2, 3, 4, 5]
        assert [one["best"] for one in story["scores"]] == [None] * 4 + [best["best"]]
        assert story["correlation"] == {"linear": None, "knn": None, "logme": None}
        again = search.tune(config)  # nothing is left to do, and nothing is forgotten
        assert again.trials == found.trials
        kept = json.loads(Path(config.run_uri, "trials.json").read_text())
        assert all(kept[name] == story[name] for name in ("trials", "best", "plans", "scores", "correlation"))
