"""Single-label classification: figures as a known library has them, and the settings of the loss."""

import pytest
import torch

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


def test_goals_know_what_is_better():
    goal = tasks.load({"name": "classification"}).goal
    assert goal.better(0.5, None) and goal.better(0.6, 0.5) and not goal.better(0.5, 0.5)
    assert not goal.better(float("nan"), None) and goal.better(0.1, float("nan"))
