"""Training pictures made of several: mixup, CutMix and mosaic, a pure function of (seed, view, row).

mixup (arXiv 1710.09412) adds two pictures up, CutMix (arXiv 1905.04899) pastes a rectangle of one into the
other, mosaic (YOLOv4, arXiv 2004.10934) sets four around a point. Labels with places in the picture go where
the pixels go; of others a row has its own, its partner's as ``partner.NAME``, and ``share``, how much of the
picture is its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np

from tlray.config import Augmentation
from tlray.data.image import Geometry, Pixels, Preprocess, Size

PARTNER, SHARE = "partner.", "share"  # names of targets
EDGE = 0.25  # of the side: nearer to the border no mosaic has its centre

Frame = tuple[int, int, int, int]  # x0, y0, x1, y1 in the input, px
Target = dict[str, Any]


class Mix(NamedTuple):
    """How pictures become one. ``share``: of the first, in mixup and CutMix; ``frames``: where the second
    lies in CutMix, where each of the four in a mosaic."""

    kind: Literal["mixup", "cutmix", "mosaic"]
    share: float
    frames: tuple[Frame, ...] = ()

    @property
    def partners(self) -> int:
        """Pictures beside the row's own."""
        return 3 if self.kind == "mosaic" else 1


def draw(rng: np.random.Generator, settings: Augmentation, size: Size) -> Mix | None:
    """How a row is mixed, if it is; ``size`` of the input."""
    if settings.mosaic:
        return _mosaic(rng, size) if rng.random() < settings.mosaic else None
    if not settings.mixup and not settings.cutmix:
        return None
    cuts = bool(settings.cutmix) and (not settings.mixup or rng.random() < 0.5)
    alpha = settings.cutmix if cuts else settings.mixup
    share = float(rng.beta(alpha, alpha))
    if not cuts:
        return Mix("mixup", share)
    width, height = size
    w, h = (round(side * math.sqrt(1 - share)) for side in size)
    x, y = int(rng.integers(width)) - w // 2, int(rng.integers(height)) - h // 2
    x0, y0, x1, y1 = max(0, x), max(0, y), min(width, x + w), min(height, y + h)
    # The border may have cut some of it off: what counts is the area that stays.
    return Mix("cutmix", 1 - (x1 - x0) * (y1 - y0) / (width * height), ((x0, y0, x1, y1),))


def _mosaic(rng: np.random.Generator, size: Size) -> Mix:
    (width, height), (x, y) = size, (round(side * rng.uniform(EDGE, 1 - EDGE)) for side in size)
    corners = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
    return Mix("mosaic", 1.0, tuple(corners[i] for i in rng.permutation(4)))


def partners(rng: np.random.Generator, group: range, row: int, number: int) -> list[int]:
    """Other rows of a row's group, different ones where there are enough; a lonely row is its own partner."""
    others = max(1, len(group) - 1)
    steps = rng.choice(others, number, replace=others < number)
    return [group[(row - group.start + 1 + int(step)) % len(group)] for step in steps]


def geometry(
    mix: Mix | None, number: int, drawn: Geometry, pre: Preprocess, rng: np.random.Generator
) -> Geometry:
    """What is done to the number-th picture, whose own geometry is ``drawn``: in a mosaic a random part of
    it, of the frame's shape, fills the frame, with things at most as large as in evaluation."""
    if mix is None or mix.kind != "mosaic":
        return drawn
    (width, height), plain = drawn.source, pre.geometry(drawn.source)
    x0, y0, x1, y1 = mix.frames[number]
    c, p = plain.crop, plain.placed
    # Source px of the frame's sides, where things are as large as in evaluation.
    w, h = (x1 - x0) * (c[2] - c[0]) / (p[2] - p[0]), (y1 - y0) * (c[3] - c[1]) / (p[3] - p[1])
    most = min(width / w, height / h)  # of that the picture has
    factor = math.exp(rng.uniform(min(0.0, math.log(most)), math.log(most)))
    w, h = min(w * factor, width), min(h * factor, height)
    x, y = (width - w) * rng.random(), (height - h) * rng.random()
    if drawn.hflip:  # frames are where things lie in the end, a geometry mirrors last
        x0, x1 = pre.size[0] - x1, pre.size[0] - x0
    if drawn.vflip:
        y0, y1 = pre.size[1] - y1, pre.size[1] - y0
    return replace(drawn, crop=(x, y, x + w, y + h), placed=(x0, y0, x1, y1))


def alone(mix: Mix | None, drawn: Geometry) -> Geometry:
    """The geometry for a picture's pixels: those of a mosaic are made in the size of their frame."""
    if mix is None or mix.kind != "mosaic":
        return drawn
    x0, y0, x1, y1 = drawn.placed
    size = (x1 - x0, y1 - y0)
    return replace(drawn, output=size, placed=(0, 0, *size))


def pixels(mix: Mix | None, pictures: Sequence[Pixels], size: Size) -> Pixels:
    """Rendered pictures (3, H, W) uint8, the row's own first -> one."""
    if mix is None:
        return pictures[0]
    if mix.kind == "mixup":
        own, other = (x_CHW.astype(np.float32) for x_CHW in pictures)
        return (own * np.float32(mix.share) + other * np.float32(1 - mix.share) + 0.5).astype(np.uint8)
    if mix.kind == "cutmix":
        both: Pixels = _pasted(pictures[0], pictures[1], mix.frames[0])
        return both
    out = np.empty((3, size[1], size[0]), np.uint8)
    for x_CHW, (x0, y0, x1, y1) in zip(pictures, mix.frames, strict=True):
        out[:, y0:y1, x0:x1] = x_CHW
    return out


def target(mix: Mix | None, targets: Sequence[Target], placed: bool) -> Target:
    """The pictures' targets -> that of the one. ``placed``: labels have places in the picture."""
    own = targets[0]
    if mix is None:
        return own
    if mix.kind == "mosaic":  # things are listed, and lie where their frame is
        return {name: np.concatenate([one[name] for one in targets]) for name in own}
    other = targets[1]
    if placed:  # a mask (H, W)
        return {name: _pasted(value, other[name], mix.frames[0]) for name, value in own.items()}
    return {**own, **{PARTNER + name: value for name, value in other.items()}, SHARE: np.float32(mix.share)}


def _pasted(own: Any, other: Any, frame: Frame) -> Any:
    """(..., H, W) with a rectangle of another."""
    x0, y0, x1, y1 = frame
    out = own.copy()
    out[..., y0:y1, x0:x1] = other[..., y0:y1, x0:x1]
    return out
