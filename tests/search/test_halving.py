"""Who stops at a rung."""

from __future__ import annotations

import math

from tlray.config import Config, Search
from tlray.search import space as spaces
from tlray.search.halving import SuccessiveHalving
from tlray.search.searcher import default_trial
from tlray.search.space import trial_id
from tlray.tasks.base import Goal

MAX, MIN = Goal("accuracy", "max"), Goal("loss", "min")


def rungs(goal: Goal = MAX, **settings: object) -> SuccessiveHalving:
    return SuccessiveHalving(
        Search.model_validate({"grace_epochs": 2, "reduction_factor": 3, **settings}), goal, 20
    )


def test_those_that_arrive_together_are_judged_together() -> None:
    scores = {f"t{n}": n / 10 for n in range(6)}
    for order in (scores, dict(reversed(scores.items()))):
        judge = rungs()
        assert judge.judge(1, order) == set()
        assert judge.judge(2, order) == {"t0", "t1", "t2", "t3"}
        assert judge.judge(3, {k: order[k] for k in ("t4", "t5")}) == set()
        assert judge.judge(6, {k: order[k] for k in ("t4", "t5")}) == {"t4"}


def test_later_ones_are_judged_beside_earlier_ones() -> None:
    judge = rungs()
    judge.judge(2, {"a": 0.9, "b": 0.8, "c": 0.1})
    assert judge.judge(2, {"d": 0.85, "e": 0.95, "f": 0.2}) == {"d", "f"}


def test_lower_may_be_better_and_nothing_is_worst() -> None:
    assert rungs(MIN).judge(2, {"a": 0.1, "b": 0.2, "c": math.nan, "d": None}) == {"b", "c", "d"}
    assert rungs().judge(2, {"a": math.nan}) == set()


def test_equals_go_on_together_or_not_at_all() -> None:
    assert rungs().judge(2, dict.fromkeys("abcdef", 0.5)) == set()
    assert rungs().judge(2, {"a": 0.9, **dict.fromkeys("bcdef", 0.5)}) == set("bcdef")
    assert rungs().judge(2, {**dict.fromkeys("ab", 0.9), **dict.fromkeys("cdef", 0.5)}) == set("cdef")


def test_without_asha_all_stay() -> None:
    assert rungs(scheduler="none").judge(2, {"a": 1.0, "b": 0.0}) == set()


def test_the_trial_with_the_settings_of_a_plain_training_is_never_stopped() -> None:
    config = Config().override({"optim.lr": 0.01, "search.space": {"optim.lr": {"choice": [0.1, 0.01]}}})
    assert default_trial(config, spaces.build(config)) == {"optim.lr": 0.01}
    id_ = trial_id({"optim.lr": 0.01})
    judge = SuccessiveHalving(config.search.model_copy(update={"grace_epochs": 2}), MAX, 20, id_)
    assert judge.judge(2, {"a": 0.9, "b": 0.5, id_: 0.1}) == {"b"}
    other = config.override({"optim.lr": 0.03})
    assert default_trial(other, spaces.build(other)) is None
