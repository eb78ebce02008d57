"""A synthetic data set: ten kinds of textured objects in front of cluttered backgrounds.

It allows a first run without a download. A kind is a shape with a texture. Each shape and each texture occurs
in two kinds, so neither alone identifies a kind, and colour carries no information. Pose, scale, light,
occlusion, blur and noise vary; the clutter has the same textures. The same arguments give the same bytes.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from tlray import storage
from tlray.errors import ConfigError
from tlray.observer import Progress
from tlray.storage import targets

Map = npt.NDArray[np.float32]  # (side, side), colours (side, side, 3)

SHAPES = ("disc", "square", "triangle", "star", "ring")
TEXTURES = ("striped", "dotted", "checked", "wavy", "grained")
KINDS = [f"{TEXTURES[(n + shift) % 5]}-{SHAPES[n]}" for n in range(5) for shift in (0, 1)]
SPLITS = {"train": 4 / 6, "validation": 1 / 6, "test": 1 / 6}
MARKER = ".sample.json"  # the arguments; hidden, as it is not part of the data


def draw(
    target_dir: str,
    num_per_class: int = 150,
    size: int = 96,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Draw ``num_per_class`` pictures of each kind, ``size`` px wide and high, as ``<split>/<class>/*.jpg``.

    Returns split -> number of pictures. ``target_dir`` may be a folder or an ``s3://`` URI; an earlier data
    set of this function there is replaced. Raises ConfigError for numbers out of range, StorageError where
    other files are there.
    """
    if num_per_class < 6:
        raise ConfigError(
            f"num_per_class = {num_per_class}: accepted: 6 or more (4 train, 1 validation, 1 test)"
        )
    if not 32 <= size <= 1024:
        raise ConfigError(f"size = {size}: accepted: 32 to 1024 px")
    if seed < 0:
        raise ConfigError(f"seed = {seed}: accepted: 0 or more")
    targets.check_folder(target_dir, beside=True)
    held_out = {
        name: max(1, round(num_per_class * share)) for name, share in SPLITS.items() if name != "train"
    }
    counts = {"train": num_per_class - sum(held_out.values()), **held_out}
    jobs = [
        (split, number, n)
        for split, count in counts.items()
        for number in range(len(KINDS))
        for n in range(count)
    ]
    with storage.publish(target_dir, MARKER) as folder:
        for done, (split, number, n) in enumerate(jobs):
            place = folder / split / KINDS[number]
            if n == 0:
                place.mkdir(parents=True)
            part = list(counts).index(split)
            (place / f"{n:04d}.jpg").write_bytes(
                picture(number, size, np.random.default_rng([seed, part, number, n]))
            )
            if progress is not None and ((done + 1) % 50 == 0 or done + 1 == len(jobs)):
                progress("draw", done + 1, len(jobs))
        (folder / MARKER).write_text(
            f'{{"num_per_class": {num_per_class}, "seed": {seed}, "size": {size}}}\n'
        )
    return {split: count * len(KINDS) for split, count in counts.items()}


