"""Anchors, the boxes that detections start from: how well they fit training boxes, and shapes made of those.

Letters in names: A anchors, N boxes, S anchor shapes at each position of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from tlray.tasks.detection.boxes import Boxes, iou

Shape = tuple[float, float]  # width and height of an anchor, in strides of its map

NUM_SHAPES = 9
ENOUGH = 0.9  # share of boxes with a fitting anchor from which standard anchors are used
FITS = 0.5  # IoU from which an anchor fits a box
_MAX_ROUNDS = 100  # of k-means


class Anchors(nn.Module):
    """torchvision's anchors, at the exact strides of the maps also where they do not divide the input."""

    def __init__(self, strides: Sequence[int], scale: float, shapes: Sequence[Shape] | None = None) -> None:
        super().__init__()
        from torchvision.models.detection.anchor_utils import AnchorGenerator

        # Three sizes an octave and three aspect ratios at each position, as in RetinaNet (arXiv 1708.02002).
        sizes = tuple(tuple(scale * stride * 2 ** (n / 3) for n in range(3)) for stride in strides)
        self.grid = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
        if shapes is not None:
            half_S4 = torch.tensor([[-w, -h, w, h] for w, h in shapes], dtype=torch.float32) / 2
            self.grid.cell_anchors = [half_S4 * stride for stride in strides]
        self.strides = list(strides)
        self.num_per_place = NUM_SHAPES if shapes is None else len(shapes)

    def forward(self, images: Any, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Anchors (A, 4) of each image; ``images`` is a torchvision ImageList."""
        self.grid.set_cell_anchors(torch.float32, maps[0].device)
        steps = [[torch.tensor(s, device=maps[0].device)] * 2 for s in self.strides]
        anchors_A4 = torch.cat(self.grid.grid_anchors([list(m.shape[-2:]) for m in maps], steps))
        return [anchors_A4] * len(images.image_sizes)

    def fit(self, boxes_N4: Boxes, size: tuple[int, int]) -> np.ndarray:
        """IoU (N,) of each box with its best anchor; ``size``: (width, height) of the input."""
        centre_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2
        best_N = np.zeros(len(boxes_N4))
        for stride, cell_S4 in zip(self.strides, self.grid.cell_anchors, strict=True):
            # For each shape, the position nearest to the box's centre has the best IoU.
            last = np.ceil(np.array(size) / stride) - 1
            place_N2 = np.clip(np.round(centre_N2 / stride), 0, last) * stride
            anchors_NS4 = np.tile(place_N2, 2)[:, None] + cell_S4.numpy()[None]
            best_N = np.maximum(best_N, iou(boxes_N4[:, None], anchors_NS4).max(axis=1))
        return best_N


def shapes_of(boxes_N4: Boxes, strides: Sequence[int], scale: float) -> tuple[Shape, ...]:
    """Anchor shapes that fit boxes: k-means over IoU (arXiv 1612.08242), smallest first, for all maps alike.

    A box is measured in strides of the coarsest map whose smallest standard anchor is not larger than the
    box's shorter side, because its centre may be half a stride away from the nearest anchor's.
    """
    side_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    steps = np.array(strides, float)
    level_N = np.searchsorted(steps * scale, side_N2.min(axis=1), side="right") - 1
    side_N2 = side_N2 / steps[level_N.clip(0)][:, None]
    draw = np.random.default_rng(0)
    chosen = [int(draw.integers(len(side_N2)))]
    while len(chosen) < NUM_SHAPES:  # k-means++: a box that fits no start yet is likelier to become one
        far_N = (1 - _iou_of_sides(side_N2, side_N2[chosen]).max(axis=1)).clip(0) ** 2
        if far_N.sum() <= 0:
            break
        chosen.append(int(draw.choice(len(side_N2), p=far_N / far_N.sum())))
    shape_S2 = side_N2[chosen]
    nearest_N: np.ndarray | None = None
    for _ in range(_MAX_ROUNDS):
        now_N = _iou_of_sides(side_N2, shape_S2).argmax(axis=1)
        if nearest_N is not None and (now_N == nearest_N).all():
            break
        nearest_N = now_N
        for s in np.unique(now_N):
            shape_S2[s] = np.median(side_N2[now_N == s], axis=0)
    ordered = shape_S2[np.argsort(shape_S2.prod(axis=1), kind="stable")]
    return tuple((round(float(w), 3), round(float(h), 3)) for w, h in ordered)


def _iou_of_sides(side_N2: np.ndarray, shape_S2: np.ndarray) -> np.ndarray:
    """IoU (N, S) of boxes and shapes that share a corner, given by width and height."""
    boxes_N4, shapes_S4 = (np.concatenate([0 * sides, sides], axis=1) for sides in (side_N2, shape_S2))
    return iou(boxes_N4[:, None], shapes_S4[None])
