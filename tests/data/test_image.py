"""Pixels and coordinates: a geometry maps points as it maps pixels, in both directions."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.toys import picture
from tlray.config import Augmentation
from tlray.data.augment import Augment
from tlray.data.image import TRANSPOSE, Preprocess, decode, probe, render, shrink, source_size
from tlray.errors import PictureError

FITS = ("crop", "letterbox", "stretch")


def pre(size=(32, 32), fit="crop", **more):
    return Preprocess(size=size, fit=fit, mean=(0.5,) * 3, std=(0.5,) * 3, **more)


def encode(array, kind="PNG", **options):
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind, **options)
    return out.getvalue()


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(FITS), st.integers(1, 900), st.integers(1, 900), st.integers(0, 2**32), st.booleans(),
    st.integers(16, 200), st.integers(16, 200),
)  # fmt: skip
def test_points_and_boxes_come_back(fit, width, height, seed, plain, out_w, out_h):
    rng = np.random.default_rng(seed)
    chosen = pre((out_w, out_h), fit)
    augment = Augment(Augmentation(scale=(0.35, 1.0), hflip=0.5, vflip=0.5))
    geometry = chosen.geometry((width, height)) if plain else augment.sample(rng, (width, height), chosen)
    points = rng.uniform(0, (width, height), (5, 2))
    assert np.allclose(geometry.to_source(geometry.to_model(points)), points, atol=1e-6)
    boxes = np.concatenate([points, points + rng.uniform(1, 50, (5, 2))], axis=1)
    assert np.allclose(geometry.boxes_to_source(geometry.boxes_to_model(boxes)), boxes, atol=1e-6)
    x0, y0, x1, y1 = geometry.crop
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("hflip", "vflip"), [(False, False), (True, False), (False, True), (True, True)])
def test_pixels_go_where_the_geometry_says(fit, hflip, vflip):
    array = np.zeros((60, 90, 3), np.uint8)
    array[20:28, 50:58] = 255  # a white square, whose place in the input shows where pixels go
    chosen = pre((48, 48), fit)
    plain = chosen.geometry((90, 60))
    geometry = chosen.place((90, 60), plain.crop, hflip, vflip)
    x, used = render(encode(array), chosen, geometry)
    assert x.shape == (3, 48, 48) and x.dtype == np.uint8 and used == geometry
    x0, y0, x1, y1 = geometry.boxes_to_model(np.array([[50, 20, 58, 28]]))[0]
    rows, columns = np.nonzero(x[0] > 200)
    assert abs(columns.mean() + 0.5 - (x0 + x1) / 2) < 0.6 and abs(rows.mean() + 0.5 - (y0 + y1) / 2) < 0.6


def test_letterbox_pads_with_grey_and_keeps_shape():
    x, geometry = render(encode(np.full((20, 40, 3), 255, np.uint8)), pre((40, 40), "letterbox"))
    assert geometry.placed == (0, 10, 40, 30)
    assert (x[:, 10:30] == 255).all() and (x[:, :10] == 114).all() and (x[:, 30:] == 114).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = np.zeros((24, 40, 3), np.uint8)
    upright[:8, :8] = 255
    back = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, 1)
    stored = Image.fromarray(upright)
    stored = stored.transpose(TRANSPOSE[back]) if back > 1 else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    stored.save(out, "JPEG", exif=exif, quality=95)
    assert source_size(out.getvalue()) == (40, 24)
    assert np.abs(np.asarray(decode(out.getvalue())).astype(int) - upright).mean() < 3
    assert probe(out.getvalue()).orientation == orientation


@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [
        (b"", "empty", 400),
        (b"hello, I am no picture", "not_a_picture", 415),
        (picture(0, 0)[:-200], "truncated", 400),
        (picture(0, 0, kind="PNG")[:-200], "truncated", 400),
        (encode(np.zeros((1000, 1000), np.uint8)), "too_many_pixels", 413),
    ],
)
def test_bad_bytes_say_what_they_are(data, kind, status):
    for use in (probe, decode):
        with pytest.raises(PictureError) as caught:
            use(data, max_pixels=500_000)
        assert (caught.value.kind, caught.value.status) == (kind, status)
        assert "\n" not in str(caught.value)
    with pytest.raises(PictureError):
        render(data, pre(max_pixels=500_000))


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=300),
    st.integers(0, 600),
    st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"]),
)
def test_no_bytes_raise_anything_else(noise, position, kind):
    data = bytearray(picture(1, 1, (20, 16), kind))
    at = position % len(data)
    data[at : at + len(noise)] = noise
    for candidate in (bytes(data), noise):
        try:
            render(candidate, pre())
        except PictureError as error:
            assert error.status in (400, 413, 415)


def test_modes_become_rgb():
    grey16 = encode(np.full((10, 10), 65535, np.uint16))
    assert np.asarray(decode(grey16)).min() == 255
    clear = encode(np.zeros((10, 10, 4), np.uint8))
    assert np.asarray(decode(clear)).min() == 255  # transparency over white
    assert decode(encode(np.full((5, 5), 7, np.uint8))).mode == "RGB"


def test_scaled_decoding_is_close_to_full_decoding():
    big = picture(2, 3, (800, 640))
    small, _ = render(big, pre((64, 64)))
    full = Image.open(io.BytesIO(big)).resize((64, 64), Image.Resampling.BILINEAR, box=(80, 0, 720, 640))
    assert np.abs(small.astype(int) - np.asarray(full).transpose(2, 0, 1)).mean() < 4


def test_colour_without_change_keeps_pixels():
    still = Augment(Augmentation(policy="colour", brightness=1e-9, contrast=1e-9, saturation=1e-9))
    x, _ = render(picture(1, 2), pre())
    assert np.abs(still.pixels(np.random.default_rng(0), x).astype(int) - x).max() <= 1


def test_shrink_bounds_the_side_and_leaves_small_pictures_alone():
    data = picture(1, 1, (300, 200))
    assert source_size(shrink(data, 100)) == (100, 67)
    assert shrink(data, 300) is data
    assert shrink(data, 100) == shrink(data, 100)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_once(orientation: int) -> None:
    """Pillow turns a TIFF itself when it loads it."""
    upright = np.zeros((24, 40, 3), np.uint8)
    upright[:8, :8] = 255
    back = {6: 8, 8: 6}.get(orientation, orientation)
    stored = Image.fromarray(upright)
    stored = stored.transpose(TRANSPOSE[back]) if back > 1 else stored
    out = io.BytesIO()
    stored.save(out, "TIFF", tiffinfo={0x0112: orientation})
    data = out.getvalue()
    assert (source_size(data), probe(data).orientation) == ((40, 24), orientation)
    assert np.array_equal(np.asarray(decode(data)), upright)
    x_CHW, geometry = render(data, Preprocess(size=(40, 24), fit="stretch", mean=(0, 0, 0), std=(1, 1, 1)))
    assert geometry.source == (40, 24)
    assert np.array_equal(x_CHW.transpose(1, 2, 0), upright)


@pytest.mark.parametrize(
    ("array", "kind", "depth", "mean"),
    [
        (np.linspace(0, 1, 600, dtype=np.float32), "TIFF", "0 to 1", 127),
        (np.linspace(0, 255, 600, dtype=np.float32), "TIFF", "8 bits", 127),
        (np.linspace(0, 255, 600).astype(np.int32), "TIFF", "8 bits", 127),
        (np.linspace(0, 4095, 600).astype(np.uint16), "PNG", "12 bits", 127),
        (np.linspace(0, 65535, 600).astype(np.uint16), "PNG", "16 bits", 127),
        (np.linspace(-500, 255, 600).astype(np.int32), "TIFF", "8 bits", 43),
        (np.linspace(0, 1e6, 600).astype(np.int32), "TIFF", "its own brightest pixel", 127),
        (np.where(np.arange(600) % 2, np.nan, 1).astype(np.float32), "TIFF", "0 to 1", 127),
    ],
)
def test_values_of_more_than_8_bits_keep_their_brightness(
    array: np.ndarray, kind: str, depth: str, mean: float
) -> None:
    out = io.BytesIO()
    Image.fromarray(array.reshape(20, 30)).save(out, kind)
    assert probe(out.getvalue()).depth == depth
    assert abs(np.asarray(decode(out.getvalue())).mean() - mean) < 2


BYTE, ASCII, SHORT, RATIONAL, FLOAT = 1, 2, 3, 5, 11  # types of EXIF values


@pytest.mark.parametrize(
    ("kind", "value", "turned"),
    [
        (BYTE, b"\x06\0\0\0", True),
        (ASCII, b"6\0\0\0", False),
        (SHORT, b"\x06\0\0\0", True),
        (SHORT, b"\x2c\x01\0\0", False),  # 300
        (RATIONAL, b"\xff\xff\xff\xff", False),  # an offset beyond the end
        (FLOAT, struct.pack("<f", 6), True),
    ],
)
def test_odd_orientations_do_not_make_a_picture_unusable(kind: int, value: bytes, turned: bool) -> None:
    ifd = struct.pack("<HHHI", 1, 0x0112, kind, 1) + value + bytes(4)
    out = io.BytesIO()
    Image.new("RGB", (40, 24), "red").save(out, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + ifd)
    assert source_size(out.getvalue()) == ((24, 40) if turned else (40, 24))
    assert decode(out.getvalue()).size == source_size(out.getvalue())


@pytest.mark.parametrize("size", [(3000, 2), (1, 900), (300, 200)])
def test_shrinking_never_reaches_0_px(size: tuple[int, int]) -> None:
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, "PNG")
    small = source_size(shrink(out.getvalue(), 256))
    assert max(small) == 256 and min(small) == max(1, round(min(size) * 256 / max(size)))
