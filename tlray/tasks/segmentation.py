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
from tlray.data.image import Geometry, Pixels, Preprocess, decode_mask, encode_mask, render_mask
from tlray.data.schema import MASK, Kind, Row, Target
from tlray.errors import DataError
from tlray.figures import charts
from tlray.tasks import base, losses
from tlray.tasks.base import Counts, Defaults, Goal, OneOf, Prediction, Remark, TrainingRows

if TYPE_CHECKING:  # it brings timm, which processes that only render need not load
    from tlray.models.backbone import Backbone

UNKNOWN = masks.UNKNOWN  # in a mask: no class; in a prediction: outside of what the model was shown
MOST_LOGITS = 1 << 27  # beyond it classes, not logits, are brought to the source's size
KEPT_SIDE = 160  # px; of the masks in evaluation.json, which are there to be looked at
NUM_SHOTS = 12
# Okabe and Ito's colours, which people tell apart whatever they see of colour, then darker ones.
_COLOURS = np.array(
    [
        (86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66), (0, 114, 178),
        (213, 94, 0), (120, 120, 120), (100, 40, 160), (140, 200, 60), (250, 150, 150), (60, 60, 20),
    ],
    np.uint8,
)  # fmt: skip
_LUMA = np.array([0.299, 0.587, 0.114])


