"""What a task is: the Protocol, and the few types that cross it.

A task is one file in ``tlray/tasks``: a frozen settings object named ``Task`` whose fields are the
keys accepted under ``task:`` in a configuration. Everything particular to the task is behind these
methods; nothing else in tlray asks which task it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from tlray.image import Geometry
from tlray.plots import Section

if TYPE_CHECKING:  # it brings timm, which processes that only render need not load
    from tlray.backbone import Backbone

Row = dict[str, Any]  # one row of a data set: its label columns, id and path
Prediction = dict[str, Any]  # JSON-able, in source pixels
Target = dict[str, np.ndarray | np.generic]  # one row's annotation in model space, by name


class Goal(NamedTuple):
    """The metric that decides, and which way is better."""

    name: str
    direction: Literal["max", "min"]

    def better(self, a: float, b: float | None) -> bool:
        """Whether ``a`` beats ``b``; anything beats None, NaN beats nothing."""
        if a != a:
            return False
        return b is None or b != b or (a > b if self.direction == "max" else a < b)


class Metrics(Protocol):
    """Accumulates decoded predictions beside source rows; mergeable across workers."""

    def update(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> None: ...

    def state(self) -> Any:
        """JSON-able state, for another worker's `merge`."""
        ...

    def merge(self, state: Any) -> None: ...

    def compute(self) -> dict[str, float]:
        """Metrics by name; the goal's is among them."""
        ...


class Module(Protocol):
    """What `Task.build` returns: an nn.Module with ``backbone`` and ``head``."""

    backbone: Backbone
    head: nn.Module

    def __call__(self, x_BCHW: torch.Tensor, targets: dict[str, torch.Tensor] | None = None) -> Any: ...


class Task(Protocol):
    """Everything that is particular to a kind of vision task."""

    name: str
    columns: ClassVar[dict[str, tuple[pa.DataType, str]]]
    """Label columns that the data must have: name -> (Arrow type, kind); kind "class" holds names."""
    goal: ClassVar[Goal]

    def build(self, backbone: Backbone, labels: list[str], counts: Sequence[int] | None = None) -> nn.Module:
        """A `Module`: ``forward(x_BCHW uint8, targets)`` gives the mean loss of the batch's rows (scalar),
        ``forward(x_BCHW)`` raw outputs; ``counts`` are training rows per label."""
        ...

    def encode(self, row: Row, geometry: Geometry, labels: list[str]) -> Target:
        """Annotation -> target in model space."""
        ...

    def decode(self, outputs: Any, geometries: Sequence[Geometry], labels: list[str]) -> list[Prediction]:
        """Raw outputs of a batch -> predictions in source pixels."""
        ...

    def metrics(self, labels: list[str]) -> Metrics: ...

    def record(self, row: Row, prediction: Prediction) -> dict[str, Any]:
        """One row of evaluation.json."""
        ...

    def figures(self, evaluation: dict[str, Any]) -> list[Section]:
        """What the report shows of an evaluation."""
        ...
