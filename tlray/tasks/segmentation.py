"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from tlray.config import Count, Share, Strict
from tlray.data import masks
from tlray.data.image import LUMA, Geometry, Pixels, Preprocess, decode_mask, encode_mask, render_mask
from tlray.data.schema import MASK, Kind, Row, Target
from tlray.errors import DataError
from tlray.figures import charts
from tlray.tasks import base, losses
from tlray.tasks.base import Counts, Defaults, Goal, OneOf, Prediction, Remark, TrainingRows

if TYPE_CHECKING:  # importing it imports timm, which processes that only render do not need
    from tlray.models.backbone import Backbone

UNKNOWN = masks.UNKNOWN  # in a mask: no class; in a prediction: outside of the crop that the model got
MAX_LOGITS = 1 << 27  # of a picture in source size; beyond it class ids are resized in place of logits
STORED_SIDE = 160  # px; longest side of the masks in evaluation.json, which are for the report only
NUM_SHOTS = 12
# The colours of Okabe and Ito, which are safe for colour-blind readers, then darker ones.
_COLOURS = np.array(
    [
        (86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66), (0, 114, 178),
        (213, 94, 0), (120, 120, 120), (100, 40, 160), (140, 200, 60), (250, 150, 150), (60, 60, 20),
    ],
    np.uint8,
)  # fmt: skip


