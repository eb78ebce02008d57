"""The networks: a backbone, a feature pyramid, and the heads of RetinaNet or Faster R-CNN.

Heads, anchors and losses are torchvision's. Letters in names: B batch, A anchors (or proposals), C classes,
N boxes, K 1 or C (boxes for each class).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from tlray.errors import ConfigError
from tlray.tasks.detection.anchors import Anchors

if TYPE_CHECKING:  # importing it imports timm, which processes that only render do not need
    from tlray.models.backbone import Backbone
    from tlray.tasks.detection import Task


def levels(backbone: Backbone, settings: Task) -> tuple[list[int], list[int]]:
    """Indices of the backbone stages that the pyramid reads, and the strides of its maps, finest first.

    Raises ConfigError.
    """
    last = {stride: i for i, stride in enumerate(backbone.strides) if stride >= settings.min_stride}
    if not last:
        raise ConfigError(
            f"task.min_stride = {settings.min_stride} ({backbone.name}): accepted: at most "
            f"{max(backbone.strides)}, the stride of its last stage"
        )
    reads, strides = list(last.values()), list(last)
    size = backbone.size if isinstance(backbone.size, int) else max(backbone.size)
    largest = settings.anchor_scale * 2 ** (2 / 3)  # side of the largest anchor of a map, in strides
    while largest * strides[-1] < size / 2:  # coarser maps, for objects that fill the picture
        strides.append(2 * strides[-1])
    return reads, strides


class Detector(nn.Module):
    """backbone -> feature pyramid -> head; the two kinds of head are in the subclasses.

    ``forward(x)`` gives scores (B, A, C) in 0..1 and boxes (B, A, K, 4) in input px, before non-maximum
    suppression; with targets (``boxes`` (N, 4) and ``labels`` (N,) for each row) the mean loss.
    """

    def __init__(self, backbone: Backbone, settings: Task) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        self.backbone = backbone
        self.freeze_norm = settings.freeze_norm
        self.reads, self.strides = levels(backbone, settings)
        widths = [backbone.channels[i] for i in self.reads]
        self.fpn = FeaturePyramidNetwork(widths, settings.channels)
        self.anchors = Anchors(self.strides, settings.anchor_scale, settings.shapes)

    def train(self, mode: bool = True) -> Detector:
        """As of nn.Module, but with ``freeze_norm`` batch norm in the backbone stays in evaluation mode."""
        super().train(mode)
        if self.freeze_norm:
            self.backbone.keep_statistics()
        return self

    def maps(self, x_BCHW: torch.Tensor) -> tuple[list[torch.Tensor], tuple[int, int]]:
        """The pyramid, finest first, and the input's height and width."""
        features = self.backbone.pyramid(x_BCHW, self.reads)
        maps = list(self.fpn(dict(zip(map(str, self.reads), features, strict=True))).values())
        while len(maps) < len(self.strides):
            maps.append(F.max_pool2d(maps[-1], 1, 2))
        return maps, (int(x_BCHW.shape[-2]), int(x_BCHW.shape[-1]))

    def forward(self, x_BCHW: torch.Tensor, targets: dict[str, Any] | None = None) -> Any:
        maps, size = self.maps(x_BCHW)
        if targets is None:
            scores_BAC, boxes_BAK4 = self.detect(maps, size)
            return {"scores": scores_BAC, "boxes": boxes_BAK4}
        # Targets are stacked where all rows have the same number of objects, else they are lists.
        rows = [
            {"boxes": boxes.float().reshape(-1, 4), "labels": labels.long().reshape(-1)}
            for boxes, labels in zip(targets["boxes"], targets["labels"], strict=True)
        ]
        return self.loss(maps, size, rows)

    def detect(self, maps: list[torch.Tensor], size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (B, A, C) and boxes (B, A, K, 4)."""
        raise NotImplementedError

    def loss(
        self, maps: list[torch.Tensor], size: tuple[int, int], rows: list[dict[str, torch.Tensor]]
    ) -> torch.Tensor:
        """The mean loss of the rows (scalar)."""
        raise NotImplementedError


def _images(maps: list[torch.Tensor], size: tuple[int, int]) -> Any:
    """A torchvision ImageList without pixels: its heads only read the shapes."""
    from torchvision.models.detection.image_list import ImageList

    batch = len(maps[0])
    return ImageList(maps[0].new_empty(1).expand(batch, 3, *size), [size] * batch)


class OneStage(Detector):
    """RetinaNet (arXiv 1708.02002): class and box at every anchor, focal loss.

    torchvision has two versions. The heads have group norm, as in the second: mAP on bccd is 0.335 with it
    and 0.315 with batch norm (one training each). The box loss is the L1 of the deltas, as in the first; with
    ``box_loss: giou`` it is the generalised IoU (arXiv 1902.09630) of the second, with the same mAP on bccd.
    """

    class_layers = ("head.classification_head.cls_logits.",)

    def __init__(self, backbone: Backbone, num_classes: int, settings: Task) -> None:
        super().__init__(backbone, settings)
        from torchvision.models.detection._utils import Matcher
        from torchvision.models.detection.retinanet import RetinaNetHead

        self.head = RetinaNetHead(settings.channels, self.anchors.num_per_place, num_classes, _norm)
        # A private attribute: torchvision's second version sets it, too, and there is no argument for it.
        self.head.regression_head._loss_type = settings.box_loss
        self.match = Matcher(0.5, 0.4, allow_low_quality_matches=True)

    def detect(self, maps: list[torch.Tensor], size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        outputs, anchors = self.head(maps), self.anchors(_images(maps, size), maps)
        deltas_BA4 = outputs["bbox_regression"].float()
        coder = self.head.regression_head.box_coder
        boxes = coder.decode_single(deltas_BA4.reshape(-1, 4), torch.cat(anchors))
        return outputs["cls_logits"].float().sigmoid(), boxes.reshape(len(anchors), -1, 1, 4)

    def loss(
        self, maps: list[torch.Tensor], size: tuple[int, int], rows: list[dict[str, torch.Tensor]]
    ) -> torch.Tensor:
        from torchvision.ops import box_iou

        outputs = {name: value.float() for name, value in self.head(maps).items()}
        anchors = self.anchors(_images(maps, size), maps)
        matched = [
            self.match(box_iou(row["boxes"], anchors_A4))
            if len(row["boxes"])
            else anchors_A4.new_full((len(anchors_A4),), -1, dtype=torch.int64)
            for row, anchors_A4 in zip(rows, anchors, strict=True)
        ]
        parts = self.head.compute_loss(rows, outputs, anchors, matched)
        loss: torch.Tensor = sum(parts.values())
        return loss


class TwoStage(Detector):
    """Faster R-CNN (arXiv 1506.01497) with a feature pyramid: proposals, then a class and a box for each.

    Its losses are means over a random sample of anchors and proposals, of equal size for each row.
    """

    num_proposals = 200  # of a picture that reach the second stage
    class_layers = ("roi.box_predictor.",)

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

    def detect(self, maps: list[torch.Tensor], size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        named, images = _named(maps), _images(maps, size)
        proposals, _ = self.rpn.eval()(images, named)
        pooled = self.roi.box_head(self.roi.box_roi_pool(named, proposals, images.image_sizes))
        logits, deltas = self.roi.box_predictor(pooled)
        counts = [len(p) for p in proposals]
        scores = logits.float().softmax(1)[:, 1:].split(counts)  # class 0 is the background
        boxes = self.roi.box_coder.decode(deltas.float(), proposals)[:, 1:].split(counts)
        room = [self.num_proposals - n for n in counts]  # padded with boxes of score 0
        return (
            torch.stack([F.pad(s, (0, 0, 0, n)) for s, n in zip(scores, room, strict=True)]),
            torch.stack([F.pad(b, (0, 0, 0, 0, 0, n)) for b, n in zip(boxes, room, strict=True)]),
        )

    def golden(self, x_BCHW: torch.Tensor) -> list[torch.Tensor]:
        """Outputs that a bundle stores and compares on loading: both heads before any ranking, because boxes
        of equal score may be ordered differently on another machine. The second head gets some anchors in
        place of proposals."""
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
        proposals, first = self.rpn.train()(images, named, rows)  # in train mode it returns losses, too
        _, second = self.roi.train()(named, proposals, images.image_sizes, rows)
        loss: torch.Tensor = sum([*first.values(), *second.values()])
        return loss


def _named(maps: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {str(i): m for i, m in enumerate(maps)}


def _norm(channels: int) -> nn.GroupNorm:
    """The norm of the heads, as in torchvision's second RetinaNet, because batches are small."""
    return nn.GroupNorm(32, channels)
