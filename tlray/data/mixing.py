"""Training pictures made of several: mixup, CutMix and mosaic, a pure function of (seed, view, row).

mixup (arXiv 1710.09412) is a weighted mean of two pictures, CutMix (arXiv 1905.04899) pastes a rectangle of
one into the other, and mosaic (YOLOv4, arXiv 2004.10934) places four around a point. Labels with places in
the picture follow their pixels. Other labels are kept for both pictures: the row's own, the second one's as
``partner.NAME``, and ``share``, the row's own share of the picture.
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
EDGE = 0.25  # least distance of a mosaic's centre from the border, as a share of the side

Frame = tuple[int, int, int, int]  # x0, y0, x1, y1 in the input, px
Target = dict[str, Any]


class Mix(NamedTuple):
    """How pictures are mixed.

    ``share``: of the row's own picture, in mixup and CutMix. ``frames``: the place of the second picture in
    CutMix, the places of all four in a mosaic.
    """

    kind: Literal["mixup", "cutmix", "mosaic"]
    share: float
    frames: tuple[Frame, ...] = ()

    @property
    def partners(self) -> int:
        """Number of pictures beside the row's own."""
        return 3 if self.kind == "mosaic" else 1


def draw(rng: np.random.Generator, settings: Augmentation, size: Size) -> Mix | None:
    """Draw how a row is mixed; None: it is not. ``size``: of the input."""
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
    # The border may cut a part off: the share is that of the remaining area.
    return Mix("cutmix", 1 - (x1 - x0) * (y1 - y0) / (width * height), ((x0, y0, x1, y1),))


def _mosaic(rng: np.random.Generator, size: Size) -> Mix:
    (width, height), (x, y) = size, (round(side * rng.uniform(EDGE, 1 - EDGE)) for side in size)
    corners = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
    return Mix("mosaic", 1.0, tuple(corners[i] for i in rng.permutation(4)))


def partners(rng: np.random.Generator, group: range, row: int, number: int) -> list[int]:
    """Draw other rows of a row's group, distinct where there are enough; a single row is its own partner."""
    others = max(1, len(group) - 1)
    steps = rng.choice(others, number, replace=others < number)
    return [group[(row - group.start + 1 + int(step)) % len(group)] for step in steps]


def geometry(
    mix: Mix | None, number: int, drawn: Geometry, pre: Preprocess, rng: np.random.Generator
) -> Geometry:
    """The geometry of the number-th picture of a mix, made of its own geometry ``drawn``.

    In a mosaic a random part with the frame's aspect ratio fills the frame, scaled at most as in evaluation.
    """
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
    if drawn.hflip:  # a geometry mirrors last, and frames are places after that
        x0, x1 = pre.size[0] - x1, pre.size[0] - x0
    if drawn.vflip:
        y0, y1 = pre.size[1] - y1, pre.size[1] - y0
    return replace(drawn, crop=(x, y, x + w, y + h), placed=(x0, y0, x1, y1))


def alone(mix: Mix | None, drawn: Geometry) -> Geometry:
    """The geometry by which a picture is rendered for `pixels`: in a mosaic it is as large as its frame."""
    if mix is None or mix.kind != "mosaic":
        return drawn
    x0, y0, x1, y1 = drawn.placed
    size = (x1 - x0, y1 - y0)
    return replace(drawn, output=size, placed=(0, 0, *size))


def pixels(mix: Mix | None, pictures: Sequence[Pixels], size: Size) -> Pixels:
    """Mix rendered pictures (3, H, W) uint8; the row's own is the first."""
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
    """Mix the pictures' targets. ``placed``: labels have places in the picture."""
    own = targets[0]
    if mix is None:
        return own
    if mix.kind == "mosaic":  # lists of objects that are already in their frames
        return {name: np.concatenate([picture_target[name] for picture_target in targets]) for name in own}
    other = targets[1]
    if placed:  # a mask (H, W)
        return {name: _pasted(value, other[name], mix.frames[0]) for name, value in own.items()}
    return {**own, **{PARTNER + name: value for name, value in other.items()}, SHARE: np.float32(mix.share)}


def _pasted(own: Any, other: Any, frame: Frame) -> Any:
    """An array (..., H, W) with a rectangle replaced by that of another."""
    x0, y0, x1, y1 = frame
    out = own.copy()
    out[..., y0:y1, x0:x1] = other[..., y0:y1, x0:x1]
    return out
