"""What every task has to do, on toy pictures: a new task passes this without touching another file."""

import json

import numpy as np
import pytest
import torch

from tests.toys import LABELS, picture
from tlray import tasks
from tlray.backbone import Backbone
from tlray.errors import ConfigError
from tlray.image import Preprocess, render

TASKS = tasks.names()
PRE = Preprocess(size=(64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)


def rows(count=8):
    return [{"label": i % 3, "id": str(i), "path": f"{i}.jpg"} for i in range(count)]


def rendered(count=8):
    done = [render(picture(i % 3, i), PRE) for i in range(count)]
    return torch.from_numpy(np.stack([x for x, _ in done])), [geometry for _, geometry in done]


@pytest.mark.parametrize("name", TASKS)
def test_settings_are_checked_and_frozen(name):
    task = tasks.load({"name": name})
    assert task.name == name and task.goal.direction in ("min", "max")
    with pytest.raises(ConfigError, match=r"task\.label_smothing .*did you mean 'label_smoothing'"):
        tasks.load({"name": name, "label_smothing": 0.1})
    with pytest.raises(Exception, match="frozen"):
        task.name = "other"


@pytest.mark.parametrize("settings", [{}, {"mixup": 0.2}, {"class_weights": "balanced"}])
@pytest.mark.parametrize("name", TASKS)
def test_eight_toy_pictures_are_learnt(name, settings):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    task = tasks.load({"name": name, **settings})
    module = task.build(Backbone("resnet10t-nano", "builtin", size=64), LABELS, [3, 3, 2])
    x, geometries = rendered()
    targets = [task.encode(row, g, LABELS) for row, g in zip(rows(), geometries, strict=True)]
    batch = {k: torch.stack([torch.as_tensor(t[k]) for t in targets]) for k in targets[0]}
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    first = None
    for _ in range(30):
        loss = module(x, batch)
        first = first if first is not None else float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.eval()
    with torch.inference_mode():
        predictions = task.decode(module(x), geometries, LABELS)
    metrics = task.metrics(LABELS)
    metrics.update(predictions, rows())
    assert metrics.compute()[task.goal.name] == 1.0
    assert float(loss.detach()) < 0.6 * first
    assert json.loads(json.dumps(predictions)) == predictions


@pytest.mark.parametrize("name", TASKS)
def test_metrics_of_parts_merge_into_those_of_the_whole(name):
    task = tasks.load({"name": name})
    rng = torch.Generator().manual_seed(1)
    predictions = task.decode(torch.randn(20, 3, generator=rng), [None] * 20, LABELS)
    whole, merged = task.metrics(LABELS), task.metrics(LABELS)
    whole.update(predictions, rows(20))
    for part in (slice(0, 3), slice(3, 3), slice(3, 20)):
        one = task.metrics(LABELS)
        one.update(predictions[part], rows(20)[part])
        merged.merge(json.loads(json.dumps(one.state())))
    assert merged.compute() == pytest.approx(whole.compute(), abs=1e-12)
    assert task.goal.name in whole.compute()
    records = [task.record(r, p) for r, p in zip(rows(20), predictions, strict=True)]
    assert task.figures({"rows": records, "labels": LABELS, "split": "test", "metrics": {}})


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
