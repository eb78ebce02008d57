"""Training: the one loop, and running it through Ray Train.

``epochs`` is the loop. It is a generator that gives a record after each epoch, so whoever drives it
(Ray Train's workers here, a Ray Tune trial in ``search``) hands the record on and may stop there.
It starts where the run's newest sound checkpoint stood, at any step, and then makes the very batches
and draws the very random numbers that it would have made without the interruption.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import ray
import ray.train
import torch
import torch.distributed
from ray.train.torch import TorchTrainer

from tlray import bundle, checkpoint, errors, runtime, storage, stream, tasks
from tlray.candidate import Candidate, build_model
from tlray.config import Config, parse
from tlray.dataset import Dataset
from tlray.errors import ConfigError, RunError, TlrayError
from tlray.order import Order, share
from tlray.tasks.base import Task
from tlray.track import Tracker

log = logging.getLogger(__name__)

Record = dict[str, Any]
Emit = Callable[[dict[str, Any]], None]
METRICS = "metrics.json"
REFUSED = "refused.json"  # a mistake of the user's that a worker met: no reason to try again


class Worker(Protocol):
    """One of the processes that train together."""

    rank: int
    world: int
    device: torch.device
    threads: int

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, by rank, on every rank: a barrier."""
        ...


@dataclass
class Solo:
    """A process that trains alone."""

    threads: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def gather(self, value: Any) -> list[Any]:
        return [value]


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


@dataclass
class Progress:
    """What a checkpoint knows besides weights and optimiser: the cursor and the story so far."""

    step: int = 0  # optimiser steps done: the cursor in the order of rows
    loss_sum: float = 0.0  # of the running epoch, over this run's rows
    loss_rows: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    history: list[Record] | None = None


def check(config: Config) -> Task:
    """Everything that can be wrong before training starts, found on the driver. Raises TlrayError."""
    if not config.data.uri:
        raise ConfigError(
            "data.uri = '' (configuration): accepted: the folder or s3:// URI that `tlray ingest` made"
        )
    task = tasks.load(config.task)
    data = Dataset.open(config.data.uri)
    labels = tasks.labels_of(task, data)
    for split in (config.data.train_split, config.data.validation_split):
        data.group_rows(split)
    Order(
        data.group_rows(config.data.train_split),
        config.train.batch_size,
        config.seed,
        config.scale.num_workers,
    )
    counts = tasks.counts(task, data, config.data.train_split)
    build_model(config, task, labels, counts, data.fingerprint)
    return task


def epochs(config: Config, run_uri: str, worker: Worker, emit: Emit) -> Iterator[Record]:
    """Train, one record an epoch: epoch (from 1), step, lr, train_loss, val_*, goal, best, seconds.

    Leaves ``best`` (a bundle), ``checkpoints`` and ``metrics.json`` in the run's folder.
    Raises TlrayError for what the user can mend.
    """
    tracker = Tracker(run_uri, config) if worker.rank == 0 else None
    try:
        yield from _epochs(config, run_uri, worker, emit, tracker)
    finally:  # also where whoever drives this stops before the end
        if tracker is not None:
            tracker.close()


