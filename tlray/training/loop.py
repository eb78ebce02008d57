"""The one training loop: one or many candidates over one stream of batches.

`Loop.epochs` is a generator of the candidates' records after each epoch. Whoever drives it (a worker of Ray
Train, a trial or a group of trials in ``search``) passes the records on, and may end a candidate there. A
candidate starts at its run's newest sound checkpoint, at whatever step. From there on it sees the same
batches and draws the same random numbers as without the interruption, and as without the other candidates.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence

import torch

from tlray import storage, tasks
from tlray.config import Config
from tlray.data import loader
from tlray.data.dataset import Dataset
from tlray.data.sampler import Order
from tlray.inference.significance import Evaluation
from tlray.observer import Emit
from tlray.training import rundir
from tlray.training.average import NO_AVERAGE, Outcome, Weights
from tlray.training.batches import BatchSource, RenderedBatches
from tlray.training.build import InitialModels
from tlray.training.run import Record, Run
from tlray.training.validation import Validation
from tlray.training.worker import Worker

PROGRESS_EVERY_S = 1.0  # seconds between "step" events


def epochs(config: Config, worker: Worker, emit: Emit) -> Iterator[Record]:
    """Plain training, the loop with one candidate: its records, see `Loop.epochs`."""
    with contextlib.closing(Loop([config], worker, emit).epochs()) as records:
        for record in records:
            yield record[config.name]


class Loop:
    """Candidates that differ in what they train, over the batches of one data set.

    ``batches``: makes the source of batches; without it every batch is rendered for its step.
    ``sparing``: for a search, which discards nearly all bundles. Checkpoints are written once a minute of a
    candidate's work instead of each epoch, the best bundle where `Run.publish_best` is called, and an error
    in one candidate ends that one alone.
    Raises TlrayError for what the user can mend.
    """

    def __init__(
        self,
        configs: Sequence[Config],
        worker: Worker,
        emit: Emit,
        batches: Callable[[Loop], BatchSource] | None = None,
        sparing: bool = False,
    ) -> None:
        torch.set_num_threads(worker.threads)
        torch.set_flush_denormal(True)  # denormal gradients made CPU steps up to 1.7 times slower
        config = configs[0]
        self.worker, self.emit, self.sparing = worker, emit, sparing
        task, self.data = tasks.load(config.task), Dataset.open(config.data.uri)
        labels, self.split = tasks.labels_of(task, self.data), config.data.train_split
        self.order = Order(
            self.data.group_rows(self.split), config.train.batch_size, config.seed, worker.world,
            config.data.shuffle_window, tasks.together(task, self.data, self.split),
        )  # fmt: skip
        self.validation = Validation(self.data, config.data.validation_split, task, labels, worker)
        self.refused: dict[str, Exception] = {}  # candidates of many that could not be built, by name
        self.runs: list[Run] = []
        models = InitialModels(self.data, worker.device, many=len(configs) > 1)
        for candidate in configs:
            try:
                self.runs.append(
                    Run(
                        candidate,
                        models.build,
                        self.order.steps_per_epoch,
                        worker,
                        self.validation.golden,
                        sparing,
                    )
                )
            except Exception as error:
                if not sparing:
                    raise
                self.refused[candidate.name] = error
        if not self.runs:
            raise self.refused[config.name]
        self.source = loader.Source(
            config.data.uri, self.split, task, tuple(labels), self.runs[0].model.preprocess,
            config.augment, config.seed, config.data.cache_mb,
        )  # fmt: skip
        self.batches: BatchSource = (
            batches(self) if batches else RenderedBatches(self.source, self.order, config, worker)
        )

    @property
    def active(self) -> list[Run]:
        """Runs with epochs left."""
        return [run for run in self.runs if not run.over]

    def epochs(self) -> Generator[dict[str, Record]]:
        """Records by name after each epoch: epoch (from 1), step, lr, train_loss, val_*, goal, best, seconds.

        Leaves the files of `rundir` in the runs' folders: the best bundle, checkpoints, the epochs.
        """
        try:
            yield from self._epochs()
        finally:  # also where the caller stops before the end
            for run in self.runs:
                if run.tracker is not None:
                    run.tracker.close()

    def _epochs(self) -> Iterator[dict[str, Record]]:
        """The training loop, in the order in which things happen."""
        if self.worker.rank == 0:
            self._begin()
        last_progress = 0.0
        step = min((run.now.step for run in self.active), default=0)
        batches = self.batches.train(step, max(run.num_steps for run in self.runs))
        for run in self.runs:
            run.candidate.train_mode()
        while self.active:
            # Take the step's batch.
            epoch, rows = step // self.order.steps_per_epoch, self.order.global_batch(step)
            began = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - began
            num_ours = len(batch.rows) if batch else 0
            if batch is None:
                # No row of an epoch's last batch is this rank's. The others wait for its gradients, so it
                # takes part with one row, which weighs nothing.
                batch = self.batches.one(epoch, rows[:1])

            # Train on it. A candidate whose checkpoint was at a later step waits for the others to reach it.
            learning = [run for run in self.active if run.now.step == step]
            for run in learning:
                run.spent["wait"] += waited / len(learning)
                with run.isolated():
                    run.train_step(batch, num_ours, len(rows))
            step += 1
            if self.worker.rank == 0 and time.perf_counter() - last_progress > PROGRESS_EVERY_S:
                last_progress = time.perf_counter()
                for run in learning:
                    facts = {"step": step, "steps": run.num_steps, "epoch": epoch + 1}
                    self.emit({"kind": "step", "run": run.uri, **facts})
            learning = [run for run in learning if not run.ended]
            if step % self.order.steps_per_epoch:
                for run in learning:
                    if run.checkpoint_due(epoch_ended=False):
                        run.gather_loss()
                        with run.isolated():
                            run.save_checkpoint({})
                        run.restart_loss()
                continue

            # The epoch has ended: validate it, average at the very end, save, report.
            records: dict[str, Record] = {}
            if learning:
                self._gather_losses(learning)
                records = self._validate(learning)
                finished = [run for run in learning if run.over and run.candidate.snapshots and not run.error]
                self._average(finished, records)
            for run in learning:
                record = records.get(run.name)
                if record is not None and run.checkpoint_due(epoch_ended=True):
                    with run.isolated():
                        run.save_checkpoint({k: v for k, v in record.items() if k.startswith("val_")})
                if record is None or run.error:
                    records.pop(run.name, None)
                    continue
                if self.worker.rank == 0:
                    self._report_epoch(run, record)
                run.restart_loss()
            yield records
            for run in self.active:
                run.candidate.train_mode()

    def _begin(self) -> None:
        for run in self.runs:
            self.emit({"kind": "start", "run": run.uri, "step": run.now.step, "steps": run.num_steps})
        for run in self.runs:
            # A process that was killed at the very end has not written it.
            metrics = storage.join(run.uri, rundir.METRICS)
            if run.over and not self.sparing and not storage.exists(metrics):
                run.write_story()

    def _gather_losses(self, runs: Sequence[Run]) -> None:
        """The epoch's mean loss of each run, over all ranks."""
        began = time.perf_counter()
        for run in runs:
            run.gather_loss()
        # A GPU may still be computing the steps of any of them: they share the time.
        seconds = (time.perf_counter() - began) / len(runs)
        for run in runs:
            run.spent["train"] += seconds

    def _validate(self, runs: Sequence[Run]) -> dict[str, Record]:
        """Judge an epoch of each run; its record by name."""
        began = time.perf_counter()
        evaluations = self.validation.validate(runs, self.batches)
        seconds = (time.perf_counter() - began) / len(runs)
        records = {}
        for run in runs:
            run.spent["validate"] += seconds
            if not run.error:
                with run.isolated():
                    records[run.name] = run.end_epoch(evaluations[run.name])
        return records

    def _report_epoch(self, run: Run, record: Record) -> None:
        if not self.sparing:
            run.write_story()
        if run.tracker is not None:
            run.tracker.log(record, run.now.step)
        names = {"goal_name": run.task.goal.name, "epochs": run.config.train.epochs}
        self.emit({"kind": "epoch", "run": run.uri, **names, **record})

    def _average(self, runs: Sequence[Run], records: dict[str, Record]) -> None:
        """Of runs that end here: keep an average of their weights where it is better than the best epoch.

        Each run proposes weights, one after the other; those of all runs are judged in one pass.
        """
        pending: dict[str, tuple[Run, Generator[Weights, Evaluation, Outcome], Weights]] = {}
        began = time.perf_counter()
        for run in runs:
            with run.isolated():
                best_step = run.now.best_epoch * run.steps_per_epoch
                proposals = run.candidate.snapshots.proposals(run.best_weights(), best_step, run.task.goal)
                pending[run.name] = (run, proposals, next(proposals))
        while pending:
            with contextlib.ExitStack() as stack:
                for run, _, weights in pending.values():
                    with run.isolated():
                        stack.enter_context(run.with_weights(weights))
                tried = [run for run, _, _ in pending.values()]
                evaluations = self.validation.validate(tried, self.batches, blocks=True)
            for run, proposals, _ in list(pending.values()):
                del pending[run.name]
                if run.error:
                    continue
                with run.isolated():
                    answer = _next_proposal(proposals, evaluations[run.name])
                    if not isinstance(answer, Outcome):
                        pending[run.name] = (run, proposals, answer)
                        continue
                    run.take_average(answer, records[run.name])
                    if self.worker.rank == 0 and not self.sparing and answer.kind != NO_AVERAGE:
                        self.emit({"kind": "note", "run": run.uri, "text": answer.line(run.task.goal)})
        for run in runs:
            run.spent["validate"] += (time.perf_counter() - began) / len(runs)


def _next_proposal(
    proposals: Generator[Weights, Evaluation, Outcome], evaluation: Evaluation
) -> Weights | Outcome:
    """The next weights to be judged, or what averaging came to."""
    try:
        return proposals.send(evaluation)
    except StopIteration as end:
        outcome: Outcome = end.value
        return outcome
