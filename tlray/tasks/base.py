"""What a task is: the Protocol, and the few types that cross it.

A task is one file or folder in ``tlray/tasks``: a frozen settings object named ``Task`` whose fields are the
keys accepted under ``task:`` in a configuration. Everything particular to the task is behind these
methods; nothing else in tlray asks which task it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import pyarrow as pa
from PIL import Image
from pydantic_core import core_schema

from tlray.data.image import Geometry, Preprocess
from tlray.data.schema import Kind, Row, Target
from tlray.figures.charts import Section

if TYPE_CHECKING:  # torch and timm, which processes that only render or read manifests need not load
    import torch
    from torch import nn

    from tlray.models.backbone import Backbone

Prediction = dict[str, Any]  # JSON-able, in source pixels
TrainingRows = Callable[[Sequence[str]], pa.Table]  # those of the columns that are there


Direction = Literal["max", "min"]
TIE = "log_loss"  # the metric that decides where goals are equal, of tasks that have it


class Goal(NamedTuple):
    """The metric that decides, and which way is better."""

    name: str
    direction: Direction

    def better(self, a: float, b: float | None) -> bool:
        """Whether ``a`` beats ``b``; anything beats None, NaN beats nothing."""
        if a != a:
            return False
        return b is None or b != b or (a > b if self.direction == "max" else a < b)

    def beats(self, new: Mapping[str, float], old: Mapping[str, float] | None) -> bool:
        """Whether metrics are better than others: by the goal, of equal goals by the lower log loss."""
        if old is None or new[self.name] != old[self.name]:
            return self.better(new[self.name], None if old is None else old[self.name])
        return new.get(TIE, math.inf) < old.get(TIE, math.inf)


class OneOf:
    """A task's setting ``goal``: the name of one of these metrics, each with the way that is better."""

    def __init__(self, **directions: Direction) -> None:
        self.directions = directions

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._read,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda goal: goal.name),
        )

    def _read(self, value: Any) -> Goal:
        name = value.name if isinstance(value, Goal) else value
        if not isinstance(name, str) or name not in self.directions:
            raise ValueError(f"one of {', '.join(self.directions)}")
        return Goal(name, self.directions[name])


class Defaults(NamedTuple):
    """How a task trains where the configuration says ``auto``; see `tlray.training.defaults`."""

    policy: Literal["colour", "mild", "photometric"] = "mild"  # of augmentation
    scale: tuple[float, float] = (1.0, 1.0)  # of crops
    batch_size: int = 64  # at most
    rate_factor: float = 1.0  # of the head's rate
    backbone_lr_ratio: float = 1.0
    task: Mapping[str, Any] = MappingProxyType({})  # settings of the task itself, for new trainings


class Counts(NamedTuple):
    """Of the training split: rows of each class or identity, and of all."""

    by_class: Sequence[int]
    rows: int


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


class Remark(NamedTuple):
    """What a task found in the labels of a data set; see `ingestion.findings` for the severities."""

    severity: Literal["error", "warning", "info"]
    kind: str
    message: str
    examples: list[str]


class Module(Protocol):
    """What `Task.build` returns: an nn.Module with ``backbone`` and, beside it, everything new.

    Parameters whose name starts with one of ``training_only`` are kept in checkpoints and not in bundles;
    those of ``class_layers`` are made for the classes, and all others serve a model of other classes too.
    ``reads``: indices of the backbone's stages whose maps the head takes (absent: the pooled features alone).
    By these a search knows what it may compute once; ``x_BCHW`` may then be a `Features` in place of pixels,
    which the backbone's methods take.
    ``needs_pixels``: whether evaluation asks for pixels where training may begin with features.
    ``trained(share)``: where it has one, told before each step how much of training is done, 0 to 1.
    Where the task trains an embedding, ``embed(x_BCHW)`` gives it, (B, D); `Predictor.embed` asks for it.
    """

    backbone: Backbone

    def __call__(self, x_BCHW: torch.Tensor, targets: dict[str, torch.Tensor] | None = None) -> Any: ...


