"""A search's winner beside torchvision's way of training detection and segmentation, equal backbone, epochs.

    tlray tune jobs/recipes/bccd.yaml data.uri=INGESTED
    python tests/bench/bench_reference.py FOLDER runs/bccd

FOLDER is what was ingested. The reference is one process with a DataLoader: torchvision's own RetinaNet (or
the same pyramid for masks), the augmentations of its references/detection (flips) and of
references/segmentation (scale 0.5 to 2, crop, flips), AdamW, linear warm-up over the first epoch, cosine;
torchmetrics judges it on the source's pixels. It takes the better of two learning rates and its best epoch by
validation, as the search does. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms.v2 as T
from bench_accuracy import Scores, winner
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchmetrics import JaccardIndex
from torchmetrics.detection import MeanAveragePrecision
from torchvision import tv_tensors
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.retinanet import RetinaNetHead

from tlray import config, runtime, storage, tasks
from tlray.backbone import Backbone
from tlray.dataset import Dataset
from tlray.image import decode_mask
from tlray.ingest.survey import survey
from tlray.tasks import detection, segmentation

RATES = (1e-3, 3e-3)
NONE = 255  # pixels of no class


class Pictures(torch.utils.data.Dataset[Any]):
    """(picture, label) of a folder's split, through a transform."""

    def __init__(self, folder: Path, split: str, labels: list[str], ignore: int, transform: Any) -> None:
        rows = survey(str(folder)).table.to_pylist()
        self.rows = [row for row in rows if row["split"] == split]
        self.folder, self.labels, self.ignore, self.transform = folder, labels, ignore, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, n: int) -> Any:
        row = self.rows[n]
        picture = Image.open(self.folder / row["path"]).convert("RGB")
        if "mask" in row:
            file = self.folder / row["mask"]["paths"][0]
            ids_HW = torch.from_numpy(decode_mask(file.read_bytes()).copy())
            return self.transform(picture, tv_tensors.Mask(ids_HW.masked_fill(ids_HW == self.ignore, NONE)))
        boxes = detection.corners(row["objects"]["bbox"]).clip(0, [*picture.size] * 2)
        sound = ((boxes[:, 2:] - boxes[:, :2]) > 1).all(1)
        names = torch.tensor([self.labels.index(name) for name in row["objects"]["category"]])
        target = {
            "boxes": tv_tensors.BoundingBoxes(
                boxes[sound], format="XYXY", canvas_size=picture.size[::-1], dtype=torch.float32
            ),
            "labels": names[torch.from_numpy(sound)],
        }
        return self.transform(picture, target)


class Boxes:
    """torchvision's RetinaNet over our backbone and pyramid; it resizes by itself."""

    def __init__(self, settings: config.Config, task: detection.Task, labels: list[str]) -> None:
        size = settings.input.size or 64
        flips = [T.RandomHorizontalFlip(settings.augment.hflip), T.RandomVerticalFlip(settings.augment.vflip)]
        plain = [T.ToImage(), T.ToDtype(torch.float32, scale=True)]
        self.learn, self.look = T.Compose([*flips, *plain]), T.Compose(plain)
        ours: Any = task.build(Backbone(settings.model.backbone, settings.model.weights, size=size), labels)
        self.model: Any = RetinaNet(
            _Pyramid(ours, task.channels), len(labels), min_size=size * 3 // 4, max_size=size,
            image_mean=[0.0] * 3, image_std=[1 / 255] * 3,  # the backbone normalises pixels of 0..255 itself
            anchor_generator=ours.anchors.grid,
            head=RetinaNetHead(task.channels, 9, len(labels), lambda channels: nn.GroupNorm(32, channels)),
            score_thresh=task.min_score, nms_thresh=task.nms_iou, detections_per_img=task.max_objects,
        )  # fmt: skip

    def loss(self, pictures: Any, targets: Any) -> torch.Tensor:
        loss: torch.Tensor = sum(self.model(list(pictures), [dict(t) for t in targets]).values())
        return loss

    def judge(self, batches: Any) -> float:
        judge = MeanAveragePrecision(backend="faster_coco_eval")
        for pictures, targets in batches:
            truth = [{k: torch.as_tensor(v) for k, v in target.items()} for target in targets]
            judge.update(self.model(list(pictures)), truth)
        return float(judge.compute()["map"])


class _Pyramid(nn.Module):
    """Backbone and pyramid as RetinaNet wants them: pixels in, maps by name out."""

    def __init__(self, detector: Any, channels: int) -> None:
        super().__init__()
        self.backbone, self.fpn, self.reads = detector.backbone, detector.fpn, detector.reads
        self.out_channels = channels

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.backbone.pyramid(x, self.reads)
        maps: dict[str, torch.Tensor] = self.fpn(dict(zip(map(str, self.reads), found, strict=True)))
        return maps


