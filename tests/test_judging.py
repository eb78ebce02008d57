"""How sure a figure is: standard errors by blocks, and trials that these pictures do not tell apart."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from tlray import road, tasks
from tlray.judging import BLOCKS, Parts, standard_error
from tlray.tasks.base import Goal

LABELS = ["a", "b"]


def parts(right: np.ndarray) -> Parts:
    """A classifier that is right where it says so, of one class alone."""
    task = tasks.load({"name": "classification"})
    found = Parts(partial(task.metrics, LABELS))
    said = [
        {
            "index": int(not hit),
            "labels": [{"index": 0, "probability": 0.6}, {"index": 1, "probability": 0.4}],
        }
        for hit in right
    ]
    rows = [{"label": 0} for _ in right]
    for start in range(0, len(right), 7):  # batches of any size
        found.update(said[start : start + 7], rows[start : start + 7])
    return found


def test_the_standard_error_is_that_of_a_share() -> None:
    """The mean over many draws, since ten blocks tell it to within a quarter."""
    rng, errors, p, n = np.random.default_rng(0), [], 0.8, 400
    for _ in range(20):
        judged = parts(rng.random(n) < p).judged()
        errors.append(standard_error(judged, "accuracy"))
    assert float(np.mean(errors)) == pytest.approx(math.sqrt(p * (1 - p) / n), rel=0.15)


def test_blocks_are_parts_of_the_whole_whatever_the_batches() -> None:
    right = np.arange(100) % BLOCKS == 0
    judged = parts(right).judged()
    assert judged.values["accuracy"] == 0.1
    assert [part["accuracy"] for part in judged.parts] == [1.0] + [0.0] * (BLOCKS - 1)
    again = parts(right[:0])
    again.merge(parts(right).states())
    assert again.judged().values == judged.values and again.judged().parts == judged.parts


def test_of_one_row_nothing_is_known() -> None:
    assert math.isnan(standard_error(parts(np.array([True])).judged(), "accuracy"))


def test_trials_within_one_standard_error_are_told_as_equal() -> None:
    found = {
        "goal": {"name": "accuracy"}, "best": "c", "standard_errors": {"accuracy": 0.02},
        "trials": [
            {"id": "a", "best": 0.85}, {"id": "b", "best": 0.885}, {"id": "c", "best": 0.9},
            {"id": "d", "best": None},
        ],
        "probes": [{"id": "p", "best": 0.89}],
    }  # fmt: skip
    assert road.equal(found) == ["b", "p"]
    assert road.equal({**found, "standard_errors": {}}) == []


def test_of_equal_goals_the_lower_log_loss_decides() -> None:
    goal = Goal("accuracy", "max")
    assert goal.beats({"accuracy": 0.9, "log_loss": 0.3}, {"accuracy": 0.9, "log_loss": 0.4})
    assert not goal.beats({"accuracy": 0.9, "log_loss": 0.4}, {"accuracy": 0.9, "log_loss": 0.4})
    assert not goal.beats({"accuracy": 0.8, "log_loss": 0.1}, {"accuracy": 0.9, "log_loss": 0.4})
    assert goal.beats({"accuracy": 0.8}, None) and not goal.beats({"accuracy": 0.8}, {"accuracy": 0.8})
