"""Face recognition as metric learning: embeddings of pictures of one person lie close together.

The people of the training split are not classes of the model: their weights belong to the loss and are not
stored in bundles. People are enrolled later, by a picture each, and recognised by cosine similarity.
"""

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

from tlray.config import Count, NonNegative, Positive, Share, Strict
from tlray.data.image import Geometry, Preprocess
from tlray.data.schema import LABEL, Kind, Row, Target
from tlray.figures.charts import Section
from tlray.tasks import base
from tlray.tasks.base import Counts, Defaults, Goal, OneOf, Prediction, Remark, TrainingRows
from tlray.tasks.face_recognition.model import FaceEmbedder, make_head
from tlray.tasks.face_recognition.verification import Metrics, paired_pictures, sections

if TYPE_CHECKING:  # importing it imports timm, which processes that only render do not need
    from tlray.models.backbone import Backbone


class Task(Strict):
    """Settings under ``task:``."""

    name: Literal["face_recognition"] = "face_recognition"
    goal: Annotated[
        Goal,
        OneOf(
            verification_accuracy="max",
            roc_auc="max",
            equal_error_rate="min",
            rank1="max",
            **{"tar_at_far_0.01": "max", "tar_at_far_0.001": "max"},
        ),
    ] = Goal("verification_accuracy", "max")
    # Not tar_at_far: in a validation split of a few hundred pairs it depends on a handful of pairs of two
    # people, while verification_accuracy depends on all pairs and is what `verify` delivers.
    head: Literal["arcface", "cosface", "adaface"] = "arcface"
    margin: NonNegative | None = None  # None: the margin in the head's paper
    scale: Positive = 30.0  # of the cosines in the loss; the papers have 64, for 10,000 people and more
    embedding_size: Count = 128
    margin_warmup: Share = 0.1  # share of training in which the margin grows from 0
    pictures_per_person: Count = 4  # placed side by side in a training batch
    mirror: bool = False  # average the embeddings of a picture and its mirror image; new trainings: true
    threshold: float | None = None  # cosine similarity of one person; None: chosen on validation

    columns: ClassVar[dict[str, Kind]] = {LABEL: "identity"}
    defaults: ClassVar[Defaults] = Defaults(
        "colour",
        (0.7, 1.0),
        batch_size=32,
        rate_factor=0.6,
        backbone_lr_ratio=0.3,
        task={"mirror": True},
    )
    gallery: ClassVar[bool] = True
    detects: ClassVar[bool] = False
    supported_augmentations: ClassVar[tuple[str, ...]] = ("mixup", "cutmix")

    def preflight(self, rows: pa.Table, names: Mapping[str, list[str]]) -> tuple[pa.Table, list[Remark]]:
        """Warn of people with a single picture, which gives no pair of the same person to learn from."""
        usable = rows.filter(pc.is_null(rows["kind"])).select([LABEL]).drop_null()
        counts = usable.group_by(LABEL).aggregate([([], "count_all")]).to_pylist()
        single = sorted(str(person[LABEL]) for person in counts if person["count_all"] == 1)
        if not single:
            return rows, []
        text = f"{len(single)} of {len(counts)} people have a single picture, so no pair of the same person"
        return rows, [Remark("warning", "single_picture", text, single[:10])]

    @property
    def together(self) -> int:
        return self.pictures_per_person

    def unmeasurable(self, tables: Iterable[pa.Table], labels: list[str]) -> str | None:
        person_N = np.concatenate([np.zeros(0, np.int64), *(table[LABEL].to_numpy() for table in tables)])
        _, counts = np.unique(person_N[paired_pictures(person_N)], return_counts=True)
        if len(counts) < 2:
            return f"it has {len(counts) or 'no'} person, so there is no pair of two people"
        return None if counts.max() > 1 else "no person has two pictures, so there is no pair of one person"

    def adapted_to_data(
        self, rows: TrainingRows, backbone: Backbone, preprocess: Preprocess
    ) -> tuple[Task, str]:
        return self, ""

    def build(self, backbone: Backbone, labels: list[str], counts: Counts | None = None) -> nn.Module:
        """A linear embedding and batch norm of the backbone's pooled features; for training also the head."""
        head = None if counts is None else make_head(self, len(counts.by_class))
        return FaceEmbedder(backbone, self, head)

    def encode(self, row: Row, geometry: Geometry, labels: list[str]) -> Target:
        return {LABEL: np.int64(row[LABEL])}

    def decode(
        self, outputs: torch.Tensor, geometries: Sequence[Geometry], labels: list[str]
    ) -> list[Prediction]:
        """Unit vectors (B, D) -> ``{"embedding": D numbers}`` for each picture."""
        return [{"embedding": np.round(x_D, 6).tolist()} for x_D in outputs.double().cpu().numpy()]

    def metrics(self, labels: list[str]) -> Metrics:
        return Metrics(self.threshold)

    def with_thresholds(self, metrics: base.Metrics) -> Task:
        """A copy with the threshold of these metrics; the task itself where there are no pairs."""
        threshold = round(metrics.compute()["threshold"], 4)
        return self if math.isnan(threshold) else self.model_copy(update={"threshold": threshold})

    def record(self, row: Row | None, prediction: Prediction) -> dict[str, Any]:
        return {**({"truth": int(row[LABEL])} if row is not None else {}), **prediction}

    def draw(self, picture: Image.Image, record: dict[str, Any], labels: list[str]) -> Image.Image:
        return picture  # an embedding has no place in the picture

    def draw_truth(self, picture: Image.Image, row: Row, labels: list[str]) -> Image.Image:
        return picture  # a person's name has no place in the picture

    def served(self, prediction: Prediction, min_score: float | None = None) -> Prediction:
        return prediction

    def image_of(self, prediction: Prediction) -> bytes | None:
        return None

    def summary(self, prediction: Prediction, top: int) -> str:
        x_D = prediction["embedding"]
        first = " ".join(f"{value:+.3f}" for value in x_D[:top])
        return f"embedding of {len(x_D)} numbers: {first}{' ...' if len(x_D) > top else ''}"

    def figures(self, evaluation: dict[str, Any]) -> list[Section]:
        """Verification, similarities, worst pairs."""
        return sections(evaluation["rows"], evaluation["metrics"])
