"""Accuracy of a search's winner beside a linear probe, training from scratch and a plain PyTorch loop.

    tlray tune jobs/recipes/clothing.yaml data.uri=INGESTED
    python tests/bench/bench_accuracy.py FOLDER runs/clothing [--only plain]

The probe (frozen backbone) has the best learning rate that the search found for it. From scratch has the
winner's settings, all stages trained, as many epochs and every stage at the head's learning rate. The plain
loop is PyTorch with torchvision's ImageFolder: the same backbone, weights, size, batch and epochs, AdamW
with a cosine, its learning rate the best of three by validation accuracy. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms.v2 as T
from torch.nn import functional as F
from torchvision.datasets import ImageFolder

from tlray import config, runtime, storage
from tlray.inference.evaluate import evaluate
from tlray.models.backbone import Backbone
from tlray.report.run_files import contenders
from tlray.training import loop
from tlray.training.worker import LocalWorker

RATES = (3e-4, 1e-3, 3e-3)
Scores = dict[str, float]  # of the metric that decides, by split; seconds of training


def scores(bundle: str, data: str, metric: str, seconds: float) -> Scores:
    found = {split: evaluate(bundle, data, split)["metrics"][metric] for split in ("validation", "test")}
    return {**found, "seconds": seconds}


def again(settings: config.Config, name: str, metric: str, **changes: Any) -> Scores:
    """Train in this process with other settings."""
    chosen = runtime.placed(settings.override({"name": name, **changes}))
    storage.delete(chosen.run_uri)
    records = list(loop.epochs(chosen, LocalWorker(runtime.cores()), lambda event: None))
    return scores(storage.join(chosen.run_uri, "best"), chosen.data.uri, metric, records[-1]["seconds"])


def winner(settings: config.Config) -> tuple[dict[str, Any], dict[str, Any], Scores]:
    """Of a finished search: what trials.json holds, the winner's row in it, the winner's scores."""
    story = storage.read_json(storage.join(settings.run_uri, "trials.json"))
    best = next(row for row in contenders(story) if row["id"] == story["best"])
    bundle, data = storage.join(settings.run_uri, "best"), storage.absolute(settings.data.uri)
    return story, best, scores(bundle, data, story["goal"]["name"], best["seconds"])


def arms(settings: config.Config) -> dict[str, Scores]:
    """The winner of a finished search beside the best frozen backbone and training from scratch."""
    story, best, won = winner(settings)
    metric, trials = story["goal"]["name"], story["trials"]
    frozen = [row for row in trials if row["params"]["model.freeze"] == "all" and row["best"] is not None]
    probe = max(frozen, key=lambda row: row["best"])["params"]
    scratch = {
        **best["params"], "model.weights": "none", "model.freeze": 0, "optim.backbone_lr_ratio": 1.0,
    }  # fmt: skip
    return {
        "winner": won,
        "frozen": again(settings, f"{settings.name}-frozen", metric, **probe),
        "from scratch": again(settings, f"{settings.name}-scratch", metric, **scratch),
    }


def plain(folder: Path, settings: config.Config, lr: float, threads: int = 2) -> dict[str, float]:
    """A loop as anybody would write it."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    size, epochs = settings.input.size or 64, settings.train.epochs
    grow = [T.RandomResizedCrop(size, scale=(0.35, 1)), T.RandomHorizontalFlip(), T.PILToTensor()]
    see = [T.Resize(size), T.CenterCrop(size), T.PILToTensor()]
    data = {
        split: ImageFolder(str(folder / split), T.Compose(grow if split == "train" else see))
        for split in ("train", "validation", "test")
    }
    load = {
        split: torch.utils.data.DataLoader(
            d, settings.train.batch_size, shuffle=split == "train", num_workers=2
        )
        for split, d in data.items()
    }
    backbone = Backbone(settings.model.backbone, settings.model.weights, size=size)
    head = torch.nn.Linear(backbone.num_features, len(data["train"].classes))
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(load["train"]))
    began = time.perf_counter()
    best = {"validation": -math.inf, "test": 0.0}
    for _ in range(epochs):
        backbone.train()
        for x, y in load["train"]:
            loss = F.cross_entropy(head(backbone.embed(backbone(x))), y, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        backbone.eval()
        now = {}
        for split in ("validation", "test"):
            with torch.inference_mode():
                hits = [(head(backbone.embed(backbone(x))).argmax(1) == y).sum() for x, y in load[split]]
            now[split] = int(sum(hits)) / len(data[split])
        if now["validation"] > best["validation"]:
            best = now
    return {**best, "seconds": time.perf_counter() - began, "lr": lr}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("folder", "run"):
        parser.add_argument(name)
    parser.add_argument("--only", choices=["plain", "tlray"])
    args = parser.parse_args()
    base = config.parse(storage.read_json(storage.join(args.run, "config.json")), args.run)
    found: dict[str, Scores] = {}
    if args.only != "plain":
        with runtime.session():
            found |= arms(base)
    if args.only != "tlray":
        tries = []
        for lr in RATES:
            tries.append(plain(Path(args.folder), base, lr))
            print(f"plain lr {lr:g}: {tries[-1]}", file=sys.stderr)
        found["plain loop"] = max(tries, key=lambda t: t["validation"])
    for name, row in found.items():
        line = f"{name:14} validation {row['validation']:.4f}  test {row['test']:.4f}  {row['seconds']:.0f} s"
        print(line, file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