def _epochs(
    config: Config, run_uri: str, worker: Worker, emit: Emit, tracker: Tracker | None
) -> Iterator[Record]:
    began = time.perf_counter()
    torch.set_num_threads(worker.threads)
    torch.set_flush_denormal(True)  # denormal gradients made CPU steps up to 1.7 times slower
    torch.manual_seed(config.seed)
    task, data = tasks.load(config.task), Dataset.open(config.data.uri)
    labels, split = tasks.labels_of(task, data), config.data.train_split
    order = Order(
        data.group_rows(split), config.train.batch_size, config.seed, worker.world, config.data.shuffle_window
    )
    # Where the weights come from: 1. this run's newest sound checkpoint, whether Ray started the workers
    # anew or the user ran the same name again; 2. pretrained weights; 3. scratch (weights: none).
    model = build_model(config, task, labels, tasks.counts(task, data, split), data.fingerprint)
    candidate = Candidate(model, config, order.steps_per_epoch, worker.device, worker.world)
    restored = checkpoint.restore(run_uri, candidate)
    now = Progress(**restored) if restored else Progress()
    if len(set(worker.gather(now.step))) > 1:
        raise RunError(
            f"{run_uri}: workers found different checkpoints; accepted: a folder that all nodes share"
        )
    history: list[Record] = now.history or []
    source = stream.Source(
        config.data.uri, split, task, tuple(labels), model.preprocess, config.augment, config.seed,
        config.data.cache_mb,
    )  # fmt: skip
    validator = Validator(config, data, model, source, worker)
    spent = {"prepare": time.perf_counter() - began, "train": 0.0, "validate": 0.0, "save": 0.0}
    num_steps = config.train.epochs * order.steps_per_epoch
    if worker.rank == 0:
        emit({"kind": "start", "run": run_uri, "step": now.step, "steps": num_steps})

    def finished() -> bool:
        patience = config.train.early_stop_epochs
        return now.step >= num_steps or bool(patience and len(history) - now.best_epoch >= patience)

    def carried() -> tuple[torch.Tensor, int]:
        """Loss and rows that all ranks came to: one of them carries on with that, the others with nothing."""
        first = worker.rank == 0
        total = torch.tensor(now.loss_sum if first else 0.0, device=worker.device)
        return total, now.loss_rows if first else 0

    loss_sum, loss_rows = carried()
    mark, told = time.perf_counter(), 0.0
    candidate.train_mode()
    batches = stream.train_batches(source, order, worker.rank, now.step, num_steps)
    while not finished():
        epoch, rows = now.step // order.steps_per_epoch, order.global_batch(now.step)
        batch = next(batches)
        ours = batch.num_rows if batch else 0
        if batch is None:  # no row of an epoch's last batch is ours: take part with one that weighs nothing
            batch = stream.make_batch(source, data.fingerprint, epoch, rows[:1])
        torch.manual_seed(
            int(np.random.SeedSequence((config.seed, now.step, worker.rank)).generate_state(1)[0])
        )
        x_BCHW, targets = stream.to_device(batch, worker.device, config.train.channels_last)
        loss = candidate.step(x_BCHW, targets, now.step, weight=ours * worker.world / len(rows))
        loss_sum += loss * ours
        loss_rows += ours
        now.step += 1
        if worker.rank == 0 and time.perf_counter() - told > 1:
            told = time.perf_counter()
            emit({"kind": "step", "run": run_uri, "step": now.step, "steps": num_steps, "epoch": epoch + 1})
        ended = now.step % order.steps_per_epoch == 0
        every = config.train.checkpoint_every_steps
        if not ended and not (every and now.step % every == 0):
            continue

        spent["train"] += time.perf_counter() - mark
        mark = time.perf_counter()
        sums = worker.gather((float(loss_sum), loss_rows))
        now.loss_sum, now.loss_rows = sum(s for s, _ in sums), sum(r for _, r in sums)
        if ended:
            metrics = validator()
            spent["validate"] += time.perf_counter() - mark
            mark = time.perf_counter()
            goal = metrics[task.goal.name]
            improved = task.goal.better(goal, now.best)
            if improved:
                now.best, now.best_epoch = goal, epoch + 1
            record = {
                "epoch": epoch + 1, "step": now.step, "lr": candidate.lr(now.step - 1),
                "train_loss": now.loss_sum / max(1, now.loss_rows),
                **{f"val_{name}": value for name, value in metrics.items()},
                "goal": goal, "best": now.best, "seconds": now.seconds + time.perf_counter() - began,
            }  # fmt: skip
            history.append(record)
            now.loss_sum, now.loss_rows = 0.0, 0
        now.history = history
        if worker.rank == 0:
            stored = config.model_dump(mode="json")
            state = {**asdict(now), "seconds": now.seconds + time.perf_counter() - began}
            if ended and improved:
                decided = replace(model, task=task.decided(validator.total))
                bundle.save(storage.join(run_uri, "best"), decided, metrics, stored, validator.golden())
            shown = {f"val_{k}": v for k, v in metrics.items()} if ended else {}
            checkpoint.save(run_uri, candidate, state, shown, stored, config.train.keep_checkpoints)
            if ended:
                stages = [{"name": name, "seconds": seconds} for name, seconds in spent.items()]
                storage.write_json(storage.join(run_uri, METRICS), {"epochs": history, "stages": stages})
                if tracker is not None:
                    tracker.log(record, now.step)
        loss_sum, loss_rows = carried()
        spent["save"] += time.perf_counter() - mark
        mark = time.perf_counter()
        if ended:
            if worker.rank == 0:
                names = {"goal_name": task.goal.name, "epochs": config.train.epochs}
                emit({"kind": "epoch", "run": run_uri, **names, **record})
            yield record
            candidate.train_mode()
            mark = time.perf_counter()


