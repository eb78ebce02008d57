"""Candidates side by side: each fails, and goes on, for itself. See tests/contract/test_prefix.py, too."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.contract.test_prefix import here, settings  # noqa: F401  # batches made in this process
from tests.toys import dataset
from tlray import storage
from tlray.config import Config
from tlray.inference.significance import Evaluation
from tlray.models import weights
from tlray.search.features import PrefixBatches
from tlray.training import checkpoint, fit, loop, rundir
from tlray.training import run as training_run
from tlray.training.loop import Loop
from tlray.training.worker import LocalWorker


def trials(uri: str, folder: Path, **more: Any) -> list[Config]:
    rates = {"a": 1e-3, "b": 4e-3}
    return [settings(uri, folder, "classification", n, 2, lr, **more) for n, lr in rates.items()]


def silent(event: dict[str, Any]) -> None:
    pass


def test_one_that_fails_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = dataset(tmp_path / "data", train=20, validation=9)
    made = Loop(trials(uri, tmp_path), LocalWorker(1), silent, sparing=True)
    plain = made.runs[0].candidate.step

    def breaks(*args: Any, **kwargs: Any) -> torch.Tensor:
        if made.runs[0].now.step == 4:
            raise RuntimeError("no memory left")
        return plain(*args, **kwargs)

    monkeypatch.setattr(made.runs[0].candidate, "step", breaks)
    records = list(made.epochs())
    assert [sorted(one) for one in records] == [["a", "b"], ["b"]]
    assert "no memory left" in str(made.runs[0].error) and made.runs[1].error is None
    assert b"no memory left" in storage.read_bytes(str(tmp_path / "a" / rundir.ERROR))


def test_one_that_cannot_be_built_is_refused_alone(tmp_path: Path) -> None:
    uri = dataset(tmp_path / "data", train=20, validation=9)
    good, bad = trials(uri, tmp_path)
    made = Loop([bad.override({"model.freeze": 99}), good], LocalWorker(1), silent, sparing=True)
    assert [run.name for run in made.runs] == ["a"] and "99" in str(made.refused["b"])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_one_that_was_saved_later_waits_for_the_others(
    optimizer: str, channels_last: bool, tmp_path: Path
) -> None:
    """A kill between two checkpoints: both end as if it had not been, however weights lie in memory."""
    uri = dataset(tmp_path / "data", train=20, validation=9)
    more = {"optim.optimizer": optimizer, "train.channels_last": channels_last}
    whole = trials(uri, tmp_path / "whole", **more)
    for config in whole:
        list(loop.epochs(config, LocalWorker(1), silent))
    broken = trials(uri, tmp_path / "broken", **more)
    for _ in loop.epochs(broken[1], LocalWorker(1), silent):
        break  # b has an epoch behind it, a has none
    made = Loop(broken, LocalWorker(1), silent)
    assert [run.now.step for run in made.runs] == [0, 3]
    records = list(made.epochs())
    assert [sorted(one) for one in records] == [["a"], ["a", "b"]]
    for one, other in zip(whole, broken, strict=True):
        assert checkpoint.listing(one.run_uri) == checkpoint.listing(other.run_uri)
        last = Path("checkpoints", checkpoint.listing(one.run_uri)[-1])
        for file in ("best/weights.safetensors", last / "weights.safetensors", last / checkpoint.OPTIMIZER):
            ours, theirs = (load_file(Path(c.run_uri, file)) for c in (one, other))
            assert all(torch.equal(value, theirs[name]) for name, value in ours.items()), file


@pytest.mark.parametrize("channels_last", [False, True])
def test_those_that_begin_alike_are_built_once(
    channels_last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And share what is frozen in them, and nothing else; each begins as it does alone."""
    uri, built = dataset(tmp_path / "data", train=20, validation=9), []
    plain = weights.load
    monkeypatch.setattr(weights, "load", lambda *args: built.append(args) or plain(*args))
    more = {"train.channels_last": channels_last}
    configs = [
        settings(uri, tmp_path, "classification", f"t{i}", depth, 1e-3, **more)
        for i, depth in enumerate(("all", 0, 2, 2))
    ]
    configs[3] = configs[3].override({"model.drop_rate": 0.5})
    made = Loop(configs, LocalWorker(1), silent, sparing=True)
    assert len(built) == 1 and [run.model.freeze_depth for run in made.runs][1:] == [0, 2, 2]
    assert [run.model.backbone["kwargs"]["drop_rate"] for run in made.runs] == [0.1, 0.1, 0.1, 0.5]
    parameters = [dict(run.model.module.named_parameters()) for run in made.runs]
    for name in parameters[0]:
        of = [found[name] for found in parameters]
        where = [parameter.data_ptr() for parameter in of if not parameter.requires_grad]
        learn = [parameter.data_ptr() for parameter in of if parameter.requires_grad]
        assert len(set(where)) <= 1 and len({*learn, *where}) == len(learn) + len(set(where)), name
    assert any(len([p for p in parameters if not p[n].requires_grad]) == 3 for n in parameters[0])
    for run in made.runs:
        alone = Loop([run.config], LocalWorker(1), silent).runs[0].model.module
        assert [n for n, p in alone.named_parameters() if p.requires_grad] == [
            n for n, p in run.model.module.named_parameters() if p.requires_grad
        ]
        ours = run.model.module.state_dict()
        assert all(torch.equal(value, ours[name]) for name, value in alone.state_dict().items())
    assert len(built) == 5
    Loop([configs[0], configs[0].override({"name": "other", "seed": 1})], LocalWorker(1), silent)
    assert len(built) == 7


