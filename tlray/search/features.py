"""Batches of features for trials that share a frozen prefix, which is computed once for all of them.

A search gives its loop `PrefixBatches`: every batch passes the deepest frozen prefix once, and each trial
begins at its own boundary. Features that the plan (cost.py) keeps are computed once for the whole split and
then read, from memory or from the feature cache (feature_cache.py), where later searches and other workers
find them, too.
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
from tlray.search.cost import IN_CACHE
from tlray.search.feature_cache import FeatureCache, Key
from tlray.training.batches import DeviceBatch, RenderedBatches
from tlray.training.candidate import autocast
from tlray.training.loop import Loop


class KeptFeatures(Protocol):
    """Features of a whole split at one boundary, by row."""

    @property
    def nbytes(self) -> int: ...

    def gather(self, rows: Indices) -> dict[str, np.ndarray]:
        """float32 (len(rows), ...) by name."""
        ...


class FeaturesInMemory:
    """Features kept in this process, as float32."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows, self._num_added = num_rows, 0
        self._arrays: dict[str, np.ndarray] = {}

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add the next rows."""
        for name, values in arrays.items():
            if name not in self._arrays:
                self._arrays[name] = np.empty((self._num_rows, *values.shape[1:]), np.float32)
            self._arrays[name][self._num_added : self._num_added + len(values)] = values
        self._num_added += len(values)

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for values in self._arrays.values())

    def gather(self, rows: Indices) -> dict[str, np.ndarray]:
        return {name: values[rows] for name, values in self._arrays.items()}


def to_arrays(features: Features) -> dict[str, np.ndarray]:
    """Features of a batch as float32 arrays by name, which is how they are kept."""
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
    """Batches with features at the boundary of every trial.

    ``keep``: the boundaries whose features are kept, each in `IN_MEMORY` or `IN_CACHE`; those of others are
    computed with each batch.
    """

    def __init__(self, loop: Loop, keep: Mapping[Boundary, str] | None = None) -> None:
        config = loop.runs[0].config
        super().__init__(loop.source, loop.order, config, loop.worker)
        # Not the loop itself: it refers to these batches, and a cycle would not be freed as soon as it ends.
        self.runs, self.emit, self.split = loop.runs, loop.emit, loop.split
        self.validation_split, self.num_validation = loop.validation.split, loop.validation.num_rows
        self.num_validation_here = len(loop.validation.rows)  # those of this worker
        self.config, self.keep = config, dict(keep or {})
        most_frozen = max(loop.runs, key=lambda run: run.model.freeze_depth)
        self.backbone: Backbone = most_frozen.model.module.backbone  # type: ignore[assignment]
        uri = config.search.cache
        self.cache = FeatureCache(uri, config.search.cache_mb) if uri else None
        self.kept: dict[tuple[str, int | None, Boundary], KeptFeatures] = {}  # by split, view and boundary
        self._targets: dict[tuple[int | None, int], tuple[Any, Geometry]] = {}
        self._targets_bytes = 0
        epochs = max(run.config.train.epochs for run in loop.runs)
        self.views = {Augment.view(self.source.augment, epoch) for epoch in range(epochs)}
        self._keep_validation = True  # until it shows that features of this split do not fit into memory
        self._digests: list[str] = []  # of the weights and statistics of the first stages, computed on demand

    def ready(self, boundary: Boundary) -> bool:
        """Whether the cache has the features of a boundary for all views of the training split."""
        return self.cache is not None and all(self.key(v, boundary) in self.cache for v in self.views)

    def train(self, first: int, last: int) -> Iterator[DeviceBatch | None]:
        """As `RenderedBatches.train`; no picture is opened where every trial begins at kept features."""
        step, pixels = first, None
        while step < last:
            self._prepare(step)
            if any(b is None or b not in self.keep for b in self._boundaries()):
                pixels = pixels or super().train(step, last)
                batch = next(pixels)
                yield None if batch is None else self._add_features(batch, step)
            else:
                if pixels is not None:
                    pixels.close()  # type: ignore[attr-defined]
                    pixels = None
                rows = self.order.local_batch(step, self.worker.rank)
                yield self._kept_batch(step, rows) if len(rows) else None
            step += 1

    def one(self, epoch: int, row: Indices) -> DeviceBatch:
        return self._add_features(super().one(epoch, row), epoch * self.order.steps_per_epoch)

    def validation(self, boundaries: Collection[Boundary | None]) -> Iterator[DeviceBatch]:
        """As `RenderedBatches.validation`, with features.

        They are kept in memory if they fit: validation pictures are not augmented, so they are the same in
        every epoch.
        """
        split, behind = self.validation_split, {b for b in boundaries if b is not None}
        known = all((split, None, b) in self.kept for b in behind)
        if known and None not in boundaries:
            self._held.forget()  # the rendered pictures: no trial begins at the pixels any more
            yield from self._kept_validation(split, behind)
            return
        new = (
            {b: FeaturesInMemory(self.num_validation_here) for b in behind}
            if not known and self._keep_validation
            else {}
        )
        geometries: list[Geometry] = []
        for batch in super().validation(boundaries):
            if known:
                at = np.arange(len(geometries), len(geometries) + len(batch.rows))
                batch.features = {b: self._gather(split, None, b, at) for b in behind}
            else:
                batch.features = self._features(batch.x_BCHW, behind, "fp32")
            arrays = {b: to_arrays(batch.features[b]) for b in new}
            if new and not geometries:
                row_bytes = sum(x[0].nbytes for by_name in arrays.values() for x in by_name.values())
                self._keep_validation = self._fits(row_bytes * self.num_validation_here)
                new = new if self._keep_validation else {}
            for b, features in new.items():
                features.add(arrays[b])
            geometries += batch.geometries
            yield batch
        self._geometries = geometries
        self.kept |= {(split, None, b): features for b, features in new.items()}

    def _fits(self, num_bytes: int) -> bool:
        """Whether so many bytes more fit into memory, beside all views of what the plan keeps there."""
        sizes = {
            key: features.nbytes
            for key, features in self.kept.items()
            if isinstance(features, FeaturesInMemory)
        }
        train = {b: size for (split, _, b), size in sizes.items() if split == self.split}
        others = sum(size for (split, _, _), size in sizes.items() if split != self.split)
        planned = len(self.views) * sum(train.values()) + others + self._targets_bytes
        return planned + num_bytes <= self.config.search.memory_mb * 2**20

    def _kept_validation(self, split: str, boundaries: Collection[Boundary]) -> Iterator[DeviceBatch]:
        """Validation batches of kept features alone."""
        rows = share(self.num_validation, self.worker.rank, self.worker.world)
        size = self.config.train.batch_size
        for start in range(0, len(rows), size):
            at = np.arange(start, min(start + size, len(rows)))
            features = {b: self._gather(split, None, b, at) for b in boundaries}
            yield DeviceBatch(None, features, {}, rows[at], self._geometries[start : start + size])

    def _boundaries(self) -> list[Boundary | None]:
        """Where the trials that still train begin; None: at the pixels."""
        return [run.boundary for run in self.runs if not run.over] or [None]

    def _features(
        self, x_BCHW: Any, wanted: Collection[Boundary], precision: str
    ) -> dict[Boundary, Features]:
        with autocast(self.worker.device, precision):
            return self.backbone.features(x_BCHW, wanted)

    def _add_features(self, batch: DeviceBatch, step: int) -> DeviceBatch:
        """Add features to a training batch that has pixels."""
        wanted = {b for b in self._boundaries() if b is not None}
        batch.features = self._features(batch.x_BCHW, wanted - self.keep.keys(), self.config.train.precision)
        if wanted & self.keep.keys():
            batch.features |= self._kept_batch(step, batch.rows).features
        return batch

    def _prepare(self, step: int) -> None:
        """Have the kept features of a step; what cannot be kept is computed with each batch from now on."""
        epoch, view, wanted = self._kept_at(step)
        missing = {b for b in wanted if (self.split, view, b) not in self.kept}
        if not missing:
            return
        try:
            self._fill(view, epoch, set(missing))
        except StorageError as error:
            text = f"features are not kept, but computed with each batch: {error}"
            self.emit({"kind": "note", "run": self.config.run_uri, "text": text})
            self.keep = {b: place for b, place in self.keep.items() if b not in missing}
            self.kept = {key: features for key, features in self.kept.items() if key[2] not in missing}

    def _kept_at(self, step: int) -> tuple[int, int | None, set[Boundary]]:
        """The epoch and view of a step, and the boundaries at which trials begin at kept features."""
        epoch = step // self.order.steps_per_epoch
        wanted = {b for b in self._boundaries() if b is not None and b in self.keep}
        return epoch, Augment.view(self.source.augment, epoch), wanted

    def _kept_batch(self, step: int, rows: Indices) -> DeviceBatch:
        """A training batch of kept features alone."""
        epoch, view, wanted = self._kept_at(step)
        twice = np.concatenate([rows, rows]) if len(rows) == 1 else rows  # as loader.to_device does
        features = {b: self._gather(self.split, view, b, twice) for b in wanted}
        targets, geometries = zip(*(self._target(view, epoch, int(row)) for row in twice), strict=True)
        on_device = loader.on_device(loader.collate(list(targets)), self.worker.device)
        return DeviceBatch(None, features, on_device, rows, list(geometries[: len(rows)]))

    def _target(self, view: int | None, epoch: int, row: int) -> tuple[Any, Geometry]:
        """A row's target and geometry; kept in memory, if it fits."""
        if (view, row) not in self._targets:
            target, geometry = loader.annotation(self.source, self._fingerprint, epoch, row)
            num_bytes = sum(np.asarray(value).nbytes for value in target.values())
            if not self._fits(num_bytes):
                return target, geometry
            self._targets[view, row] = target, geometry
            self._targets_bytes += num_bytes
        return self._targets[view, row]

    def _gather(self, split: str, view: int | None, boundary: Any, rows: Indices) -> Features:
        """Kept features of some rows, on the device."""
        features = from_arrays(self.kept[split, view, boundary].gather(rows), self.source.preprocess.size)
        return features.to(self.worker.device)

    def _fill(self, view: int | None, epoch: int, missing: set[Boundary]) -> None:
        """Have the features of one view of the training split: from the cache, or computed in one pass."""
        split = self.split
        keys = {b: self.key(view, b) for b in missing}
        for b in list(missing):
            shards = self.cache.find(keys[b]) if self.cache and self.keep[b] == IN_CACHE else None
            if shards is not None:
                self.kept[split, view, b] = shards
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
                if self.keep[b] == IN_CACHE and self.cache:
                    writers[b] = stack.enter_context(self.cache.write(keys[b], num_rows))
                else:
                    writers[b] = self.kept[split, view, b] = FeaturesInMemory(num_rows)
            for batch in loader.pipeline(self.source, plan):
                x_BCHW = batch.x_BCHW.to(self.worker.device)
                for b, features in self._features(x_BCHW, missing, self.config.train.precision).items():
                    writers[b].add(to_arrays(features))
        for b in missing:
            if self.keep[b] == IN_CACHE and self.cache:
                shards = self.cache.find(keys[b])
                if shards is None:
                    raise StorageError(
                        f"{self.cache.uri}: {keys[b].digest} was removed just after it was written"
                    )
                self.kept[split, view, b] = shards

    def key(self, view: int | None, boundary: Boundary) -> Key:
        """The cache's key for features of the training split: everything that their values depend on."""
        augment = self.source.augment
        rendering = {
            "preprocess": self.source.preprocess.model_dump(mode="json"),
            "augment": None if view is None or augment is None else augment.model_dump(exclude={"views"}),
            "seed": None if view is None else self.source.seed,
            "view": view,
            "precision": self.config.train.precision,
            "device": self.worker.device.type,  # GPUs round differently
        }
        reads = POOLED if boundary.reads is None else ",".join(map(str, boundary.reads))
        return Key(
            data=self._fingerprint,
            split=self.split,
            view=json.dumps(rendering, sort_keys=True),
            backbone=self._weights_of(boundary.depth),
            boundary=f"{boundary.depth} of {len(self.backbone.stages)}, {reads}",
            dtype=self.config.search.cache_dtype,
        )

    def _weights_of(self, depth: int) -> str:
        """The backbone's name and a digest of the weights and statistics of its first stages."""
        prefix = self.backbone.prefix(depth)
        for stage in list(prefix.stages)[len(self._digests) :]:
            self._digests.append(_digest(stage.state_dict().values()))
        digests = self._digests[:depth]
        if depth == len(self.backbone.stages):  # pooling may have weights of its own
            in_stages = {id(x) for x in (*prefix.parameters(), *prefix.buffers())}
            digests.append(_digest(x for x in self.backbone.parameters() if id(x) not in in_stages))
        digest = hashlib.sha256("".join(digests).encode()).hexdigest()[:32]
        # Frozen stages have no dropout of any kind, so its settings do not matter.
        spec = {k: v for k, v in self.backbone.spec().items() if k not in ("drop_rate", "drop_path_rate")}
        return f"{json.dumps(spec, sort_keys=True)} {digest}"


def _digest(tensors: Iterable[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for x in tensors:
        digest.update(str(tuple(x.shape)).encode())
        digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
