"""From Parquet to batches of uint8 model input: tlray chooses the order, Ray Data does the work.

`sampler.Order` gives the rows of a step. A Ray Data pipeline over step numbers reads, renders and augments
them in parallel tasks, in order and with back-pressure, one block for each batch. Rendering processes cache
the row groups that they read last, so a lane reads each row group from storage once.
A pipeline can start at any step, so training can resume in the middle of an epoch.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch

from tlray.config import Augmentation
from tlray.data import mixing, ray_data, schema
from tlray.data.augment import Augment, balanced
from tlray.data.dataset import Dataset
from tlray.data.image import Geometry, Pixels, Preprocess, render, render_batch, source_size
from tlray.data.masks import UNKNOWN
from tlray.data.mixing import Mix
from tlray.data.sampler import Indices, Order, row_rng, share
from tlray.data.schema import Row, Target
from tlray.errors import DataError

log = logging.getLogger(__name__)

CHUNK_STEPS = 1024  # steps of one pipeline, whose plan lists all of its blocks
PREFETCH = 2  # batches made ahead of the consumer


class Encoder(Protocol):
    """The part of a task that rendering needs."""

    @property
    def columns(self) -> Mapping[str, schema.Kind]:
        """Label columns that the data must have, and their kinds."""

    def encode(self, row: Row, geometry: Geometry, labels: list[str]) -> Target:
        """Annotation -> target in model space."""


@dataclass(frozen=True)
class Source:
    """A split and everything that is needed to render its rows; small when pickled."""

    uri: str
    split: str
    task: Encoder
    labels: tuple[str, ...]
    preprocess: Preprocess
    augment: Augmentation | None = None
    seed: int = 0
    cache_mb: int = 1024

    @property
    def placed(self) -> bool:
        """Whether labels have places in the picture."""
        return any(kind in ("mask", "objects") for kind in self.task.columns.values())


class Batch(NamedTuple):
    """Rendered rows: x_BCHW uint8, targets by name, rows (B,) as global indices, geometries and paths."""

    x_BCHW: torch.Tensor
    targets: dict[str, Any]
    rows: Indices
    geometries: list[Geometry]
    paths: list[str]  # below the root of the ingested source; "" where the data set has none

    @property
    def num_rows(self) -> int:
        return len(self.rows)


class RowReader:
    """Random access to the rows of a split, with a bounded cache of row groups.

    ``columns``: the columns to read, with the picture's; all by default.
    """

    def __init__(self, uri: str, split: str, cache_mb: int, columns: Sequence[str] | None = None) -> None:
        self.data = Dataset.open(uri)
        self.split, self.columns = split, columns
        self.starts = np.concatenate([[0], np.cumsum(self.data.group_rows(split))])
        self.budget = cache_mb * 2**20
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def __call__(self, row: int) -> tuple[bytes, Row]:
        """The encoded picture of a row (b"" for null) and its other columns, by global row index."""
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        table = self._group(group)
        values = table.slice(row - int(self.starts[group]), 1).to_pylist()[0]
        picture = values.pop(schema.IMAGE) or {"bytes": None, "path": None}
        return picture["bytes"] or b"", {**values, "path": picture["path"]}

    def group(self, row: int) -> range:
        """Global indices of all rows in a row's group."""
        after = int(np.searchsorted(self.starts, row, side="right"))
        return range(int(self.starts[after - 1]), int(self.starts[after]))

    def _group(self, group: int) -> pa.Table:
        with self._lock:
            if group in self._groups:
                self._groups.move_to_end(group)
                return self._groups[group]
        table = self.data.read_group(self.split, group, self.columns)
        with self._lock:
            if group not in self._groups:
                self._groups[group] = table
                self._cached_bytes += table.nbytes
            while self._cached_bytes > self.budget and len(self._groups) > 1:
                self._cached_bytes -= self._groups.popitem(last=False)[1].nbytes
        return table


@cache
def reader(uri: str, split: str, cache_mb: int, fingerprint: str, columns: tuple[str, ...]) -> RowReader:
    """This process's reader of a split; by its fingerprint, a rewritten data set gets a new reader."""
    return RowReader(uri, split, cache_mb, columns)


def _reader(source: Source, fingerprint: str) -> RowReader:
    """The reader of a source; it reads pictures and the task's label columns only."""
    columns = (schema.IMAGE, *source.task.columns)
    return reader(source.uri, source.split, source.cache_mb, fingerprint, columns)


class _Part(NamedTuple):
    """A picture of which a row of a batch is made; where pictures are mixed, it is made of several."""

    row: int
    data: bytes
    target: Target
    geometry: Geometry
    rng: np.random.Generator | None  # for changes of its pixels; None: no augmentation
    path: str


