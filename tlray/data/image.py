"""Pixels and coordinates: from encoded bytes to model input.

``render`` is the only function that makes model input; training, validation, batch prediction and
serving all call it. A ``Preprocess`` is stored in the bundle. A ``Geometry`` says which part of a picture is
placed where in the input, and whether mirrored; it maps points and boxes in both directions.

Pillow and numpy only, so that rendering processes need not load torch.

Layouts: x_CHW uint8 RGB 0..255; points_N2 as (x, y) and boxes_N4 as (x0, y0, x1, y1), in pixels with
the origin at the top left corner of the top left pixel, after EXIF orientation.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict

from tlray.errors import PictureError

# Raster formats that Pillow decodes itself; some others are passed to external programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
MAX_PIXELS = 50_000_000  # of a stored picture; larger ones count as decompression bombs
_ORIENTATION = 0x0112  # EXIF tag

Size = tuple[int, int]  # (width, height), px
Box = tuple[float, float, float, float]
Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
PADDING = (114, 114, 114)  # YOLO's grey
LUMA = np.array([0.299, 0.587, 0.114])  # weights of RGB in grey, ITU-R BT.601
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Preprocess(BaseModel):
    """How a picture becomes model input; ``size`` is (width, height) in px.

    ``fit``: crop = the largest centred part with the input's aspect ratio; letterbox = the whole picture,
    padded with grey; stretch = the whole picture, distorted. ``mean`` and ``std`` are of RGB in 0..1 and are
    applied by the model's first module.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Size
    fit: Literal["crop", "letterbox", "stretch"] = "crop"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    max_pixels: int = MAX_PIXELS

    def geometry(self, source: Size) -> Geometry:
        """The geometry of a picture without augmentation."""
        width, height = source
        if self.fit != "crop":
            return self.place(source, (0, 0, width, height))
        scale = min(width / self.size[0], height / self.size[1])
        w, h = max(1, round(self.size[0] * scale)), max(1, round(self.size[1] * scale))
        x, y = (width - w) // 2, (height - h) // 2
        return self.place(source, (x, y, x + w, y + h))

    def place(self, source: Size, crop: Box, hflip: bool = False, vflip: bool = False) -> Geometry:
        """The geometry that places a crop of the source in the input, by ``fit``."""
        out_w, out_h = self.size
        placed = (0, 0, out_w, out_h)
        if self.fit == "letterbox":
            scale = min(out_w / (crop[2] - crop[0]), out_h / (crop[3] - crop[1]))
            w = min(out_w, max(1, round((crop[2] - crop[0]) * scale)))
            h = min(out_h, max(1, round((crop[3] - crop[1]) * scale)))
            x, y = (out_w - w) // 2, (out_h - h) // 2
            placed = (x, y, x + w, y + h)
        return Geometry(source, crop, self.size, placed, hflip, vflip)


@dataclass(frozen=True)
class Geometry:
    """The part ``crop`` of the source is placed at ``placed`` in the input, then the input is mirrored."""

    source: Size
    crop: Box
    output: Size
    placed: tuple[int, int, int, int]
    hflip: bool = False
    vflip: bool = False

    def _affine(self) -> tuple[Floats, Floats]:
        """Scale and offset with model = source * scale + offset, per axis."""
        scale, offset = np.empty(2), np.empty(2)
        for axis, flip in enumerate((self.hflip, self.vflip)):
            c0, c1, p0, p1 = self.crop[axis], self.crop[axis + 2], self.placed[axis], self.placed[axis + 2]
            s = (p1 - p0) / (c1 - c0)
            o = p0 - c0 * s
            scale[axis], offset[axis] = (-s, self.output[axis] - o) if flip else (s, o)
        return scale, offset

    def to_model(self, points_N2: Floats) -> Floats:
        """Source pixels -> input pixels."""
        scale, offset = self._affine()
        return np.asarray(points_N2, dtype=np.float64) * scale + offset

    def to_source(self, points_N2: Floats) -> Floats:
        """Input pixels -> source pixels; the inverse of `to_model`."""
        scale, offset = self._affine()
        return (np.asarray(points_N2, dtype=np.float64) - offset) / scale

    def boxes_to_model(self, boxes_N4: Floats) -> Floats:
        """Boxes from source to input pixels; not clipped."""
        return _sorted_boxes(self.to_model(np.reshape(boxes_N4, (-1, 2, 2))))

    def boxes_to_source(self, boxes_N4: Floats) -> Floats:
        """Boxes from input to source pixels; not clipped."""
        return _sorted_boxes(self.to_source(np.reshape(boxes_N4, (-1, 2, 2))))


