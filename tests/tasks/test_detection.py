"""Object detection: boxes to the input and back, metrics equal COCO's library, both kinds of heads."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageChops
from torchvision.ops import box_iou, generalized_box_iou

from tests import toys
from tests.contract.test_tasks import PRE, Toy
from tlray import tasks
from tlray.bundle import bundle
from tlray.config import Augmentation, parse
from tlray.data import loader, schema
from tlray.data.augment import Augment
from tlray.data.image import Preprocess
from tlray.errors import BundleError, ConfigError
from tlray.models.backbone import Backbone
from tlray.tasks import detection
from tlray.tasks.detection.anchors import Anchors
from tlray.tasks.detection.model import _images
from tlray.training import fit as train
from tlray.training.build import build_model

LABELS = toys.LABELS
TASK = tasks.load({"name": "detection"})
BOXES = [[10.0, 20.0, 30.0, 24.0], [60.0, 40.0, 25.0, 30.0], [40.5, 10.25, 9.0, 12.5]]  # of 100 x 80 px
ROW = {"path": "a.jpg", "objects": {"bbox": BOXES, "category": [2, 0, 1]}}


def ideal(target, num_classes=3):
    """Raw outputs that equal a target, with noise below the minimum score."""
    boxes, labels = torch.from_numpy(target["boxes"]), torch.from_numpy(target["labels"])
    scores = torch.full((len(labels), num_classes), 0.0005)
    scores[torch.arange(len(labels)), labels] = torch.linspace(0.9, 0.8, len(labels))
    return {"scores": scores[None], "boxes": boxes[None, :, None]}


@pytest.mark.parametrize("fit", ["letterbox", "stretch", "crop"])
@pytest.mark.parametrize("flips", list(itertools.product((False, True), repeat=2)))
def test_boxes_come_back(fit, flips):
    pre = PRE.model_copy(update={"fit": fit, "size": (96, 64)})
    plain = pre.geometry((100, 80))
    geometry = pre.place((100, 80), plain.crop, *flips)
    target = TASK.encode(ROW, geometry, LABELS)
    assert target["boxes"].dtype == np.float32 and target["labels"].tolist() == [2, 0, 1]
    assert (target["boxes"] >= 0).all() and (target["boxes"] <= [96, 64, 96, 64]).all()
    objects = TASK.decode(ideal(target), [geometry], LABELS)[0]["objects"]
    assert [o["index"] for o in objects] == [2, 0, 1] and objects[0]["label"] == LABELS[2]
    whole = detection.corners(BOXES)
    seen = np.clip(whole, [*plain.crop[:2]] * 2, [*plain.crop[2:]] * 2)  # a crop cuts two rows off here
    assert np.abs(np.array([o["box"] for o in objects]) - seen).max() < 0.011


def test_what_a_crop_cuts_off_is_no_object():
    geometry = PRE.place((100, 80), (0, 0, 20, 80))  # 10 of 30 px of the first box, none of the others
    target = TASK.encode(ROW, geometry, LABELS)
    assert target["labels"].tolist() == [2]
    x0, _, x1, _ = geometry.boxes_to_source(target["boxes"])[0]
    assert (x0, x1) == pytest.approx((10, 20), abs=0.01)  # not into the padding beside the crop
    none = TASK.encode(ROW, PRE.place((100, 80), (0, 0, 15, 15)), LABELS)
    assert none["boxes"].shape == (0, 4) and none["labels"].dtype == np.int64
    bare = TASK.encode({"objects": {"bbox": [], "category": []}}, geometry, LABELS)
    assert bare["boxes"].shape == (0, 4) and bare["labels"].shape == (0,)


def test_every_random_crop_gives_boxes_in_the_input():
    augment = Augment(Augmentation(scale=(0.1, 1.0), vflip=0.5))
    for seed, fit in itertools.product(range(50), ("letterbox", "crop", "stretch")):
        pre = Preprocess(size=(64, 48), fit=fit, mean=(0.5,) * 3, std=(0.5,) * 3)
        geometry = augment.sample(np.random.default_rng(seed), (100, 80), pre)
        target = TASK.encode(ROW, geometry, LABELS)
        boxes, placed = target["boxes"], geometry.placed
        if geometry.hflip or geometry.vflip:
            boxes = geometry.boxes_to_model(geometry.boxes_to_source(boxes))
        assert (boxes[:, 2:] - boxes[:, :2] >= 1 - 1e-4).all()
        assert (boxes >= -1e-4).all() and (boxes <= np.array([64, 48, 64, 48]) + 1e-4).all()
        assert placed and len(boxes) == len(target["labels"])


def test_decoding_suppresses_ranks_and_stays_in_the_picture():
    geometry = PRE.geometry((100, 80))  # scale 0.64, 6 px of padding above and below
    boxes = torch.tensor([[10, 20, 30, 40], [11, 20, 30, 40], [-9, 30, 20, 99], [5, 0, 9, 5.0]])
    scores = torch.tensor([[0.6, 0.0, 0.3], [0.8, 0, 0], [0, 0.7, 0], [0.9, 0, 0]])
    outputs = {"scores": scores[None], "boxes": boxes[None, :, None]}
    objects = TASK.decode(outputs, [geometry], LABELS)[0]["objects"]
    # The second suppresses the first in its own class only; the last is in the padding.
    assert [(o["index"], round(o["score"], 3)) for o in objects] == [(0, 0.8), (1, 0.7), (2, 0.3)]
    assert objects[1]["box"][0] == 0 and objects[1]["box"][3] == 80
    few = tasks.load({"name": "detection", "max_objects": 2, "min_score": 0.65})
    assert len(few.decode(outputs, [geometry], LABELS)[0]["objects"]) == 1  # of two, one in the padding


def some(seed, num_pictures=12):
    """Rows, and predictions that are partly right."""
    rng = np.random.default_rng(seed)
    rows, predictions = [], []
    for n in range(num_pictures):
        count = int(rng.integers(0, 6)) if n else 3
        boxes = np.concatenate([rng.uniform(0, 60, (count, 2)), rng.uniform(8, 40, (count, 2))], 1)
        category = rng.integers(0, 3, count)
        rows.append({"objects": {"bbox": boxes.tolist(), "category": category.tolist()}})
        noisy = detection.corners(boxes) + rng.normal(0, 3, (count, 4))
        objects = [
            {
                "index": int(c if rng.random() < 0.8 else (c + 1) % 3),
                "score": float(rng.random()),
                "box": box.tolist(),
            }
            for c, box in zip([*category, *category[:1]], [*noisy, *noisy[:1] + 2], strict=True)
        ]
        predictions.append({"objects": sorted(objects, key=lambda o: -o["score"])})
    return rows, predictions


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_the_library(seed):
    from torchmetrics.detection import MeanAveragePrecision

    rows, predictions = some(seed)
    metrics = TASK.metrics(LABELS)
    metrics.update(predictions, rows)
    ours = metrics.compute()
    judge = MeanAveragePrecision(
        backend="faster_coco_eval",  # its own thresholds are float32, COCO's are these
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
    )
    judge.warn_on_many_detections = False
    judge.update(
        [
            {
                "boxes": torch.tensor([o["box"] for o in p["objects"]]).reshape(-1, 4),
                "scores": torch.tensor([o["score"] for o in p["objects"]]),
                "labels": torch.tensor([o["index"] for o in p["objects"]], dtype=torch.int64),
            }
            for p in predictions
        ],
        [
            {
                "boxes": torch.from_numpy(detection.corners(r["objects"]["bbox"])).float(),
                "labels": torch.tensor(r["objects"]["category"], dtype=torch.int64),
            }
            for r in rows
        ],
    )
    theirs = judge.compute()
    assert 0.1 < ours["map"] < 0.9
    for name, key in (("map", "map"), ("map_50", "map_50"), ("map_75", "map_75"), ("recall", "mar_100")):
        assert ours[name] == pytest.approx(float(theirs[key]), abs=1e-6)


def test_metrics_without_objects_or_detections():
    nothing = TASK.metrics(LABELS)
    assert all(math.isnan(v) for v in nothing.compute().values())
    nothing.update([{"objects": []}], [{"objects": {"bbox": [], "category": []}}])
    assert math.isnan(nothing.compute()["map"]) and nothing.best_threshold() == 0.5
    nothing.update([{"objects": []}], [ROW])
    assert nothing.compute()["map"] == 0
    objects = [{"index": 1, "score": 0.9, "box": [0.0, 0.0, 5.0, 5.0]}]
    false = TASK.metrics(LABELS)
    false.update([{"objects": objects}], [{"objects": {"bbox": [], "category": []}}])
    assert math.isnan(false.compute()["map"])


def test_the_threshold_is_the_best_one_on_validation():
    truth = {"objects": {"bbox": [[0, 0, 10, 10], [20, 20, 10, 10]], "category": [0, 1]}}
    detections = [(0, 0.9, 0), (1, 0.4, 20), (1, 0.3, 50), (2, 0.2, 20)]
    objects = [{"index": c, "score": s, "box": [a, a, a + 10.0, a + 10.0]} for c, s, a in detections]
    metrics = TASK.metrics(LABELS)
    metrics.update([{"objects": objects}], [truth])
    chosen = TASK.with_thresholds(metrics)
    assert chosen.threshold == 0.4 and TASK.threshold is None
    whole = {"objects": [{**o, "label": "x"} for o in objects]}
    assert chosen.summary(chosen.served(whole), 1).startswith("2 objects  x 0.9000 at 0,0")
    fixed = tasks.load({"name": "detection", "threshold": 0.7})
    assert fixed.with_thresholds(metrics) is fixed


def test_people_are_given_what_is_sure_and_metrics_everything():
    toy = Toy("detection", 2, threshold=0.6)
    target = toy.task.encode(ROW, PRE.geometry((100, 80)), LABELS)
    outputs = ideal(target)
    outputs["scores"][outputs["scores"] > 0.85] = 0.002
    (whole,) = toy.task.decode(outputs, [PRE.geometry((100, 80))], LABELS)
    assert [o["score"] for o in whole["objects"]] == pytest.approx([0.85, 0.8, 0.002])
    counts = {score: len(toy.task.served(whole, score)["objects"]) for score in (None, 0.84, 0.001, 0.9)}
    assert counts == {None: 2, 0.84: 1, 0.001: 3, 0.9: 0}
    assert len(tasks.load({"name": "detection"}).served(whole)["objects"]) == 2  # 0.5 where none is chosen
    assert len(toy.task.record(ROW, whole)["objects"]) == 3
    many = {"objects": whole["objects"] * 50}
    assert len(toy.task.record(ROW, many)["objects"]) == 100
    records = [toy.task.record(None, toy.task.served(whole, score)) for score in (None, 0.001)]
    drawn = [toy.task.draw(Image.new("RGB", (100, 80)), record, LABELS) for record in records]
    assert ImageChops.difference(*drawn).getbbox() is not None


def flagged_row(difficult=(), iscrowd=()):
    """Three boxes of one class side by side."""
    boxes = [[0.0, 0, 20, 20], [30, 0, 20, 20], [60, 0, 40, 40]]
    objects = {"bbox": boxes, "category": [0, 0, 0]}
    for name, at in (("difficult", difficult), ("iscrowd", iscrowd)):
        if at:
            objects[name] = [i in at for i in range(3)]
    return {"objects": objects}


def judged(row, detections):
    """Metrics of a row and detections (score, box); the threshold; the number of pictures with a mistake."""
    task = tasks.load({"name": "detection"})
    prediction = {"objects": [{"index": 0, "score": s, "box": box} for s, box in detections]}
    metrics = task.metrics(LABELS)
    metrics.update([prediction], [row])
    again = task.metrics(LABELS)
    again.merge(json.loads(json.dumps(metrics.state())))
    assert again.compute() == metrics.compute() or math.isnan(metrics.compute()["map"])
    chosen = task.with_thresholds(metrics)
    record = json.loads(json.dumps(chosen.record(row, prediction)))
    _, mistakes = chosen.figures({"rows": [record], "labels": LABELS})
    return metrics.compute(), chosen.threshold, mistakes.caption.split(" ")[0]


A, B, C = [0.0, 0, 20, 20], [30.0, 0, 50, 20], [60.0, 0, 100, 40]
IN_C = [[60.0, 0, 70, 10], [80.0, 20, 90, 30]]  # a 16th of it each


def test_crowds_and_difficult_objects_are_neither_hits_nor_misses():
    plain, at, _ = judged(flagged_row(), [(0.9, A), (0.8, B)])
    assert plain["recall"] == pytest.approx(2 / 3) and plain["map_50"] == pytest.approx(67 / 101)
    # Ignored objects do not count as missed, nor do detections of them as false, also a second one.
    whole, at, _ = judged(flagged_row(difficult=[1], iscrowd=[2]), [(0.9, A)])
    assert whole["map"] == whole["recall"] == 1
    both = [(0.95, B), (0.94, B), *((0.93, box) for box in IN_C), (0.9, A)]
    metrics, at, wrong = judged(flagged_row(difficult=[1], iscrowd=[2]), both)
    assert metrics == whole and at == 0.9 and wrong == "0"
    # A small detection inside of a difficult object does not match it; one inside of a crowd does.
    small = [(0.95, [30.0, 0, 40, 10]), (0.9, A)]
    assert judged(flagged_row(difficult=[1, 2]), small)[0]["map"] == pytest.approx(0.5)
    assert judged(flagged_row(difficult=[1], iscrowd=[2]), [(0.95, IN_C[0]), (0.9, A)])[0]["map"] == 1
    # A detection that fits a true object and an ignored one matches the true one.
    beside = flagged_row(difficult=[1])
    beside["objects"]["bbox"][1] = [1.0, 0, 20, 20]
    assert judged(beside, [(0.9, A)])[0]["map_50"] == pytest.approx(51 / 101)


def test_data_of_nothing_that_must_be_found_cannot_be_measured():
    for number, flags in (
        (1, {"difficult": [0, 1]}),
        (0, {"difficult": [0, 1, 2]}),
        (0, {"iscrowd": [0, 1, 2]}),
    ):
        row = flagged_row(**flags)
        kind = schema.with_flags(schema.OBJECTS_TYPE, ["difficult", "iscrowd"])
        table = pa.table({"objects": pa.array([row["objects"]], kind)})
        assert (TASK.unmeasurable([table], LABELS) is None) == bool(number)
        assert math.isnan(judged(row, [(0.9, A)])[0]["map"]) != bool(number)


def test_crowds_are_no_targets_and_difficult_objects_are():
    target = TASK.encode(flagged_row(difficult=[1], iscrowd=[2]), PRE.geometry((100, 80)), LABELS)
    assert len(target["boxes"]) == len(target["labels"]) == 2
    ground = Image.new("RGB", (100, 80))
    plain = TASK.draw_truth(ground, flagged_row(), LABELS)
    assert ImageChops.difference(plain, TASK.draw_truth(ground, flagged_row([1]), LABELS)).getbbox()


def test_flags_stay_with_their_boxes_when_these_are_corrected():
    boxes = [[10.0, 10, 0, 5], [0, 0, 50, 40], [5, 5, 20, 20]]
    objects = {"bbox": boxes, "category": ["cat"] * 3, "iscrowd": [False, False, True]}
    row = {"path": "a.jpg", "width": 100, "height": 80, "kind": None, "reason": None, "objects": objects}
    kept, remarks = TASK.preflight(pa.Table.from_pylist([row]), {})
    assert kept["objects"].to_pylist()[0]["iscrowd"] == [False, True]
    messages = {r.kind: r.message for r in remarks}
    assert messages["iscrowd"].startswith("1 boxes are of crowds") and "difficult" not in messages


def test_boxes_are_corrected_before_a_data_set_is_made():
    nan = float("nan")
    boxes = {
        "fine.jpg": [[0, 0, 50, 40], [-0.4, 10, 20, 20]],
        "out.jpg": [[80, 60, 40, 40], [200, 10, 20, 20]],
        "bad.jpg": [[10, 10, 0, 5], [10, 10, -5, 5], [nan, 0, 5, 5]],
        "bare.jpg": [],
    }
    size = {"width": 100, "height": 80, "kind": None, "reason": None}
    rows = [
        {"path": path, **size, "objects": {"bbox": b, "category": ["cat"] * len(b)}}
        for path, b in boxes.items()
    ]
    kept, remarks = TASK.preflight(pa.Table.from_pylist(rows), {})
    assert [len(o["bbox"]) for o in kept["objects"].to_pylist()] == [2, 1, 0, 0]
    assert kept["objects"].to_pylist()[1] == {"bbox": [[80, 60, 20, 20]], "category": ["cat"]}
    assert {r.kind: (r.severity, len(r.examples)) for r in remarks} == {
        "box_outside": ("warning", 1),
        "box_dropped": ("warning", 4),
        "no_objects": ("info", 2),
    }
    assert (
        remarks[0].message.startswith("1 boxes reach")
        and "out.jpg: cat 80, 60, 40 x 40" in remarks[0].examples
    )


@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn"])
def test_pictures_without_objects_train_too(detector):
    toy = Toy("detection", 4, detector=detector, channels=32)
    targets = toy.targets()
    stacked, bare = isinstance(targets["boxes"], torch.Tensor), torch.zeros(0, 4)
    assert stacked  # one object a picture
    ragged = {
        "boxes": [bare, *targets["boxes"][1:]],
        "labels": [torch.zeros(0, dtype=torch.int64), *targets["labels"][1:]],
    }
    for some_targets in (targets, ragged, {k: [v[0]] * 4 for k, v in ragged.items()}):
        loss = toy.module(toy.x, some_targets)
        assert loss.shape == () and torch.isfinite(loss)
        loss.backward()
    outputs = toy.module.eval()(torch.zeros(2, 3, 80, 112, dtype=torch.uint8))  # no multiple of the strides
    assert (
        outputs["scores"].shape[:2] == outputs["boxes"].shape[:2] and torch.isfinite(outputs["boxes"]).all()
    )


def test_ragged_targets_pass_the_rendering_tasks(ray_local, tmp_path):
    uri = toys.scenes_dataset(tmp_path / "data", TASK.columns, train=6)
    table = pq.read_table(f"{uri}/data/train-00000-of-00001.parquet")
    objects = table["objects"].to_pylist()
    objects[1], objects[4]["bbox"] = {"bbox": [], "category": []}, objects[4]["bbox"] * 2
    objects[4]["category"] *= 2
    objects[2:4] = [{"bbox": [], "category": []}] * 2
    column = table.column_names.index("objects")
    table = table.set_column(column, table.schema.field(column), pa.array(objects, schema.OBJECTS_TYPE))
    pq.write_table(table, f"{uri}/data/train-00000-of-00001.parquet")
    source = loader.Source(uri, "train", TASK, tuple(LABELS), PRE)
    batches = list(loader.pipeline(source, [(0, np.arange(6)), (0, np.array([2, 3])), (0, np.array([0, 5]))]))
    counts = [[len(boxes) for boxes in batch.targets["boxes"]] for batch in batches]
    assert counts == [[1, 0, 0, 0, 2, 1], [0, 0], [1, 1]]
    module = TASK.build(Backbone("resnet10t-nano", size=64), LABELS)
    for batch in batches:
        assert torch.isfinite(module(*loader.to_device(batch, torch.device("cpu"))))


@torch.no_grad()
def test_boxes_are_trained_by_the_loss_that_is_set():
    """Compared with torchvision's generalised IoU, and with the deltas."""
    toy = Toy("detection", 3, channels=32)
    module, losses = toy.module, {}
    targets = toy.targets()
    for kind in ("l1", "giou"):
        other = tasks.load({"name": "detection", "channels": 32, "box_loss": kind}).build(
            Backbone("resnet10t-nano", size=64), toy.labels
        )
        other.load_state_dict(module.state_dict())
        other.eval()
        losses[kind] = float(other(toy.x, targets))
    module.eval()
    maps, size = module.maps(toy.x)
    deltas_BA4 = module.head(maps)["bbox_regression"]
    anchors_A4 = module.anchors(_images(maps, size), maps)[0]
    coder, own = module.head.regression_head.box_coder, {"l1": [], "giou": []}
    for deltas_A4, boxes in zip(deltas_BA4, targets["boxes"].float(), strict=True):
        matched_A = module.match(box_iou(boxes, anchors_A4))
        at = matched_A >= 0
        truth, deltas, near = boxes[matched_A[at]], deltas_A4[at], anchors_A4[at]
        own["l1"].append(float((deltas - coder.encode_single(truth, near)).abs().sum() / at.sum()))
        iou_N = generalized_box_iou(coder.decode_single(deltas, near), truth).diagonal()
        own["giou"].append(float((1 - iou_N).mean()))
    gap = np.mean(own["giou"]) - np.mean(own["l1"])
    assert abs(gap) > 0.01 and losses["giou"] - losses["l1"] == pytest.approx(gap, rel=1e-3)
    with pytest.raises(ConfigError, match=r"box_loss = 'giou' .*accepted: l1 with detector faster_rcnn"):
        tasks.load({"name": "detection", "detector": "faster_rcnn", "box_loss": "giou"})
    assert TASK.box_loss == "l1"  # bundles written before the setting existed