class Task(Strict):
    """Settings under ``task:``."""

    name: Literal["segmentation"] = "segmentation"
    goal: Annotated[Goal, OneOf(miou="max", pixel_accuracy="max")] = Goal("miou", "max")
    ignore_index: Annotated[int, Field(ge=0, le=255)] = UNKNOWN  # pixels of this id teach and count nothing
    channels: Count = 96  # of the pyramid
    min_stride: Count = 4  # of the finest level that is used
    label_smoothing: Share = 0.0
    loss: Literal["cross_entropy", "dice", "lovasz"] = "lovasz"  # cross-entropy, plus one of regions
    freeze_norm: bool = False  # batch norm keeps the pretrained statistics (batches of a few pictures)

    columns: ClassVar[dict[str, Kind]] = {MASK: "mask"}
    defaults: ClassVar[Defaults] = Defaults(
        "colour", (0.5, 1.0), batch_size=8, rate_factor=0.6, backbone_lr_ratio=0.3
    )
    together: ClassVar[int] = 1
    gallery: ClassVar[bool] = False
    detects: ClassVar[bool] = False
    supported_augmentations: ClassVar[tuple[str, ...]] = ("cutmix", "class_balance")

    def preflight(self, rows: pa.Table, names: Mapping[str, list[str]]) -> tuple[pa.Table, list[Remark]]:
        """Masks that cannot be read or have unknown ids are left out."""
        known = len(names[MASK]) if MASK in names else UNKNOWN
        kinds, reasons, seen = rows["kind"].to_pylist(), rows["reason"].to_pylist(), set()
        for i, values in enumerate(rows["mask_values"].to_pylist()):
            if kinds[i] is not None:
                continue
            if values is None:
                kinds[i] = "mask_unreadable"
                reasons[i] = "its mask cannot be read; accepted: ids from 0 to 255"
                continue
            odd = [v for v in values if v >= known and v not in (UNKNOWN, self.ignore_index)]
            if odd:
                kinds[i] = "mask_values"
                reasons[i] = f"id {odd[0]} in its mask; accepted: 0 to {known - 1}, 255"
            seen.update(values)
        for column, values in (("kind", kinds), ("reason", reasons)):
            at = rows.column_names.index(column)
            rows = rows.set_column(at, column, pa.array(values, pa.string()))
        never = [name for i, name in enumerate(names.get(MASK, [])) if i not in seen]
        remark = Remark("warning", "class_nowhere", f"{len(never)} classes are in no mask", never)
        return rows, [remark] if never else []

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
        """Feature pyramid over the backbone, its levels added up (Panoptic FPN, arXiv 1901.02446)."""
        return Segmenter(backbone, len(labels), self)

    def encode(self, row: Row, geometry: Geometry, labels: list[str]) -> Target:
        """``mask`` (H, W) uint8: class ids, 255 where there is none. Raises DataError for an unknown id."""
        stored_HW = decode_mask(row[MASK]["bytes"])
        odd = stored_HW[(stored_HW >= len(labels)) & ~np.isin(stored_HW, (UNKNOWN, self.ignore_index))]
        if odd.size:
            raise DataError(f"id {odd[0]} in its mask; accepted: 0 to {len(labels) - 1}, {UNKNOWN}")
        ids_HW = render_mask(stored_HW, geometry, UNKNOWN)
        return {MASK: np.where(ids_HW == self.ignore_index, UNKNOWN, ids_HW).astype(np.uint8)}

    def decode(
        self, outputs: torch.Tensor, geometries: Sequence[Geometry], labels: list[str]
    ) -> list[Prediction]:
        """Logits (B, C, h, w) -> per picture its class ids in source size, as runs along the rows."""
        if self.ignore_index < outputs.shape[1]:
            outputs = outputs.clone()
            outputs[:, self.ignore_index] = outputs.min() - 1  # not -inf, of which resizing makes NaN
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
        """Both masks as small PNGs in base64; by class the pixels of both (intersection), of any (union)."""
        said_HW = from_runs(prediction)
        found: dict[str, Any] = {"prediction": _kept(said_HW), "shares": prediction["shares"]}
        if row is not None:
            truth_HW = decode_mask(row[MASK]["bytes"])
            confusion = _confusion(truth_HW, said_HW, 256, self.ignore_index)
            both, either = _overlap(confusion)
            last = int(np.flatnonzero(either).max(initial=-1)) + 1
            found |= {
                "truth": _kept(truth_HW), "intersection": both[:last].tolist(),
                "union": either[:last].tolist(), "iou": _mean_iou(confusion),
            }  # fmt: skip
        return found

    def draw(self, picture: Image.Image, record: dict[str, Any], labels: list[str]) -> Image.Image:
        """Predicted classes in colours over the picture, borders of the truth in white, a legend."""
        ids_HW = _sized(decode_mask(base64.b64decode(record["prediction"])), picture.size)
        drawn = _tinted(picture, ids_HW, len(labels))
        if "truth" in record:
            truth_HW = _sized(decode_mask(base64.b64decode(record["truth"])), picture.size)
            edge = np.zeros(truth_HW.shape, bool)
            edge[1:] |= truth_HW[1:] != truth_HW[:-1]
            edge[:, 1:] |= truth_HW[:, 1:] != truth_HW[:, :-1]
            pixels = np.asarray(drawn).copy()
            pixels[edge] = 255
            drawn = Image.fromarray(pixels)
        return _legend(drawn, record["shares"], labels)

    def draw_truth(self, picture: Image.Image, row: Row, labels: list[str]) -> Image.Image:
        """Classes in colours over the picture, a legend; pixels of no class as they are."""
        ids_HW = decode_mask(row[MASK]["bytes"])
        counts = np.bincount(ids_HW.ravel(), minlength=256)
        shares = {name: counts[i] / ids_HW.size for i, name in enumerate(labels) if counts[i]}
        return _legend(_tinted(picture, ids_HW, len(labels)), shares, labels)

    def summary(self, prediction: Prediction, top: int) -> str:
        ranked = sorted(prediction["shares"].items(), key=lambda item: -item[1])
        return "  ".join(f"{name} {share:.1%}" for name, share in ranked[:top]) or "no class"

    def figures(self, evaluation: dict[str, Any]) -> list[charts.Section]:
        """IoU of each class, and the pictures that went worst."""
        rows, labels = evaluation["rows"], evaluation["labels"]
        both, either = np.zeros(256, np.int64), np.zeros(256, np.int64)
        for row in rows:
            both[: len(row["intersection"])] += row["intersection"]
            either[: len(row["union"])] += row["union"]
        found = [(name, both[i] / either[i], either[i]) for i, name in enumerate(labels) if either[i]]
        found.sort(key=lambda item: item[1])
        most = int(either.max()) or 1
        classes = charts.Table(
            [charts.Column("class"), charts.Column("iou", 3, 1.0), charts.Column("pixels", 0, most)],
            [[name, float(iou), int(pixels)] for name, iou, pixels in found],
        )
        worst = sorted((row["iou"], i) for i, row in enumerate(rows) if row["iou"] is not None)[:NUM_SHOTS]
        return [
            charts.Section(
                "Classes", "Intersection over union of all pixels, weakest first; pixels of either.",
                tables=[classes],
            ),
            charts.Section(
                "Worst pictures", "Colours are what the model says, white lines the borders of the truth.",
                shots=[charts.Shot(i, [("mean iou", f"{iou:.3f}")]) for iou, i in worst],
            ),
        ]  # fmt: skip


def _tinted(picture: Image.Image, ids_HW: Pixels, num_classes: int) -> Image.Image:
    """The picture under the colours of its classes; ids beyond the classes leave it as it is."""
    tint = Image.fromarray(_COLOURS[ids_HW % len(_COLOURS)])
    seen = Image.fromarray(np.where(ids_HW < num_classes, 140, 0).astype(np.uint8), "L")
    return Image.composite(tint, picture, seen)


def _legend(picture: Image.Image, shares: Mapping[str, float], labels: list[str]) -> Image.Image:
    """Names of the eight largest classes on their colours, in the top left corner."""
    drawn = picture.copy()
    pen, y = ImageDraw.Draw(drawn), 2
    font = ImageFont.load_default(max(9, max(picture.size) / 40))
    for name in sorted(shares, key=lambda name: -shares[name])[:8]:
        ground = _COLOURS[labels.index(name) % len(_COLOURS)]
        x1, y1 = pen.textbbox((4, y), name, font=font)[2:]
        pen.rectangle((2, y, x1 + 2, y1 + 1), fill=tuple(ground.tolist()))
        pen.text((4, y), name, fill="black" if ground @ _LUMA > 110 else "white", font=font)
        y = int(y1) + 2
    return drawn


