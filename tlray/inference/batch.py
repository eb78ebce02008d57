"""A model over every picture of a data set or folder: a Ray Data job into Parquet that may be killed.

The work is cut into parts: runs of rows, named by the plan (``data/train-00003-of-00017.parquet``), which
depends on the data and on the size of the model's input and on nothing else. Tasks render parts, actors that
hold the model once take them in turn, tasks write what comes out. A part is written whole or not at all, so a
job that was killed and is started again does only the parts that are not there; the manifest comes last.
Pictures, pixels and results go from task to task and never through the driver.
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
from tlray.data import loader, schema
from tlray.data import shards as files
from tlray.data.image import Geometry, Preprocess, render
from tlray.data.schema import Row
from tlray.errors import DataError, PictureError, RunError, StorageError, TlrayError
from tlray.inference.inputs import Inputs
from tlray.ingestion import writer
from tlray.observer import Progress
from tlray.tasks.base import Prediction

PLAN = "plan.json"  # lies in an unfinished target; the manifest takes its place
PART_ROWS = 1024
PART_BYTES = 64 * 2**20  # of rendered pixels: what a task holds, and what goes to an actor at once
BATCH_SIZE = 64
PREDICTIONS = "predictions.json"  # manifest of what `predict` leaves
_CACHE_MB = 64  # rows are read in order: more than the row group at hand is of no use

Apply = Callable[[torch.Tensor, list[Geometry]], pa.Table]


class Work(Protocol):
    """What is done to each picture; travels to the actors, so it holds settings and no model."""

    @property
    def preprocess(self) -> Preprocess: ...

    @property
    def fields(self) -> pa.Schema:
        """Columns that the work adds."""
        ...

    def load(self) -> Apply:
        """Load the model: a function of (x_BCHW uint8, geometries) -> table of ``fields``, B rows."""
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
    """Do what is not done yet of the job; the manifest, with ``rows`` done now and ``seconds`` beside it.

    ``facts`` say what the work is: they stand in the manifest, and a target that holds work with other
    facts is refused (DataError). ``error`` in a row says why its picture could not be used.
    """
    began, tell = time.perf_counter(), progress or (lambda stage, done, total: None)
    out, pre = storage.absolute(out), work.preprocess
    kept = [one for one in source.columns if one.name not in (*work.fields.names, "error")]
    source = replace(source, columns=pa.schema(kept))
    most = max(1, min(PART_ROWS, PART_BYTES // (3 * pre.size[0] * pre.size[1])))
    parts = source.plan(most)
    job = {
        "format": 1,
        **facts,
        "data": source.uri,
        "fingerprint": source.fingerprint,
        "labels": source.labels,
        "num_rows": source.num_rows,
        "parts": {p["name"]: {key: p[key] for key in ("split", "start", "stop")} for p in parts},
    }
    there = _there(out, marker, job)
    if storage.exists(storage.join(out, marker)):
        return {**storage.read_json(storage.join(out, marker)), "rows": 0, "seconds": 0.0}
    todo = [part for part in parts if part["name"] not in there]
    errors = sum(_errors(storage.join(out, name)) for name in there)
    done = before = source.num_rows - sum(p["stop"] - p["start"] for p in todo)
    tell(stage, done, source.num_rows)
    for row in _pipeline(source, work, out, todo):
        errors += row["num_errors"]
        done += row["num_rows"]
        tell(stage, done, source.num_rows)
    manifest = {**job, "num_errors": errors}
    storage.write_json(storage.join(out, marker), manifest)
    storage.delete(storage.join(out, PLAN))
    return {**manifest, "rows": done - before, "seconds": time.perf_counter() - began}


def _there(out: str, marker: str, job: dict[str, Any]) -> set[str]:
    """Parts that are written already; a fresh target gets its plan. Raises DataError for other content."""
    files = {f.path for f in storage.walk(out)} if storage.exists(out) else set()
    known = next((name for name in (marker, PLAN) if name in files), None)
    if known is None:
        if files:
            raise DataError(f"{out}: holds other files ({min(files)}); accepted: an empty place")
        storage.write_json(storage.join(out, PLAN), job)
        return set()
    theirs = storage.read_json(storage.join(out, known))
    for key, value in json.loads(json.dumps(job)).items():
        if theirs.get(key) != value:
            said = f": {theirs.get(key)!r}, not {value!r}" if isinstance(value, str | int | None) else ""
            raise DataError(
                f"{out}: holds other work ({key}{said}); accepted: the same model, data and settings to go "
                "on, or another place"
            )
    return set(job["parts"]) & files


def _errors(uri: str) -> int:
    """Rows of a part whose picture could not be used, as its footer says."""
    with files.reading(uri):
        return int((files.Parquet(uri).schema.metadata or {}).get(b"num_errors", 0))


def _pipeline(source: Inputs, work: Work, out: str, todo: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Parts as they are written: name, num_rows, num_errors. Raises what was the matter with one."""
    if not todo:
        return
    gpus = int(ray.cluster_resources().get("GPU", 0))
    actors = min(len(todo), gpus or len(runtime.nodes()))
    each = runtime.resources(Scale(num_workers=actors))
    cpus = int(ray.cluster_resources().get("CPU", 2))
    tasks = min(len(todo), max(1, cpus // 2))
    # Actors that hold every CPU would wait for ever for pixels that no task can render.
    per_actor = each.cpus_per_worker if actors * each.cpus_per_worker < cpus else 0
    kind = pa.schema(
        [("name", pa.string()), ("split", pa.string()), ("start", pa.int64()), ("stop", pa.int64()),
         ("paths", pa.list_(pa.string()))]
    )  # fmt: skip
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    with ray.data.DataContext.current(context):
        data: Any = ray.data.from_arrow([pa.Table.from_pylist([part], schema=kind) for part in todo])
        whole: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
        told = {"uri": source.uri, "fingerprint": source.fingerprint, "columns": source.columns}
        data = data.map_batches(
            _render, fn_kwargs={**told, "preprocess": work.preprocess}, concurrency=tasks, num_cpus=1, **whole
        )
        data = data.map_batches(
            _Actor, fn_constructor_args=(work,), concurrency=(1, actors), num_cpus=per_actor,
            num_gpus=each.gpus_per_worker or None, **whole,
        )  # fmt: skip
        data = data.map_batches(_write, fn_kwargs={"out": out}, num_cpus=0.1, **whole)
    blocks: Any = iter(data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    with contextlib.closing(blocks):
        for block in blocks:
            for row in block.to_pylist():
                if row["fault"] is not None:
                    raise RunError(f"{row['name']}: {row['fault']}; the same again goes on from here")
                yield row


# ---- in the tasks. A part is one row of a block: Ray Data may join and split blocks, and tears no row. A
# fault is a value, because Ray would wrap an exception.


def _render(
    block: pa.Table, uri: str, fingerprint: str, columns: pa.Schema, preprocess: Preprocess
) -> pa.Table:
    """Parts -> their rows, and the pixels of those whose picture is sound, one after another."""
    kinds = pa.schema([*columns, ("error", pa.string()), ("size", pa.list_(pa.int32()))])
    made = []
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
                except (PictureError, StorageError) as bad:
                    error = f"{getattr(bad, 'kind', 'unreadable')}: {bad}"
                rows.append({**{name: row.get(name) for name in columns.names}, "error": error, "size": size})
        except TlrayError as bad:
            fault = str(bad)
        listed = pa.array(rows, pa.struct(list(kinds)))
        one = pa.ListArray.from_arrays(pa.array([0, len(listed)], pa.int32()), listed)
        made.append(
            pa.table(
                {
                    "name": pa.array([part["name"]], pa.string()),
                    "rows": one,
                    "pixels": pa.array([b"".join(pixels)], pa.large_binary()),
                    "fault": pa.array([fault], pa.string()),
                }
            )
        )
    return pa.concat_tables(made)


def _read(
    part: dict[str, Any], uri: str, fingerprint: str, columns: pa.Schema
) -> Iterator[tuple[bytes | StorageError, Row]]:
    """Pictures of a part and their other columns."""
    if part["paths"] is not None:
        pictures = writer.read(uri, part["paths"]) if uri else map(_bytes, part["paths"])
        for path, data in zip(part["paths"], pictures, strict=True):
            yield data, {schema.ID: path, "path": path}
        return
    wanted = (schema.IMAGE, *(name for name in columns.names if name != "path"))
    read = loader.reader(uri, part["split"], _CACHE_MB, fingerprint, wanted)
    for index in range(part["start"], part["stop"]):
        yield read(index)


def _bytes(uri: str) -> bytes | StorageError:
    try:
        return storage.read_bytes(uri)
    except StorageError as error:
        return error


class _Actor:
    """Holds the model: parts as `_render` gives them -> Parquet files in memory."""

    def __init__(self, work: Work) -> None:
        self.work, self.apply = work, work.load()

    def __call__(self, block: pa.Table) -> pa.Table:
        made = [self._part(block, i) for i in range(block.num_rows)]
        kind = [("name", pa.string()), ("num_rows", pa.int64()), ("num_errors", pa.int64()),
                ("file", pa.large_binary()), ("fault", pa.string())]  # fmt: skip
        return pa.Table.from_pylist(made, schema=pa.schema(kind))

    def _part(self, block: pa.Table, i: int) -> dict[str, Any]:
        told = {"name": block["name"][i].as_py(), "fault": block["fault"][i].as_py()}
        if told["fault"] is not None:
            return {**told, "num_rows": 0, "num_errors": 0, "file": b""}
        rows = pa.Table.from_struct_array(block["rows"][i].values)
        width, height = self.work.preprocess.size
        x_NCHW = np.frombuffer(block["pixels"][i].as_buffer(), np.uint8).reshape(-1, 3, height, width)
        sizes = rows["size"].to_pylist()
        sound = [row for row, size in enumerate(sizes) if size is not None]
        found = [self.work.fields.empty_table()]
        for at in range(0, len(sound), BATCH_SIZE):
            here = sound[at : at + BATCH_SIZE]
            # Object store memory is read-only, which torch tensors cannot be.
            x_BCHW = torch.from_numpy(x_NCHW[at : at + len(here)].copy())
            geometries = [self.work.preprocess.geometry(tuple(sizes[row])) for row in here]
            found.append(self.apply(x_BCHW, geometries).cast(self.work.fields))
        place: list[int | None] = [None] * rows.num_rows
        for position, row in enumerate(sound):
            place[row] = position
        results = pa.concat_tables(found).combine_chunks().take(pa.array(place, pa.int64()))
        table = rows.drop_columns(["size"])
        for name in results.column_names:
            table = table.append_column(self.work.fields.field(name), results[name])
        num_errors = rows.num_rows - len(sound)
        table = table.replace_schema_metadata({"num_errors": str(num_errors)})
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        return {**told, "num_rows": rows.num_rows, "num_errors": num_errors, "file": sink.getvalue()}


def _write(block: pa.Table, out: str) -> pa.Table:
    """Write the files of a block, each in one step; gives back what they are."""
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
    """A bundle's predictions as JSON text, and where one has them its label and probability as columns."""

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
            found: list[Prediction] = predictor.predict_rendered(x_BCHW, geometries)
            texts = [json.dumps(one, ensure_ascii=False) for one in found]
            labels, shares = ([one.get(key) for one in found] for key in ("label", "probability"))
            columns = zip((texts, labels, shares), self.fields.types, strict=True)
            return pa.table([pa.array(values, kind) for values, kind in columns], schema=self.fields)

        return apply


def predict(bundle_uri: str, source: Inputs, out: str, progress: Progress | None = None) -> dict[str, Any]:
    """Predictions of a bundle for every picture, as Parquet at ``out``: see `run`."""
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
