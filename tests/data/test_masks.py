"""Mask files and outlines: the ids of their pixels, and their place on the picture."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from tlray.data import image, masks
from tlray.data.masks import AS_STORED, MaskCode
from tlray.errors import PictureError

IDS = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.uint8)
SIZE = (4, 2)


def encoded(picture: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **settings)
    return out.getvalue()


def palette(ids_HW: np.ndarray, colours: list[int]) -> Image.Image:
    picture = Image.fromarray(ids_HW, "P")
    picture.putpalette(colours)
    return picture


def rgb(ids_HW: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack([ids_HW] * 3, axis=2))


COLOURS = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(IDS)),
        encoded(palette(IDS, COLOURS)),
        encoded(palette(IDS, COLOURS), bits=2),
        encoded(Image.fromarray(IDS.astype(np.uint16))),
        encoded(Image.fromarray(IDS.astype(np.int32)), "TIFF"),
        encoded(Image.fromarray(IDS.astype(np.float32)), "TIFF"),
        encoded(Image.fromarray(IDS), "TIFF"),
        encoded(Image.fromarray(IDS), "BMP"),
        encoded(Image.fromarray(IDS), "GIF"),
        encoded(rgb(IDS)),
        encoded(rgb(IDS).convert("RGBA")),
        encoded(Image.fromarray(IDS).convert("LA")),
        encoded(Image.fromarray(IDS), "WEBP", lossless=True),
    ],
)
def test_ids_are_kept_whatever_the_file(data: bytes) -> None:
    assert masks.read([data], None, AS_STORED, SIZE).tolist() == IDS.tolist()


def test_transparency_is_no_value() -> None:
    picture = rgb(IDS).convert("RGBA")
    picture.putalpha(Image.fromarray(IDS * 60))
    assert masks.read([encoded(picture)], None, AS_STORED, SIZE).tolist() == IDS.tolist()


def grey_png(ids_HW: np.ndarray, bits: int) -> bytes:
    """A grey PNG of 1, 2, 4, 8 or 16 bits; Pillow cannot write all of them."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = ids_HW.shape
    lines = b""
    for row in ids_HW.tolist():
        text = "".join(format(value, f"0{bits}b") for value in row)
        text += "0" * (-len(text) % 8)
        lines += b"\0" + bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_of_any_depth_keeps_its_ids(bits: int) -> None:
    ids_HW = IDS % min(2**bits, 255)
    data = grey_png(ids_HW, bits)
    assert masks.read([data], None, AS_STORED, SIZE).tolist() == ids_HW.tolist()
    assert masks.is_plain(data, SIZE) == (bits == 8)


def test_a_palette_of_black_and_white_is_black_and_white_in_any_order() -> None:
    ids_HW = np.array([[0, 1], [1, 1]], np.uint8)
    for kind in ("PNG", "GIF"):
        data = encoded(palette(ids_HW, [255, 255, 255, 0, 0, 0]), kind)
        assert masks.raw(data).values_HW.tolist() == [[255, 0], [0, 0]]


def test_a_code_gives_values_and_colours_their_classes() -> None:
    grey = encoded(Image.fromarray(np.array([[0, 255, 7]], np.uint8)))
    assert masks.read([grey], None, MaskCode(values={0: 0, 255: 1}), (3, 1)).tolist() == [[0, 1, 255]]
    assert masks.read([grey], None, MaskCode(threshold=128), (3, 1)).tolist() == [[0, 1, 0]]
    code = MaskCode(colours={0x000000: 0, 0x800000: 1, 0x008000: 2}, by_colour=True)
    for picture in (palette(IDS, COLOURS), palette(IDS, COLOURS).convert("RGB")):
        assert masks.read([encoded(picture)], None, code, SIZE).tolist() == [[0, 1, 2, 255], [255, 2, 1, 0]]
    black = encoded(Image.new("L", (2, 1)))  # a mask without objects in a set of coloured masks
    assert masks.read([black], None, code, (2, 1)).tolist() == [[0, 0]]


def test_one_file_an_object() -> None:
    a, b, none = (np.zeros((2, 4), np.uint8) for _ in range(3))
    a[0, 0], b[1, 3] = 255, 1
    files = [encoded(Image.fromarray(x)) for x in (a, b, none)]
    read = masks.read(files, None, MaskCode(objects=True), SIZE)
    assert read.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    with pytest.raises(PictureError, match="differ in size"):
        masks.read([files[0], encoded(Image.new("L", (3, 3)))], None, MaskCode(objects=True), SIZE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no picture", "no picture: accepted"),
        (encoded(palette(IDS, COLOURS).convert("RGB")), "value 8388608 in a mask|one class id"),
        (
            encoded(Image.fromarray(np.array([[0, 300]], np.uint16))),
            "value 300 in a mask: accepted: one class id",
        ),
        (encoded(Image.fromarray(np.array([[0, 0.5]], np.float32)), "TIFF"), "fractions as values"),
        (
            encoded(Image.new("L", (4, 2)), "TIFF", save_all=True, append_images=[Image.new("L", (4, 2), 1)]),
            "a mask of 2 frames: accepted: one",
        ),
    ],
)
def test_what_is_no_mask_says_why(data: bytes, message: str) -> None:
    with pytest.raises(PictureError, match=message):
        masks.read([data], None, AS_STORED, SIZE)