def make_batch(source: Source, fingerprint: str, epoch: int, rows: Indices) -> Batch:
    """Read, render and encode rows, in order; augmentation depends on (seed, view, row) alone."""
    read = _reader(source, fingerprint)
    pictures, targets, geometries, paths = [], [], [], []
    for index in map(int, rows):
        mix, parts = _parts(source, read, epoch, index)
        rendered = [_rendered(source, mix, part) for part in parts]
        pictures.append(mixing.pixels(mix, rendered, source.preprocess.size))
        targets.append(mixing.target(mix, [part.target for part in parts], source.placed))
        geometries.append(parts[0].geometry)
        paths.append(parts[0].path)
    return Batch(torch.from_numpy(np.stack(pictures)), collate(targets), rows, geometries, paths)


def _parts(source: Source, read: RowReader, epoch: int, row: int) -> tuple[Mix | None, list[_Part]]:
    """How a row is mixed in an epoch, and the pictures that it is made of; its own is the first."""
    view, mix, rows = Augment.view(source.augment, epoch), None, [row]
    if source.augment is not None and view is not None:
        # A stream of its own, so that the row's other random draws are the same with and without mixing.
        rng = row_rng(source.seed, view, row, 1)
        mix = mixing.draw(rng, source.augment, source.preprocess.size)
        if mix is not None:
            # Partners come from the row's own group, which is in the reader's cache; other rows could mean a
            # read from object storage each. `tlray ingest` shuffles rows, so a group has several classes.
            rows += mixing.partners(rng, read.group(row), row, mix.partners)
    parts = []
    for number, part_row in enumerate(rows):
        data, values = read(part_row)
        with _named(source, part_row, values):
            part_rng = None if view is None else row_rng(source.seed, view, row, number and number + 1)
            geometry = _geometry(source, values, data, part_rng)
            if part_rng is not None:
                geometry = mixing.geometry(mix, number, geometry, source.preprocess, part_rng)
            target = _target(source, values, geometry)
        parts.append(_Part(part_row, data, target, geometry, part_rng, values["path"] or ""))
    return mix, parts


def _rendered(source: Source, mix: Mix | None, part: _Part) -> Pixels:
    """The pixels of a picture, augmented, in the size that `mixing.pixels` takes."""
    with _named(source, part.row, {"path": part.path}):
        x_CHW, _ = render(part.data, source.preprocess, mixing.alone(mix, part.geometry))
    if source.augment is None or part.rng is None:
        return x_CHW
    return Augment(source.augment, source.placed).pixels(part.rng, x_CHW)


@contextlib.contextmanager
def _named(source: Source, row: int, values: Row) -> Iterator[None]:
    """Add the row to the message of a DataError about its picture or label."""
    try:
        yield
    except DataError as error:
        where = ", ".join(filter(None, (source.split, f"row {row}", values["path"])))
        raise DataError(f"{source.uri} ({where}): {error}; `tlray ingest` sets such pictures aside") from None


def pixels(source: Source, fingerprint: str, rows: Indices) -> torch.Tensor:
    """x_BCHW uint8 of rows without augmentation, rendered in this process."""
    read = _reader(source, fingerprint)
    return torch.from_numpy(render_batch((read(int(row))[0] for row in rows), source.preprocess).x_BCHW)


def annotation(source: Source, fingerprint: str, epoch: int, row: int) -> tuple[Target, Geometry]:
    """A row's target and geometry as in `make_batch`, without decoding its picture."""
    mix, parts = _parts(source, _reader(source, fingerprint), epoch, row)
    return mixing.target(mix, [part.target for part in parts], source.placed), parts[0].geometry


def _target(source: Source, row: Row, geometry: Geometry) -> Target:
    """A row's target in model space. Raises DataError for a null label."""
    for column in source.task.columns:
        if row[column] is None:
            raise DataError(f"column {column!r} is null; accepted: a label")
    return source.task.encode(row, geometry, list(source.labels))


def _geometry(source: Source, row: Row, data: bytes, rng: np.random.Generator | None) -> Geometry:
    """The geometry of a row's picture; without augmentation it is that of the preprocessing."""
    size = source_size(data, source.preprocess.max_pixels)
    if source.augment is None or rng is None:
        return source.preprocess.geometry(size)
    drawn = Augment(source.augment, source.placed).sample(rng, size, source.preprocess)
    probability = source.augment.class_balance
    if not probability or rng.random() >= probability:
        return drawn
    whole = Geometry(size, (0, 0, *size), size, (0, 0, *size))
    return balanced(rng, drawn, np.asarray(_target(source, row, whole)[schema.MASK]), UNKNOWN)


def collate(targets: list[Target]) -> dict[str, Any]:
    """Stack targets by name into tensors (B, ...), or into lists where shapes differ."""
    out: dict[str, Any] = {}
    for name in targets[0]:
        values = [torch.as_tensor(target[name]) for target in targets]
        same = all(v.shape == values[0].shape for v in values)
        out[name] = torch.stack(values) if same else values
    return out