def test_two_stages_learn():
    assert Toy("detection", detector="faster_rcnn", channels=32).learn(100, 0.9)[0] >= 0.9


@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn"])
def test_a_bundle_gives_the_same_objects(detector, tmp_path):
    toy = Toy("detection", detector=detector, channels=32)
    spec = toy.module.backbone.spec()
    chosen = toy.task.model_copy(update={"threshold": 0.3})
    model = bundle.Model(toy.module, chosen, spec, 0, PRE, toy.labels, "")
    bundle.save(str(tmp_path / "b"), model, {"map": 0.5}, {}, toy.pictures[:3])
    loaded = bundle.load(str(tmp_path / "b"))[1]
    assert loaded.task == chosen
    toy.module.eval()
    assert loaded.predict(toy.pictures) == model.predict(toy.pictures)
    with torch.no_grad():
        for parameter in toy.module.fpn.parameters():
            parameter.mul_(-1)
    bundle.save(str(tmp_path / "b"), model, {"map": 0.5}, {}, toy.pictures[:3])
    golden = tmp_path / "b" / "golden" / "0.bin"
    golden.write_bytes(toy.pictures[5])
    with pytest.raises(BundleError):
        bundle.load(str(tmp_path / "b"))


def test_equal_scores_come_in_one_order_whatever_the_proposals():
    boxes = torch.tensor([[10, 20, 30, 40], [12, 20, 32, 40], [40, 30, 50, 40], [40, 10, 50, 20.0]])
    scores = torch.tensor([[0.5, 0.5, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0.5, 0]])
    geometry, predictions = PRE.geometry((100, 80)), []
    for order in itertools.permutations(range(4)):
        outputs = {"scores": scores[None, list(order)], "boxes": boxes[None, list(order), None]}
        predictions.append(TASK.decode(outputs, [geometry], LABELS))
    assert len(predictions[0][0]["objects"]) == 4
    assert all(prediction == predictions[0] for prediction in predictions)


