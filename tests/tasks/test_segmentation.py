"""Semantic segmentation: masks to the input and back, ignored ids, metrics equal a library's."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from tests import toys
from tests.contract.test_tasks import Toy
from tlray import tasks
from tlray.data.image import Preprocess, decode_mask, encode_mask
from tlray.errors import DataError
from tlray.tasks import losses
from tlray.tasks.segmentation import UNKNOWN, from_runs, to_runs

NAMES = toys.names("mask")
SIZE = (96, 80)  # of the scenes


def ideal(mask_HW: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Logits (1, C, H, W) of a model that is sure of each pixel."""
    known = mask_HW.long().clamp(max=num_classes - 1)
    return 50 * torch.nn.functional.one_hot(known, num_classes).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize(
    ("fit", "hflip", "vflip"), list(itertools.product(["crop", "letterbox", "stretch"], [0, 1], [0, 1]))
)
def test_a_mask_comes_back_from_every_fit_and_flip(fit, hflip, vflip):
    task, (_, (row,)) = tasks.load({"name": "segmentation"}), toys.scenes({"mask": "mask"}, 1)
    pre = Preprocess(size=(96, 96), fit=fit, mean=(0.5,) * 3, std=(0.5,) * 3)
    plain = pre.geometry(SIZE)
    geometry = pre.place(SIZE, plain.crop, bool(hflip), bool(vflip))
    target = task.encode(row, geometry, NAMES)["mask"]
    assert target.shape == (96, 96) and target.dtype == np.uint8
    (prediction,) = task.decode(ideal(torch.from_numpy(target), len(NAMES)), [geometry], NAMES)
    predicted_HW, truth_HW = from_runs(prediction), decode_mask(row["mask"]["bytes"])
    assert predicted_HW.shape == truth_HW.shape
    shown = predicted_HW != UNKNOWN
    assert shown.mean() == pytest.approx(80 * 80 / (96 * 80) if fit == "crop" else 1.0)
    same = (predicted_HW == truth_HW)[shown].mean()
    # Letterbox has scale 1 here and is exact. The others resample, which may move a border by a pixel.
    assert same == 1.0 if fit == "letterbox" else same > 0.95
    assert decode_mask(task.image_of(prediction)).tolist() == predicted_HW.tolist()


def test_an_id_without_a_class_is_refused():
    task, pre = tasks.load({"name": "segmentation"}), Preprocess(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    ids_HW = np.zeros((8, 8), np.uint8)
    ids_HW[3, 3] = len(NAMES)
    with pytest.raises(DataError, match=r"id 4 in its mask; accepted: 0 to 3, 255"):
        task.encode({"mask": {"bytes": encode_mask(ids_HW), "path": ""}}, pre.geometry((8, 8)), NAMES)


def test_runs_are_the_mask():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (7, 5), (40, 30)):
        ids_HW = rng.integers(0, 4, shape).astype(np.uint8)
        runs = to_runs(ids_HW)
        assert from_runs(runs).tolist() == ids_HW.tolist()
        assert sum(length for _, length in runs["runs"]) == ids_HW.size


@pytest.mark.parametrize("ignore", [255, 2])
def test_ignored_pixels_teach_nothing_and_count_nothing(ignore):
    task = tasks.load({"name": "segmentation", "ignore_index": ignore})
    pre = Preprocess(size=(32, 32), fit="stretch", mean=(0.5,) * 3, std=(0.5,) * 3)
    truth_HW = np.zeros((32, 32), np.uint8)
    truth_HW[:, 16:] = ignore
    row = {"mask": {"bytes": encode_mask(truth_HW), "path": ""}}
    target = task.encode(row, pre.geometry((32, 32)), NAMES)["mask"]
    assert set(np.unique(target)) == {0, UNKNOWN}

    from tlray.models.backbone import Backbone

    module = task.build(Backbone("resnet10t-nano", "none", size=32), NAMES)
    module.eval()
    x, other = torch.zeros(1, 3, 32, 32), target.copy()
    other[other == UNKNOWN] = 1
    loss = float(module(x, {"mask": torch.from_numpy(target)[None]}).detach())
    full = float(module(x, {"mask": torch.from_numpy(other)[None]}).detach())
    assert loss != pytest.approx(full, abs=1e-6)

    metrics = task.metrics(NAMES)
    wrong_HW = truth_HW.copy()
    wrong_HW[:, 16:] = 1
    metrics.update([{**to_runs(wrong_HW), "shares": {}}], [row])
    assert metrics.compute() == {"miou": 1.0, "pixel_accuracy": 1.0}
    logits = torch.zeros(1, len(NAMES), 8, 8)
    logits[:, 2] = 9
    (prediction,) = task.decode(logits, [pre.geometry((32, 32))], NAMES)
    assert (2 in from_runs(prediction)) == (ignore != 2)


