"""Training through Ray Train: the loop (loop.py) in as many workers as the configuration asks for."""

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
from tlray.training.rundir import BEST, CONFIG, ERROR, METRICS, REFUSED

log = logging.getLogger(__name__)


class Member:
    """A worker of a Ray Train group."""

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


def settled(config: Config, fresh: bool = False, emit: Emit | None = None) -> Config:
    """The configuration as training takes it: places that all workers find, a value for every ``auto``.

    ``fresh``: whatever the run of this name began with. ``emit``: gets what is told of a range test, which is
    run with it alone, where the learning rate would be a guess. Raises TlrayError.
    """
    config = runtime.placed(config)
    if not fresh:
        config = resume.as_begun(config)
    head = config.model.head
    if head and config.model.weights == "builtin" and storage.exists(storage.join(head, bundle.MANIFEST)):
        # A bundle's head goes with its backbone.
        config = config.override({"model.weights": storage.join(head, bundle.WEIGHTS)})
    done = defaults.settle(config)
    if emit is None or not config.data.uri or not defaults.is_guess(config):
        return done
    rate = _measured(done, emit)
    return done if rate is None else defaults.settle(config.override({"optim.lr": rate}, "range test"))


def _measured(config: Config, emit: Emit) -> float | None:
    """The rate that a range test finds, or found when the same run was started before; None: it found none.

    What it found stays in the run's folder: another machine may come to another rate by a rounding error.
    """
    place, run, name = storage.join(config.run_uri, range_test.FILE), config.run_uri, config.model.backbone
    asked = range_test.asked(config, Dataset.open(config.data.uri).fingerprint)
    try:
        known = storage.read_json(place) if storage.exists(place) else {}
    except StorageError:  # damaged
        known = {}
    if not isinstance(known, dict) or known.get("asked") != asked:
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
            torch.cuda.empty_cache()  # which workers need now
        known = {"asked": asked, "rate": range_test.choose(points), "points": points}
        storage.write_json(place, known)
    rate: float | None = known["rate"]
    why = f"the norms of {name} are none of those whose rates are known"
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
    """Everything that can be wrong before training starts, found on the driver; the model as it would begin.

    Of a configuration that is `settled`. Raises TlrayError.
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
    """Raise DataError where the labels of the validation split give the goal no value."""
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
    config: Config, emit: Emit | None = None, callbacks: Sequence[Any] = (), fresh: bool = False
) -> dict[str, Any]:
    """Train through Ray Train with ``config.scale`` workers; the run's result. Blocks.

    ``fresh``: what the run of this name left is deleted first, once everything else was checked.
    ``callbacks``: of ray.train.UserCallback, they run in Ray Train's controller. Lost workers are replaced
    up to ``scale.max_failures`` times and go on from the newest checkpoint.
    Raises TlrayError, RunError where the workers died for good.
    """
    config = settled(config, fresh, emit or _silent)
    check(config)
    need = runtime.resources(config.scale)
    if fresh:
        resume.clear(config)
    storage.delete(storage.join(config.run_uri, REFUSED))
    storage.write_json(storage.join(config.run_uri, CONFIG), config.model_dump(mode="json"))
    filesystem, path = storage.open_fs(storage.join(config.run_uri, "ray"))
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
        # A run does not resume from Ray's own state of it (but by checkpoint.py): each start has its own.
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
    except Exception as error:  # Ray wraps whatever happened in a worker
        raise _explain(config, error) from error
    finally:
        storage.delete(storage.join(config.run_uri, "ray"))
    refusal = storage.join(config.run_uri, REFUSED)
    if storage.exists(refusal):
        told = storage.read_json(refusal)
        raise getattr(errors, told["error"], TlrayError)(told["message"])
    return result(config)


def result(config: Config) -> dict[str, Any]:
    """What a finished run came to: its bundle, the metrics of the best epoch, epochs, steps, seconds.

    Where no epoch had a value of the goal, the last one's, and ``note`` says so.
    """
    story = storage.read_json(storage.join(config.run_uri, METRICS))["epochs"]
    if not story:
        raise RunError(f"{config.run_uri}: ended without an epoch; the same with --fresh begins anew")
    top = [r for r in story if r["best"] is not None and r["goal"] == story[-1]["best"]]
    tied = [r for r in top if r.get(f"val_{TIE}") == story[-1].get("tie")]
    best = next(iter(tied or top), None)
    average = story[-1].get("average", {})
    if average.get("kept"):
        best = story[-1] | average
    kept = best or story[-1]
    found = {
        "run": config.run_uri,
        "bundle": storage.join(config.run_uri, BEST),
        "metrics": {k: v for k, v in kept.items() if k.startswith("val_") or k == "train_loss"},
        "epochs": len(story),
        "steps": story[-1]["step"],
        "seconds": story[-1]["seconds"],
    }
    if best is None:
        goal = tasks.load(config.task).goal.name
        found["note"] = f"no epoch had a value of {goal}: the weights of the last one are kept, unverified"
    return found


def _silent(event: dict[str, Any]) -> None:
    """Nobody listens."""


def _gpu(number: float) -> dict[str, float]:
    return {"GPU": number} if number else {}


def _work(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    config = parse(settings["config"], "run")
    refusal = storage.join(config.run_uri, REFUSED)
    if storage.exists(refusal):  # Ray restarts workers whatever they died of
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
    """The user's mistake inside what Ray raised, or one line that names model and settings."""
    seen: list[BaseException] = [error]
    for found in seen:
        if isinstance(found, TlrayError):
            return found
        inner = [
            found.__cause__,
            getattr(found, "cause", None),
            *getattr(found, "worker_failures", {}).values(),
        ]
        seen += [e for e in inner if isinstance(e, BaseException) and e not in seen]
    whole = "\n".join("".join(traceback.format_exception(one)) for one in seen)
    place = storage.join(config.run_uri, ERROR)
    with contextlib.suppress(StorageError):  # what is told below matters more
        storage.write_bytes(place, whole.encode(errors="backslashreplace"))
    reason = str(seen[-1]).strip().splitlines()[-1:] or [type(seen[-1]).__name__]
    return RunError(
        f"{config.run_uri}: workers died more than scale.max_failures = {config.scale.max_failures} times "
        f"with model.backbone = {config.model.backbone}, precision = {config.train.precision}, "
        f"channels_last = {config.train.channels_last}, batch_size = {config.train.batch_size}: "
        f"{reason[0][:200]}; the whole traceback is in {place}"
    )
