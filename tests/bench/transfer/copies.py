"""Copies of a test split with blur, noise, JPEG and contrast: how a model stands what it was not trained for.

Strengths are the middle ones, 3 of 5, of ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261).
"""

from __future__ import annotations

import io
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

BLUR, NOISE, QUALITY, CONTRAST = 3.0, 0.18, 15, 0.2


def blurred(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(BLUR))


def noisy(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    x_HWC = np.asarray(picture) / 255
    x_HWC = x_HWC + rng.normal(0, NOISE, x_HWC.shape)
    return Image.fromarray((x_HWC.clip(0, 1) * 255).round().astype(np.uint8))


def compressed(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=QUALITY)
    return Image.open(stored).convert("RGB")


def faded(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    x_HWC = np.asarray(picture) / 255
    mean_C = x_HWC.mean(axis=(0, 1))
    x_HWC = (x_HWC - mean_C) * CONTRAST + mean_C
    return Image.fromarray((x_HWC * 255).round().astype(np.uint8))


COPIES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "blur": blurred, "noise": noisy, "jpeg": compressed, "contrast": faded,
}  # fmt: skip


def write(source: Path, folder: Path, kind: str) -> Path:
    """Class folders of the changed test split; of train and validation a picture a class, for the labels.

    What is done to a picture depends on its path alone. Lossless files, so that each copy has one change.
    """
    if folder.exists():
        return folder
    aside = folder.with_name(f"{folder.name}-part")
    shutil.rmtree(aside, ignore_errors=True)
    for file in sorted((source / "test").glob("*/*")):
        path = file.relative_to(source)
        rng = np.random.default_rng(zlib.crc32(str(path).encode()))
        target = (aside / path).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        COPIES[kind](Image.open(file).convert("RGB"), rng).save(target, compress_level=1)
    for split in ("train", "validation"):
        for found in sorted((source / split).iterdir()):
            file = min(found.iterdir())
            (aside / split / found.name).mkdir(parents=True)
            os.symlink(file.resolve(), aside / split / found.name / file.name)
    aside.rename(folder)
    return folder
