"""mAP of a run beside its frozen backbone, training from scratch and a plain torchvision loop.

    tlray ingest ../shared/data/bccd data/bccd
    python tests/bench/bench_detection.py ../shared/data/bccd data/bccd [--epochs 12] [--only plain]

All have the recipe's settings, epochs and batches. The plain loop is one process with torchvision's own
RetinaNet, resizing, transforms.v2 and AdamW with a cosine: the same backbone, weights, pyramid, heads,
anchors and share of the learning rate for the backbone; its judge is torchmetrics. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2 as T
from PIL import Image
from pyarrow import fs as pafs
from torch import nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision import tv_tensors
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.retinanet import RetinaNetHead

from tlray import config, runtime, storage, tasks, train
from tlray.backbone import Backbone
from tlray.evaluate import evaluate
from tlray.formats import voc
from tlray.tasks.detection import Detector, Task, corners

RECIPE = str(Path(__file__).resolve().parents[2] / "jobs" / "recipes" / "bccd.yaml")
RUNS: dict[str, dict[str, Any]] = {
    "tuned": {},
    "frozen": {"model.freeze": "all"},
    "scratch": {"model.weights": "none", "optim.backbone_lr_ratio": 1.0},
}


def again(settings: config.Config, name: str, **changes: Any) -> dict[str, float]:
    """Train in this process with other settings; what the best epoch's bundle does on test."""
    chosen = runtime.placed(settings.override({"name": name, **changes}))
    storage.delete(chosen.run_uri)
    records = list(train.epochs(chosen, chosen.run_uri, train.Solo(runtime.cores()), lambda event: None))
    metrics = evaluate(storage.join(chosen.run_uri, "best"), chosen.data.uri)["metrics"]
    return {"validation": records[-1]["best"], **metrics, "seconds": records[-1]["seconds"]}


class Pictures(torch.utils.data.Dataset[Any]):
    """Pictures and boxes of a VOC folder, as torchvision's models take them."""

    def __init__(self, folder: Path, split: str, labels: list[str], transform: Any) -> None:
        rows = voc.index(pafs.LocalFileSystem(), str(folder)).to_pylist()
        self.rows = [row for row in rows if row["split"] == split]
        self.folder, self.labels, self.transform = folder, labels, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, n: int) -> Any:
        picture = Image.open(self.folder / self.rows[n]["path"]).convert("RGB")
        objects = self.rows[n]["objects"]
        boxes = corners(objects["bbox"]).clip(0, [*picture.size] * 2)
        sound = ((boxes[:, 2:] - boxes[:, :2]) > 1).all(1)
        named = torch.tensor([self.labels.index(c) for c in objects["category"]])[torch.from_numpy(sound)]
        shape = (picture.height, picture.width)
        target = {
            "boxes": tv_tensors.BoundingBoxes(
                boxes[sound], format="XYXY", canvas_size=shape, dtype=torch.float32
            ),
            "labels": named,
        }
        return self.transform(picture, target)


class Pyramid(nn.Module):
    """Backbone and pyramid as RetinaNet wants them: pixels in, maps by name out."""

    def __init__(self, detector: Detector, channels: int) -> None:
        super().__init__()
        self.backbone, self.fpn, self.stages = detector.backbone, detector.fpn, detector.stages
        self.out_channels = channels

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps: dict[str, torch.Tensor] = self.fpn(
            dict(zip(map(str, self.stages), self.backbone.pyramid(x, self.stages), strict=True))
        )
        return maps


