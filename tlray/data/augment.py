"""Augmentation: random changes of training pictures, a pure function of (seed, view, row).

`Augment.sample` draws a `Geometry` (crop, scale, mirror), which labels follow; `Augment.pixels` then changes
the rendered pixels by a policy: one random operation a picture (TrivialAugment, arXiv 2103.10158), several
(RandAugment, arXiv 1909.13719), colours alone, and random erasing (arXiv 1708.04896). Operations and their
ranges are those of torchvision.transforms.v2. They are written in Pillow and numpy here, so that rendering
processes need not load torch, and every draw comes from the row's own generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from tlray.config import Augmentation
from tlray.data.image import LUMA, PADDING, Box, Geometry, Pixels, Preprocess, Size

BINS = 31  # strengths of TrivialAugment and RandAugment
RAND_OPERATIONS, RAND_STRENGTH = 2, 9  # RandAugment: operations for each picture, and their strength

Kind = Literal["moves", "colours"]


class Operation(NamedTuple):
    """An operation on pixels. One that ``moves`` things cannot be used where labels have places."""

    name: str
    kind: Kind
    low: float  # at strength 0
    high: float  # at full strength
    signed: bool = False


def _space(
    shear: float, shift: float, rotate: float, enhance: float, bits: int, solarize: int
) -> tuple[Operation, ...]:
    """TrivialAugment's operations with their values at full strength.

    ``shear``: a tangent; ``shift``: a share of the side; ``rotate``: degrees; ``enhance``: the largest change
    of a factor from 1; ``bits``: left by posterizing; ``solarize``: the threshold.
    """
    return (
        Operation("identity", "colours", 0, 0),
        Operation("shear_x", "moves", 0, shear, True),
        Operation("shear_y", "moves", 0, shear, True),
        Operation("shift_x", "moves", 0, shift, True),
        Operation("shift_y", "moves", 0, shift, True),
        Operation("rotate", "moves", 0, rotate, True),
        Operation("brightness", "colours", 0, enhance, True),
        Operation("saturation", "colours", 0, enhance, True),
        Operation("contrast", "colours", 0, enhance, True),
        Operation("sharpness", "colours", 0, enhance, True),
        Operation("posterize", "colours", 8, bits),
        Operation("solarize", "colours", 255, solarize),
        Operation("autocontrast", "colours", 0, 0),
        Operation("equalize", "colours", 0, 0),
    )


MILD = _space(shear=0.3, shift=0.1, rotate=30, enhance=0.8, bits=4, solarize=128)
WIDE = _space(shear=0.99, shift=1 / 3, rotate=135, enhance=0.99, bits=2, solarize=0)  # torchvision's
RAND = _space(shear=0.3, shift=150 / 331, rotate=30, enhance=0.9, bits=4, solarize=0)  # torchvision's
# The factors of SSD (arXiv 1512.02325) and torchvision's RandomPhotometricDistort.
PHOTOMETRIC = {"brightness": (0.875, 1.125), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5)}
HUE = 0.05  # largest change, of a full turn


class Augment:
    """Draws the changes of training pictures; every draw comes from the generator of the call.

    ``placed``: labels have places in the picture (boxes, masks), so operations that move things and erasing
    are left out.
    """

    def __init__(self, settings: Augmentation, placed: bool = False) -> None:
        self.settings, self.placed = settings, placed

    @staticmethod
    def view(settings: Augmentation | None, epoch: int) -> int | None:
        """The view that an epoch shows, a number that seeds its randomness; None: no augmentation."""
        if settings is None or settings.views == 1:
            return None
        return epoch if settings.views is None else epoch % settings.views

    def sample(self, rng: np.random.Generator, source: Size, pre: Preprocess) -> Geometry:
        """Mirror, and a random resized crop (Inception, arXiv 1409.4842) or scale jitter, as a geometry."""
        s, (width, height) = self.settings, source
        hflip, vflip = bool(rng.random() < s.hflip), bool(rng.random() < s.vflip)
        plain = pre.geometry(source)
        if s.scale_jitter is not None:
            return _jittered(rng, s.scale_jitter, plain, pre, hflip, vflip)
        if s.scale == (1.0, 1.0):  # the same crop as in evaluation
            return pre.place(source, plain.crop, hflip, vflip)
        shape = pre.size[0] / pre.size[1] if pre.fit == "crop" else width / height
        for _ in range(10):
            area = width * height * rng.uniform(*s.scale)
            ratio = shape * math.exp(rng.uniform(math.log(s.ratio[0]), math.log(s.ratio[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
                return pre.place(source, (x, y, x + w, y + h), hflip, vflip)
        # No crop of that area and shape fits into this picture.
        return pre.place(source, plain.crop, hflip, vflip)

    def pixels(self, rng: np.random.Generator, x_CHW: Pixels) -> Pixels:
        """Apply the policy's operations, then random erasing, to rendered pixels (3, H, W) uint8."""
        policy = self.settings.policy
        if policy == "colour":
            x_CHW = self._colour(rng, x_CHW)
        elif policy == "photometric":
            x_CHW = _changed(x_CHW, lambda picture: _distorted(rng, picture))
        elif policy in ("mild", "wide", "rand"):
            x_CHW = _changed(x_CHW, lambda picture: self._operated(rng, picture))
        if self.settings.erase and not self.placed and rng.random() < self.settings.erase:
            x_CHW = _erased(rng, x_CHW)
        return x_CHW

    def _operated(self, rng: np.random.Generator, picture: Image.Image) -> Image.Image:
        """TrivialAugment: one operation at a random strength; RandAugment: several at a fixed one."""
        policy = self.settings.policy
        space = {"mild": MILD, "wide": WIDE, "rand": RAND}[policy]
        allowed = [op for op in space if not (self.placed and op.kind == "moves")]
        for _ in range(RAND_OPERATIONS if policy == "rand" else 1):
            op = allowed[int(rng.integers(len(allowed)))]
            strength = RAND_STRENGTH if policy == "rand" else int(rng.integers(BINS))
            value = op.low + (op.high - op.low) * strength / (BINS - 1)
            sign = -1.0 if op.signed and rng.random() < 0.5 else 1.0
            picture = operate(picture, op.name, sign * value)
        return picture

    def _colour(self, rng: np.random.Generator, x_CHW: Pixels) -> Pixels:
        """Brightness, contrast and saturation by factors in 1 +- their settings, as one linear map of RGB."""
        s = self.settings
        if not (s.brightness or s.contrast or s.saturation):
            return x_CHW
        b, c, t = (1 + rng.uniform(-v, v) for v in (s.brightness, s.contrast, s.saturation))
        pixels = x_CHW.reshape(3, -1).astype(np.float32)
        luma = LUMA.astype(np.float32)
        mean_grey = float(luma @ pixels.mean(axis=1))
        mix = np.float32(b * c) * (np.float32(t) * np.eye(3, dtype=np.float32) + np.float32(1 - t) * luma)
        out = mix @ pixels
        out += np.float32(b * (1 - c) * mean_grey + 0.5)  # + 0.5: the cast below truncates
        return np.clip(out, 0, 255, out=out).astype(np.uint8).reshape(x_CHW.shape)