class Pixels:
    """The same module as ours; pictures are stretched to the input's square."""

    def __init__(self, settings: config.Config, task: segmentation.Task, labels: list[str]) -> None:
        size, fill = settings.input.size or 64, {tv_tensors.Mask: NONE, "others": 0}
        stretch, plain = T.Resize((size, size)), [T.ToImage(), T.ToDtype(torch.uint8)]
        self.learn = T.Compose(
            [*plain, stretch, T.ScaleJitter((size, size), (0.5, 2.0)),
             T.RandomCrop((size, size), pad_if_needed=True, fill=fill),
             T.RandomHorizontalFlip(settings.augment.hflip)]
        )  # fmt: skip
        self.look = T.Compose(plain)
        self.model = task.build(Backbone(settings.model.backbone, settings.model.weights, size=size), labels)
        self.stretch, self.count = stretch, len(labels)

    def loss(self, pictures: Any, masks: Any) -> torch.Tensor:
        loss: torch.Tensor = self.model(torch.stack(pictures), {"mask": torch.stack(masks)})
        return loss

    def judge(self, batches: Any) -> float:
        judge = JaccardIndex("multiclass", num_classes=self.count, ignore_index=NONE, average="none")
        there: set[int] = set()
        for pictures, masks in batches:
            logits = self.model(torch.stack([self.stretch(picture) for picture in pictures]))
            for logits_Chw, mask_HW in zip(logits, masks, strict=True):
                grown = F.interpolate(logits_Chw[None], mask_HW.shape[-2:], mode="bilinear")
                judge.update(grown.argmax(1), mask_HW[None].long())
                there.update(mask_HW.unique().tolist())
        return float(judge.compute()[sorted(there - {NONE})].mean())


def reference(folder: Path, settings: config.Config, labels: list[str], lr: float) -> Scores:
    """One training as torchvision's references do it."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(runtime.cores())
    torch.set_flush_denormal(True)
    task: Any = tasks.load(settings.task)
    way: Any = (Boxes if task.name == "detection" else Pixels)(settings, task, labels)
    ignore, batch = getattr(task, "ignore_index", NONE), settings.train.batch_size
    load = {
        split: torch.utils.data.DataLoader(
            Pictures(folder, split, labels, ignore, way.learn if split == "train" else way.look), batch,
            split == "train", num_workers=1, drop_last=split == "train",
            collate_fn=lambda items: tuple(zip(*items, strict=True)),
        )
        for split in ("train", "validation", "test")
    }  # fmt: skip
    backbone = list(next(m for m in way.model.modules() if isinstance(m, Backbone)).parameters())
    inside = {id(p) for p in backbone}
    own = [p for p in way.model.parameters() if id(p) not in inside]
    groups = [{"params": own}, {"params": backbone, "lr": lr * settings.optim.backbone_lr_ratio}]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=settings.optim.weight_decay)
    epochs, steps = settings.train.epochs, len(load["train"])
    warm = min(1000, max(1, steps - 1))
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [torch.optim.lr_scheduler.LinearLR(optimizer, 0.001, total_iters=warm),
         torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs * steps - warm))],
        [warm],
    )  # fmt: skip
    began, best = time.perf_counter(), {"validation": -1.0}
    for epoch in range(epochs):
        way.model.train()
        for pictures, targets in load["train"]:
            loss = way.loss(pictures, targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(way.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        way.model.eval()
        with torch.inference_mode():
            now = way.judge(load["validation"])
            print(f"reference {lr:g} epoch {epoch + 1}: validation {now:.4f}", file=sys.stderr, flush=True)
            if now > best["validation"]:
                best = {"validation": now, "test": way.judge(load["test"])}
    return {**best, "seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("folder", "run"):
        parser.add_argument(name)
    args = parser.parse_args()
    settings = config.parse(storage.read_json(storage.join(args.run, "config.json")), args.run)
    task = tasks.load(settings.task)
    labels = tasks.labels_of(task, Dataset.open(settings.data.uri))
    with runtime.session():
        _, _, won = winner(settings)
    tries = {lr: reference(Path(args.folder), settings, labels, lr) for lr in RATES}
    lr = max(tries, key=lambda rate: tries[rate]["validation"])
    for side, found in (("winner", won), (f"reference, lr {lr:g}", tries[lr])):
        figures = "  ".join(f"{split} {found[split]:.4f}" for split in ("validation", "test"))
        print(f"{side:20} {figures}  {found['seconds']:.0f} s", file=sys.stderr)
    print(
        json.dumps(
            {"metric": task.goal.name, "epochs": settings.train.epochs, "winner": won, "reference": tries}
        )
    )


if __name__ == "__main__":
    main()
