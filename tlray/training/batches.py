"""Batches on the device, and the sources that give them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tlray.config import Config
from tlray.data import loader
from tlray.data.dataset import Dataset
from tlray.data.image import Geometry
from tlray.data.sampler import Indices, Order
from tlray.models.backbone import Boundary, Features
from tlray.training.worker import Worker


@dataclass
class DeviceBatch:
    """A batch on the device: ``x_BCHW`` uint8 pixels (None where no candidate trains from the pixels),
    features by boundary, targets by name, and rows (B,) and geometries as in `loader.Batch`."""

    x_BCHW: torch.Tensor | None
    features: dict[Boundary, Features]
    targets: dict[str, Any]
    rows: Indices
    geometries: list[Geometry]

    def input(self, boundary: Boundary | None) -> Any:
        """The input of a candidate that trains from a boundary on: features there, otherwise pixels."""
        return self.x_BCHW if boundary is None else self.features.get(boundary, self.x_BCHW)


class BatchSource(Protocol):
    """Gives the batches of a training loop."""

    def train(self, first: int, last: int) -> Iterator[DeviceBatch | None]:
        """This rank's batches of the steps [first, last); None for a step in which it has no row."""
        ...

    def one(self, epoch: int, row: Indices) -> DeviceBatch:
        """A batch of one row, for a rank that has none in a step."""
        ...

    def validation(self, boundaries: Collection[Boundary | None]) -> Iterable[DeviceBatch]:
        """This rank's part of the validation split, for candidates that need these boundaries."""
        ...


class RenderedBatches:
    """Renders every batch for its step; validation pictures, which stay the same, once."""

    def __init__(self, source: loader.Source, order: Order, config: Config, worker: Worker) -> None:
        self.source, self.order, self.worker = source, order, worker
        self.channels_last = config.train.channels_last
        plain = loader.plain(source, config.data.validation_split)
        self._held = loader.CachedBatches(plain, worker.rank, worker.world, config.train.batch_size)
        self._fingerprint = Dataset.open(source.uri).fingerprint

    def train(self, first: int, last: int) -> Iterator[DeviceBatch | None]:
        for batch in loader.train_batches(self.source, self.order, self.worker.rank, first, last):
            yield self._on_device(batch) if batch else None

    def one(self, epoch: int, row: Indices) -> DeviceBatch:
        return self._on_device(loader.make_batch(self.source, self._fingerprint, epoch, row))

    def validation(self, boundaries: Collection[Boundary | None]) -> Iterator[DeviceBatch]:
        for batch in self._held:
            x_BCHW = batch.x_BCHW.to(self.worker.device, non_blocking=True)
            yield DeviceBatch(x_BCHW, {}, {}, batch.rows, batch.geometries)

    def _on_device(self, batch: loader.Batch) -> DeviceBatch:
        x_BCHW, targets = loader.to_device(batch, self.worker.device, self.channels_last)
        return DeviceBatch(x_BCHW, {}, targets, batch.rows, batch.geometries)
