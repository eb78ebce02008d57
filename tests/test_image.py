"""Pixels and coordinates: what a geometry does to pixels it does to points, and undoes."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.toys import picture
from tlray.config import Augmentation
from tlray.errors import PictureError
from tlray.image import Augment, Preprocess, decode, probe, render, shrink, source_size

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
    augment = Augment(Augmentation(hflip=0.5, vflip=0.5))
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
    array[20:28, 50:58] = 255  # a white square; where it lands tells where pixels go
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
    from tlray.image import TRANSPOSE

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
    assert np.asarray(decode(clear)).min() == 255  # transparent shows what is behind: white
    assert decode(encode(np.full((5, 5), 7, np.uint8))).mode == "RGB"


def test_scaled_decoding_is_close_to_full_decoding():
    big = picture(2, 3, (800, 640))
    small, _ = render(big, pre((64, 64)))
    full = Image.open(io.BytesIO(big)).resize((64, 64), Image.Resampling.BILINEAR, box=(80, 0, 720, 640))
    assert np.abs(small.astype(int) - np.asarray(full).transpose(2, 0, 1)).mean() < 4


def test_augmentation_is_a_function_of_its_generator():
    augment, data, chosen = Augment(Augmentation()), picture(0, 5), pre()

    def draw(seed):
        rng = np.random.default_rng(seed)
        x, _ = render(data, chosen, augment.sample(rng, source_size(data), chosen))
        return augment.colour(rng, x)

    assert (draw(3) == draw(3)).all() and (draw(3) != draw(4)).any()


def test_colour_without_change_keeps_pixels():
    still = Augment(Augmentation(brightness=1e-9, contrast=1e-9, saturation=1e-9))
    x, _ = render(picture(1, 2), pre())
    assert np.abs(still.colour(np.random.default_rng(0), x).astype(int) - x).max() <= 1


def test_shrink_bounds_the_side_and_leaves_small_pictures_alone():
    data = picture(1, 1, (300, 200))
    assert source_size(shrink(data, 100)) == (100, 67)
    assert shrink(data, 300) is data
    assert shrink(data, 100) == shrink(data, 100)