class Task(Protocol):
    """Everything that is particular to a kind of vision task."""

    name: str
    columns: ClassVar[dict[str, Kind]]
    """Label columns that the data must have, and what they mean."""
    goal: Goal
    """What decides; a setting, `OneOf` the task's metrics."""
    defaults: ClassVar[Defaults]
    together: int
    """Rows of one label that come together in a batch; 1: each comes by itself."""
    gallery: ClassVar[bool]
    """Whether people (or things) are enrolled after training and told apart by similarity of embeddings."""
    finds: ClassVar[bool]
    """Whether a prediction is a list of finds with scores; `served` leaves out those of low score."""
    follows: ClassVar[tuple[str, ...]]
    """Which of augment's mixup, cutmix, mosaic and class_balance its labels can follow. With mixup or cutmix
    targets without places come with a partner's, and the loss is `losses.mixed`."""

    def preflight(self, rows: pa.Table, names: Mapping[str, list[str]]) -> tuple[pa.Table, list[Remark]]:
        """Look at labels before a data set is made of them: (rows, remarks).

        ``rows`` have path, width, height, the label columns with classes as text, and kind and reason (set
        already where the picture itself is unusable); a mask has mask_values (null where it cannot be read).
        ``names``: class names by column where the layout gives them.
        A row that cannot be used comes back with kind (one word) and reason set; what can be mended is.
        """
        ...

    def unmeasurable(self, tables: Iterable[pa.Table], labels: list[str]) -> str | None:
        """Why the goal has no value on a split, whatever the model predicts; None: it has one.

        ``tables``: the split's label columns, a part at a time; not all of them need be looked at.
        """
        ...

    def fitted(self, rows: TrainingRows, backbone: Backbone, preprocess: Preprocess) -> tuple[Task, str]:
        """This task with what is chosen from the training rows before `build`, and what people are told of it
        in a line; itself and "" where nothing is."""
        ...

    def build(self, backbone: Backbone, labels: list[str], counts: Counts | None = None) -> nn.Module:
        """A `Module`: ``forward(x_BCHW uint8, targets)`` gives the mean loss of the batch's rows (scalar),
        ``forward(x_BCHW)`` raw outputs, any structure of tensors; ``counts`` are those of the
        training split, None where the model is loaded from a bundle."""
        ...

    def encode(self, row: Row, geometry: Geometry, labels: list[str]) -> Target:
        """Annotation -> target in model space."""
        ...

    def decode(self, outputs: Any, geometries: Sequence[Geometry], labels: list[str]) -> list[Prediction]:
        """Raw outputs of a batch -> predictions in source pixels."""
        ...

    def metrics(self, labels: list[str]) -> Metrics: ...

    def decided(self, metrics: Metrics) -> Task:
        """This task with what is chosen on validation (thresholds); itself where nothing is."""
        ...

    def record(self, row: Row | None, prediction: Prediction) -> dict[str, Any]:
        """One row of evaluation.json: all that `figures` and `draw` need; without a row, no truth, and the
        prediction is one that was `served`."""
        ...

    def draw(self, picture: Image.Image, record: dict[str, Any], labels: list[str]) -> Image.Image:
        """A record over its picture (RGB, source px), truth beside prediction where there is one."""
        ...

    def draw_truth(self, picture: Image.Image, row: Row, labels: list[str]) -> Image.Image:
        """A row's labels over its picture (RGB; boxes and mask in its px); the picture itself where labels
        have no place in it."""
        ...

    def served(self, prediction: Prediction, min_score: float | None = None) -> Prediction:
        """What people are given of a prediction: of finds those from ``min_score`` on, without it those from
        the task's threshold on. Metrics and batch prediction take the whole; so may other tasks."""
        ...

    def image_of(self, prediction: Prediction) -> bytes | None:
        """The prediction itself as an encoded PNG in source size; None where it is no picture."""
        ...

    def summary(self, prediction: Prediction, top: int) -> str:
        """A prediction, as it is `served`, in one line for a terminal."""
        ...

    def figures(self, evaluation: dict[str, Any]) -> list[Section]:
        """What the report shows of an evaluation."""
        ...
