"""What a search ends with: averages of weights across its trials, and between its probe and its winner.

Trials that began with the same weights end close to each other, and their average is often better than each
of them: a greedy soup (Wortsman et al., Model soups, arXiv 2203.05482) starts with the best one and takes in
the others as long as validation does not suffer. Between the linear probe, which leaves the backbone as it
is, and the winner WiSE-FT (arXiv 2109.01903) looks for a mean that is better than both. Each is kept only
where validation is better by more than the noise of the comparison.

Running statistics of batch norm fit the weights that they were taken with. Those of an average are therefore
estimated anew, from pictures as training shows them.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from tlray import storage, tasks
from tlray.bundle import bundle
from tlray.bundle.bundle import Manifest
from tlray.config import Config, parse
from tlray.data import loader
from tlray.data.dataset import Dataset
from tlray.inference.significance import Evaluation, SplitEvaluation
from tlray.models import weights
from tlray.search.extra_bundle import leave
from tlray.tasks.base import TIE, Goal
from tlray.training.average import NO_AVERAGE, Weights, greedy, outcome
from tlray.training.build import initial_model
from tlray.training.rundir import METRICS, trial_folder

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)  # of the winner, between it and the probe
PICTURES = 1024  # of the training split, by which statistics of batch norm are estimated

Row = dict[str, Any]
T = TypeVar("T")


def measure(config: Config, id_: str, trials: Sequence[Row], head: str | None, threads: int) -> Row:
    """Average the bundles of these trials, the best one first: a row of `TrialLog.averages`.

    ``head``: a file with the probe's head, where there is a probe of the first one's backbone.
    Leaves the average, where it is kept, in RUN/trials/ID. Raises BundleError, DataError.
    """
    began = time.perf_counter()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    manifests = {row["id"]: bundle.read_manifest(row["bundle"]) for row in trials}
    first = manifests[trials[0]["id"]]
    alike = [row for row in trials if _start(manifests[row["id"]]) == _start(first)]
    held = {row["id"]: weights.read(storage.join(row["bundle"], bundle.WEIGHTS), row["id"]) for row in alike}
    ids, (best, *others) = list(held), held.values()
    judge = _Judge(parse(first.config, f"trial {ids[0]}"), list(held.values()))
    goal = judge.model.task.goal

    before = judge(best)
    chosen, found, taken = _driven(greedy(best, before, others, goal), judge.average)
    of = [ids[0], *(ids[1 + number] for number in taken)]
    outcomes = [outcome(f"soup of trials {', '.join(of)}", (best, before), (chosen, found), goal)]
    if not outcomes[0].kept:
        of = of[:1]
    if head is not None:
        winner, judged = outcomes[0].weights, outcomes[0].evaluation
        probe = {**judge.initial, **weights.read(head, "probe")}
        chosen, found, share = _between(winner, judged, probe, judge, goal)
        kind = f"{share:.2g} of the winner, {1 - share:.2g} of the probe" if share < 1 else NO_AVERAGE
        outcomes.append(outcome(kind, (winner, judged), (chosen, found), goal))

    last, seconds = outcomes[-1], time.perf_counter() - began
    row = {
        "id": id_, "params": trials[0]["params"], "of": of, "status": "finished", "epochs": 0, "curve": [],
        "best": None, "tie": None, "seconds": seconds, "bundle": None,
        "told": [one.line(goal) for one in outcomes if one.kind != NO_AVERAGE],
    }  # fmt: skip
    if not any(one.kept for one in outcomes):
        return row
    module = judge.model.module
    module.load_state_dict(last.weights, strict=False)
    depth = min(manifests[one].freeze_depth for one in of)
    task = judge.model.task.with_thresholds(last.evaluation.whole)
    model = replace(judge.model, task=task, freeze_depth=depth)
    own = judge.config.override({"name": id_, "runs": f"{config.run_uri}/trials"}, "average")
    story = storage.read_json(storage.join(trial_folder(config.run_uri, ids[0]), METRICS))["epochs"]
    metrics = last.evaluation.values
    row["bundle"] = leave(model, own, metrics, ("average", seconds), story)
    return {**row, "best": metrics[goal.name], "tie": metrics.get(TIE)}


def _start(manifest: Manifest) -> Any:
    """What two trials must have alike for an average of their weights to make sense."""
    config, model = manifest.config, manifest.config["model"]
    begins = {key: model[key] for key in ("backbone", "weights", "head")}
    return begins, config["input"], config["task"], config["seed"], manifest.labels


def _driven(asking: Generator[Weights, Evaluation, T], judge: Any) -> T:
    """What a generator comes to that asks for the judgement of one average after the other."""
    try:
        asked = next(asking)
        while True:
            asked = asking.send(judge(asked))
    except StopIteration as end:
        result: T = end.value
        return result


def _between(
    winner: Weights, judged: Evaluation, probe: Weights, judge: _Judge, goal: Goal
) -> tuple[Weights, Evaluation, float]:
    """The best mean of a winner and a probe, how good it is, and the winner's share; 1: the winner itself."""
    best = winner, judged, 1.0
    for share in SHARES:
        mean = {name: _mixed(probe[name], value, share) for name, value in winner.items()}
        value = judge.average(mean)
        if goal.beats(value.values, best[1].values):
            best = mean, value, share
    return best


