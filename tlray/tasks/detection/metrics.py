"""COCO's mean average precision, the best threshold, and which detections are correct.

All boxes are in source px. Truth: [[class, x0, y0, x1, y1]]. Detections: [[class, score, x0, y0, x1, y1]].
Ignored objects: [[class, crowd, x0, y0, x1, y1]]; a detection of one is neither right nor wrong. ``crowd`` is
1 for a box around many objects (COCO's iscrowd: the overlap is the share of the detection that lies inside)
and 0 for a difficult object (Pascal VOC's).
Letters in names: T IoU thresholds, R recalls, C classes, D detections, G true objects (COCO's ground truth).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tlray.data.schema import CROWD, DIFFICULT, OBJECTS, Row, flagged
from tlray.tasks.base import Prediction
from tlray.tasks.detection.boxes import areas, corners, intersections, iou

COCO_OBJECTS = 100  # detections of a picture that COCO's metric counts


class Metrics:
    """Keeps truth and detections of each picture; COCO's mean average precision comes from faster_coco_eval.

    A picture is {"truth": ..., "objects": detections}, and where there are any, {"ignored": ...}; see above.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.pictures: list[dict[str, Any]] = []

    def update(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> None:
        for prediction, row in zip(predictions, rows, strict=True):
            detections = [[o["index"], o["score"], *o["box"]] for o in prediction["objects"]]
            self.pictures.append({**truth_of(row), "objects": detections})

    def state(self) -> Any:
        return self.pictures

    def merge(self, state: Any) -> None:
        self.pictures = [*self.pictures, *state]

    def compute(self) -> dict[str, float]:
        """map over IoU 0.5 to 0.95, map_50, map_75, recall (100 objects a picture); NaN without truth."""
        ap_TC, recall_TC, _ = coco(self.pictures, self.num_classes)
        return {
            "map": _mean(ap_TC), "map_50": _mean(ap_TC[:1]), "map_75": _mean(ap_TC[5:6]),
            "recall": _mean(recall_TC),
        }  # fmt: skip

    def best_threshold(self) -> float:
        """The score from which detections have the best F1 at IoU 0.5; 0.5 where none is correct."""
        # Not by scikit-learn's precision_recall_curve: it knows nothing of objects that no detection met.
        scored = []
        for picture in self.pictures:
            match = match_objects(picture["objects"], picture["truth"], picture.get("ignored", ()))
            judged = zip(picture["objects"], match.correct, match.ignored, strict=True)
            scored += [(o[1], bool(correct)) for o, correct, ignored in judged if not ignored]
        scored.sort(reverse=True)
        num_correct = np.cumsum([correct for _, correct in scored])
        if len(num_correct) == 0 or num_correct[-1] == 0:
            return 0.5
        num_true = sum(len(picture["truth"]) for picture in self.pictures)
        f1 = 2 * num_correct / (np.arange(1, len(num_correct) + 1) + num_true)
        return float(scored[int(f1.argmax())][0])


def coco(
    pictures: Sequence[Mapping[str, Any]], num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """COCO's average precision (10, C) and recall (10, C) at IoU 0.5, 0.55, ..., 0.95, and precision (101, C)
    by recall at IoU 0.5; NaN for classes without a true object."""
    from faster_coco_eval import COCO, COCOeval_faster

    class Judge(COCOeval_faster):  # type: ignore[misc]
        """Ignores difficult objects as it does crowds, but by their IoU."""

        def computeIoU(self, image: int, category: int) -> Any:
            iou_DG = super().computeIoU(image, category)
            true_objects, detections = (
                data.get_instances([image], [category], True)[0][0]
                for data in (self.gt_dataset, self.dt_dataset)
            )
            difficult_G = np.array([bool(t.get("difficult")) for t in true_objects])
            if len(iou_DG) and difficult_G.any():
                detections = sorted(detections, key=lambda d: -d["score"])[: len(iou_DG)]
                area_D1 = np.array([d["area"] for d in detections])[:, None]
                area_G = np.array([t["area"] for t in true_objects])
                # For a crowd the library gives intersection / area of the detection, not the IoU.
                shared_DG = iou_DG * area_D1
                plain_iou_DG = shared_DG / np.maximum(area_D1 + area_G - shared_DG, 1e-9)
                iou_DG = np.where(difficult_G, plain_iou_DG, iou_DG)
            return iou_DG

    truth: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for number, picture in enumerate(pictures, 1):
        counted = [(label, {"iscrowd": 0}, box) for label, *box in picture["truth"]]
        ignored = [
            (label, {"iscrowd": 1, "difficult": not crowd}, box)
            for label, crowd, *box in picture.get("ignored", ())
        ]
        for label, flags, (x0, y0, x1, y1) in [*counted, *ignored]:
            w, h = x1 - x0, y1 - y0
            truth.append(
                {"image_id": number, "category_id": label, "bbox": [x0, y0, w, h], "area": w * h}
                | {"id": len(truth) + 1, **flags}
            )
        for label, score, x0, y0, x1, y1 in picture["objects"]:
            box = [x0, y0, x1 - x0, y1 - y0]
            detections.append({"image_id": number, "category_id": label, "bbox": box, "score": score})
    has_truth_C = np.isin(np.arange(num_classes), [t["category_id"] for t in truth if not t["iscrowd"]])
    shapes = ((10, num_classes), (10, num_classes), (101, num_classes))
    if not has_truth_C.any() or not detections:
        ap, recall, curve = (np.where(has_truth_C, np.zeros(shape), np.nan) for shape in shapes)
        return ap, recall, curve
    reference = COCO(
        {
            "images": [{"id": n} for n in range(1, len(pictures) + 1)],
            "categories": [{"id": c, "name": str(c)} for c in range(num_classes)],
            "annotations": truth,
        }
    )
    judge = Judge(reference, reference.loadRes(detections), "bbox", print_function=lambda *_: None)
    judge.params.maxDets = [COCO_OBJECTS]
    judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
    judge.evaluate()
    judge.accumulate()
    precision_TRC = np.asarray(judge.eval["precision"])[..., 0, 0]
    recall_TC = np.asarray(judge.eval["recall"])[..., 0, 0]
    return (
        np.where(has_truth_C, precision_TRC.mean(1), np.nan),
        np.where(has_truth_C, recall_TC, np.nan),
        np.where(has_truth_C, precision_TRC[0], np.nan),
    )


def truth_of(row: Row) -> dict[str, list[list[float]]]:
    """``truth``, and where there are any, ``ignored`` objects; see the module's docstring."""
    objects = row[OBJECTS]
    classes, boxes = [int(c) for c in objects["category"]], corners(objects["bbox"]).tolist()
    crowds, is_out = flagged(objects, CROWD), is_ignored(objects)
    ignored = [
        [c, int(crowd), *box]
        for c, crowd, box, out in zip(classes, crowds, boxes, is_out, strict=True)
        if out
    ]
    truth = [[c, *box] for c, box, out in zip(classes, boxes, is_out, strict=True) if not out]
    return {"truth": truth} | ({"ignored": ignored} if ignored else {})


def is_ignored(objects: Mapping[str, Any]) -> list[bool]:
    """Whether metrics ignore each object of a row: it is difficult, or a crowd."""
    return [a or b for a, b in zip(flagged(objects, DIFFICULT), flagged(objects, CROWD), strict=True)]


def _mean(values: np.ndarray) -> float:
    return math.nan if np.isnan(values).all() else float(np.nanmean(values))


class Match(NamedTuple):
    """Which detections are correct, which true objects were found, and which detections are ignored."""

    correct: np.ndarray  # (D,) bool
    found: np.ndarray  # (G,) bool
    ignored: np.ndarray  # (D,) bool: neither right nor wrong


def match_objects(
    detections: Sequence[Any], truth: Sequence[Any], ignored: Sequence[Any] = (), min_iou: float = 0.5
) -> Match:
    """Match detections, best first, with true objects of their class: greedily, as COCO does."""
    iou_DG = _overlaps(detections, [[label, 0, *box] for label, *box in truth])
    correct_D, found_G = np.zeros(len(detections), bool), np.zeros(len(truth), bool)
    for i in range(len(detections) if len(truth) else 0):
        free_G = np.where(found_G, 0, iou_DG[i])
        if free_G.max() >= min_iou:
            correct_D[i] = found_G[free_G.argmax()] = True
    on_ignored_D = (_overlaps(detections, ignored) >= min_iou).any(axis=1)
    return Match(correct_D, found_G, ~correct_D & on_ignored_D)


def _overlaps(detections: Sequence[Any], objects: Sequence[Any]) -> np.ndarray:
    """(D, objects): IoU, or with a crowd the share of the detection inside it; 0 where classes differ."""
    boxes_D14 = np.asarray([d[2:] for d in detections], float).reshape(-1, 1, 4)
    boxes_G4 = np.asarray([o[2:] for o in objects], float).reshape(-1, 4)
    inside_DG = intersections(boxes_D14, boxes_G4) / np.maximum(areas(boxes_D14), 1e-9)
    is_crowd_G = np.array([o[1] for o in objects], bool)
    overlap_DG = np.where(is_crowd_G, inside_DG, iou(boxes_D14, boxes_G4))
    same_DG = np.array([d[0] for d in detections])[:, None] == np.array([o[0] for o in objects])[None]
    return np.asarray(np.where(same_DG, overlap_DG, 0.0))
