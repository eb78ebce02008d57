"""Pictures as Python has them, made the encoded bytes that a model renders."""

from __future__ import annotations

import io
import os

import numpy as np
from PIL import Image, ImageOps

from tlray import storage
from tlray.errors import DataError

Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""A path, a URI, the bytes of a file, a PIL image, or an array (see `encoded`)."""

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_TIFF_MODES = ("F", "I", "I;16")  # more than 8 bits: floats are no PNG, and Pillow gives up 32-bit PNGs


def encoded(picture: Picture) -> tuple[str, bytes]:
    """A name for error messages, and a picture as the bytes of a file; losslessly where it was none before.

    Arrays: uint8, (H, W, 3) RGB or (H, W) grey. Raises DataError for another type, dtype or shape,
    StorageError for a place that cannot be read.
    """
    if isinstance(picture, str | os.PathLike):
        return os.fspath(picture), storage.read_bytes(os.fspath(picture))
    if isinstance(picture, bytes | bytearray | memoryview):
        return "bytes", bytes(picture)
    if isinstance(picture, Image.Image):
        return "PIL image", _file(ImageOps.exif_transpose(picture))
    if not hasattr(picture, "__array__"):
        raise DataError(
            f"picture of type {type(picture).__name__}: accepted: a path, a URI, bytes, a PIL "
            "image or an array"
        )
    pixels = np.asarray(picture)
    sound = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not sound or not pixels.size:
        raise DataError(
            f"array of {pixels.dtype}, shape {pixels.shape}: accepted: uint8, (H, W, 3) RGB or (H, W) grey"
        )
    return "array", _file(Image.fromarray(np.ascontiguousarray(pixels)))


def _file(picture: Image.Image) -> bytes:
    if picture.mode not in (*_PNG_MODES, *_TIFF_MODES):
        picture = picture.convert("RGB")
    out = io.BytesIO()
    if picture.mode in _TIFF_MODES:
        picture.save(out, "TIFF")
    else:
        picture.save(out, "PNG", compress_level=1)
    return out.getvalue()
