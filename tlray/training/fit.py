"""Training with Ray Train: the loop (loop.py) in as many workers as the configuration says."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Sequence
from typing import Any

import ray
import ray.train
import torch
import torch.distributed
from ray.train.torch import TorchTrainer

from tlray import errors, runtime, storage, tasks
from tlray.bundle import bundle
from tlray.bundle.bundle import Model
from tlray.config import Config, parse
from tlray.data.dataset import Dataset
from tlray.data.sampler import Order
from tlray.errors import DataError, RunError, StorageError, TlrayError
from tlray.observer import Emit
from tlray.tasks.base import TIE, Task
from tlray.training import defaults, range_test, resume
from tlray.training.build import initial_model
from tlray.training.loop import epochs
from tlray.training.rundir import BEST, CONFIG, ERROR, METRICS, RANGE_TEST, RAY, REFUSED

log = logging.getLogger(__name__)


class Member:
    """A worker of Ray Train, as `worker.Worker`."""

    def __init__(self, threads: int) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.threads = threads

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world
        if self.world == 1:
            return [value]
        torch.distributed.all_gather_object(values, value)
        return values


def resolve_config(config: Config, fresh: bool = False, emit: Emit | None = None) -> Config:
    """The configuration that training runs with: absolute places, and a value for every ``auto``.

    A run of this name that exists keeps its task settings, except with ``fresh``. With ``emit``, a learning
    rate that would be a guess is measured by a range test, whose events it gets. Raises TlrayError.
    """
    config = runtime.placed(config)
    if not fresh:
        config = resume.with_stored_task(config)
    head = config.model.head
    if head and config.model.weights == "builtin" and storage.exists(storage.join(head, bundle.MANIFEST)):
        # A bundle's head goes with its backbone.
        config = config.override({"model.weights": storage.join(head, bundle.WEIGHTS)})
    resolved = defaults.resolve_auto(config)
    if emit is None or not config.data.uri or not defaults.is_guess(config):
        return resolved
    rate = _measured_rate(resolved, emit)
    if rate is None:
        return resolved
    return defaults.resolve_auto(config.override({"optim.lr": rate}, "range test"))


def _measured_rate(config: Config, emit: Emit) -> float | None:
    """The learning rate of a range test, None where the test found none.

    The outcome is kept in the run's folder and used again, since another machine may find another rate by a
    rounding error.
    """
    place, run, name = storage.join(config.run_uri, RANGE_TEST), config.run_uri, config.model.backbone
    inputs = range_test.inputs(config, Dataset.open(config.data.uri).fingerprint)
    try:
        stored = storage.read_json(place) if storage.exists(place) else {}
    except StorageError:  # damaged
        stored = {}
    if not isinstance(stored, dict) or stored.get("asked") != inputs:
        torch.set_num_threads(runtime.cores())
        cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(config.seed)
            model = check(config)
            try:
                points = range_test.measure(
                    config, model,
                    lambda done, of: emit({"kind": "range_test", "run": run, "done": done, "of": of}),
                )  # fmt: skip
            except torch.cuda.OutOfMemoryError as error:
                raise RunError(_too_large(config)) from error
        del model
        if cuda:
            torch.cuda.empty_cache()  # workers need the memory now
        stored = {"asked": inputs, "rate": range_test.choose(points), "points": points}
        storage.write_json(place, stored)
    rate: float | None = stored["rate"]
    why = f"no rate is known for networks with norms like those of {name}"
    if rate is None:
        text = f"rate {config.optim.lr:g}: a guess, since {why} and the loss did not fall in a range test"
    else:
        text = f"rate {rate:g}: found by a range test of {range_test.STEPS} steps, since {why}"
    emit({"kind": "note", "run": run, "text": text})
    return rate


def _too_large(config: Config) -> str:
    return (
        f"train.batch_size = {config.train.batch_size} with {config.model.backbone} at "
        f"{config.input.size or 'its own'} px: does not fit into GPU memory; accepted: a smaller batch"
    )


def check(config: Config) -> Model:
    """Check on the driver all that can be wrong before training starts; the model it would start with.

    ``config``: as `resolve_config` gives it. Raises TlrayError.
    """
    uri = config.data.required_uri()
    task = tasks.load(config.task)
    tasks.check_augment(task, config.augment)
    data = Dataset.open(uri)
    labels = tasks.labels_of(task, data)
    for key in ("train_split", "validation_split"):
        split = getattr(config.data, key)
        if not data.num_rows(split):
            raise DataError(
                f"data.{key} = {split!r}: {data.uri} has no rows in it; accepted: a split with rows"
            )
        tasks.check_split(task, data, split)
    _check_goal(config, task, data, labels)
    Order(
        data.group_rows(config.data.train_split),
        config.train.batch_size,
        config.seed,
        config.scale.num_workers,
    )
    return initial_model(config, data)


def _check_goal(config: Config, task: Task, data: Dataset, labels: list[str]) -> None:
    """Raise DataError where the goal has no value for the labels of the validation split."""
    split, columns = config.data.validation_split, list(task.columns)
    data.require(columns)
    groups = range(len(data.group_rows(split)))
    reason = task.unmeasurable((data.read_group(split, i, columns) for i in groups), labels)
    if reason is not None:
        raise DataError(
            f"data.validation_split = {split!r} ({data.uri}): {reason}; {task.goal.name}, which decides, has "
            "no value there; accepted: a split where it has one (see `tlray ingest --validation`)"
        )


def fit(
    config: Config,
    emit: Emit | None = None,
    callbacks: Sequence[Any] = (),
    fresh: bool = False,
    checked: bool = False,
) -> dict[str, Any]:
    """Train with ``config.scale`` workers of Ray Train, and wait for the end; see `result`.

    ``fresh``: delete the run of this name first, once everything is checked. ``callbacks``: each a
    ray.train.UserCallback, called in Ray Train's controller. ``checked``: the configuration is that of
    `resolve_config` and has passed `check`. Lost workers are replaced up to ``scale.max_failures`` times, and
    go on from the newest checkpoint. Raises TlrayError; RunError where the workers died for good.
    """
    if not checked:
        config = resolve_config(config, fresh, emit or _silent)
        check(config)
    need = runtime.resources(config.scale)
    if fresh:
        resume.clear(config)
    storage.delete(storage.join(config.run_uri, REFUSED))
    storage.write_json(storage.join(config.run_uri, CONFIG), config.model_dump(mode="json"))
    filesystem, path = storage.open_fs(storage.join(config.run_uri, RAY))
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "threads": need.cpus_per_worker,
            "emit": emit or _silent,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.scale.num_workers,
            use_gpu=need.gpus_per_worker > 0,
            resources_per_worker={"CPU": need.cpus_per_worker, **_gpu(need.gpus_per_worker)},
        ),
        # A run continues from our checkpoints and never from Ray's state, so each start has a new state.
        run_config=ray.train.RunConfig(
            name=f"start-{time.time_ns()}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=config.scale.max_failures),
            callbacks=list(callbacks),
        ),
    )  # fmt: skip
    try:
        trainer.fit()
    except Exception as error:  # Ray wraps every error of a worker
        raise _explain(config, error) from error
    finally:
        storage.delete(storage.join(config.run_uri, RAY))
    refusal = storage.join(config.run_uri, REFUSED)
    if storage.exists(refusal):
        mistake = storage.read_json(refusal)
        raise getattr(errors, mistake["error"], TlrayError)(mistake["message"])
    return result(config)


def result(config: Config) -> dict[str, Any]:
    """The result of a finished run: its bundle, the metrics of the best epoch, epochs, steps, seconds.

    Where the goal had no value in any epoch, the metrics are those of the last one, and ``note`` says so.
    """
    story = storage.read_json(storage.join(config.run_uri, METRICS))["epochs"]
    if not story:
        raise RunError(f"{config.run_uri}: ended without an epoch; the same with --fresh begins anew")
    last = story[-1]
    best_epochs = [r for r in story if r["best"] is not None and r["goal"] == last["best"]]
    equal_tie = [r for r in best_epochs if r.get(f"val_{TIE}") == last.get("tie")]
    best = next(iter(equal_tie or best_epochs), None)
    average = last.get("average", {})
    if average.get("kept"):
        best = last | average
    summary = {
        "run": config.run_uri,
        "bundle": storage.join(config.run_uri, BEST),
        "metrics": {k: v for k, v in (best or last).items() if k.startswith("val_") or k == "train_loss"},
        "epochs": len(story),
        "steps": last["step"],
        "seconds": last["seconds"],
    }
    if best is None:
        goal = tasks.load(config.task).goal.name
        summary["note"] = f"no epoch had a value of {goal}: the weights of the last one are kept, unverified"
    return summary


def _silent(event: dict[str, Any]) -> None:
    """In place of an ``emit`` that was not given."""


def _gpu(number: float) -> dict[str, float]:
    return {"GPU": number} if number else {}


def _work(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    config = parse(settings["config"], "run")
    refusal = storage.join(config.run_uri, REFUSED)
    if storage.exists(refusal):  # Ray restarts workers after any error, and this one would come again
        return
    try:
        for record in epochs(config, Member(settings["threads"]), settings["emit"]):
            ray.train.report({k: v for k, v in record.items() if v is not None})
    except torch.cuda.OutOfMemoryError as error:
        message = _too_large(config)
        storage.write_json(refusal, {"error": "RunError", "message": message})
        raise RunError(message) from error
    except TlrayError as error:
        storage.write_json(refusal, {"error": type(error).__name__, "message": str(error)})
        raise


def _explain(config: Config, error: BaseException) -> TlrayError:
    """The user's mistake within the exception of Ray, or one line that names model and settings."""
    chain: list[BaseException] = [error]
    for link in chain:
        if isinstance(link, TlrayError):
            return link
        inner = [
            link.__cause__,
            getattr(link, "cause", None),
            *getattr(link, "worker_failures", {}).values(),
        ]
        chain += [e for e in inner if isinstance(e, BaseException) and e not in chain]
    tracebacks = "\n".join("".join(traceback.format_exception(link)) for link in chain)
    place = storage.join(config.run_uri, ERROR)
    with contextlib.suppress(StorageError):  # the message below matters more
        storage.write_bytes(place, tracebacks.encode(errors="backslashreplace"))
    reason = str(chain[-1]).strip().splitlines()[-1:] or [type(chain[-1]).__name__]
    return RunError(
        f"{config.run_uri}: workers died more than scale.max_failures = {config.scale.max_failures} times "
        f"with model.backbone = {config.model.backbone}, precision = {config.train.precision}, "
        f"channels_last = {config.train.channels_last}, batch_size = {config.train.batch_size}: "
        f"{reason[0][:200]}; the whole traceback is in {place}"
    )
