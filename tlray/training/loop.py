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
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial

import torch

from tlray import storage, tasks
from tlray.bundle import bundle
from tlray.config import Config
from tlray.data import loader
from tlray.data.dataset import Dataset
from tlray.data.sampler import Order, share
from tlray.data.schema import IMAGE, Row
from tlray.errors import StorageError
from tlray.inference.judging import Evaluation, SplitEvaluation
from tlray.observer import Emit
from tlray.training import checkpoint, rundir
from tlray.training.average import NO_AVERAGE, Outcome, Weights
from tlray.training.batches import BatchSource, RenderedBatches
from tlray.training.build import copy_model, initial_model, start_key
from tlray.training.run import Record, Run
from tlray.training.worker import Worker


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
        feed: Callable[[Loop], BatchSource] | None = None,
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
                self.runs.append(
                    Run(one, self.model, self.order.steps_per_epoch, worker, self.golden, sparing)
                )
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
        self.feed: BatchSource = (
            feed(self) if feed else RenderedBatches(self.source, self.order, config, worker)
        )

    def model(self, config: Config) -> bundle.Model:
        """A candidate's model as it begins. Of many that begin alike one is built, and theirs are copies."""
        alike = start_key(config)
        built = self._built.get(alike)
        if built is None:
            torch.manual_seed(config.seed)
            built = initial_model(config, self.data)
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
                if (
                    run.over
                    and not self.sparing
                    and not storage.exists(storage.join(run.uri, rundir.METRICS))
                ):
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
                storage.write_bytes(storage.join(run.uri, rundir.ERROR), text.encode())
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
        asked: dict[str, tuple[Run, Generator[Weights, Evaluation, Outcome], Weights]] = {}
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

    def validate(self, runs: Sequence[Run], blocks: bool = False) -> dict[str, Evaluation]:
        """Metrics of each run over the whole validation split, by name, the same on every rank; every row
        counted once whatever the number of workers. ``blocks``: in parts, too."""
        found, total = (
            {
                run.name: SplitEvaluation(
                    partial(run.task.metrics, self.labels), blocks, tasks.identity(run.task)
                )
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


def _answer(proposals: Generator[Weights, Evaluation, Outcome], judged: Evaluation) -> Weights | Outcome:
    """The next weights to be judged, or what came of them all."""
    try:
        return proposals.send(judged)
    except StopIteration as end:
        outcome: Outcome = end.value
        return outcome
