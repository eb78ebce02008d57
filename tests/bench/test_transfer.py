"""The benchmark's own parts: intervals, copies of pictures, and that other loops are judged as ours are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.bench.transfer import copies, summary
from tests.bench.transfer.cases import CASES, RECIPES
from tests.bench.transfer.references import WAYS
from tlray import config, tasks
from tlray.data.image import encode_mask


def test_an_interval_is_students_over_paired_seeds() -> None:
    found = summary.interval([0.01, 0.02, 0.03])
    half = 4.302653 * 0.01 / math.sqrt(3)  # Student's t at 97.5 %, 2 degrees of freedom
    assert found is not None and np.allclose(found, (0.02 - half, 0.02 + half))
    assert summary.interval([0.01]) is None


def test_ours_are_compared_with_the_best_peer_seed_by_seed() -> None:
    def figures(*values: float) -> dict[int, dict[str, Any]]:
        return {seed: {"pooled": value, "seconds": 60.0} for seed, value in enumerate(values)}

    row = "clothing-lite0"
    found = {row: {"train": figures(0.80, 0.90), "tune": figures(0.82, 0.911, 0.5),
                   "plain": figures(0.79, 0.88), "probe": figures(0.70, 0.96)}}  # fmt: skip
    train, tune = summary.comparisons(found)
    # Of the tune's three seeds, the two that the peer has too.
    assert (train["peer"], train["seeds"], tune["peer"], tune["seeds"]) == ("plain", 2, "plain", 2)
    assert train["difference"] == pytest.approx(0.015) and tune["difference"] == pytest.approx(0.0305)
    assert not train["apart"] and tune["interval"][0] < tune["difference"] < tune["interval"][1]
    found[row]["tune"] = figures(0.82, 0.9101)
    assert summary.comparisons(found)[1]["apart"]
    text = summary.tables(found)
    assert f"| {row} | tune | plain | 2 | +0.0300 |" in text and "above, apart from 0" in text


def test_epochs_are_compared_where_both_told_their_seconds() -> None:
    told = [{"epoch_seconds": 11.0}, {"epoch_seconds": 12.0}, {}]
    now = dict(enumerate(told))
    then = {seed: {"epoch_seconds": 10.0} for seed in range(3)}
    (found,) = summary.epoch_ratios({"clothing-nano": {"train": now, "before-train": then}})
    assert found == {"row": "clothing-nano", "ratio": pytest.approx(1.15), "seeds": 2}


@pytest.mark.parametrize("kind", copies.COPIES)
def test_copies_depend_on_the_path_alone(kind: str, tmp_path: Path) -> None:
    source, ramp = tmp_path / "in", np.linspace(0, 255, 48).astype(np.uint8)
    x_HWC = np.broadcast_to(ramp[:, None, None], (48, 40, 3))
    for split in ("train", "validation", "test"):
        for name in ("hat", "shoe"):
            (source / split / name).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(x_HWC).save(source / split / name / f"{i}.png")
    one, two = (copies.write(source, tmp_path / to / kind, kind) for to in ("one", "two"))
    files = sorted(path.relative_to(one) for path in one.glob("test/*/*"))
    assert len(files) == 4 and len(list(one.glob("*/*/*"))) == 8  # and one a class of the other splits
    made = [np.asarray(Image.open(one / file)) for file in files]
    for file, x in zip(files, made, strict=True):
        assert (np.asarray(Image.open(two / file)) == x).all()
        assert x.shape == x_HWC.shape and (x != x_HWC).any()
    if kind == "noise":
        assert (made[0] != made[1]).any()  # each has its own
    if kind == "contrast":
        assert np.ptp(made[0]) == pytest.approx(copies.CONTRAST * 255, abs=2)


def way(row: str, labels: list[str]) -> tuple[Any, Any]:
    settings = config.load(str(RECIPES / f"{row}.yaml"))
    task: Any = tasks.load(settings.task)
    return task, WAYS[CASES[row].task](settings, task, labels, 4)


def test_true_boxes_are_worth_a_full_map() -> None:
    task, boxes = way("bccd", ["RBC", "WBC"])
    row = {"objects": {"bbox": [[10.0, 20, 30, 40], [50, 5, 20, 25]], "category": [0, 1]}}
    target = boxes.label(row, Image.new("RGB", (120, 90)))
    boxes.model = lambda pictures: [{**target, "scores": torch.ones(2)} for _ in pictures]
    metrics = task.metrics(["RBC", "WBC"])
    metrics.update(boxes.predict([None], [row]), [row])
    assert metrics.compute()["map"] == pytest.approx(1.0)
    moved = {**target, "boxes": target["boxes"] + 4}
    boxes.model = lambda pictures: [{**moved, "scores": torch.ones(2)} for _ in pictures]
    metrics = task.metrics(["RBC", "WBC"])
    metrics.update(boxes.predict([None], [row]), [row])
    assert metrics.compute()["map"] < 0.8


def test_true_pixels_are_worth_a_full_miou() -> None:
    labels = [str(i) for i in range(12)]
    task, masks = way("camvid", labels)
    ids_HW = np.zeros((24, 32), np.uint8)
    ids_HW[:, 16:], ids_HW[:4] = 5, task.ignore_index
    row = {"mask": {"bytes": encode_mask(ids_HW)}}
    label = masks.label(row, Image.new("RGB", (32, 24)))
    assert set(label.unique().tolist()) == {0, 5, 255}  # what teaches nothing
    logits = torch.nn.functional.one_hot(torch.from_numpy(ids_HW).long(), 12).permute(2, 0, 1)[None] * 5.0
    logits[:, task.ignore_index] = 9.0  # never said, however sure
    masks.model = lambda x_BCHW: logits.clone()
    metrics = task.metrics(labels)
    metrics.update(masks.predict([torch.zeros(3, 24, 32)], [row]), [row])
    assert metrics.compute()["miou"] == 1.0


def test_embeddings_of_faces_are_unit_vectors_and_mirrors_are_equals() -> None:
    _, faces = way("orl-faces", ["a", "b"])
    faces.model.eval()
    x_CHW = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        one, two = (p["embedding"] for p in faces.predict([x_CHW, x_CHW.flip(-1)], []))
    assert np.linalg.norm(one) == pytest.approx(1.0, abs=1e-5)
    assert np.allclose(one, two, atol=1e-5)