def test_golden_samples_of_two_stages_do_not_hang_on_the_order_of_equals():
    module = Toy("detection", detector="faster_rcnn", channels=32).module.eval()
    x = torch.randint(255, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        was, ranked = module.golden(x), module(x)["boxes"]
        for parameter in module.backbone.parameters():
            parameter.mul_(1 + 1e-4 * torch.randn_like(parameter))
        now, again = module.golden(x), module(x)["boxes"]
    off = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(now, was, strict=True)]
    assert max(off) < bundle.GOLDEN_TOLERANCE
    assert float((again - ranked).abs().max() / ranked.abs().max()) > bundle.GOLDEN_TOLERANCE


def test_norm_statistics_stay_where_they_shall():
    backbone = Backbone("resnet10t-nano", "builtin", size=64)
    for freeze, moves in ((True, False), (False, True)):
        module = tasks.load({"name": "detection", "freeze_norm": freeze, "channels": 32}).build(
            backbone, LABELS
        )
        before = {k: v.clone() for k, v in backbone.state_dict().items() if "running_mean" in k}
        module.train()(torch.randint(255, (2, 3, 64, 64), dtype=torch.uint8))
        assert any((backbone.state_dict()[k] != v).any() for k, v in before.items()) == moves


def test_a_stride_that_the_backbone_has_not():
    with pytest.raises(ConfigError, match=r"task\.min_stride = 64 \(resnet10t-nano\): accepted: at most 32"):
        tasks.load({"name": "detection", "min_stride": 64}).build(Backbone("resnet10t-nano", size=64), LABELS)