def train_batches(
    source: Source, order: Order, rank: int, start_step: int, end_step: int
) -> Iterator[Batch | None]:
    """This rank's batches from ``start_step`` to before ``end_step``; None where it has no row in a step."""
    for first in range(start_step, end_step, CHUNK_STEPS):
        steps = range(first, min(first + CHUNK_STEPS, end_step))
        plan = [(step // order.steps_per_epoch, order.local_batch(step, rank)) for step in steps]
        blocks = pipeline(source, [item for item in plan if len(item[1])])
        for _, rows in plan:
            yield next(blocks) if len(rows) else None


def evaluation_batches(source: Source, rank: int, world: int, batch_size: int) -> Iterator[Batch]:
    """This rank's part of a split in batches; each row comes exactly once over all ranks."""
    num_rows = sum(Dataset.open(source.uri).group_rows(source.split))
    rows = share(num_rows, rank, world)
    plan = [(0, rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
    return pipeline(source, plan)


def plain(source: Source, split: str) -> Source:
    """The source without augmentation, for a split."""
    return replace(source, split=split, augment=None)


class CachedBatches:
    """A rank's evaluation batches, kept in memory if they fit into ``cache_mb``, else rendered anew."""

    def __init__(self, source: Source, rank: int, world: int, batch_size: int) -> None:
        self._make = partial(evaluation_batches, source, rank, world, batch_size)
        self._budget = source.cache_mb * 2**20
        self._kept: list[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Batch] | None = []
        num_bytes = 0
        for batch in self._make():
            num_bytes += batch.x_BCHW.nbytes
            if kept is not None:
                kept = [*kept, batch] if num_bytes <= self._budget else None
            yield batch
        self._kept = kept

    def forget(self) -> None:
        """Free the memory; the next iteration renders the batches again."""
        self._kept = None


def to_device(
    batch: Batch, device: torch.device, channels_last: bool = False
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Pixels and targets on the model's device.

    A batch of one row is doubled: batch norm cannot train on one row, and the mean loss stays the same.
    """
    if batch.num_rows == 1:
        twice = {k: [*v, *v] if isinstance(v, list) else torch.cat([v, v]) for k, v in batch.targets.items()}
        batch = batch._replace(x_BCHW=torch.cat([batch.x_BCHW, batch.x_BCHW]), targets=twice)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x_BCHW = batch.x_BCHW.to(device, non_blocking=True, memory_format=layout)
    return x_BCHW, on_device(batch.targets, device)


def on_device(targets: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Targets, which are tensors or lists of tensors, on the model's device."""
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else [v.to(device) for v in value]
        for name, value in targets.items()
    }


def pipeline(source: Source, plan: list[tuple[int, Indices]]) -> Iterator[Batch]:
    """Batches for a plan of (epoch, rows), in its order, made ahead of the consumer by Ray Data tasks."""
    if not plan:
        return
    fingerprint = Dataset.open(source.uri).fingerprint

    def make(block: pa.Table) -> dict[str, Any]:
        epoch, rows = plan[block["id"][0].as_py()]
        try:
            batch = make_batch(source, fingerprint, epoch, rows)
        except DataError as error:  # as a value, because Ray would wrap an exception in one of its own
            return {"fault": np.array([str(error)])}
        # Targets of different shapes and geometries travel in object columns of Ray Data.
        targets = {f"target.{name}": _column(value) for name, value in batch.targets.items()}
        geometries, paths = _column(batch.geometries), np.array(batch.paths)
        return {"x": batch.x_BCHW.numpy(), "geometry": geometries, "path": paths, **targets}

    with ray_data.quiet() as context:
        context.execution_options.preserve_order = True
        data = ray.data.range(len(plan), override_num_blocks=len(plan))
        # Half of the CPUs render; with fewer processes there are also fewer that import the code.
        tasks = min(len(plan), max(1, int(ray.cluster_resources().get("CPU", 2)) // 2))
        data = data.map_batches(make, batch_size=None, batch_format="pyarrow", concurrency=tasks)
    blocks: Any = iter(data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=PREFETCH))
    # Closed explicitly, so that the pipeline ends with a consumer that stops early.
    with contextlib.closing(blocks):
        for (_, rows), block in zip(plan, blocks, strict=True):
            if "fault" in block:
                raise DataError(str(block["fault"][0]))
            # Arrays from the object store are read-only, and torch tensors cannot be: the pixels are copied.
            targets = {
                name.removeprefix("target."): _tensors(value)
                for name, value in block.items()
                if name.startswith("target.")
            }
            x_BCHW = torch.from_numpy(block["x"].copy())
            yield Batch(x_BCHW, targets, rows, list(block["geometry"]), [str(path) for path in block["path"]])


def _column(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.numpy()
    out = np.empty(len(values), dtype=object)
    out[:] = [v.numpy() if isinstance(v, torch.Tensor) else v for v in values]
    return out


def _tensors(column: np.ndarray) -> Any:
    if column.dtype == object:
        return [torch.from_numpy(np.array(v)) for v in column]
    return torch.from_numpy(column.copy())
