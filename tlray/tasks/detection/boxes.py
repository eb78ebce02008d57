"""Boxes as arrays: (x0, y0, x1, y1) in px, (N, 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Boxes = np.ndarray  # (N, 4) float64


def corners(boxes: Sequence[Sequence[float]]) -> Boxes:
    """(x, y, width, height) -> (x0, y0, x1, y1), (N, 4)."""
    boxes_N4 = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes_N4[:, :2], boxes_N4[:, :2] + boxes_N4[:, 2:]], axis=1)


def clipped(boxes_N4: Boxes, frame: tuple[float, float, float, float]) -> Boxes:
    """Boxes cut off at a frame; one outside of it has no area left."""
    low, high = np.tile(frame[:2], 2), np.tile(frame[2:], 2)
    return np.asarray(np.clip(boxes_N4, low, high))


def areas(boxes: Boxes) -> np.ndarray:
    """Areas (...) of boxes (..., 4)."""
    return np.asarray((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]))


def intersections(a: Boxes, b: Boxes) -> np.ndarray:
    """Areas that boxes (..., 4) share; leading axes are broadcast."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return np.asarray(sides.clip(0).prod(-1))


def iou(a: Boxes, b: Boxes) -> np.ndarray:
    """Intersection over union of boxes (..., 4); leading axes are broadcast. 0 where both are empty."""
    shared = intersections(a, b)
    return np.asarray(shared / np.maximum(areas(a) + areas(b) - shared, 1e-9))
