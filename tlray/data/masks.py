"""Masks: from mask files or outlines to one class id for each pixel.

A mask is made of one file, of several files with one object each, or of outlines (JSON text). `raw` reads
the values of a file; a `MaskCode` says which class each value is, and `read` applies it.
`tlray.ingestion.mask_codes.decide` finds the code of a set of masks from all of them.

Outlines are a JSON list, painted in order onto id 0:
``{"id": 3, "polygons": [[x, y, x, y, ...], ...]}`` or ``{"id": 3, "rle": {"size": [h, w], "counts": ...}}``
(COCO's run lengths, as a list or compressed), with ``"relative": true`` where coordinates are shares of
the sides.

Pillow and numpy only. Layouts: ids_HW uint8 with 255 for unknown; sizes are (width, height) in px.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlray.data import image
from tlray.data.image import Pixels, Size
from tlray.errors import PictureError

UNKNOWN = 255  # the id of pixels of no known class
_MAX_VALUES = 512  # most frequent values of a mask that are kept; a photograph has many more
_MAX_SIDES = 100  # coordinates farther away than so many sides of the picture are invalid
_PNG = b"\x89PNG\r\n\x1a\n"

Values = npt.NDArray[np.int32]
Form = Literal["grey", "palette", "colour", "outlines"]


@dataclass(frozen=True)
class MaskCode:
    """Which class each value of a set of masks is; by default values are class ids.

    ``values``: grey value or palette position -> id. ``colours``: 0xRRGGBB -> id, used where ``by_colour``;
    what is not listed in either is `UNKNOWN`. ``threshold``: this grey value and more is id 1, less is 0.
    ``objects``: files with one object each, whose union is id 1.
    """

    values: Mapping[int, int] | None = None
    colours: Mapping[int, int] | None = None
    by_colour: bool = False
    threshold: int | None = None
    objects: bool = False


AS_STORED = MaskCode()


@dataclass(frozen=True)
class Raw:
    """A mask file as stored: ``values_HW`` are grey values, palette positions or 0xRRGGBB, by ``form``."""

    form: Form
    values_HW: Values
    palette: Values  # 0xRRGGBB by position; empty unless the form is "palette"
    format: str

    def colours_of(self, values: Values) -> Values:
        """0xRRGGBB of values; -1 for a grey that is no 8-bit value."""
        if self.form == "colour":
            return values
        if self.form == "palette":
            return self.palette[values]
        return np.where((values >= 0) & (values <= 255), values * 0x010101, -1).astype(np.int32)


def raw(data: bytes) -> Raw:
    """Decode a mask file, turned upright by its own EXIF or TIFF tag, with its values unchanged.

    RGB with three equal channels is grey; transparency is ignored. Raises PictureError as `image.probe`
    does, and (not_a_mask) for several frames and for fractions.
    """
    picture, turn = image.stored(data)
    mask = _raw(data, picture)
    return mask if turn == 1 else replace(mask, values_HW=image.turned(mask.values_HW, turn))


def _raw(data: bytes, picture: Image.Image) -> Raw:
    if getattr(picture, "n_frames", 1) > 1:
        raise PictureError("not_a_mask", f"a mask of {picture.n_frames} frames: accepted: one")  # type: ignore[attr-defined]
    kind, none = picture.format or "", np.zeros(0, np.int32)
    if picture.mode in ("P", "PA"):
        return _of_palette(picture, kind)
    if picture.mode == "LA":
        picture = picture.getchannel("L")
    if picture.mode == "1":
        return Raw("grey", np.asarray(picture).astype(np.int32), none, kind)
    if picture.mode == "F":
        numbers = np.asarray(picture)
        if not np.isfinite(numbers).all() or (numbers != np.round(numbers)).any():
            raise PictureError("not_a_mask", "fractions as values: accepted: one class id a pixel")
        return Raw("grey", _within(numbers), none, kind)
    if picture.mode == "L" or picture.mode.startswith("I"):
        values_HW = _within(np.asarray(picture))
        return Raw("grey", values_HW // _grey_step(data, picture), none, kind)
    rgb_HW3 = np.asarray(picture.convert("RGB")).astype(np.int32)
    red, green, blue = rgb_HW3[..., 0], rgb_HW3[..., 1], rgb_HW3[..., 2]
    if (red == green).all() and (green == blue).all():
        return Raw("grey", np.ascontiguousarray(red), none, kind)
    return Raw("colour", red << 16 | green << 8 | blue, none, kind)


def _within(numbers: npt.NDArray[Any]) -> Values:
    """Whole numbers of any type as int32, clipped to its range (where they are no valid ids anyway)."""
    return np.clip(numbers.astype(np.float64), -(2**31), 2**31 - 1).astype(np.int32)


def _of_palette(picture: Image.Image, kind: str) -> Raw:
    positions = np.asarray(picture if picture.mode == "P" else picture.getchannel("P")).astype(np.int32)
    colours = np.array(picture.getpalette("RGB") or [], np.int32).reshape(-1, 3)
    palette = np.full(256, -1, np.int32)
    palette[: len(colours)] = colours[:256] @ [1 << 16, 1 << 8, 1]
    # A palette of black and white stores a grey picture: the order of its entries is the encoder's choice.
    if np.isin(palette[np.unique(positions)], (0, 0xFFFFFF)).all():
        return Raw("grey", palette[positions] & 255, np.zeros(0, np.int32), kind)
    return Raw("palette", positions, palette, kind)


def _grey_step(data: bytes, picture: Image.Image) -> int:
    """The factor by which Pillow scales grey of 2 and 4 bits (2 bits become 0, 85, 170, 255); else 1."""
    bits = 8
    if data.startswith(_PNG) and data[25] == 0:  # IHDR: depth, then colour type 0 = grey
        bits = data[24]
    elif picture.format == "TIFF":
        bits = picture.tag_v2.get(258, (8,))[0]  # type: ignore[attr-defined]
    return {2: 85, 4: 17}.get(bits, 1) if picture.mode == "L" else 1


def is_plain(data: bytes, size: Size) -> bool:
    """Whether a file can be stored as it is: an upright PNG of that size, 8-bit grey or with a palette, whose
    values any reader takes for ids."""
    if not data.startswith(_PNG) or len(data) <= 25:
        return False
    info = image.header(data)
    has_ids = data[25] == 3 or (data[24], data[25]) == (8, 0)  # IHDR: palette, or grey of 8 bits
    return has_ids and info.orientation == 1 and (info.width, info.height) == size


def read(files: Sequence[bytes], shapes: str | None, code: MaskCode, size: Size) -> Pixels:
    """Class ids (H, W) of one mask; ``size``: of the canvas for outlines. Raises PictureError."""
    if shapes is not None:
        return painted(shapes, size)
    if code.objects:
        return _union([raw(data) for data in files])
    if len(files) != 1:
        raise PictureError("not_a_mask", f"{len(files)} mask files: accepted: one")
    return _ids(raw(files[0]), code)


def _ids(mask: Raw, code: MaskCode) -> Pixels:
    values, inverse = np.unique(mask.values_HW, return_inverse=True)
    ids = ids_of(values, mask.colours_of(values), mask.form, code)
    if (ids < 0).any():
        invalid = int(values[ids < 0][0])
        raise PictureError(
            "not_a_mask", f"value {invalid} in a mask: accepted: one class id from 0 to 255 a pixel"
        )
    return ids[inverse].astype(np.uint8).reshape(mask.values_HW.shape)


def ids_of(values: Values, colours: Values, form: str, code: MaskCode) -> Values:
    """Class ids of raw values by a code; -1 for values that cannot be ids."""
    if code.by_colour and code.colours is not None:
        return _looked_up(colours, code.colours)
    if form == "colour":
        return np.full(len(values), -1, np.int32)
    if code.threshold is not None:
        return (values >= code.threshold).astype(np.int32)
    if code.values is not None:
        return _looked_up(values, code.values)
    return np.where((values >= 0) & (values <= 255), values, -1).astype(np.int32)


def _looked_up(keys: Values, table: Mapping[int, int]) -> Values:
    return np.array([table.get(key, UNKNOWN) for key in keys.tolist()], np.int32)


def _union(objects: Sequence[Raw]) -> Pixels:
    """1 where any file shows its object, by values above half of the file's largest; else 0."""
    if not objects:
        raise PictureError("not_a_mask", "no mask file: accepted: one for each object")
    shape = objects[0].values_HW.shape
    out_HW = np.zeros(shape, np.uint8)
    for mask in objects:
        if mask.values_HW.shape != shape:
            raise PictureError("not_a_mask", "masks of one picture differ in size: accepted: the same")
        values_HW = mask.colours_of(mask.values_HW) & 255 if mask.form == "palette" else mask.values_HW
        if mask.form == "colour":
            raise PictureError("not_a_mask", "a mask of one object in colours: accepted: black and white")
        out_HW[2 * values_HW > values_HW.max()] = 1
    return out_HW