def plain(folder: Path, settings: config.Config, labels: list[str]) -> dict[str, float]:
    """A loop as anybody would write it."""
    torch.manual_seed(0)
    torch.set_num_threads(runtime.cores())
    torch.set_flush_denormal(True)
    task = tasks.load(settings.task)
    assert isinstance(task, Task)
    size, batch, epochs, a = (
        settings.input.size or 64,
        settings.train.batch_size,
        settings.train.epochs,
        settings.augment,
    )
    grow = T.Compose(
        [
            T.RandomResizedCrop(
                (size * 3 // 4, size), scale=a.scale, ratio=(4 / 3 * a.ratio[0], 4 / 3 * a.ratio[1])
            ),
            T.RandomHorizontalFlip(a.hflip),
            T.RandomVerticalFlip(a.vflip),
            T.ColorJitter(a.brightness, a.contrast, a.saturation),
            T.SanitizeBoundingBoxes(min_size=1),
            T.ToImage(),
            T.ToDtype(torch.float32, scale=True),
        ]
    )
    see = T.Compose([T.ToImage(), T.ToDtype(torch.float32, scale=True)])
    load = {
        split: torch.utils.data.DataLoader(
            Pictures(folder, split, labels, grow if split == "train" else see), batch, split == "train",
            num_workers=1, drop_last=split == "train",
            collate_fn=lambda items: tuple(zip(*items, strict=True)),
        )
        for split in ("train", "validation", "test")
    }  # fmt: skip
    backbone = Backbone(settings.model.backbone, settings.model.weights, size=size)
    detector: Any = task.build(backbone, labels)
    model = RetinaNet(
        Pyramid(detector, task.channels), len(labels), min_size=size * 3 // 4, max_size=size,
        image_mean=[0.0] * 3, image_std=[1 / 255] * 3,  # the backbone normalises pixels of 0..255 itself
        anchor_generator=detector.anchors.grid,
        head=RetinaNetHead(task.channels, 9, len(labels), lambda channels: nn.GroupNorm(32, channels)),
        score_thresh=task.min_score, nms_thresh=task.nms_iou, detections_per_img=task.max_objects,
    )  # fmt: skip
    own = [p for n, p in model.named_parameters() if ".backbone." not in n]
    lr = settings.optim.lr
    groups = [{"params": own}, {"params": backbone.parameters(), "lr": lr * settings.optim.backbone_lr_ratio}]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=settings.optim.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(load["train"]))
    began, best = time.perf_counter(), {"validation": -1.0}
    for epoch in range(epochs):
        model.train()
        for pictures, targets in load["train"]:
            losses = model(list(pictures), [dict(t) for t in targets])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        now = judged(model, load["validation"])
        print(f"plain epoch {epoch + 1}: validation {now['map']:.4f}", file=sys.stderr)
        if now["map"] > best["validation"]:
            best = {"validation": now["map"], **judged(model, load["test"])}
    return {**best, "seconds": time.perf_counter() - began}


@torch.inference_mode()
def judged(model: nn.Module, batches: Any) -> dict[str, float]:
    model.eval()
    judge = MeanAveragePrecision(backend="faster_coco_eval")
    for pictures, targets in batches:
        judge.update(model(list(pictures)), [{k: torch.as_tensor(v) for k, v in t.items()} for t in targets])
    found = judge.compute()
    return {name: float(np.round(float(found[name]), 4)) for name in ("map", "map_50", "map_75")}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("folder", "ingested"):
        parser.add_argument(name)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--runs", default="runs/bench")
    parser.add_argument("--only", nargs="*", choices=["plain", *RUNS], default=["plain", *RUNS])
    args = parser.parse_args()
    uris = {"data.uri": storage.absolute(args.ingested), "runs": storage.absolute(args.runs)}
    settings = config.load(RECIPE).override(uris)
    if args.epochs:
        settings = settings.override({"train.epochs": args.epochs})
    labels = tasks.labels_of(tasks.load(settings.task), train.Dataset.open(settings.data.uri))
    found: dict[str, Any] = {}
    if "plain" in args.only:
        found["plain"] = plain(Path(args.folder), settings, labels)
    with runtime.session():
        for name in [name for name in RUNS if name in args.only]:
            found[name] = again(settings, name, **RUNS[name])
    for name, row in found.items():
        figures = "  ".join(f"{key} {value:.4f}" for key, value in row.items() if key != "seconds")
        print(f"{name:8} {figures}  {row['seconds']:.0f} s", file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
