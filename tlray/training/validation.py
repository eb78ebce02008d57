"""The validation split in one worker: candidates are judged on it after each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tlray import tasks
from tlray.data.dataset import Dataset
from tlray.data.sampler import share
from tlray.data.schema import IMAGE, Row
from tlray.inference.significance import Evaluation, SplitEvaluation
from tlray.tasks.base import Task
from tlray.training import checkpoint
from tlray.training.batches import BatchSource
from tlray.training.run import Run
from tlray.training.worker import Worker


class Validation:
    """The split's labels that fall to this worker, and the metrics of candidates over the whole split."""

    def __init__(self, data: Dataset, split: str, task: Task, labels: list[str], worker: Worker) -> None:
        self.data, self.split, self.labels, self.worker = data, split, labels, worker
        self.num_rows = sum(data.group_rows(split))
        ours = share(self.num_rows, worker.rank, worker.world)
        self.rows: list[Row] = data.read(split, list(task.columns)).take(ours).to_pylist()
        self._golden: list[bytes] | None = None

    def validate(
        self, runs: Sequence[Run], batches: BatchSource, blocks: bool = False
    ) -> dict[str, Evaluation]:
        """Metrics of each run by name, the same on every rank; each row counts once for any number of
        workers. ``blocks``: also the metrics of parts of the split, see `SplitEvaluation`."""
        own, total = ({run.name: self._evaluation(run, blocks) for run in runs} for _ in range(2))
        for run in runs:
            run.candidate.share_statistics(self.worker.gather)
            run.model.module.eval()
        first = 0
        for batch in batches.validation({run.validation_boundary for run in runs}):
            rows = self.rows[first : first + len(batch.rows)]
            first += len(rows)
            for run in runs:
                if run.error:
                    continue
                with run.isolated():
                    x = batch.input(run.validation_boundary)
                    predictions = run.model.predict_rendered(x, batch.geometries, self.worker.device)
                    own[run.name].update(predictions, rows)
        for run in runs:
            for states in self.worker.gather(own[run.name].states()):
                total[run.name].merge(states)
        return {name: evaluation.evaluation() for name, evaluation in total.items()}

    def _evaluation(self, run: Run, blocks: bool) -> SplitEvaluation:
        metrics = partial(run.task.metrics, self.labels)
        return SplitEvaluation(metrics, blocks, tasks.identity(run.task))

    def golden(self) -> list[bytes]:
        """Encoded pictures, spread over the split, for golden samples of bundles."""
        if self._golden is None:
            chosen = checkpoint.golden_rows(self.num_rows)
            table = self.data.rows(self.split, chosen, [IMAGE])
            self._golden = [picture["bytes"] for picture in table[IMAGE].to_pylist()]
        return self._golden
