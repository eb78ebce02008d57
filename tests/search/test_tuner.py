"""The search end to end on drawn pictures: schedules, several workers, kills, and running it again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tlray.config import Config, parse
from tlray.data import schema
from tlray.data.synthetic import picture
from tlray.errors import ConfigError, RunError
from tlray.inference.evaluate import evaluate
from tlray.search import tune, tuner
from tlray.search.space import trial_id
from tlray.training.defaults import resolve_auto

NAMES = ["a", "b", "c", "d"]
ROOT = Path(__file__).resolve().parents[2]


def draw(folder: Path, train: int = 48, validation: int = 16) -> str:
    """A data set of drawn pictures, as Parquet: no Ray is needed for that."""
    rng = np.random.default_rng(0)
    wanted = schema.dataset_schema({"label": (pa.int64(), schema.class_label(NAMES))})
    for split, rows in {"train": train, "validation": validation}.items():
        values = [
            {
                "image": {"bytes": picture(2 * (i % 4), 48, rng), "path": f"{i}.jpg"},
                "split": split, "id": f"{split}{i}", "width": 48, "height": 48, "label": i % 4,
            }
            for i in range(rows)
        ]  # fmt: skip
        (folder / "data").mkdir(parents=True, exist_ok=True)
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(values, schema=wanted), path, row_group_size=16)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return draw(tmp_path_factory.mktemp("data"))


def settings(data: str, runs: Path, **search: Any) -> Config:
    """Learning rates of which the smallest learn next to nothing; 5 tiny epochs."""
    tree = {
        "name": "s", "runs": str(runs), "data": {"uri": data}, "input": {"size": 32},
        "model": {"freeze": "all"}, "train": {"epochs": 5, "batch_size": 16}, "track": {},
        "scale": {"cpus_per_worker": 1},
        "search": {
            "space": {"optim.lr": {"choice": [0.03, 1e-7, 2e-7, 3e-7]}}, "sampler": "grid",
            "grace_epochs": 1, "reduction_factor": 2, "max_concurrent": 1, "extend": False,
            "probe": False, "soup": 0, **search,
        },
    }  # fmt: skip
    return resolve_auto(parse(tree, "test"))


def stored(config: Config) -> dict[str, Any]:
    log: dict[str, Any] = json.loads(Path(config.run_uri, "trials.json").read_text())
    return log


def check_epochs(config: Config, events: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Every epoch of every trial was reported once, in order, and is in trials.json."""
    for row in rows:
        told = [e["epoch"] for e in events if e["kind"] == "trial_epoch" and e["id"] == row["id"]]
        assert told == [point["epoch"] for point in row["curve"]] == list(range(1, row["epochs"] + 1))
        if row["status"] == "finished":
            assert row["epochs"] == config.train.epochs


