"""The one training loop: candidates, one or many, over one stream of batches.

`Loop.epochs` is a generator that gives the candidates' records after each epoch, so whoever drives it
(Ray Train's workers, a trial or a group of trials in ``search``) hands the records on and may end a
candidate there. Each candidate starts where its run's newest sound checkpoint stood, at any step, and then
sees the very batches and draws the very random numbers that it would have without the interruption, and
without the other candidates.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save

from tlray import storage, tasks
from tlray.bundle import bundle
from tlray.config import Config
from tlray.data import loader
from tlray.data.dataset import Dataset
from tlray.data.image import Geometry
from tlray.data.sampler import Indices, Order, share
from tlray.data.schema import IMAGE, Row
from tlray.errors import RunError, StorageError
from tlray.inference.judging import Judged, Parts
from tlray.models.backbone import Boundary, Features
from tlray.tasks.base import TIE
from tlray.training import checkpoint
from tlray.training.average import NO_AVERAGE, Outcome, Weights, changing
from tlray.training.candidate import Candidate, begin, copy_model, is_head, kind
from tlray.training.tracking import Tracker

Record = dict[str, Any]
Emit = Callable[[dict[str, Any]], None]
METRICS = "metrics.json"
HEAD = "head.safetensors"  # of the best epoch, where a search goes deeper from it
ERROR = "error.txt"  # in a failed candidate's folder: the whole story of what its one line says
SAVE_EVERY_S = 60.0  # candidates of a search: how much of its own work a kill may cost each of them


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


@dataclass
class Fed:
    """A batch as candidates take it, on the device: ``x_BCHW`` uint8 pixels (None where no candidate begins
    there), features by boundary; targets by name, rows (B,) and geometries as in `stream.Batch`."""

    x_BCHW: torch.Tensor | None
    features: dict[Boundary, Features]
    targets: dict[str, Any]
    rows: Indices
    geometries: list[Geometry]

    def input(self, boundary: Boundary | None) -> Any:
        """What a candidate's module takes: features at its boundary, else pixels."""
        return self.x_BCHW if boundary is None else self.features.get(boundary, self.x_BCHW)


class Feed(Protocol):
    """Where batches come from."""

    def train(self, first: int, last: int) -> Iterator[Fed | None]:
        """This rank's batches of the steps [first, last); None where it has no row in a step."""
        ...

    def one(self, epoch: int, row: Indices) -> Fed:
        """A batch of one row, for a rank that has none in a step."""
        ...

    def validation(self, boundaries: Collection[Boundary | None]) -> Iterable[Fed]:
        """This rank's part of the validation split, for candidates that begin at these boundaries."""
        ...


class Pixels:
    """Every batch rendered for its step: what plain training eats."""

    def __init__(self, source: loader.Source, order: Order, config: Config, worker: Worker) -> None:
        self.source, self.order, self.worker = source, order, worker
        self.channels_last = config.train.channels_last
        plain = loader.plain(source, config.data.validation_split)
        self._held = loader.Held(plain, worker.rank, worker.world, config.train.batch_size)
        self._fingerprint = Dataset.open(source.uri).fingerprint

    def train(self, first: int, last: int) -> Iterator[Fed | None]:
        for batch in loader.train_batches(self.source, self.order, self.worker.rank, first, last):
            yield self.fed(batch) if batch else None

    def one(self, epoch: int, row: Indices) -> Fed:
        return self.fed(loader.make_batch(self.source, self._fingerprint, epoch, row))

    def validation(self, boundaries: Collection[Boundary | None]) -> Iterator[Fed]:
        for batch in self._held:
            x_BCHW = batch.x_BCHW.to(self.worker.device, non_blocking=True)
            yield Fed(x_BCHW, {}, {}, batch.rows, batch.geometries)

    def fed(self, batch: loader.Batch) -> Fed:
        """A batch on the device."""
        x_BCHW, targets = loader.to_device(batch, self.worker.device, self.channels_last)
        return Fed(x_BCHW, {}, targets, batch.rows, batch.geometries)


@dataclass
class Progress:
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
class Best:
    """The best epoch of a candidate whose bundle is not written yet."""

    weights: dict[str, torch.Tensor]
    model: bundle.Model
    metrics: dict[str, float]