class Validator:
    """Metrics over the whole validation split, every row counted once whatever the number of workers."""

    def __init__(
        self, config: Config, data: Dataset, model: bundle.Model, source: stream.Source, worker: Worker
    ) -> None:
        split = config.data.validation_split
        self.model, self.worker, self.data, self.split = model, worker, data, split
        self.total = model.task.metrics(model.labels)  # of the last call
        self.num_rows = sum(data.group_rows(split))
        ours = share(self.num_rows, worker.rank, worker.world)
        columns = list(model.task.columns)
        self.rows = data.read(split, columns).take(ours).to_pylist()
        plain = stream.plain(source, split)
        self.batches = stream.Held(plain, worker.rank, worker.world, config.train.batch_size)

    def __call__(self) -> dict[str, float]:
        """Metrics by name, the same on every rank."""
        self.model.module.eval()
        metrics, first = self.model.task.metrics(self.model.labels), 0
        for batch in self.batches:
            found = self.model.predict_rendered(batch.x_BCHW, batch.geometries, self.worker.device)
            metrics.update(found, self.rows[first : first + len(found)])
            first += len(found)
        total = self.model.task.metrics(self.model.labels)
        for state in self.worker.gather(metrics.state()):
            total.merge(state)
        self.total = total
        return total.compute()

    def golden(self) -> list[bytes]:
        """Encoded pictures, spread over the split, for the bundle's golden samples."""
        rows = checkpoint.golden_rows(self.num_rows)
        table = self.data.rows(self.split, rows)
        return [picture["bytes"] for picture in table["image"].to_pylist()]


def fit(config: Config, emit: Emit | None = None, callbacks: Sequence[Any] = ()) -> dict[str, Any]:
    """Train through Ray Train with ``config.scale`` workers; the run's result. Blocks.

    ``callbacks``: of ray.train.UserCallback, they run in Ray Train's controller. Lost workers are replaced
    up to ``scale.max_failures`` times and go on from the newest checkpoint.
    Raises TlrayError, RunError where the workers died for good.
    """
    config = runtime.placed(config)
    check(config)
    storage.delete(storage.join(config.run_uri, REFUSED))
    storage.write_json(storage.join(config.run_uri, "config.json"), config.model_dump(mode="json"))
    need = runtime.resources(config.scale)
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
    """What a finished run came to: its bundle, the metrics of the best epoch, epochs, steps, seconds."""
    story = storage.read_json(storage.join(config.run_uri, METRICS))["epochs"]
    best = next(record for record in story if record["goal"] == story[-1]["best"])
    return {
        "run": config.run_uri,
        "bundle": storage.join(config.run_uri, "best"),
        "metrics": {k: v for k, v in best.items() if k.startswith("val_") or k == "train_loss"},
        "epochs": len(story),
        "steps": story[-1]["step"],
        "seconds": story[-1]["seconds"],
    }


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
        for record in epochs(config, config.run_uri, Member(settings["threads"]), settings["emit"]):
            ray.train.report({k: v for k, v in record.items() if v is not None})
    except torch.cuda.OutOfMemoryError as error:
        message = (
            f"train.batch_size = {config.train.batch_size} with {config.model.backbone} at "
            f"{config.input.size or 'its own'} px: does not fit into GPU memory; accepted: a smaller batch"
        )
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
    reason = str(seen[-1]).strip().splitlines()[-1:] or [type(seen[-1]).__name__]
    return RunError(
        f"{config.run_uri}: workers died more than scale.max_failures = {config.scale.max_failures} times "
        f"with model.backbone = {config.model.backbone}, precision = {config.train.precision}, "
        f"channels_last = {config.train.channels_last}, batch_size = {config.train.batch_size}: "
        f"{reason[0][:200]}"
    )
