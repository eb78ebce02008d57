"""Augmentation: a pure function of its generator; operations equal torchvision's; placed labels stay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from tlray.config import Augmentation
from tlray.data import augment
from tlray.data.augment import MILD, RAND, WIDE, Augment, operate
from tlray.data.image import PADDING, Preprocess

POLICIES = ("none", "colour", "mild", "wide", "rand", "photometric")


def photo(seed: int = 0, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """A picture of smooth colours, for which different rounding makes little difference."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def pixels(seed: int = 0) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(photo(seed)).transpose(2, 0, 1))


def settled(**changes: object) -> Augmentation:
    return Augmentation(**{"policy": "mild", "scale": (1.0, 1.0), **changes})


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_generator_gives_the_same_pixels(policy: str) -> None:
    drawn = Augment(settled(policy=policy, erase=0.5))
    same = [drawn.pixels(np.random.default_rng(seed), pixels()) for seed in (3, 3)]
    assert (same[0] == same[1]).all() and same[0].shape == (3, 40, 40) and same[0].dtype == np.uint8
    if policy != "none":
        others = [drawn.pixels(np.random.default_rng(seed), pixels()) for seed in range(12)]
        assert len({x.tobytes() for x in others}) > 6


def moved(name: str, value: float) -> dict[str, object]:
    """The arguments of torchvision's TrivialAugment for its affine function."""
    degrees = float(np.degrees(np.arctan(value)))
    kind: dict[str, dict[str, object]] = {
        "rotate": {"angle": value, "translate": [0, 0], "shear": [0.0, 0.0]},
        "shift_x": {"angle": 0.0, "translate": [round(value * 40), 0], "shear": [0.0, 0.0]},
        "shift_y": {"angle": 0.0, "translate": [0, round(value * 40)], "shear": [0.0, 0.0]},
        "shear_x": {"angle": 0.0, "translate": [0, 0], "shear": [degrees, 0.0]},
        "shear_y": {"angle": 0.0, "translate": [0, 0], "shear": [0.0, degrees]},
    }
    return kind[name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rotate", 20.0),
        ("rotate", -75.0),
        ("shift_x", 0.2),
        ("shift_y", -0.1),
        ("shear_x", 0.3),
        ("shear_y", -0.4),
    ],
)
def test_moves_are_torchvisions(name: str, value: float) -> None:
    theirs = F.affine(
        photo(),
        scale=1.0,
        interpolation=v2.InterpolationMode.BILINEAR,
        fill=list(PADDING),
        **moved(name, value),
    )
    ours = operate(photo(), name, value)
    inside = np.abs(np.asarray(ours).astype(int) - np.asarray(theirs))[4:-4, 4:-4]
    assert np.median(inside) <= 1 and inside.mean() < 3
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(photo())).mean() > 3


@pytest.mark.parametrize(
    ("name", "value", "theirs"),
    [
        ("brightness", 0.4, lambda p: F.adjust_brightness(p, 1.4)),
        ("saturation", -0.6, lambda p: F.adjust_saturation(p, 0.4)),
        ("contrast", 0.7, lambda p: F.adjust_contrast(p, 1.7)),
        ("sharpness", 0.8, lambda p: F.adjust_sharpness(p, 1.8)),
        ("posterize", 3, lambda p: F.posterize(p, 3)),
        ("solarize", 100, lambda p: F.solarize(p, 100)),
        ("autocontrast", 0, F.autocontrast),
        ("equalize", 0, F.equalize),
    ],
)
def test_colours_are_torchvisions(name: str, value: float, theirs: object) -> None:
    assert (np.asarray(operate(photo(), name, value)) == np.asarray(theirs(photo()))).all()


def test_spaces_are_torchvisions_where_they_have_its_name() -> None:
    wide = v2.TrivialAugmentWide()._AUGMENTATION_SPACE
    ours = {op.name: op for op in WIDE}
    for name, theirs in (("shear_x", "ShearX"), ("rotate", "Rotate"), ("brightness", "Brightness")):
        most = float(wide[theirs][0](augment.BINS, 40, 40)[-1])
        assert ours[name].high == pytest.approx(most) and ours[name].signed == wide[theirs][1]
    for space in (MILD, WIDE, RAND):
        assert len({op.name for op in space}) == len(space) == len(wide)


def test_nothing_moves_where_labels_have_places() -> None:
    """A picture of one grey tone stays one tone under every operation on colours; moves bring in padding."""
    flat = np.full((3, 40, 40), 60, np.uint8)
    for policy in ("mild", "wide", "rand"):
        for seed in range(60):
            out = Augment(settled(policy=policy, erase=1.0), placed=True).pixels(
                np.random.default_rng(seed), flat
            )
            assert len(np.unique(out.reshape(3, -1), axis=1).T) == 1
        free = [
            Augment(settled(policy=policy)).pixels(np.random.default_rng(seed), flat) for seed in range(60)
        ]
        assert any(len(np.unique(x)) > 1 for x in free)


def test_erasing_changes_a_rectangle_of_2_to_33_percent() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64)).astype(np.uint8)
    shares = []
    for seed in range(40):
        out = Augment(settled(policy="none", erase=1.0)).pixels(np.random.default_rng(seed), noise)
        shares.append(float((out != noise).any(0).mean()))
    assert 0.005 < min(shares) < 0.1 and 0.25 < max(shares) < 0.36


def test_scale_of_one_is_the_framing_of_evaluation() -> None:
    pre = Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    drawn = Augment(settled(hflip=1.0)).sample(np.random.default_rng(0), (90, 50), pre)
    assert drawn.crop == pre.geometry((90, 50)).crop and drawn.hflip


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["crop", "letterbox", "stretch"]),
    st.integers(20, 300),
    st.integers(20, 300),
    st.integers(0, 999),
)
def test_scale_jitter_stays_in_the_picture_and_in_the_input(
    fit: str, width: int, height: int, seed: int
) -> None:
    pre = Preprocess(size=(48, 32), fit=fit, mean=(0.5,) * 3, std=(0.5,) * 3)
    drawn = Augment(settled(scale_jitter=(0.5, 2.0))).sample(
        np.random.default_rng(seed), (width, height), pre
    )
    x0, y0, x1, y1 = drawn.crop
    assert -1e-9 <= x0 < x1 <= width + 1e-9 and -1e-9 <= y0 < y1 <= height + 1e-9
    px0, py0, px1, py1 = drawn.placed
    assert 0 <= px0 < px1 <= 48 and 0 <= py0 < py1 <= 32
    points = np.array([[x0, y0], [x1, y1]])
    assert np.allclose(drawn.to_source(drawn.to_model(points)), points)