def _mixed(a: Tensor, b: Tensor, share: float) -> Tensor:
    return torch.lerp(a.double(), b.double(), share).to(b.dtype)


class _Judge:
    """Weights in, metrics of the validation split out: one model, and pictures that are rendered once."""

    def __init__(self, config: Config, trained: Sequence[Weights]) -> None:
        """``trained``: weights of all trials, which tell the batch norms that have learned."""
        self.config, data = config, Dataset.open(config.data.uri)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = initial_model(config, data)
        split, task = config.data.train_split, self.model.task
        own = bundle.weights(self.model.module)  # on a CPU it would change with the model
        self.initial = {name: value.clone() for name, value in own.items()}
        self._module = self.model.module.to(self.device).eval()
        self._norms = [
            norm
            for name, norm in self._module.named_modules()
            if isinstance(norm, _BatchNorm) and any(_differ(self.initial, one, name) for one in trained)
        ]
        source = loader.Source(
            config.data.uri, split, task, tuple(self.model.labels), self.model.preprocess,
            config.augment, config.seed, config.data.cache_mb,
        )  # fmt: skip
        self._shown = list(self._training(source, data.num_rows(split))) if self._norms else []
        validation = config.data.validation_split
        plain = loader.plain(source, validation)
        self._held = loader.CachedBatches(plain, 0, 1, config.train.batch_size)
        self._rows = data.read(validation, list(task.columns)).to_pylist()

    def _training(self, source: loader.Source, num_rows: int) -> Iterator[Tensor]:
        """Some pictures as training shows them, in batches of its size."""
        rng = np.random.default_rng(self.config.seed)
        rows = np.sort(rng.permutation(num_rows)[:PICTURES])
        size = max(1, len(rows) // self.config.train.batch_size)
        batches = [rows[i::size] for i in range(size)]
        for batch in loader.pipeline(source, [(0, rows) for rows in batches]):
            if batch.num_rows > 1:
                yield batch.x_BCHW

    @torch.inference_mode()
    def __call__(self, weights: Weights) -> Evaluation:
        """How good weights are."""
        self._module.load_state_dict(weights, strict=False)
        task = self.model.task
        parts = SplitEvaluation(partial(task.metrics, self.model.labels), by=tasks.identity(task))
        for batch in self._held:
            told = self.model.predict_rendered(batch.x_BCHW, batch.geometries, self.device)
            parts.update(told, [self._rows[int(i)] for i in batch.rows])
        return parts.evaluation()

    @torch.inference_mode()
    def average(self, weights: Weights) -> Evaluation:
        """How good an average is with statistics of its own, which are written into it."""
        if self._norms:
            self._module.load_state_dict(weights, strict=False)
            usual = [norm.momentum for norm in self._norms]
            for norm in self._norms:
                norm.reset_running_stats()
                norm.momentum = None  # the mean over all batches
                norm.train()
            for x_BCHW in self._shown:
                self._module(x_BCHW.to(self.device))
            for norm, momentum in zip(self._norms, usual, strict=True):
                norm.momentum = momentum
                norm.eval()
            state = self._module.state_dict()
            weights.update({name: state[name].cpu().clone() for name in weights if "running_" in name})
        return self(weights)


def _differ(initial: Weights, trained: Weights, name: str) -> bool:
    key = f"{name}.running_mean"
    return key in initial and not torch.equal(initial[key], trained[key])