@pytest.mark.parametrize("fuse", [True, False])
def test_asha_stops_trials_and_the_best_one_wins(
    ray_local: Any, data: str, tmp_path: Path, fuse: bool
) -> None:
    config, events = settings(data, tmp_path, fuse=fuse, soup=2 if fuse else 0), []
    began = time.perf_counter()
    result = tune(config, events.append)
    wall = time.perf_counter() - began
    rows = stored(config)["trials"]
    assert result.params == {"optim.lr": 0.03}
    states = [row["status"] for row in rows]
    assert states.count("stopped") >= 2 and states.count("finished") >= 1, states
    assert sum(row["epochs"] for row in rows) < 4 * 5
    check_epochs(config, events, rows)
    ends = [e for e in events if e["kind"] == "trial_end"]
    assert len(ends) == 4 and result.best in (ends[-1]["winner"], "average-1")
    # The two best trials were averaged, once.
    best = stored(config)["averages"]
    assert [row["of"][0] for row in best] == [ends[-1]["winner"]] * fuse
    assert (result.best == "average-1") == any(row["best"] is not None for row in best)
    print(f"search of 4 trials: {wall:.1f} s, of it in trials {sum(r['seconds'] for r in rows):.1f} s")

    run = Path(config.run_uri)
    manifest = json.loads((run / "best/manifest.json").read_text())
    assert manifest["config"]["optim"]["lr"] == 0.03
    # One bundle is left of all, and no checkpoint; nothing of Tune's own.
    assert [str(p.relative_to(run)) for p in run.rglob("manifest.json")] == ["best/manifest.json"]
    assert not list(run.rglob("step-*")) and not (run / "ray").exists()
    assert json.loads((run / "trials" / result.best / "config.json").read_text())["name"] == result.best

    # The same again: nothing to do, and the same answer.
    again = tune(config, events.append)
    assert (
        again.best == result.best
        and again.averages == result.averages
        and len([e for e in events if e["kind"] == "trial_start"]) == 4
    )

    # A changed space: only new trials run; those outside of it stay in the results, with a note.
    space = {"optim.lr": {"choice": [0.03, 1e-7, 2e-7, 4e-7]}}
    wider, before = settings(data, tmp_path, space=space, fuse=fuse, probe=True), len(events)
    more = tune(wider, events.append)
    started = [e["params"]["optim.lr"] for e in events[before:] if e["kind"] == "trial_start"]
    assert started == [4e-7] and len(more.trials) == 5
    assert "outside" in more.notes[0]
    # The probe is told before the trials, competes with them, and is their start: 12 pictures a class.
    kinds = [e["kind"] for e in events[before:]]
    assert kinds.count("probe") == 1 and kinds.index("probe") < kinds.index("trial_start")
    probe, last = more.probes[0], more.trials[-1]
    head = json.loads((run / "trials" / last["id"] / "config.json").read_text())["model"]["head"]
    assert head == str(run / "trials/probe/head.safetensors")
    assert last["best"] == probe["best"], "at such a rate the head stays what it was"
    assert more.value == max(result.value, probe["best"])
    assert more.value == evaluate(more.bundle, data, "validation")["metrics"]["accuracy"]
    assert [str(p.relative_to(run)) for p in run.rglob("manifest.json")] == ["best/manifest.json"]
    assert tune(wider, events.append).probes == more.probes
    with pytest.raises(ConfigError, match=r"train\.epochs = 6: this search began with 5.*another name"):
        tune(config.override({"train.epochs": 6}))


def test_every_epoch_of_two_workers_reaches_the_scheduler(ray_local: Any, data: str, tmp_path: Path) -> None:
    config, events = settings(data, tmp_path, space={"optim.lr": {"choice": [0.03, 1e-7]}}), []
    config = config.override({"scale.num_workers": 2})
    result = tune(config, events.append)
    rows = stored(config)["trials"]
    assert [row["status"] for row in rows] == ["finished", "stopped"], rows
    assert rows[1]["epochs"] < 5 and result.best == rows[0]["id"]
    check_epochs(config, events, rows)
    # The stopped trial's workers are gone, and what they held is free.
    deadline = time.monotonic() + 30
    while ray_local.available_resources().get("CPU") != ray_local.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray_local.available_resources()
        time.sleep(0.2)


@pytest.mark.parametrize("fuse", [True, False])
def test_a_trial_that_fails_does_not_end_the_search(
    ray_local: Any, data: str, tmp_path: Path, fuse: bool
) -> None:
    # What fails is the trial's own folder: it cannot be written to.
    space = {"optim.lr": {"choice": [0.03, 0.01]}}
    config = settings(data, tmp_path, space=space, scheduler="none", fuse=fuse)

    def block(config: Config) -> None:
        folder = Path(config.run_uri, "trials")
        folder.mkdir(parents=True)
        (folder / trial_id({"optim.lr": 0.01})).write_text("a file where a folder has to be")

    block(config)
    result = tune(config)
    rows = {row["params"]["optim.lr"]: row for row in result.trials}
    assert rows[0.01]["status"] == "failed" and "\n" not in rows[0.01]["reason"]
    assert rows[0.03]["status"] == "finished" and result.params == {"optim.lr": 0.03}
    only = settings(data, tmp_path, space={"optim.lr": {"choice": [0.01]}}, fuse=fuse)
    only = only.override({"name": "t"})
    block(only)
    with pytest.raises(RunError, match="all 1 trials failed"):
        tune(only)