def test_drawing_tells_truth_from_detections_without_colour():
    ground = Image.new("RGB", (160, 120), (128, 128, 128))
    record = {"objects": [[0, 0.9, 20, 20, 90, 90]], "threshold": 0.5}
    drawn = TASK.draw(ground, record, LABELS)
    missed = TASK.draw(ground, {"truth": [[0, 20, 20, 90, 90]], "objects": [], "threshold": 0.5}, LABELS)
    unsure = TASK.draw(ground, {"objects": [[0, 0.4, 20, 20, 90, 90]], "threshold": 0.5}, LABELS)
    assert ImageChops.difference(unsure, ground).getbbox() is None  # and the picture itself is unchanged
    side = [[picture.getpixel((90, y)) for y in range(30, 80)] for picture in (drawn, missed)]
    assert len(set(side[0])) == 1 < len(set(side[1]))  # full, dashed
    assert ImageChops.difference(missed, ground).getbbox()[3] > 92  # its name below, in the picture


def training_rows(sides, size=(256, 256), seed=0):
    """The rows that `Task.adapted_to_data` reads: pictures with one box of these sides at a random place."""
    rng, rows = np.random.default_rng(seed), []
    for w, h in sides:
        x, y = rng.uniform(0, [size[0] - w, size[1] - h])
        objects = {"bbox": [[x, y, w, h]], "category": [0]}
        rows.append({"objects": objects, "width": size[0], "height": size[1]})
    return lambda columns: pa.Table.from_pylist(rows)


