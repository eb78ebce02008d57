"""The range test: which rate it takes, that this trains, and that it is run where a rate would be a guess."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import toys
from tlray import search, storage
from tlray.config import Config
from tlray.data import loader
from tlray.data.dataset import Dataset
from tlray.data.sampler import Order
from tlray.models.backbone import traits
from tlray.training import fit, range_test, rundir
from tlray.training.candidate import Candidate
from tlray.training.range_test import STEPS, Point, choose

NO_NORMS = "test_nfnet"
Event = dict[str, Any]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toys.dataset(tmp_path_factory.mktemp("data") / "d", train=96, validation=6)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Steps this small take longer in several."""
    torch.set_num_threads(1)


def settings(uri: str, folder: Path, **changes: Any) -> Config:
    tree = {
        "data.uri": uri, "runs": str(folder), "input.size": 32,
        "model.backbone": NO_NORMS, "model.weights": "none", "train.batch_size": 16, "augment.policy": "none",
    }  # fmt: skip
    return Config().override({**tree, **changes})


def measured(config: Config) -> list[Point]:
    torch.manual_seed(config.seed)
    return range_test.measure(config, fit.check(config), lambda done, of: None)


def curve(*losses: float) -> list[Point]:
    return [Point(10 ** (-5 + n), loss) for n, loss in enumerate(losses)]


def test_the_rate_is_where_the_loss_falls_fastest() -> None:
    rates = [1e-5 * 1.17**n for n in range(STEPS)]

    def found(fastest: float, lowest: float) -> float | None:
        """Of a loss that falls as a logistic function of the rate's logarithm and rises after the lowest."""
        fall = [1 / (1 + (min(rate, lowest) / fastest) ** 2) for rate in rates]
        rise = [max(0.0, math.log(rate / lowest)) for rate in rates]
        return choose([Point(r, a + b) for r, a, b in zip(rates, fall, rise, strict=True)])

    assert found(0.002, 0.01) == pytest.approx(0.002, rel=0.2)
    assert found(0.0002, 0.01) == pytest.approx(0.001, rel=0.2)  # a tenth of the lowest one's
    assert found(0.02, 0.01) == pytest.approx(0.0033, rel=0.2)  # a third
    assert choose([Point(0.0123, 1.0), Point(0.0456, 0.2)]) == 0.012


def test_where_the_loss_does_not_fall_there_is_none() -> None:
    assert choose([]) is None
    assert choose(curve(1.0, 0.995, 2.0)) is None
    assert choose(curve(1.0)) is None


def test_families_whose_rates_are_known_and_others() -> None:
    kinds = {"vgg11": "other", NO_NORMS: "other", "resnet50_gn": "other", "poolformerv2_s12": "other"}
    kinds |= {"resnet10t-nano": "batch", "vgg11_bn": "batch", "test_vit": "layer", "convnext_atto": "layer"}
    assert {name: traits(name).norm for name in kinds} == kinds


def test_the_same_seed_gives_the_same_test(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_test, "STEPS", 6)
    config = fit.resolve_config(settings(uri, tmp_path, **{"model.drop_rate": 0.5}))
    points = measured(config)
    assert points == measured(config) != measured(config.override({"seed": 1}))
    assert points[0].rate == pytest.approx(range_test.LOW) and points[-1].rate <= range_test.HIGH * 1.01


