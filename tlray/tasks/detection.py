"""Object detection: boxes of known classes, by one stage (RetinaNet) or two (Faster R-CNN).

Heads, anchors and losses are torchvision's; the backbone is ours and the input is rendered already, so
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
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from tlray import plots
from tlray.config import Count, Positive, Share, Strict
from tlray.errors import ConfigError
from tlray.image import Geometry
from tlray.schema import OBJECTS, Kind
from tlray.tasks import base
from tlray.tasks.base import Defaults, Goal, OneOf, Prediction, Remark, Row, Target

if TYPE_CHECKING:  # it brings timm, which processes that only render need not load
    from tlray.backbone import Backbone

Boxes = np.ndarray  # (N, 4) float64
LEAST_SHARE = 0.2  # of a box that a crop must keep, else it is no object of that crop
CANDIDATES = 1000  # scores a picture that suppression looks at
COCO_OBJECTS = 100  # a picture, that COCO's metric counts


_BOX_COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#a0488b", "#806b00", "#444444", "#5b2a91", "#b3261e")


class Task(Strict):
    """Settings under ``task:``."""

    name: Literal["detection"] = "detection"
    goal: Annotated[Goal, OneOf(map="max", map_50="max", map_75="max", recall="max")] = Goal("map", "max")
    detector: Literal["retinanet", "faster_rcnn"] = "retinanet"
    min_stride: Count = 8  # px of the finest map that objects are looked for on
    anchor_scale: Positive = 2.0  # smallest anchor of a map, in strides; 4 in the paper, for larger inputs
    channels: int = Field(64, ge=32, multiple_of=32)  # of the pyramid and the heads; 256 in the papers
    freeze_norm: bool = True  # batch norm keeps the pretrained statistics (batches of a few pictures)
    min_score: Share = 0.05  # of the objects in a prediction
    max_objects: Count = 100  # in a prediction
    nms_iou: Share = 0.5  # of two boxes of a class, the better one stays
    threshold: Share | None = None  # score that makes a find; None: the best F1 on validation

    columns: ClassVar[dict[str, Kind]] = {OBJECTS: "objects"}
    defaults: ClassVar[Defaults] = Defaults("colour", batch_size=8, rate_factor=0.6, backbone_lr_ratio=0.3)
    gallery: ClassVar[bool] = False

    def preflight(self, rows: pa.Table, names: Mapping[str, list[str]]) -> tuple[pa.Table, list[Remark]]:
        """Boxes are clipped to the picture; what is then no box any more is dropped, its row stays."""
        mended, notes = [], Counter[str]()
        examples: dict[str, list[str]] = {"box_outside": [], "box_dropped": [], "no_objects": []}
        for row in rows.select(["path", "width", "height", OBJECTS]).to_pylist():
            kept: dict[str, list[Any]] = {"bbox": [], "category": []}
            size = (row["width"] or math.inf, row["height"] or math.inf)  # unknown of an unusable picture
            for (x, y, w, h), name in zip(row[OBJECTS]["bbox"], row[OBJECTS]["category"], strict=True):
                corners = np.array([x, y, x + w, y + h], float)
                clipped = np.clip(corners, 0, [*size, *size])
                if not np.isfinite(corners).all() or (clipped[2:] - clipped[:2]).min() <= 1:
                    kind = "box_dropped"
                else:
                    kind = "box_outside" if np.abs(clipped - corners).max() > 1 else ""
                    kept["bbox"].append([*clipped[:2].tolist(), *(clipped[2:] - clipped[:2]).tolist()])
                    kept["category"].append(name)
                if kind:
                    notes[kind] += 1
                    examples[kind].append(f"{row['path']}: {name} {x:g}, {y:g}, {w:g} x {h:g}")
            if not kept["bbox"]:
                notes["no_objects"] += 1
                examples["no_objects"].append(row["path"])
            mended.append(kept)
        at = rows.column_names.index(OBJECTS)
        kind_of = pa.struct([("bbox", pa.list_(pa.list_(pa.float64()))), ("category", pa.list_(pa.string()))])
        rows = rows.set_column(at, OBJECTS, pa.array(mended, kind_of))
        texts: list[tuple[Literal["warning", "info"], str, str]] = [
            ("warning", "box_outside", "boxes reach out of their picture (clipped)"),
            ("warning", "box_dropped", "boxes are empty, inverted or no numbers, or lie outside (dropped)"),
            ("info", "no_objects", "pictures show no object"),
        ]
        return rows, [Remark(s, k, f"{notes[k]} {text}", examples[k]) for s, k, text in texts if notes[k]]

    def unmeasurable(self, tables: Iterable[pa.Table], labels: list[str]) -> str | None:
        columns = (table[OBJECTS].combine_chunks() for table in tables)
        if any(len(pc.list_flatten(pc.struct_field(column, "category"))) for column in columns):
            return None
        return "none of its pictures shows an object"

    def build(self, backbone: Backbone, labels: list[str], counts: Sequence[int] | None = None) -> nn.Module:
        """The chosen detector over a feature pyramid of the backbone."""
        return (OneStage if self.detector == "retinanet" else TwoStage)(backbone, len(labels), self)

    def encode(self, row: Row, geometry: Geometry, labels: list[str]) -> Target:
        """boxes (N, 4) float32 in input px and labels (N,) int64; what a crop cuts off is not there."""
        whole = corners(row[OBJECTS]["bbox"])
        seen = _clipped(whole, geometry.crop)
        boxes = geometry.boxes_to_model(seen)
        kept = (_areas(seen) >= LEAST_SHARE * _areas(whole)) & ((boxes[:, 2:] - boxes[:, :2]).min(1) >= 1)
        category = np.asarray(row[OBJECTS]["category"], np.int64)
        return {"boxes": boxes[kept].astype(np.float32), "labels": category[kept]}

    def decode(
        self, outputs: dict[str, torch.Tensor], geometries: Sequence[Geometry], labels: list[str]
    ) -> list[Prediction]:
        """scores (B, A, C) and boxes (B, A, K, 4) -> per picture its objects, best first."""
        from torchvision.ops import batched_nms

        predictions = []
        for scores_AC, boxes_AK4, geometry in zip(
            outputs["scores"].float(), outputs["boxes"].float(), geometries, strict=True
        ):
            at = (scores_AC >= self.min_score).nonzero()
            score, order = scores_AC[at[:, 0], at[:, 1]].sort(descending=True, stable=True)
            score, (anchor, label) = score[:CANDIDATES], at[order[:CANDIDATES]].unbind(1)
            boxes = boxes_AK4[anchor, label if boxes_AK4.shape[1] > 1 else torch.zeros_like(label)]
            # Proposals of equal score come in any order: the box decides, so that the same one stays.
            score, label, boxes = _ranked(score, label, boxes)
            kept = batched_nms(boxes, score, label, self.nms_iou)[: self.max_objects]
            found = geometry.boxes_to_source(boxes[kept].cpu().double().numpy())
            found = _clipped(found, (0, 0, *geometry.source)).round(2)
            told = zip(label[kept].tolist(), score[kept].tolist(), found, strict=True)
            objects = [
                {"label": labels[i], "index": i, "score": round(s, 6), "box": box.tolist()}
                for i, s, box in told
                if (box[2:] > box[:2]).all()  # not in the padding
            ]
            predictions.append({"objects": objects})
        return predictions

    def metrics(self, labels: list[str]) -> Metrics:
        return Metrics(len(labels))

    def decided(self, metrics: base.Metrics) -> Task:
        if self.threshold is not None or not isinstance(metrics, Metrics):
            return self
        return self.model_copy(update={"threshold": metrics.best_threshold()})

    def record(self, row: Row | None, prediction: Prediction) -> dict[str, Any]:
        truth = {} if row is None else {"truth": _truth(row)}
        found = [[o["index"], o["score"], *o["box"]] for o in prediction["objects"]]
        return {**truth, "objects": found, "threshold": self._sure}

    def draw(self, picture: Image.Image, record: dict[str, Any], labels: list[str]) -> Image.Image:
        """Finds with full lines, class and score above; truth dashed, its class below where it was missed."""
        picture = picture.copy()
        sure = [o for o in record["objects"] if o[1] >= record["threshold"]]
        truth = record.get("truth", [])
        hit = _hits(sure, truth)[1]
        pen = _Pen(picture)
        for i, (label, *box) in enumerate(truth):
            pen.box(box, "#ffd400", dashed=True, below="" if hit[i] else f"missed {labels[label]}")
        for label, score, *box in sure[::-1]:
            pen.box(box, "#0072b2", above=f"{labels[label]} {score:.2f}")
        return picture

    def draw_truth(self, picture: Image.Image, row: Row, labels: list[str]) -> Image.Image:
        """Boxes with the names of their classes."""
        picture = picture.copy()
        pen = _Pen(picture)
        for label, *box in _truth(row):
            pen.box(box, _BOX_COLOURS[int(label) % len(_BOX_COLOURS)], above=labels[int(label)])
        return picture

    def image_of(self, prediction: Prediction) -> bytes | None:
        return None

    def summary(self, prediction: Prediction, top: int) -> str:
        sure = [o for o in prediction["objects"] if o["score"] >= self._sure]
        places = (
            f"{o['label']} {o['score']:.4f} at {','.join(f'{v:.0f}' for v in o['box'])}" for o in sure[:top]
        )
        return "  ".join([f"{len(sure)} objects", *places])

    def figures(self, evaluation: dict[str, Any]) -> list[plots.Section]:
        """Average precision and curves by class; the pictures with most mistakes."""
        return _figures(evaluation["rows"], evaluation["labels"])

    @property
    def _sure(self) -> float:
        return 0.5 if self.threshold is None else self.threshold


class Detector(nn.Module):
    """backbone -> feature pyramid -> maps; the two kinds of heads are below.

    ``forward(x)`` gives scores (B, A, C) in 0..1 and boxes (B, A, K, 4) in input px, nothing suppressed yet;
    with targets (``boxes`` (N, 4) and ``labels`` (N,) a row) the mean loss.
    """

    def __init__(self, backbone: Backbone, settings: Task) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        self.backbone = backbone
        self.freeze_norm = settings.freeze_norm
        last = {stride: i for i, stride in enumerate(backbone.strides) if stride >= settings.min_stride}
        if not last:
            raise ConfigError(
                f"task.min_stride = {settings.min_stride} ({backbone.name}): accepted: at most "
                f"{max(backbone.strides)}, the stride of its last stage"
            )
        self.reads, self.strides = list(last.values()), list(last)
        size = backbone.size if isinstance(backbone.size, int) else max(backbone.size)
        largest = settings.anchor_scale * 2 ** (2 / 3)  # anchor of a map, in strides
        while largest * self.strides[-1] < size / 2:  # for what fills the picture
            self.strides.append(2 * self.strides[-1])
        widths = [backbone.channels[i] for i in self.reads]
        self.fpn = FeaturePyramidNetwork(widths, settings.channels)
        self.anchors = Anchors(self.strides, settings.anchor_scale)

    def train(self, mode: bool = True) -> Detector:
        """As ever; batch norm in the backbone stays in evaluation mode where it shall keep its statistics."""
        super().train(mode)
        if self.freeze_norm:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def maps(self, x_BCHW: torch.Tensor) -> tuple[list[torch.Tensor], tuple[int, int]]:
        """The pyramid, finest first, and the input's height and width."""
        found = self.backbone.pyramid(x_BCHW, self.reads)
        maps = list(self.fpn(dict(zip(map(str, self.reads), found, strict=True))).values())
        while len(maps) < len(self.strides):
            maps.append(F.max_pool2d(maps[-1], 1, 2))
        return maps, (int(x_BCHW.shape[-2]), int(x_BCHW.shape[-1]))

    def forward(self, x_BCHW: torch.Tensor, targets: dict[str, Any] | None = None) -> Any:
        maps, size = self.maps(x_BCHW)
        if targets is None:
            scores_BAC, boxes_BAK4 = self.found(maps, size)
            return {"scores": scores_BAC, "boxes": boxes_BAK4}
        # Where all rows have as many objects they come stacked, else as a list.
        rows = [
            {"boxes": boxes.float().reshape(-1, 4), "labels": labels.long().reshape(-1)}
            for boxes, labels in zip(targets["boxes"], targets["labels"], strict=True)
        ]
        return self.loss(maps, size, rows)

    def found(self, maps: list[torch.Tensor], size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def loss(
        self, maps: list[torch.Tensor], size: tuple[int, int], rows: list[dict[str, torch.Tensor]]
    ) -> torch.Tensor:
        raise NotImplementedError


class Anchors(nn.Module):
    """torchvision's anchors at the strides that the maps really have, also where the input is no multiple."""

    def __init__(self, strides: Sequence[int], scale: float) -> None:
        super().__init__()
        from torchvision.models.detection.anchor_utils import AnchorGenerator

        # Three octaves and three shapes a place, as in RetinaNet (arXiv 1708.02002).
        sizes = tuple(tuple(scale * stride * 2 ** (n / 3) for n in range(3)) for stride in strides)
        self.grid = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
        self.strides = list(strides)
        self.num_per_place = 9

    def forward(self, images: Any, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """(A, 4) for each of the images, a torchvision ImageList."""
        self.grid.set_cell_anchors(torch.float32, maps[0].device)
        steps = [[torch.tensor(s, device=maps[0].device)] * 2 for s in self.strides]
        anchors_A4 = torch.cat(self.grid.grid_anchors([list(m.shape[-2:]) for m in maps], steps))
        return [anchors_A4] * len(images.image_sizes)


def _images(maps: list[torch.Tensor], size: tuple[int, int]) -> Any:
    """torchvision's list of images; of the pixels it asks their shape alone."""
    from torchvision.models.detection.image_list import ImageList

    batch = len(maps[0])
    return ImageList(maps[0].new_empty(1).expand(batch, 3, *size), [size] * batch)


class OneStage(Detector):
    """RetinaNet (arXiv 1708.02002): class and box at every anchor, focal loss; heads with group norm."""

    def __init__(self, backbone: Backbone, num_classes: int, settings: Task) -> None:
        super().__init__(backbone, settings)
        from torchvision.models.detection._utils import Matcher
        from torchvision.models.detection.retinanet import RetinaNetHead

        self.head = RetinaNetHead(settings.channels, self.anchors.num_per_place, num_classes, _norm)
        self.match = Matcher(0.5, 0.4, allow_low_quality_matches=True)

    def found(self, maps: list[torch.Tensor], size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        told, anchors = self.head(maps), self.anchors(_images(maps, size), maps)
        deltas_BA4 = told["bbox_regression"].float()
        coder = self.head.regression_head.box_coder
        boxes = coder.decode_single(deltas_BA4.reshape(-1, 4), torch.cat(anchors))
        return told["cls_logits"].float().sigmoid(), boxes.reshape(len(anchors), -1, 1, 4)

    def loss(
        self, maps: list[torch.Tensor], size: tuple[int, int], rows: list[dict[str, torch.Tensor]]
    ) -> torch.Tensor:
        from torchvision.ops import box_iou

        told = {name: value.float() for name, value in self.head(maps).items()}
        anchors = self.anchors(_images(maps, size), maps)
        matched = [
            self.match(box_iou(row["boxes"], anchors_A4))
            if len(row["boxes"])
            else anchors_A4.new_full((len(anchors_A4),), -1, dtype=torch.int64)
            for row, anchors_A4 in zip(rows, anchors, strict=True)
        ]
        parts = self.head.compute_loss(rows, told, anchors, matched)
        loss: torch.Tensor = sum(parts.values())
        return loss


class TwoStage(Detector):
    """Faster R-CNN (arXiv 1506.01497) over a pyramid: proposals, then a class and a box for each.

    Its losses are means over anchors and proposals drawn at random, the same number a row.
    """

    num_proposals = 200  # a picture that are looked at again

    def __init__(self, backbone: Backbone, num_classes: int, settings: Task) -> None:
        super().__init__(backbone, settings)
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
        from torchvision.models.detection.roi_heads import RoIHeads
        from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
        from torchvision.ops import MultiScaleRoIAlign

        before, after = {"training": 1000, "testing": 1000}, {"training": 500, "testing": self.num_proposals}
        self.rpn = RegionProposalNetwork(
            self.anchors, RPNHead(settings.channels, self.anchors.num_per_place),
            fg_iou_thresh=0.7, bg_iou_thresh=0.3, batch_size_per_image=256, positive_fraction=0.5,
            pre_nms_top_n=before, post_nms_top_n=after, nms_thresh=0.7,
        )  # fmt: skip
        width = 8 * settings.channels
        self.roi = RoIHeads(
            MultiScaleRoIAlign([str(i) for i in range(len(self.reads))], output_size=7, sampling_ratio=2),
            TwoMLPHead(49 * settings.channels, width), FastRCNNPredictor(width, num_classes + 1),
            fg_iou_thresh=0.5, bg_iou_thresh=0.5, batch_size_per_image=128, positive_fraction=0.25,
            bbox_reg_weights=None, score_thresh=0.0, nms_thresh=1.0, detections_per_img=1,
        )  # fmt: skip

    def found(self, maps: list[torch.Tensor], size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        named, images = _named(maps), _images(maps, size)
        proposals, _ = self.rpn.eval()(images, named)
        pooled = self.roi.box_head(self.roi.box_roi_pool(named, proposals, images.image_sizes))
        logits, deltas = self.roi.box_predictor(pooled)
        counts = [len(p) for p in proposals]
        scores = logits.float().softmax(1)[:, 1:].split(counts)  # class 0 is none
        boxes = self.roi.box_coder.decode(deltas.float(), proposals)[:, 1:].split(counts)
        room = [self.num_proposals - n for n in counts]  # filled up with boxes that score nothing
        return (
            torch.stack([F.pad(s, (0, 0, 0, n)) for s, n in zip(scores, room, strict=True)]),
            torch.stack([F.pad(b, (0, 0, 0, 0, 0, n)) for b, n in zip(boxes, room, strict=True)]),
        )

    def golden(self, x_BCHW: torch.Tensor) -> list[torch.Tensor]:
        """What bundles compare: both heads before anything is ranked, since equals may change places on
        another machine. The second looks at some anchors instead of at proposals."""
        maps, size = self.maps(x_BCHW)
        named, images = _named(maps), _images(maps, size)
        some = [a[:: max(1, len(a) // self.num_proposals)] for a in self.anchors(images, maps)]
        pooled = self.roi.box_head(self.roi.box_roi_pool(named, some, images.image_sizes))
        objectness, deltas = self.rpn.head(maps)
        return [*objectness, *deltas, *self.roi.box_predictor(pooled)]

    def loss(
        self, maps: list[torch.Tensor], size: tuple[int, int], rows: list[dict[str, torch.Tensor]]
    ) -> torch.Tensor:
        named, images = _named([m.float() for m in maps]), _images(maps, size)
        rows = [{"boxes": row["boxes"], "labels": row["labels"] + 1} for row in rows]
        proposals, first = self.rpn.train()(images, named, rows)  # the mode only says whether it gives losses
        _, second = self.roi.train()(named, proposals, images.image_sizes, rows)
        loss: torch.Tensor = sum([*first.values(), *second.values()])
        return loss


def _ranked(
    score: torch.Tensor, label: torch.Tensor, boxes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All three by score, equals by class and box."""
    order = torch.arange(len(score), device=score.device)
    for key in (*boxes.unbind(1)[::-1], label, -score):
        order = order[key[order].sort(stable=True).indices]
    return score[order], label[order], boxes[order]


def _named(maps: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {str(i): m for i, m in enumerate(maps)}


def _norm(channels: int) -> nn.GroupNorm:
    """Of the heads, as in torchvision's second RetinaNet: batches are small, and the pyramid is narrow."""
    return nn.GroupNorm(32, channels)


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
            self.pictures.append({"truth": _truth(row), "objects": found})

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
            hit = _hits(picture["objects"], picture["truth"])[0]
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


def corners(boxes: Sequence[Sequence[float]]) -> Boxes:
    """(x, y, width, height) -> (x0, y0, x1, y1), (N, 4)."""
    boxes_N4 = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes_N4[:, :2], boxes_N4[:, :2] + boxes_N4[:, 2:]], axis=1)


def _clipped(boxes_N4: Boxes, frame: tuple[float, float, float, float]) -> Boxes:
    low, high = np.tile(frame[:2], 2), np.tile(frame[2:], 2)
    return np.asarray(np.clip(boxes_N4, low, high))


def _areas(boxes_N4: Boxes) -> np.ndarray:
    return np.asarray((boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1]))


def _truth(row: Row) -> list[list[float]]:
    """[[class, x0, y0, x1, y1]], source px."""
    boxes = corners(row[OBJECTS]["bbox"]).tolist()
    return [[int(c), *box] for c, box in zip(row[OBJECTS]["category"], boxes, strict=True)]


def _mean(values: np.ndarray) -> float:
    return math.nan if np.isnan(values).all() else float(np.nanmean(values))


def _hits(objects: Sequence[Any], truth: Sequence[Any], iou: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Which finds (best first) and which true objects have each other: greedy, as COCO matches."""
    found = np.asarray([o[2:] for o in objects], float).reshape(-1, 1, 4)
    there = np.asarray([t[1:] for t in truth], float).reshape(1, -1, 4)
    sides = np.minimum(found[..., 2:], there[..., 2:]) - np.maximum(found[..., :2], there[..., :2])
    shared = sides.clip(0).prod(-1)
    overlap = shared / np.maximum(_areas(found[:, 0])[:, None] + _areas(there[0])[None] - shared, 1e-9)
    overlap[np.array([o[0] for o in objects])[:, None] != np.array([t[0] for t in truth])[None]] = 0
    hit, taken = np.zeros(len(objects), bool), np.zeros(len(truth), bool)
    for i in range(len(objects) if len(truth) else 0):
        free = np.where(taken, 0, overlap[i])
        if free.max() >= iou:
            hit[i] = taken[free.argmax()] = True
    return hit, taken


def _figures(
    rows: Sequence[dict[str, Any]], labels: Sequence[str], num_shots: int = 24
) -> list[plots.Section]:
    if not rows:
        return []
    threshold = rows[0]["threshold"]
    ap_TC, _, curve_RC = coco(rows, len(labels))
    there, said, right = (np.zeros(len(labels), int) for _ in range(3))
    worst = []
    for number, row in enumerate(rows):
        sure = [o for o in row["objects"] if o[1] >= threshold]
        hit, taken = _hits(sure, row["truth"])
        for t in row["truth"]:
            there[t[0]] += 1
        for o, h in zip(sure, hit, strict=True):
            said[o[0]] += 1
            right[o[0]] += int(h)
        worst.append((int((~taken).sum()), int((~hit).sum()), int(hit.sum()), number))
    order = sorted(
        range(len(labels)), key=lambda c: (there[c] == 0, float(np.nan_to_num(ap_TC[:, c].mean())))
    )
    shown, recall_R = [c for c in order if there[c]], np.linspace(0, 1, 101).tolist()
    cells = [
        [
            labels[c],
            *(float(v) if there[c] else None for v in (ap_TC[:, c].mean(), ap_TC[0, c])),
            float(right[c] / said[c]) if said[c] else None,
            float(right[c] / there[c]) if there[c] else None,
            int(there[c]),
        ]
        for c in order
    ]
    lines = [
        plots.Line(labels[c], curve_RC[:, c].tolist(), recall_R)
        if i < 4
        else plots.Line("others", curve_RC[:, c].tolist(), recall_R, "faded")
        for i, c in enumerate(shown[:40])
    ]
    numbers = ("AP", "AP at IoU 0.5", "precision", "recall")
    columns = [plots.Column("class"), *(plots.Column(n, 3, most=1) for n in numbers), plots.Column("objects")]
    worst.sort(key=lambda w: (-w[0] - w[1], w[3]))
    wrong = [w for w in worst if w[0] + w[1]]
    return [
        plots.Section(
            "Classes",
            "AP: average precision over IoU 0.5 to 0.95, as COCO counts it. Curves, precision and recall: at "
            f"IoU 0.5, the latter two of finds with a score of {threshold:.2f} or more. Weakest first.",
            [plots.curves(lines, "precision", "recall")] if lines else [],
            [plots.Table(columns, cells)],
        ),
        plots.Section(
            "Most mistakes",
            f"{len(wrong)} of {len(rows)} pictures with an object missed or a find that is none, most of "
            "both first. Full lines: what was found, with its score. Dashed: what is there.",
            shots=[
                plots.Shot(n, [("missed", str(missed)), ("false", str(false)), ("found", str(found))])
                for missed, false, found, n in wrong[:num_shots]
            ],
        ),
    ]


class _Pen:
    """Boxes and their names over a picture, as thick as it is large."""

    def __init__(self, picture: Image.Image) -> None:
        side = max(picture.size)
        self.on = ImageDraw.Draw(picture)
        self.size = picture.size
        self.width = max(1, round(side / 240))
        self.font = ImageFont.load_default(max(9, side / 30))

    def box(
        self, box: Sequence[float], colour: str, dashed: bool = False, above: str = "", below: str = ""
    ) -> None:
        x0, y0, x1, y1 = (float(v) for v in box)
        ends = [(x0, y0, x1, y0), (x1, y0, x1, y1), (x1, y1, x0, y1), (x0, y1, x0, y0)]
        for side in ends:
            self._line(side, "black", self.width + 2, 0)  # seen on any ground
            self._line(side, colour, self.width, 5 * self.width if dashed else 0)
        if above:
            self._text(x0, y0, above, colour, "white", -1)
        if below:
            self._text(x0, y1, below, colour, "black", 0)

    def _line(self, ends: tuple[float, ...], colour: str, width: int, dash: int) -> None:
        start, stop = np.array(ends[:2]), np.array(ends[2:])
        length = float(np.abs(stop - start).sum())
        for at in np.arange(0, length, 2 * dash) if dash else (0.0,):
            end = min(1.0, (at + dash) / max(length, 1e-9)) if dash else 1.0
            a, b = start + (stop - start) * at / max(length, 1e-9), start + (stop - start) * end
            self.on.line([*a.tolist(), *b.tolist()], fill=colour, width=width)

    def _text(self, x: float, y: float, text: str, ground: str, ink: str, up: int) -> None:
        """On a ground of its own, moved so that it stays in the picture."""
        _, _, w, h = self.on.textbbox((0, 0), text, font=self.font)
        x = min(max(0.0, x), max(0.0, self.size[0] - w))
        y = min(max(0.0, y + up * h), max(0.0, self.size[1] - h))
        self.on.rectangle([x, y, x + w, y + h], fill=ground)
        self.on.text((x, y), text, fill=ink, font=self.font)
