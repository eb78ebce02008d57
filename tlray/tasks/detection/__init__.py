"""Object detection: boxes of known classes, by one stage (RetinaNet) or two (Faster R-CNN).

Heads, anchors and losses are torchvision's. Pictures are rendered before and normalised by the backbone, so
nothing here resizes or normalises. Boxes are (x0, y0, x1, y1) in px, of the input or of the source.

Letters in names: B batch, A anchors (or proposals), C classes, N boxes, K 1 or C (boxes for each class).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from torch import nn

from tlray.config import Count, Positive, Share, Strict
from tlray.data.image import Geometry, Preprocess
from tlray.data.schema import (
    CROWD,
    DIFFICULT,
    HEIGHT,
    OBJECTS,
    WIDTH,
    Kind,
    Row,
    Target,
    flagged,
    flags_of,
    with_flags,
)
from tlray.figures import charts
from tlray.tasks import base
from tlray.tasks.base import Counts, Defaults, Goal, OneOf, Prediction, Remark, TrainingRows
from tlray.tasks.detection.anchors import ENOUGH, FITS, Anchors, Shape, shapes_of
from tlray.tasks.detection.boxes import Boxes, areas, clipped, corners
from tlray.tasks.detection.drawing import BOX_COLOURS, Pen, figures
from tlray.tasks.detection.metrics import COCO_OBJECTS, Metrics, is_ignored, match_objects, truth_of
from tlray.tasks.detection.model import OneStage, TwoStage, levels

if TYPE_CHECKING:  # importing it imports timm, which processes that only render do not need
    from tlray.models.backbone import Backbone

MIN_VISIBLE_SHARE = 0.2  # a crop that shows less of a box's area drops the box
CANDIDATES = 1000  # best scores of a picture that non-maximum suppression gets
MAX_SHAPES = 27  # anchor shapes at each position
SAMPLED_ROWS = 2000  # of the training split, whose boxes anchors are compared with


def _read_anchors(value: Any) -> Any:
    """Check the setting ``anchors``: ``auto``, ``standard``, or pairs of sides. Raises ValueError."""
    if value in ("auto", "standard"):
        return value
    pairs = list(value) if isinstance(value, list | tuple) else []
    are_sides = all(
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(isinstance(side, int | float) and 0 < side < math.inf for side in pair)
        for pair in pairs
    )
    if not are_sides or not 0 < len(pairs) <= MAX_SHAPES:
        raise ValueError(
            f"auto, standard, or 1 to {MAX_SHAPES} pairs of width and height in strides, as [[2, 4], [4, 2]]"
        )
    return tuple((float(w), float(h)) for w, h in pairs)


class Task(Strict):
    """Settings under ``task:``."""

    name: Literal["detection"] = "detection"
    goal: Annotated[Goal, OneOf(map="max", map_50="max", map_75="max", recall="max")] = Goal("map", "max")
    detector: Literal["retinanet", "faster_rcnn"] = "retinanet"
    min_stride: Count = 8  # px; stride of the finest map that detects objects
    anchor_scale: Positive = 2.0  # smallest anchor of a map, in strides; 4 in the paper, for larger inputs
    anchors: Annotated[Literal["auto", "standard"] | tuple[Shape, ...], BeforeValidator(_read_anchors)] = (
        "standard"  # or widths and heights in strides of the map; see `adapted_to_data`
    )
    anchor_recall: Share | None = None  # set by training: share of its boxes that an anchor fits
    box_loss: Literal["l1", "giou"] = "l1"  # of RetinaNet, see `OneStage`
    channels: int = Field(64, ge=32, multiple_of=32)  # of the pyramid and the heads; 256 in the papers
    freeze_norm: bool = True  # batch norm keeps its pretrained statistics, as batches are small
    min_score: Share = 0.001  # of the objects in a prediction; mAP needs weak ones, `served` drops them
    max_objects: Count = 100  # in a prediction
    nms_iou: Share = 0.5  # of boxes of a class that overlap more, the best one stays
    threshold: Share | None = None  # score from which objects are served; None: the best F1 on validation

    @field_validator("box_loss")
    @classmethod
    def of_one_stage(cls, value: str, info: ValidationInfo) -> str:
        if value != "l1" and info.data.get("detector") == "faster_rcnn":
            raise ValueError("l1 with detector faster_rcnn")
        return value

    columns: ClassVar[dict[str, Kind]] = {OBJECTS: "objects"}
    defaults: ClassVar[Defaults] = Defaults(
        "colour", batch_size=8, rate_factor=0.6, backbone_lr_ratio=0.3, task={"anchors": "auto"}
    )
    together: ClassVar[int] = 1
    gallery: ClassVar[bool] = False
    detects: ClassVar[bool] = True
    supported_augmentations: ClassVar[tuple[str, ...]] = ("mosaic",)

    def preflight(self, rows: pa.Table, names: Mapping[str, list[str]]) -> tuple[pa.Table, list[Remark]]:
        """Clip boxes to their picture and drop those of which nothing is left; rows stay."""
        corrected, notes = [], Counter[str]()
        examples: dict[str, list[str]] = {
            "box_outside": [], "box_dropped": [], "no_objects": [], DIFFICULT: [], CROWD: [],
        }  # fmt: skip
        flags = flags_of(rows.schema.field(OBJECTS).type)
        for row in rows.select(["path", "width", "height", OBJECTS]).to_pylist():
            kept: dict[str, list[Any]] = {"bbox": [], "category": [], **{flag: [] for flag in flags}}
            size = (row["width"] or math.inf, row["height"] or math.inf)  # unknown of an unusable picture
            objects = row[OBJECTS]
            flag_values = [flagged(objects, flag) for flag in flags]
            for (x, y, w, h), name, *values in zip(
                objects["bbox"], objects["category"], *flag_values, strict=True
            ):
                stated = np.array([x, y, x + w, y + h], float)
                inside = np.clip(stated, 0, [*size, *size])
                if not np.isfinite(stated).all() or (inside[2:] - inside[:2]).min() <= 1:
                    kind = "box_dropped"
                else:
                    kind = "box_outside" if np.abs(inside - stated).max() > 1 else ""
                    kept["bbox"].append([*inside[:2].tolist(), *(inside[2:] - inside[:2]).tolist()])
                    kept["category"].append(name)
                    for flag, value in zip(flags, values, strict=True):
                        kept[flag].append(value)
                true = [flag for flag, value in zip(flags, values, strict=True) if value]
                for note in (kind, *true) if kind else true:
                    notes[note] += 1
                    examples[note].append(f"{row['path']}: {name} {x:g}, {y:g}, {w:g} x {h:g}")
            if not kept["bbox"]:
                notes["no_objects"] += 1
                examples["no_objects"].append(row["path"])
            corrected.append(kept)
        at = rows.column_names.index(OBJECTS)
        plain = pa.struct([("bbox", pa.list_(pa.list_(pa.float64()))), ("category", pa.list_(pa.string()))])
        rows = rows.set_column(at, OBJECTS, pa.array(corrected, with_flags(plain, flags)))
        texts: list[tuple[Literal["warning", "info"], str, str]] = [
            ("warning", "box_outside", "boxes reach out of their picture (clipped)"),
            ("warning", "box_dropped", "boxes are empty, inverted or no numbers, or lie outside (dropped)"),
            ("info", "no_objects", "pictures show no object"),
            ("info", DIFFICULT, "objects are difficult (learnt, but ignored by metrics)"),
            ("info", CROWD, "boxes are of crowds (not learnt, and ignored by metrics)"),
        ]
        return rows, [Remark(s, k, f"{notes[k]} {text}", examples[k]) for s, k, text in texts if notes[k]]

    def unmeasurable(self, tables: Iterable[pa.Table], labels: list[str]) -> str | None:
        for column in (table[OBJECTS].combine_chunks() for table in tables):
            counted = np.ones(len(pc.list_flatten(pc.struct_field(column, "category"))), bool)
            if flags_of(column.type):
                counted = np.array([not out for row in column.to_pylist() for out in is_ignored(row)], bool)
            if counted.any():
                return None
        return "none of its pictures shows an object"

    def adapted_to_data(
        self, rows: TrainingRows, backbone: Backbone, preprocess: Preprocess
    ) -> tuple[Task, str]:
        """Replace ``anchors: auto`` by ``standard``, or by shapes made of the training boxes.

        The latter where fewer than 90 % of the boxes have a standard anchor of IoU 0.5. Data of other tools,
        which lack the columns width and height, get standard anchors.
        """
        table = rows([OBJECTS, WIDTH, HEIGHT])
        standard = self.model_copy(update={"anchors": "standard" if self.anchors == "auto" else self.anchors})
        boxes_N4 = self._training_boxes(table, preprocess)
        if not len(boxes_N4):
            return standard, ""
        strides = levels(backbone, self)[1]

        def recall(shapes: Sequence[Shape] | None) -> float:
            fit_N = Anchors(strides, self.anchor_scale, shapes).fit(boxes_N4, preprocess.size)
            return round(float((fit_N >= FITS).mean()), 4)

        shapes, reached, note = standard.shapes, recall(standard.shapes), ""
        if self.anchors == "auto" and reached < ENOUGH:
            fitted = shapes_of(boxes_N4, strides, self.anchor_scale)
            fitted_recall = recall(fitted)
            if fitted_recall > reached:
                note = f"; their shapes are made of the boxes (standard ones: {reached:.1%})"
                shapes, reached = fitted, fitted_recall
        if reached < ENOUGH:
            note += "; a smaller task.min_stride or a larger input.size gives more"
        chosen = standard.model_copy(update={"anchors": shapes or "standard", "anchor_recall": reached})
        of_all = f"{reached:.1%} of {len(boxes_N4)} training boxes"
        return chosen, f"anchors: {of_all} have one of IoU {FITS} or more{note}"

    def _training_boxes(self, table: pa.Table, preprocess: Preprocess) -> Boxes:
        """Boxes (N, 4), in input px, of an even sample of the rows."""
        if not {WIDTH, HEIGHT} <= set(table.column_names):
            return np.zeros((0, 4))
        sample = table.take(pa.array(range(0, table.num_rows, max(1, table.num_rows // SAMPLED_ROWS))))
        boxes = []
        for row in sample.to_pylist():
            if not row[WIDTH] or not row[HEIGHT]:
                continue
            geometry = preprocess.geometry((row[WIDTH], row[HEIGHT]))
            boxes.append(np.asarray(self.encode(row, geometry, [])["boxes"], float))
        return np.concatenate([np.zeros((0, 4)), *boxes])

    def build(self, backbone: Backbone, labels: list[str], counts: Counts | None = None) -> nn.Module:
        """The chosen detector, with a feature pyramid of the backbone."""
        return (OneStage if self.detector == "retinanet" else TwoStage)(backbone, len(labels), self)

    def encode(self, row: Row, geometry: Geometry, labels: list[str]) -> Target:
        """boxes (N, 4) float32 in input px and labels (N,) int64, without boxes that a crop cuts off.

        Crowds are left out, so their pixels are learnt as background. Difficult objects are learnt as others.
        """
        whole = corners(row[OBJECTS]["bbox"])
        visible = clipped(whole, geometry.crop)
        boxes = geometry.boxes_to_model(visible)
        kept = areas(visible) >= MIN_VISIBLE_SHARE * areas(whole)
        kept &= (boxes[:, 2:] - boxes[:, :2]).min(1) >= 1
        kept &= ~np.array(flagged(row[OBJECTS], CROWD), bool)
        category = np.asarray(row[OBJECTS]["category"], np.int64)
        return {"boxes": boxes[kept].astype(np.float32), "labels": category[kept]}

    def decode(
        self, outputs: dict[str, torch.Tensor], geometries: Sequence[Geometry], labels: list[str]
    ) -> list[Prediction]:
        """scores (B, A, C) and boxes (B, A, K, 4) -> the objects of each picture, best first."""
        from torchvision.ops import batched_nms

        predictions = []
        for scores_AC, boxes_AK4, geometry in zip(
            outputs["scores"].float(), outputs["boxes"].float(), geometries, strict=True
        ):
            at = (scores_AC >= self.min_score).nonzero()
            score, order = scores_AC[at[:, 0], at[:, 1]].sort(descending=True, stable=True)
            score, (anchor, label) = score[:CANDIDATES], at[order[:CANDIDATES]].unbind(1)
            boxes = boxes_AK4[anchor, label if boxes_AK4.shape[1] > 1 else torch.zeros_like(label)]
            # Proposals of equal score come in any order; ordered by their boxes, too, the same ones stay.
            score, label, boxes = _ranked(score, label, boxes)
            kept = batched_nms(boxes, score, label, self.nms_iou)[: self.max_objects]
            source_boxes = geometry.boxes_to_source(boxes[kept].cpu().double().numpy())
            source_boxes = clipped(source_boxes, (0, 0, *geometry.source)).round(2)
            objects = [
                {"label": labels[i], "index": i, "score": round(s, 6), "box": box.tolist()}
                for i, s, box in zip(label[kept].tolist(), score[kept].tolist(), source_boxes, strict=True)
                if (box[2:] > box[:2]).all()  # one in the padding has no area in the source
            ]
            predictions.append({"objects": objects})
        return predictions

    def metrics(self, labels: list[str]) -> Metrics:
        return Metrics(len(labels))

    def with_thresholds(self, metrics: base.Metrics) -> Task:
        if self.threshold is not None or not isinstance(metrics, Metrics):
            return self
        return self.model_copy(update={"threshold": metrics.best_threshold()})

    def record(self, row: Row | None, prediction: Prediction) -> dict[str, Any]:
        truth = {} if row is None else truth_of(row)
        threshold = 0.0 if row is None else self._threshold
        # No more than the metric counts, to keep evaluation.json small.
        objects = [[o["index"], o["score"], *o["box"]] for o in prediction["objects"][:COCO_OBJECTS]]
        return {**truth, "objects": objects, "threshold": threshold}

    def draw(self, picture: Image.Image, record: dict[str, Any], labels: list[str]) -> Image.Image:
        """Detections in full lines with class and score; truth dashed, with its class where it was missed."""
        picture = picture.copy()
        detections = [o for o in record["objects"] if o[1] >= record["threshold"]]
        truth, ignored = record.get("truth", []), record.get("ignored", [])
        found = match_objects(detections, truth).found
        pen = Pen(picture)
        for _, crowd, *box in ignored:
            pen.box(box, "#cccccc", dashed=True, below="crowd" if crowd else "difficult")
        for i, (label, *box) in enumerate(truth):
            pen.box(box, "#ffd400", dashed=True, below="" if found[i] else f"missed {labels[label]}")
        for label, score, *box in detections[::-1]:
            pen.box(box, "#0072b2", above=f"{labels[label]} {score:.2f}")
        return picture

    def draw_truth(self, picture: Image.Image, row: Row, labels: list[str]) -> Image.Image:
        """Boxes with the names of their classes."""
        picture = picture.copy()
        pen = Pen(picture)
        objects = row[OBJECTS]
        notes = [
            " (crowd)" if crowd else " (difficult)" if difficult else ""
            for crowd, difficult in zip(flagged(objects, CROWD), flagged(objects, DIFFICULT), strict=True)
        ]
        boxes = corners(objects["bbox"]).tolist()
        for box, label, note in zip(boxes, objects["category"], notes, strict=True):
            pen.box(box, BOX_COLOURS[label % len(BOX_COLOURS)], above=labels[label] + note)
        return picture

    def served(self, prediction: Prediction, min_score: float | None = None) -> Prediction:
        least = self._threshold if min_score is None else min_score
        return {**prediction, "objects": [o for o in prediction["objects"] if o["score"] >= least]}

    def image_of(self, prediction: Prediction) -> bytes | None:
        return None

    def summary(self, prediction: Prediction, top: int) -> str:
        objects = prediction["objects"]
        places = (
            f"{o['label']} {o['score']:.4f} at {','.join(f'{v:.0f}' for v in o['box'])}"
            for o in objects[:top]
        )
        return "  ".join([f"{len(objects)} objects", *places])

    def figures(self, evaluation: dict[str, Any]) -> list[charts.Section]:
        """Average precision and curves by class; the pictures with most mistakes; how anchors fit."""
        sections = figures(evaluation["rows"], evaluation["labels"])
        if self.anchor_recall is None:
            return sections
        kind = "standard ones" if self.shapes is None else "their shapes are made of the boxes"
        fit = f"{self.anchor_recall:.1%} of the training boxes have an anchor of IoU {FITS} or more"
        return [*sections, charts.Section("Anchors", f"{fit} ({kind}).")]

    @property
    def shapes(self) -> Sequence[Shape] | None:
        """Shapes of the anchors; None: the standard ones."""
        return None if isinstance(self.anchors, str) else self.anchors

    @property
    def _threshold(self) -> float:
        return 0.5 if self.threshold is None else self.threshold


def _ranked(
    score: torch.Tensor, label: torch.Tensor, boxes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sort by falling score; equal scores by class, then box."""
    order = torch.arange(len(score), device=score.device)
    for key in (*boxes.unbind(1)[::-1], label, -score):
        order = order[key[order].sort(stable=True).indices]
    return score[order], label[order], boxes[order]
