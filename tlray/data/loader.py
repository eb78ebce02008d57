"""From Parquet to batches of uint8 model input: tlray decides the order, Ray Data does the work.

`sampler.Order` says which rows a step has; a Ray Data pipeline over step numbers reads, renders and
augments them in parallel tasks, with back-pressure and in order, one block a batch. Rendering
processes keep the row groups they read lately, so a lane's sequential reads hit storage once.
A pipeline can start at any step: that is all that resuming in the middle of an epoch takes.
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

CHUNK_STEPS = 1024  # steps of one pipeline: its plan lists every block, which has to stay short
PREFETCH = 2  # batches made ahead of the consumer


class Encoder(Protocol):
    """What rendering asks of a task."""

    @property
    def columns(self) -> Mapping[str, schema.Kind]:
        """Label columns that the data must have, and what they mean."""

    def encode(self, row: Row, geometry: Geometry, labels: list[str]) -> Target:
        """Annotation -> target in model space."""


@dataclass(frozen=True)
class Source:
    """One split as one task sees it: everything that rendering a row needs. Pickles small."""

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
    """x_BCHW uint8; targets by name; rows (B,) global indices; what was done to each picture; its path."""

    x_BCHW: torch.Tensor
    targets: dict[str, Any]
    rows: Indices
    geometries: list[Geometry]
    paths: list[str]  # below the source's root; "" where the data set has none

    @property
    def num_rows(self) -> int:
        return len(self.rows)


class RowReader:
    """Random access to the rows of a split through a bounded cache of row groups.

    ``columns``: those that are read, the picture's among them; all by default.
    """

    def __init__(self, uri: str, split: str, cache_mb: int, columns: Sequence[str] | None = None) -> None:
        self.data = Dataset.open(uri)
        self.split, self.columns = split, columns
        self.starts = np.concatenate([[0], np.cumsum(self.data.group_rows(split))])
        self.budget = cache_mb * 2**20
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def __call__(self, row: int) -> tuple[bytes, Row]:
        """The encoded picture of a global row (no bytes where it is null), and its other columns."""
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        table = self._group(group)
        values = table.slice(row - int(self.starts[group]), 1).to_pylist()[0]
        picture = values.pop(schema.IMAGE) or {"bytes": None, "path": None}
        return picture["bytes"] or b"", {**values, "path": picture["path"]}

    def group(self, row: int) -> range:
        """All rows of a row's group."""
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
                self._held += table.nbytes
            while self._held > self.budget and len(self._groups) > 1:
                self._held -= self._groups.popitem(last=False)[1].nbytes
        return table


@cache
def reader(uri: str, split: str, cache_mb: int, fingerprint: str, columns: tuple[str, ...]) -> RowReader:
    """This process's reader of a split; the fingerprint keeps a data set made anew from being mixed up."""
    return RowReader(uri, split, cache_mb, columns)


def _reader(source: Source, fingerprint: str) -> RowReader:
    """The reader of a source: pictures and the task's labels, and nothing else that the files may hold."""
    columns = (schema.IMAGE, *source.task.columns)
    return reader(source.uri, source.split, source.cache_mb, fingerprint, columns)


class _Shown(NamedTuple):
    """A row's picture in a batch; several of them where pictures are mixed."""

    row: int
    data: bytes
    target: Target
    geometry: Geometry
    rng: np.random.Generator | None  # for its colours
    path: str


def make_batch(source: Source, fingerprint: str, epoch: int, rows: Indices) -> Batch:
    """Read, render and encode rows, in order; ``augment`` draws from the randomness of (seed, view, row)."""
    read = _reader(source, fingerprint)
    pictures, targets, geometries, paths = [], [], [], []
    for index in map(int, rows):
        mix, shown = _shown(source, read, epoch, index)
        rendered = [_rendered(source, mix, one) for one in shown]
        pictures.append(mixing.pixels(mix, rendered, source.preprocess.size))
        targets.append(mixing.target(mix, [one.target for one in shown], source.placed))
        geometries.append(shown[0].geometry)
        paths.append(shown[0].path)
    return Batch(torch.from_numpy(np.stack(pictures)), collate(targets), rows, geometries, paths)