class Task(Strict):
    """Settings under ``task:``."""

    name: Literal["segmentation"] = "segmentation"
    goal: Annotated[Goal, OneOf(miou="max", pixel_accuracy="max")] = Goal("miou", "max")
    ignore_index: Annotated[int, Field(ge=0, le=255)] = UNKNOWN  # an id that is neither learnt nor counted
    channels: Count = 96  # of the feature pyramid
    min_stride: Count = 4  # px; stride of the finest level of the pyramid
    label_smoothing: Share = 0.0
    loss: Literal["cross_entropy", "dice", "lovasz"] = "lovasz"  # cross-entropy, alone or plus one of regions
    freeze_norm: bool = False  # batch norm keeps its pretrained statistics, as batches are small

    columns: ClassVar[dict[str, Kind]] = {MASK: "mask"}
    defaults: ClassVar[Defaults] = Defaults(
        "colour", (0.5, 1.0), batch_size=8, rate_factor=0.6, backbone_lr_ratio=0.3
    )
    together: ClassVar[int] = 1
    gallery: ClassVar[bool] = False
    detects: ClassVar[bool] = False
    supported_augmentations: ClassVar[tuple[str, ...]] = ("cutmix", "class_balance")

    def preflight(self, rows: pa.Table, names: Mapping[str, list[str]]) -> tuple[pa.Table, list[Remark]]:
        """Reject rows whose mask cannot be read or has an unknown id."""
        num_classes = len(names[MASK]) if MASK in names else UNKNOWN
        kinds, reasons, used_ids = rows["kind"].to_pylist(), rows["reason"].to_pylist(), set()
        for i, values in enumerate(rows["mask_values"].to_pylist()):
            if kinds[i] is not None:
                continue
            if values is None:
                kinds[i] = "mask_unreadable"
                reasons[i] = "its mask cannot be read; accepted: ids from 0 to 255"
                continue
            unknown = [v for v in values if v >= num_classes and v not in (UNKNOWN, self.ignore_index)]
            if unknown:
                kinds[i] = "mask_values"
                reasons[i] = f"id {unknown[0]} in its mask; accepted: 0 to {num_classes - 1}, 255"
            used_ids.update(values)
        for column, values in (("kind", kinds), ("reason", reasons)):
            at = rows.column_names.index(column)
            rows = rows.set_column(at, column, pa.array(values, pa.string()))
        unused = [name for i, name in enumerate(names.get(MASK, [])) if i not in used_ids]
        remark = Remark("warning", "class_nowhere", f"{len(unused)} classes are in no mask", unused)
        return rows, [remark] if unused else []

    def unmeasurable(self, tables: Iterable[pa.Table], labels: list[str]) -> str | None:
        for table in tables:
            for mask in table[MASK].to_pylist():
                ids_HW = decode_mask(mask["bytes"])
                if ((ids_HW < len(labels)) & (ids_HW != self.ignore_index)).any():
                    return None
        return "its masks have no pixel of a class"

    def adapted_to_data(
        self, rows: TrainingRows, backbone: Backbone, preprocess: Preprocess
    ) -> tuple[Task, str]:
        return self, ""

    def build(self, backbone: Backbone, labels: list[str], counts: Counts | None = None) -> nn.Module:
        """A feature pyramid whose levels are summed (Panoptic FPN, arXiv 1901.02446)."""
        return Segmenter(backbone, len(labels), self)

    def encode(self, row: Row, geometry: Geometry, labels: list[str]) -> Target:
        """``mask`` (H, W) uint8: class ids, 255 for no class. Raises DataError for an unknown id."""
        stored_HW = decode_mask(row[MASK]["bytes"])
        is_unknown_HW = (stored_HW >= len(labels)) & ~np.isin(stored_HW, (UNKNOWN, self.ignore_index))
        if is_unknown_HW.any():
            unknown = stored_HW[is_unknown_HW][0]
            raise DataError(f"id {unknown} in its mask; accepted: 0 to {len(labels) - 1}, {UNKNOWN}")
        ids_HW = render_mask(stored_HW, geometry, UNKNOWN)
        return {MASK: np.where(ids_HW == self.ignore_index, UNKNOWN, ids_HW).astype(np.uint8)}

    def decode(
        self, outputs: torch.Tensor, geometries: Sequence[Geometry], labels: list[str]
    ) -> list[Prediction]:
        """Logits (B, C, h, w) -> for each picture class ids in source size, as runs along the rows."""
        if self.ignore_index < outputs.shape[1]:
            outputs = outputs.clone()
            outputs[:, self.ignore_index] = outputs.min() - 1  # not -inf, which resizing turns into NaN
        predictions = []
        for logits_Chw, geometry in zip(outputs.float(), geometries, strict=True):
            ids_HW = _to_source(logits_Chw, geometry)
            counts = np.bincount(ids_HW.ravel(), minlength=256)
            shares = {
                name: round(float(counts[i]) / ids_HW.size, 6) for i, name in enumerate(labels) if counts[i]
            }
            predictions.append({**to_runs(ids_HW), "shares": shares})
        return predictions

    def served(self, prediction: Prediction, min_score: float | None = None) -> Prediction:
        return prediction

    def image_of(self, prediction: Prediction) -> bytes:
        """The prediction as a PNG of class ids."""
        return encode_mask(from_runs(prediction))

    def metrics(self, labels: list[str]) -> Metrics:
        return Metrics(len(labels), self.ignore_index)

    def with_thresholds(self, metrics: base.Metrics) -> Task:
        return self

    def record(self, row: Row | None, prediction: Prediction) -> dict[str, Any]:
        """Both masks as small PNGs in base64; for each class the pixels of intersection and union."""
        predicted_HW = from_runs(prediction)
        record: dict[str, Any] = {"prediction": _to_base64(predicted_HW), "shares": prediction["shares"]}
        if row is not None:
            truth_HW = decode_mask(row[MASK]["bytes"])
            confusion = _confusion(truth_HW, predicted_HW, 256, self.ignore_index)
            intersection_C, union_C = _intersection_and_union(confusion)
            last = int(np.flatnonzero(union_C).max(initial=-1)) + 1
            record |= {
                "truth": _to_base64(truth_HW), "intersection": intersection_C[:last].tolist(),
                "union": union_C[:last].tolist(), "iou": _mean_iou(confusion),
            }  # fmt: skip
        return record

    def draw(self, picture: Image.Image, record: dict[str, Any], labels: list[str]) -> Image.Image:
        """Predicted classes as colours, borders of the true areas in white, a legend."""
        ids_HW = masks.resized(decode_mask(base64.b64decode(record["prediction"])), picture.size)
        drawn = _tinted(picture, ids_HW, len(labels))
        if "truth" in record:
            truth_HW = masks.resized(decode_mask(base64.b64decode(record["truth"])), picture.size)
            edge = np.zeros(truth_HW.shape, bool)
            edge[1:] |= truth_HW[1:] != truth_HW[:-1]
            edge[:, 1:] |= truth_HW[:, 1:] != truth_HW[:, :-1]
            pixels = np.asarray(drawn).copy()
            pixels[edge] = 255
            drawn = Image.fromarray(pixels)
        return _legend(drawn, record["shares"], labels)

    def draw_truth(self, picture: Image.Image, row: Row, labels: list[str]) -> Image.Image:
        """True classes as colours, and a legend; pixels of no class are unchanged."""
        ids_HW = decode_mask(row[MASK]["bytes"])
        counts = np.bincount(ids_HW.ravel(), minlength=256)
        shares = {name: counts[i] / ids_HW.size for i, name in enumerate(labels) if counts[i]}
        return _legend(_tinted(picture, ids_HW, len(labels)), shares, labels)

    def summary(self, prediction: Prediction, top: int) -> str:
        ranked = sorted(prediction["shares"].items(), key=lambda item: -item[1])
        return "  ".join(f"{name} {share:.1%}" for name, share in ranked[:top]) or "no class"

    def figures(self, evaluation: dict[str, Any]) -> list[charts.Section]:
        """IoU of each class, and the pictures of the lowest IoU."""
        rows, labels = evaluation["rows"], evaluation["labels"]
        intersection_C, union_C = np.zeros(256, np.int64), np.zeros(256, np.int64)
        for row in rows:
            intersection_C[: len(row["intersection"])] += row["intersection"]
            union_C[: len(row["union"])] += row["union"]
        by_class = [
            (name, intersection_C[i] / union_C[i], union_C[i]) for i, name in enumerate(labels) if union_C[i]
        ]
        by_class.sort(key=lambda item: item[1])
        most = int(union_C.max()) or 1
        classes = charts.Table(
            [charts.Column("class"), charts.Column("iou", 3, 1.0), charts.Column("pixels", 0, most)],
            [[name, float(iou), int(pixels)] for name, iou, pixels in by_class],
        )
        worst = sorted((row["iou"], i) for i, row in enumerate(rows) if row["iou"] is not None)[:NUM_SHOTS]
        return [
            charts.Section(
                "Classes", "Intersection over union of all pixels, weakest first; pixels: of the union.",
                tables=[classes],
            ),
            charts.Section(
                "Worst pictures", "Colours are predicted classes, white lines the borders of the true areas.",
                shots=[charts.Shot(i, [("mean iou", f"{iou:.3f}")]) for iou, i in worst],
            ),
        ]  # fmt: skip