# ---- outlines


def paint(shapes: list[dict[str, object]], size: tuple[int, int] = (6, 4)) -> np.ndarray:
    return masks.read([], json.dumps(shapes), AS_STORED, size)


def test_outlines_are_painted_in_order_onto_nothing() -> None:
    square = [1, 1, 3, 1, 3, 3, 1, 3]
    expected = np.zeros((4, 6), np.uint8)
    expected[1:3, 1:3] = 7
    assert paint([{"id": 7, "polygons": [square]}]).tolist() == expected.tolist()
    shares = [v / (6 if n % 2 == 0 else 4) for n, v in enumerate(square)]
    assert paint([{"id": 7, "polygons": [shares], "relative": True}]).tolist() == expected.tolist()
    expected[2, 2] = 9
    over = {"id": 9, "polygons": [[2, 2, 3, 2, 3, 3, 2, 3]]}
    assert paint([{"id": 7, "polygons": [square]}, over]).tolist() == expected.tolist()
    assert paint([]).tolist() == np.zeros((4, 6)).tolist()


def test_run_lengths_of_both_forms() -> None:
    from faster_coco_eval.core import mask as coco

    inside_HW = np.zeros((4, 6), np.uint8)
    inside_HW[1:3, 2:5] = 1
    packed = coco.encode(np.asfortranarray(inside_HW))
    text = {"size": [4, 6], "counts": packed["counts"].decode()}
    plain = {"size": [4, 6], "counts": [9, 2, 2, 2, 2, 2, 5]}
    for rle in (text, plain):
        assert paint([{"id": 1, "rle": rle}]).tolist() == inside_HW.tolist()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"id": 256, "polygons": []}, "class id 256: accepted: 0 to 255"),
        ({"id": 1, "polygons": [[1, 1, 3, 3]]}, "4 numbers: accepted: x and y of three points"),
        ({"id": 1, "polygons": [[1, 1, 3, 1, 3]]}, "5 numbers"),
        ({"id": 1, "polygons": [[1, 1, 3, 1, 1e9, 3]]}, "coordinates far outside of 6 x 4 px"),
        ({"id": 1, "polygons": [[1, 1, 3, 1, float("nan"), 3]]}, "coordinates far outside"),
        ({"id": 1, "polygons": [["a", 1, 3, 1, 3, 3]]}, "outline 1 of its mask"),
        ({"id": 1, "rle": {"size": [5, 6], "counts": [30]}}, "runs for 6 x 5 px: accepted: 6 x 4"),
        ({"id": 1, "rle": {"size": [4, 6], "counts": [20]}}, "runs of 20 pixels: accepted: 24"),
        ({"id": 1, "rle": {"size": [4, 6], "counts": [30, -6]}}, "runs of 24 pixels"),
        ({"id": 1, "rle": {"size": [4, 6], "counts": "???"}}, "outline 1 of its mask: RLE"),
    ],
)
def test_outlines_that_cannot_be_painted_say_why(shape: dict[str, object], message: str) -> None:
    with pytest.raises(PictureError, match=message):
        paint([shape])


# ---- on the picture


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_turned_as_its_picture_is(orientation: int) -> None:
    ids_HW = np.zeros((40, 60), np.uint8)
    ids_HW[:20, :30] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = encoded(Image.fromarray(np.stack([ids_HW] * 3, axis=2)), "PNG", exif=exif)
    upright = image.decode(picture)
    assert masks.fitted(ids_HW, upright.size, orientation).tolist() == np.asarray(upright)[..., 0].tolist()
    # The mask's own orientation counts, in any format.
    for kind in ("PNG", "TIFF"):
        own = encoded(Image.fromarray(ids_HW), kind, exif=exif)
        assert masks.raw(own).values_HW.tolist() == np.asarray(upright)[..., 0].tolist()


def test_ramps_are_seen_along_smoothed_edges_only() -> None:
    ids_HW = np.zeros((60, 60), np.uint8)
    ids_HW[10:40, 10:40] = 200
    plain = masks.seen([encoded(Image.fromarray(ids_HW))], None, AS_STORED, (60, 60))
    assert plain["mask_between"] == 0 and plain["mask_steps"] == 120
    assert plain["mask_values"] == [0, 200] and plain["mask_counts"] == [2700, 900]
    soft = Image.fromarray(ids_HW).resize((90, 90), Image.Resampling.BILINEAR)
    smooth = masks.seen([encoded(soft)], None, AS_STORED, (90, 90))
    assert smooth["mask_between"] > 0.3 * smooth["mask_steps"]