def picture(kind: int, size: int, rng: np.random.Generator) -> bytes:
    """One JPEG of a kind (index into `KINDS`), ``size`` px wide and high."""
    shape, texture = SHAPES[kind // 2], TEXTURES[(kind // 2 + kind % 2) % 5]
    x, y = _grid(size)
    canvas = _smooth(rng, 4, size, 3) * rng.uniform(40, 100) + rng.uniform(40, 140)
    for _ in range(rng.integers(2, 6)):
        _clutter(canvas, rng, x, y, centre=rng.uniform(-1, 1, 2), reach=rng.uniform(0.1, 0.3))
    centre, scale = rng.uniform(-0.2, 0.2, 2), rng.uniform(0.55, 0.85)
    u, v = _pose(rng, x, y, centre, scale)
    mask = _cover(_distance(shape, u, v), scale * size / 2)
    shade = (1 + rng.uniform(-0.35, 0.35) * u + rng.uniform(-0.35, 0.35) * v)[..., None]
    shadow = np.roll(mask, rng.integers(1, 4, 2), (0, 1)) * rng.uniform(0.1, 0.5)
    _paint(canvas, shadow, np.zeros(3, np.float32))
    _paint(canvas, mask, _textured(texture, rng, u, v) * shade)
    for _ in range(rng.integers(0, 2)):  # an occlusion at the object's edge
        angle = rng.uniform(0, 2 * np.pi)
        rim = centre + scale * np.array([np.cos(angle), np.sin(angle)])
        _clutter(canvas, rng, x, y, centre=rim, reach=rng.uniform(0.2, 0.45) * scale)
    tilt = rng.uniform(-0.3, 0.3, 2)
    canvas *= (rng.uniform(0.65, 1.15) * (1 + tilt[0] * x + tilt[1] * y))[..., None]
    canvas += rng.normal(0, rng.uniform(2, 9), canvas.shape).astype(np.float32)
    drawn = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    if (blur := rng.uniform(-0.4, 0.9)) > 0:
        drawn = drawn.filter(ImageFilter.GaussianBlur(blur * size / 96))
    out = io.BytesIO()
    drawn.save(out, "JPEG", quality=int(rng.integers(55, 91)))
    return out.getvalue()


def _grid(size: int) -> tuple[Map, Map]:
    """x and y of pixel centres, in -1..1."""
    line = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    return line[None, :].repeat(size, 0), line[:, None].repeat(size, 1)


def _window(size: int, centre: npt.ArrayLike, reach: float) -> tuple[slice, slice]:
    """Rows and columns of the pixels within ``reach`` of a centre."""
    low, high = (
        np.clip((np.asarray(centre) + d + 1) * (size / 2), 0, size).astype(int) for d in (-reach, reach)
    )
    return slice(low[1], high[1]), slice(low[0], high[0])


def _pose(rng: np.random.Generator, x: Map, y: Map, centre: npt.ArrayLike, scale: float) -> tuple[Map, Map]:
    """Coordinates of the picture -> those of an object that is moved, scaled, rotated and slanted."""
    cx, cy = np.asarray(centre, dtype=np.float32)
    turn, slant = rng.uniform(0, 2 * np.pi), rng.uniform(0, np.pi)
    u, v = _turned((x - cx) / np.float32(scale), (y - cy) / np.float32(scale), slant)
    u /= np.float32(rng.uniform(0.8, 1))
    return _turned(u, v, turn)


def _turned(u: Map, v: Map, angle: float) -> tuple[Map, Map]:
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * u + s * v, c * v - s * u


def _cover(distance: Map, px: float) -> Map:
    """Distance to an edge, negative inside, in units of ``px`` pixels -> the covered share of each pixel."""
    cover: Map = np.clip(0.5 - distance * np.float32(px), 0, 1)
    return cover


def _paint(canvas: Map, mask: Map, colour: Map) -> None:
    canvas += mask[..., None] * (colour - canvas)


def _distance(shape: str, u: Map, v: Map) -> Map:
    """The approximate distance to the edge of a shape with a radius of about 1, negative inside."""
    if shape == "square":
        return np.asarray(np.maximum(np.abs(u), np.abs(v)) - 0.8, np.float32)
    r = np.hypot(u, v)
    if shape == "disc":
        return np.asarray(r - 0.9, np.float32)
    if shape == "ring":
        return np.asarray(np.abs(r - 0.7) - 0.27, np.float32)
    corners = 3 if shape == "triangle" else 5
    step = 2 * np.pi / corners
    turn = np.abs(np.mod(np.arctan2(v, u), step) - step / 2).astype(np.float32)  # from a mid-edge
    if shape == "triangle":
        return np.asarray(r * np.cos(turn) - 0.55, np.float32)
    # A star's edge goes from a tip (radius 1) to the next notch (radius 0.45), at half a step.
    tip = np.array([np.cos(step / 2), np.sin(step / 2)]) * 1.0
    edge = tip - np.array([0.45, 0.0])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    p, q = r * np.cos(turn), r * np.sin(turn)
    return np.asarray((p - 0.45) * normal[0] + q * normal[1], np.float32)


def _textured(texture: str, rng: np.random.Generator, u: Map, v: Map) -> Map:
    """A texture in two random colours, (side, side, 3)."""
    u, v = _turned(u, v, rng.uniform(0, 2 * np.pi))
    f = np.float32(rng.uniform(8.5, 12))
    a, b = rng.uniform(0, 2 * np.pi, 2).astype(np.float32)
    if texture == "striped":
        wave = np.sin(f * u + a)
    elif texture == "wavy":
        wave = np.sin(f * u + a + np.float32(rng.uniform(1.6, 2.6)) * np.sin(f * np.float32(0.6) * v + b))
    elif texture == "checked":
        wave = 1.6 * np.sin(f * np.float32(0.8) * u + a) * np.sin(f * np.float32(0.8) * v + b)
    elif texture == "dotted":
        wave = np.cos(f * u + a) + np.cos(f * v + b) - np.float32(0.5)
    else:  # grained: waves of the same length in many directions
        angles, phases = rng.uniform(0, np.pi, 7), rng.uniform(0, 2 * np.pi, 7)
        waves = [
            np.sin(np.float32(np.cos(t)) * f * u + np.float32(np.sin(t)) * f * v + np.float32(p))
            for t, p in zip(angles, phases, strict=True)
        ]
        wave = np.sum(waves, axis=0, dtype=np.float32) * np.float32(0.6)
    mix = np.clip(wave * np.float32(rng.uniform(1.5, 4)) + 0.5, 0, 1)[..., None]
    dark = rng.uniform(10, 150, 3)
    light = dark + rng.uniform(45, 120) + rng.uniform(-25, 25, 3)
    return np.asarray(dark + mix * (light - dark), np.float32)


def _clutter(
    canvas: Map,
    rng: np.random.Generator,
    x: Map,
    y: Map,
    centre: npt.ArrayLike,
    reach: float,
) -> None:
    """Paint a blob or a bar, with a random texture or in one colour."""
    size = canvas.shape[0]
    box = _window(size, centre, 1.75 * reach)
    canvas, x, y = canvas[box], x[box], y[box]
    if canvas.size == 0:
        return
    u, v = _pose(rng, x, y, centre, reach)
    if rng.random() < 0.35:
        distance = np.maximum(np.abs(u) - np.float32(1.6), np.abs(v) - np.float32(rng.uniform(0.15, 0.4)))
    else:
        angle, phase = np.arctan2(v, u), rng.uniform(0, 2 * np.pi, 2)
        wobble = 0.18 * np.sin(2 * angle + phase[0]) + 0.12 * np.sin(3 * angle + phase[1])
        distance = (np.hypot(u, v) - 0.8 - wobble).astype(np.float32)
    mask = _cover(distance, reach * size / 2)
    if rng.random() < 0.5:
        _paint(canvas, mask, rng.uniform(20, 230, 3).astype(np.float32))
    else:
        scale = np.float32(reach / 0.6)  # the texture's wavelength does not depend on the size of the blob
        _paint(canvas, mask, _textured(TEXTURES[rng.integers(5)], rng, u * scale, v * scale))


def _smooth(rng: np.random.Generator, cells: int, size: int, channels: int) -> Map:
    """Low-frequency noise in 0..1, (size, size, channels)."""
    coarse = rng.uniform(0, 255, (cells, cells, channels)).astype(np.uint8)
    fine = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(fine, np.float32) / np.float32(255)
