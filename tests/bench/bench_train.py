"""Training pictures/s beside a plain PyTorch loop: the same model, pictures, batch, threads, augmentation.

    python tests/bench/bench_train.py DATA_FOLDER INGESTED [--repeat 5] [--epochs 2] [--size 96]

DATA_FOLDER/train/CLASS/*.jpg is read by the peer (torchvision's ImageFolder and a DataLoader with as many
workers as tlray renders with), INGESTED is what `tlray ingest DATA_FOLDER INGESTED` made of it. Arms are
interleaved; start-up (the first batch) is left out on both sides. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2 as T
from torchvision.datasets import ImageFolder

from tlray import config, runtime, tasks
from tlray.data import loader as stream
from tlray.data.dataset import Dataset
from tlray.data.sampler import Order
from tlray.training.build import build_model
from tlray.training.candidate import Candidate


def make(args: Any) -> tuple[config.Config, Candidate, Dataset]:
    settings = config.parse(
        {
            "data": {"uri": args.ingested}, "input": {"size": args.size},
            "train": {"epochs": args.epochs, "batch_size": args.batch_size},
            "runs": tempfile.mkdtemp(),
        },
        "bench",
    )  # fmt: skip
    data, task = Dataset.open(args.ingested), tasks.load({"name": "classification"})
    model = build_model(settings, task, data.labels(), None, data.fingerprint)
    steps = -(-data.num_rows("train") // args.batch_size)
    candidate = Candidate(model, settings, steps, torch.device("cpu"))
    candidate.train_mode()
    return settings, candidate, data


def ours(args: Any) -> float:
    """Pictures/s of the stream and the candidate's step: what the loop does between two validations."""
    settings, candidate, data = make(args)
    order = Order(data.group_rows("train"), args.batch_size, 0)
    source = stream.Source(
        args.ingested, "train", candidate.model.task, tuple(data.labels()), candidate.model.preprocess,
        settings.augment,
    )  # fmt: skip
    seen, began = 0, 0.0
    for step, batch in enumerate(
        stream.train_batches(source, order, 0, 0, args.epochs * order.steps_per_epoch)
    ):
        x, targets = stream.to_device(batch, torch.device("cpu"))
        candidate.step(x, targets, step, 1.0)
        if step == 0:
            began = time.perf_counter()
        else:
            seen += batch.num_rows
    return seen / (time.perf_counter() - began)


def plain(args: Any) -> float:
    """Pictures/s of the bare loop."""
    settings, candidate, _ = make(args)
    a = settings.augment
    jitter = T.ColorJitter(a.brightness, a.contrast, a.saturation)
    steps = [
        T.RandomResizedCrop(args.size, scale=a.scale, ratio=a.ratio), T.RandomHorizontalFlip(),
        jitter, T.PILToTensor(),
    ]  # fmt: skip
    folder = ImageFolder(str(Path(args.folder) / "train"), T.Compose(steps))
    loader = torch.utils.data.DataLoader(
        folder, args.batch_size, shuffle=True, num_workers=args.workers, persistent_workers=True
    )
    module, optimizer = candidate.model.module, candidate.optimizer
    seen, began, first = 0, 0.0, True
    for _ in range(args.epochs):
        for x, y in loader:
            loss = module(x, {"label": y})
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            if first:
                began, first = time.perf_counter(), False
            else:
                seen += len(y)
    return seen / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("ingested")
    for name, value in (
        ("repeat", 5),
        ("epochs", 1),
        ("size", 96),
        ("batch-size", 64),
        ("threads", 2),
        ("workers", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    found: dict[str, list[float]] = {"tlray": [], "plain": []}
    with runtime.session():
        ours(args)  # Ray's rendering processes load their code once, which is start-up
        for turn in range(args.repeat):
            for name, arm in (("tlray", ours), ("plain", plain))[:: 1 if turn % 2 == 0 else -1]:
                torch.manual_seed(turn)
                found[name].append(arm(args))
                print(f"{turn + 1}/{args.repeat} {name}: {found[name][-1]:.1f} pictures/s", file=sys.stderr)
    ratios = np.divide(found["tlray"], found["plain"])
    print(json.dumps({
        **{name: {"median": statistics.median(v), "min": min(v), "max": max(v)} for name, v in found.items()},
        "ratio": {"median": float(np.median(ratios)), "min": float(ratios.min()), "max": float(ratios.max())},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
