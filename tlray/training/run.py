"""One configuration in training: its model and optimiser, how far it is, its metrics, and its folder."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from tlray import storage
from tlray.bundle import bundle
from tlray.config import Config
from tlray.errors import RunError, StorageError
from tlray.inference.significance import Evaluation
from tlray.models.backbone import Boundary
from tlray.tasks.base import TIE
from tlray.training import checkpoint, rundir
from tlray.training.average import Outcome, Weights, changing
from tlray.training.batches import DeviceBatch
from tlray.training.build import is_head
from tlray.training.candidate import Candidate
from tlray.training.tracking import Tracker
from tlray.training.worker import Worker

Record = dict[str, Any]  # of an epoch: epoch (from 1), step, lr, train_loss, val_*, goal, best, seconds
SAVE_EVERY_S = 60.0  # seconds of a candidate's work between checkpoints, where a search wants few


@dataclass
class TrainState:
    """What a checkpoint holds besides weights and optimiser: the position in training, and past epochs."""

    step: int = 0  # optimiser steps done, which is the position in the order of rows
    loss_sum: float = 0.0  # of the current epoch, over the rows seen so far
    loss_rows: int = 0
    seconds: float = 0.0  # spent up to the checkpoint
    best: float | None = None
    best_epoch: int = 0
    best_metrics: dict[str, float] | None = None
    history: list[Record] = field(default_factory=list)


@dataclass
class BestEpoch:
    """The best epoch so far, while its bundle is not written."""

    weights: dict[str, torch.Tensor]
    model: bundle.Model
    metrics: dict[str, float]


class Run:
    """One candidate in the training loop: what it trains, how far it is, and its run's folder."""

    def __init__(
        self,
        config: Config,
        build_model: Callable[[Config], bundle.Model],
        steps_per_epoch: int,
        worker: Worker,
        golden: Callable[[], list[bytes]],
        sparing: bool = False,
    ) -> None:
        """``golden``: gives the pictures for a bundle's golden samples. ``sparing``: as in `loop.Loop`."""
        self.config, self.uri, self.worker = config, config.run_uri, worker
        self._golden, self._sparing = golden, sparing
        began = time.perf_counter()
        # Where the weights come from: 1. this run's newest sound checkpoint, whether Ray has restarted the
        # worker or the user has run the same name again; 2. pretrained weights; 3. scratch (weights: none).
        self.model = build_model(config)
        self.task = self.model.task
        self.steps_per_epoch = steps_per_epoch
        self.num_steps = config.train.epochs * self.steps_per_epoch
        self.candidate = Candidate(
            self.model, config, self.steps_per_epoch, self.worker.device, self.worker.world
        )
        restored = checkpoint.restore(self.uri, self.candidate)
        self.now = TrainState(**restored) if restored else TrainState()
        if len(set(self.worker.gather(self.now.step))) > 1:
            raise RunError(
                f"{self.uri}: workers found different checkpoints; accepted: a folder that all nodes share"
            )
        self.restart_loss()
        self.first_step = self.now.step  # of this process
        self.ended = False  # set where it ends before its last epoch: by the loop's caller, or by an error
        self.error: Exception | None = None  # that ended this candidate, and none of the others
        self.best: BestEpoch | None = None
        prepared = time.perf_counter() - began
        self.spent = {"prepare": prepared, "wait": 0.0, "train": 0.0, "validate": 0.0, "save": 0.0}
        self.saved_s = self.seconds
        self.tracker = Tracker(self.uri, config) if self.worker.rank == 0 else None

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def over(self) -> bool:
        """Whether training is over: all epochs done, ended by the caller, or stopped early."""
        patience = self.config.train.early_stop_epochs
        waited = bool(patience and len(self.now.history) - self.now.best_epoch >= patience)
        return self.ended or self.now.step >= self.num_steps or waited

    @property
    def boundary(self) -> Boundary | None:
        """The end of the frozen stages, where training begins; None: at the pixels."""
        module: Any = self.model.module
        if not self.model.freeze_depth:
            return None
        reads = getattr(module, "reads", None)
        return Boundary(self.model.freeze_depth, None if reads is None else tuple(reads))

    @property
    def validation_boundary(self) -> Boundary | None:
        """Where validation begins, which may need the pixels although training does not."""
        return None if getattr(self.model.module, "needs_pixels", False) else self.boundary

    @contextlib.contextmanager
    def isolated(self) -> Iterator[None]:
        """In a search, an error in the block ends this candidate alone; it is kept as `error`."""
        try:
            yield
        except Exception as error:
            if not self._sparing:
                raise
            self.error, self.ended = error, True
            with contextlib.suppress(StorageError):
                text = "".join(traceback.format_exception(error))
                storage.write_bytes(storage.join(self.uri, rundir.ERROR), text.encode())
            error.__traceback__ = None  # it holds the step's tensors

    def train_step(self, batch: DeviceBatch, num_ours: int, num_rows: int) -> None:
        """One step on a global batch of ``num_rows`` rows, of which ``num_ours`` are this rank's."""
        began = time.perf_counter()
        _seed(self.config.seed, self.now.step, self.worker.rank)
        weight = num_ours * self.worker.world / num_rows
        loss = self.candidate.step(batch.input(self.boundary), batch.targets, self.now.step, weight)
        self.loss_sum += loss * num_ours
        self.loss_rows += num_ours
        self.now.step += 1
        self.spent["train"] += time.perf_counter() - began

    def gather_loss(self) -> None:
        """Sum up the epoch's loss so far over all ranks."""
        sums = self.worker.gather((float(self.loss_sum), self.loss_rows))
        self.now.loss_sum, self.now.loss_rows = sum(s for s, _ in sums), sum(r for _, r in sums)

    def restart_loss(self) -> None:
        """Go on from the gathered sums, which rank 0 carries from here on."""
        first = self.worker.rank == 0
        self.loss_sum = torch.tensor(self.now.loss_sum if first else 0.0, device=self.worker.device)
        self.loss_rows = self.now.loss_rows if first else 0

    def end_epoch(self, evaluation: Evaluation) -> Record:
        """Close an epoch with its metrics, and keep its weights where it is the best so far."""
        now, metrics, goal = self.now, evaluation.values, self.task.goal
        epoch, value = now.step // self.steps_per_epoch, metrics[goal.name]
        # Checkpoints of earlier versions hold the best goal alone.
        before = now.best_metrics or (None if now.best is None else {goal.name: now.best})
        improved = value == value and goal.beats(metrics, before)
        if improved:
            now.best, now.best_epoch, now.best_metrics = value, epoch, dict(metrics)
        record = {
            "epoch": epoch, "step": now.step, "lr": self.candidate.lr(now.step - 1),
            "train_loss": now.loss_sum / max(1, now.loss_rows),
            **{f"val_{name}": value for name, value in metrics.items()},
            "goal": value, "best": now.best, "tie": (now.best_metrics or {}).get(TIE),
            "seconds": self.seconds,
        }  # fmt: skip
        now.history.append(record)
        now.loss_sum, now.loss_rows = 0.0, 0
        # Where the goal had no value in any epoch, the last one is kept, and `fit.result` says so.
        if improved or (self.over and now.best is None):
            state = self.model.module.state_dict()
            kept = {name: state[name].detach().clone() for name in changing(self.model.module)}
            task = self.task.with_thresholds(evaluation.whole)
            self.best = BestEpoch(kept, replace(self.model, task=task), metrics)
            if self.config.search.deepen and self.worker.rank == 0:
                head = {name: value.cpu().contiguous() for name, value in kept.items() if is_head(name)}
                storage.write_bytes(storage.join(self.uri, rundir.HEAD), save(head))
        return record

    def best_weights(self) -> Weights:
        """The tensors that training changes, as they were after the best epoch."""
        if self.best is not None:
            return self.best.weights
        with storage.local_copy(storage.join(self.uri, rundir.BEST)) as folder:
            stored = load_file(folder / bundle.WEIGHTS)
        # A bundle lacks what only training needs, and no metric depends on that: the current values do.
        state = self.model.module.state_dict()
        return {name: stored.get(name, state[name]).to(state[name]) for name in changing(self.model.module)}

    def take_average(self, outcome: Outcome, record: Record) -> None:
        """Add what averaging came to to the last epoch's record; an average that is kept is the new best."""
        kept = outcome.evaluation.values
        record["average"] = {
            "kind": outcome.kind, "before": outcome.before, "after": outcome.after, "kept": outcome.kept,
            **({f"val_{name}": value for name, value in kept.items()} if outcome.kept else {}),
        }  # fmt: skip
        if outcome.kept:
            self.now.best, self.now.best_metrics = outcome.after, kept
            record["best"], record["tie"] = outcome.after, kept.get(TIE)
            task = self.task.with_thresholds(outcome.evaluation.whole)
            self.best = BestEpoch(outcome.weights, replace(self.model, task=task), kept)

    @property
    def seconds(self) -> float:
        """Time spent on this candidate over all starts, with its part of the time that all share."""
        return self.now.seconds + sum(self.spent.values())

    def publish_best(self) -> None:
        """Write the best epoch's bundle, if it is not written yet."""
        if self.best is None or self.worker.rank != 0:
            return
        best, self.best = self.best, None
        config = self.config.model_dump(mode="json")
        with self.with_weights(best.weights):
            bundle.save(storage.join(self.uri, rundir.BEST), best.model, best.metrics, config, self._golden())

    @contextlib.contextmanager
    def with_weights(self, weights: Weights) -> Iterator[None]:
        """Put other weights into the model for the block; afterwards it has its own again."""
        module = self.model.module
        state = module.state_dict()
        current = {name: state[name].clone() for name in weights}
        try:
            # Within the try: a failure may leave some of the weights in the model.
            module.load_state_dict(weights, strict=False)
            yield
        finally:
            module.load_state_dict(current, strict=False)

    def checkpoint_due(self, epoch_ended: bool) -> bool:
        """Whether a checkpoint is due after this step, which may be the last of an epoch."""
        every = self.config.train.checkpoint_every_steps
        long_ago = self.seconds - self.saved_s > SAVE_EVERY_S
        return bool(every and self.now.step % every == 0) or (epoch_ended and (not self._sparing or long_ago))

    def save_checkpoint(self, metrics: dict[str, float]) -> None:
        """Write a checkpoint, and the best epoch's bundle."""
        began = time.perf_counter()
        if self.worker.rank == 0:
            self.publish_best()
            config, state = self.config.model_dump(mode="json"), {**asdict(self.now), "seconds": self.seconds}
            checkpoint.save(
                self.uri, self.candidate, state, metrics, config, self.config.train.keep_checkpoints
            )
        self.spent["save"] += time.perf_counter() - began
        self.saved_s = self.seconds

    def write_story(self) -> None:
        """Write the epochs so far, and the time of each stage, into the run's folder."""
        stages = [{"name": name, "seconds": seconds} for name, seconds in self.spent.items()]
        story = {"epochs": self.now.history, "stages": stages}
        storage.write_json(storage.join(self.uri, rundir.METRICS), story)


def _seed(*entropy: int) -> None:
    """Seed the random numbers of a step, with the effect of `torch.manual_seed`.

    On a machine without a GPU that function formats a stack trace for every kind of GPU it misses. This takes
    0.3 ms, nearly as long as a step of a linear probe.
    """
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    if torch.cuda.is_initialized():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
