"""The frozen part computed once: batches of features for candidates that begin behind a frozen prefix.

A search gives its loop `PrefixBatches`: every batch passes the deepest frozen prefix once, and each trial
begins at its own boundary. Features of a boundary that the plan (cost.py) keeps are read instead: from
memory, or from Arrow shards in the feature cache (feature_cache.py), which later searches and other workers
find.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch

from tlray.data import loader
from tlray.data.augment import Augment
from tlray.data.image import Geometry
from tlray.data.sampler import Indices, share
from tlray.errors import StorageError
from tlray.models.backbone import POOLED, Backbone, Boundary, Features
from tlray.search.feature_cache import FeatureCache, Key
from tlray.training.batches import DeviceBatch, RenderedBatches
from tlray.training.candidate import autocast
from tlray.training.loop import Loop


class FeatureTable(Protocol):
    """Features of a whole split, by row."""

    @property
    def nbytes(self) -> int: ...

    def gather(self, rows: Indices) -> dict[str, np.ndarray]:
        """float32 (len(rows), ...) by name."""
        ...


class FeaturesInMemory:
    """A table in this process, as float32."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows, self._at = num_rows, 0
        self._arrays: dict[str, np.ndarray] = {}

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """The next rows."""
        for name, values in arrays.items():
            if name not in self._arrays:
                self._arrays[name] = np.empty((self._num_rows, *values.shape[1:]), np.float32)
            self._arrays[name][self._at : self._at + len(values)] = values
        self._at += len(values)

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for values in self._arrays.values())

    def gather(self, rows: Indices) -> dict[str, np.ndarray]:
        return {name: values[rows] for name, values in self._arrays.items()}


def to_arrays(features: Features) -> dict[str, np.ndarray]:
    """Features of a batch as a table keeps them."""
    named = {str(i): x for i, x in features.maps.items()}
    if features.pooled is not None:
        named[POOLED] = features.pooled
    return {name: x.float().cpu().numpy() for name, x in named.items()}


def from_arrays(arrays: Mapping[str, np.ndarray], size: tuple[int, int]) -> Features:
    """The inverse of `to_arrays`; ``size``: (width, height) of the pixels."""
    maps = {int(name): torch.from_numpy(x) for name, x in arrays.items() if name != POOLED}
    pooled = torch.from_numpy(arrays[POOLED]) if POOLED in arrays else None
    num_rows = len(next(iter(arrays.values())))
    return Features(maps, pooled, torch.Size((num_rows, 3, size[1], size[0])))


