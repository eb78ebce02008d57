"""How sure a figure is: standard errors, and trials that these pictures do not tell apart."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from tlray import tasks
from tlray.inference.significance import BLOCKS, Gain, SplitEvaluation, gain
from tlray.report.run_files import equal
from tlray.tasks.base import Goal

LABELS = ["a", "b"]


def parts(right: np.ndarray) -> SplitEvaluation:
    """A classifier that is right where it says so, of one class alone."""
    task = tasks.load({"name": "classification"})
    evaluation = SplitEvaluation(partial(task.metrics, LABELS))
    predictions = [
        {
            "index": int(not hit),
            "labels": [{"index": 0, "probability": 0.6}, {"index": 1, "probability": 0.4}],
        }
        for hit in right
    ]
    rows = [{"label": 0} for _ in right]
    for start in range(0, len(right), 7):  # batches of any size
        evaluation.update(predictions[start : start + 7], rows[start : start + 7])
    return evaluation


def test_the_standard_error_of_the_accuracy_is_that_of_a_share() -> None:
    errors = parts(np.arange(400) % 5 > 0).standard_errors()
    assert errors["accuracy"] == pytest.approx(math.sqrt(0.8 * 0.2 / 400))


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    """Of one class the balanced accuracy is a mean over pictures. In the mean over many draws, since ten
    parts tell it to within a quarter."""
    rng, errors, p, n = np.random.default_rng(0), [], 0.8, 400
    for _ in range(20):
        errors.append(parts(rng.random(n) < p).standard_errors()["balanced_accuracy"])
    assert float(np.mean(errors)) == pytest.approx(math.sqrt(p * (1 - p) / n), rel=0.15)


def multilabel(rng: np.random.Generator, n: int) -> SplitEvaluation:
    """Three classes, of which the first is rare: few of its pictures lie in one part, or none."""
    task = tasks.load({"name": "multilabel"})
    truth_NC = rng.random((n, 3)) < (0.06, 0.2, 0.4)
    p_NC = 1 / (1 + np.exp(-(rng.normal(size=(n, 3)) + 2 * truth_NC - 1)))
    evaluation = SplitEvaluation(partial(task.metrics, ["a", "b", "c"]))
    predictions = [
        {"labels": [{"index": i, "probability": float(v)} for i, v in enumerate(row)]} for row in p_NC
    ]
    evaluation.update(predictions, [{"labels": np.flatnonzero(row).tolist()} for row in truth_NC])
    return evaluation


def test_the_standard_error_of_a_metric_that_is_no_mean() -> None:
    """Against the spread of mAP over draws of other pictures."""
    draws = [multilabel(np.random.default_rng(seed), 200) for seed in range(60)]
    true = float(np.std([one.metrics[0].compute()["map"] for one in draws], ddof=1))
    mean_error = float(np.mean([one.standard_errors()["map"] for one in draws[:20]]))
    assert mean_error == pytest.approx(true, rel=0.25)


def people(rng: np.random.Generator, by: str | None) -> SplitEvaluation:
    """Twelve people, ten pictures each, one person after the other: as they lie in a folder a person."""
    task = tasks.load({"name": "face_recognition"})
    evaluation = SplitEvaluation(partial(task.metrics, []), by=by)
    for person, centre_D in enumerate(rng.normal(size=(12, 16))):
        x_ND = centre_D + 0.8 * rng.normal(size=(10, 16))
        x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
        evaluation.update([{"embedding": x_D.tolist()} for x_D in x_ND], [{"label": person}] * 10)
    return evaluation


def test_pictures_of_one_person_are_left_out_together() -> None:
    """Others of that person say almost the same, so that leaving out some of them moves too little."""
    draws = [people(np.random.default_rng(seed), "label") for seed in range(40)]
    name = "verification_accuracy"
    true = float(np.std([one.metrics[0].compute()[name] for one in draws], ddof=1))
    together = float(np.mean([one.standard_errors()[name] for one in draws[:15]]))
    apart = [people(np.random.default_rng(seed), None).standard_errors()[name] for seed in range(15)]
    assert together == pytest.approx(true, rel=0.3) and float(np.mean(apart)) < 0.8 * together


def two_models(seed: int, by: str | None, people: int = 8) -> Gain:
    """How much better one is at telling people apart than another that sees the same pictures."""
    rng, task = np.random.default_rng(seed), tasks.load({"name": "face_recognition"})
    evaluations = [SplitEvaluation(partial(task.metrics, []), by=by) for _ in range(2)]
    for person, centre_D in enumerate(rng.normal(size=(people, 16))):
        noise_ND = rng.normal(size=(10, 16))
        for parts, loud in zip(evaluations, (0.8, 1.0), strict=True):
            x_ND = centre_D + loud * (noise_ND + 0.5 * rng.normal(size=(10, 16)))
            x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
            parts.update([{"embedding": x_D.tolist()} for x_D in x_ND], [{"label": person}] * 10)
    return gain(evaluations[0].evaluation(), evaluations[1].evaluation(), "verification_accuracy", "max")


def test_faces_are_judged_without_some_people_where_no_block_has_pairs() -> None:
    """Ten pictures of a person go to ten blocks: none has two of them. Of whole people there are fewer than
    blocks, so that none has two people."""
    assert two_models(0, None).error == math.inf
    draws = [two_models(seed, "label") for seed in range(40)]
    assert np.mean([one.mean for one in draws]) > 0.02
    true = float(np.std([one.mean for one in draws], ddof=1))
    assert float(np.mean([one.error for one in draws])) == pytest.approx(true, rel=0.5)


def test_parts_of_workers_leave_out_the_same() -> None:
    whole, total = people(np.random.default_rng(3), "label"), people(np.random.default_rng(3), "label")
    empty = SplitEvaluation(total._make, by="label")
    empty.merge(total.states())
    assert empty.evaluation().parts == whole.evaluation().parts and len(empty.evaluation().parts) == BLOCKS
    assert empty.standard_errors() == whole.standard_errors()


def test_blocks_are_parts_of_the_whole_whatever_the_batches() -> None:
    right = np.arange(100) % BLOCKS == 0
    judged = parts(right).evaluation()
    assert judged.values["accuracy"] == 0.1
    assert [part["accuracy"] for part in judged.parts] == [1.0] + [0.0] * (BLOCKS - 1)
    again = parts(right[:0])
    again.merge(parts(right).states())
    assert again.evaluation().values == judged.values and again.evaluation().parts == judged.parts


def test_where_nothing_is_known_nothing_is_told() -> None:
    assert parts(np.array([True])).standard_errors() == {}
    assert "accuracy" not in parts(np.ones(30, bool)).standard_errors()  # all right
    task = tasks.load({"name": "classification"})
    assert SplitEvaluation(partial(task.metrics, LABELS), blocks=False).standard_errors() == {}


def test_trials_within_one_standard_error_are_told_as_equal() -> None:
    values = {"a": 0.85, "b": 0.885, "c": 0.9, "d": None}
    story = {
        "goal": {"name": "accuracy"}, "best": "c",
        "trials": [
            *({"id": id_, "best": value, "status": "stopped"} for id_, value in values.items()),
            {"id": "e", "best": 0.9, "status": "failed"},
        ],
        "probes": [{"id": "p", "best": 0.89, "status": "finished"}],
    }  # fmt: skip
    assert equal(story, {"accuracy": 0.02}) == ["b", "p"]
    assert equal(story, {"accuracy": 0.002}) == []
    assert equal(story, {"log_loss": 0.02}) == equal(story, {}) == equal({}, {"accuracy": 0.02}) == []


def test_of_equal_goals_the_lower_log_loss_decides() -> None:
    goal = Goal("accuracy", "max")
    assert goal.beats({"accuracy": 0.9, "log_loss": 0.3}, {"accuracy": 0.9, "log_loss": 0.4})
    assert not goal.beats({"accuracy": 0.9, "log_loss": 0.4}, {"accuracy": 0.9, "log_loss": 0.4})
    assert not goal.beats({"accuracy": 0.8, "log_loss": 0.1}, {"accuracy": 0.9, "log_loss": 0.4})
    assert goal.beats({"accuracy": 0.8}, None) and not goal.beats({"accuracy": 0.8}, {"accuracy": 0.8})
