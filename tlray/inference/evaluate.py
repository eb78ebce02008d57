"""Evaluation of a bundle on a split, with the predictor that serving uses; Ray Data renders the pictures."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from tlray import tasks
from tlray.bundle import bundle
from tlray.bundle.predictor import Predictor
from tlray.data import loader, schema
from tlray.data.dataset import Dataset
from tlray.errors import DataError
from tlray.inference.significance import SplitEvaluation
from tlray.observer import Progress

BATCH_SIZE = 64
FEW = 1000  # a split with fewer rows has standard errors beside its metrics


def check(bundle_uri: str, data_uri: str, split: str) -> None:
    """Check before evaluation starts that the split has labels, and that they are the model's.

    Raises BundleError, DataError.
    """
    manifest, data = bundle.read_manifest(bundle_uri), Dataset.open(data_uri)
    task = tasks.load(manifest.task)
    data.group_rows(split)
    data_labels, labels = tasks.labels_of(task, data), manifest.labels
    if data_labels != labels:
        differing = sorted(set(data_labels) ^ set(labels)) or ["their order"]
        raise DataError(
            f"{data_uri}: labels are not those of {bundle_uri} (differing: {', '.join(differing[:5])}); "
            "accepted: a data set with the same labels in the same order"
        )
    tasks.check_split(task, data, split)


def evaluate(
    bundle_uri: str,
    data_uri: str,
    split: str = "test",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Predict every row of a split once: ``{"split", "metrics", "standard_errors", "labels", "rows", ...}``.

    ``standard_errors`` are those of the metrics, {} for a split of `FEW` rows or more.
    ``rows`` are in the split's order; each has id, path and what the task records (`Task.record`).
    Raises DataError where the data's labels are not the model's, BundleError for an unsound bundle.
    """
    start = time.perf_counter()
    predictor = Predictor(bundle_uri)
    check(bundle_uri, data_uri, split)
    data, task, labels = Dataset.open(data_uri), predictor.task, predictor.labels
    source = loader.Source(data_uri, split, task, tuple(labels), predictor.preprocess)
    columns = [name for name in (*task.columns, schema.ID) if name in data.schema.names]
    rows = data.read(split, columns).to_pylist()
    parts, records = SplitEvaluation(partial(task.metrics, labels), len(rows) < FEW, tasks.identity(task)), []
    for batch in loader.evaluation_batches(source, 0, 1, BATCH_SIZE):
        predictions = predictor.predict_rendered(batch.x_BCHW, batch.geometries)
        batch_rows = [rows[int(i)] for i in batch.rows]
        parts.update(predictions, batch_rows)
        records += [
            {"id": row.get(schema.ID, f"{split}-{i}"), "path": path, **task.record(row, prediction)}
            for i, row, path, prediction in zip(batch.rows, batch_rows, batch.paths, predictions, strict=True)
        ]
        if progress is not None:
            progress("evaluate", len(records), len(rows))
    seconds = time.perf_counter() - start
    return {
        "split": split,
        "metrics": parts.metrics[0].compute(),
        "standard_errors": parts.standard_errors(),
        "labels": labels,
        "rows": records,
        "seconds": seconds,
    }
