"""Averages of weights: what is proposed, what is kept, and that a kill between two steps changes nothing."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.contract.test_prefix import here, settings  # noqa: F401  # batches made in this process
from tests.toys import dataset
from tlray import storage
from tlray.inference import significance
from tlray.inference.significance import Evaluation, gain, is_significantly_better
from tlray.tasks.base import Goal
from tlray.training import average, fit, loop
from tlray.training.average import Snapshots, Weights
from tlray.training.worker import LocalWorker

ACCURACY = Goal("accuracy", "max")


class Known:
    """Metrics that are what they are told."""

    def __init__(self, **values: float) -> None:
        self.values = values

    def compute(self) -> dict[str, float]:
        return self.values


def judged(
    accuracy: float, log_loss: float = 1.0, parts: list[tuple[float, float]] | None = None
) -> Evaluation:
    parts = parts or [(accuracy, log_loss)] * significance.BLOCKS
    whole: Any = Known(accuracy=accuracy, log_loss=log_loss)
    blocks: list[Any] = [Known(accuracy=a, log_loss=b) for a, b in parts]
    return Evaluation(whole, blocks)


def snapshots(*values: float, count: int = 6, decay: float | None = None) -> tuple[Snapshots, nn.Linear]:
    """A training whose only weight takes these values, step by step."""
    module = nn.Linear(1, 1, bias=False)
    held = Snapshots(module, len(values), count, decay)
    for step, value in enumerate(values, 1):
        nn.init.constant_(module.weight, value)
        held.after(module, step)
    return held, module


def ask(
    held: Snapshots, best: float, score: Callable[[float], Evaluation]
) -> tuple[list[float], average.Outcome]:
    """What is proposed, and what comes of it where ``score`` judges the one weight."""
    asked = []
    best_step = next((step for step, taken in held.taken.items() if float(taken["weight"]) == best), 0)
    proposals = held.proposals({"weight": torch.full((1, 1), best)}, best_step, ACCURACY)
    weights: Weights = next(proposals)
    while True:
        asked.append(float(weights["weight"]))
        try:
            weights = proposals.send(score(asked[-1]))
        except StopIteration as end:
            return asked, end.value


def test_snapshots_are_taken_in_the_last_half_at_equal_distances() -> None:
    held, _ = snapshots(*range(1, 121))
    assert sorted(held.taken) == [70, 80, 90, 100, 110, 120]
    assert not snapshots(*range(1, 121), count=1)[0] and not snapshots(*range(1, 121), count=0)[0]


def test_a_soup_takes_in_what_does_no_harm_the_latest_first() -> None:
    held, _ = snapshots(*([0.0] * 6), 1.0, 9.0, 3.0, 5.0, 5.0, 5.0, count=6)
    asked, found = ask(held, 5.0, lambda w: judged(1 - abs(w - 4.0) / 10, abs(w - 4.0)))
    # The best epoch, then with the latest snapshot that is not its own.
    assert asked[:2] == [5.0, 5.0] and len(asked) == 6
    assert found.kept and found.kind.startswith("soup of ")
    assert abs(float(found.weights["weight"]) - 4.0) < 0.5
    assert found.after > found.before
    assert "kept" in found.line(ACCURACY) and "accuracy 0.9000 -> " in found.line(ACCURACY)


def test_workers_whose_weights_differ_are_asked_the_same() -> None:
    """Each worker's batch norm sees other rows; a worker that is asked more waits for the others for ever."""
    held, _ = snapshots(*range(1, 13))
    asked = []
    for best in (12.0, 12.5):  # rank 0's, and what another rank has of the same epoch
        proposals, number = held.proposals({"weight": torch.full((1, 1), best)}, 12, ACCURACY), 1
        next(proposals)
        with contextlib.suppress(StopIteration):
            while True:
                proposals.send(judged(0.5))
                number += 1
        asked.append(number)
    assert asked == [6, 6]


def test_where_nothing_is_better_the_best_epoch_stays() -> None:
    held, _ = snapshots(*range(1, 13))
    _, found = ask(held, 20.0, lambda w: judged(w / 100, 1.0))
    assert not found.kept and float(found.weights["weight"]) == 20.0 and found.after == found.before


