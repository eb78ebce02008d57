"""Trials that train side by side: one process, the same batches, one frozen prefix.

`Group` trains them; `together` and `spread` say which trials make a group. members.py has how Ray Tune asks a
group for epochs, placement.py how groups are given to processes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from tlray import storage
from tlray.config import Config, parse
from tlray.config.tree import flatten
from tlray.errors import RunError, TlrayError
from tlray.observer import Emit
from tlray.search.cost import CostPlan, measure
from tlray.search.features import PrefixBatches
from tlray.search.space import lineage
from tlray.search.trial import free_memory, one_line
from tlray.training.loop import Loop
from tlray.training.run import Record
from tlray.training.rundir import CONFIG
from tlray.training.worker import LocalWorker, Worker


class Group:
    """Trains one group of trials after another in this process."""

    def __init__(self, threads: int, emit: Emit) -> None:
        self._worker, self._emit = LocalWorker(threads), emit
        self._loop: Any = None
        self._epochs: Any = None

    def begin(self, trees: Sequence[str]) -> dict[str, Any]:
        """Begin or resume these trials; ``trees``: their configurations as JSON.

        Returns, by name, why trials ``failed``, and the ``plan`` as in trials.json.
        """
        self._loop = self._epochs = None  # free the models of the group before
        free_memory()
        self._configs = {config.name: config for config in map(_config, trees)}
        began = time.perf_counter()
        self._loop, plan = _planned(list(self._configs.values()), self._worker, self._emit_for_trial)
        self._epochs = self._loop.epochs()
        for run in self._loop.runs:
            with run.isolated():
                tree = run.config.model_dump(mode="json")
                storage.write_json(storage.join(run.uri, CONFIG), tree)
        self._plan, self._began = plan.to_dict(), began
        return {"failed": self._failed(), "plan": self._plan}

    def epoch(self) -> dict[str, Any]:
        """Train an epoch; returns ``records`` by name, why trials ``failed``, and which are ``over``."""
        records: dict[str, Record] = next(self._epochs, {})
        over = [run.name for run in self._loop.runs if run.over]
        return {"records": records, "failed": self._failed(), "over": over}

    def end(self, names: Sequence[str], keep: Collection[str]) -> dict[str, str]:
        """End these trials; those in ``keep`` write their bundles. Returns, by name, why trials failed."""
        for run in self._loop.runs:
            if run.name not in names:
                continue
            with run.isolated():
                if run.name in keep:
                    run.publish_best()
                run.write_story()
            run.ended, run.best = True, None
        return self._failed()

    def save(self, name: str) -> None:
        """Write a checkpoint of a trial. Call it between two epochs."""
        for run in self._loop.runs:
            if run.name == name:
                with run.isolated():
                    run.save_checkpoint({})

    def leave(self, name: str) -> None:
        """Stop training a trial."""
        for run in self._loop.runs:
            if run.name == name:
                run.ended = True

    def over(self) -> dict[str, Any]:
        """End the group; returns its plan, with the measured times beside the predicted ones."""
        self._epochs.close()
        measured, plan = self.measured(), {**self._plan, "took_s": time.perf_counter() - self._began}
        nothing = {"seconds": 0.0, "pictures": 0}
        for depth in plan["depths"]:
            at_depth = measured.get(str(depth["depth"]), nothing)
            depth |= {"measured_s": at_depth["seconds"], "measured_pictures": at_depth["pictures"]}
        return plan

    def measured(self) -> dict[str, Any]:
        """By depth: seconds spent on training steps, and pictures trained on."""
        by_depth: dict[int, dict[str, float]] = {}
        for run in self._loop.runs:
            boundary = run.boundary
            totals = by_depth.setdefault(boundary.depth if boundary else 0, {"seconds": 0.0, "pictures": 0})
            totals["seconds"] += run.spent["train"]
            epochs = (run.now.step - run.first_step) / run.steps_per_epoch
            totals["pictures"] += epochs * self._loop.order.num_rows
        return {str(depth): totals for depth, totals in by_depth.items()}

    def _failed(self) -> dict[str, str]:
        errors = {**self._loop.refused, **{r.name: r.error for r in self._loop.runs if r.error}}
        return {name: one_line(error, self._configs[name]) for name, error in errors.items()}

    def _emit_for_trial(self, event: dict[str, Any]) -> None:
        """Pass on a trial's steps, as ``trial_step`` events, and its notes."""
        if event["kind"] == "step":
            id_ = storage.name(event["run"])
            self._emit({**event, "kind": "trial_step", "id": id_})
        elif event["kind"] == "note":
            self._emit(event)


def plan(trials: Sequence[dict[str, Any]], worker: Worker) -> CostPlan:
    """What these trials would cost side by side. Raises TlrayError."""
    configs = [_config(trial["tree"]) for trial in trials]
    try:
        return _planned(configs, worker, lambda event: None)[1]
    except TlrayError:
        raise
    except Exception as error:
        raise RunError(one_line(error, configs[0])) from error


def _planned(configs: Sequence[Config], worker: Worker, emit: Emit) -> tuple[Loop, CostPlan]:
    """A loop over these trials, and the plan by which it makes batches."""
    plans: list[CostPlan] = []

    def make_batches(loop: Loop) -> PrefixBatches:
        batches = PrefixBatches(loop)
        plans.append(measure(loop, len(batches.views), batches.ready))
        batches.keep = plans[0].keep
        return batches

    return Loop(configs, worker, emit, make_batches, sparing=True), plans[0]


def _config(tree: str) -> Config:
    return parse(json.loads(tree), "trial")


def together(settings: Iterable[dict[str, Any]], most: int) -> Iterator[list[dict[str, Any]]]:
    """Groups of trials that can train side by side, at most ``most`` each, in the order of ``settings``."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for trial in settings:
        groups.setdefault(lineage(flatten(json.loads(trial["tree"]))), []).append(trial)
    for group in groups.values():
        for start in range(0, len(group), most):
            yield group[start : start + most]


def spread(groups: list[list[dict[str, Any]]], workers: int) -> list[list[dict[str, Any]]]:
    """Split groups until each worker has one. Trials of one freeze depth stay together."""
    while len(groups) < workers:
        largest = max(groups, key=len, default=[])
        depths = sorted({_freeze(trial) for trial in largest})
        if len(depths) < 2:
            return groups
        half = set(depths[: len(depths) // 2])
        first = [trial for trial in largest if _freeze(trial) in half]
        second = [trial for trial in largest if trial not in first]
        at = groups.index(largest)
        groups[at : at + 1] = [first, second]
    return groups


def _freeze(trial: dict[str, Any]) -> str:
    """``model.freeze`` of a trial."""
    return str(json.loads(trial["tree"])["model"]["freeze"])
