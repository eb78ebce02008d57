"""A classifier as anybody would train it, and an exact probe of frozen features."""

from __future__ import annotations

import math
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from tlray import tasks
from tlray.data import loader
from tlray.data.dataset import Dataset
from tlray.data.image import Preprocess
from tlray.models.backbone import Backbone

from .cases import SPLITS, Case, weights

RATES = (3e-4, 1e-3, 3e-3)
BATCH = 64
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of scikit-learn's C
Pictures = dict[str, tuple[torch.Tensor, torch.Tensor]]


def backbone_of(case: Case, root: Path) -> Backbone:
    """The row's backbone with its pretrained weights."""
    given = case.settings
    name = given.get("model.backbone", "resnet10t-nano")
    origin = str(weights(root)) if "model.backbone" in given else "builtin"
    size, mean, std = (given.get(f"input.{key}") for key in ("size", "mean", "std"))
    return Backbone(name, origin, size=size, mean=mean, std=std)


@lru_cache(maxsize=1)  # arms and rates of a row follow one another
def decoded(data: Path, size: int) -> Pictures:
    """Of each split x_BCHW, whole pictures a third larger than the input, and their labels (B,)."""
    large = size * 4 // 3
    pre = Preprocess(size=(large, large), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    found, opened = {}, Dataset.open(str(data))
    task = tasks.load({"name": "classification"})
    for split in ("train", *SPLITS):
        rows = np.arange(opened.num_rows(split))
        source = loader.Source(str(data), split, task, tuple(opened.labels()), pre)
        x = torch.cat(
            [loader.pixels(source, opened.fingerprint, rows[i : i + 256]) for i in range(0, len(rows), 256)]
        )
        found[split] = x, torch.from_numpy(opened.read(split, ["label"])["label"].to_numpy().copy())
    return found


def warm_cosine(
    optimizer: torch.optim.Optimizer, steps: int, warm: int
) -> torch.optim.lr_scheduler.SequentialLR:
    """A linear rise over the first steps, then a cosine to 0."""
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 0.001, total_iters=warm)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warm))
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], [warm])


def seen(x_BCHW: torch.Tensor, size: int) -> torch.Tensor:
    return F.interpolate(x_BCHW.float(), (size, size), mode="bilinear", antialias=True)


def score(backbone: Backbone, head: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, size: int) -> float:
    with torch.inference_mode():
        said = [head(backbone.embed(backbone(seen(part, size)))).argmax(1) for part in x.split(128)]
    return float((torch.cat(said) == y).float().mean())


def plain(case: Case, data: Path, root: Path, seed: int) -> dict[str, float]:
    """A loop as anybody would write it, the best of three rates by validation."""
    import torchvision.transforms.v2 as T

    began, tries, size = time.perf_counter(), [], case.settings["input.size"]
    for lr in RATES:
        torch.manual_seed(seed)
        backbone, load = backbone_of(case, root), decoded(data, size)
        x, y = load["train"]
        head = torch.nn.Linear(backbone.num_features, int(y.max()) + 1)
        grow = T.Compose(
            [T.RandomResizedCrop(size, scale=(0.35, 1.0), antialias=True), T.RandomHorizontalFlip()]
        )
        parameters = [*backbone.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.02)
        batches = math.ceil(len(y) / BATCH)
        steps = case.epochs * batches
        schedule = warm_cosine(optimizer, steps, max(1, steps // 10))
        best = {"validation": -1.0, "test": 0.0}
        for _ in range(case.epochs):
            backbone.train()
            for at in torch.randperm(len(y)).tensor_split(batches):  # of near-equal size
                pictures = torch.stack([grow(one) for one in x[at]])
                loss = F.cross_entropy(head(backbone.embed(backbone(pictures))), y[at])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            backbone.eval()
            now = {s: score(backbone, head, *load[s], size) for s in SPLITS}
            if now["validation"] > best["validation"]:
                best = now
        tries.append({**best, "lr": lr})
    return {**max(tries, key=lambda one: one["validation"]), "seconds": time.perf_counter() - began}


def probe(case: Case, data: Path, root: Path, seed: int) -> dict[str, float]:
    """A logistic regression over standardised frozen features, the best of five strengths by validation."""
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    began, size = time.perf_counter(), case.settings["input.size"]
    backbone, load = backbone_of(case, root), decoded(data, size)
    backbone.eval()
    features = {}
    with torch.inference_mode():
        for split, (x, _) in load.items():
            parts = [backbone.embed(backbone(seen(x[i : i + 128], size))) for i in range(0, len(x), 128)]
            features[split] = torch.cat(parts).numpy()
    mean, std = features["train"].mean(0), features["train"].std(0) + 1e-6
    best = {"validation": -1.0, "test": 0.0}
    for strength in STRENGTHS:
        made = LogisticRegression(C=strength, max_iter=1000)
        made.fit((features["train"] - mean) / std, load["train"][1].numpy())
        now = {s: float(made.score((features[s] - mean) / std, load[s][1].numpy())) for s in SPLITS}
        best = max(best, now, key=lambda one: one["validation"])
    return {**best, "seconds": time.perf_counter() - began}
