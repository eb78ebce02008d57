"""Multi-label image classification: any number of classes for each picture, also none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from tlray.config import Share, Strict
from tlray.data.image import Geometry, Preprocess
from tlray.data.schema import LABELS, Kind, Row, Target
from tlray.errors import ConfigError
from tlray.figures import charts
from tlray.tasks import base, losses
from tlray.tasks.base import Counts, Defaults, Goal, OneOf, Prediction, Remark, TrainingRows

if TYPE_CHECKING:  # importing it imports timm, which processes that only render do not need
    from tlray.models.backbone import Backbone

FEW = 10  # classes with fewer positives in validation share one threshold
MAX_WEIGHT = 100.0  # of a class's positives: otherwise a handful of pictures would dominate the loss
DEFAULT_THRESHOLD = 0.5  # of a class without positives in validation


class Task(Strict):
    """Settings under ``task:``."""

    name: Literal["multilabel"] = "multilabel"
    goal: Annotated[Goal, OneOf(map="max", macro_f1="max", micro_f1="max", log_loss="min")] = Goal(
        "map", "max"
    )
    label_smoothing: Share = 0.0
    pos_weight: Literal["none", "balanced"] = "none"  # balanced: negatives / positives, for each class
    thresholds: tuple[Share, ...] | None = None  # one for each class; None: the best F1 on validation

    columns: ClassVar[dict[str, Kind]] = {LABELS: "classes"}
    defaults: ClassVar[Defaults] = Defaults()
    together: ClassVar[int] = 1
    gallery: ClassVar[bool] = False
    detects: ClassVar[bool] = False
    supported_augmentations: ClassVar[tuple[str, ...]] = ("mixup", "cutmix")

    def preflight(self, rows: pa.Table, names: Mapping[str, list[str]]) -> tuple[pa.Table, list[Remark]]:
        """Report pictures of no class; they are kept, as negative examples of all classes."""
        has_no_class = pc.equal(pc.list_value_length(rows[LABELS]), 0)
        paths = rows["path"].filter(pc.fill_null(has_no_class, False)).to_pylist()
        if not paths:
            return rows, []
        return rows, [Remark("info", "no_class", f"{len(paths)} pictures of no class", paths)]

    def unmeasurable(self, tables: Iterable[pa.Table], labels: list[str]) -> str | None:
        if any(len(pc.list_flatten(table[LABELS])) for table in tables):
            return None
        return "none of its pictures has a class"

    def adapted_to_data(
        self, rows: TrainingRows, backbone: Backbone, preprocess: Preprocess
    ) -> tuple[Task, str]:
        return self, ""

    def build(self, backbone: Backbone, labels: list[str], counts: Counts | None = None) -> nn.Module:
        """A linear classifier of the backbone's pooled features, one logit for each class.

        Raises ConfigError where the number of thresholds is not the number of classes.
        """
        if self.thresholds is not None and len(self.thresholds) != len(labels):
            raise ConfigError(
                f"task.thresholds: {len(self.thresholds)} numbers; accepted: one a class, {len(labels)}"
            )
        weights = prior = None
        if counts is not None:
            count_C = torch.tensor(counts.by_class, dtype=torch.float32)
            prior = ((count_C + 0.5) / (counts.rows - count_C + 0.5)).log()
            if self.pos_weight == "balanced":
                weights = (counts.rows - count_C) / count_C.clamp(min=1)
                weights = weights.clamp(1 / MAX_WEIGHT, MAX_WEIGHT)
                prior = prior + weights.log()  # the constant prediction with the smallest weighted loss
        return Classifier(backbone, len(labels), self.label_smoothing, weights, prior)

    def encode(self, row: Row, geometry: Geometry, labels: list[str]) -> Target:
        """``labels`` (C,) float32: 1 where the class is in the picture."""
        return {LABELS: _multi_hot(row[LABELS], len(labels)).astype(np.float32)}

    def decode(
        self, outputs: torch.Tensor, geometries: Sequence[Geometry], labels: list[str]
    ) -> list[Prediction]:
        """Logits (B, C) -> for each picture all classes, most probable first, and those that are present."""
        predictions = []
        for p_C in outputs.float().sigmoid().cpu().numpy():
            ranked = [
                {"label": labels[i], "index": int(i), "probability": round(float(p_C[i]), 6)}
                for i in np.argsort(-p_C, kind="stable")
            ]
            above = [item for item in ranked if item["probability"] >= self._threshold(item["index"])]
            predictions.append({"labels": ranked, "present": [item["label"] for item in above]})
        return predictions

    def _threshold(self, index: int) -> float:
        return DEFAULT_THRESHOLD if self.thresholds is None else self.thresholds[index]

    def metrics(self, labels: list[str]) -> Metrics:
        return Metrics(len(labels), self.thresholds)

    def with_thresholds(self, metrics: base.Metrics) -> Task:
        """A copy with the best thresholds by F1, unless thresholds were set by hand."""
        assert isinstance(metrics, Metrics)
        if self.thresholds is not None or not metrics.scores:
            return self
        return self.model_copy(update={"thresholds": tuple(best_thresholds(*metrics.arrays()))})

    def record(self, row: Row | None, prediction: Prediction) -> dict[str, Any]:
        by_name = {item["label"]: item for item in prediction["labels"]}
        by_index = {item["index"]: item["probability"] for item in prediction["labels"]}
        return {
            **({"truth": sorted(map(int, row[LABELS]))} if row is not None else {}),
            "prediction": sorted(by_name[name]["index"] for name in prediction["present"]),
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
        """The classes that are present, marked ``+``, then the most probable others."""
        present = set(prediction["present"])
        ranked = sorted(prediction["labels"], key=lambda item: item["label"] not in present)  # stable
        return "  ".join(
            f"{'+' if item['label'] in present else ''}{item['label']} {item['probability']:.4f}"
            for item in ranked[: max(top, len(present))]
        )

    def figures(self, evaluation: dict[str, Any]) -> list[charts.Section]:
        """Metrics of each class, calibration, and the wrong pictures with the largest loss."""
        rows, labels = evaluation["rows"], evaluation["labels"]
        if not rows:
            return []
        scores_NC = np.array([row["probabilities"] for row in rows])
        truth_NC, predicted_NC = (
            np.array([_multi_hot(row[key], len(labels)) for row in rows]) for key in ("truth", "prediction")
        )
        cells = []
        for i, label in enumerate(labels):
            correct, predicted, true = (int(n) for n in _counts(truth_NC[:, i], predicted_NC[:, i]))
            cells.append(
                [
                    label,
                    average_precision(scores_NC[:, i], truth_NC[:, i]),
                    correct / predicted if predicted else None,
                    correct / true if true else None,
                    2 * correct / (predicted + true) if predicted + true else None,
                    self._threshold(i),
                    true,
                ]
            )
        cells.sort(key=lambda row: math.inf if row[1] is None else row[1])
        names = ("average precision", "precision", "recall", "f1")
        columns = [charts.Column("class"), *(charts.Column(name, 3, most=1) for name in names)]
        columns += [charts.Column("threshold", 3), charts.Column("pictures")]
        svg, ece = charts.reliability(scores_NC.ravel().tolist(), truth_NC.ravel().tolist())
        p_NC = np.clip(scores_NC, 1e-6, 1 - 1e-6)
        loss_N = -np.where(truth_NC, np.log(p_NC), np.log(1 - p_NC)).sum(axis=1)
        wrong = np.flatnonzero((truth_NC != predicted_NC).any(axis=1))
        worst = wrong[np.argsort(-loss_N[wrong], kind="stable")][:24].tolist()
        return [
            charts.Section(
                "Classes",
                "Average precision is over all thresholds; precision, recall and F1 are at the class's own. "
                "Weakest first; a dash where a class was never predicted or never occurs.",
                tables=[charts.Table(columns, cells)],
            ),
            charts.Section(
                "Calibration",
                "How often a class is present, by the probability that the model gave it. Expected "
                f"calibration error {ece:.3f} over ten bins, all classes together (arXiv 1706.04599).",
                [svg],
            ),
            charts.Section(
                "Worst pictures",
                f"{len(rows) - len(wrong)} of {len(rows)} have every class right. Largest loss first; "
                "sometimes the labels are wrong.",
                shots=[
                    charts.Shot(i, _caption(truth_NC[i], predicted_NC[i], scores_NC[i], labels))
                    for i in worst
                ],
            ),
        ]


class Classifier(nn.Module):
    """backbone -> pooled features (B, num_features) -> logits (B, num_classes)."""

    pos_weight: torch.Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        label_smoothing: float,
        pos_weight: torch.Tensor | None,
        prior: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, num_classes)
        # The first prediction of each class is its frequency. Otherwise the first epoch would only learn that
        # most classes are absent from most pictures (arXiv 1708.02002).
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if prior is not None:
            self.head.bias.data.copy_(prior)
        self.label_smoothing = label_smoothing
        # Part of the loss, not of the model: bundles do not store it.
        self.register_buffer("pos_weight", pos_weight, persistent=False)

    def forward(self, x_BCHW: torch.Tensor, targets: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Logits (B, C), or with targets (``labels`` (B, C) float32) the mean loss (scalar)."""
        logits: torch.Tensor = self.head(self.backbone.pooled(x_BCHW))
        if targets is None:
            return logits

        def loss(row_targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
            smoothed = row_targets[LABELS] * (1 - self.label_smoothing) + self.label_smoothing / 2
            return F.binary_cross_entropy_with_logits(
                logits, smoothed, pos_weight=self.pos_weight, reduction="none"
            )

        return losses.mixed(loss, targets).mean()  # rows are equally long: also the mean over rows


class Metrics:
    """Keeps all scores and labels, which average precision needs; so merging is exact.

    Classes without a positive are left out of means; metrics are NaN where no class has one.
    """

    def __init__(self, num_classes: int, thresholds: Sequence[float] | None) -> None:
        """``thresholds`` None: the best ones by F1 on these rows, which a bundle would have."""
        self.num_classes, self.thresholds = num_classes, thresholds
        self.scores: list[list[float]] = []
        self.truth: list[list[int]] = []

    def update(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> None:
        for prediction, row in zip(predictions, rows, strict=True):
            by_index = {item["index"]: item["probability"] for item in prediction["labels"]}
            self.scores.append([by_index[i] for i in range(self.num_classes)])
            self.truth.append(sorted(map(int, row[LABELS])))

    def state(self) -> Any:
        return {"scores": self.scores, "truth": self.truth}

    def merge(self, state: Any) -> None:
        self.scores += state["scores"]
        self.truth += state["truth"]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores (N, C) float64, truth (N, C) bool."""
        truth_NC = np.array([_multi_hot(row, self.num_classes) for row in self.truth], dtype=bool)
        return np.array(self.scores).reshape(-1, self.num_classes), truth_NC.reshape(-1, self.num_classes)

    def compute(self) -> dict[str, float]:
        """map: mean average precision over classes; macro_f1 and micro_f1 at the thresholds; log_loss: mean
        cross-entropy over pictures and classes."""
        scores_NC, truth_NC = self.arrays()
        present_C = truth_NC.any(axis=0) if len(truth_NC) else np.zeros(self.num_classes, bool)
        if not present_C.any():
            return dict.fromkeys(("map", "macro_f1", "micro_f1", "log_loss"), float("nan"))
        chosen = best_thresholds(scores_NC, truth_NC) if self.thresholds is None else self.thresholds
        correct_C, predicted_C, true_C = _counts(truth_NC, scores_NC >= np.array(chosen))
        p_NC = np.clip(scores_NC, 1e-6, 1 - 1e-6)
        precisions = [average_precision(scores_NC[:, i], truth_NC[:, i]) for i in np.flatnonzero(present_C)]
        return {
            "map": float(np.mean([precision for precision in precisions if precision is not None])),
            "macro_f1": float((2 * correct_C[present_C] / (predicted_C + true_C)[present_C]).mean()),
            "micro_f1": float(2 * correct_C.sum() / (predicted_C + true_C).sum()),
            "log_loss": float(-np.where(truth_NC, np.log(p_NC), np.log1p(-p_NC)).mean()),
        }


def average_precision(score_N: np.ndarray, truth_N: np.ndarray) -> float | None:
    """Sum of precision x gain in recall over the thresholds; None without a positive."""
    # Equal to scikit-learn's, which a test shows; importing that takes a training worker seconds.
    if not truth_N.any():
        return None
    correct_T, predicted_T, _ = _counts_by_threshold(score_N, truth_N)
    gain_T = np.diff(correct_T, prepend=0) / truth_N.sum()
    return float((correct_T / predicted_T * gain_T).sum())


def best_thresholds(score_NC: np.ndarray, truth_NC: np.ndarray) -> list[float]:
    """The threshold with the best F1 for each class.

    Classes with fewer than `FEW` positives share one threshold, chosen on their rows together: a few
    positives alone would give a random one.
    """
    thresholds = [best_threshold(s, t) for s, t in zip(score_NC.T, truth_NC.T, strict=True)]
    rare = [i for i, count in enumerate(truth_NC.sum(0)) if 0 < count < FEW]
    if len(rare) > 1:
        shared = best_threshold(score_NC[:, rare].ravel(), truth_NC[:, rare].ravel())
        for i in rare:
            thresholds[i] = shared
    return thresholds


def best_threshold(score_N: np.ndarray, truth_N: np.ndarray) -> float:
    """The threshold with the best F1, half-way between that score and the next lower one."""
    if not truth_N.any():
        return DEFAULT_THRESHOLD
    correct_T, predicted_T, score_T = _counts_by_threshold(score_N, truth_N)
    best = int(np.argmax(2 * correct_T / (predicted_T + truth_N.sum())))
    below = score_T[best + 1] if best + 1 < len(score_T) else 0.0
    return round(float((score_T[best] + below) / 2), 6)


def _counts_by_threshold(
    score_N: np.ndarray, truth_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correct and predicted positives at each distinct score as threshold, and that score, highest first."""
    order_N = np.argsort(-score_N, kind="stable")
    ranked_N = score_N[order_N]
    last_T = np.flatnonzero(np.diff(ranked_N, append=-np.inf))  # the last of the rows with the same score
    return np.cumsum(truth_N[order_N])[last_T], last_T + 1, ranked_N[last_T]


def _counts(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correct, predicted and true positives, summed over rows."""
    return (truth & predicted).sum(axis=0), predicted.sum(axis=0), truth.sum(axis=0)


def _multi_hot(classes: Sequence[int], num_classes: int) -> np.ndarray:
    present_C = np.zeros(num_classes, bool)
    present_C[list(classes)] = True
    return present_C


def _caption(
    truth_C: np.ndarray, predicted_C: np.ndarray, score_C: np.ndarray, labels: Sequence[str]
) -> list[tuple[str, str]]:
    """Lines below a picture: its classes, those missed, and those predicted wrongly."""

    def names(chosen_C: np.ndarray, with_scores: bool) -> str:
        chosen = np.flatnonzero(chosen_C).tolist()
        texts = [f"{labels[i]} {score_C[i]:.2f}" if with_scores else labels[i] for i in chosen]
        return ", ".join(texts) or "none"

    lines = [("truth", names(truth_C, False))]
    for name, chosen_C in (("missed", truth_C & ~predicted_C), ("too much", predicted_C & ~truth_C)):
        if chosen_C.any():
            lines.append((name, names(chosen_C, True)))
    return lines
