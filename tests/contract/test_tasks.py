"""What every task has to do, on toy scenes: a new task passes this without touching another file."""

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from tests import toys
from tlray import tasks
from tlray.data import loader, schema
from tlray.data.image import Preprocess, decode, encode_mask, render
from tlray.errors import ConfigError
from tlray.models.backbone import Backbone
from tlray.tasks.base import Counts

TASKS = tasks.names()
PRE = Preprocess(size=(64, 64), fit="letterbox", mean=(0.5,) * 3, std=(0.5,) * 3)
STEPS = 200


class Toy:
    """A task with its scenes, rendered, and a fresh module."""

    def __init__(self, name: str, count: int = 8, **settings: Any) -> None:
        self.task = tasks.load({"name": name, **settings})
        kind = next(iter(self.task.columns.values()))
        self.labels = [] if kind == "identity" else toys.names(kind)
        self.pictures, self.rows = toys.scenes(self.task.columns, count)
        done = [render(data, PRE) for data in self.pictures]
        self.x = torch.from_numpy(np.stack([x for x, _ in done]))
        self.geometries = [geometry for _, geometry in done]
        counts = None if kind in ("objects", "mask") else Counts([3, 3, 2], 8)
        torch.manual_seed(0)
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)  # as a run does: small gradients are slow without
        self.module = self.task.build(Backbone("resnet10t-nano", "builtin", size=64), self.labels, counts)

    def targets(self) -> dict[str, Any]:
        found = [
            self.task.encode(row, g, self.labels) for row, g in zip(self.rows, self.geometries, strict=True)
        ]
        return loader.collate(found)

    def learn(self, steps: int, enough: float = 0.95) -> tuple[float, list[float]]:
        """Train until the goal is good enough, at most so many steps: the goal, and the losses."""
        targets, losses = self.targets(), []
        optimizer = torch.optim.AdamW(self.module.parameters(), lr=3e-3)
        # As in training: full steps at once throw the weights about, and without a decay they never settle.
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda n: min(1, (n + 1) / 10) * (1 + math.cos(math.pi * n / steps)) / 2
        )
        for step in range(1, steps + 1):
            loss = self.module(self.x, targets)
            losses.append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                score = self.metrics(self.predict()).compute()[self.task.goal.name]
                if score >= enough:
                    break
        return score, losses

    def predict(self) -> list[dict[str, Any]]:
        self.module.eval()
        with torch.inference_mode():
            found = self.task.decode(self.module(self.x), self.geometries, self.labels)
        self.module.train()
        return found

    def metrics(self, predictions: list[dict[str, Any]]) -> Any:
        metrics = self.task.metrics(self.labels)
        metrics.update(predictions, self.rows)
        return metrics


@pytest.mark.parametrize("name", TASKS)
def test_settings_are_checked_and_frozen(name):
    task = tasks.load({"name": name})
    assert task.name == name and task.goal.direction in ("min", "max")
    assert set(task.columns.values()) <= set(schema.TYPES)
    with pytest.raises(ConfigError, match=r"task\.no_such_key .*unknown key"):
        tasks.load({"name": name, "no_such_key": 0.1})
    with pytest.raises(Exception, match="frozen"):
        task.name = "other"


@pytest.mark.parametrize("name", TASKS)
def test_every_goal_is_a_metric_and_another_is_refused(name):
    (one_of,) = type(tasks.load({"name": name})).model_fields["goal"].metadata
    toy = Toy(name)
    measured = toy.metrics(toy.predict()).compute()
    for goal, direction in one_of.directions.items():
        task = tasks.load({"name": name, "goal": goal})
        assert task.goal == (goal, direction) and goal in measured
        assert direction == ("min" if goal in ("log_loss", "equal_error_rate") else "max")
        assert tasks.load(json.loads(json.dumps(task.model_dump(mode="json")))) == task
    assert tasks.load({"name": name}).goal.name in one_of.directions  # what an older manifest means
    for wrong in ("no_such", ["accuracy"], None):
        with pytest.raises(ConfigError, match=r"task\.goal = .*accepted: one of \w+") as error:
            tasks.load({"name": name, "goal": wrong})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", TASKS)
def test_eight_toy_pictures_are_learnt(name):
    score, losses = Toy(name).learn(STEPS)
    assert score >= 0.95
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_is_the_mean_over_rows(name):
    """So that parts of a batch on several workers, weighted by rows, move the model as the whole does."""
    toy = Toy(name)
    toy.module.eval()

    def gradients(rows: slice) -> list[torch.Tensor]:
        toy.module.zero_grad()
        found = [
            toy.task.encode(row, g, toy.labels)
            for row, g in zip(toy.rows[rows], toy.geometries[rows], strict=True)
        ]
        toy.module(toy.x[rows], loader.collate(found)).backward()
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in toy.module.parameters()]

    parts = zip(gradients(slice(0, 3)), gradients(slice(3, 8)), strict=True)
    for whole, (first, second) in zip(gradients(slice(0, 8)), parts, strict=True):
        assert torch.allclose(whole, (3 * first + 5 * second) / 8, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    "name", [name for name in TASKS if "mixup" in tasks.load({"name": name}).supported_augmentations]
)
def test_the_loss_of_mixed_pictures_is_linear_in_their_shares(name):
    toy = Toy(name)
    toy.module.eval()
    if hasattr(toy.module, "head"):  # begins at 0, where all labels cost the same
        torch.nn.init.normal_(toy.module.head.weight, std=0.1)
    plain = toy.targets()

    def loss(share: list[float]) -> float:
        mixed = {f"partner.{key}": value.roll(1, 0) for key, value in plain.items()}
        return float(toy.module(toy.x, {**plain, **mixed, "share": torch.tensor(share)}).detach())

    own, others = loss([1.0] * 8), loss([0.0] * 8)
    assert own == float(toy.module(toy.x, plain).detach())  # to the last bit
    assert others == pytest.approx(
        float(toy.module(toy.x, {k: v.roll(1, 0) for k, v in plain.items()}).detach())
    )
    assert loss([0.3] * 8) == pytest.approx(0.3 * own + 0.7 * others, rel=1e-5)
    rows = [loss([1.0 if i == j else 0.0 for j in range(8)]) - others for i in range(8)]
    assert sum(rows) == pytest.approx(own - others, abs=1e-4)  # each row by its own share
    assert max(rows) > 1e-3


