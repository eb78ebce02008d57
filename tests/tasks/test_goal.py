"""Which of two results is better: by the goal, and on a tie by the lower log loss."""

from __future__ import annotations

import math

import pytest

from tlray.tasks.base import Goal

ACCURACY, LOSS = Goal("accuracy", "max"), Goal("log_loss", "min")
OLD = {"accuracy": 0.8, "log_loss": 0.5}


@pytest.mark.parametrize(
    ("accuracy", "log_loss", "wins"),
    [
        (0.81, 9.0, True),  # a better goal wins with any log loss
        (0.79, 0.1, False),
        (0.8, 0.49, True),
        (0.8, 0.5, False),  # the earlier one stays
        (0.8, math.nan, False),
        (math.nan, 0.1, False),
    ],
)
def test_of_equal_goals_the_lower_log_loss_decides(accuracy: float, log_loss: float, wins: bool) -> None:
    assert ACCURACY.beats({"accuracy": accuracy, "log_loss": log_loss}, OLD) == wins


def test_without_a_log_loss_the_earlier_one_stays() -> None:
    assert not Goal("map", "max").beats({"map": 0.5}, {"map": 0.5})
    assert Goal("map", "max").beats({"map": 0.5}, None)


def test_a_goal_may_want_to_be_low() -> None:
    assert LOSS.beats({"log_loss": 0.4}, OLD) and not LOSS.beats({"log_loss": 0.6}, OLD)
    assert not LOSS.beats({"log_loss": 0.5}, OLD)
