from __future__ import annotations

from tlray.config.tree import flatten, within


def test_flatten() -> None:
    tree = {"optim": {"lr": 1, "betas": [1, 2]}, "task": {}, "search": {"space": {"optim.lr": {"low": 0}}}}
    assert flatten(tree) == {
        "optim.lr": 1, "optim.betas": [1, 2], "task": {}, "search.space.optim.lr.low": 0,
    }  # fmt: skip
    assert flatten({}) == {}


def test_within() -> None:
    assert within("train.epochs", ["data", "train"]) and within("seed", ["seed"])
    assert not within("training.epochs", ["train"]) and not within("train", ["train.epochs"])
