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
    low, high = np.tile(frame[:2], 2), np.tile(frame[2:], 2)
    return np.asarray(np.clip(boxes_N4, low, high))


def areas(boxes_N4: Boxes) -> np.ndarray:
    return np.asarray((boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1]))