@pytest.mark.parametrize("loss", ["dice", "lovasz"])
def test_a_loss_of_regions_comes_beside_cross_entropy(loss):
    plain, more = (Toy("segmentation", 3, loss=name) for name in ("cross_entropy", loss))
    for toy in (plain, more):
        toy.module.eval()
    targets = plain.targets()
    size = targets["mask"].shape[-2:]
    grown = torch.nn.functional.interpolate(plain.module(plain.x), size, mode="bilinear")
    of_regions = getattr(losses, loss)(grown, targets["mask"].long(), UNKNOWN).mean()
    together = plain.module(plain.x, targets) + of_regions
    torch.testing.assert_close(more.module(more.x, targets), together)


@pytest.mark.parametrize("freeze", [False, True])
def test_frozen_norms_keep_the_statistics_of_the_backbone(freeze):
    toy = Toy("segmentation", 4, freeze_norm=freeze)
    toy.module.train()
    before = {name: value.clone() for name, value in toy.module.backbone.named_buffers()}
    toy.module(toy.x, toy.targets())
    same = [torch.equal(value, before[name]) for name, value in toy.module.backbone.named_buffers()]
    assert all(same) is freeze
    assert toy.module.refine.training  # the rest is in train mode


def test_figures_are_those_of_the_library():
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

    rng = np.random.default_rng(1)
    task = tasks.load({"name": "segmentation", "ignore_index": 9})
    metrics, truths, predictions = task.metrics(NAMES), [], []
    for _ in range(4):
        truth_HW = rng.choice([0, 1, 2, 3, 9], (20, 24)).astype(np.uint8)
        predicted_HW = rng.integers(0, 4, (20, 24)).astype(np.uint8)
        row = {"mask": {"bytes": encode_mask(truth_HW), "path": ""}}
        metrics.update([{**to_runs(predicted_HW), "shares": {}}], [row])
        truths.append(torch.from_numpy(truth_HW.astype(np.int64)))
        predictions.append(torch.from_numpy(predicted_HW.astype(np.int64)))
    truth, predicted, ours = torch.stack(truths), torch.stack(predictions), metrics.compute()
    theirs = float(multiclass_jaccard_index(predicted, truth, 4, average="macro", ignore_index=9))
    assert ours["miou"] == pytest.approx(theirs, abs=1e-6)
    theirs = float(multiclass_accuracy(predicted, truth, 4, average="micro", ignore_index=9))
    assert ours["pixel_accuracy"] == pytest.approx(theirs, abs=1e-6)


def test_bad_masks_are_left_out_with_their_reason():
    import pyarrow as pa

    task = tasks.load({"name": "segmentation"})
    seen = [(96, 80, [0, 1]), (90, 80, [0]), (None, None, None), (96, 80, [0, 7]), (96, 80, [255])]
    rows = [
        {"path": f"{i}.jpg", "width": 96, "height": 80, "kind": None, "reason": None, "mask": f"{i}.png"}
        | dict(zip(("mask_width", "mask_height", "mask_values"), one, strict=True))
        for i, one in enumerate(seen)
    ]
    text, numbers = ("path", "kind", "reason", "mask"), ("width", "height", "mask_width", "mask_height")
    kinds = pa.schema(
        [*((name, pa.string()) for name in text), *((name, pa.int32()) for name in numbers),
         ("mask_values", pa.list_(pa.int32()))]
    )  # fmt: skip
    kept, remarks = task.preflight(pa.Table.from_pylist(rows, schema=kinds), {"mask": NAMES})
    assert kept["kind"].to_pylist() == [None, None, "mask_unreadable", "mask_values", None]
    assert "id 7" in kept["reason"][3].as_py()
    assert [(r.kind, r.examples) for r in remarks] == [("class_nowhere", ["stripes", "waves"])]


def test_a_drawing_shows_what_was_said(tmp_path):
    task, (_, rows) = tasks.load({"name": "segmentation"}), toys.scenes({"mask": "mask"}, 1)
    said_HW = np.ones((80, 96), np.uint8)
    record = task.record(rows[0], {**to_runs(said_HW), "shares": {"blob": 1.0}})
    plain = Image.new("RGB", SIZE, "black")
    drawn = np.asarray(task.draw(plain, record, NAMES))
    assert drawn.shape == (80, 96, 3) and (drawn[40:] != 0).any(axis=2).all()
    assert record["iou"] < 1 and len(record["union"]) == 2


def test_what_is_kept_of_a_mask_is_small():
    task, size = tasks.load({"name": "segmentation"}), (480, 360)
    ids_HW = np.arange(360 * 480).reshape(360, 480) // 30 % 4
    prediction = {**to_runs(ids_HW.astype(np.uint8)), "shares": {"blob": 1.0}}
    record = task.record({"mask": {"bytes": encode_mask(ids_HW.astype(np.uint8)), "path": ""}}, prediction)
    assert record["iou"] == 1.0  # of the whole mask
    assert len(record["prediction"]) < 4000 < len(prediction["runs"])
    assert task.draw(Image.new("RGB", size), record, NAMES).size == size
