"""Averages of weights along one training: a moving average, and a greedy soup of its own checkpoints.

A soup (Wortsman et al., Model soups, arXiv 2203.05482) starts with the best epoch and takes in one snapshot
after the other, the latest first, as long as the average is no worse on validation. Snapshots are taken in
the last half of the steps, where weights are close enough to each other for an average to make sense. What
comes out is kept only where it is better than the best epoch by more than the noise of the comparison.

Running statistics of batch norm are averaged with the weights: within one training they lie as close.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import torch

from tlray.inference.significance import Evaluation, is_significantly_better
from tlray.tasks.base import Goal

Weights = dict[str, torch.Tensor]
NO_AVERAGE = "no average"  # what came of it where none was as good as the best epoch
MOST_BYTES = 512 * 2**20  # of snapshots that one training holds


@dataclass
class Outcome:
    """What averaging came to: ``kind`` as in "soup of 3", and the goal before and after."""

    kind: str
    before: float
    after: float
    kept: bool
    weights: Weights
    judged: Evaluation

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
        state = module.state_dict()
        size = sum(state[name].nbytes for name in self.names)
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

    def proposals(self, best: Weights, best_step: int, goal: Goal) -> Generator[Weights, Evaluation, Outcome]:
        """Weights to be judged, the best epoch's first; in the end what came of it.

        ``best_step``: after which they were taken. All workers must be asked the same, and statistics of
        batch norm differ between them: what is proposed depends on steps and metrics, never on weights.
        """
        judged = yield best
        chosen, found, kind = best, judged, NO_AVERAGE
        if self.moving is not None:
            value = yield dict(self.moving)
            if not goal.beats(found.values, value.values):
                chosen, found, kind = dict(self.moving), value, "moving average"
        others = [self.taken[step] for step in sorted(self.taken, reverse=True) if step != best_step]
        chosen, found, taken = yield from greedy(chosen, found, others, goal)
        if taken:
            kind = f"soup of {len(taken) + 1}"
        return outcome(kind, (best, judged), (chosen, found), goal)


def outcome(
    kind: str, before: tuple[Weights, Evaluation], after: tuple[Weights, Evaluation], goal: Goal
) -> Outcome:
    """``after`` where it is better than ``before`` by more than noise."""
    old, new = (judged.values[goal.name] for _, judged in (before, after))
    kept = after[1] is not before[1] and is_significantly_better(after[1], before[1], goal)
    kind = NO_AVERAGE if after[1] is before[1] else kind
    return Outcome(kind, old, new, kept, *(after if kept else before))


def greedy(
    best: Weights, found: Evaluation, others: Sequence[Weights], goal: Goal
) -> Generator[Weights, Evaluation, tuple[Weights, Evaluation, list[int]]]:
    """A soup: averages to be judged, the next of the others in each; one stays in where it does no harm.

    ``found``: how good the best are. In the end: the average, how good it is, and which others are in it.
    """
    chosen, taken = best, list[int]()
    total = {name: value.detach().double().cpu() for name, value in best.items()}
    for number, weights in enumerate(others):
        added = {name: value + weights[name] for name, value in total.items()}
        mean = {name: (value / (len(taken) + 2)).to(best[name].dtype) for name, value in added.items()}
        judged = yield mean
        if not goal.beats(found.values, judged.values):
            total, chosen, found = added, mean, judged
            taken.append(number)
    return chosen, found, taken


def changing(module: torch.nn.Module) -> list[str]:
    """Names of the tensors of a module that training changes: all but frozen parameters."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return [name for name in module.state_dict() if name not in frozen]
