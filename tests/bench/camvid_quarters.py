"""Street scenes for a task of several labels: quarters of CamVid's pictures, and the classes in each.

    python tests/bench/camvid_quarters.py ../shared/data/camvid WORK/camvid-quarters
    tlray ingest WORK/camvid-quarters data/camvid-quarters --task multilabel

A quarter has the classes that fill at least 2 % of its mask; CamVid's splits stay as they are, so no street
is in two of them.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
LEAST = 0.02
SPLITS = {"train": "train", "val": "validation", "test": "test"}


def classes(mask_HW: np.ndarray) -> list[str]:
    """Names of the classes that fill at least `LEAST` of a mask of ids."""
    counts = np.bincount(mask_HW.ravel(), minlength=len(NAMES))
    return [name for name, count in zip(NAMES, counts, strict=False) if count >= LEAST * mask_HW.size]


def write(source: Path, folder: Path, every: int = 1) -> Path:
    """Quarters as JPEG and ``labels.csv`` (path, split, labels); of one picture in ``every``."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, split in SPLITS.items():
        for file in sorted((source / name / "images").iterdir())[::every]:
            picture = Image.open(file).convert("RGB")
            mask_HW = np.asarray(Image.open(source / name / "masks" / f"{file.stem}.png"))
            width, height = picture.width // 2, picture.height // 2
            for number, (x, y) in enumerate(((0, 0), (width, 0), (0, height), (width, height))):
                path = f"{file.stem}-{number}.jpg"
                picture.crop((x, y, x + width, y + height)).save(folder / path, quality=95)
                lines.append((path, split, ";".join(classes(mask_HW[y : y + height, x : x + width]))))
    with (folder / "labels.csv").open("w", newline="") as text:
        csv.writer(text).writerows([("path", "split", "labels"), *lines])
    return folder


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:3]))
