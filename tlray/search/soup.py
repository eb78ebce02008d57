"""Averages at the end of a search: of the weights of its best trials, and of its probe and its winner.

Trials that began with the same weights end close to each other, and their average is often better than each
of them: a greedy soup (Wortsman et al., Model soups, arXiv 2203.05482) starts with the best one and adds each
of the others unless validation gets worse. WiSE-FT (arXiv 2109.01903) looks for a weighted mean of the winner
and the linear probe, whose backbone is the pretrained one, that is better than both. An average is kept only
where it is better on validation by more than the noise of the comparison.

Running statistics of batch norm belong to the weights that they were computed with. For an average they are
therefore computed again, from augmented pictures as in training.
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

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)  # of the winner in the mean with the probe
PICTURES = 1024  # of the training split, for the statistics of batch norm

Row = dict[str, Any]
T = TypeVar("T")


def measure(config: Config, id_: str, trials: Sequence[Row], head: str | None, threads: int) -> Row:
    """Average the bundles of these trials, the best one first: a row of `TrialLog.averages`.

    ``head``: file of the probe's head, where there is a probe of the best trial's backbone.
    Writes the average into RUN/trials/ID, where it is kept. Raises BundleError, DataError.
    """
    began = time.perf_counter()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    manifests = {row["id"]: bundle.read_manifest(row["bundle"]) for row in trials}
    first = manifests[trials[0]["id"]]
    alike = [row for row in trials if _start(manifests[row["id"]]) == _start(first)]
    weights_by_id = {
        row["id"]: weights.read(storage.join(row["bundle"], bundle.WEIGHTS), row["id"]) for row in alike
    }
    ids, (best, *others) = list(weights_by_id), weights_by_id.values()
    judge = _Judge(parse(first.config, f"trial {ids[0]}"), list(weights_by_id.values()))
    goal = judge.model.task.goal

    before = judge(best)
    chosen, evaluation, taken = _driven(greedy(best, before, others, goal), judge.average)
    ids_averaged = [ids[0], *(ids[1 + number] for number in taken)]
    kind = f"soup of trials {', '.join(ids_averaged)}"
    outcomes = [outcome(kind, (best, before), (chosen, evaluation), goal)]
    if not outcomes[0].kept:
        ids_averaged = ids_averaged[:1]
    if head is not None:
        winner, judged = outcomes[0].weights, outcomes[0].evaluation
        probe = {**judge.initial, **weights.read(head, "probe")}
        chosen, evaluation, share = _between(winner, judged, probe, judge, goal)
        kind = f"{share:.2g} of the winner, {1 - share:.2g} of the probe" if share < 1 else NO_AVERAGE
        outcomes.append(outcome(kind, (winner, judged), (chosen, evaluation), goal))

    last, seconds = outcomes[-1], time.perf_counter() - began
    row = {
        "id": id_, "params": trials[0]["params"], "of": ids_averaged,
        "status": "finished", "epochs": 0, "curve": [],
        "best": None, "tie": None, "seconds": seconds, "bundle": None,
        "told": [result.line(goal) for result in outcomes if result.kind != NO_AVERAGE],
    }  # fmt: skip
    if not any(result.kept for result in outcomes):
        return row
    module = judge.model.module
    module.load_state_dict(last.weights, strict=False)
    depth = min(manifests[trial].freeze_depth for trial in ids_averaged)
    task = judge.model.task.with_thresholds(last.evaluation.whole)
    model = replace(judge.model, task=task, freeze_depth=depth)
    own = judge.config.override({"name": id_, "runs": f"{config.run_uri}/trials"}, "average")
    story = storage.read_json(storage.join(trial_folder(config.run_uri, ids[0]), METRICS))["epochs"]
    metrics = last.evaluation.values
    row["bundle"] = leave(model, own, metrics, ("average", seconds), story)
    return {**row, "best": metrics[goal.name], "tie": metrics.get(TIE)}


def _start(manifest: Manifest) -> Any:
    """What must be equal in two trials for an average of their weights to make sense."""
    config, model = manifest.config, manifest.config["model"]
    begins = {key: model[key] for key in ("backbone", "weights", "head")}
    return begins, config["input"], config["task"], config["seed"], manifest.labels


def _driven(generator: Generator[Weights, Evaluation, T], judge: Any) -> T:
    """Run a generator of weights, which is sent the evaluation of each; its return value."""
    try:
        proposal = next(generator)
        while True:
            proposal = generator.send(judge(proposal))
    except StopIteration as end:
        result: T = end.value
        return result


def _between(
    winner: Weights, judged: Evaluation, probe: Weights, judge: _Judge, goal: Goal
) -> tuple[Weights, Evaluation, float]:
    """The best mean of winner and probe, its evaluation, and the winner's share; 1: the winner itself."""
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
    """Evaluates weights on the validation split, with one model and pictures that are rendered once."""

    def __init__(self, config: Config, trained: Sequence[Weights]) -> None:
        """``trained``: weights of all trials; they show which batch norms were trained."""
        self.config, data = config, Dataset.open(config.data.uri)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = initial_model(config, data)
        split, task = config.data.train_split, self.model.task
        own = bundle.weights(self.model.module)  # copied: on a CPU they are the model's own
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
        """Some pictures, augmented as in training, in batches of the training's size."""
        rng = np.random.default_rng(self.config.seed)
        rows = np.sort(rng.permutation(num_rows)[:PICTURES])
        size = max(1, len(rows) // self.config.train.batch_size)
        batches = [rows[i::size] for i in range(size)]
        for batch in loader.pipeline(source, [(0, rows) for rows in batches]):
            if batch.num_rows > 1:
                yield batch.x_BCHW

    @torch.inference_mode()
    def __call__(self, weights: Weights) -> Evaluation:
        """Evaluate weights."""
        self._module.load_state_dict(weights, strict=False)
        task = self.model.task
        parts = SplitEvaluation(partial(task.metrics, self.model.labels), by=tasks.identity(task))
        for batch in self._held:
            predictions = self.model.predict_rendered(batch.x_BCHW, batch.geometries, self.device)
            parts.update(predictions, [self._rows[int(i)] for i in batch.rows])
        return parts.evaluation()

    @torch.inference_mode()
    def average(self, weights: Weights) -> Evaluation:
        """Evaluate an average with its own statistics of batch norm, which are put into ``weights``."""
        if self._norms:
            self._module.load_state_dict(weights, strict=False)
            momentums = [norm.momentum for norm in self._norms]
            for norm in self._norms:
                norm.reset_running_stats()
                norm.momentum = None  # the mean over all batches
                norm.train()
            for x_BCHW in self._shown:
                self._module(x_BCHW.to(self.device))
            for norm, momentum in zip(self._norms, momentums, strict=True):
                norm.momentum = momentum
                norm.eval()
            state = self._module.state_dict()
            weights.update({name: state[name].cpu().clone() for name in weights if "running_" in name})
        return self(weights)


def _differ(initial: Weights, trained: Weights, name: str) -> bool:
    """Whether training has changed the statistics of a batch norm."""
    key = f"{name}.running_mean"
    return key in initial and not torch.equal(initial[key], trained[key])