def test_what_is_no_more_than_noise_is_not_kept() -> None:
    noisy = [(0.5 + (0.2 if n % 2 else -0.18), 1.0) for n in range(significance.BLOCKS)]
    even = [(0.5, 1.0)] * significance.BLOCKS
    new, old = judged(0.51, parts=noisy), judged(0.50, parts=even)
    assert 0 < gain(new, old, "accuracy", "max").mean < gain(new, old, "accuracy", "max").error
    assert not is_significantly_better(new, old, ACCURACY)
    steady = [(0.51 + 0.001 * (n % 2), 1.0) for n in range(significance.BLOCKS)]
    assert is_significantly_better(judged(0.51, parts=steady), old, ACCURACY)
    # Equal accuracy, a log loss that is better everywhere.
    assert is_significantly_better(
        judged(0.5, 0.9, [(0.5, 0.9 + 0.01 * (n % 3)) for n in range(10)]), old, ACCURACY
    )
    assert not is_significantly_better(judged(0.49, 0.1, [(0.49, 0.1)] * 10), old, ACCURACY)


def test_blocks_without_a_value_are_passed_over() -> None:
    nan = math.nan
    old = judged(0.5, parts=[(nan, 1.0)] * 8 + [(0.5, 1.0)] * 2)
    new = judged(0.6, parts=[(0.6, 1.0)] * 10)
    assert gain(new, old, "accuracy", "max").error == 0.0
    assert gain(new, judged(0.5, parts=[(nan, 1.0)] * 10), "accuracy", "max").error == math.inf


def test_a_moving_average_forgets_the_beginning_and_is_judged_first() -> None:
    held, _ = snapshots(*([0.0] * 3), *([8.0] * 97), count=0, decay=0.9)
    assert held.moving is not None and float(held.moving["weight"]) == pytest.approx(8.0, abs=0.01)
    asked, found = ask(held, 7.0, lambda w: judged(w / 10, 1 / w))
    assert len(asked) == 2 and found.kind == "moving average" and found.kept


def test_what_is_held_goes_through_a_checkpoint() -> None:
    held, module = snapshots(*range(1, 13), decay=0.5)
    other = Snapshots(module, 12, 6, 0.5)
    other.load(held.tensors(), torch.device("cpu"))
    assert other.tensors().keys() == held.tensors().keys() and len(other.taken) == 6
    assert all(torch.equal(other.tensors()[name], t) for name, t in held.tensors().items())


def test_snapshots_of_a_large_model_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(average, "MOST_BYTES", 4 * 3)  # of one float32 weight
    assert len(snapshots(*range(1, 121))[0].taken) == 3


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_a_training_ends_with_an_average_and_goes_on_after_a_kill(task: str, tmp_path: Path) -> None:
    """The bundle holds what the record says; a second start from a checkpoint ends with the same weights."""
    from tests.contract.test_prefix import scenes_dataset
    from tlray import tasks

    columns = tasks.load({"name": task}).columns
    uri = dataset(tmp_path / "data", train=40, validation=20) if task == "classification" else ""
    uri = uri or scenes_dataset(tmp_path / "data", columns, train=40, validation=10)
    made = settings(uri, tmp_path / "a", task, "run", 2, 3e-3, **{"train.epochs": 4, "train.ema": 0.5})
    again = made.override({"runs": str(tmp_path / "b")})
    events: list[dict[str, Any]] = []
    records = list(loop.epochs(made, LocalWorker(1), events.append))
    for number, _ in enumerate(loop.epochs(again, LocalWorker(1), lambda event: None), 1):
        if number == 3:
            break
    list(loop.epochs(again, LocalWorker(1), lambda event: None))
    last = records[-1]["average"]
    told = [] if last["kind"] == average.NO_AVERAGE else [last["kind"]]
    assert [e["text"].partition(":")[0] for e in events if e["kind"] == "note"] == told
    ours, theirs = (load_file(Path(c.run_uri, "best/weights.safetensors")) for c in (made, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    told = storage.read_json(storage.join(made.run_uri, "metrics.json"))["epochs"][-1]["average"]
    assert told == last
    if last["kept"]:
        assert fit.result(made)["metrics"][f"val_{tasks.load({'name': task}).goal.name}"] == last["after"]
