"""Outlines of objects: boxes around them, and the shapes that masks are drawn from (`tlray.data.masks`)."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tlray.errors import DataError

UNKNOWN = 255  # id of pixels of no known class
_BACKGROUND = ("background", "_background_")
_SIDES_OF_ROUND = 64  # corners of the outline of a circle or an ellipse

Box = list[float]  # x, y, width, height
Polygon = list[float]  # x, y, x, y, ...


def around(*polygons: Sequence[float]) -> Box:
    """The box around polygons."""
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def rectangle(x: float, y: float, width: float, height: float, degrees: float = 0) -> Polygon:
    """Corners of a box, turned clockwise about its centre."""
    cx, cy, turn = x + width / 2, y + height / 2, math.radians(degrees)
    cos, sin = math.cos(turn), math.sin(turn)
    corners = ((-width, -height), (width, -height), (width, height), (-width, height))
    points = ((cx + (dx * cos - dy * sin) / 2, cy + (dx * sin + dy * cos) / 2) for dx, dy in corners)
    return [value for point in points for value in point]


def ellipse(cx: float, cy: float, rx: float, ry: float, degrees: float = 0) -> Polygon:
    """Corners of an ellipse's outline, turned clockwise about its centre."""
    turn = math.radians(degrees)
    polygon: Polygon = []
    for n in range(_SIDES_OF_ROUND):
        a = 2 * math.pi * n / _SIDES_OF_ROUND
        dx, dy = rx * math.cos(a), ry * math.sin(a)
        polygon.append(cx + dx * math.cos(turn) - dy * math.sin(turn))
        polygon.append(cy + dx * math.sin(turn) + dy * math.cos(turn))
    return polygon


def run_lengths(counts: str | Sequence[int]) -> list[int]:
    """Lengths of runs of 0 and 1 in turn, down the columns, of COCO's RLE; a text is its packed form, as of
    pycocotools. Raises ValueError."""
    if not isinstance(counts, str):
        return [int(count) for count in counts]
    runs: list[int] = []
    value = shift = 0
    for sign in counts:
        code = ord(sign) - 48
        if not 0 <= code < 64:
            raise ValueError(f"{sign!r} in RLE")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs


def around_runs(size: Sequence[int], counts: str | Sequence[int]) -> Box | None:
    """The box around a mask in RLE, ``size`` = (height, width); None where it is empty. Raises ValueError."""
    height, width = (int(side) for side in size)
    runs = run_lengths(counts)
    if min(runs, default=0) < 0 or sum(runs) != height * width or height <= 0:
        raise ValueError(f"runs of {sum(runs)} pixels in {height} x {width}")
    xs: list[int] = []
    ys: list[int] = []
    ends = list(itertools.accumulate(runs))
    for start, end in zip(ends[::2], ends[1::2], strict=False):
        if end > start:
            xs += [start // height, (end - 1) // height]
            # A run that goes on in the next column touches the lower and the upper edge.
            crosses_column = start // height != (end - 1) // height
            ys += [0, height - 1] if crosses_column else [start % height, (end - 1) % height]
    if not xs:
        return None
    return [min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1]


def runs_of(part_HW: npt.NDArray[np.bool_], x: int, y: int, width: int, height: int) -> dict[str, Any]:
    """COCO's RLE, for a picture of that size, of a mask at (x, y); parts outside the picture are cut off."""
    whole_HW = np.zeros((height, width), bool)
    part_HW = part_HW[max(0, -y) : max(0, height - y), max(0, -x) : max(0, width - x)]
    top, left = max(0, y), max(0, x)
    whole_HW[top : top + part_HW.shape[0], left : left + part_HW.shape[1]] = part_HW
    flat = whole_HW.ravel(order="F")
    bounds = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    runs = np.diff(bounds).tolist()
    return {"size": [height, width], "counts": [0, *runs] if flat[0] else runs}


def numbered(where: str, classes: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """(class names by id, background first; id of each class). Raises DataError for more than 254 classes."""
    objects = [name for name in dict.fromkeys(classes) if name.strip().lower() not in _BACKGROUND]
    if len(objects) >= UNKNOWN:
        raise DataError(f"{where}: {len(objects)} classes; accepted: at most {UNKNOWN - 1} in masks")
    ids = {name: number for number, name in enumerate(objects, 1)}
    return ["background", *objects], ids | {name: 0 for name in classes if name not in ids}


def mask(shapes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A value of the column ``mask``. Unknown pixels are drawn first, so that they hide no object."""
    ordered = sorted(shapes, key=lambda shape: shape["id"] != UNKNOWN)
    return {"paths": [], "shapes": json.dumps(ordered, separators=(",", ":"))}
