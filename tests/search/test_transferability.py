"""Scores of frozen features: they find the features that tell classes apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.toys import dataset, scenes_dataset
from tlray import config, tasks
from tlray.errors import ConfigError, DataError
from tlray.search.transferability import judge, logme, rank

RNG = np.random.default_rng(0)
Y = np.eye(4, dtype=bool)[np.arange(200) % 4]


def features(signal: float) -> np.ndarray:
    return RNG.normal(size=(200, 20)) + signal * Y @ RNG.normal(size=(4, 20))


def test_more_signal_scores_higher_and_noise_scores_chance() -> None:
    noise, weak, strong = (features(s) for s in (0.0, 0.7, 3.0))
    scores = [(*judge(x, Y), logme(x, Y)) for x in (noise, weak, strong)]
    for measure in range(3):
        assert scores[0][measure] < scores[1][measure] < scores[2][measure]
    assert abs(scores[0][0] - 0.25) < 0.12 and abs(scores[0][1] - 0.25) < 0.12
    assert scores[2][0] > 0.95 and scores[2][1] > 0.95


def test_labels_with_too_few_pictures_are_told() -> None:
    y = np.zeros((60, 3), bool)
    y[:30, 0], y[30:59, 1], y[59, 2] = True, True, True
    with pytest.raises(DataError, match="too few pictures of some labels"):
        judge(features(1.0)[:60], y)
    one = Y.copy()
    one[4:, 3], one[4:, 0] = False, one[4:, 0] | one[4:, 3]
    assert judge(features(3.0), one)[1] > 0.9


def test_several_classes_a_picture() -> None:
    many = Y | np.roll(Y, 1, axis=0)
    knn, linear = judge(features(0.0) + 4 * many @ RNG.normal(size=(4, 20)), many)
    assert knn > 0.9 and linear > 0.9


def test_logme_equals_the_evidence_by_its_definition() -> None:
    """Against the log density of a Gaussian with covariance 1/beta + F F^T / alpha at the optimum."""
    x, y = features(1.0), Y[:, :1]
    n = len(x)
    power, axes = np.linalg.eigh(x @ x.T)  # makes each covariance diagonal
    turned, best = axes.T @ y[:, 0], -np.inf
    for alpha in np.logspace(-1, 3, 41):
        for beta in np.logspace(-1, 3, 41):
            variance = power.clip(0) / alpha + 1 / beta
            fit = (turned**2 / variance).sum()
            best = max(best, -(n * np.log(2 * np.pi) + np.log(variance).sum() + fit) / 2)
    assert logme(x, y) == pytest.approx(best / n, abs=2e-3)


@pytest.mark.parametrize("task", tasks.names())
def test_every_kind_of_label_can_be_ranked(task: str, tmp_path: Path) -> None:
    uri = scenes_dataset(tmp_path / "data", tasks.load({"name": task}).columns, train=40)
    tree = {"task": {"name": task}, "data": {"uri": uri}, "input": {"size": 64}}
    told: list[tuple[str, int, int]] = []
    scores = rank(config.parse(tree, "test"), ["resnet10t-nano"], 30, lambda *args: told.append(args))
    assert told[-1] == ("resnet10t-nano", 30, 30)
    assert [s.linear for s in scores] == sorted((s.linear for s in scores), reverse=True)
    assert {s.stage for s in scores} >= {"stem", "pooled"}
    assert all(np.isfinite([s.knn, s.linear, s.logme]).all() for s in scores)


def test_pretrained_features_beat_random_ones(tmp_path: Path) -> None:
    uri = dataset(tmp_path / "data", train=60)
    tree = {"data": {"uri": uri}, "input": {"size": 64}, "model": {"weights": "none"}}
    scores = rank(config.parse(tree, "test"), ["resnet10t-nano", "test_vit"], 60)
    best = {s.backbone: s.linear for s in reversed(scores)}  # sorted: the last one to be written is the best
    assert best["resnet10t-nano"] >= best["test_vit"] and best["resnet10t-nano"] > 0.8
    with pytest.raises(ConfigError, match="resnet51"):
        rank(config.parse(tree, "test"), ["resnet51"])
