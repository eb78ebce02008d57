"""Single-label image classification: one class a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from tlray.config import Share, Strict
from tlray.data.image import Geometry, Preprocess
from tlray.data.schema import LABEL, Kind, Row, Target
from tlray.figures import charts
from tlray.tasks import base, losses
from tlray.tasks.base import Counts, Defaults, Goal, OneOf, Prediction, Remark, TrainingRows

if TYPE_CHECKING:  # importing it imports timm, which processes that only render do not need
    from tlray.models.backbone import Backbone


class Task(Strict):
    """Settings under ``task:``."""

    name: Literal["classification"] = "classification"
    goal: Annotated[Goal, OneOf(accuracy="max", balanced_accuracy="max", macro_f1="max", log_loss="min")] = (
        Goal("accuracy", "max")
    )
    label_smoothing: Share = 0.05
    class_weights: Literal["none", "balanced"] = "none"

    columns: ClassVar[dict[str, Kind]] = {LABEL: "class"}
    defaults: ClassVar[Defaults] = Defaults()
    together: ClassVar[int] = 1
    gallery: ClassVar[bool] = False
    detects: ClassVar[bool] = False
    supported_augmentations: ClassVar[tuple[str, ...]] = ("mixup", "cutmix")

    def preflight(self, rows: pa.Table, names: Mapping[str, list[str]]) -> tuple[pa.Table, list[Remark]]:
        return rows, []  # ingest checks classes for all tasks

    def unmeasurable(self, tables: Iterable[pa.Table], labels: list[str]) -> str | None:
        return None if any(table.num_rows for table in tables) else "it has no pictures"

    def adapted_to_data(
        self, rows: TrainingRows, backbone: Backbone, preprocess: Preprocess
    ) -> tuple[Task, str]:
        return self, ""

    def build(self, backbone: Backbone, labels: list[str], counts: Counts | None = None) -> nn.Module:
        """A linear classifier of the backbone's pooled features."""
        weights = None
        if self.class_weights == "balanced" and counts is not None:
            count_C = torch.tensor(counts.by_class, dtype=torch.float32).clamp(min=1)
            weights = count_C.sum() / (len(labels) * count_C)
        return Classifier(backbone, len(labels), self.label_smoothing, weights)

    def encode(self, row: Row, geometry: Geometry, labels: list[str]) -> Target:
        return {LABEL: np.int64(row[LABEL])}

    def decode(
        self, outputs: torch.Tensor, geometries: Sequence[Geometry], labels: list[str]
    ) -> list[Prediction]:
        """Logits (B, C) -> for each picture all classes, most probable first."""
        predictions = []
        for p_C in outputs.float().softmax(dim=1).cpu().numpy():
            ranked = [
                {"label": labels[i], "index": int(i), "probability": round(float(p_C[i]), 6)}
                for i in np.argsort(-p_C, kind="stable")
            ]
            predictions.append({**ranked[0], "labels": ranked})
        return predictions

    def metrics(self, labels: list[str]) -> Metrics:
        return Metrics(len(labels))

    def with_thresholds(self, metrics: base.Metrics) -> Task:
        return self

    def record(self, row: Row | None, prediction: Prediction) -> dict[str, Any]:
        by_index = {item["index"]: item["probability"] for item in prediction["labels"]}
        return {
            **({"truth": int(row[LABEL])} if row is not None else {}),
            "prediction": prediction["index"],
            "probability": prediction["probability"],
            "probabilities": [by_index[i] for i in range(len(by_index))],
        }

    def draw(self, picture: Image.Image, record: dict[str, Any], labels: list[str]) -> Image.Image:
        return picture  # a class has no place in the picture

    def draw_truth(self, picture: Image.Image, row: Row, labels: list[str]) -> Image.Image:
        return picture  # a class has no place in the picture

    def served(self, prediction: Prediction, min_score: float | None = None) -> Prediction:
        return prediction

    def image_of(self, prediction: Prediction) -> bytes | None:
        return None

    def summary(self, prediction: Prediction, top: int) -> str:
        return "  ".join(f"{item['label']} {item['probability']:.4f}" for item in prediction["labels"][:top])

    def figures(self, evaluation: dict[str, Any]) -> list[charts.Section]:
        """Confusion matrix, metrics of each class, calibration, worst mistakes."""
        rows, labels = evaluation["rows"], evaluation["labels"]
        truth, predicted = [r["truth"] for r in rows], [r["prediction"] for r in rows]
        return charts.classification(truth, predicted, [r["probability"] for r in rows], labels)


class Classifier(nn.Module):
    """backbone -> pooled features (B, num_features) -> logits (B, num_classes)."""

    class_weights: torch.Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        label_smoothing: float,
        class_weights: torch.Tensor | None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, num_classes)
        nn.init.zeros_(self.head.weight)  # so that the first predictions are uniform
        nn.init.zeros_(self.head.bias)
        self.label_smoothing = label_smoothing
        # Part of the loss, not of the model: bundles do not store it.
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, x_BCHW: torch.Tensor, targets: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Logits, or with targets (``label`` (B,) int64) the mean loss (scalar)."""
        logits: torch.Tensor = self.head(self.backbone.pooled(x_BCHW))
        if targets is None:
            return logits

        def loss(row_targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return F.cross_entropy(
                logits,
                row_targets[LABEL],
                weight=self.class_weights,
                label_smoothing=self.label_smoothing,
                reduction="none",
            )

        # The mean over rows, not over weights: then means of batches and workers of any size add up.
        return losses.mixed(loss, targets).mean()


class Metrics:
    """Counts pairs of (truth, prediction); counts are integers, so merging is exact in any order.

    Counted here, not by scikit-learn or torchmetrics: they need all rows at once, and a worker would import
    them for seconds.
    """

    def __init__(self, num_classes: int) -> None:
        self.confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        self.log_loss = 0.0

    def update(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> None:
        for prediction, row in zip(predictions, rows, strict=True):
            truth = int(row[LABEL])
            self.confusion[truth, prediction["index"]] += 1
            p = next(item["probability"] for item in prediction["labels"] if item["index"] == truth)
            self.log_loss -= float(np.log(max(p, 1e-6)))

    def state(self) -> Any:
        return {"confusion": self.confusion.tolist(), "log_loss": self.log_loss}

    def merge(self, state: Any) -> None:
        self.confusion += np.array(state["confusion"], dtype=np.int64)
        self.log_loss += state["log_loss"]

    def compute(self) -> dict[str, float]:
        """accuracy, log_loss, and over classes that occur balanced_accuracy, macro_f1; NaN without rows."""
        total = self.confusion.sum()
        if total == 0:
            return dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "log_loss"), float("nan"))
        correct_C = np.diag(self.confusion)
        truth_C, predicted_C = self.confusion.sum(1), self.confusion.sum(0)
        present = truth_C > 0
        return {
            "accuracy": float(correct_C.sum() / total),
            "balanced_accuracy": float((correct_C[present] / truth_C[present]).mean()),
            "macro_f1": float((2 * correct_C[present] / (truth_C + predicted_C)[present]).mean()),
            "log_loss": self.log_loss / float(total),
        }
