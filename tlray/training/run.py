"""One configuration in training: its model, optimiser, position, metrics, and the folder that it fills."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from tlray import storage
from tlray.bundle import bundle
from tlray.config import Config
from tlray.errors import RunError
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
SAVE_EVERY_S = 60.0  # trials of a search: how much of its own work a kill may cost each of them


@dataclass
class TrainState:
    """What a checkpoint knows besides weights and optimiser: the cursor and the story so far."""

    step: int = 0  # optimiser steps done: the cursor in the order of rows
    loss_sum: float = 0.0  # of the running epoch, over this run's rows
    loss_rows: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    best_metrics: dict[str, float] | None = None
    history: list[Record] = field(default_factory=list)


@dataclass
class BestEpoch:
    """The best epoch of a candidate whose bundle is not written yet."""

    weights: dict[str, torch.Tensor]
    model: bundle.Model
    metrics: dict[str, float]


class Run:
    """One candidate on its way through the loop: model, optimiser, cursor, story, and the folder it fills."""

    def __init__(
        self,
        config: Config,
        model: Callable[[Config], bundle.Model],
        steps_per_epoch: int,
        worker: Worker,
        golden: Callable[[], list[bytes]],
        sparing: bool = False,
    ) -> None:
        """``model`` builds it; ``golden``: pictures for the golden samples of a bundle.

        ``sparing``: checkpoints are written once a minute of work, not each epoch.
        """
        self.config, self.uri, self.worker = config, config.run_uri, worker
        self._golden, self._sparing = golden, sparing
        self.began = time.perf_counter()
        # Where the weights come from: 1. this run's newest sound checkpoint, whether Ray started the workers
        # anew or the user ran the same name again; 2. pretrained weights; 3. scratch (weights: none).
        self.model = model(config)
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
        self.begin_sums()
        self.first_step = self.now.step  # of this start
        self.ended = False  # by whoever drives the loop
        self.error: Exception | None = None  # of a candidate of many: it ends this one alone
        self.best: BestEpoch | None = None
        prepared = time.perf_counter() - self.began
        self.spent = {"prepare": prepared, "wait": 0.0, "train": 0.0, "validate": 0.0, "save": 0.0}
        self.saved_s = self.seconds
        self.tracker = Tracker(self.uri, config) if self.worker.rank == 0 else None

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def over(self) -> bool:
        """Whether it has had all its epochs, or stopped early."""
        patience = self.config.train.early_stop_epochs
        waited = bool(patience and len(self.now.history) - self.now.best_epoch >= patience)
        return self.ended or self.now.step >= self.num_steps or waited

    @property
    def boundary(self) -> Boundary | None:
        """Where what it trains begins; None: at the pixels."""
        module: Any = self.model.module
        if not self.model.freeze_depth:
            return None
        reads = getattr(module, "reads", None)
        return Boundary(self.model.freeze_depth, None if reads is None else tuple(reads))

    @property
    def judged_at(self) -> Boundary | None:
        """Where evaluation begins; None: at the pixels."""
        return None if getattr(self.model.module, "needs_pixels", False) else self.boundary

    def learn(self, fed: DeviceBatch, ours: int, num_rows: int) -> None:
        """One step on a batch of which ``ours`` of ``num_rows`` rows are this rank's."""
        mark = time.perf_counter()
        _seed(self.config.seed, self.now.step, self.worker.rank)
        weight = ours * self.worker.world / num_rows
        loss = self.candidate.step(fed.input(self.boundary), fed.targets, self.now.step, weight)
        self.loss_sum += loss * ours
        self.loss_rows += ours
        self.now.step += 1
        self.spent["train"] += time.perf_counter() - mark

    def sum_up(self) -> None:
        """The epoch's loss so far, over all ranks."""
        sums = self.worker.gather((float(self.loss_sum), self.loss_rows))
        self.now.loss_sum, self.now.loss_rows = sum(s for s, _ in sums), sum(r for _, r in sums)

    def end_epoch(self, judged: Evaluation) -> Record:
        """Close an epoch with its metrics; the best so far is kept, or written at once."""
        now, metrics, goal = self.now, judged.values, self.task.goal
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
        # Where no epoch had a value the last one is kept: better than nothing, and `fit.result` says so.
        if improved or (self.over and now.best is None):
            state = self.model.module.state_dict()
            kept = {name: state[name].detach().clone() for name in changing(self.model.module)}
            self.best = BestEpoch(kept, replace(self.model, task=self.task.decided(judged.whole)), metrics)
            if self.config.search.deepen and self.worker.rank == 0:
                head = {name: value.cpu().contiguous() for name, value in kept.items() if is_head(name)}
                storage.write_bytes(storage.join(self.uri, rundir.HEAD), save(head))
        return record

    def best_weights(self) -> Weights:
        """What training changed, as it was after the best epoch."""
        if self.best is not None:
            return self.best.weights
        with storage.local_copy(storage.join(self.uri, rundir.BEST)) as folder:
            stored = load_file(folder / bundle.WEIGHTS)
        # What only training needs is not in a bundle; nothing is judged by it.
        state = self.model.module.state_dict()
        return {name: stored.get(name, state[name]).to(state[name]) for name in changing(self.model.module)}

    def settle(self, outcome: Outcome, record: Record) -> None:
        """Take over what averaging came to: it ends the last epoch's record."""
        kept = outcome.judged.values
        record["average"] = {
            "kind": outcome.kind, "before": outcome.before, "after": outcome.after, "kept": outcome.kept,
            **({f"val_{name}": value for name, value in kept.items()} if outcome.kept else {}),
        }  # fmt: skip
        if outcome.kept:
            self.now.best, self.now.best_metrics = outcome.after, kept
            record["best"], record["tie"] = outcome.after, kept.get(TIE)
            task = self.task.decided(outcome.judged.whole)
            self.best = BestEpoch(outcome.weights, replace(self.model, task=task), kept)

    @property
    def seconds(self) -> float:
        """Spent on it, over all its starts; of what candidates share (batches, validation) its part."""
        return self.now.seconds + sum(self.spent.values())

    def publish_best(self) -> None:
        """Write the best epoch's bundle, if it is not there yet."""
        if self.best is None or self.worker.rank != 0:
            return
        best, self.best = self.best, None
        stored = self.config.model_dump(mode="json")
        with self.with_weights(best.weights):
            bundle.save(storage.join(self.uri, rundir.BEST), best.model, best.metrics, stored, self._golden())

    @contextlib.contextmanager
    def with_weights(self, weights: Weights) -> Iterator[None]:
        """Other weights in the model for the length of the block."""
        module = self.model.module
        state = module.state_dict()
        current = {name: state[name].clone() for name in weights}
        module.load_state_dict(weights, strict=False)
        try:
            yield
        finally:
            module.load_state_dict(current, strict=False)

    def due(self, ended: bool) -> bool:
        """Whether a checkpoint is due, at the end of an epoch or within it."""
        every = self.config.train.checkpoint_every_steps
        long_ago = self.seconds - self.saved_s > SAVE_EVERY_S
        return bool(every and self.now.step % every == 0) or (ended and (not self._sparing or long_ago))

    def save(self, shown: dict[str, float]) -> None:
        """A checkpoint of where it stands, and what is best so far."""
        mark = time.perf_counter()
        if self.worker.rank == 0:
            self.publish_best()
            stored, state = self.config.model_dump(mode="json"), {**asdict(self.now), "seconds": self.seconds}
            checkpoint.save(
                self.uri, self.candidate, state, shown, stored, self.config.train.keep_checkpoints
            )
        self.spent["save"] += time.perf_counter() - mark
        self.saved_s = self.seconds

    def write_story(self) -> None:
        """The epochs so far, and where the time went, into the run's folder."""
        stages = [{"name": name, "seconds": seconds} for name, seconds in self.spent.items()]
        told = {"epochs": self.now.history, "stages": stages}
        storage.write_json(storage.join(self.uri, rundir.METRICS), told)

    def begin_sums(self) -> None:
        """From here on rank 0 carries what all ranks have come to."""
        first = self.worker.rank == 0
        self.loss_sum = torch.tensor(self.now.loss_sum if first else 0.0, device=self.worker.device)
        self.loss_rows = self.now.loss_rows if first else 0


def _seed(*entropy: int) -> None:
    """Seed the random numbers of a step: as `torch.manual_seed`, which for each kind of GPU that it does not
    find formats a stack trace, 0.3 ms a step, nearly what a linear probe takes for its own."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    if torch.cuda.is_initialized():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