@pytest.mark.parametrize("name", TASKS)
def test_predictions_are_plain_can_be_kept_and_drawn(name):
    toy = Toy(name)
    predictions = toy.predict()
    assert len(predictions) == 8 and json.loads(json.dumps(predictions)) == predictions
    for picture, row, prediction in zip(toy.pictures, toy.rows, predictions, strict=True):
        record = toy.task.record(row, prediction)
        assert json.loads(json.dumps(record)) == record
        source = decode(picture)
        drawn = toy.task.draw(source, record, toy.labels)
        assert isinstance(drawn, Image.Image) and drawn.size == source.size
        served = toy.task.served(prediction)
        assert json.loads(json.dumps(served)) == served and toy.task.served(served) == served
        assert toy.task.detects or served == prediction
        toy.task.draw(source, toy.task.record(None, served), toy.labels)
        assert "\n" not in toy.task.summary(served, 3)
    records = [toy.task.record(r, p) for r, p in zip(toy.rows, predictions, strict=True)]
    metrics = toy.metrics(predictions).compute()
    shown = {"rows": records, "labels": toy.labels, "split": "test", "metrics": metrics}
    assert toy.task.figures(json.loads(json.dumps(shown)))


@pytest.mark.parametrize("name", TASKS)
def test_metrics_of_parts_merge_into_those_of_the_whole(name):
    toy = Toy(name, 12)
    predictions = toy.predict()
    whole, merged = toy.metrics(predictions), toy.task.metrics(toy.labels)
    for part in (slice(0, 3), slice(3, 3), slice(3, 12)):
        one = toy.task.metrics(toy.labels)
        one.update(predictions[part], toy.rows[part])
        merged.merge(json.loads(json.dumps(one.state())))
    assert merged.compute() == pytest.approx(whole.compute(), abs=1e-9, nan_ok=True)
    assert toy.task.goal.name in whole.compute()
    decided = toy.task.with_thresholds(whole)
    assert tasks.load(json.loads(json.dumps(decided.model_dump(mode="json")))) == decided


@pytest.mark.parametrize("name", TASKS)
def test_sound_labels_pass_the_preflight(name):
    """As ingest gives them: classes as text, masks as what was seen of them."""
    task = tasks.load({"name": name})
    rows = []
    for i in range(6):
        row = {"path": f"{i}.jpg", "width": 96, "height": 80, "kind": None, "reason": None}
        for column, kind in task.columns.items():
            value = toys.labels_of(kind, i)
            if kind == "objects":
                value = {"bbox": value["bbox"], "category": [toys.LABELS[c] for c in value["category"]]}
            elif kind == "classes":
                value = [toys.LABELS[c] for c in value]
            elif kind == "mask":
                value = f"{i}.png"
                row |= {"mask_width": 96, "mask_height": 80, "mask_values": [0, 1 + i % 3]}
            else:
                value = toys.LABELS[value]
            row[column] = value
        rows.append(row)
    table = pa.Table.from_pylist(rows)
    for column in ("kind", "reason"):
        table = table.set_column(table.column_names.index(column), column, pa.nulls(6, pa.string()))
    names = {"mask": toys.names("mask")} if "mask" in task.columns.values() else {}
    kept, remarks = task.preflight(table, names)
    assert kept["kind"].null_count == 6 and not [r for r in remarks if r.severity != "info"]


@pytest.mark.parametrize("name", TASKS)
def test_labels_that_give_the_goal_no_value_are_known_before_training(name):
    task = tasks.load({"name": name})
    (column, kind), *_ = task.columns.items()
    labels = toys.names(kind)
    _, rows = toys.scenes(task.columns, 4)
    table = pa.Table.from_pylist([{column: row[column]} for row in rows])
    table = table.cast(pa.schema([(column, schema.TYPES[kind])]))
    assert task.unmeasurable(iter([table[:2], table[2:]]), labels) is None
    nothing = {
        "class": [], "identity": [0, 1, 2, 3], "classes": [[], []],
        "objects": [{"bbox": [], "category": []}] * 2,
        "mask": [{"bytes": encode_mask(np.full((8, 8), 255, np.uint8)), "path": ""}] * 2,
    }[kind]  # fmt: skip
    empty = pa.table({column: pa.array(nothing, schema.TYPES[kind])})
    for tables in ([], [table[:0]], [empty], [empty[:1], empty[1:]]):
        reason = task.unmeasurable(iter(tables), labels)
        assert reason and "\n" not in reason

    assert math.isnan(task.metrics(labels).compute()[task.goal.name])