def _sorted_boxes(corners_N22: Floats) -> Floats:
    return np.concatenate([corners_N22.min(axis=1), corners_N22.max(axis=1)], axis=1)


@dataclass(frozen=True)
class PictureInfo:
    """Properties of a picture; width and height in px after EXIF orientation."""

    format: str
    width: int
    height: int
    mode: str
    orientation: int  # EXIF's tag as stored, 1 = upright
    frames: int
    depth: str = ""  # range assumed for values of more than 8 bits, such as "12 bits"; "": 8 bits


def _open(data: bytes, max_pixels: int) -> tuple[Image.Image, int]:
    """Read the header: (picture that is not decoded yet, EXIF orientation still to be applied)."""
    if not data:
        raise PictureError("empty", "0 bytes: accepted: an encoded picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sizes are checked below; odd metadata is harmless
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise PictureError(
            "too_many_pixels", f"more than {max_pixels} pixels: accepted: at most that"
        ) from None
    except UnidentifiedImageError:
        raise PictureError("not_a_picture", f"no picture: accepted: {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders raise anything on damaged bytes
        raise PictureError("truncated", f"truncated or damaged ({_first_line(error)})") from None
    if picture.width * picture.height > max_pixels:
        raise PictureError(
            "too_many_pixels", f"{picture.width} x {picture.height} px: accepted: at most {max_pixels} pixels"
        )
    # Pillow turns a TIFF upright itself when it loads it, and states the upright size before.
    return picture, 1 if picture.format == "TIFF" else _orientation(picture)


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation, 1 to 8, read before the picture is loaded; 1 where the tag is invalid."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata; damaged pixels show when they are loaded
        return 1
    if isinstance(value, tuple) and value:  # some writers store a list
        value = value[0]
    if isinstance(value, bytes):  # or BYTE in place of SHORT
        value = int.from_bytes(value, "little")
    return int(value) if isinstance(value, int | float) and value in range(1, 9) else 1


def _load(picture: Image.Image) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture.load()
    except Exception as error:  # see _open
        raise PictureError("truncated", f"truncated or damaged ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _oriented(size: Size, turn: int) -> Size:
    return (size[1], size[0]) if turn >= 5 else size


def probe(data: bytes, max_pixels: int = MAX_PIXELS) -> PictureInfo:
    """Decode a picture and return its properties.

    Raises PictureError (empty, not_a_picture, truncated, too_many_pixels).
    """
    picture, turn = _open(data, max_pixels)
    mode, kind, orientation = picture.mode, picture.format or "", _orientation(picture)
    width, height = _oriented(picture.size, turn)
    _load(picture)
    frames = getattr(picture, "n_frames", 1)
    depth = _eight_bits(picture)[1] if _is_deep(picture) else ""
    return PictureInfo(kind, width, height, mode, orientation, frames, depth)


def header(data: bytes) -> PictureInfo:
    """Properties by the header alone; ``data`` may be cut off after it.

    Raises PictureError as `probe` does.
    """
    picture, turn = _open(data, MAX_PIXELS)
    width, height = _oriented(picture.size, turn)
    return PictureInfo(picture.format or "", width, height, picture.mode, _orientation(picture), 1)


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Encoded bytes -> upright RGB picture; transparency over white, first frame of several.

    Raises PictureError as `probe` does.
    """
    picture, turn = _open(data, max_pixels)
    return _upright(picture, turn)


def _is_deep(picture: Image.Image) -> bool:
    """Whether a pixel has more than 8 bits, or is a float."""
    return picture.mode == "F" or picture.mode.startswith("I")


def _eight_bits(picture: Image.Image) -> tuple[Image.Image, str]:
    """A greyscale picture of more than 8 bits -> (picture of 8 bits, the range assumed for its values).

    Files rarely state the range in use. The smallest usual one that contains the brightest pixel is assumed,
    so that a 12-bit scan in a 16-bit file does not come out black.
    """
    values_HW = np.nan_to_num(np.asarray(picture).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    most = float(values_HW.max(initial=0))
    if picture.mode == "F" and most <= 1:
        scale, depth = 255.0, "0 to 1"
    elif most <= 255:
        scale, depth = 1.0, "8 bits"
    elif most <= 4095:
        scale, depth = 255 / 4095, "12 bits"
    elif most <= 65535:
        scale, depth = 255 / 65535, "16 bits"
    else:
        scale, depth = 255 / most, "its own brightest pixel"
    return Image.fromarray((values_HW * scale).round().clip(0, 255).astype(np.uint8)), depth


def _upright(picture: Image.Image, turn: int) -> Image.Image:
    _load(picture)
    if _is_deep(picture):
        picture = _eight_bits(picture)[0]
    elif picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        picture = Image.new("RGBA", layer.size, "white")
        picture.alpha_composite(layer)
    rgb = picture.convert("RGB")
    if turn > 1:
        rgb = rgb.transpose(TRANSPOSE[turn])
    return rgb


TRANSPOSE = {  # EXIF orientation -> what makes such a picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def source_size(data: bytes, max_pixels: int = MAX_PIXELS) -> Size:
    """(width, height) in px after EXIF orientation, from the header alone. Raises PictureError."""
    picture, turn = _open(data, max_pixels)
    return _oriented(picture.size, turn)


def render(data: bytes, pre: Preprocess, geometry: Geometry | None = None) -> tuple[Pixels, Geometry]:
    """Encoded bytes -> (x_CHW uint8 RGB of ``pre.size``, the geometry used).

    By default the geometry is `Preprocess.geometry`. A JPEG much larger than needed is decoded at 1/2, 1/4
    or 1/8 (libjpeg's scaled DCT). Raises PictureError as `probe` does.
    """
    picture, turn = _open(data, pre.max_pixels)
    source = _oriented(picture.size, turn)
    geometry = geometry or pre.geometry(source)
    x0, y0, x1, y1 = geometry.crop
    px0, py0, px1, py1 = geometry.placed
    if picture.format == "JPEG":
        # draft() chooses the smallest scale at which the crop is not smaller than its place in the input.
        need = min((x1 - x0) / (px1 - px0), (y1 - y0) / (py1 - py0))
        if need >= 2:
            picture.draft("RGB", (math.ceil(picture.width / need), math.ceil(picture.height / need)))
    upright = _upright(picture, turn)
    sx, sy = upright.width / source[0], upright.height / source[1]
    box = (x0 * sx, y0 * sy, min(x1 * sx, upright.width), min(y1 * sy, upright.height))
    upright = upright.resize((px1 - px0, py1 - py0), _RESAMPLING[pre.interpolation], box=box)
    if geometry.placed != (0, 0, *geometry.output):
        canvas = Image.new("RGB", geometry.output, PADDING)
        canvas.paste(upright, (px0, py0))
        upright = canvas
    x_HWC = np.asarray(upright)
    rows, columns = (slice(None, None, -1 if flip else 1) for flip in (geometry.vflip, geometry.hflip))
    return np.ascontiguousarray(x_HWC[rows, columns].transpose(2, 0, 1)), geometry


class RenderedBatch(NamedTuple):
    """Model input of several pictures: ``x_BCHW`` and ``geometries`` of those that could be rendered, and the
    errors of the others by their position among all pictures."""

    x_BCHW: Pixels
    geometries: list[Geometry]
    errors: dict[int, PictureError]

    def in_order(self, results: Iterable[Any]) -> list[Any]:
        """The results of the rendered pictures and the errors of the others, in the order of the pictures."""
        rendered = iter(results)
        number = len(self.geometries) + len(self.errors)
        return [self.errors[i] if i in self.errors else next(rendered) for i in range(number)]


def render_batch(
    pictures: Iterable[bytes], pre: Preprocess, on_error: Literal["raise", "return"] = "raise"
) -> RenderedBatch:
    """`render` several pictures without randomness. A bad picture raises PictureError, or with
    ``on_error="return"`` is listed in ``errors``."""
    inputs, geometries, errors = [], [], {}
    for i, data in enumerate(pictures):
        try:
            x_CHW, geometry = render(data, pre)
        except PictureError as error:
            if on_error == "raise":
                raise
            errors[i] = error
            continue
        inputs.append(x_CHW)
        geometries.append(geometry)
    width, height = pre.size
    x_BCHW = np.stack(inputs) if inputs else np.zeros((0, 3, height, width), np.uint8)
    return RenderedBatch(x_BCHW, geometries, errors)


def stored(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, int]:
    """(a picture decoded in its own mode, EXIF orientation still to be applied).

    Raises PictureError as `probe` does.
    """
    picture, turn = _open(data, max_pixels)
    _load(picture)
    return picture, turn


def turned(values_HW: npt.NDArray[Any], turn: int) -> npt.NDArray[Any]:
    """One channel of pixels, turned upright from an EXIF orientation."""
    return values_HW if turn == 1 else np.asarray(Image.fromarray(values_HW).transpose(TRANSPOSE[turn]))


def decode_mask(data: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Encoded mask -> class ids (H, W): palette positions or grey values; EXIF is not applied.

    Raises PictureError as `probe` does, and (not_a_mask) for a picture in colours.
    """
    picture, _ = _open(data, max_pixels)
    _load(picture)
    if picture.mode == "1":
        picture = picture.convert("L").point(lambda value: value // 255)
    ids_HW = np.asarray(picture)
    if ids_HW.ndim != 2 or ids_HW.min() < 0 or ids_HW.max() > 255:
        raise PictureError(
            "not_a_mask", f"{picture.mode} picture: accepted: one class id from 0 to 255 a pixel"
        )
    return ids_HW.astype(np.uint8)


def encode_mask(ids_HW: Pixels) -> bytes:
    """Class ids (H, W) -> PNG."""
    out = io.BytesIO()
    Image.fromarray(ids_HW, "L").save(out, "PNG")
    return out.getvalue()


def render_mask(ids_HW: Pixels, geometry: Geometry, fill: int) -> Pixels:
    """Class ids (H, W) rendered as `render` does pictures, by nearest neighbour, padded with ``fill``."""
    px0, py0, px1, py1 = geometry.placed
    part = Image.fromarray(ids_HW, "L").resize(
        (px1 - px0, py1 - py0), Image.Resampling.NEAREST, box=geometry.crop
    )
    out_HW = np.full(geometry.output[::-1], fill, np.uint8)
    out_HW[py0:py1, px0:px1] = np.asarray(part)
    rows, columns = (slice(None, None, -1 if flip else 1) for flip in (geometry.vflip, geometry.hflip))
    return np.ascontiguousarray(out_HW[rows, columns])


def shrink_mask(data: bytes, size: Size) -> bytes:
    """The same mask at another size, as PNG."""
    return encode_mask(
        np.asarray(Image.fromarray(decode_mask(data), "L").resize(size, Image.Resampling.NEAREST))
    )


def shrink(data: bytes, max_side: int, quality: int = 92) -> bytes:
    """The picture as JPEG with no side above ``max_side`` px; unchanged where it is small enough."""
    width, height = source_size(data)
    if max(width, height) <= max_side:
        return data
    picture, turn = _open(data, MAX_PIXELS)
    if picture.format == "JPEG":
        picture.draft("RGB", (2 * max_side, 2 * max_side))
    scale = max_side / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))  # at least 1 px also for 3000 x 2 px
    upright = _upright(picture, turn).resize(size, Image.Resampling.LANCZOS)
    out = io.BytesIO()
    upright.save(out, "JPEG", quality=quality)
    return out.getvalue()
