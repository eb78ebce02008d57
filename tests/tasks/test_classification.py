"""Single-label classification: metrics equal a library's, and the settings of the loss."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.test_tasks import Toy
from tests.toys import LABELS
from tlray import tasks


def test_weighted_classes_are_learnt():
    toy = Toy("classification", class_weights="balanced")
    targets = toy.targets()
    optimizer = torch.optim.AdamW(toy.module.parameters(), lr=3e-3)
    for _ in range(40):
        loss = toy.module(toy.x, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert toy.metrics(toy.predict()).compute()["accuracy"] == 1.0


def test_class_metrics_are_those_of_the_library():
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    task = tasks.load({"name": "classification"})
    logits = torch.randn(200, 3, generator=torch.Generator().manual_seed(2))
    truth = torch.randint(3, (200,), generator=torch.Generator().manual_seed(3))
    metrics = task.metrics(LABELS)
    metrics.update(task.decode(logits, [None] * 200, LABELS), [{"label": int(t)} for t in truth])
    ours, p = metrics.compute(), logits.softmax(1)
    assert ours["accuracy"] == pytest.approx(
        float(multiclass_accuracy(p, truth, 3, average="micro")), abs=1e-6
    )
    assert ours["balanced_accuracy"] == pytest.approx(float(multiclass_accuracy(p, truth, 3)), abs=1e-6)
    assert ours["macro_f1"] == pytest.approx(float(multiclass_f1_score(p, truth, 3)), abs=1e-6)
    assert ours["log_loss"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, truth)), abs=1e-4
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_counts_are_those_of_scikit_learn_for_any_classes_that_occur(pairs: list[tuple[int, int]]) -> None:
    from sklearn import metrics as theirs

    metrics = tasks.load({"name": "classification"}).metrics(["a", "b", "c", "d"])
    for true, predicted in pairs:
        ranked = [{"index": i, "probability": 0.25} for i in range(4)]
        metrics.update([{"index": predicted, "labels": ranked}], [{"label": true}])
    ours = metrics.compute()
    if not pairs:
        assert all(math.isnan(value) for value in ours.values())
        return
    truth, predicted = zip(*pairs, strict=True)
    counts = theirs.confusion_matrix(truth, predicted, labels=range(4))
    np.testing.assert_array_equal(metrics.confusion, counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning about predicted classes that never occur
        assert ours["balanced_accuracy"] == pytest.approx(theirs.balanced_accuracy_score(truth, predicted))
    assert ours["accuracy"] == pytest.approx(theirs.accuracy_score(truth, predicted))
    f1 = theirs.f1_score(truth, predicted, labels=sorted(set(truth)), average="macro")
    assert ours["macro_f1"] == pytest.approx(f1)


def test_goals_know_what_is_better():
    goal = tasks.load({"name": "classification"}).goal
    assert goal.better(0.5, None) and goal.better(0.6, 0.5) and not goal.better(0.5, 0.5)
    assert not goal.better(float("nan"), None) and goal.better(0.1, float("nan"))
