"""Masks whose edges were smoothed by a resize or by JPEG, so that they have grey values of no class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tlray.data.masks import MaskCode
from tlray.errors import DataError
from tlray.ingestion.mask_codes.mask_set import MaskSet

_RAMPS = 0.2  # share of the steps between pixels; with more in ramps the edges were smoothed
_FEW = 5  # with fewer different values, a ramp may be a thin border between two areas
_POLES = (32, 223)  # in smoothed black and white, few pixels have values between these
_NEAR_POLES = 0.8
_LEVEL = 0.02  # share of the pixels; a value between the poles with more is a grey level of its own


def code_of(masks: MaskSet) -> MaskCode | None:
    """A threshold for smoothed masks of black and white, None for clean masks. Raises DataError for
    others."""
    usable = masks.usable()
    edged = [i for i in usable if masks.rows[i]["mask_steps"]]
    smooth = [i for i in edged if _is_smooth(masks.rows[i])]
    if not smooth:
        return None
    if 2 * len(smooth) <= len(edged):
        for i in smooth:
            masks.leave_out(i, "mask_smoothed", f"{_smoothing(masks.rows[i])}; accepted: class ids")
        return None
    pixels = masks.pixels()
    total = sum(pixels.values())
    near = sum(n for value, n in pixels.items() if not _POLES[0] < value < _POLES[1])
    level = any(n > _LEVEL * total for value, n in pixels.items() if _POLES[0] < value < _POLES[1])
    two = masks.names is None or len(masks.names) <= 2
    if two and 250 <= max(pixels) <= 255 and near >= _NEAR_POLES * total and not level:
        masks.note(
            "warning", "mask_smoothed",
            f"{len(smooth)} masks of black and white have smoothed edges ({len(pixels)} grey values, by a "
            "resize or by JPEG): from 128 on a pixel is the object",
            [masks.rows[i]["path"] for i in smooth], len(smooth),
        )  # fmt: skip
        return MaskCode(threshold=128)
    rare = sum(1 for n in pixels.values() if n <= 0.05 * total)
    raise DataError(
        f"{masks.source}: {len(smooth)} of {len(usable)} masks hold grey values along their edges that are "
        f"no classes: {len(pixels)} values from {min(pixels)} to {max(pixels)}, {rare} of them rare, as a "
        "resize with smoothing or JPEG leaves them; accepted: PNG of class ids, resized by nearest neighbour"
    )


def _is_smooth(row: Mapping[str, Any]) -> bool:
    values = row["mask_values"]
    sparse = row["mask_distinct"] < (max(values) - min(values)) / 2
    if row["mask_format"] == "JPEG" and row["mask_distinct"] > 2 and sparse:
        return True
    ramps: bool = row["mask_between"] >= _RAMPS * row["mask_steps"]
    return ramps and row["mask_distinct"] >= _FEW and bool(sparse or row["mask_distinct"] > 32)


def _smoothing(row: Mapping[str, Any]) -> str:
    return f"its mask has {row['mask_distinct']} grey values that blend into one another along edges"
