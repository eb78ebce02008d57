"""A winner at the end of an axis: the next value is tried, twice at most, and only where one is accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from tests.search.test_searcher import opened, settings, wave
from tlray.search.extend import beyond
from tlray.search.searcher import SCORE
from tlray.search.space import Axis
from tlray.search.trial_log import TrialLog

RATES = {"optim.lr": {"choice": [0.001, 0.002, 0.004]}}


def trained(config: Any, score: Any, emit: Any = None) -> tuple[list[dict[str, Any]], TrialLog]:
    """The trials of a search whose results ``score`` computes from their settings, and its log."""
    sampler, trial_log = opened(config)
    sampler.emit = emit or sampler.emit
    tried = []
    while step := wave(sampler):
        for one in step:
            trial_log.start(one["id"], one["params"])
            value = score(one["params"])
            record = {
                "epoch": 1,
                "goal": value,
                "best": value,
                "val_accuracy": value,
                "lr": 0.1,
                "seconds": 1.0,
            }
            trial_log.epoch(one["id"], record)
            trial_log.end(one["id"], "finished")
            tried.append(one["params"])
    return tried, trial_log


@pytest.mark.parametrize(
    ("values", "value", "new"),
    [
        ((0.001, 0.002, 0.004), 0.004, 0.008),
        ((0.001, 0.002, 0.004), 0.001, 0.0005),
        ((0.001, 0.002, 0.004), 0.002, None),
        ((0.0, 0.1, 0.2), 0.2, 0.3),
        ((0.1, 0.2, 0.3), 0.3, 0.4),
        ((0.7, 0.8, 0.9), 0.7, 0.6),
        ((0.1, 0.2, 0.3), 0.1, 0.05),  # a step more would be 0
        ((0.1, 0.3), 0.3, 0.9),
        ((0.1, 0.3, 1.0), 1.0, 3.3),
        (("a", "b"), "a", None),
        ((0.1,), 0.1, None),
        ((True, False), True, None),
    ],
)
def test_the_next_value_is_a_step_of_the_same_kind(values: Any, value: Any, new: float | None) -> None:
    found = beyond(Axis("optim.lr", values), value)
    assert found == (None if new is None else pytest.approx(new))


def test_depths_and_lengths_end_where_they_end() -> None:
    assert beyond(Axis("model.freeze", (0, 1)), 1) is None
    assert beyond(Axis("train.epochs", (8, 16)), 16) is None


def test_the_axis_grows_until_the_winner_is_inside(tmp_path: Path) -> None:
    config = settings(tmp_path, RATES, sampler="grid", extend=True)
    found, trial_log = trained(config, lambda p: 1 - abs(p["optim.lr"] - 0.008))
    assert [p["optim.lr"] for p in found] == [0.001, 0.002, 0.004, 0.008, 0.016]
    assert "the winner has optim.lr = 0.004, the end of its axis: 0.008 is tried as well" in trial_log.notes
    _, trial_log = opened(config)
    assert trial_log.extended == {"optim.lr": [0.008, 0.016]}
    assert not any("outside" in row for row in trial_log.rows.values())


def test_it_grows_twice_at_most_and_a_search_that_goes_on_knows(tmp_path: Path) -> None:
    config = settings(tmp_path, RATES, sampler="grid", extend=True)
    assert len(trained(config, lambda p: p["optim.lr"])[0]) == 5
    assert trained(config, lambda p: p["optim.lr"])[0] == []


def test_what_is_not_accepted_is_said_and_not_tried(tmp_path: Path) -> None:
    config = settings(tmp_path, {"optim.momentum": {"choice": [0.5, 0.9]}}, sampler="grid", extend=True)
    found, trial_log = trained(config, lambda p: p["optim.momentum"])
    assert len(found) == 2 and "1.6 is not accepted" in trial_log.notes[-1]


def test_tpe_and_tune_take_what_lies_beyond(tmp_path: Path) -> None:
    config = settings(tmp_path, RATES, num_trials=3, extend=True)
    sampler, trial_log = opened(config)
    tried = []
    while (given := sampler.suggest(f"t{len(tried)}")) != Searcher.FINISHED:
        rate = given["params"]["optim.lr"]
        trial_log.start(given["id"], given["params"])
        trial_log.epoch(given["id"], {"epoch": 1, "goal": rate, "lr": rate, "seconds": 1.0})
        trial_log.end(given["id"], "finished")
        sampler.on_trial_complete(f"t{len(tried)}", {SCORE: rate})
        tried.append(rate)
    assert len(tried) == 5 and tried[-2:] == [0.008, 0.016]


def test_a_search_may_go_without(tmp_path: Path) -> None:
    config = settings(tmp_path, RATES, sampler="grid", extend=False)
    assert len(trained(config, lambda p: p["optim.lr"])[0]) == 3


def test_a_kill_between_two_axes_loses_neither(tmp_path: Path) -> None:
    """Both are given out at once; the second had not begun."""
    space = {"optim.lr": {"choice": [0.001, 0.002]}, "optim.weight_decay": {"choice": [0.01, 0.02]}}
    config = settings(tmp_path, space, sampler="grid", extend=True)

    def score(params: dict[str, Any]) -> float:
        """The lowest decay is best at the highest of these rates."""
        return 1 - abs(params["optim.lr"] - 0.002) - params["optim.weight_decay"] / 1000

    def end(one: dict[str, Any], trial_log: TrialLog) -> None:
        trial_log.start(one["id"], one["params"])
        trial_log.epoch(one["id"], {"epoch": 1, "goal": score(one["params"]), "seconds": 1.0})
        trial_log.end(one["id"], "finished")

    sampler, trial_log = opened(config)
    for one in wave(sampler):
        end(one, trial_log)
    first, second = wave(sampler)
    assert first["params"] == {"optim.lr": 0.004, "optim.weight_decay": 0.01}
    end(first, trial_log)

    sampler, trial_log = opened(config)
    assert [one["params"] for one in wave(sampler)] == [second["params"]]


def test_a_value_that_the_space_has_got_since_is_no_longer_beyond_it(tmp_path: Path) -> None:
    config = settings(tmp_path, RATES, sampler="grid", extend=True)
    trained(config, lambda p: p["optim.lr"])
    wider = config.override({"search.space": {"optim.lr": {"choice": [0.001, 0.002, 0.004, 0.008]}}})
    sampler, trial_log = opened(wider)
    assert trial_log.extended == {"optim.lr": [0.016]}
    assert [one["params"]["optim.lr"] for one in wave(sampler)] == [0.032]


def test_what_is_tried_beyond_is_told_while_the_search_runs(tmp_path: Path) -> None:
    config = settings(tmp_path, RATES, sampler="grid", extend=True)
    told: list[dict[str, Any]] = []
    trained(config, lambda p: 1 - abs(p["optim.lr"] - 0.004), told.append)
    assert [event["kind"] for event in told] == ["note", "search_more"]
    assert told[0]["text"].endswith("0.008 is tried as well") and told[1]["trials"] == 1
