"""Trials side by side: one process, one stream of batches, one frozen prefix.

`Group` trains them; `together` and `spread` say which trials make a group. How Ray Tune asks a group for
epochs is in members.py, and how groups come to processes in placement.py.
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
    """A process that trains groups of trials."""

    def __init__(self, threads: int, emit: Emit) -> None:
        self._worker, self._emit = LocalWorker(threads), emit
        self._loop: Any = None
        self._epochs: Any = None

    def begin(self, trees: Sequence[str]) -> dict[str, Any]:
        """Build these trials or go on with them: reasons of those that ``failed``, and the ``plan``."""
        self._loop = self._epochs = None  # of the group before: its models go before others come
        free_memory()
        self._configs = {one.name: one for one in map(_config, trees)}
        began = time.perf_counter()
        self._loop, plan = _planned(list(self._configs.values()), self._worker, self._tell)
        self._epochs = self._loop.epochs()
        for run in self._loop.runs:
            with run.isolated():
                tree = run.config.model_dump(mode="json")
                storage.write_json(storage.join(run.uri, CONFIG), tree)
        self._plan, self._began = plan.to_dict(), began
        return {"failed": self._failed(), "plan": self._plan}

    def epoch(self) -> dict[str, Any]:
        """Train for an epoch: ``records`` by name, reasons of those that ``failed``, and who is ``over``."""
        records: dict[str, Record] = next(self._epochs, {})
        over = [run.name for run in self._loop.runs if run.over]
        return {"records": records, "failed": self._failed(), "over": over}

    def end(self, names: Sequence[str], keep: Collection[str]) -> dict[str, str]:
        """End these trials, some of which leave their bundle; the reasons of those that failed in that."""
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
        """Write a checkpoint of a trial, between two epochs."""
        for run in self._loop.runs:
            if run.name == name:
                with run.isolated():
                    run.save({})

    def leave(self, name: str) -> None:
        """Train a trial no further."""
        for run in self._loop.runs:
            if run.name == name:
                run.ended = True

    def over(self) -> dict[str, Any]:
        """The group is over: its plan, with what was measured beside what was predicted."""
        self._epochs.close()
        measured, plan = self.measured(), {**self._plan, "took_s": time.perf_counter() - self._began}
        nothing = {"seconds": 0.0, "pictures": 0}
        for depth in plan["depths"]:
            spent = measured.get(str(depth["depth"]), nothing)
            depth |= {"measured_s": spent["seconds"], "measured_pictures": spent["pictures"]}
        return plan

    def measured(self) -> dict[str, Any]:
        """Where the time of the group went, by depth: seconds of steps, and pictures trained on."""
        spent: dict[int, dict[str, float]] = {}
        for run in self._loop.runs:
            boundary = run.boundary
            row = spent.setdefault(boundary.depth if boundary else 0, {"seconds": 0.0, "pictures": 0})
            row["seconds"] += run.spent["train"]
            epochs = (run.now.step - run.first_step) / run.steps_per_epoch
            row["pictures"] += epochs * self._loop.order.num_rows
        return {str(depth): row for depth, row in spent.items()}

    def _failed(self) -> dict[str, str]:
        errors = {**self._loop.refused, **{r.name: r.error for r in self._loop.runs if r.error}}
        return {name: one_line(error, self._configs[name]) for name, error in errors.items()}

    def _tell(self, event: dict[str, Any]) -> None:
        if event["kind"] == "step":
            id_ = storage.name(event["run"])
            self._emit({**event, "kind": "trial_step", "id": id_})
        elif event["kind"] == "note":
            self._emit(event)


def plan(trials: Sequence[dict[str, Any]], worker: Worker) -> CostPlan:
    """What these trials would cost side by side. Raises TlrayError."""
    configs = [_config(one["tree"]) for one in trials]
    try:
        return _planned(configs, worker, lambda event: None)[1]
    except TlrayError:
        raise
    except Exception as error:
        raise RunError(one_line(error, configs[0])) from error


def _planned(configs: Sequence[Config], worker: Worker, tell: Emit) -> tuple[Loop, CostPlan]:
    """A loop over these trials whose batches are made as its plan says, and the plan."""
    plans: list[CostPlan] = []

    def feed(made: Loop) -> PrefixBatches:
        batches = PrefixBatches(made)
        plans.append(measure(made, len(batches.views), batches.ready))
        batches.keep = plans[0].keep
        return batches

    return Loop(configs, worker, tell, feed, sparing=True), plans[0]


def _config(tree: str) -> Config:
    return parse(json.loads(tree), "trial")


def together(settings: Iterable[dict[str, Any]], most: int) -> Iterator[list[dict[str, Any]]]:
    """Trials that can train side by side, ``most`` at once, in the order in which they came."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in settings:
        groups.setdefault(lineage(flatten(json.loads(one["tree"]))), []).append(one)
    for group in groups.values():
        for start in range(0, len(group), most):
            yield group[start : start + most]


def spread(groups: list[list[dict[str, Any]]], workers: int) -> list[list[dict[str, Any]]]:
    """The same trials for as many workers as there are: depths of their own where a group is shared out."""
    while len(groups) < workers:
        largest = max(groups, key=len, default=[])
        depths = sorted({str(json.loads(one["tree"])["model"]["freeze"]) for one in largest})
        if len(depths) < 2:
            return groups
        half = set(depths[: len(depths) // 2])
        first = [one for one in largest if str(json.loads(one["tree"])["model"]["freeze"]) in half]
        second = [one for one in largest if one not in first]
        at = groups.index(largest)
        groups[at : at + 1] = [first, second]
    return groups
