"""COCO's mean average precision, the best threshold, and which finds are right.

Truth: [[class, x0, y0, x1, y1]], finds: [[class, score, x0, y0, x1, y1]], in source px. What need not be
found, but is no mistake either, is apart: [[class, crowd, x0, y0, x1, y1]], where ``crowd`` is 1 of a box
around many (COCO's iscrowd: a find lies in it by the share of its own area), 0 of an object that is difficult
(Pascal VOC's).
Letters in names: T IoU thresholds, R recalls, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tlray.data.schema import CROWD, DIFFICULT, OBJECTS, Row, flagged
from tlray.tasks.base import Prediction
from tlray.tasks.detection.boxes import areas, corners

COCO_OBJECTS = 100  # a picture, that COCO's metric counts


class Metrics:
    """Keeps truth and finds of each picture; COCO's mean average precision by its (faster) library.

    Picture: {"truth": ..., "objects": finds} and where there is any {"ignored": ...}; see above.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.pictures: list[dict[str, Any]] = []

    def update(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> None:
        for prediction, row in zip(predictions, rows, strict=True):
            found = [[o["index"], o["score"], *o["box"]] for o in prediction["objects"]]
            self.pictures.append({**truth_of(row), "objects": found})

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
            found = hits(picture["objects"], picture["truth"], picture.get("ignored", ()))
            judged = zip(picture["objects"], found.hit, found.aside, strict=True)
            scored += [(o[1], bool(hit)) for o, hit, aside in judged if not aside]
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

    class Judge(COCOeval_faster):  # type: ignore[misc]
        """Difficult objects are ignored as crowds are, at their plain IoU."""

        def computeIoU(self, image: int, category: int) -> Any:
            iou_DG = super().computeIoU(image, category)
            there, found = (
                data.get_instances([image], [category], True)[0][0]
                for data in (self.gt_dataset, self.dt_dataset)
            )
            plain_G = np.array([bool(t.get("difficult")) for t in there])
            if len(iou_DG) and plain_G.any():
                found = sorted(found, key=lambda f: -f["score"])[: len(iou_DG)]
                area_D1 = np.array([f["area"] for f in found])[:, None]
                area_G = np.array([t["area"] for t in there])
                shared_DG = iou_DG * area_D1  # told as a share of the find
                plain_DG = shared_DG / np.maximum(area_D1 + area_G - shared_DG, 1e-9)
                iou_DG = np.where(plain_G, plain_DG, iou_DG)
            return iou_DG

    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, picture in enumerate(pictures, 1):
        plain = [(label, {"iscrowd": 0}, box) for label, *box in picture["truth"]]
        apart = [
            (label, {"iscrowd": 1, "difficult": not crowd}, box)
            for label, crowd, *box in picture.get("ignored", ())
        ]
        for label, flags, (x0, y0, x1, y1) in [*plain, *apart]:
            w, h = x1 - x0, y1 - y0
            truth.append(
                {"image_id": number, "category_id": label, "bbox": [x0, y0, w, h], "area": w * h}
                | {"id": len(truth) + 1, **flags}
            )
        for label, score, x0, y0, x1, y1 in picture["objects"]:
            box = [x0, y0, x1 - x0, y1 - y0]
            found.append({"image_id": number, "category_id": label, "bbox": box, "score": score})
    there = np.isin(np.arange(num_classes), [t["category_id"] for t in truth if not t["iscrowd"]])
    shapes = ((10, num_classes), (10, num_classes), (101, num_classes))
    if not there.any() or not found:
        ap, recall, curve = (np.where(there, np.zeros(shape), np.nan) for shape in shapes)
        return ap, recall, curve
    reference = COCO(
        {
            "images": [{"id": n} for n in range(1, len(pictures) + 1)],
            "categories": [{"id": c, "name": str(c)} for c in range(num_classes)],
            "annotations": truth,
        }
    )
    judge = Judge(reference, reference.loadRes(found), "bbox", print_function=lambda *_: None)
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


def truth_of(row: Row) -> dict[str, list[list[float]]]:
    """``truth``, and where any object need not be found ``ignored``; see the module's docstring."""
    objects = row[OBJECTS]
    kinds, boxes = [int(c) for c in objects["category"]], corners(objects["bbox"]).tolist()
    crowds, aside = flagged(objects, CROWD), is_aside(objects)
    ignored = [
        [c, int(crowd), *box] for c, crowd, box, out in zip(kinds, crowds, boxes, aside, strict=True) if out
    ]
    truth = [[c, *box] for c, box, out in zip(kinds, boxes, aside, strict=True) if not out]
    return {"truth": truth} | ({"ignored": ignored} if ignored else {})


def is_aside(objects: Mapping[str, Any]) -> list[bool]:
    """Whether each object of a row need not be found: it is difficult, or a crowd."""
    return [a or b for a, b in zip(flagged(objects, DIFFICULT), flagged(objects, CROWD), strict=True)]


def _mean(values: np.ndarray) -> float:
    return math.nan if np.isnan(values).all() else float(np.nanmean(values))


class Hits(NamedTuple):
    """Which finds and which true objects have each other, and which finds are neither right nor wrong."""

    hit: np.ndarray  # (finds,) bool
    taken: np.ndarray  # (true objects,) bool
    aside: np.ndarray  # (finds,) bool


def hits(objects: Sequence[Any], truth: Sequence[Any], ignored: Sequence[Any] = (), iou: float = 0.5) -> Hits:
    """Match finds, best first, with true objects: greedy, as COCO matches."""
    overlap = _overlaps(objects, [[label, 0, *box] for label, *box in truth])
    apart = _overlaps(objects, ignored)
    hit, taken = np.zeros(len(objects), bool), np.zeros(len(truth), bool)
    for i in range(len(objects) if len(truth) else 0):
        free = np.where(taken, 0, overlap[i])
        if free.max() >= iou:
            hit[i] = taken[free.argmax()] = True
    return Hits(hit, taken, ~hit & (apart >= iou).any(axis=1))


def _overlaps(objects: Sequence[Any], there: Sequence[Any]) -> np.ndarray:
    """(finds, there): IoU, with crowds the share of the find; 0 where the classes differ."""
    found_N4 = np.asarray([o[2:] for o in objects], float).reshape(-1, 4)
    there_M4 = np.asarray([t[2:] for t in there], float).reshape(-1, 4)
    low = np.maximum(found_N4[:, None, :2], there_M4[None, :, :2])
    shared = (np.minimum(found_N4[:, None, 2:], there_M4[None, :, 2:]) - low).clip(0).prod(-1)
    whole = areas(found_N4)[:, None] + areas(there_M4) - shared
    crowd = np.array([t[1] for t in there], bool)
    overlap = shared / np.maximum(np.where(crowd, areas(found_N4)[:, None], whole), 1e-9)
    same = np.array([o[0] for o in objects])[:, None] == np.array([t[0] for t in there])[None]
    return np.asarray(np.where(same, overlap, 0.0))