LARGE = PRE.model_copy(update={"size": (256, 256)})
LONG = [(20 + n % 50, 150 + n % 40) for n in range(0, 200)] + [(180 - n % 40, 8 + n % 9) for n in range(200)]


def test_anchors_fit_as_a_look_at_all_of_them_says():
    module = TASK.build(Backbone("resnet10t-nano", size=256), LABELS)
    maps, size = module.maps(torch.zeros(1, 3, 256, 256, dtype=torch.uint8))
    assert size == (256, 256)
    images = detection.model._images(maps, size)
    boxes_N4 = np.concatenate(
        [TASK._training_boxes(training_rows(LONG, seed=n)([]), LARGE) for n in range(2)]
    )
    for anchors in (module.anchors, Anchors(module.strides, 2.0, ((1.0, 9.0), (5.0, 0.7)))):
        (all_A4,) = anchors(images, maps)
        best_N = box_iou(torch.from_numpy(boxes_N4), all_A4.double()).amax(1).numpy()
        np.testing.assert_allclose(anchors.fit(boxes_N4, (256, 256)), best_N, atol=1e-5)


def test_anchors_come_from_the_boxes_where_standard_ones_fit_badly():
    backbone, task = (
        Backbone("resnet10t-nano", size=256),
        tasks.load({"name": "detection", "anchors": "auto"}),
    )
    square, note = task.adapted_to_data(training_rows([(24 + n, 30 + n) for n in range(60)]), backbone, LARGE)
    assert square.anchors == "standard" and square.anchor_recall > 0.9
    assert note.startswith("anchors: ") and "training boxes" in note and "made" not in note
    long, note = task.adapted_to_data(training_rows(LONG), backbone, LARGE)
    plain, _ = TASK.adapted_to_data(training_rows(LONG), backbone, LARGE)
    assert len(long.anchors) == 9 and plain.anchors == "standard"
    assert plain.anchor_recall < 0.6 < 0.9 < long.anchor_recall
    assert "made of the boxes" in note and f"{plain.anchor_recall:.1%}" in note
    assert task.adapted_to_data(training_rows(LONG), backbone, LARGE)[0] == long  # the same each time
    assert tasks.load(json.loads(json.dumps(long.model_dump(mode="json")))) == long
    for one in (long, long.model_copy(update={"detector": "faster_rcnn"})):
        module = one.build(backbone, LABELS)
        assert module.anchors.num_per_place == 9
        target = {"boxes": torch.tensor([[[5.0, 5, 30, 160]]]), "labels": torch.tensor([[0]])}
        loss = module(torch.zeros(1, 3, 256, 256, dtype=torch.uint8), target)
        assert torch.isfinite(loss)
    for nothing in (training_rows([]), lambda _: pa.table({"objects": []})):
        assert task.adapted_to_data(nothing, backbone, LARGE) == (TASK, "")