class Segmenter(nn.Module):
    """backbone -> pyramid -> logits (B, C, h, w) at the stride of the finest level."""

    def __init__(self, backbone: Backbone, num_classes: int, settings: Task) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        self.backbone = backbone
        # The last stage of each stride, from the finest wanted on; all of them where none is that coarse.
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
        """As ever; batch norm in the backbone keeps its statistics where it shall."""
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
        grown = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        truth_BHW = targets[MASK].long()
        loss_BHW = F.cross_entropy(
            grown,
            truth_BHW,
            ignore_index=UNKNOWN,
            label_smoothing=self.settings.label_smoothing,
            reduction="none",
        )
        # The mean over rows of the mean over a row's pixels, so that batches of any size add up.
        seen_B = (truth_BHW != UNKNOWN).sum((1, 2)).clamp(min=1)
        loss: torch.Tensor = (loss_BHW.sum((1, 2)) / seen_B).mean()
        if self.settings.loss == "cross_entropy":
            return loss
        region = losses.dice if self.settings.loss == "dice" else losses.lovasz
        return loss + region(grown, truth_BHW, UNKNOWN).mean()


class Metrics:
    """Counts pairs of (truth, prediction) over pixels: integers, so merging is exact in any order."""

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self.ignore_index = ignore_index
        self.confusion = np.zeros((num_classes, num_classes + 1), np.int64)  # last: said nothing

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
        """miou over the classes that occur, pixel_accuracy; without any pixel NaN."""
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


def from_runs(found: Mapping[str, Any]) -> Pixels:
    """The inverse of `to_runs`."""
    runs = np.array(found["runs"], np.int64).reshape(-1, 2)
    ids_HW: Pixels = np.repeat(runs[:, 0].astype(np.uint8), runs[:, 1]).reshape(found["size"])
    return ids_HW


def _to_source(logits_Chw: torch.Tensor, geometry: Geometry) -> Pixels:
    """The most probable class of each source pixel (H, W); UNKNOWN outside of what was shown."""
    width, height = geometry.source
    x0, y0, x1, y1 = (round(v) for v in geometry.crop)
    px0, py0, px1, py1 = geometry.placed
    flips = [axis for axis, flip in ((1, geometry.vflip), (2, geometry.hflip)) if flip]
    grown = F.interpolate(logits_Chw[None], geometry.output[::-1], mode="bilinear", align_corners=False)[0]
    part = grown.flip(flips)[:, py0:py1, px0:px1]
    size = (y1 - y0, x1 - x0)
    if part.shape[0] * size[0] * size[1] <= MOST_LOGITS:
        ids_hw = F.interpolate(part[None], size, mode="bilinear", align_corners=False)[0].argmax(0)
    else:
        ids_hw = F.interpolate(part.argmax(0)[None, None].float(), size, mode="nearest-exact")[0, 0].long()
    ids_HW = np.full((height, width), UNKNOWN, np.uint8)
    ids_HW[y0:y1, x0:x1] = ids_hw.cpu().numpy().astype(np.uint8)
    return ids_HW


def _confusion(truth_HW: Pixels, said_HW: Pixels, num_classes: int, ignore_index: int) -> np.ndarray:
    """Pixels by (truth, said) (C, C + 1); the last column: nothing was said there."""
    counts = (truth_HW != UNKNOWN) & (truth_HW != ignore_index) & (truth_HW < num_classes)
    truth, said = truth_HW[counts].astype(np.int64), said_HW[counts].astype(np.int64)
    said = np.where((said == UNKNOWN) | (said >= num_classes), num_classes, said)
    pairs = np.bincount(truth * (num_classes + 1) + said, minlength=num_classes * (num_classes + 1))
    return pairs.reshape(num_classes, num_classes + 1)


def _overlap(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per class: pixels of both, pixels of either."""
    square = confusion[:, :-1]
    both = np.diag(square)
    return both, confusion.sum(1) + square.sum(0) - both


def _mean_iou(confusion: np.ndarray) -> float | None:
    """Over the classes of the truth; None where there is none."""
    both, either = _overlap(confusion)
    there = confusion.sum(1) > 0
    return float((both[there] / either[there]).mean()) if there.any() else None


def _kept(ids_HW: Pixels) -> str:
    scale = min(1.0, KEPT_SIDE / max(ids_HW.shape))
    height, width = (max(1, round(side * scale)) for side in ids_HW.shape)
    return base64.b64encode(encode_mask(_sized(ids_HW, (width, height)))).decode()


def _sized(ids_HW: Pixels, size: tuple[int, int]) -> Pixels:
    return np.asarray(Image.fromarray(ids_HW, "L").resize(size, Image.Resampling.NEAREST))


def _groups(channels: int) -> int:
    """Groups of a group norm: 8, or as many as divide the channels."""
    return max(n for n in range(1, 9) if channels % n == 0)
