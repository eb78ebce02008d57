"""The search space: what is accepted, what a proposal becomes, and which trial it is."""

from __future__ import annotations

import pytest

from tlray.config import Config, parse
from tlray.errors import ConfigError
from tlray.search import space as spaces


def build(space: dict, **search: object) -> spaces.Space:
    return spaces.build(parse({"search": {"space": space, **search}}, "test"))


def refused(space: dict, **search: object) -> str:
    with pytest.raises(ConfigError) as error:
        build(space, **search)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unknown_key_names_the_nearest() -> None:
    assert "did you mean 'lr'" in refused({"optim.lrr": {"choice": [0.1]}})


def test_every_choice_has_to_be_accepted_by_its_key() -> None:
    said = refused({"optim.lr": {"choice": [0.1, -0.1]}})
    assert "-0.1" in said and "greater than 0" in said


def test_both_ends_of_a_range_have_to_be_accepted() -> None:
    assert "2.0" in refused({"model.drop_rate": {"low": 0, "high": 2}})


def test_settings_of_the_task_are_checked_by_the_task() -> None:
    assert "task" in refused({"task.no_such": {"choice": [1]}})


@pytest.mark.parametrize(
    "key",
    ["name", "search.sampler", "scale.num_workers", "data.uri", "data.validation_split", "task.goal"],
)
def test_what_all_trials_share_is_no_axis(key: str) -> None:
    assert "same for all trials" in refused({key: {"choice": [1]}})


def test_a_group_is_no_key() -> None:
    assert "group" in refused({"optim": {"choice": [{"lr": 0.1}]}})


def test_a_choice_twice_is_refused_but_zero_and_false_differ() -> None:
    assert "twice" in refused({"optim.lr": {"choice": [0.01, "1e-2"]}})
    assert build({"model.freeze": {"choice": [0, 0.0, "all"]}}).size == 3


def test_grid_is_the_whole_product_and_wants_an_end() -> None:
    axes = {"optim.lr": {"choice": [0.1, 0.2]}, "model.freeze": {"choice": ["all", 0]}}
    space = build(axes, sampler="grid")
    grid = list(space.product())
    assert len(grid) == space.size == 4 and {"optim.lr": 0.2, "model.freeze": "all"} in grid
    assert "grid" in refused({"optim.lr": {"low": 0.1, "high": 1}}, sampler="grid")


def test_a_log_range_stays_above_zero() -> None:
    assert "above 0" in refused({"optim.weight_decay": {"low": 0, "high": 1, "log": True}})


def test_a_range_of_a_count_proposes_whole_numbers() -> None:
    space = build({"train.batch_size": {"low": 16, "high": 64}, "optim.lr": {"low": 1, "high": 2}})
    params = space.decode({"train.batch_size": 32, "optim.lr": 1.23456789})
    assert params == {"train.batch_size": 32, "optim.lr": 1.235}
    assert isinstance(params["train.batch_size"], int)


def test_encode_undoes_decode_and_tells_what_lies_outside() -> None:
    scales = {"choice": [[0.3, 1.0], [0.5, 1.0]]}
    space = build({"augment.scale": scales, "optim.lr": {"low": 0.01, "high": 0.1}})
    raw = {"augment.scale": 1, "optim.lr": 0.05}
    params = space.decode(raw)
    assert params["augment.scale"] == [0.5, 1.0] and space.encode(params) == raw
    assert space.encode({**params, "optim.lr": 0.5}) is None
    assert space.encode({"optim.lr": 0.05}) is None
    assert Config().override(params).augment.scale == (0.5, 1.0)


def test_a_trial_is_its_settings() -> None:
    one = spaces.trial_id({"a": 1, "b": [2]})
    assert one == spaces.trial_id({"b": [2], "a": 1}) != spaces.trial_id({"a": 1.0, "b": [2]})
