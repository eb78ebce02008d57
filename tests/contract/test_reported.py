"""What training reports is what its bundle says, to the last digit: with every policy and every average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_prefix import here, settings  # noqa: F401  # batches made in this process
from tests.toys import scenes_dataset
from tlray import storage, tasks
from tlray.inference.evaluate import evaluate
from tlray.training import loop
from tlray.training.worker import LocalWorker

POLICIES = ("none", "colour", "mild", "wide", "rand", "photometric")
MIXED: dict[str, dict[str, Any]] = {
    "classification": {"augment.mixup": 0.2, "augment.cutmix": 1.0, "augment.erase": 0.5},
    "multilabel": {"augment.mixup": 0.2},
    "face_recognition": {"augment.cutmix": 1.0},
    "segmentation": {"augment.class_balance": 0.5, "augment.scale_jitter": (0.5, 2.0)},
    "detection": {"augment.mosaic": 0.5},
}
CASES = [
    *(("classification", {"augment.policy": policy}) for policy in POLICIES),
    *MIXED.items(),
    *((task, {"train.ema": 0.5, "train.soup": 6, "train.epochs": 3}) for task in tasks.names()),
]


@pytest.mark.parametrize(("task", "given"), CASES, ids=str)
def test_the_bundle_says_what_was_reported(
    task: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Averages are kept here whatever the noise says."""
    monkeypatch.setattr("tlray.training.average.is_significantly_better", lambda new, old, goal: True)
    uri = scenes_dataset(tmp_path / "data", tasks.load({"name": task}).columns, train=20, validation=9)
    config = settings(uri, tmp_path, task, "run", 0, 3e-3, **given)
    last = list(loop.epochs(config, LocalWorker(1), lambda event: None))[-1]
    if task == "classification" and "train.ema" in given:
        assert last["average"]["kept"]
    found = evaluate(storage.join(config.run_uri, "best"), uri, "validation")
    goal = tasks.load(config.task).goal.name
    assert found["metrics"][goal] == last["best"]