def painted(shapes: str, size: Size) -> Pixels:
    """Paint outlines (JSON, see the module's docstring) onto id 0; COCO's rule says which pixels are inside.

    Raises PictureError (not_a_mask) for outlines that cannot be painted.
    """
    width, height = size
    out_HW = np.zeros((height, width), np.uint8)
    for number, shape in enumerate(json.loads(shapes)):
        if not 0 <= int(shape["id"]) <= 255:
            raise PictureError(
                "not_a_mask", f"outline {number + 1}: class id {shape['id']}: accepted: 0 to 255"
            )
        try:
            inside_HW = _inside(shape, width, height)
        except (ValueError, TypeError, RuntimeError, KeyError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise PictureError("not_a_mask", f"outline {number + 1} of its mask: {reason}") from None
        out_HW[inside_HW] = shape["id"]
    return out_HW


def _inside(shape: Mapping[str, Any], width: int, height: int) -> npt.NDArray[np.bool_]:
    from faster_coco_eval.core import mask as coco  # imported here: most processes have no outlines

    if "rle" in shape:
        rle = shape["rle"]
        if list(rle["size"]) != [height, width]:
            raise ValueError(f"runs for {rle['size'][1]} x {rle['size'][0]} px: accepted: {width} x {height}")
        if isinstance(rle["counts"], list):
            return _runs(rle["counts"], width, height)
        return np.asarray(coco.decode([rle])[:, :, 0], bool)
    out_HW = np.zeros((height, width), bool)
    scale = np.array([width, height]) if shape.get("relative") else np.ones(2)
    for points in shape["polygons"]:
        if len(points) < 6 or len(points) % 2:
            raise ValueError(f"{len(points)} numbers: accepted: x and y of three points or more")
        points_N2 = np.array(points, np.float64).reshape(-1, 2) * scale
        if not np.isfinite(points_N2).all() or np.abs(points_N2).max() > _MAX_SIDES * max(width, height):
            raise ValueError(f"coordinates far outside of {width} x {height} px")
        runs = coco.frPyObjects([points_N2.ravel().tolist()], height, width)
        out_HW |= np.asarray(coco.decode(runs)[:, :, 0], bool)
    return out_HW


def _runs(counts: Sequence[int], width: int, height: int) -> npt.NDArray[np.bool_]:
    """COCO's uncompressed run lengths: outside and inside alternate, down the columns."""
    lengths = np.array(counts, np.int64)
    if (lengths < 0).any() or lengths.sum() != width * height:
        raise ValueError(f"runs of {int(lengths.sum())} pixels: accepted: {width * height}")
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return flat.reshape(width, height).T


# ---- statistics of a mask


def seen(files: Sequence[bytes], shapes: str | None, code: MaskCode, size: Size) -> dict[str, Any]:
    """Statistics of a mask as columns ``mask_*`` (see `tlray.ingestion.preflight.INSPECTED_MASK`).

    ``mask_steps``: changes of value between neighbours along rows and columns. ``mask_between``: those that
    belong to a ramp, which smoothing and JPEG leave along edges; areas of class ids have none.
    Raises PictureError.
    """
    if shapes is not None or code.objects:
        ids_HW = read(files, shapes, code, size)
        mask = Raw("outlines", ids_HW.astype(np.int32), np.zeros(0, np.int32), "")
    elif len(files) == 1:
        mask = raw(files[0])
    else:
        raise PictureError("not_a_mask", f"{len(files)} mask files: accepted: one")
    values, counts = _histogram(mask.values_HW)
    most = np.sort(np.argsort(-counts, kind="stable")[:_MAX_VALUES])
    between, steps = _ramps(mask.values_HW) if mask.form == "grey" else (0, 0)
    return {
        "mask_width": mask.values_HW.shape[1],
        "mask_height": mask.values_HW.shape[0],
        "mask_values": values[most].tolist(),
        "mask_counts": counts[most].tolist(),
        "mask_colours": mask.colours_of(values[most]).tolist(),
        "mask_distinct": len(values),
        "mask_form": mask.form,
        "mask_format": mask.format,
        "mask_between": between,
        "mask_steps": steps,
        "mask_reason": None,
    }


def _histogram(values_HW: Values) -> tuple[Values, npt.NDArray[np.int64]]:
    low, high = int(values_HW.min()), int(values_HW.max())
    if low < 0 or high > 65535:
        values, counts = np.unique(values_HW, return_counts=True)
        return values, counts.astype(np.int64)
    counts = np.bincount(values_HW.ravel(), minlength=1)
    values = np.flatnonzero(counts).astype(np.int32)
    return values, counts[values].astype(np.int64)


def _ramps(values_HW: Values) -> tuple[int, int]:
    """(number of pixels strictly between their neighbours, number of steps between unequal neighbours)."""
    between = steps = 0
    for lines in (values_HW, values_HW.T):
        change = np.sign(np.diff(lines, axis=1))
        steps += int(np.count_nonzero(change))
        between += int(np.count_nonzero((change[:, 1:] == change[:, :-1]) & (change[:, 1:] != 0)))
    return between, steps


# ---- a mask in the size of its picture


def fitted(ids_HW: Pixels, size: Size, turn: int) -> Pixels:
    """A mask, turned from EXIF orientation ``turn`` and resized to its upright picture."""
    return resized(image.turned(ids_HW, turn), size)


def resized(ids_HW: Pixels, size: Size) -> Pixels:
    """The mask at another size, by nearest neighbour."""
    if ids_HW.shape == size[::-1]:
        return ids_HW
    return np.asarray(Image.fromarray(ids_HW).resize(size, Image.Resampling.NEAREST))