def test_a_search_whose_goal_has_no_value_says_so(
    ray_local: Any, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(data, tmp_path, space={"optim.lr": {"choice": [0.03, 0.01]}})

    def nothing(config: Config, searcher: Any, trial_log: Any, *rest: Any) -> None:
        for params in ({"optim.lr": 0.03}, {"optim.lr": 0.01}):
            trial_log.start(trial_id(params), params)
            trial_log.epoch(trial_id(params), {"epoch": 1, "goal": float("nan"), "seconds": 0.0})
            trial_log.end(trial_id(params), "finished")

    monkeypatch.setattr(tuner, "_search", nothing)
    with pytest.raises(RunError, match="no trial has a value of accuracy, and 0 of 2 failed"):
        tune(config)


CHILD = """
import json, sys
from tlray.config import parse
from tlray.search import tune
if __name__ == "__main__":
    tune(parse(json.loads(sys.argv[1]), "test"), lambda e: print(json.dumps(e), flush=True))
"""


def start(config: Config) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, json.dumps(config.model_dump(mode="json"))]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_killed_search_goes_on(data: str, tmp_path: Path) -> None:
    """One trial after another, in the hands of Ray Tune."""
    space = {"optim.lr": {"choice": [0.03, 0.02, 0.01]}}
    config = settings(data, tmp_path, scheduler="none", space=space, fuse=False)
    child = start(config)
    assert child.stdout is not None
    seen: list[dict[str, Any]] = []
    for line in child.stdout:
        seen.append(json.loads(line))
        ended = [e for e in seen if e["kind"] == "trial_end"]
        if ended and seen[-1]["kind"] == "trial_epoch" and seen[-1]["epoch"] == 2:
            break  # in the middle of the second trial
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    over, under_way = ended[0]["id"], seen[-1]["id"]
    statuses = {row["id"]: row["status"] for row in stored(config)["trials"]}
    assert statuses == {over: "finished", under_way: "running"}
    time.sleep(5)  # its Ray notices

    second = start(config)
    out, _ = second.communicate(timeout=200)
    events = [json.loads(line) for line in out.splitlines()]
    assert second.returncode == 0
    started = [e["id"] for e in events if e["kind"] == "trial_start"]
    assert over not in started and started[0] == under_way and len(started) == 2
    epochs = [(e["epoch"], e["again"]) for e in events if e["kind"] == "trial_epoch" and e["id"] == under_way]
    assert [n for n, _ in epochs] == [1, 2, 3, 4, 5]
    assert epochs[1][1] and not epochs[4][1]  # the first were kept
    assert [row["status"] for row in stored(config)["trials"]] == ["finished"] * 3


@pytest.mark.cluster
@pytest.mark.slow
def test_a_killed_group_goes_on(data: str, tmp_path: Path) -> None:
    """Trials side by side end as if nothing had happened, at whatever depth they began."""
    space = {"optim.lr": {"choice": [0.03, 0.01]}, "model.freeze": {"choice": ["all", 0]}}
    config = settings(data, tmp_path, scheduler="none", space=space)
    config = config.override({"train.checkpoint_every_steps": 2})
    whole = start(config.override({"name": "whole"}))
    whole.communicate(timeout=200)
    assert whole.returncode == 0
    child = start(config)
    assert child.stdout is not None
    for line in child.stdout:
        event = json.loads(line)
        if event["kind"] == "trial_epoch" and event["epoch"] == 3:
            break
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert [r["status"] for r in stored(config)["trials"]] == ["running"] * 4
    time.sleep(5)  # its Ray notices

    second = start(config)
    out, _ = second.communicate(timeout=200)
    assert second.returncode == 0
    events = [json.loads(line) for line in out.splitlines()]
    rows = stored(config)["trials"]
    for row in rows:
        told = [
            (e["epoch"], e["again"]) for e in events if e["kind"] == "trial_epoch" and e["id"] == row["id"]
        ]
        assert [n for n, _ in told] == [1, 2, 3, 4, 5]
        assert told[1][1] and not told[4][1]  # the first were kept
    undisturbed = {row["id"]: row for row in stored(config.override({"name": "whole"}))["trials"]}
    for row in rows:
        assert row["status"] == "finished"
        for point, expected in zip(row["curve"], undisturbed[row["id"]]["curve"], strict=True):
            for key in ("epoch", "val_accuracy", "train_loss", "lr"):
                assert point[key] == expected[key], (row["params"], point, expected)