class Run:
    """One candidate on its way through the loop: model, optimiser, cursor, story, and the folder it fills."""

    def __init__(self, config: Config, loop: Loop) -> None:
        self.config, self.uri, self.loop, self.worker = config, config.run_uri, loop, loop.worker
        self.began = time.perf_counter()
        # Where the weights come from: 1. this run's newest sound checkpoint, whether Ray started the workers
        # anew or the user ran the same name again; 2. pretrained weights; 3. scratch (weights: none).
        self.model = loop.model(config)
        self.task = self.model.task
        self.steps_per_epoch = loop.order.steps_per_epoch
        self.num_steps = config.train.epochs * self.steps_per_epoch
        self.candidate = Candidate(
            self.model, config, self.steps_per_epoch, self.worker.device, self.worker.world
        )
        restored = checkpoint.restore(self.uri, self.candidate)
        self.now = Progress(**restored) if restored else Progress()
        if len(set(self.worker.gather(self.now.step))) > 1:
            raise RunError(
                f"{self.uri}: workers found different checkpoints; accepted: a folder that all nodes share"
            )
        self.begin_sums()
        self.first_step = self.now.step  # of this start
        self.ended = False  # by whoever drives the loop
        self.error: Exception | None = None  # of a candidate of many: it ends this one alone
        self.best: Best | None = None
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

    def learn(self, fed: Fed, ours: int, num_rows: int) -> None:
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

    def end_epoch(self, judged: Judged) -> Record:
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
        # Where no epoch had a value the last one is kept: better than nothing, and `train.result` says so.
        if improved or (self.over and now.best is None):
            state = self.model.module.state_dict()
            kept = {name: state[name].detach().clone() for name in changing(self.model.module)}
            self.best = Best(kept, replace(self.model, task=self.task.decided(judged.whole)), metrics)
            if self.config.search.deepen and self.worker.rank == 0:
                head = {name: value.cpu().contiguous() for name, value in kept.items() if is_head(name)}
                storage.write_bytes(storage.join(self.uri, HEAD), save(head))
        return record

    def best_weights(self) -> Weights:
        """What training changed, as it was after the best epoch."""
        if self.best is not None:
            return self.best.weights
        with storage.local_copy(storage.join(self.uri, "best")) as folder:
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
            self.best = Best(outcome.weights, replace(self.model, task=task), kept)

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
            bundle.save(storage.join(self.uri, "best"), best.model, best.metrics, stored, self.loop.golden())

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
        return bool(every and self.now.step % every == 0) or (ended and (not self.loop.sparing or long_ago))

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
        storage.write_json(storage.join(self.uri, METRICS), told)

    def begin_sums(self) -> None:
        """From here on rank 0 carries what all ranks have come to."""
        first = self.worker.rank == 0
        self.loss_sum = torch.tensor(self.now.loss_sum if first else 0.0, device=self.worker.device)
        self.loss_rows = self.now.loss_rows if first else 0


def epochs(config: Config, worker: Worker, emit: Emit) -> Iterator[Record]:
    """Plain training, the loop with one candidate: its records, see `Loop.epochs`."""
    with contextlib.closing(Loop([config], worker, emit).epochs()) as records:
        for record in records:
            yield record[config.name]


