"""Averages of weights along one training: a moving average, and a greedy soup of its own checkpoints.

A soup (Wortsman et al., Model soups, arXiv 2203.05482) starts with the best epoch and takes in one snapshot
after the other, the latest first, as long as the average is no worse on validation. Snapshots are taken in
the last half of the steps, where weights are close enough to each other for an average to make sense. What
comes out is kept only where it is better than the best epoch by more than the noise of the comparison, `gain`.

Running statistics of batch norm are averaged with the weights: within one training they lie as close.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from tlray.tasks.base import Goal, Metrics

Weights = dict[str, torch.Tensor]
BLOCKS = 10  # parts of the validation split, by which the noise of a comparison is known
MOST_BYTES = 512 * 2**20  # of snapshots that one training holds


class Judged:
    """Metrics of one set of weights over the validation split, as a whole and in `BLOCKS` parts."""

    def __init__(self, whole: Metrics, blocks: Sequence[Metrics]) -> None:
        self.whole, self.values = whole, whole.compute()
        self.parts = [block.compute() for block in blocks]  # NaN where a block has no value


class Gain(NamedTuple):
    """How much better one set of weights is than another, and the standard error of that."""

    mean: float  # above 0: better
    error: float


def gain(new: Judged, old: Judged, name: str, direction: str) -> Gain:
    """Of a metric: the difference as a whole, its standard error by the differences of the blocks.

    Both have seen the same pictures, so that what makes a block hard for both does not count as noise.
    """
    sign = 1.0 if direction == "max" else -1.0
    both = zip(new.parts, old.parts, strict=True)
    steps = [sign * (a[name] - b[name]) for a, b in both if math.isfinite(a[name]) and math.isfinite(b[name])]
    mean = sign * (new.values[name] - old.values[name])
    if len(steps) < 2:
        return Gain(mean, math.inf)
    centre = sum(steps) / len(steps)
    variance = sum((step - centre) ** 2 for step in steps) / (len(steps) - 1)
    return Gain(mean, math.sqrt(variance / len(steps)))


def no_worse(new: Judged, old: Judged, goal: Goal) -> bool:
    """Whether the goal is as good or better; of equal goals the log loss decides, where the task has one."""
    a, b = new.values[goal.name], old.values[goal.name]
    if a == b and "log_loss" in new.values:
        return new.values["log_loss"] <= old.values["log_loss"]
    return a == b or goal.better(a, b)


def worth_it(new: Judged, old: Judged, goal: Goal) -> bool:
    """Whether the goal is no worse, and it or the log loss is better by more than its standard error."""
    if not no_worse(new, old, goal):
        return False
    found = [gain(new, old, goal.name, goal.direction)]
    if "log_loss" in new.values:
        found.append(gain(new, old, "log_loss", "min"))
    return any(one.mean > one.error for one in found)


@dataclass
class Outcome:
    """What averaging came to: ``kind`` as in "soup of 3", and the goal before and after."""

    kind: str
    before: float
    after: float
    kept: bool
    weights: Weights
    judged: Judged

    def line(self, goal: Goal) -> str:
        """For a person."""
        verdict = "kept" if self.kept else "not kept: no more than noise"
        return f"{self.kind}: {goal.name} {self.before:.4f} -> {self.after:.4f}, {verdict}"


class Snapshots:
    """What a training averages: the moving average of its weights, and snapshots of its last half.

    ``names``: the tensors that training changes. On the device of the model, but for snapshots: in memory.
    """

    def __init__(self, module: torch.nn.Module, num_steps: int, count: int, decay: float | None) -> None:
        self.names = changing(module)
        self.decay = decay
        self.moving: Weights | None = None
        size = sum(t.nbytes for name, t in module.state_dict().items() if name in self.names)
        count = min(count, MOST_BYTES // max(1, size))
        # At equal distances in the last half of the steps, the very end among them.
        marks = [round(num_steps * (1 - k / count / 2)) for k in range(count)]
        self.marks = set(marks) if count > 1 else set()
        self.taken: dict[int, Weights] = {}  # by step

    def __bool__(self) -> bool:
        """Whether there is anything to average."""
        return bool(self.taken) or self.moving is not None

    def after(self, module: torch.nn.Module, step: int) -> None:
        """Told after each step of the optimiser, ``step`` of them done."""
        if self.decay is None and step not in self.marks:
            return
        state = module.state_dict()
        if self.decay is not None:
            if self.moving is None:
                self.moving = {name: state[name].detach().clone() for name in self.names}
            # At the beginning the average follows quickly, else it would remember the untrained head.
            decay = min(self.decay, step / (10 + step))
            for name, kept in self.moving.items():
                if kept.is_floating_point():
                    kept.lerp_(state[name], 1 - decay)
                else:
                    kept.copy_(state[name])
        if step in self.marks:
            self.taken[step] = {name: state[name].detach().cpu().clone() for name in self.names}

    def tensors(self) -> Weights:
        """All of it under flat names, for a checkpoint."""
        out = {f"{step}/{name}": t for step, one in self.taken.items() for name, t in one.items()}
        out |= {f"moving/{name}": t for name, t in (self.moving or {}).items()}
        return {name: t.contiguous() for name, t in out.items()}

    def load(self, tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
        """The inverse of `tensors`."""
        for flat, tensor in tensors.items():
            key, _, name = flat.partition("/")
            if key == "moving":
                self.moving = {**(self.moving or {}), name: tensor.to(device)}
            else:
                self.taken.setdefault(int(key), {})[name] = tensor

    def proposals(self, best: Weights, goal: Goal) -> Generator[Weights, Judged, Outcome]:
        """Weights to be judged, the best epoch's first; in the end what came of it."""
        judged = yield best
        chosen, found, kind = best, judged, "no soup"
        if self.moving is not None:
            value = yield dict(self.moving)
            if no_worse(value, found, goal):
                chosen, found, kind = dict(self.moving), value, "moving average"
        sum_, number = {name: t.detach().double().cpu() for name, t in chosen.items()}, 1
        for step in sorted(self.taken, reverse=True):
            added = {name: value + self.taken[step][name] for name, value in sum_.items()}
            mean = {name: (total / (number + 1)).to(chosen[name].dtype) for name, total in added.items()}
            value = yield mean
            if no_worse(value, found, goal):
                sum_, number, chosen, found, kind = added, number + 1, mean, value, f"soup of {number + 1}"
        before, after = judged.values[goal.name], found.values[goal.name]
        kept = found is not judged and worth_it(found, judged, goal)
        return Outcome(kind, before, after, kept, chosen if kept else best, found if kept else judged)


def changing(module: torch.nn.Module) -> list[str]:
    """Names of the tensors of a module that training changes: all but frozen parameters."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return [name for name in module.state_dict() if name not in frozen]