def _shown(source: Source, read: RowReader, epoch: int, row: int) -> tuple[Mix | None, list[_Shown]]:
    """How a row's picture is made in an epoch, and of which pictures: its own first."""
    view, mix, rows = Augment.view(source.augment, epoch), None, [row]
    if source.augment is not None and view is not None:
        # Streams of their own, so that what is drawn for the row itself is the same with and without mixing.
        rng = row_rng(source.seed, view, row, 1)
        mix = mixing.draw(rng, source.augment, source.preprocess.size)
        if mix is not None:
            # Of the row's own group, which is in the reader's cache: any row of the data set might be a read
            # from object storage for each picture. `tlray ingest` shuffles rows, so a group mixes classes.
            rows += mixing.partners(rng, read.group(row), row, mix.partners)
    shown = []
    for number, one in enumerate(rows):
        data, values = read(one)
        with _named(source, one, values):
            own = None if view is None else row_rng(source.seed, view, row, number and number + 1)
            geometry = _geometry(source, values, data, own)
            if own is not None:
                geometry = mixing.geometry(mix, number, geometry, source.preprocess, own)
            target = _target(source, values, geometry)
        shown.append(_Shown(one, data, target, geometry, own, values["path"] or ""))
    return mix, shown


def _rendered(source: Source, mix: Mix | None, shown: _Shown) -> Pixels:
    """A picture's pixels as they are or as they go into a mix, its colours changed."""
    with _named(source, shown.row, {"path": shown.path}):
        x_CHW, _ = render(shown.data, source.preprocess, mixing.alone(mix, shown.geometry))
    if source.augment is None or shown.rng is None:
        return x_CHW
    return Augment(source.augment, source.placed).pixels(shown.rng, x_CHW)


@contextlib.contextmanager
def _named(source: Source, row: int, values: Row) -> Iterator[None]:
    """Name the row in an error of its picture or its label."""
    try:
        yield
    except DataError as error:
        where = ", ".join(filter(None, (source.split, f"row {row}", values["path"])))
        raise DataError(f"{source.uri} ({where}): {error}; `tlray ingest` sets such pictures aside") from None


def pixels(source: Source, fingerprint: str, rows: Indices) -> torch.Tensor:
    """x_BCHW uint8 of rows without randomness, rendered in this process."""
    read = _reader(source, fingerprint)
    return torch.from_numpy(render_batch((read(int(row))[0] for row in rows), source.preprocess).x_BCHW)


def annotation(source: Source, fingerprint: str, epoch: int, row: int) -> tuple[Target, Geometry]:
    """What `make_batch` says of a row besides its pixels, without decoding them."""
    mix, shown = _shown(source, _reader(source, fingerprint), epoch, row)
    return mixing.target(mix, [one.target for one in shown], source.placed), shown[0].geometry


def _target(source: Source, row: Row, geometry: Geometry) -> Target:
    """A row's annotation in model space. Raises DataError where it has none."""
    for column in source.task.columns:
        if row[column] is None:
            raise DataError(f"column {column!r} is null; accepted: a label")
    return source.task.encode(row, geometry, list(source.labels))


def _geometry(source: Source, row: Row, data: bytes, rng: np.random.Generator | None) -> Geometry:
    """What is done to a row's picture; without randomness it is the plain one."""
    size = source_size(data, source.preprocess.max_pixels)
    if source.augment is None or rng is None:
        return source.preprocess.geometry(size)
    drawn = Augment(source.augment, source.placed).sample(rng, size, source.preprocess)
    often = source.augment.class_balance
    if not often or rng.random() >= often:
        return drawn
    whole = Geometry(size, (0, 0, *size), size, (0, 0, *size))
    return balanced(rng, drawn, np.asarray(_target(source, row, whole)[schema.MASK]), UNKNOWN)


def collate(targets: list[Target]) -> dict[str, Any]:
    """Stack each named target into one tensor (B, ...), or keep a list where shapes differ."""
    out: dict[str, Any] = {}
    for name in targets[0]:
        values = [torch.as_tensor(target[name]) for target in targets]
        same = all(v.shape == values[0].shape for v in values)
        out[name] = torch.stack(values) if same else values
    return out