def _tinted(picture: Image.Image, ids_HW: Pixels, num_classes: int) -> Image.Image:
    """The picture, tinted with the colours of its classes; pixels of no class are unchanged."""
    tint = Image.fromarray(_COLOURS[ids_HW % len(_COLOURS)])
    opacity = Image.fromarray(np.where(ids_HW < num_classes, 140, 0).astype(np.uint8), "L")
    return Image.composite(tint, picture, opacity)


def _legend(picture: Image.Image, shares: Mapping[str, float], labels: list[str]) -> Image.Image:
    """The picture with the names of its eight largest classes, on their colours, in the top left corner."""
    drawn = picture.copy()
    pen, y = ImageDraw.Draw(drawn), 2
    font = ImageFont.load_default(max(9, max(picture.size) / 40))
    for name in sorted(shares, key=lambda name: -shares[name])[:8]:
        background = _COLOURS[labels.index(name) % len(_COLOURS)]
        x1, y1 = pen.textbbox((4, y), name, font=font)[2:]
        pen.rectangle((2, y, x1 + 2, y1 + 1), fill=tuple(background.tolist()))
        pen.text((4, y), name, fill="black" if background @ LUMA > 110 else "white", font=font)
        y = int(y1) + 2
    return drawn


class Segmenter(nn.Module):
    """backbone -> pyramid -> logits (B, C, h, w) at the stride of the finest level."""

    def __init__(self, backbone: Backbone, num_classes: int, settings: Task) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        self.backbone = backbone
        # The last stage of each stride from min_stride on, or the last of all where none is that coarse.
        last = {stride: i for i, stride in enumerate(backbone.strides)}
        self.reads = sorted(i for stride, i in last.items() if stride >= settings.min_stride)
        self.reads = self.reads or [len(backbone.strides) - 1]
        width = settings.channels
        self.pyramid = FeaturePyramidNetwork([backbone.channels[i] for i in self.reads], width)
        self.refine = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(_groups(width), width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(_groups(width), width), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Conv2d(width, num_classes, 1)
        self.settings = settings

    def train(self, mode: bool = True) -> Segmenter:
        """As of nn.Module, but with ``freeze_norm`` batch norm in the backbone stays in evaluation mode."""
        super().train(mode)
        if self.settings.freeze_norm:
            self.backbone.keep_statistics()
        return self

    def forward(self, x_BCHW: torch.Tensor, targets: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Logits, or with targets (``mask`` (B, H, W) uint8) the mean loss of the rows (scalar)."""
        maps = self.backbone.pyramid(x_BCHW, self.reads)
        levels = list(self.pyramid({str(i): m for i, m in enumerate(maps)}).values())
        finest = levels[0]
        for level in levels[1:]:
            finest = finest + F.interpolate(level, finest.shape[-2:], mode="bilinear", align_corners=False)
        logits: torch.Tensor = self.head(self.refine(finest))
        if targets is None:
            return logits
        size = targets[MASK].shape[-2:]
        logits_BCHW = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        truth_BHW = targets[MASK].long()
        loss_BHW = F.cross_entropy(
            logits_BCHW,
            truth_BHW,
            ignore_index=UNKNOWN,
            label_smoothing=self.settings.label_smoothing,
            reduction="none",
        )
        # The mean over rows of a row's mean over pixels: then means of batches of any size add up.
        num_known_B = (truth_BHW != UNKNOWN).sum((1, 2)).clamp(min=1)
        loss: torch.Tensor = (loss_BHW.sum((1, 2)) / num_known_B).mean()
        if self.settings.loss == "cross_entropy":
            return loss
        region = losses.dice if self.settings.loss == "dice" else losses.lovasz
        return loss + region(logits_BCHW, truth_BHW, UNKNOWN).mean()


class Metrics:
    """Counts pixels by (truth, prediction); counts are integers, so merging is exact in any order.

    Counted here, not by scikit-learn or torchmetrics: they have no column for pixels without a prediction,
    and a worker would import them for seconds.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self.ignore_index = ignore_index
        self.confusion = np.zeros((num_classes, num_classes + 1), np.int64)  # last: no prediction

    def update(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> None:
        for prediction, row in zip(predictions, rows, strict=True):
            truth_HW = decode_mask(row[MASK]["bytes"])
            self.confusion += _confusion(
                truth_HW, from_runs(prediction), len(self.confusion), self.ignore_index
            )

    def state(self) -> Any:
        return {"confusion": self.confusion.tolist()}

    def merge(self, state: Any) -> None:
        self.confusion += np.array(state["confusion"], np.int64)

    def compute(self) -> dict[str, float]:
        """miou over the classes that occur, pixel_accuracy; NaN without a labelled pixel."""
        total, nan = int(self.confusion.sum()), float("nan")
        iou = _mean_iou(self.confusion)
        return {
            "miou": nan if iou is None else iou,
            "pixel_accuracy": float(np.trace(self.confusion[:, :-1]) / total) if total else nan,
        }


def to_runs(ids_HW: Pixels) -> dict[str, Any]:
    """Class ids (H, W) -> ``size`` (H, W) and ``runs`` of (id, length) along the rows."""
    flat = ids_HW.ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    lengths = np.diff(np.concatenate([starts, [flat.size]]))
    return {"size": list(ids_HW.shape), "runs": np.stack([flat[starts], lengths], 1).tolist()}


def from_runs(prediction: Mapping[str, Any]) -> Pixels:
    """The inverse of `to_runs`."""
    runs = np.array(prediction["runs"], np.int64).reshape(-1, 2)
    ids_HW: Pixels = np.repeat(runs[:, 0].astype(np.uint8), runs[:, 1]).reshape(prediction["size"])
    return ids_HW


def _to_source(logits_Chw: torch.Tensor, geometry: Geometry) -> Pixels:
    """The most probable class of each source pixel (H, W); UNKNOWN outside of the crop."""
    width, height = geometry.source
    x0, y0, x1, y1 = (round(v) for v in geometry.crop)
    px0, py0, px1, py1 = geometry.placed
    flips = [axis for axis, flip in ((1, geometry.vflip), (2, geometry.hflip)) if flip]
    input_hw = geometry.output[::-1]
    logits_CHW = F.interpolate(logits_Chw[None], input_hw, mode="bilinear", align_corners=False)[0]
    part = logits_CHW.flip(flips)[:, py0:py1, px0:px1]
    size = (y1 - y0, x1 - x0)
    if part.shape[0] * size[0] * size[1] <= MAX_LOGITS:
        ids_hw = F.interpolate(part[None], size, mode="bilinear", align_corners=False)[0].argmax(0)
    else:
        ids_hw = F.interpolate(part.argmax(0)[None, None].float(), size, mode="nearest-exact")[0, 0].long()
    ids_HW = np.full((height, width), UNKNOWN, np.uint8)
    ids_HW[y0:y1, x0:x1] = ids_hw.cpu().numpy().astype(np.uint8)
    return ids_HW


def _confusion(truth_HW: Pixels, predicted_HW: Pixels, num_classes: int, ignore_index: int) -> np.ndarray:
    """Pixels by (truth, prediction), (C, C + 1); the last column is of pixels without a prediction."""
    known_HW = (truth_HW != UNKNOWN) & (truth_HW != ignore_index) & (truth_HW < num_classes)
    truth_P, predicted_P = truth_HW[known_HW].astype(np.int64), predicted_HW[known_HW].astype(np.int64)
    no_class_P = (predicted_P == UNKNOWN) | (predicted_P >= num_classes)
    predicted_P = np.where(no_class_P, num_classes, predicted_P)
    pairs = np.bincount(truth_P * (num_classes + 1) + predicted_P, minlength=num_classes * (num_classes + 1))
    return pairs.reshape(num_classes, num_classes + 1)


def _intersection_and_union(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of each class: of the intersection and of the union of truth and prediction."""
    square_CC = confusion[:, :-1]
    intersection_C = np.diag(square_CC)
    return intersection_C, confusion.sum(1) + square_CC.sum(0) - intersection_C


def _mean_iou(confusion: np.ndarray) -> float | None:
    """Over the classes of the truth; None where there is none."""
    intersection_C, union_C = _intersection_and_union(confusion)
    present = confusion.sum(1) > 0
    return float((intersection_C[present] / union_C[present]).mean()) if present.any() else None


def _to_base64(ids_HW: Pixels) -> str:
    """A small PNG of a mask as text."""
    scale = min(1.0, STORED_SIDE / max(ids_HW.shape))
    height, width = (max(1, round(side * scale)) for side in ids_HW.shape)
    return base64.b64encode(encode_mask(masks.resized(ids_HW, (width, height)))).decode()


def _groups(channels: int) -> int:
    """The number of groups of a group norm: the largest up to 8 that divides the channels."""
    return max(n for n in range(1, 9) if channels % n == 0)