def operate(picture: Image.Image, name: str, value: float) -> Image.Image:
    """Apply one operation of `_space`, in its units, to an RGB picture; an unknown one changes nothing."""
    width, height = picture.size
    turn = math.radians(value)
    moves: dict[str, tuple[float, float, float, float, float, float]] = {
        "shear_x": (1, value, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, value, 1, 0),
        "shift_x": (1, 0, -value * width, 0, 1, 0),
        "shift_y": (1, 0, 0, 0, 1, -value * height),
        "rotate": (math.cos(turn), math.sin(turn), 0, -math.sin(turn), math.cos(turn), 0),
    }
    if name in moves:
        a, b, c, d, e, f = moves[name]
        x, y = width / 2, height / 2  # the centre stays where it is
        data = (a, b, c + x - a * x - b * y, d, e, f + y - d * x - e * y)
        return picture.transform(
            picture.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=PADDING
        )
    enhancers: dict[str, Callable[[Image.Image], ImageEnhance._Enhance]] = {
        "brightness": ImageEnhance.Brightness, "saturation": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast, "sharpness": ImageEnhance.Sharpness,
    }  # fmt: skip
    if name in enhancers:
        return enhancers[name](picture).enhance(1 + value)
    if name == "posterize":
        return ImageOps.posterize(picture, round(value))
    if name == "solarize":
        return ImageOps.solarize(picture, round(value))
    if name == "autocontrast":
        return ImageOps.autocontrast(picture)
    if name == "equalize":
        return ImageOps.equalize(picture)
    return picture