def closed(run: Any, *epochs: tuple[float, float]) -> None:
    """Let epochs end with these (accuracy, log loss), the weights counting them."""
    for accuracy, log_loss in epochs:
        run.now.step += run.steps_per_epoch
        with torch.no_grad():
            next(p for p in run.model.module.parameters() if p.requires_grad).fill_(len(run.now.history) + 1)
        found = {"accuracy": accuracy, "log_loss": log_loss}
        run.end_epoch(Evaluation(SimpleNamespace(compute=partial(dict, found)), []))


def test_of_equal_epochs_the_one_of_the_lower_log_loss_is_kept_and_told(tmp_path: Path) -> None:
    config = trials(dataset(tmp_path / "data", train=20, validation=9), tmp_path)[0]
    run = Loop([config], LocalWorker(1), silent).runs[0]
    closed(run, (0.8, 0.5), (0.8, 0.4), (0.8, 0.4), (0.7, 0.1))
    run.write_story()
    (kept, *_) = (run.best.weights[n] for n, p in run.model.module.named_parameters() if p.requires_grad)
    assert run.now.best_epoch == 2 and kept.flatten()[0] == 2
    assert fit.result(config)["metrics"]["val_log_loss"] == 0.4
    assert [record["tie"] for record in run.now.history] == [0.5, 0.4, 0.4, 0.4]


def test_a_best_epoch_of_before_there_were_ties_stays_the_best(tmp_path: Path) -> None:
    config = trials(dataset(tmp_path / "data", train=20, validation=9), tmp_path)[0]
    run = Loop([config], LocalWorker(1), silent).runs[0]
    run.now.best, run.now.best_epoch, run.now.best_metrics = 0.9, 1, None
    closed(run, (0.8, 0.1))
    assert (run.now.best, run.now.best_epoch) == (0.9, 1)
    closed(run, (0.9, 0.1))
    assert run.now.best_epoch == 2


def test_a_step_draws_what_manual_seed_gives() -> None:
    torch.manual_seed(int(np.random.SeedSequence((1, 2, 3)).generate_state(1)[0]))
    wanted = torch.rand(3)
    training_run._seed(1, 2, 3)
    assert torch.equal(torch.rand(3), wanted)


def test_weights_that_do_not_fit_leave_no_trace_and_end_one_alone(tmp_path: Path) -> None:
    """The first tensor is in the model already when the second cannot be loaded."""
    made = Loop(trials(dataset(tmp_path / "data", train=20, validation=9), tmp_path), LocalWorker(1), silent)
    run = made.runs[0]
    before = {name: value.clone() for name, value in run.model.module.state_dict().items()}
    first, second = list(before)[:2]
    foreign = {first: before[first] + 1, second: torch.zeros(1, 2, 3)}
    with pytest.raises(RuntimeError, match="size mismatch"), run.with_weights(foreign):
        pytest.fail("the block must not run")
    assert all(torch.equal(value, before[name]) for name, value in run.model.module.state_dict().items())


def test_an_average_that_cannot_be_tried_ends_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = dataset(tmp_path / "data", train=20, validation=9)
    made = Loop(trials(uri, tmp_path), LocalWorker(1), silent, sparing=True)
    plain = made.runs[0].with_weights

    def fails(weights: Any) -> Any:
        return plain({name: torch.zeros(1, 2, 3) for name in weights})

    monkeypatch.setattr(made.runs[0], "with_weights", fails)
    records = list(made.epochs())
    assert [sorted(one) for one in records] == [["a", "b"], ["b"]]
    assert "size mismatch" in str(made.runs[0].error) and made.runs[1].error is None
    assert "average" in records[-1]["b"]


def test_a_loop_that_has_ended_is_freed_at_once(tmp_path: Path) -> None:
    """With its models and batches: nothing of it holds it, so no garbage collection is waited for."""
    uri = dataset(tmp_path / "data", train=20, validation=9)
    made = Loop(trials(uri, tmp_path), LocalWorker(1), silent, PrefixBatches, sparing=True)
    gc.collect()
    gc.disable()
    try:
        list(made.epochs())
        modules = [run.model.module for run in made.runs]
        kept = [weakref.ref(thing) for thing in (made, made.batches, *made.runs, *modules)]
        del made, modules
        assert [ref() for ref in kept] == [None] * 6
    finally:
        gc.enable()
