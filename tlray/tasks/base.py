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
TrainingRows = Callable[[Sequence[str]], pa.Table]  # column names -> those that the training split has


Direction = Literal["max", "min"]
TIE = "log_loss"  # breaks ties of the goal, in tasks that have this metric


class Goal(NamedTuple):
    """The metric that models are chosen by, and which direction is better."""

    name: str
    direction: Direction

    def better(self, a: float, b: float | None) -> bool:
        """Whether ``a`` beats ``b``; anything beats None, NaN beats nothing."""
        if a != a:
            return False
        return b is None or b != b or (a > b if self.direction == "max" else a < b)

    def beats(self, new: Mapping[str, float], old: Mapping[str, float] | None) -> bool:
        """Whether ``new`` metrics beat ``old``: by the goal, and on a tie by the lower log loss."""
        if old is None or new[self.name] != old[self.name]:
            return self.better(new[self.name], None if old is None else old[self.name])
        return new.get(TIE, math.inf) < old.get(TIE, math.inf)


class OneOf:
    """Validates a task's setting ``goal``: one of these metric names, each with its better direction."""

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
    """A task's values for settings that are ``auto``; see `tlray.training.defaults`."""

    policy: Literal["colour", "mild", "photometric"] = "mild"  # augment.policy
    scale: tuple[float, float] = (1.0, 1.0)  # augment.scale, the area of crops
    batch_size: int = 64  # upper limit
    rate_factor: float = 1.0  # multiplies the learning rate of the head
    backbone_lr_ratio: float = 1.0
    task: Mapping[str, Any] = MappingProxyType({})  # settings of the task itself, for new trainings


class Counts(NamedTuple):
    """Number of training rows: of each class or identity, and in total."""

    by_class: Sequence[int]
    rows: int


class Metrics(Protocol):
    """Accumulates decoded predictions and their rows; states of several workers can be merged."""

    def update(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> None: ...

    def state(self) -> Any:
        """JSON-able state, for another worker's `merge`."""
        ...

    def merge(self, state: Any) -> None: ...

    def compute(self) -> dict[str, float]:
        """Values by metric name, the goal's among them."""
        ...


class Remark(NamedTuple):
    """A problem in the labels of a data set; see `ingestion.findings` for the severities."""

    severity: Literal["error", "warning", "info"]
    kind: str
    message: str
    examples: list[str]


class Module(Protocol):
    """What `Task.build` returns: an nn.Module with the ``backbone`` and a newly initialised head.

    It may have these attributes and methods, too:

    ``training_only``: name prefixes of parameters that are stored in checkpoints but not in bundles.
    ``class_layers``: name prefixes of parameters that depend on the classes; a model of other classes can
        reuse all others.
    ``reads``: indices of the backbone stages whose maps the head takes; without it the head takes the pooled
        features. A search computes these once where the stages below are frozen, and then passes a
        `Features` as ``x_BCHW``, which the backbone's methods accept in place of pixels.
    ``needs_pixels``: whether evaluation needs pixels although training can start from features.
    ``trained(share)``: called before each step with the share of training that is done, 0 to 1.
    ``embed(x_BCHW)``: the embedding (B, D) that the task trains; used by `Predictor.embed`.
    """

    backbone: Backbone

    def __call__(self, x_BCHW: torch.Tensor, targets: dict[str, torch.Tensor] | None = None) -> Any: ...


class Task(Protocol):
    """Everything that is particular to a kind of vision task."""

    name: str
    columns: ClassVar[dict[str, Kind]]
    """Label columns that the data must have, and what they mean."""
    goal: Goal
    """The metric that models are chosen by; a setting, `OneOf` the task's metrics."""
    defaults: ClassVar[Defaults]
    together: int
    """How many rows of one label are placed side by side in a batch; 1: rows are not grouped."""
    gallery: ClassVar[bool]
    """Whether people (or things) are enrolled after training and recognised by similar embeddings."""
    detects: ClassVar[bool]
    """Whether a prediction is a list of detections with scores; `served` leaves out those of low score."""
    supported_augmentations: ClassVar[tuple[str, ...]]
    """Which of mixup, cutmix, mosaic and class_balance (keys of ``augment``) can be applied to the labels.

    With mixup or cutmix, a target that has no place in the picture comes with that of the second picture,
    and the loss is `losses.mixed`."""

    def preflight(self, rows: pa.Table, names: Mapping[str, list[str]]) -> tuple[pa.Table, list[Remark]]:
        """Check labels before ingest writes a data set; returns (corrected rows, remarks).

        ``rows`` has the columns path, width, height, kind, reason, and the label columns with classes as
        text. kind and reason are set where the picture itself is unusable. A mask is given by mask_values,
        null where it cannot be read. ``names``: class names by column, where the layout gives them.
        A row with an unusable label is returned with kind (one word) and reason set.
        """
        ...

    def unmeasurable(self, tables: Iterable[pa.Table], labels: list[str]) -> str | None:
        """The reason why the goal is undefined on a split for any prediction; None: it is defined.

        ``tables``: the split's label columns in parts, which are read only as far as needed.
        """
        ...

    def adapted_to_data(
        self, rows: TrainingRows, backbone: Backbone, preprocess: Preprocess
    ) -> tuple[Task, str]:
        """A copy with settings derived from the training rows, made before `build`, and a line that tells
        the user of them; the task itself and "" where nothing is derived."""
        ...

    def build(self, backbone: Backbone, labels: list[str], counts: Counts | None = None) -> nn.Module:
        """Build a `Module`.

        ``forward(x_BCHW uint8, targets)`` returns the mean loss of the batch's rows (scalar),
        ``forward(x_BCHW)`` raw outputs in any structure of tensors. ``counts`` is None where the model is
        loaded from a bundle."""
        ...

    def encode(self, row: Row, geometry: Geometry, labels: list[str]) -> Target:
        """Annotation -> target in model space."""
        ...

    def decode(self, outputs: Any, geometries: Sequence[Geometry], labels: list[str]) -> list[Prediction]:
        """Raw outputs of a batch -> predictions in source pixels."""
        ...

    def metrics(self, labels: list[str]) -> Metrics: ...

    def with_thresholds(self, metrics: Metrics) -> Task:
        """A copy with thresholds chosen on validation; the task itself where it needs none."""
        ...

    def record(self, row: Row | None, prediction: Prediction) -> dict[str, Any]:
        """One row of evaluation.json: all that `figures` and `draw` need.

        Without a row there is no truth, and the prediction was filtered by `served`."""
        ...

    def draw(self, picture: Image.Image, record: dict[str, Any], labels: list[str]) -> Image.Image:
        """Draw a record on its picture (RGB, source px): the prediction, and the truth where it has one."""
        ...

    def draw_truth(self, picture: Image.Image, row: Row, labels: list[str]) -> Image.Image:
        """Draw a row's labels on its picture (RGB; boxes and masks in its px); the picture itself where
        labels have no place in it."""
        ...

    def served(self, prediction: Prediction, min_score: float | None = None) -> Prediction:
        """The part of a prediction that users get: detections that score at least ``min_score``, by default
        the task's threshold. Metrics and batch prediction use the whole; so do tasks without detections."""
        ...

    def image_of(self, prediction: Prediction) -> bytes | None:
        """A prediction that is a picture, as PNG in source size; None for other tasks."""
        ...

    def summary(self, prediction: Prediction, top: int) -> str:
        """A prediction, filtered by `served`, in one line for a terminal."""
        ...

    def figures(self, evaluation: dict[str, Any]) -> list[Section]:
        """Sections of the report about an evaluation."""
        ...