def _changed(x_CHW: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    picture = Image.fromarray(np.ascontiguousarray(x_CHW.transpose(1, 2, 0)))
    return np.ascontiguousarray(np.asarray(change(picture)).transpose(2, 0, 1))


def _distorted(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Brightness, contrast, saturation, hue, each with probability 1/2; contrast early or last."""
    names = ["brightness", "contrast", "saturation", "hue"]
    if rng.random() < 0.5:
        names = ["brightness", "saturation", "hue", "contrast"]
    for name in names:
        happens, draw = rng.random() < 0.5, rng.random()
        if happens and name == "hue":
            hue, saturation, value = picture.convert("HSV").split()
            moved = np.asarray(hue).astype(np.int64) + round((2 * draw - 1) * HUE * 255)
            hue = Image.fromarray((moved % 256).astype(np.uint8))
            picture = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
        elif happens:
            low, high = PHOTOMETRIC[name]
            picture = operate(picture, name, low + (high - low) * draw - 1)
    return picture


def _erased(rng: np.random.Generator, x_CHW: Pixels) -> Pixels:
    """Fill a rectangle of 2 to 33 % of the area and aspect ratio 0.3 to 3.3 with the mean colour."""
    _, height, width = x_CHW.shape
    area, ratio = (
        height * width * rng.uniform(0.02, 0.33),
        math.exp(rng.uniform(math.log(0.3), math.log(3.3))),
    )
    w, h = min(width, round(math.sqrt(area * ratio))), min(height, round(math.sqrt(area / ratio)))
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    out = x_CHW.copy()
    out[:, y : y + h, x : x + w] = x_CHW.reshape(3, -1).mean(axis=1).round()[:, None, None]
    return out


def balanced(rng: np.random.Generator, drawn: Geometry, ids_HW: Pixels, unknown: int) -> Geometry:
    """Move the crop onto a random pixel of a random class of the picture, all classes being equally likely.

    ``ids_HW``: classes of the source's pixels, ``unknown`` for none.
    """
    classes = np.flatnonzero(np.bincount(ids_HW.ravel(), minlength=unknown + 1)[:unknown])
    if not len(classes):
        return drawn
    pixel_N = np.flatnonzero(ids_HW == classes[int(rng.integers(len(classes)))])
    y, x = divmod(int(pixel_N[int(rng.integers(len(pixel_N)))]), ids_HW.shape[1])
    x0, y0, x1, y1 = drawn.crop
    left, top = _start(rng, x, x1 - x0, drawn.source[0]), _start(rng, y, y1 - y0, drawn.source[1])
    return replace(drawn, crop=(left, top, left + x1 - x0, top + y1 - y0))


def _start(rng: np.random.Generator, at: int, length: float, side: int) -> float:
    """A random start of an interval of this length, inside the side, that contains the pixel ``at``."""
    low, high = max(0.0, at + 1 - length), min(float(at), side - length)
    return low + max(0.0, high - low) * rng.random()


def _jittered(
    rng: np.random.Generator,
    jitter: tuple[float, float],
    plain: Geometry,
    pre: Preprocess,
    hflip: bool,
    vflip: bool,
) -> Geometry:
    """Scale jitter, common in detection and segmentation since Mask R-CNN: scale by a random factor.

    Above 1 a random part of the picture fills the input, below 1 the picture has a random place in padding.
    """
    factor = math.exp(rng.uniform(math.log(jitter[0]), math.log(jitter[1])))
    x0, y0, x1, y1 = plain.crop
    if factor >= 1:
        w, h = (x1 - x0) / factor, (y1 - y0) / factor
        x, y = x0 + (x1 - x0 - w) * rng.random(), y0 + (y1 - y0 - h) * rng.random()
        crop: Box = (x, y, x + w, y + h)
        return pre.place(plain.source, crop, hflip, vflip)
    px0, py0, px1, py1 = plain.placed
    w, h = max(1, round((px1 - px0) * factor)), max(1, round((py1 - py0) * factor))
    x, y = int(rng.integers(pre.size[0] - w + 1)), int(rng.integers(pre.size[1] - h + 1))
    return Geometry(plain.source, plain.crop, pre.size, (x, y, x + w, y + h), hflip, vflip)
