"""One look at one picture, or at one mask: whether it can be read, and what is worth knowing about it.

Runs in Ray's tasks and imports no Ray. `tlray.ingestion.report` makes the report of all pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.data import image, masks
from tlray.errors import PictureError

INSPECTED = pa.schema(
    [
        ("kind", pa.string()),  # why the picture is unusable; null where it is fine
        ("reason", pa.string()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("phash", pa.uint64()),
        ("thumb", pa.binary(192)),  # 8 x 8 RGB
        ("format", pa.string()),
        ("mode", pa.string()),
        ("orientation", pa.int32()),
        ("frames", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("depth", pa.string()),  # how values of more than 8 bits are read; "" = 8 bits or fewer
        ("darkest", pa.int32()),  # 0 to 255, of all channels of a small copy
        ("brightest", pa.int32()),
    ]
)
"""What `inspect` finds out about a picture."""

INSPECTED_MASK = pa.schema(
    [
        ("mask_width", pa.int32()),
        ("mask_height", pa.int32()),
        ("mask_values", pa.list_(pa.int32())),  # as stored, later class ids (see `mask_codes.decide`)
        ("mask_counts", pa.list_(pa.int64())),  # pixels of each value
        ("mask_colours", pa.list_(pa.int32())),  # 0xRRGGBB of each value
        ("mask_distinct", pa.int32()),  # number of different values; only the most frequent are listed
        ("mask_form", pa.string()),  # grey, palette, colour, outlines
        ("mask_format", pa.string()),
        ("mask_between", pa.int64()),  # number of steps between unequal pixels that are part of a ramp
        ("mask_steps", pa.int64()),  # number of steps between unequal pixels
        ("mask_reason", pa.string()),  # why it cannot be read
    ]
)
"""What `inspect_mask` finds out about a mask; nulls where it cannot be read."""

_THUMB = image.Preprocess(size=(32, 32), fit="stretch", mean=(0, 0, 0), std=(1, 1, 1))
_DCT = np.cos(np.pi / 32 * (np.arange(32) + 0.5) * np.arange(8)[:, None])  # DCT-II, the 8 lowest frequencies


def inspect(data: bytes) -> dict[str, Any]:
    """A row of `INSPECTED` for one picture. Never raises, whatever the bytes are."""
    try:
        info = image.probe(data)
        thumb_CHW = image.render(data, _THUMB)[0]
    except PictureError as error:
        return {**unusable(error.kind, str(error)), "num_bytes": len(data)}
    except Exception as error:  # whatever a decoder raises, the other pictures are still read
        reason = f"cannot be handled ({type(error).__name__}: {str(error)[:200]})"
        return {**unusable("not_handled", reason), "num_bytes": len(data)}
    # pHash (Zauner 2010): signs of the low frequencies against their median, on luma.
    luma = np.tensordot(np.array([0.299, 0.587, 0.114]), thumb_CHW.astype(np.float64), 1)
    waves = (_DCT @ luma @ _DCT.T).ravel()
    bits = np.packbits(waves > np.median(waves[1:]))
    small = thumb_CHW.reshape(3, 8, 4, 8, 4).mean(axis=(2, 4)).round().astype(np.uint8)
    return {
        "kind": None,
        "reason": None,
        "num_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "phash": int.from_bytes(bits.tobytes(), "big"),
        "thumb": small.tobytes(),
        "format": info.format,
        "mode": info.mode,
        "orientation": info.orientation,
        "frames": info.frames,
        "width": info.width,
        "height": info.height,
        "depth": info.depth,
        "darkest": int(thumb_CHW.min()),
        "brightest": int(thumb_CHW.max()),
    }


def inspect_mask(
    files: Sequence[bytes], shapes: str | None, code: masks.MaskCode, size: image.Size
) -> dict[str, Any]:
    """A row of `INSPECTED_MASK` for one mask. Never raises, whatever the bytes are."""
    try:
        return masks.seen(files, shapes, code, size)
    except PictureError as error:
        return {**dict.fromkeys(INSPECTED_MASK.names), "mask_reason": str(error)}


def unusable(kind: str, reason: str) -> dict[str, Any]:
    """A row of `INSPECTED` for a picture that cannot be used."""
    return {**dict.fromkeys(INSPECTED.names), "kind": kind, "reason": reason, "num_bytes": 0}