class PrefixBatches(RenderedBatches):
    """Batches with features at every candidate's boundary.

    ``keep``: boundary -> "memory" or "store"; the others are computed with each batch.
    """

    def __init__(self, loop: Loop, keep: Mapping[Boundary, str] | None = None) -> None:
        config = loop.runs[0].config
        super().__init__(loop.source, loop.order, config, loop.worker)
        # Its parts and not the loop, which holds these batches: so both are freed as soon as it ends.
        self.runs, self.emit, self.split = loop.runs, loop.emit, loop.split
        self.validation_split, self.num_validation = loop.validation.split, loop.validation.num_rows
        self.num_validation_here = len(loop.validation.rows)  # of them, in this worker
        self.config, self.keep = config, dict(keep or {})
        lead = max(loop.runs, key=lambda run: run.model.freeze_depth)
        self.backbone: Backbone = lead.model.module.backbone  # type: ignore[assignment]
        uri = config.search.cache
        self.cache = FeatureCache(uri, config.search.cache_mb) if uri else None
        self.tables: dict[tuple[str, int | None, Boundary], FeatureTable] = {}
        self._targets: dict[tuple[int | None, int], tuple[Any, Geometry]] = {}
        self._targets_bytes = 0
        epochs = max(run.config.train.epochs for run in loop.runs)
        self.views = {Augment.view(self.source.augment, epoch) for epoch in range(epochs)}
        self._room = True  # for features of the validation split
        self._digests: list[str] = []  # of the stages' weights and statistics, as far as they were asked for

    def ready(self, boundary: Boundary) -> bool:
        """Whether the store has a boundary for all views of the training split."""
        return self.cache is not None and all(self.key(v, boundary) in self.cache for v in self.views)

    def train(self, first: int, last: int) -> Iterator[DeviceBatch | None]:
        """As `RenderedBatches.train`; no picture is opened where every candidate begins at kept features."""
        step, pixels = first, None
        while step < last:
            self._prepare(step)
            if any(b is None or b not in self.keep for b in self._boundaries()):
                pixels = pixels or super().train(step, last)
                fed = next(pixels)
                yield None if fed is None else self._complete(fed, step)
            else:
                if pixels is not None:
                    pixels.close()  # type: ignore[attr-defined]
                    pixels = None
                rows = self.order.local_batch(step, self.worker.rank)
                yield self._stored(step, rows) if len(rows) else None
            step += 1

    def one(self, epoch: int, row: Indices) -> DeviceBatch:
        return self._complete(super().one(epoch, row), epoch * self.order.steps_per_epoch)

    def validation(self, boundaries: Collection[Boundary | None]) -> Iterator[DeviceBatch]:
        """Features are kept in memory where they fit: these pictures are plain in every epoch."""
        split, behind = self.validation_split, {b for b in boundaries if b is not None}
        known = all((split, None, b) in self.tables for b in behind)
        if known and None not in boundaries:
            self._held.forget()  # nobody begins at the pixels any more
            yield from self._known_features(split, behind)
            return
        tables = (
            {b: FeaturesInMemory(self.num_validation_here) for b in behind}
            if not known and self._room
            else {}
        )
        geometries: list[Geometry] = []
        for fed in super().validation(boundaries):
            if known:
                at = np.arange(len(geometries), len(geometries) + len(fed.rows))
                fed.features = {b: self._gather(split, None, b, at) for b in behind}
            else:
                fed.features = self._features(fed.x_BCHW, behind, "fp32")
            arrays = {b: to_arrays(fed.features[b]) for b in tables}
            if tables and not geometries:
                bytes_a_row = sum(x[0].nbytes for named in arrays.values() for x in named.values())
                self._room = self._fits(bytes_a_row * self.num_validation_here)
                tables = tables if self._room else {}
            for b, table in tables.items():
                table.add(arrays[b])
            geometries += fed.geometries
            yield fed
        self._geometries = geometries
        self.tables |= {(split, None, b): table for b, table in tables.items()}

    def _fits(self, num_bytes: int) -> bool:
        """Whether so much more may be kept in memory, beside what the plan keeps there of all views."""
        kept = {
            key: table.nbytes for key, table in self.tables.items() if isinstance(table, FeaturesInMemory)
        }
        train = {b: size for (split, _, b), size in kept.items() if split == self.split}
        others = sum(size for (split, _, _), size in kept.items() if split != self.split)
        held = len(self.views) * sum(train.values()) + others + self._targets_bytes
        return held + num_bytes <= self.config.search.memory_mb * 2**20

    def _known_features(self, split: str, boundaries: Collection[Boundary]) -> Iterator[DeviceBatch]:
        ours = share(self.num_validation, self.worker.rank, self.worker.world)
        size = self.config.train.batch_size
        for start in range(0, len(ours), size):
            at = np.arange(start, min(start + size, len(ours)))
            features = {b: self._gather(split, None, b, at) for b in boundaries}
            yield DeviceBatch(None, features, {}, ours[at], self._geometries[start : start + size])

    def _boundaries(self) -> list[Boundary | None]:
        return [run.boundary for run in self.runs if not run.over] or [None]

    def _features(
        self, x_BCHW: Any, wanted: Collection[Boundary], precision: str
    ) -> dict[Boundary, Features]:
        with autocast(self.worker.device, precision):
            return self.backbone.features(x_BCHW, wanted)

    def _complete(self, fed: DeviceBatch, step: int) -> DeviceBatch:
        """Features beside the pixels of a training batch."""
        wanted = {b for b in self._boundaries() if b is not None}
        fed.features = self._features(fed.x_BCHW, wanted - self.keep.keys(), self.config.train.precision)
        if wanted & self.keep.keys():
            fed.features |= self._stored(step, fed.rows).features
        return fed

    def _prepare(self, step: int) -> None:
        """See to the tables of a step. What cannot be kept is computed with each batch from here on."""
        epoch, view, wanted = self._tables_of(step)
        missing = {b for b in wanted if (self.split, view, b) not in self.tables}
        if not missing:
            return
        try:
            self._fill(view, epoch, set(missing))
        except StorageError as error:
            text = f"features are not kept, and computed with each batch: {error}"
            self.emit({"kind": "note", "run": self.config.run_uri, "text": text})
            self.keep = {b: place for b, place in self.keep.items() if b not in missing}
            self.tables = {key: table for key, table in self.tables.items() if key[2] not in missing}

    def _tables_of(self, step: int) -> tuple[int, int | None, set[Boundary]]:
        """Epoch and view of a step, and the kept boundaries at which candidates begin in it."""
        epoch = step // self.order.steps_per_epoch
        wanted = {b for b in self._boundaries() if b is not None and b in self.keep}
        return epoch, Augment.view(self.source.augment, epoch), wanted

    def _stored(self, step: int, rows: Indices) -> DeviceBatch:
        """A training batch from tables alone."""
        epoch, view, wanted = self._tables_of(step)
        twice = np.concatenate([rows, rows]) if len(rows) == 1 else rows  # as stream.to_device does
        features = {b: self._gather(self.split, view, b, twice) for b in wanted}
        found = [self._target(view, epoch, int(row)) for row in twice]
        targets = loader.on_device(loader.collate([target for target, _ in found]), self.worker.device)
        return DeviceBatch(None, features, targets, rows, [geometry for _, geometry in found[: len(rows)]])

    def _target(self, view: int | None, epoch: int, row: int) -> tuple[Any, Geometry]:
        if (view, row) not in self._targets:
            found = loader.annotation(self.source, self._fingerprint, epoch, row)
            num_bytes = sum(np.asarray(value).nbytes for value in found[0].values())
            if not self._fits(num_bytes):
                return found
            self._targets[view, row] = found
            self._targets_bytes += num_bytes
        return self._targets[view, row]

    def _gather(self, split: str, view: int | None, boundary: Any, rows: Indices) -> Features:
        found = from_arrays(self.tables[split, view, boundary].gather(rows), self.source.preprocess.size)
        return found.to(self.worker.device)

    def _fill(self, view: int | None, epoch: int, missing: set[Boundary]) -> None:
        """Tables of one view of the training split: found in the store, or made in one pass for all."""
        split = self.split
        keys = {b: self.key(view, b) for b in missing}
        for b in list(missing):
            found = self.cache.find(keys[b]) if self.cache and self.keep[b] == "store" else None
            if found is not None:
                self.tables[split, view, b] = found
                missing.discard(b)
        if not missing:
            return
        num_rows = self.order.num_rows
        size = self.config.train.batch_size
        rows = np.arange(num_rows, dtype=np.int64)
        plan = [(epoch, rows[i : i + size]) for i in range(0, num_rows, size)]
        with contextlib.ExitStack() as stack:
            writers: dict[Boundary, Any] = {}
            for b in missing:
                if self.keep[b] == "store" and self.cache:
                    writers[b] = stack.enter_context(self.cache.write(keys[b], num_rows))
                else:
                    writers[b] = self.tables[split, view, b] = FeaturesInMemory(num_rows)
            for batch in loader.pipeline(self.source, plan):
                x_BCHW = batch.x_BCHW.to(self.worker.device)
                for b, features in self._features(x_BCHW, missing, self.config.train.precision).items():
                    writers[b].add(to_arrays(features))
        for b in missing:
            if self.keep[b] == "store" and self.cache:
                found = self.cache.find(keys[b])
                if found is None:
                    raise StorageError(f"{self.cache.uri}: {keys[b].digest} was removed as it was written")
                self.tables[split, view, b] = found

    def key(self, view: int | None, boundary: Boundary) -> Key:
        """Under which a table is found again: all that its numbers depend on."""
        augment = self.source.augment
        shown = {
            "preprocess": self.source.preprocess.model_dump(mode="json"),
            "augment": None if view is None or augment is None else augment.model_dump(exclude={"views"}),
            "seed": None if view is None else self.source.seed,
            "view": view,
            "precision": self.config.train.precision,
            "device": self.worker.device.type,  # GPUs round otherwise
        }
        reads = POOLED if boundary.reads is None else ",".join(map(str, boundary.reads))
        return Key(
            data=self._fingerprint,
            split=self.split,
            view=json.dumps(shown, sort_keys=True),
            backbone=self._weights_of(boundary.depth),
            boundary=f"{boundary.depth} of {len(self.backbone.stages)}, {reads}",
            dtype=self.config.search.cache_dtype,
        )

    def _weights_of(self, depth: int) -> str:
        """The backbone's name and a digest of the weights and statistics of its first stages."""
        chain = self.backbone.prefix(depth)
        for stage in list(chain.stages)[len(self._digests) :]:
            self._digests.append(_digest(stage.state_dict().values()))
        digests = self._digests[:depth]
        if depth == len(self.backbone.stages):  # pooling may have weights of its own
            staged = {id(x) for x in (*chain.parameters(), *chain.buffers())}
            digests.append(_digest(x for x in self.backbone.parameters() if id(x) not in staged))
        whole = hashlib.sha256("".join(digests).encode()).hexdigest()[:32]
        # Dropout of any kind is off in what is frozen.
        spec = {k: v for k, v in self.backbone.spec().items() if k not in ("drop_rate", "drop_path_rate")}
        return f"{json.dumps(spec, sort_keys=True)} {whole}"


def _digest(tensors: Iterable[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for x in tensors:
        digest.update(str(tuple(x.shape)).encode())
        digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
