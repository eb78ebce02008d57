"""The range test: a learning rate for a network of an unknown kind, measured by a few steps of training.

At each step the rate rises by the same factor, from far too low to far too high, and the loss shows which
rates are right (Smith, arXiv 1506.01186). The weights that are trained here are thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from tlray.bundle.bundle import Model
from tlray.config import Config
from tlray.config.tree import flatten, within
from tlray.data import loader
from tlray.data.dataset import Dataset
from tlray.data.sampler import Order
from tlray.tasks import together
from tlray.training import resume
from tlray.training.candidate import Candidate

STEPS = 60
LOW, HIGH = 1e-5, 1e-1  # the head's first and last learning rate, with AdamW
SGD = 10.0  # factor of these rates with SGD
SMOOTHING = 0.9  # of the loss: the weight of its previous mean
AROUND = 3  # steps before and after a step, between which the fall of the loss is measured
FALLS = 0.99  # of the first loss: a lowest loss above it is noise
DIVERGED = 4.0  # the test ends at a loss that is so many times the lowest one
FREE = ("search", "train.epochs", "optim.lr")  # with `resume.FREE`: keys that do not change the outcome


class Point(NamedTuple):
    """A step of the test: the rate, and the smoothed loss before it."""

    rate: float
    loss: float


def inputs(config: Config, fingerprint: str) -> dict[str, Any]:
    """Everything that the outcome depends on: settings, and the fingerprint of the data."""
    settings = flatten(config.model_dump(mode="json"))
    free = (*resume.FREE, *FREE)
    return {**{k: v for k, v in settings.items() if not within(k, free)}, "fingerprint": fingerprint}


def choose(points: Sequence[Point]) -> float | None:
    """The rate at which the loss falls fastest, in two digits; None where it did not fall.

    Noise can put that anywhere, so the rate is at least a tenth and at most a third of the rate of the lowest
    loss, above which training diverges.
    """
    if not points:
        return None
    best = min(range(len(points)), key=lambda i: points[i].loss)
    if points[best].loss > FALLS * points[0].loss:
        return None
    fall = [points[min(i + AROUND, best)].loss - points[max(i - AROUND, 0)].loss for i in range(best + 1)]
    fastest, most = points[fall.index(min(fall))].rate, points[best].rate
    return float(f"{min(max(fastest, most / 10), most / 3):.2g}")


class _Rising(Candidate):
    """A candidate whose learning rate rises with each step."""

    def lr(self, step: int) -> float:
        return self.optim.lr * float((HIGH / LOW) ** (step / (STEPS - 1)))


def measure(config: Config, model: Model, progress: Callable[[int, int], None]) -> list[Point]:
    """Train a model, which is useless afterwards, at rising rates; the same points for the same seed.

    ``config``: that of the training, apart from the rate; ``progress``: called with steps done, and of how
    many.
    """
    torch.set_flush_denormal(True)  # as in training
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lowest = LOW * (SGD if config.optim.optimizer == "sgd" else 1.0)
    config = config.override({"optim.lr": lowest, "train.soup": 0, "train.ema": None})
    data, split = Dataset.open(config.data.uri), config.data.train_split
    source = loader.Source(
        config.data.uri, split, model.task, tuple(model.labels), model.preprocess,
        config.augment, config.seed, config.data.cache_mb,
    )  # fmt: skip
    order = Order(
        data.group_rows(split), config.train.batch_size, config.seed, config.scale.num_workers,
        config.data.shuffle_window, together(model.task, data, split),
    )  # fmt: skip
    candidate = _Rising(model, config, order.steps_per_epoch, device)
    candidate.train_mode()
    points: list[Point] = []
    mean, lowest_loss = 0.0, math.inf
    for step in range(STEPS):
        # The first worker's part of the batch: the whole one may not fit onto one device.
        rows = order.local_batch(step, 0)
        if not len(rows):
            rows = order.global_batch(step)[:1]
        batch = loader.make_batch(source, data.fingerprint, step // order.steps_per_epoch, rows)
        x_BCHW, targets = loader.to_device(batch, device, config.train.channels_last)
        loss = float(candidate.step(x_BCHW, targets, step, 1.0))
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smooth = mean / (1 - SMOOTHING ** (step + 1))
        lowest_loss = min(lowest_loss, smooth)
        if not math.isfinite(loss) or smooth > DIVERGED * lowest_loss:
            break
        points.append(Point(candidate.lr(step), smooth))
        progress(step + 1, STEPS)
    progress(STEPS, STEPS)
    return points
