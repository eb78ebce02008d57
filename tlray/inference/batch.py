"""Batch inference: a model over every picture of a data set or folder, by Ray Data, into Parquet files.

The job is divided into parts, each a range of rows and one file (``data/train-00003-of-00017.parquet``). The
division depends only on the data and on the size of the model's input. Tasks render parts, actors that have
loaded the model run them, tasks write the results; pixels and results never go through the driver.
A part is written whole or not at all, and the manifest last, so a job that was killed and is started again
does only the missing parts.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch

from tlray import runtime, storage
from tlray.bundle import bundle
from tlray.bundle.predictor import Predictor
from tlray.config import Scale
from tlray.data import loader, ray_data, schema
from tlray.data import shards as files
from tlray.data.image import Geometry, Preprocess, render
from tlray.data.schema import Row
from tlray.errors import DataError, PictureError, RunError, StorageError, TlrayError
from tlray.inference.inputs import Inputs
from tlray.ingestion import writer
from tlray.observer import Progress
from tlray.tasks.base import Prediction

PLAN = "plan.json"  # in an unfinished target; the manifest replaces it
PART_ROWS = 1024
PART_BYTES = 64 * 2**20  # rendered pixels of a part: the memory of a task, and the input of an actor
BATCH_SIZE = 64
PREDICTIONS = "predictions.json"  # the manifest that `predict` writes
_CACHE_MB = 64  # rows are read in order, so only the current row group is useful

Apply = Callable[[torch.Tensor, list[Geometry]], pa.Table]


class Work(Protocol):
    """What is computed for each picture. It is sent to the actors, so it holds settings and no model."""

    @property
    def preprocess(self) -> Preprocess: ...

    @property
    def fields(self) -> pa.Schema:
        """The columns of the results."""
        ...

    def load(self) -> Apply:
        """Load the model -> a function of (x_BCHW uint8, geometries) that gives B rows of ``fields``."""
        ...


def run(
    source: Inputs,
    work: Work,
    out: str,
    marker: str,
    facts: Mapping[str, Any],
    progress: Progress | None = None,
    stage: str = "predict",
) -> dict[str, Any]:
    """Do the missing parts of a job -> its manifest, with the ``rows`` and ``seconds`` of this call added.

    ``facts`` describe the work. They are written into the manifest, whose file name is ``marker``, and a
    target with other facts is refused (DataError). The column ``error`` says why a picture could not be used.
    """
    start, report = time.perf_counter(), progress or (lambda stage, done, total: None)
    out, pre = storage.absolute(out), work.preprocess
    columns = [column for column in source.columns if column.name not in (*work.fields.names, "error")]
    source = replace(source, columns=pa.schema(columns))
    max_rows = max(1, min(PART_ROWS, PART_BYTES // (3 * pre.size[0] * pre.size[1])))
    parts = source.plan(max_rows)
    job = {
        "format": 1,
        **facts,
        "data": source.uri,
        "fingerprint": source.fingerprint,
        "labels": source.labels,
        "num_rows": source.num_rows,
        "parts": {p["name"]: {key: p[key] for key in ("split", "start", "stop")} for p in parts},
    }
    written = _written_parts(out, marker, job)
    if storage.exists(storage.join(out, marker)):
        return {**storage.read_json(storage.join(out, marker)), "rows": 0, "seconds": 0.0}
    missing = [part for part in parts if part["name"] not in written]
    errors = sum(_num_errors(storage.join(out, name)) for name in written)
    done = done_before = source.num_rows - sum(p["stop"] - p["start"] for p in missing)
    report(stage, done, source.num_rows)
    for part in _pipeline(source, work, out, missing):
        errors += part["num_errors"]
        done += part["num_rows"]
        report(stage, done, source.num_rows)
    manifest = {**job, "num_errors": errors}
    storage.write_json(storage.join(out, marker), manifest)
    storage.delete(storage.join(out, PLAN))
    return {**manifest, "rows": done - done_before, "seconds": time.perf_counter() - start}


def _written_parts(out: str, marker: str, job: dict[str, Any]) -> set[str]:
    """Names of the parts that are already written. Writes the plan into an empty target.

    Raises DataError where the target has other content.
    """
    paths = {f.path for f in storage.walk(out)} if storage.exists(out) else set()
    description = next((name for name in (marker, PLAN) if name in paths), None)
    if description is None:
        if paths:
            raise DataError(f"{out}: holds other files ({min(paths)}); accepted: an empty place")
        storage.write_json(storage.join(out, PLAN), job)
        return set()
    stored = storage.read_json(storage.join(out, description))
    for key, value in json.loads(json.dumps(job)).items():
        if stored.get(key) != value:
            values = f": {stored.get(key)!r}, not {value!r}" if isinstance(value, str | int | None) else ""
            raise DataError(
                f"{out}: holds other work ({key}{values}); accepted: the same model, data and settings to go "
                "on, or another place"
            )
    return set(job["parts"]) & paths


def _num_errors(uri: str) -> int:
    """How many pictures of a written part could not be used, from the file's metadata."""
    with files.reading(uri):
        return int((files.Parquet(uri).schema.metadata or {}).get(b"num_errors", 0))


