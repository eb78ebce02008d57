"""Averages across a search: what is averaged, its statistics, and that the bundle is what was judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.contract.test_prefix import here, settings, train  # noqa: F401  # batches made in this process
from tests.toys import dataset, scenes_dataset
from tlray import storage, tasks
from tlray.bundle import bundle
from tlray.config import Config
from tlray.inference.evaluate import evaluate
from tlray.search import probe, soup

RATES = (3e-3, 1e-3, 6e-3)


def trials(folder: Path, task: str, freeze: Any = 0) -> tuple[Config, list[dict[str, Any]]]:
    """A search's settings, and three trials of it that are over, the best one first."""
    columns = tasks.load({"name": task}).columns
    make: Any = dataset if task == "classification" else scenes_dataset
    uri = make(folder / "data", *(() if make is dataset else (columns,)), train=40, validation=20)
    search = settings(uri, folder, task, "s", freeze, 1e-3)
    made = [
        settings(uri, folder / "s" / "trials", task, f"t{number}", freeze, lr)
        for number, lr in enumerate(RATES)
    ]
    stories = train(made)
    goal, rows = tasks.load({"name": task}).goal, []
    for one in made:
        best = max(record["best"] for record in stories[one.name])
        storage.write_json(f"{one.run_uri}/metrics.json", {"epochs": stories[one.name], "stages": []})
        rows.append({"id": one.name, "params": {"optim.lr": one.optim.lr}, "best": best})
        rows[-1]["bundle"] = f"{one.run_uri}/best"
    return search, sorted(rows, key=lambda row: row["best"], reverse=goal.direction == "max")


def weights(uri: str) -> dict[str, torch.Tensor]:
    return load_file(Path(uri, "weights.safetensors"))


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_the_bundle_of_an_average_is_what_was_judged(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the noise says it is kept here, and each trial does no harm."""
    search, rows = trials(tmp_path, task)
    monkeypatch.setattr("tlray.training.average.is_significantly_better", lambda new, old, goal: True)
    monkeypatch.setattr("tlray.tasks.base.Goal.beats", lambda self, new, old: False)
    row = soup.measure(search, "average-1", rows, None, 1)
    assert row["of"] == [one["id"] for one in rows] and row["bundle"] == f"{tmp_path}/s/trials/average-1/best"
    goal = tasks.load({"name": task}).goal.name
    assert evaluate(row["bundle"], search.data.uri, "validation")["metrics"][goal] == row["best"]
    assert row["told"][0].startswith(f"soup of trials {', '.join(row['of'])}: {goal} ")
    found, members = weights(row["bundle"]), [weights(one["bundle"]) for one in rows]
    changed = [name for name in found if not all(torch.equal(found[name], one[name]) for one in members)]
    assert changed
    for name, value in found.items():
        mean = torch.stack([one[name].double() for one in members]).mean(0)
        if "running_" not in name and "num_batches" not in name:
            assert torch.allclose(value.double(), mean, atol=1e-6), name
    # Statistics are those of the average's own activations: near to what the trials had, and not their mean.
    other = [n for n in found if "running_var" in n and n in changed]
    means = {name: torch.stack([one[name] for one in members]).mean(0) for name in other}
    assert other and not any(torch.allclose(found[name], means[name], rtol=1e-3) for name in other)
    assert storage.read_json(f"{tmp_path}/s/trials/average-1/metrics.json")["epochs"]


def test_what_is_no_better_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search, rows = trials(tmp_path, "classification")
    monkeypatch.setattr("tlray.training.average.is_significantly_better", lambda new, old, goal: False)
    row = soup.measure(search, "average-1", rows, None, 1)
    assert row["best"] is row["bundle"] is None and row["of"] == [rows[0]["id"]]
    assert all(line.endswith("not kept: no more than noise") for line in row["told"])
    assert not Path(search.run_uri, "trials", "average-1").exists()


def test_only_trials_of_one_start_are_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search, rows = trials(tmp_path, "classification", "all")
    monkeypatch.setattr("tlray.training.average.is_significantly_better", lambda new, old, goal: True)
    monkeypatch.setattr("tlray.tasks.base.Goal.beats", lambda self, new, old: False)
    file = Path(rows[1]["bundle"], "manifest.json")
    manifest = storage.read_json(str(file))
    manifest["config"]["model"]["weights"] = "timm"
    storage.write_json(str(file), manifest)
    assert soup.measure(search, "average-1", rows, None, 1)["of"] == [rows[0]["id"], rows[2]["id"]]


def test_between_the_probe_and_the_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search, rows = trials(tmp_path, "classification")
    found = probe.measure(search, "probe", {"model.freeze": "all"}, 1)
    head = probe.head_for(search, [found], rows[0]["params"])
    assert head == f"{tmp_path}/s/trials/probe/head.safetensors"
    monkeypatch.setattr(soup, "SHARES", (0.25,))
    monkeypatch.setattr("tlray.training.average.is_significantly_better", lambda new, old, goal: True)
    monkeypatch.setattr("tlray.tasks.base.Goal.beats", lambda self, new, old: new != old)
    row = soup.measure(search, "average-1", rows[:1], head, 1)
    assert row["told"][-1].startswith("0.25 of the winner, 0.75 of the probe: accuracy ")
    ours, winner, start = (weights(uri) for uri in (row["bundle"], rows[0]["bundle"], found["bundle"]))
    changed = [n for n in ours if "running_" not in n and not torch.equal(winner[n], start[n])]
    assert "head.weight" in changed and len(changed) > 10
    for name in changed:
        wanted = 0.25 * winner[name].double() + 0.75 * start[name].double()
        assert torch.allclose(ours[name].double(), wanted, atol=1e-6) or "num_batches" in name, name
    assert evaluate(row["bundle"], search.data.uri, "validation")["metrics"]["accuracy"] == row["best"]
    assert bundle.read_manifest(row["bundle"]).freeze_depth == 0
