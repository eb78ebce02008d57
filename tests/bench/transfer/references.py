"""Detection, segmentation and faces as torchvision's own references train them, over our backbone.

One process with a DataLoader, AdamW, linear warm-up over the first epoch, cosine, clipping; the better of two
rates, its best epoch by validation. Sizes, flips and batches are the recipe's, for both sides. Our task
judges, on the source's pixels, so that the metric is one for both.

    detection       torchvision's RetinaNet over our pyramid, at its own resizing; flips and colours
    segmentation    our pyramid with cross-entropy; scale 0.5 to 2, crop and flips of references/segmentation
    faces           torchvision has no such reference: ArcFace of pytorch-metric-learning over an embedding
                    with batch norm; crops, flips, colours; in evaluation picture and mirror image together
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms.v2 as T
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.retinanet import RetinaNetHead

from tlray import config, tasks
from tlray.data.dataset import Dataset
from tlray.data.image import decode_mask
from tlray.data.loader import RowReader
from tlray.data.schema import CROWD, LABEL, MASK, OBJECTS, Row, flagged
from tlray.models.backbone import Backbone
from tlray.tasks import detection, face_recognition, segmentation
from tlray.tasks.base import Prediction
from tlray.tasks.detection.boxes import corners
from tlray.training import defaults

from .cases import RECIPES, SPLITS, Case
from .plain import warm_cosine

RATES = (1e-3, 3e-3)
NONE = 255  # pixels of no class
COLOURS = T.ColorJitter(0.2, 0.2, 0.2)
PLAIN = (T.ToImage(), T.ToDtype(torch.uint8))


class Boxes:
    """torchvision's RetinaNet over our backbone and pyramid; it resizes by itself."""

    def __init__(self, settings: config.Config, task: detection.Task, labels: list[str], people: int) -> None:
        size = settings.input.size or 64
        flips = [T.RandomHorizontalFlip(settings.augment.hflip), T.RandomVerticalFlip(settings.augment.vflip)]
        scaled = [T.ToImage(), T.ToDtype(torch.float32, scale=True)]
        self.learn, self.look = T.Compose([COLOURS, *flips, *scaled]), T.Compose(scaled)
        task, self.labels = task.model_copy(update={"anchors": "standard"}), labels
        ours: Any = task.build(_backbone(settings, size), labels)
        self.model: Any = RetinaNet(
            _Pyramid(ours, task.channels), len(labels), min_size=size * 3 // 4, max_size=size,
            image_mean=[0.0] * 3, image_std=[1 / 255] * 3,  # the backbone normalises pixels of 0..255 itself
            anchor_generator=ours.anchors.grid,
            head=RetinaNetHead(task.channels, 9, len(labels), lambda channels: nn.GroupNorm(32, channels)),
            score_thresh=task.min_score, nms_thresh=task.nms_iou, detections_per_img=task.max_objects,
        )  # fmt: skip
        del ours.head

    def label(self, row: Row, picture: Image.Image) -> Any:
        boxes = corners(row[OBJECTS]["bbox"]).clip(0, [*picture.size] * 2)
        crowds = torch.tensor(flagged(row[OBJECTS], CROWD), dtype=torch.bool)
        sound = torch.from_numpy(((boxes[:, 2:] - boxes[:, :2]) > 1).all(1)) & ~crowds
        return {
            "boxes": tv_tensors.BoundingBoxes(
                torch.from_numpy(boxes)[sound], format="XYXY", canvas_size=picture.size[::-1],
                dtype=torch.float32,
            ),
            "labels": torch.tensor(row[OBJECTS]["category"], dtype=torch.int64)[sound],
        }  # fmt: skip

    def loss(self, pictures: Any, targets: Any) -> torch.Tensor:
        loss: torch.Tensor = sum(self.model(list(pictures), [dict(t) for t in targets]).values())
        return loss

    def predict(self, pictures: Any, rows: list[Row]) -> list[Prediction]:
        return [
            {
                "objects": [
                    {"label": self.labels[i], "index": i, "score": score, "box": box}
                    for i, score, box in zip(*(one[k].tolist() for k in ("labels", "scores", "boxes")),
                                             strict=True)
                ]
            }
            for one in self.model(list(pictures))
        ]  # fmt: skip