def train_batches(
    source: Source, order: Order, rank: int, start_step: int, end_step: int
) -> Iterator[Batch | None]:
    """This rank's batches from ``start_step`` up to ``end_step``; None where it has no row in a step."""
    for first in range(start_step, end_step, CHUNK_STEPS):
        steps = range(first, min(first + CHUNK_STEPS, end_step))
        plan = [(step // order.steps_per_epoch, order.local_batch(step, rank)) for step in steps]
        blocks = pipeline(source, [item for item in plan if len(item[1])])
        for _, rows in plan:
            yield next(blocks) if len(rows) else None


def evaluation_batches(source: Source, rank: int, world: int, batch_size: int) -> Iterator[Batch]:
    """This rank's part of a split, every row of it exactly once over all ranks."""
    num_rows = sum(Dataset.open(source.uri).group_rows(source.split))
    rows = share(num_rows, rank, world)
    plan = [(0, rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
    return pipeline(source, plan)


def plain(source: Source, split: str) -> Source:
    """The same without randomness, over another split."""
    return replace(source, split=split, augment=None)


class CachedBatches:
    """A rank's evaluation batches, rendered once and kept in memory where they fit, else made anew."""

    def __init__(self, source: Source, rank: int, world: int, batch_size: int) -> None:
        self._make = partial(evaluation_batches, source, rank, world, batch_size)
        self._budget = source.cache_mb * 2**20
        self._kept: list[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Batch] | None = []
        held = 0
        for batch in self._make():
            held += batch.x_BCHW.nbytes
            if kept is not None:
                kept = [*kept, batch] if held <= self._budget else None
            yield batch
        self._kept = kept

    def forget(self) -> None:
        """Give the memory back; whoever asks again has the batches rendered again."""
        self._kept = None


def to_device(
    batch: Batch, device: torch.device, channels_last: bool = False
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Pixels and targets where the model is.

    A lonely row is doubled, which leaves the mean loss as it is: batch norm cannot train on one.
    """
    if batch.num_rows == 1:
        twice = {k: [*v, *v] if isinstance(v, list) else torch.cat([v, v]) for k, v in batch.targets.items()}
        batch = batch._replace(x_BCHW=torch.cat([batch.x_BCHW, batch.x_BCHW]), targets=twice)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x_BCHW = batch.x_BCHW.to(device, non_blocking=True, memory_format=layout)
    return x_BCHW, on_device(batch.targets, device)


def on_device(targets: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Targets, tensors or lists of them, where the model is."""
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else [v.to(device) for v in value]
        for name, value in targets.items()
    }


def pipeline(source: Source, plan: list[tuple[int, Indices]]) -> Iterator[Batch]:
    """Batches for (epoch, rows), made by Ray Data tasks ahead of the consumer, in the plan's order."""
    if not plan:
        return
    fingerprint = Dataset.open(source.uri).fingerprint

    def make(block: pa.Table) -> dict[str, Any]:
        epoch, rows = plan[block["id"][0].as_py()]
        try:
            batch = make_batch(source, fingerprint, epoch, rows)
        except DataError as error:  # a value, because Ray would wrap an exception and lose what it was
            return {"fault": np.array([str(error)])}
        # Ragged targets travel as Ray Data's object columns; geometries are small and plain.
        targets = {f"target.{name}": _column(value) for name, value in batch.targets.items()}
        told = {"geometry": _column(batch.geometries), "path": np.array(batch.paths)}
        return {"x": batch.x_BCHW.numpy(), **told, **targets}

    with ray_data.quiet() as context:
        context.execution_options.preserve_order = True
        data = ray.data.range(len(plan), override_num_blocks=len(plan))
        # Half of the cluster renders; fewer processes also means fewer that have to load the code first.
        tasks = min(len(plan), max(1, int(ray.cluster_resources().get("CPU", 2)) // 2))
        data = data.map_batches(make, batch_size=None, batch_format="pyarrow", concurrency=tasks)
    blocks: Any = iter(data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=PREFETCH))
    # Closed by name: the pipeline of a consumer that stops early must not go on behind its back.
    with contextlib.closing(blocks):
        for (_, rows), block in zip(plan, blocks, strict=True):
            if "fault" in block:
                raise DataError(str(block["fault"][0]))
            # Object store memory is read-only, which torch tensors cannot be: one copy of uint8.
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
