"""Mixed pictures: a pure function of (seed, view, row), with targets that match the pixels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st
from PIL import Image

from tests.toys import damage, dataset, names, scenes_dataset
from tlray import config, tasks
from tlray.config import Augmentation
from tlray.data import loader, mixing, schema
from tlray.data.augment import balanced
from tlray.data.dataset import Dataset
from tlray.data.image import Preprocess
from tlray.errors import ConfigError, DataError
from tlray.search.space import accepted

PRE = Preprocess(size=(64, 48), mean=(0.5,) * 3, std=(0.5,) * 3)
RED, BLUE, GREEN = (250, 20, 20), (20, 20, 250), (20, 250, 20)


def augmentation(**changes: Any) -> Augmentation:
    return Augmentation(**{"policy": "none", "scale": (1.0, 1.0), "hflip": 0.0, **changes})


def source(uri: str, task: str, augment: Augmentation | None, pre: Preprocess = PRE) -> loader.Source:
    known = tasks.load({"name": task})
    labels = [] if task == "face_recognition" else names(next(iter(known.columns.values())))
    return loader.Source(uri, "train", known, tuple(labels), pre, augment, seed=3)


def batch(split: loader.Source, rows: Any, epoch: int = 0) -> loader.Batch:
    return loader.make_batch(split, Dataset.open(split.uri).fingerprint, epoch, np.array(rows))


def same(one: Any, other: Any) -> bool:
    pairs = zip(one, other, strict=True) if isinstance(one, list) else [(one, other)]
    return all(torch.equal(a, b) for a, b in pairs)


ALL = {
    name: {key: 0.6 for key in tasks.load({"name": name}).supported_augmentations} for name in tasks.names()
}


@pytest.mark.parametrize("task", tasks.names())
def test_pixels_and_targets_depend_on_seed_epoch_and_row_alone(task: str, tmp_path: Path) -> None:
    """They do not depend on the rest of the batch or its order; `annotation` gives the same targets."""
    uri = scenes_dataset(tmp_path / "d", tasks.load({"name": task}).columns, train=20)
    split = source(uri, task, augmentation(policy="colour", hflip=0.5, scale=(0.5, 1.0), **ALL[task]))
    whole = batch(split, range(20), 1)
    for rows in ([7], [3, 19, 7], list(range(19, -1, -1))):
        part = batch(split, rows, 1)
        for at, row in enumerate(rows):
            assert torch.equal(part.x_BCHW[at], whole.x_BCHW[row])
            assert all(torch.equal(v[at], whole.targets[name][row]) for name, v in part.targets.items())
    fingerprint = Dataset.open(uri).fingerprint
    without = [loader.annotation(split, fingerprint, 1, row) for row in range(20)]
    targets = loader.collate([target for target, _ in without])
    assert targets.keys() == whole.targets.keys()
    assert all(same(targets[name], whole.targets[name]) for name in targets)
    assert [geometry for _, geometry in without] == whole.geometries
    plain = batch(source(uri, task, augmentation(policy="colour", hflip=0.5, scale=(0.5, 1.0))), range(20), 1)
    differ = [not torch.equal(a, b) for a, b in zip(plain.x_BCHW, whole.x_BCHW, strict=True)]
    assert sum(differ) >= 6


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_the_share_is_that_of_the_rows_own_pixels(kind: str, tmp_path: Path) -> None:
    """With white pictures of class 0 and black ones of class 1, in one row group."""
    uri = coloured(tmp_path / "d", [(255,) * 3, (0,) * 3] * 10)
    mixed = batch(source(uri, "classification", augmentation(**{kind: 1.0})), range(20))
    white, pairs = mixed.x_BCHW.double().mean((1, 2, 3)) / 255, set()
    for row in range(20):
        own, other, share = (float(mixed.targets[n][row]) for n in ("label", "partner.label", "share"))
        pairs.add((own, other))
        expected = share * (1 - own) + (1 - share) * (1 - other)
        assert float(white[row]) == pytest.approx(expected, abs=0.003), row  # half a grey level
    assert pairs == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert mixed.targets["share"].std() > 0.1


@tries(max_examples=80, deadline=None)
@given(st.integers(0, 9999), st.floats(0.05, 4), st.sampled_from([(64, 48), (17, 90), (224, 224)]))
def test_cutmix_takes_a_rectangle_of_its_share(seed: int, alpha: float, size: tuple[int, int]) -> None:
    mix = mixing.draw(np.random.default_rng(seed), augmentation(cutmix=alpha), size)
    assert mix is not None and 0 <= mix.share <= 1
    own, other = (np.full((3, size[1], size[0]), grey, np.uint8) for grey in (1, 0))
    out = mixing.pixels(mix, [own, other], size)
    assert out.mean() == pytest.approx(mix.share, abs=1e-9)


def test_both_ways_come_at_even_odds() -> None:
    drawn = [
        mixing.draw(np.random.default_rng(n), augmentation(mixup=0.2, cutmix=1.0), (8, 8)) for n in range(400)
    ]
    cuts = sum(mix is not None and mix.kind == "cutmix" for mix in drawn)
    assert 150 < cuts < 250 and None not in drawn


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_partners_are_other_rows_of_the_group(count: int) -> None:
    group, seen = range(40, 40 + count), set()
    for seed in range(60):
        partners = mixing.partners(np.random.default_rng(seed), group, 40, 3)
        assert set(partners) <= set(group) and (count == 1 or 40 not in partners)
        assert count < 4 or len(set(partners)) == 3
        seen |= set(partners)
    assert seen == set(group) - ({40} if count > 1 else set())


def test_partners_come_from_the_rows_own_row_group(tmp_path: Path) -> None:
    uri = coloured(tmp_path / "d", [(10 * i,) * 3 for i in range(20)], group_rows=5)
    split = source(uri, "classification", augmentation(mixup=1.0))
    mixed = batch(split, range(20))
    for row in range(20):
        first = 10 * 5 * (row // 5)
        assert first <= float(mixed.x_BCHW[row].float().mean()) <= first + 41


def test_one_view_is_the_plain_picture(tmp_path: Path) -> None:
    uri = dataset(tmp_path / "d", train=6)
    one = batch(source(uri, "classification", augmentation(mixup=1.0, views=1)), range(6))
    assert one.targets.keys() == {"label"}
    assert torch.equal(one.x_BCHW, batch(source(uri, "classification", None), range(6)).x_BCHW)


def test_a_damaged_partner_is_named(tmp_path: Path) -> None:
    uri = dataset(tmp_path / "d", train=2)
    damage(uri, "train", 1)
    with pytest.raises(DataError, match=r"\(train, row 1, train/1\.jpg\): truncated"):
        batch(source(uri, "classification", augmentation(mixup=1.0)), [0])


# ---- mosaic: squares of one colour on another, whose boxes can be read off the pixels

OBJECT = {0: RED, 1: BLUE}


def coloured(folder: Path, colours: list[Any], group_rows: int = 32) -> str:
    """Pictures of one colour each; the class is number % 2."""
    pictures = [encoded(np.full((40, 50, 3), colour, np.uint8)) for colour in colours]
    return written(folder, pictures, "label", "class", [i % 2 for i in range(len(colours))], group_rows)


def squares(folder: Path) -> str:
    """16 green pictures of 120 x 90 px, each with a red or a blue square."""
    rng, pictures, objects = np.random.default_rng(0), [], []
    for number in range(16):
        side = int(rng.integers(24, 48))
        x, y = int(rng.integers(120 - side)), int(rng.integers(90 - side))
        pixels = np.full((90, 120, 3), GREEN, np.uint8)
        pixels[y : y + side, x : x + side] = OBJECT[number % 2]
        pictures.append(encoded(pixels))
        objects.append({"bbox": [[x, y, side, side]], "category": [number % 2]})
    return written(folder, pictures, "objects", "objects", objects, 32)


def encoded(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def written(
    folder: Path, pictures: list[bytes], column: str, kind: Any, values: list[Any], group_rows: int
) -> str:
    (folder / "data").mkdir(parents=True)
    kinds = schema.dataset_schema({column: (schema.TYPES[kind], schema.feature(kind, names(kind)))})
    rows = [
        {
            "id": str(i), "path": f"{i}.png", "split": "train", "width": 120, "height": 90, column: value,
            "image": {"bytes": data, "path": f"{i}.png"},
        }
        for i, (data, value) in enumerate(zip(pictures, values, strict=True))
    ]  # fmt: skip
    path = folder / "data" / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=kinds), path, row_group_size=group_rows)
    return str(folder)


@pytest.mark.parametrize("fit", ["crop", "letterbox", "stretch"])
def test_boxes_of_a_mosaic_lie_on_their_objects(fit: str, tmp_path: Path) -> None:
    uri = squares(tmp_path / "d")
    pre = Preprocess(size=(96, 96), fit=fit, mean=(0.5,) * 3, std=(0.5,) * 3)
    split = source(uri, "detection", augmentation(mosaic=1.0, hflip=0.5, vflip=0.5), pre)
    mosaics, several = batch(split, range(16), 2), 0
    for x_CHW, boxes_N4, labels_N in zip(
        mosaics.x_BCHW.numpy().astype(int), mosaics.targets["boxes"], mosaics.targets["labels"], strict=True
    ):
        assert (x_CHW.reshape(3, -1).min(1) < 114).all() and not (x_CHW == 114).all(0).any()  # no padding
        several += len(boxes_N4) > 1
        left = (np.abs(x_CHW - np.array(GREEN)[:, None, None]).max(0) > 200).astype(int)
        for (x0, y0, x1, y1), label in zip(boxes_N4.numpy(), labels_N.tolist(), strict=True):
            inside = (slice(None), slice(round(y0) + 2, round(y1) - 2), slice(round(x0) + 2, round(x1) - 2))
            part = x_CHW[inside]
            if part.size:
                away = np.abs(part - np.array(OBJECT[label])[:, None, None]).max(0)
                assert (away < 60).mean() > 0.99, (x0, y0, x1, y1)
            ys, xs = slice(max(0, round(y0) - 2), round(y1) + 2), slice(max(0, round(x0) - 2), round(x1) + 2)
            left[ys, xs] = 0
        # Outside of all boxes there are only parts of less than a fifth of a square.
        assert left.sum() < 4 * 0.2 * 48**2
    assert several >= 8


def test_boxes_of_a_mosaic_keep_the_rule_of_crops(tmp_path: Path) -> None:
    """Each box shows at least a fifth of its object; crowds are no targets."""
    known = tasks.load({"name": "detection"})
    mix = mixing.draw(np.random.default_rng(1), augmentation(mosaic=1.0), (96, 96))
    assert mix is not None and sorted(mix.frames)[0][:2] == (0, 0)
    assert sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in mix.frames) == 96 * 96
    pre = Preprocess(size=(96, 96), mean=(0.5,) * 3, std=(0.5,) * 3)
    rng = np.random.default_rng(0)
    for _ in range(40):
        geometry = mixing.geometry(mix, 2, pre.geometry((120, 90)), pre, rng)
        x0, y0, x1, y1 = geometry.crop
        assert 0 <= x0 < x1 <= 120 and 0 <= y0 < y1 <= 90
        scale = (mix.frames[2][2] - mix.frames[2][0]) / (x1 - x0)
        assert scale <= 96 / 90 * 1.001 or x1 - x0 > 119.9 or y1 - y0 > 89.9
        row = {"objects": {"bbox": [[x0 - 9, y0, 10, 8], [x0 + 1, y0 + 1, 6, 6], [x0 + 1, y0 + 1, 6, 6]],
                           "category": [0, 1, 1], "iscrowd": [False, False, True],
                           "difficult": [False, True, False]}}  # fmt: skip
        target = known.encode(row, geometry, ["a", "b"])
        assert target["labels"].tolist() == [1]


# ---- crops that hold a class


def test_crops_hold_rare_classes_more_often() -> None:
    ids_HW = np.zeros((60, 80), np.uint8)
    ids_HW[50:54, 70:75], ids_HW[:10] = 2, 255
    pre = Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        drawn = balanced(rng, pre.place((80, 60), (5.0, 5.0, 25.0, 25.0)), ids_HW, 255)
        x0, y0, x1, y1 = drawn.crop
        assert min(x0, y0) >= 0 and x1 <= 80 and y1 <= 60
        assert (x1 - x0, y1 - y0) == pytest.approx((20, 20))
        hits += bool((ids_HW[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] == 2).any())
    assert 85 < hits < 130  # half of them, and some by chance
    nothing = np.full((60, 80), 255, np.uint8)
    plain = pre.place((80, 60), (5.0, 5.0, 25.0, 25.0))
    assert balanced(np.random.default_rng(0), plain, nothing, 255) == plain


def test_a_mask_is_cut_and_pasted_with_its_pixels(tmp_path: Path) -> None:
    """In scenes with one colour for each class, CutMix changes pixels and mask alike."""
    ground, shapes = (90, 90, 90), {1: RED, 2: BLUE}
    pictures, masks = [], []
    for number in range(12):
        ids_HW = np.zeros((90, 120), np.uint8)
        ids_HW[20:60, 10 + 5 * number : 50 + 5 * number] = 1 + number % 2
        pixels = np.full((90, 120, 3), ground, np.uint8)
        for label, colour in shapes.items():
            pixels[ids_HW == label] = colour
        pictures.append(encoded(pixels))
        masks.append({"bytes": encoded(ids_HW), "path": f"{number}.png"})
    uri = written(tmp_path / "d", pictures, "mask", "mask", masks, 32)
    augment = augmentation(cutmix=1.0, class_balance=0.5, scale=(0.2, 0.6))
    mixed = batch(source(uri, "segmentation", augment), range(12))
    assert mixed.targets.keys() == {"mask"}
    x_BHWC = mixed.x_BCHW.permute(0, 2, 3, 1).numpy().astype(int)
    colours = np.array([ground, RED, BLUE])
    nearest = np.abs(x_BHWC[..., None, :] - colours).sum(-1).argmin(-1)
    assert (nearest == mixed.targets["mask"].numpy()).mean() > 0.97  # the rest are blurred borders


# ---- what a task's labels cannot follow is refused


@pytest.mark.parametrize("task", tasks.names())
@pytest.mark.parametrize("key", ["mixup", "cutmix", "mosaic", "class_balance"])
def test_what_labels_cannot_follow_is_refused_in_one_line(task: str, key: str) -> None:
    known = tasks.load({"name": task})
    tree = config.parse({"task": {"name": task}}, "test")
    if key in known.supported_augmentations:
        tasks.check_augment(known, augmentation(**{key: 0.5}))
        assert accepted(tree, f"augment.{key}", 0.5) == 0.5
        return
    accepted_key = known.supported_augmentations[0]
    message = rf"augment\.{key} = 0\.5 .*{task} cannot follow it; accepted: augment\.{accepted_key}"
    with pytest.raises(ConfigError, match=message) as error:
        tasks.check_augment(known, augmentation(**{key: 0.5}))
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=rf"search\.space\.augment\.{key}.*cannot follow"):
        accepted(tree, f"augment.{key}", 0.5)
    tasks.check_augment(known, augmentation(**{key: 0}))
