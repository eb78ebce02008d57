"""Averages of weights along one training: a moving average, and a greedy soup of its own checkpoints.

A greedy soup (Wortsman et al., Model soups, arXiv 2203.05482) starts with the best epoch and tries the
snapshots in turn, the latest first: each stays in the average unless it makes the average worse on
validation. Snapshots are taken in the last half of the steps, where weights are close enough to each other to
be averaged. An average is kept only if it beats the best epoch by more than the noise of the comparison.

Running statistics of batch norm are averaged like weights: within one training they are as close.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import torch

from tlray.inference.significance import Evaluation, is_significantly_better
from tlray.tasks.base import Goal

Weights = dict[str, torch.Tensor]
NO_AVERAGE = "no average"  # the kind of an outcome where no average was as good as the best epoch
MOST_BYTES = 512 * 2**20  # of all snapshots of a training


@dataclass
class Outcome:
    """The outcome of averaging: ``kind`` as in "soup of 3", the goal before and after, and the better of the
    two: its weights, and how they were judged."""

    kind: str
    before: float
    after: float
    kept: bool
    weights: Weights
    evaluation: Evaluation

    def line(self, goal: Goal) -> str:
        """The outcome in words."""
        verdict = "kept" if self.kept else "not kept: no more than noise"
        return f"{self.kind}: {goal.name} {self.before:.4f} -> {self.after:.4f}, {verdict}"


class Snapshots:
    """What one training can average: a moving average of its weights, and snapshots of its last half.

    ``names``: the tensors that training changes. The moving average is on the model's device, the snapshots
    are on the CPU.
    """

    def __init__(self, module: torch.nn.Module, num_steps: int, count: int, decay: float | None) -> None:
        self.names = changing(module)
        self.decay = decay
        self.moving: Weights | None = None
        state = module.state_dict()
        size = sum(state[name].nbytes for name in self.names)
        count = min(count, MOST_BYTES // max(1, size))
        # At equal distances in the last half of the steps, with one at the very end.
        marks = [round(num_steps * (1 - k / count / 2)) for k in range(count)]
        self.marks = set(marks) if count > 1 else set()
        self.taken: dict[int, Weights] = {}  # by step

    def __bool__(self) -> bool:
        """Whether there is anything to average."""
        return bool(self.taken) or self.moving is not None

    def after(self, module: torch.nn.Module, step: int) -> None:
        """Take what is due after ``step`` steps of the optimiser; to be called after each."""
        if self.decay is None and step not in self.marks:
            return
        state = module.state_dict()
        if self.decay is not None:
            if self.moving is None:
                self.moving = {name: state[name].detach().clone() for name in self.names}
            # In the first steps the average follows fast, so that it forgets the untrained head.
            decay = min(self.decay, step / (10 + step))
            for name, kept in self.moving.items():
                if kept.is_floating_point():
                    kept.lerp_(state[name], 1 - decay)
                else:
                    kept.copy_(state[name])
        if step in self.marks:
            self.taken[step] = {name: state[name].detach().cpu().clone() for name in self.names}

    def tensors(self) -> Weights:
        """The averages' tensors under flat names, for a checkpoint."""
        flat = {f"{step}/{name}": t for step, one in self.taken.items() for name, t in one.items()}
        flat |= {f"moving/{name}": t for name, t in (self.moving or {}).items()}
        return {name: t.contiguous() for name, t in flat.items()}

    def load(self, tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
        """The inverse of `tensors`."""
        for flat_name, tensor in tensors.items():
            key, _, name = flat_name.partition("/")
            if key == "moving":
                self.moving = {**(self.moving or {}), name: tensor.to(device)}
            else:
                self.taken.setdefault(int(key), {})[name] = tensor

    def proposals(self, best: Weights, best_step: int, goal: Goal) -> Generator[Weights, Evaluation, Outcome]:
        """Yields weights, the best epoch's first, and is sent how they are judged; returns the outcome.

        ``best_step``: the steps done when ``best`` was taken. All workers must propose the same, although
        their statistics of batch norm differ: proposals depend on steps and metrics, never on weights.
        """
        best_evaluation = yield best
        chosen, evaluation, kind = best, best_evaluation, NO_AVERAGE
        if self.moving is not None:
            moving_evaluation = yield dict(self.moving)
            if not goal.beats(evaluation.values, moving_evaluation.values):
                chosen, evaluation, kind = dict(self.moving), moving_evaluation, "moving average"
        others = [self.taken[step] for step in sorted(self.taken, reverse=True) if step != best_step]
        chosen, evaluation, taken = yield from greedy(chosen, evaluation, others, goal)
        if taken:
            kind = f"soup of {len(taken) + 1}"
        return outcome(kind, (best, best_evaluation), (chosen, evaluation), goal)


def outcome(
    kind: str, before: tuple[Weights, Evaluation], after: tuple[Weights, Evaluation], goal: Goal
) -> Outcome:
    """``after`` where it is better than ``before`` by more than noise."""
    old, new = (evaluation.values[goal.name] for _, evaluation in (before, after))
    kept = after[1] is not before[1] and is_significantly_better(after[1], before[1], goal)
    kind = NO_AVERAGE if after[1] is before[1] else kind
    return Outcome(kind, old, new, kept, *(after if kept else before))


def greedy(
    best: Weights, evaluation: Evaluation, others: Sequence[Weights], goal: Goal
) -> Generator[Weights, Evaluation, tuple[Weights, Evaluation, list[int]]]:
    """A greedy soup: yields an average with the next of the others in it, which stays in unless it is worse.

    ``evaluation``: of ``best``. Returns the average, its evaluation, and the numbers of the others in it.
    """
    chosen, taken = best, list[int]()
    total = {name: value.detach().double().cpu() for name, value in best.items()}
    for number, weights in enumerate(others):
        added = {name: value + weights[name] for name, value in total.items()}
        mean = {name: (value / (len(taken) + 2)).to(best[name].dtype) for name, value in added.items()}
        mean_evaluation = yield mean
        if not goal.beats(evaluation.values, mean_evaluation.values):
            total, chosen, evaluation = added, mean, mean_evaluation
            taken.append(number)
    return chosen, evaluation, taken


def changing(module: torch.nn.Module) -> list[str]:
    """Names of the tensors of a module that training changes: all but frozen parameters."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return [name for name in module.state_dict() if name not in frozen]