def _pipeline(
    source: Inputs, work: Work, out: str, parts: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Name, num_rows and num_errors of each part once it is written. Raises RunError where one fails."""
    if not parts:
        return
    gpus = int(ray.cluster_resources().get("GPU", 0))
    actors = min(len(parts), gpus or len(runtime.nodes()))
    resources = runtime.resources(Scale(num_workers=actors))
    cpus = int(ray.cluster_resources().get("CPU", 2))
    tasks = min(len(parts), max(1, cpus // 2))
    # If the actors held every CPU, no task could render pixels for them.
    per_actor = resources.cpus_per_worker if actors * resources.cpus_per_worker < cpus else 0
    part_schema = pa.schema(
        [("name", pa.string()), ("split", pa.string()), ("start", pa.int64()), ("stop", pa.int64()),
         ("paths", pa.list_(pa.string()))]
    )  # fmt: skip
    with ray_data.quiet():
        data: Any = ray.data.from_arrow([pa.Table.from_pylist([part], schema=part_schema) for part in parts])
        whole_blocks: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
        render_settings = {
            "uri": source.uri, "fingerprint": source.fingerprint, "columns": source.columns,
            "preprocess": work.preprocess,
        }  # fmt: skip
        data = data.map_batches(
            _render, fn_kwargs=render_settings, concurrency=tasks, num_cpus=1, **whole_blocks
        )
        data = data.map_batches(
            _Actor, fn_constructor_args=(work,), concurrency=(1, actors), num_cpus=per_actor,
            num_gpus=resources.gpus_per_worker or None, **whole_blocks,
        )  # fmt: skip
        data = data.map_batches(_write, fn_kwargs={"out": out}, num_cpus=0.1, **whole_blocks)
    blocks: Any = iter(data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    with contextlib.closing(blocks):
        for block in blocks:
            for row in block.to_pylist():
                if row["fault"] is not None:
                    raise RunError(f"{row['name']}: {row['fault']}; the same again goes on from here")
                yield row


# ---- in the tasks. A part is one row of a block, because Ray Data joins and splits blocks but never divides
# a row. An error that ends the job travels as the value ``fault``, because Ray would wrap an exception.


def _render(
    block: pa.Table, uri: str, fingerprint: str, columns: pa.Schema, preprocess: Preprocess
) -> pa.Table:
    """Parts -> their rows, and the pixels of all pictures that could be rendered, joined to one value."""
    row_schema = pa.schema([*columns, ("error", pa.string()), ("size", pa.list_(pa.int32()))])
    tables = []
    for part in block.to_pylist():
        rows, pixels, fault = [], [], None
        try:
            for data, row in _read(part, uri, fingerprint, columns):
                error, size = None, None
                try:
                    if isinstance(data, StorageError):
                        raise data
                    x_CHW, geometry = render(data, preprocess)
                    pixels.append(x_CHW.tobytes())
                    size = list(geometry.source)
                except (PictureError, StorageError) as cause:
                    error = f"{getattr(cause, 'kind', 'unreadable')}: {cause}"
                rows.append({**{name: row.get(name) for name in columns.names}, "error": error, "size": size})
        except TlrayError as cause:
            fault = str(cause)
        row_array = pa.array(rows, pa.struct(list(row_schema)))
        one_list = pa.ListArray.from_arrays(pa.array([0, len(row_array)], pa.int32()), row_array)
        tables.append(
            pa.table(
                {
                    "name": pa.array([part["name"]], pa.string()),
                    "rows": one_list,
                    "pixels": pa.array([b"".join(pixels)], pa.large_binary()),
                    "fault": pa.array([fault], pa.string()),
                }
            )
        )
    return pa.concat_tables(tables)


def _read(
    part: dict[str, Any], uri: str, fingerprint: str, columns: pa.Schema
) -> Iterator[tuple[bytes | StorageError, Row]]:
    """The pictures of a part, and the other columns of their rows."""
    if part["paths"] is not None:
        pictures = writer.read(uri, part["paths"]) if uri else map(_bytes, part["paths"])
        for path, data in zip(part["paths"], pictures, strict=True):
            yield data, {schema.ID: path, "path": path}
        return
    names = (schema.IMAGE, *(name for name in columns.names if name != "path"))
    read = loader.reader(uri, part["split"], _CACHE_MB, fingerprint, names)
    for index in range(part["start"], part["stop"]):
        yield read(index)


def _bytes(uri: str) -> bytes | StorageError:
    try:
        return storage.read_bytes(uri)
    except StorageError as error:
        return error


class _Actor:
    """Holds the loaded model; makes a Parquet file in memory of each part that `_render` gives."""

    def __init__(self, work: Work) -> None:
        self.work, self.apply = work, work.load()

    def __call__(self, block: pa.Table) -> pa.Table:
        parts = [self._part(block, i) for i in range(block.num_rows)]
        part_schema = [("name", pa.string()), ("num_rows", pa.int64()), ("num_errors", pa.int64()),
                       ("file", pa.large_binary()), ("fault", pa.string())]  # fmt: skip
        return pa.Table.from_pylist(parts, schema=pa.schema(part_schema))

    def _part(self, block: pa.Table, i: int) -> dict[str, Any]:
        part = {"name": block["name"][i].as_py(), "fault": block["fault"][i].as_py()}
        if part["fault"] is not None:
            return {**part, "num_rows": 0, "num_errors": 0, "file": b""}
        rows = pa.Table.from_struct_array(block["rows"][i].values)
        width, height = self.work.preprocess.size
        x_NCHW = np.frombuffer(block["pixels"][i].as_buffer(), np.uint8).reshape(-1, 3, height, width)
        sizes = rows["size"].to_pylist()
        rendered = [row for row, size in enumerate(sizes) if size is not None]
        batches = [self.work.fields.empty_table()]
        for start in range(0, len(rendered), BATCH_SIZE):
            batch_rows = rendered[start : start + BATCH_SIZE]
            # Copied, because memory of the object store is read-only and torch tensors must not be.
            x_BCHW = torch.from_numpy(x_NCHW[start : start + len(batch_rows)].copy())
            geometries = [self.work.preprocess.geometry(tuple(sizes[row])) for row in batch_rows]
            batches.append(self.apply(x_BCHW, geometries).cast(self.work.fields))
        result_of_row: list[int | None] = [None] * rows.num_rows
        for position, row in enumerate(rendered):
            result_of_row[row] = position
        results = pa.concat_tables(batches).combine_chunks().take(pa.array(result_of_row, pa.int64()))
        table = rows.drop_columns(["size"])
        for name in results.column_names:
            table = table.append_column(self.work.fields.field(name), results[name])
        num_errors = rows.num_rows - len(rendered)
        table = table.replace_schema_metadata({"num_errors": str(num_errors)})
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        return {**part, "num_rows": rows.num_rows, "num_errors": num_errors, "file": sink.getvalue()}


def _write(block: pa.Table, out: str) -> pa.Table:
    """Write the files of a block, each in one step -> the block without the files' bytes."""
    faults = block["fault"].to_pylist()
    for i, name in enumerate(block["name"].to_pylist()):
        if faults[i] is None:
            try:
                storage.write_bytes(storage.join(out, name), block["file"][i].as_py())
            except StorageError as error:
                faults[i] = str(error)
    return block.drop_columns(["file", "fault"]).append_column("fault", pa.array(faults, pa.string()))


# ---- predictions


@dataclass(frozen=True)
class Predictions:
    """A bundle's predictions as JSON text; where they have a label and a probability, also as columns."""

    bundle: str
    preprocess: Preprocess
    fields: pa.Schema = field(
        default_factory=lambda: pa.schema(
            [("prediction", pa.string()), ("predicted", pa.string()), ("probability", pa.float32())]
        )
    )

    def load(self) -> Apply:
        predictor = Predictor(self.bundle)

        def apply(x_BCHW: torch.Tensor, geometries: list[Geometry]) -> pa.Table:
            predictions: list[Prediction] = predictor.predict_rendered(x_BCHW, geometries)
            texts = [json.dumps(one, ensure_ascii=False) for one in predictions]
            labels = [one.get("label") for one in predictions]
            probabilities = [one.get("probability") for one in predictions]
            columns = zip((texts, labels, probabilities), self.fields.types, strict=True)
            return pa.table([pa.array(values, type_) for values, type_ in columns], schema=self.fields)

        return apply


def predict(bundle_uri: str, source: Inputs, out: str, progress: Progress | None = None) -> dict[str, Any]:
    """Write the predictions of a bundle for every picture to ``out``, as Parquet; see `run`."""
    bundle_uri = storage.absolute(bundle_uri)
    manifest = bundle.verify(bundle_uri)
    work = Predictions(bundle_uri, manifest.preprocess)
    facts = {
        "kind": "predictions",
        "model": bundle_uri,
        "weights": manifest.checksums[bundle.WEIGHTS],
        "task": manifest.task,
        "classes": manifest.labels,
    }
    return run(source, work, out, PREDICTIONS, facts, progress)
