"""Multi-label classification: metrics equal a library's, thresholds, a run on real pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.test_tasks import Toy
from tests.toys import LABELS
from tlray import tasks
from tlray.errors import ConfigError
from tlray.tasks import multilabel


def scored(num_rows: int = 200, **settings: Any) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Metrics of random predictions that correlate with the truth; the scores; the truth."""
    generator = torch.Generator().manual_seed(4)
    truth = (torch.rand(num_rows, 3, generator=generator) < torch.tensor([0.5, 0.2, 0.1])).long()
    logits = torch.randn(num_rows, 3, generator=generator) + 1.5 * truth - 1
    logits = (logits * 5).round() / 5  # many equal scores
    task = tasks.load({"name": "multilabel", **settings})
    metrics = task.metrics(LABELS)
    rows = [{"labels": row.nonzero().ravel().tolist()} for row in truth]
    metrics.update(task.decode(logits, [None] * num_rows, LABELS), rows)
    return metrics, torch.from_numpy(metrics.arrays()[0]), truth


def test_metrics_are_those_of_the_library():
    from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score

    metrics, p, truth = scored()
    metrics.thresholds = [0.5] * 3
    ours = metrics.compute()
    assert ours["map"] == pytest.approx(float(multilabel_average_precision(p, truth, 3)), abs=1e-6)
    for average in ("macro", "micro"):
        theirs = float(multilabel_f1_score(p, truth, 3, threshold=0.5, average=average))
        assert ours[f"{average}_f1"] == pytest.approx(theirs, abs=0.01)  # theirs excludes 0.5 itself
    none = tasks.load({"name": "multilabel"}).metrics(LABELS)
    assert all(np.isnan(v) for v in none.compute().values())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.booleans()), min_size=1))
def test_average_precision_is_that_of_scikit_learn_with_equal_scores_and_without_positives(
    rows: list[tuple[float, bool]],
) -> None:
    from sklearn.metrics import average_precision_score

    scores, truth = np.array([score for score, _ in rows]), np.array([true for _, true in rows])
    ours = multilabel.average_precision(scores, truth)
    if not truth.any():
        assert ours is None  # scikit-learn gives 0 and a warning
    else:
        assert ours == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


def test_chosen_thresholds_have_the_best_f1():
    metrics, p, truth = scored()
    task = tasks.load({"name": "multilabel"})
    chosen = task.with_thresholds(metrics)
    scores_NC, truth_NC = p.numpy(), truth.numpy().astype(bool)

    def f1(i: int, threshold: float) -> float:
        predicted = scores_NC[:, i] >= threshold
        return float(2 * (predicted & truth_NC[:, i]).sum() / (predicted.sum() + truth_NC[:, i].sum()))

    for i, threshold in enumerate(chosen.thresholds):
        assert f1(i, threshold) == max(f1(i, t) for t in np.unique(scores_NC[:, i]))
    assert chosen.metrics(LABELS).thresholds == chosen.thresholds
    by_hand = tasks.load({"name": "multilabel", "thresholds": [0.1, 0.2, 0.3]})
    assert by_hand.with_thresholds(metrics) is by_hand and task.with_thresholds(task.metrics(LABELS)) is task
    logits = torch.logit(torch.tensor([[0.15, 0.15, 0.4]]))
    assert by_hand.decode(logits, [None], LABELS)[0]["present"] == ["waves", "blob"]
    assert multilabel.best_threshold(np.array([0.2, 0.9]), np.array([False, False])) == 0.5


def test_figures_are_those_at_the_thresholds_that_ship():
    metrics, _, _ = scored()
    task = tasks.load({"name": "multilabel"})
    again = task.with_thresholds(metrics).metrics(LABELS)
    again.merge(metrics.state())
    assert again.compute() == metrics.compute()


def test_rare_classes_share_a_threshold():
    scores = np.array([[0.9, 0.2, 0.5], [0.1, 0.8, 0.4], [0.2, 0.3, 0.1], *[[0.6, 0.1, 0.05]] * 12])
    truth = np.zeros((15, 3), bool)
    truth[3:, 0] = truth[0, 1] = truth[1, 2] = True
    thresholds = multilabel.best_thresholds(scores, truth)
    shared = multilabel.best_threshold(scores[:, 1:].ravel(), truth[:, 1:].ravel())
    assert thresholds[1] == thresholds[2] == shared
    assert thresholds[0] == multilabel.best_threshold(scores[:, 0], truth[:, 0])


