"""Exact linear probes: the fit beside scikit-learn's, odd features and labels, the head that comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tlray import tasks
from tlray.bundle.bundle import Model
from tlray.config import Config, parse
from tlray.models.backbone import POOLED, Backbone, Features
from tlray.observer.display import probe_line
from tlray.search import probe
from tlray.search.probe import Labels, Linear, drawn, fit, held_out
from tlray.search.transferability import features_by_stage
from tlray.training.build import build_model

C, D = 3, 6


def drawn_features(num_rows: int, seed: int = 0) -> tuple[torch.Tensor, Labels]:
    """Classes that overlap, over features of very different scales and means."""
    rng = np.random.default_rng(seed)
    label_N = np.arange(num_rows) % C
    x_ND = rng.normal(size=(num_rows, D)) + rng.normal(size=(C, D))[label_N]
    x_ND = x_ND * 10.0 ** np.arange(-3, D - 3) + rng.normal(size=D) * 5
    return torch.tensor(x_ND, dtype=torch.float32), Labels(torch.eye(C)[label_N], True)


def accuracy(linear: Linear, x_ND: torch.Tensor, labels: Labels) -> float:
    return float((linear(x_ND).argmax(1) == labels.shown_NC.argmax(1)).float().mean())


def held(labels: Labels) -> torch.Tensor:
    return torch.from_numpy(held_out(labels.shown_NC.numpy() > 0, 0))


@pytest.mark.parametrize("l2", [0.3, 1e-3])
def test_the_fit_is_scikit_learns(l2: float) -> None:
    from sklearn.linear_model import LogisticRegression

    x_ND, labels = drawn_features(120)
    x_ND = (x_ND - x_ND.mean(0)) / x_ND.std(0)
    ours = fit(x_ND, labels, l2)
    theirs = LogisticRegression(C=1 / (l2 * len(x_ND)), tol=1e-8, max_iter=1000)
    theirs.fit(x_ND.numpy(), labels.shown_NC.argmax(1).numpy())
    # A softmax does not change with what is added to all logits.
    np.testing.assert_allclose(ours.weight_CD, theirs.coef_, atol=2e-3)
    bias_C = ours.bias_C - ours.bias_C.mean()
    np.testing.assert_allclose(bias_C, theirs.intercept_ - theirs.intercept_.mean(), atol=2e-3)
    # Several labels: each class is a regression of its own.
    several = Labels((labels.shown_NC + labels.shown_NC.roll(1, 1)).clamp(max=1), False)
    ours = fit(x_ND, several, l2)
    for c in range(C):
        theirs = LogisticRegression(C=1 / (l2 * len(x_ND)), tol=1e-8, max_iter=1000)
        theirs.fit(x_ND.numpy(), several.shown_NC[:, c].numpy())
        np.testing.assert_allclose(ours.weight_CD[c], theirs.coef_[0], atol=2e-3)


def test_folded_it_takes_raw_features() -> None:
    x_ND, labels = drawn_features(120)
    found = probe.probe(x_ND, labels, held(labels))
    z_ND = (x_ND - x_ND.mean(0)) / x_ND.std(0, correction=0)
    standard = fit(z_ND, labels, found.l2)
    torch.testing.assert_close(found.linear(x_ND), standard(z_ND), atol=2e-2, rtol=1e-2)
    assert found.l2 in probe.STRENGTHS and found.loss > 0


def test_strength_is_chosen_by_what_is_held_out() -> None:
    """Noise wants the strongest; what can be parted without a mistake wants weak ones."""
    torch.manual_seed(0)
    x_ND, labels = torch.randn(60, 40), Labels(torch.eye(2)[torch.arange(60) % 2], True)
    noise = probe.probe(x_ND, labels, held(labels))
    x_ND[:, 0] = 3 * (torch.arange(60) % 2)
    parted = probe.probe(x_ND, labels, held(labels))
    assert noise.l2 >= 0.1 and parted.l2 <= 0.01 and parted.loss < 0.2
    assert accuracy(parted.linear, x_ND, labels) == 1


def test_features_that_say_nothing_and_more_features_than_rows() -> None:
    x_ND, labels = drawn_features(30)
    constant_ND = torch.full((30, 2), 1000.1)  # its mean in float32 is another number
    wide_ND = torch.cat([x_ND, constant_ND, torch.zeros(30, 1), torch.randn(30, 200)], dim=1)
    found = probe.probe(wide_ND, labels, held(labels)).linear
    assert torch.isfinite(found.weight_CD).all() and torch.isfinite(found.bias_C).all()
    assert float(found.weight_CD[:, D : D + 3].abs().max()) == 0
    assert accuracy(found, wide_ND, labels) > 0.8


def test_a_class_with_one_picture_or_none_is_in_nobodys_way() -> None:
    x_ND, labels = drawn_features(40)
    shown_NC = torch.cat([labels.shown_NC, torch.zeros(40, 2)], dim=1)
    shown_NC[7] = torch.eye(C + 2)[C]
    x_ND[7] += 50
    labels = Labels(shown_NC, True)
    assert not held(labels)[7]
    found = probe.probe(x_ND, labels, held(labels)).linear
    assert int(found(x_ND[7:8]).argmax()) == C
    assert C + 1 not in found(x_ND).argmax(1).tolist()


def test_weights_of_classes_count() -> None:
    x_ND, labels = torch.zeros(40, 1), Labels(torch.eye(2)[torch.arange(40) // 30], True)
    plain = fit(x_ND, labels, 1.0).bias_C.softmax(0)
    torch.testing.assert_close(plain, torch.tensor([0.75, 0.25]), atol=1e-3, rtol=0)
    weighed = Labels(labels.shown_NC, True, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(fit(x_ND, weighed, 1.0).bias_C.softmax(0), torch.full((2,), 0.5))


def test_a_fifth_of_each_class_is_held_out() -> None:
    label_N = np.repeat([0, 1, 2, 3], [50, 3, 1, 10])
    chosen_N = held_out(np.eye(4, dtype=bool)[label_N], seed=1)
    assert np.bincount(label_N[chosen_N], minlength=4).tolist() == [10, 1, 0, 2]
    # Of several classes a row counts to its rarest; rows of none are held out as well.
    shown_NC = np.zeros((60, 2), bool)
    shown_NC[:40, 0], shown_NC[:5, 1] = True, True
    chosen_N = held_out(shown_NC, seed=1)
    assert [chosen_N[:5].sum(), chosen_N[5:40].sum(), chosen_N[40:].sum()] == [1, 7, 4]


def test_rows_are_drawn_by_class() -> None:
    label_N = np.repeat([0, 1, 2], [900, 99, 1])
    shown_NC = np.eye(3, dtype=bool)[label_N]
    rows = drawn(shown_NC, 100, seed=0)
    assert np.bincount(label_N[rows]).tolist() == [90, 9, 1]
    assert rows.tolist() == sorted(set(rows)) == drawn(shown_NC, 100, seed=0).tolist()
    assert drawn(shown_NC, 1000, seed=0).tolist() == list(range(1000))


def model(task: dict[str, Any], head: str | None = None) -> tuple[Config, Model]:
    config = parse({"task": task, "input": {"size": 32}, "model": {"freeze": "all", "head": head}}, "test")
    return config, build_model(config, tasks.load(config.task), ["a", "b", "c"], None, "f")


def test_the_head_is_the_models_own(tmp_path: Path) -> None:
    _, built = model({"name": "classification"})
    head = probe.head_of(built)
    assert head is not None
    head.weight.data.normal_()
    save_file({"head.weight": head.weight.data, "head.bias": head.bias.data}, tmp_path / "h.safetensors")
    _, again = model({"name": "classification"}, str(tmp_path / "h.safetensors"))
    x_BD = torch.randn(4, head.in_features)
    built.module.eval(), again.module.eval()
    features = Features({}, x_BD, torch.Size((4, 3, 32, 32)))
    assert torch.equal(again.module(features), head(x_BD))


@pytest.mark.parametrize("name", tasks.names())
def test_only_plain_classifiers_are_probed(name: str) -> None:
    _, built = model({"name": name})
    assert (probe.head_of(built) is not None) == (name in ("classification", "multilabel"))


def test_few_pictures_begin_with_the_probes_head() -> None:
    config = parse({"name": "s", "runs": "r"}, "test")

    def begun(pictures: float, asked: Any = "auto", own: str | None = None, **params: Any) -> str | None:
        row = {"id": "probe", "params": {"model.freeze": "all"}, "pictures_a_class": pictures}
        changes = {"search.start_with_probe": asked, "model.head": own}
        named = {key.replace("__", "."): value for key, value in params.items()}
        return probe.start(config.override(changes), [row], named)

    place = "r/s/trials/probe/head.safetensors"
    assert begun(49) == place and begun(50) is None
    assert begun(50, True) == place and begun(49, False) is None
    assert begun(49, own="h.safetensors") is None and begun(49, model__head="h.safetensors") is None
    assert begun(49, optim__lr=0.1, model__freeze=2) == place
    assert begun(49, model__backbone="resnet18") is None and begun(49, input__size=64) is None
    assert probe.start(config, [], {}) is None


def test_features_at_every_stage_come_of_one_pass() -> None:
    backbone = Backbone("resnet10t-nano", "builtin", size=32).eval()
    backbone.freeze("all")
    x_BCHW = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    found = features_by_stage(backbone, x_BCHW)
    with torch.no_grad():
        maps = backbone.pyramid(x_BCHW)
        assert torch.equal(found[POOLED], backbone.pooled(x_BCHW))
    assert list(found) == [*backbone.stages, POOLED]
    for x_BCHW, stage in zip(maps, backbone.stages, strict=True):
        assert torch.equal(found[stage], x_BCHW.mean(dim=(2, 3)))


def test_it_is_told_in_a_line() -> None:
    places = [{"place": "pooled", "value": 0.6}, {"place": probe.TOGETHER, "value": 0.64}]
    row = {
        "goal_name": "accuracy", "params": {"model.freeze": "all"}, "best": 0.6, "seconds": 3.2,
        "places": places, "told": probe.TOGETHER,
    }  # fmt: skip
    assert probe_line(row) == (
        "probe of frozen features: accuracy 0.6400 (all stages pooled together); as a model, over the "
        "pooled features, 0.6000, 3 s"
    )
    row |= {"params": {"model.freeze": "all", "model.backbone": "resnet18"}, "told": "pooled"}
    assert probe_line(row) == "probe of frozen features (backbone=resnet18): accuracy 0.6000 (pooled), 3 s"
