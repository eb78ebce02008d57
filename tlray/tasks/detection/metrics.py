"""COCO's mean average precision, the best threshold, and which finds are right.

Truth: [[class, x0, y0, x1, y1]], finds: [[class, score, x0, y0, x1, y1]], in source px.
Letters in names: T IoU thresholds, R recalls, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tlray.schema import OBJECTS
from tlray.tasks.base import Prediction, Row
from tlray.tasks.detection.boxes import areas, corners

COCO_OBJECTS = 100  # a picture, that COCO's metric counts


class Metrics:
    """Keeps truth and finds of each picture; COCO's mean average precision by its (faster) library.

    Picture: {"truth": [[class, x0, y0, x1, y1]], "objects": [[class, score, x0, y0, x1, y1]]}, source px.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.pictures: list[dict[str, Any]] = []

    def update(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> None:
        for prediction, row in zip(predictions, rows, strict=True):
            found = [[o["index"], o["score"], *o["box"]] for o in prediction["objects"]]
            self.pictures.append({"truth": truth_of(row), "objects": found})

    def state(self) -> Any:
        return self.pictures

    def merge(self, state: Any) -> None:
        self.pictures = [*self.pictures, *state]

    def compute(self) -> dict[str, float]:
        """map over IoU 0.5 to 0.95, map_50, map_75, recall (of 100 finds a picture); NaN without objects."""
        ap_TC, recall_TC, _ = coco(self.pictures, self.num_classes)
        return {
            "map": _mean(ap_TC), "map_50": _mean(ap_TC[:1]), "map_75": _mean(ap_TC[5:6]),
            "recall": _mean(recall_TC),
        }  # fmt: skip

    def best_threshold(self) -> float:
        """The score from which finds give the best F1 at IoU 0.5; 0.5 where nothing is found."""
        scored = []
        for picture in self.pictures:
            hit = hits(picture["objects"], picture["truth"])[0]
            scored += [(o[1], bool(h)) for o, h in zip(picture["objects"], hit, strict=True)]
        scored.sort(reverse=True)
        right = np.cumsum([hit for _, hit in scored])
        if len(right) == 0 or right[-1] == 0:
            return 0.5
        f1 = 2 * right / (np.arange(1, len(right) + 1) + sum(len(p["truth"]) for p in self.pictures))
        return float(scored[int(f1.argmax())][0])


def coco(
    pictures: Sequence[Mapping[str, Any]], num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """COCO's average precision (10, C) and recall (10, C) at IoU 0.5, 0.55, ..., and precision (101, C) by
    recall at IoU 0.5; NaN for classes of which no object is there."""
    from faster_coco_eval import COCO, COCOeval_faster

    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, picture in enumerate(pictures, 1):
        for label, x0, y0, x1, y1 in picture["truth"]:
            w, h = x1 - x0, y1 - y0
            truth.append(
                {"image_id": number, "category_id": label, "bbox": [x0, y0, w, h], "area": w * h}
                | {"id": len(truth) + 1, "iscrowd": 0}
            )
        for label, score, x0, y0, x1, y1 in picture["objects"]:
            box = [x0, y0, x1 - x0, y1 - y0]
            found.append({"image_id": number, "category_id": label, "bbox": box, "score": score})
    there = np.isin(np.arange(num_classes), [t["category_id"] for t in truth])
    shapes = ((10, num_classes), (10, num_classes), (101, num_classes))
    if not truth or not found:
        ap, recall, curve = (np.where(there, np.zeros(shape), np.nan) for shape in shapes)
        return ap, recall, curve
    reference = COCO(
        {
            "images": [{"id": n} for n in range(1, len(pictures) + 1)],
            "categories": [{"id": c, "name": str(c)} for c in range(num_classes)],
            "annotations": truth,
        }
    )
    judge = COCOeval_faster(reference, reference.loadRes(found), "bbox", print_function=lambda *_: None)
    judge.params.maxDets = [COCO_OBJECTS]
    judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
    judge.evaluate()
    judge.accumulate()
    precision_TRC = np.asarray(judge.eval["precision"])[..., 0, 0]
    recall_TC = np.asarray(judge.eval["recall"])[..., 0, 0]
    return (
        np.where(there, precision_TRC.mean(1), np.nan),
        np.where(there, recall_TC, np.nan),
        np.where(there, precision_TRC[0], np.nan),
    )


def truth_of(row: Row) -> list[list[float]]:
    """[[class, x0, y0, x1, y1]], source px."""
    boxes = corners(row[OBJECTS]["bbox"]).tolist()
    return [[int(c), *box] for c, box in zip(row[OBJECTS]["category"], boxes, strict=True)]


def _mean(values: np.ndarray) -> float:
    return math.nan if np.isnan(values).all() else float(np.nanmean(values))


def hits(objects: Sequence[Any], truth: Sequence[Any], iou: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Which finds (best first) and which true objects have each other: greedy, as COCO matches."""
    found = np.asarray([o[2:] for o in objects], float).reshape(-1, 1, 4)
    there = np.asarray([t[1:] for t in truth], float).reshape(1, -1, 4)
    sides = np.minimum(found[..., 2:], there[..., 2:]) - np.maximum(found[..., :2], there[..., :2])
    shared = sides.clip(0).prod(-1)
    overlap = shared / np.maximum(areas(found[:, 0])[:, None] + areas(there[0])[None] - shared, 1e-9)
    overlap[np.array([o[0] for o in objects])[:, None] != np.array([t[0] for t in truth])[None]] = 0
    hit, taken = np.zeros(len(objects), bool), np.zeros(len(truth), bool)
    for i in range(len(objects) if len(truth) else 0):
        free = np.where(taken, 0, overlap[i])
        if free.max() >= iou:
            hit[i] = taken[free.argmax()] = True
    return hit, taken