def test_the_first_predictions_are_how_often_a_class_occurs():
    from tlray.models.backbone import Backbone
    from tlray.tasks.base import Counts

    for weight in ("none", "balanced"):
        task = tasks.load({"name": "multilabel", "pos_weight": weight})
        module = task.build(Backbone("resnet10t-nano", size=32), LABELS, Counts([30, 1, 90], 100)).eval()
        x = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
        probabilities = module(x).sigmoid().ravel().tolist()
        if weight == "none":
            assert probabilities == pytest.approx([0.3, 0.015, 0.9], abs=0.01)
        else:  # the weighted loss is smallest where positives and negatives balance
            assert probabilities == pytest.approx([0.5, 0.6, 0.5], abs=0.02)
            assert module.pos_weight.tolist() == pytest.approx([70 / 30, 99, 10 / 90])


def test_thresholds_are_one_a_class():
    with pytest.raises(ConfigError, match=r"task\.thresholds: 2 numbers; accepted: one a class, 3"):
        Toy("multilabel", thresholds=[0.5, 0.5])
    with pytest.raises(ConfigError, match=r"task\.thresholds"):
        tasks.load({"name": "multilabel", "thresholds": [1.5]})


@pytest.mark.parametrize("settings", [{"pos_weight": "balanced"}, {"label_smoothing": 0.1}])
def test_every_form_of_the_loss_learns(settings):
    toy = Toy("multilabel", **settings)
    targets = toy.targets()
    assert targets["labels"].dtype == torch.float32 and targets["labels"].shape == (8, 3)
    optimizer = torch.optim.AdamW(toy.module.parameters(), lr=3e-3)
    for _ in range(40):
        loss = toy.module(toy.x, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert toy.metrics(toy.predict()).compute()["map"] > 0.9


def test_pictures_of_no_class_are_taken_and_told():
    task = tasks.load({"name": "multilabel"})
    rows = pa.table({"path": ["a.jpg", "b.jpg"], "labels": pa.array([[], ["x"]], pa.list_(pa.string()))})
    kept, remarks = task.preflight(rows, {})
    assert kept is rows
    assert [(r.severity, r.kind, r.examples) for r in remarks] == [("info", "no_class", ["a.jpg"])]
    assert task.encode({"labels": []}, None, LABELS)["labels"].tolist() == [0, 0, 0]


def test_figures_tell_what_was_missed():
    toy = Toy("multilabel")
    rows = [toy.task.record(r, p) for r, p in zip(toy.rows, toy.predict(), strict=True)]
    rows[0] = {"truth": [1], "prediction": [0], "probabilities": [0.99, 0.01, 0.2]}
    sections = toy.task.figures({"rows": json.loads(json.dumps(rows)), "labels": toy.labels})
    assert [s.title for s in sections] == ["Classes", "Calibration", "Worst pictures"]
    shot = sections[2].shots[0]
    assert shot.row == 0
    assert shot.lines == [("truth", "stripes"), ("missed", "stripes 0.01"), ("too much", "blob 0.99")]
    assert len(sections[0].tables[0].rows) == 3
    prediction = {
        "labels": [{"label": "a", "probability": 0.9}, {"label": "b", "probability": 0.8}],
        "present": ["b"],
    }
    assert toy.task.summary(prediction, 2) == "+b 0.8000  a 0.9000"


@pytest.mark.realdata
@pytest.mark.slow
def test_the_road_on_real_pictures(ray_local: Any, realdata: Path, tmp_path: Path) -> None:
    """The recipe, on a small part of its data set."""
    from tests.bench import camvid_quarters
    from tlray import cli

    folder, data, runs = tmp_path / "in", str(tmp_path / "data"), tmp_path / "runs"
    camvid_quarters.write(realdata / "camvid", folder, every=8)
    assert cli.run(["ingest", str(folder), data, "--task", "multilabel", "--json"]) == 0
    recipe = str(Path(__file__).parents[2] / "jobs" / "recipes" / "camvid-quarters.yaml")
    small = [f"data.uri={data}", f"runs={runs}", "model.freeze=all", "train.epochs=6", "train.batch_size=16"]
    assert cli.run(["train", recipe, *small, "--json"]) == 0
    evaluation = json.loads((runs / "camvid-quarters" / "evaluation.json").read_text())
    truth, labels = [row["truth"] for row in evaluation["rows"]], evaluation["labels"]
    there = [i for i in range(len(labels)) if any(i in row for row in truth)]
    chance = np.mean([np.mean([i in row for row in truth]) for i in there])
    assert evaluation["metrics"]["map"] > chance + 0.25, (evaluation["metrics"], chance)
    manifest = json.loads((runs / "camvid-quarters" / "best" / "manifest.json").read_text())
    assert len(manifest["task"]["thresholds"]) == len(labels) == len(camvid_quarters.NAMES)
    assert manifest["metrics"] == evaluation["metrics"]  # exactly, at the thresholds in the bundle