def test_bundles_from_before_anchors_were_a_setting_have_standard_ones():
    settings = {k: v for k, v in TASK.model_dump(mode="json").items() if not k.startswith("anchor_r")}
    del settings["anchors"]
    assert tasks.load(settings).anchors == "standard" and TASK.defaults.task["anchors"] == "auto"
    for bad in ("none", 3, [], [[1, -2]], [1, 2], [["a", 1]], [[1, 1]] * 28):
        with pytest.raises(
            ConfigError, match=r"task\.anchors = .*: accepted: auto, standard, or 1 to 27 pairs"
        ):
            tasks.load({"name": "detection", "anchors": bad})


@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn"])
def test_a_bundle_of_other_labels_is_a_start_but_for_the_class_layer(detector, tmp_path):
    toy = Toy("detection", 2, detector=detector, channels=32)
    uri = str(tmp_path / "b")
    spec = toy.module.backbone.spec()
    with torch.no_grad():
        for parameter in toy.module.parameters():
            parameter.add_(0.01)
    bundle.save(uri, bundle.Model(toy.module, toy.task, spec, 0, PRE, toy.labels, ""), {}, {})
    settings = {"task": {"name": "detection", "detector": detector, "channels": 32}, "input": {"size": 64}}
    config = train.resolve_config(parse({**settings, "model": {"head": uri}}, "test"))
    assert config.model.weights == f"{uri}/weights.safetensors"
    theirs = toy.module.state_dict()
    for labels, apart in ((toy.labels, False), (["a", "b", "c", "d"], True), (["a", "b", "c"], True)):
        built = build_model(config, toy.task, labels, None, "")
        ours = built.module.state_dict()
        other = {name for name, value in theirs.items() if not torch.equal(value, ours[name])}
        layers = built.module.class_layers
        assert all(name.startswith(layers) for name in other) and bool(other) == apart
        assert ("all but the layer of the classes" in built.notes[0]) == apart
    for bad in (
        {"detector": detector, "channels": 64},
        {"detector": detector, "channels": 32, "min_stride": 16},
    ):
        task = tasks.load({"name": "detection", "detector": detector, **bad})
        with pytest.raises(ConfigError, match=r"model\.head = .*accepted: the head of a model"):
            build_model(config, task, toy.labels, None, "")
    with pytest.raises(ConfigError, match=r"its task is detection; accepted: a model of the same task"):
        build_model(config, tasks.load({"name": "classification"}), toy.labels, None, "")