def loss_after(config: Config, rate: float, steps: int = 48) -> float:
    """Of the last steps of a training of so many."""
    config = config.override({"optim.lr": rate, "train.soup": 0})
    torch.manual_seed(1)
    model, data = fit.check(config), Dataset.open(config.data.uri)
    order = Order(data.group_rows("train"), config.train.batch_size, 1)
    config = config.override({"train.epochs": steps // order.steps_per_epoch})
    source = loader.Source(config.data.uri, "train", model.task, tuple(model.labels), model.preprocess)
    candidate = Candidate(model, config, order.steps_per_epoch, torch.device("cpu"))
    candidate.train_mode()
    losses = []
    for step in range(steps):
        batch = loader.make_batch(source, data.fingerprint, 0, order.global_batch(step))
        losses.append(float(candidate.step(batch.x_BCHW, batch.targets, step, 1.0)))
    found = statistics.fmean(losses[-8:])
    return found if math.isfinite(found) else math.inf


def test_the_rate_found_trains_and_others_far_from_it_do_not(uri: str, tmp_path: Path) -> None:
    config = fit.resolve_config(settings(uri, tmp_path))
    rate = choose(measured(config))
    assert rate is not None
    found, high, low = (loss_after(config, rate * factor) for factor in (1, 1000, 1 / 100))
    assert found < 0.3 < 0.8 < min(high, low)  # log 3 is 1.1


def test_a_rate_that_would_be_a_guess_is_measured_once_and_kept(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[float] = []

    def measure(config: Config, model: Any, tell: Any) -> list[Point]:
        calls.append(config.optim.lr)
        tell(STEPS, STEPS)
        return curve(1.0, 0.9, 0.8, 0.5)

    monkeypatch.setattr(range_test, "measure", measure)
    told: list[Event] = []
    asked = settings(uri, tmp_path)
    found = fit.resolve_config(asked, emit=told.append)
    assert found.optim.lr == 0.001 and len(calls) == 1
    assert found.search.space["optim.lr"].choice == [0.0005, 0.001, 0.002]
    assert [event["kind"] for event in told] == ["range_test", "note"]
    assert told[-1]["text"] == (
        f"rate 0.001: found by a range test of {STEPS} steps, since no rate is known for networks "
        f"with norms like those of {NO_NORMS}"
    )
    assert fit.resolve_config(found, emit=told.append) == found
    assert fit.resolve_config(asked, emit=told.append) == found and len(calls) == 1  # as the run has it
    fit.resolve_config(asked.override({"augment.hflip": 0.1}), emit=told.append)
    assert len(calls) == 2  # another run

    for changes in ({"optim.lr": 0.5}, {"model.backbone": "resnet10t-nano"}):
        fit.resolve_config(asked.override(changes), emit=told.append)
    guess = fit.resolve_config(asked)  # nobody listens: a look at the configuration, no training
    assert len(calls) == 2 and guess.optim.lr != 0.001


def test_a_loss_that_does_not_fall_leaves_the_guess(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(range_test, "measure", lambda config, model, tell: curve(1.0, 1.0, 3.0))
    told: list[Event] = []
    asked = settings(uri, tmp_path)
    for _ in range(2):
        assert fit.resolve_config(asked, emit=told.append) == fit.resolve_config(asked)
    assert told[-1]["text"].startswith("rate 0.00") and "a guess, since" in told[-1]["text"]
    storage.write_bytes(str(tmp_path / "run" / rundir.RANGE_TEST), b"[")  # damaged
    fit.resolve_config(asked, emit=told.append)


@pytest.mark.parametrize(("space", "calls"), [
    ("auto", 1), ({"model.freeze": {"choice": [0, 1]}}, 1), ({"optim.lr": {"choice": [0.1, 0.2]}}, 0),
])  # fmt: skip
def test_a_search_measures_before_its_space_is_made_unless_trials_have_rates(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: Any, calls: int
) -> None:
    told: list[Event] = []
    monkeypatch.setattr(range_test, "measure", lambda config, model, tell: curve(1.0, 0.5, 0.4, 0.3))

    class Reached(Exception):
        pass

    def build(config: Config) -> Any:
        assert (config.optim.lr == 0.001) == bool(calls)
        raise Reached

    monkeypatch.setattr("tlray.search.tuner.spaces.build", build)
    with pytest.raises(Reached):
        search.tune(settings(uri, tmp_path, **{"search.space": space}), told.append)
    assert len(told) == calls
