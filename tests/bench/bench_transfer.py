"""What users get: `tlray train` by default and a search's winner, beside a plain loop and an exact probe.

    python tests/bench/bench_transfer.py ../shared/data WORK [--row NAME] [--arm NAME] [--seeds 5] [--json]

Each row is a data set with a backbone, a size and a number of epochs that all arms share; each seed is a
whole run of every arm, one after the other, so that all meet the machine alike. What WORK holds is not run
again. Winners and rates are chosen on validation; test is only told, and `pooled` is both splits together.

    train     `tlray train` with nothing set but data, backbone, size, epochs and seed
    tune      `tlray tune`, likewise
    plain     twenty lines of PyTorch: AdamW and a cosine, random crops and flips, the best of three rates
    probe     scikit-learn's logistic regression over frozen pooled features, the best of five strengths
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from tlray import storage, stream, tasks
from tlray.backbone import Backbone
from tlray.dataset import Dataset
from tlray.image import Preprocess

SPLITS = ("validation", "test")
RATES = (3e-4, 1e-3, 3e-3)
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of scikit-learn's C
LITE0 = {
    "model.backbone": "tf_efficientnet_lite0", "input.mean": [0.5, 0.5, 0.5], "input.std": [0.5, 0.5, 0.5],
    "input.size": 128,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One row: a data set, how many training pictures a class (None: all), and what every arm is given."""

    data: str
    epochs: int
    settings: dict[str, Any] = field(default_factory=dict)
    per_class: int | None = None


NANO = {"input.size": 96}
CASES = {
    "clothing-nano": Case("clothing", 8, NANO),
    "clothing-lite0": Case("clothing", 8, LITE0),
    **{f"clothing-nano-{n}": Case("clothing", e, NANO, n) for n, e in ((5, 60), (20, 40), (50, 20))},
    **{f"clothing-lite0-{n}": Case("clothing", e, LITE0, n) for n, e in ((5, 60), (20, 40), (50, 20))},
}


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


def tlray(*args: str) -> dict[str, Any]:
    """The last line of a verb with --json."""
    done = subprocess.run([sys.executable, "-m", "tlray", *args, "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"tlray {' '.join(args)}: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ours(verb: str, case: Case, data: Path, root: Path, work: Path, seed: int, name: str) -> dict[str, float]:
    """`tlray train` or `tlray tune` as a user would run it."""
    recipe = work / f"{name}-{verb}.yaml"
    recipe.write_text("task: {name: classification}\n")
    given = {**case.settings, "train.epochs": case.epochs, "seed": seed, "data.uri": str(data)}
    given |= {"name": f"{name}-{verb}", "runs": str(work / "runs"), "search.cache": "null"}
    if case.settings.get("model.backbone"):
        given["model.weights"] = str(weights(root))
    began = time.perf_counter()
    found = tlray(verb, str(recipe), *(f"{key}={json.dumps(value)}" for key, value in given.items()))
    seconds = time.perf_counter() - began
    values = {
        split: tlray("evaluate", found["bundle"], str(data), "--split", split)["metrics"]["accuracy"]
        for split in SPLITS
    }
    shutil.rmtree(work / "runs" / f"{name}-{verb}" / "checkpoints", ignore_errors=True)
    return {**values, "seconds": seconds}


def weights(root: Path) -> Path:
    return root.parent / "backbones" / "efficientnet-lite0-imagenet.safetensors"


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
    from sklearn.linear_model import LogisticRegression

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


def table(found: dict[str, Any]) -> str:
    """Means over seeds, and their standard deviation of the pooled figure."""
    lines = ["| row | arm | seeds | validation | test | pooled | sd | minutes |", "| --- " * 8 + "|"]
    for name, arms in found.items():
        for arm, tries in arms.items():
            values = [[one[key] for one in tries] for key in (*SPLITS, "pooled")]
            sd = statistics.stdev(values[2]) if len(tries) > 1 else math.nan
            means = " | ".join(f"{statistics.mean(v):.4f}" for v in values)
            minutes = statistics.mean(one["seconds"] for one in tries) / 60
            lines.append(f"| {name} | {arm} | {len(tries)} | {means} | {sd:.4f} | {minutes:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--row", action="append", choices=sorted(CASES))
    parser.add_argument("--arm", action="append", choices=["train", "tune", "plain", "probe"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    root, work = args.data.resolve(), args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    found: dict[str, Any] = {}
    for seed in range(args.seeds):
        for row in args.row or CASES:
            case = CASES[row]
            name = f"{row}-{seed}"
            source = pictures(case, root, work, seed)
            data = work / "data" / (source.name if case.per_class else case.data)
            if not (data / "dataset.json").exists():
                tlray("ingest", str(source), str(data), "--task", "classification")
            rows = {split: Dataset.open(str(data)).num_rows(split) for split in SPLITS}
            for arm in args.arm or ("train", "plain", "tune", "probe"):
                kept = storage.join(str(work), f"{name}-{arm}.json")
                if not storage.exists(kept):
                    if arm in ("train", "tune"):
                        told = ours(arm, case, data, root, work, seed, name)
                    else:
                        told = (plain if arm == "plain" else probe)(case, data, root, seed)
                    told["pooled"] = sum(told[s] * rows[s] for s in SPLITS) / sum(rows.values())
                    storage.write_json(kept, told)
                    print(name, arm, {k: round(v, 4) for k, v in told.items()}, file=sys.stderr, flush=True)
                found.setdefault(row, {}).setdefault(arm, []).append(storage.read_json(kept))
    print(table(found))
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
