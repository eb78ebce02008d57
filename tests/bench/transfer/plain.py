"""A classifier as anybody would train it, and an exact probe of frozen features."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from tlray import stream, tasks
from tlray.backbone import Backbone
from tlray.dataset import Dataset
from tlray.image import Preprocess

from .cases import SPLITS, Case, weights

RATES = (3e-4, 1e-3, 3e-3)
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of scikit-learn's C


def decoded(
    case: Case, data: Path, root: Path
) -> tuple[Backbone, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """The backbone, and whole pictures a third larger than its input, decoded once, with their labels."""
    given = case.settings
    name = given.get("model.backbone", "resnet10t-nano")
    origin = str(weights(root)) if "model.backbone" in given else "builtin"
    size = given["input.size"]
    backbone = Backbone(name, origin, size=size, mean=given.get("input.mean"), std=given.get("input.std"))
    large = size * 4 // 3
    pre = Preprocess(size=(large, large), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    found, opened = {}, Dataset.open(str(data))
    task = tasks.load({"name": "classification"})
    for split in ("train", *SPLITS):
        rows = np.arange(opened.num_rows(split))
        source = stream.Source(str(data), split, task, tuple(opened.labels()), pre)
        x = torch.cat(
            [stream.pixels(source, opened.fingerprint, rows[i : i + 256]) for i in range(0, len(rows), 256)]
        )
        found[split] = x, torch.from_numpy(opened.read(split, ["label"])["label"].to_numpy().copy())
    return backbone, found


def seen(x_BCHW: torch.Tensor, size: int) -> torch.Tensor:
    return F.interpolate(x_BCHW.float(), (size, size), mode="bilinear", antialias=True)


def score(backbone: Backbone, head: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, size: int) -> float:
    with torch.inference_mode():
        said = [head(backbone.embed(backbone(seen(part, size)))).argmax(1) for part in x.split(128)]
    return float((torch.cat(said) == y).float().mean())


def plain(case: Case, data: Path, root: Path, seed: int) -> dict[str, float]:
    """A loop as anybody would write it, the best of three rates by validation."""
    import torchvision.transforms.v2 as T

    began, tries = time.perf_counter(), []
    for lr in RATES:
        torch.manual_seed(seed)
        backbone, load = decoded(case, data, root)
        (x, y), size = load["train"], case.settings["input.size"]
        head = torch.nn.Linear(backbone.num_features, int(y.max()) + 1)
        grow = T.Compose(
            [T.RandomResizedCrop(size, scale=(0.35, 1.0), antialias=True), T.RandomHorizontalFlip()]
        )
        parameters = [*backbone.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.02)
        batch = min(64, len(y))
        steps = case.epochs * math.ceil(len(y) / batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        best = {"validation": -1.0, "test": 0.0}
        for _ in range(case.epochs):
            backbone.train()
            for at in torch.randperm(len(y)).split(batch):
                if len(at) == 1:
                    continue  # batch norm cannot train on one
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
    backbone, load = decoded(case, data, root)
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