class Loop:
    """Candidates that differ in what they train, over the batches of one data set.

    ``sparing``: bundles and checkpoints are written once a minute of a candidate's work, not each epoch,
    and the best bundle where `Run.publish_best` asks for it: a search discards nearly all of them. And what
    goes wrong with one candidate ends that one alone.
    Raises TlrayError for what the user can mend.
    """

    def __init__(
        self,
        configs: Sequence[Config],
        worker: Worker,
        emit: Emit,
        feed: Callable[[Loop], Feed] | None = None,
        sparing: bool = False,
    ) -> None:
        torch.set_num_threads(worker.threads)
        torch.set_flush_denormal(True)  # denormal gradients made CPU steps up to 1.7 times slower
        config = configs[0]
        self.worker, self.emit, self.sparing = worker, emit, sparing
        task, self.data = tasks.load(config.task), Dataset.open(config.data.uri)
        self.labels, self.split = tasks.labels_of(task, self.data), config.data.train_split
        self.order = Order(
            self.data.group_rows(self.split), config.train.batch_size, config.seed, worker.world,
            config.data.shuffle_window, tasks.together(task, self.data, self.split),
        )  # fmt: skip
        self.validation_split = config.data.validation_split
        self.num_rows = sum(self.data.group_rows(self.validation_split))
        ours = share(self.num_rows, worker.rank, worker.world)
        self.rows: list[Row] = (
            self.data.read(self.validation_split, list(task.columns)).take(ours).to_pylist()
        )
        self._golden: list[bytes] | None = None
        self.refused: dict[str, Exception] = {}  # candidates that could not be built, of many
        self.runs: list[Run] = []
        self._many, self._built = len(configs) > 1, dict[str, bundle.Model]()
        for one in configs:
            try:
                self.runs.append(Run(one, self))
            except Exception as error:
                if not sparing:
                    raise
                self.refused[one.name] = error
        self._built.clear()
        if not self.runs:
            raise self.refused[config.name]
        self.source = loader.Source(
            config.data.uri, self.split, task, tuple(self.labels), self.runs[0].model.preprocess,
            config.augment, config.seed, config.data.cache_mb,
        )  # fmt: skip
        self.feed: Feed = feed(self) if feed else Pixels(self.source, self.order, config, worker)

    def model(self, config: Config) -> bundle.Model:
        """A candidate's model as it begins. Of many that begin alike one is built, and theirs are copies."""
        alike = kind(config)
        built = self._built.get(alike)
        if built is None:
            torch.manual_seed(config.seed)
            built = begin(config, self.data)
            if not self._many:
                return built
            built.module.to(self.worker.device)  # else each copy would take statistics there for itself
            self._built[alike] = built
        return copy_model(built, config)

    def epochs(self) -> Generator[dict[str, Record]]:
        """Records by name after each epoch: epoch (from 1), step, lr, train_loss, val_*, goal, best, seconds.

        Leaves ``best`` (a bundle), ``checkpoints`` and ``metrics.json`` in the runs' folders.
        """
        try:
            yield from self._epochs()
        finally:  # also where whoever drives this stops before the end
            for run in self.runs:
                if run.tracker is not None:
                    run.tracker.close()

    def _epochs(self) -> Iterator[dict[str, Record]]:
        if self.worker.rank == 0:
            for run in self.runs:
                self.emit({"kind": "start", "run": run.uri, "step": run.now.step, "steps": run.num_steps})
            for run in self.runs:
                # A start that was killed at its very end has not written it.
                if run.over and not self.sparing and not storage.exists(storage.join(run.uri, METRICS)):
                    run.write_story()
        told = 0.0
        step = min((run.now.step for run in self.active), default=0)
        batches = self.feed.train(step, max(run.num_steps for run in self.runs))
        for run in self.runs:
            run.candidate.train_mode()
        while self.active:
            epoch, rows = step // self.order.steps_per_epoch, self.order.global_batch(step)
            mark = time.perf_counter()
            fed = next(batches)
            waited = time.perf_counter() - mark
            ours = len(fed.rows) if fed else 0
            if fed is None:  # no row of an epoch's last batch is ours: take part with one that weighs nothing
                fed = self.feed.one(epoch, rows[:1])
            # One that was saved later than the others waits until they have come as far.
            learning = [run for run in self.active if run.now.step == step]
            for run in learning:
                run.spent["wait"] += waited / len(learning)
                with self.alone(run):
                    run.learn(fed, ours, len(rows))
            step += 1
            if self.worker.rank == 0 and time.perf_counter() - told > 1:
                told = time.perf_counter()
                for run in learning:
                    facts = {"step": step, "steps": run.num_steps, "epoch": epoch + 1}
                    self.emit({"kind": "step", "run": run.uri, **facts})
            ended = step % self.order.steps_per_epoch == 0
            if not ended:
                for run in learning:
                    if run.due(ended) and not run.ended:
                        run.sum_up()
                        with self.alone(run):
                            run.save({})
                        run.begin_sums()
                continue
            records = self._end_epoch(learning)
            yield records
            for run in self.active:
                run.candidate.train_mode()

    @contextlib.contextmanager
    def alone(self, run: Run) -> Iterator[None]:
        """What goes wrong in the block with one candidate of many ends that one: `Run.error`."""
        try:
            yield
        except Exception as error:
            if not self.sparing:
                raise
            run.error, run.ended = error, True
            with contextlib.suppress(StorageError):
                text = "".join(traceback.format_exception(error))
                storage.write_bytes(storage.join(run.uri, ERROR), text.encode())
            error.__traceback__ = None  # holds the step's tensors

    @property
    def active(self) -> list[Run]:
        """Runs with epochs left."""
        return [run for run in self.runs if not run.over]

    def _end_epoch(self, learning: Sequence[Run]) -> dict[str, Record]:
        learning = [run for run in learning if not run.ended]
        if not learning:
            return {}
        mark = time.perf_counter()
        for run in learning:
            run.sum_up()
        # A GPU may still be at the steps, whosever they are.
        seconds = (time.perf_counter() - mark) / len(learning)
        for run in learning:
            run.spent["train"] += seconds
        mark, records = time.perf_counter(), {}
        judges = self.validate(learning)
        seconds = (time.perf_counter() - mark) / len(learning)
        for run in learning:
            run.spent["validate"] += seconds
            if not run.error:
                with self.alone(run):
                    records[run.name] = run.end_epoch(judges[run.name])
        self._average(
            [run for run in learning if run.over and run.candidate.snapshots and not run.error], records
        )
        for run in learning:
            record = records.get(run.name)
            if record is not None and run.due(ended=True):
                with self.alone(run):
                    run.save({k: v for k, v in record.items() if k.startswith("val_")})
            if record is None or run.error:
                records.pop(run.name, None)
                continue
            if self.worker.rank == 0:
                if not self.sparing:
                    run.write_story()
                if run.tracker is not None:
                    run.tracker.log(record, run.now.step)
                names = {"goal_name": run.task.goal.name, "epochs": run.config.train.epochs}
                self.emit({"kind": "epoch", "run": run.uri, **names, **record})
            run.begin_sums()
        return records

    def _average(self, runs: Sequence[Run], records: dict[str, Record]) -> None:
        """Of trainings that end here: is an average of their weights better than their best epoch?"""
        asked: dict[str, tuple[Run, Generator[Weights, Judged, Outcome], Weights]] = {}
        mark = time.perf_counter()
        for run in runs:
            with self.alone(run):
                best_step = run.now.best_epoch * run.steps_per_epoch
                proposals = run.candidate.snapshots.proposals(run.best_weights(), best_step, run.task.goal)
                asked[run.name] = (run, proposals, next(proposals))
        while asked:
            with contextlib.ExitStack() as stack:
                for run, _, weights in asked.values():
                    stack.enter_context(run.with_weights(weights))
                judged = self.validate([run for run, _, _ in asked.values()], blocks=True)
            for run, proposals, _ in list(asked.values()):
                del asked[run.name]
                if run.error:
                    continue
                with self.alone(run):
                    answer = _answer(proposals, judged[run.name])
                    if not isinstance(answer, Outcome):
                        asked[run.name] = (run, proposals, answer)
                        continue
                    run.settle(answer, records[run.name])
                    if self.worker.rank == 0 and not self.sparing and answer.kind != NO_AVERAGE:
                        self.emit({"kind": "note", "run": run.uri, "text": answer.line(run.task.goal)})
        for run in runs:
            run.spent["validate"] += (time.perf_counter() - mark) / len(runs)

    def validate(self, runs: Sequence[Run], blocks: bool = False) -> dict[str, Judged]:
        """Metrics of each run over the whole validation split, by name, the same on every rank; every row
        counted once whatever the number of workers. ``blocks``: in parts, too."""
        found, total = (
            {
                run.name: Parts(partial(run.task.metrics, self.labels), blocks, tasks.identity(run.task))
                for run in runs
            }
            for _ in range(2)
        )
        for run in runs:
            run.candidate.share_statistics(self.worker.gather)
            run.model.module.eval()
        first = 0
        for fed in self.feed.validation({run.judged_at for run in runs}):
            rows = self.rows[first : first + len(fed.rows)]
            for run in runs:
                if run.error:
                    continue
                with self.alone(run):
                    x = fed.input(run.judged_at)
                    told = run.model.predict_rendered(x, fed.geometries, self.worker.device)
                    found[run.name].update(told, rows)
            first += len(rows)
        for run in runs:
            for states in self.worker.gather(found[run.name].states()):
                total[run.name].merge(states)
        return {name: parts.judged() for name, parts in total.items()}

    def golden(self) -> list[bytes]:
        """Encoded pictures, spread over the validation split, for golden samples of bundles."""
        if self._golden is None:
            chosen = checkpoint.golden_rows(self.num_rows)
            table = self.data.rows(self.validation_split, chosen, [IMAGE])
            self._golden = [picture["bytes"] for picture in table[IMAGE].to_pylist()]
        return self._golden


def _answer(proposals: Generator[Weights, Judged, Outcome], judged: Judged) -> Weights | Outcome:
    """The next weights to be judged, or what came of them all."""
    try:
        return proposals.send(judged)
    except StopIteration as end:
        outcome: Outcome = end.value
        return outcome


def _seed(*entropy: int) -> None:
    """Seed the random numbers of a step: as `torch.manual_seed`, which for each kind of GPU that it does not
    find formats a stack trace, 0.3 ms a step, nearly what a linear probe takes for its own."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    if torch.cuda.is_initialized():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