class _Pyramid(nn.Module):
    """Our backbone and pyramid as RetinaNet wants them: pixels in, maps by name out."""

    def __init__(self, detector: Any, channels: int) -> None:
        super().__init__()
        self.detector, self.out_channels = detector, channels

    def forward(self, x_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        maps, _ = self.detector.maps(x_BCHW)
        return {str(i): found for i, found in enumerate(maps)}


class Masks:
    """The same module as ours; pictures are stretched to the input's square."""

    def __init__(
        self, settings: config.Config, task: segmentation.Task, labels: list[str], people: int
    ) -> None:
        size, fill = settings.input.size or 64, {tv_tensors.Mask: NONE, "others": 0}
        stretch = T.Resize((size, size))
        self.learn = T.Compose(
            [*PLAIN, stretch, T.ScaleJitter((size, size), (0.5, 2.0)),
             T.RandomCrop((size, size), pad_if_needed=True, fill=fill),
             T.RandomHorizontalFlip(settings.augment.hflip)]
        )  # fmt: skip
        self.look = T.Compose([*PLAIN, stretch])
        self.model = task.build(_backbone(settings, size), labels)
        self.ignore, self.count = task.ignore_index, len(labels)

    def label(self, row: Row, picture: Image.Image) -> Any:
        ids_HW = torch.from_numpy(decode_mask(row[MASK]["bytes"]).copy())
        return tv_tensors.Mask(ids_HW.masked_fill(ids_HW == self.ignore, NONE))

    def loss(self, pictures: Any, masks: Any) -> torch.Tensor:
        logits = self.model(torch.stack(pictures))
        truth_BHW = torch.stack(masks).long()
        grown = F.interpolate(logits, truth_BHW.shape[-2:], mode="bilinear")
        return F.cross_entropy(grown, truth_BHW, ignore_index=NONE)

    def predict(self, pictures: Any, rows: list[Row]) -> list[Prediction]:
        logits = self.model(torch.stack(pictures))
        if self.ignore < self.count:
            logits[:, self.ignore] = logits.min() - 1  # a class that is none
        found = []
        for logits_Chw, row in zip(logits, rows, strict=True):
            truth_HW = decode_mask(row[MASK]["bytes"])
            grown = F.interpolate(logits_Chw[None], truth_HW.shape, mode="bilinear")
            found.append(segmentation.to_runs(grown[0].argmax(0).to(torch.uint8).numpy()))
        return found


class Faces:
    """An embedding with batch norm over the backbone's pooled features; ArcFace in training."""

    def __init__(
        self, settings: config.Config, task: face_recognition.Task, labels: list[str], people: int
    ) -> None:
        from pytorch_metric_learning import losses

        size = settings.input.size or 64
        crop = T.RandomResizedCrop((size, size), tuple(settings.augment.scale), tuple(settings.augment.ratio))
        self.learn = T.Compose([*PLAIN, crop, T.RandomHorizontalFlip(settings.augment.hflip), COLOURS])
        self.look = T.Compose([*PLAIN, T.Resize((size, size))])
        backbone = _backbone(settings, size)
        width = task.embedding_size
        self.model: Any = nn.ModuleDict(
            {
                "backbone": backbone,
                "embedding": nn.Sequential(
                    nn.Linear(backbone.num_features, width, bias=False), nn.BatchNorm1d(width)
                ),
                "people": losses.ArcFaceLoss(people, width, scale=task.scale),
            }
        )

    def label(self, row: Row, picture: Image.Image) -> Any:
        return torch.tensor(row[LABEL])

    def loss(self, pictures: Any, people: Any) -> torch.Tensor:
        loss: torch.Tensor = self.model["people"](self._points(torch.stack(pictures)), torch.stack(people))
        return loss

    def predict(self, pictures: Any, rows: list[Row]) -> list[Prediction]:
        x_BCHW = torch.stack(pictures)
        seen_BD, mirrored_BD = (F.normalize(self._points(x)) for x in (x_BCHW, x_BCHW.flip(-1)))
        x_BD = F.normalize(seen_BD + mirrored_BD)
        return [{"embedding": x_D} for x_D in x_BD.tolist()]

    def _points(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        points: torch.Tensor = self.model["embedding"](self.model["backbone"].pooled(x_BCHW))
        return points


WAYS = {"detection": Boxes, "segmentation": Masks, "face_recognition": Faces}


def _backbone(settings: config.Config, size: int) -> Backbone:
    return Backbone(settings.model.backbone, settings.model.weights, size=size)


class Pictures(torch.utils.data.Dataset[Any]):
    """(picture, label, row) of a split, decoded and transformed anew each time."""

    def __init__(self, data: Path, split: str, columns: Iterable[str], way: Any, transform: Any) -> None:
        read = RowReader(str(data), split, 1024)
        self.rows = [read(i) for i in range(read.data.num_rows(split))]
        self.columns, self.way, self.transform = tuple(columns), way, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, n: int) -> Any:
        encoded, row = self.rows[n]
        picture = Image.open(io.BytesIO(encoded)).convert("RGB")
        seen, label = self.transform(picture, self.way.label(row, picture))
        return seen, label, {name: row[name] for name in self.columns}


def reference(case: Case, data: Path, seed: int) -> dict[str, Any]:
    """The better of two rates by validation."""
    began = time.perf_counter()
    tries = [_trained(case, data, seed, lr) for lr in RATES]
    return {**max(tries, key=lambda one: one["validation"]), "seconds": time.perf_counter() - began}


def _trained(case: Case, data: Path, seed: int, lr: float) -> dict[str, Any]:
    """One training, its best epoch by validation."""
    torch.manual_seed(seed)
    recipe = str(RECIPES / f"{case.data}.yaml")
    settings = config.load(recipe, [f"data.uri={data}", f"train.epochs={case.epochs}", f"seed={seed}"])
    settings, opened = defaults.resolve_auto(settings), Dataset.open(str(data))
    task: Any = tasks.load(settings.task)
    labels, batch, goal = tasks.labels_of(task, opened), settings.train.batch_size, task.goal
    people = 0
    if LABEL in task.columns:
        people = int(opened.read("train", [LABEL])[LABEL].to_numpy().max()) + 1
    way: Any = WAYS[case.task](settings, task, labels, people)
    load = {
        split: torch.utils.data.DataLoader(
            Pictures(data, split, task.columns, way, way.learn if split == "train" else way.look), batch,
            split == "train", num_workers=1, drop_last=split == "train",
            collate_fn=lambda items: tuple(zip(*items, strict=True)),
        )
        for split in ("train", *SPLITS)
    }  # fmt: skip
    optimizer = torch.optim.AdamW(
        _groups(way.model, lr, settings.optim.backbone_lr_ratio, settings.optim.weight_decay), lr=lr
    )
    epochs, steps = settings.train.epochs, len(load["train"])
    warm = min(1000, max(1, steps - 1))
    schedule = warm_cosine(optimizer, epochs * steps, warm)

    @torch.inference_mode()
    def judged(split: str) -> float:
        metrics = task.metrics(labels)
        for pictures, _, rows in load[split]:
            metrics.update(way.predict(pictures, rows), rows)
        value: float = metrics.compute()[goal.name]
        return value

    best: dict[str, Any] = {"validation": None, "lr": lr}
    spent = 0.0
    for epoch in range(epochs):
        began = time.perf_counter()
        way.model.train()
        for pictures, targets, _ in load["train"]:
            loss = way.loss(pictures, targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(way.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        way.model.eval()
        now = judged("validation")
        spent += time.perf_counter() - began
        print(f"torchvision {lr:g} epoch {epoch + 1}: validation {now:.4f}", file=sys.stderr, flush=True)
        if goal.better(now, best["validation"]):
            best |= {"validation": now, "test": judged("test")}
    return {**best, "epoch_seconds": spent / epochs}


def _groups(model: nn.Module, lr: float, ratio: float, decay: float) -> list[dict[str, Any]]:
    """Parameters by rate and decay: the backbone's at a share of the rate; norms and biases do not decay."""
    backbone = next(module for module in model.modules() if isinstance(module, Backbone))
    inside = {id(p) for p in backbone.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        rate = lr * ratio if id(parameter) in inside else lr
        groups.setdefault((rate, decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": found, "lr": rate, "weight_decay": d} for (rate, d), found in groups.items()]
