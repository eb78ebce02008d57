"""The rows of the benchmark: data, lengths and settings that all arms of a row share."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SPLITS = ("validation", "test")
OURS = ("train", "tune")
RECIPES = Path(__file__).resolve().parents[3] / "jobs" / "recipes"


@dataclass(frozen=True)
class Case:
    """One row: a data set, how many training pictures a class (None: all), and what every arm is given."""

    data: str
    epochs: int
    seeds: int
    task: str = "classification"
    settings: dict[str, Any] = field(default_factory=dict)
    per_class: int | None = None
    recipe: bool = False  # settings are those of jobs/recipes, for all arms
    peers: tuple[str, ...] = ("plain", "probe")
    others: tuple[str, ...] = ()  # arms that are told beside, and are no peers
    figure: str = "pooled"  # what arms are compared by
    bundles: str | None = None  # the row whose bundles are judged on copies; nothing is trained

    @property
    def arms(self) -> tuple[str, ...]:
        """Ours and theirs in turn."""
        theirs = (*self.others, *self.peers)
        return (OURS[0], *theirs[:1], OURS[1], *theirs[1:])


NANO = {"input.size": 96}
LITE0 = {
    "model.backbone": "tf_efficientnet_lite0", "input.mean": [0.5, 0.5, 0.5], "input.std": [0.5, 0.5, 0.5],
    "input.size": 128,
}  # fmt: skip
FEW = ((5, 60), (20, 40), (50, 20))  # pictures a class, epochs
CASES = {
    "clothing-nano": Case("clothing", 8, 5, settings=NANO, others=("before-train", "before")),
    "clothing-lite0": Case("clothing", 8, 3, settings=LITE0),
    **{f"clothing-nano-{n}": Case("clothing", e, 5, settings=NANO, per_class=n) for n, e in FEW},
    **{f"clothing-lite0-{n}": Case("clothing", e, 5, settings=LITE0, per_class=n) for n, e in FEW},
    **{
        name: Case(name, 10, 3, task, recipe=True, peers=("torchvision",), figure="test")
        for name, task in (
            ("bccd", "detection"), ("camvid", "segmentation"), ("orl-faces", "face_recognition"),
        )
    },
    "clothing-copies": Case("clothing", 8, 5, peers=("before",), figure="copies", bundles="clothing-nano"),
}  # fmt: skip


def pictures(case: Case, root: Path, work: Path, seed: int) -> Path:
    """The folder of pictures; with few a class, links to a random draw of them."""
    source = root / case.data
    if case.per_class is None:
        return source
    folder = work / f"{case.data}-{case.per_class}-{seed}"
    if not folder.exists():
        rng = np.random.default_rng(seed)
        for found in sorted((source / "train").iterdir()):
            files = sorted(found.iterdir())
            target = folder / "train" / found.name
            target.mkdir(parents=True)
            for i in rng.permutation(len(files))[: case.per_class]:
                os.symlink(files[i], target / files[i].name)
        for split in SPLITS:
            os.symlink(source / split, folder / split)
    return folder


def weights(root: Path) -> Path:
    """Of the backbone lite0; it lies beside the data."""
    return root.parent / "backbones" / "efficientnet-lite0-imagenet.safetensors"
