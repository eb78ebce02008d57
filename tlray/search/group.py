"""Trials side by side: one process, one stream of batches, one frozen prefix.

`Group` is what runs on a worker, as a Ray actor that takes one group after another. `search` drives
groups from the driver: it hands every epoch of every trial to the table and to the rungs, and ends those
that fall behind.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import ray

from tlray import storage
from tlray.config import Config, parse
from tlray.errors import RunError, TlrayError
from tlray.observer import Emit
from tlray.search.cost import CostPlan, measure
from tlray.search.features import PrefixBatches
from tlray.search.halving import SuccessiveHalving
from tlray.search.searcher import TrialSearcher
from tlray.search.space import lineage
from tlray.search.trial import free_memory, one_line
from tlray.search.trial_log import TrialLog
from tlray.training.loop import Loop
from tlray.training.resume import flat
from tlray.training.run import Record
from tlray.training.rundir import CONFIG
from tlray.training.worker import LocalWorker, Worker

log = logging.getLogger(__name__)



class Group:
    """A process that trains groups of trials."""

    def __init__(self, threads: int, emit: Emit) -> None:
        self._worker, self._emit = LocalWorker(threads), emit
        self._loop: Any = None
        self._epochs: Any = None

    def begin(self, trees: Sequence[str]) -> dict[str, Any]:
        """Build these trials or go on with them: ``stories`` so far by name, ``failed``, and the ``plan``."""
        self._loop = self._epochs = None  # of the group before: its models go before others come
        free_memory()
        self._configs = {one.name: one for one in map(_config, trees)}
        self._loop, plan = _planned(list(self._configs.values()), self._worker, self._tell)
        self._epochs = self._loop.epochs()
        for run in self._loop.runs:
            with self._loop.alone(run):
                tree = run.config.model_dump(mode="json")
                storage.write_json(storage.join(run.uri, CONFIG), tree)
        stories = {run.name: run.now.history for run in self._loop.runs}
        return {"stories": stories, "failed": self._failed(), "plan": plan.to_dict()}

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
            with self._loop.alone(run):
                if run.name in keep:
                    run.publish_best()
                run.write_story()
            run.ended, run.best = True, None
        return self._failed()

    def measured(self) -> dict[str, Any]:
        """The group is over: where its time went, by depth: seconds of steps, and pictures trained on."""
        self._epochs.close()
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
        found = PrefixBatches(made)
        plans.append(measure(made, len(found.views), found.ready))
        found.keep = plans[0].keep
        return found

    return Loop(configs, worker, tell, feed, sparing=True), plans[0]


def _config(tree: str) -> Config:
    return parse(json.loads(tree), "trial")


def together(settings: Iterable[dict[str, Any]], most: int) -> Iterator[list[dict[str, Any]]]:
    """Trials that can train side by side, ``most`` at once, in the order in which they came."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in settings:
        groups.setdefault(lineage(flat(json.loads(one["tree"]))), []).append(one)
    for group in groups.values():
        for start in range(0, len(group), most):
            yield group[start : start + most]


class TrialReporter:
    """What happens to trials: into the table, and on to whoever shows progress."""

    def __init__(self, table: TrialLog, tell: Emit, epochs: int) -> None:
        self.table, self.tell, self.epochs = table, tell, epochs

    def start(self, id_: str, params: dict[str, Any]) -> None:
        """A trial runs."""
        self.table.start(id_, params)
        self._emit("trial_start", id_, params=params, epochs=self.epochs)

    def epoch(self, id_: str, record: Record, again: bool) -> None:
        """An epoch of a trial; ``again``: from before an interruption."""
        if self.table.epoch(id_, record):
            facts = {"goal_name": self.table.goal.name, "again": again}
            self._emit("trial_epoch", id_, **{**record, **facts})

    def rule_out(self, id_: str, params: dict[str, Any], reason: str) -> None:
        """A trial is not worth running."""
        self.table.rule_out(id_, params, reason)
        self._tell_end(self.table.rows[id_])

    def over(self, id_: str, status: str, reason: str | None = None, bundle: bool = True) -> None:
        """A trial is over; ``bundle``: whether it has left one."""
        self._tell_end(self.table.end(id_, status, reason, bundle))

    def _tell_end(self, row: dict[str, Any]) -> None:
        facts = {k: row[k] for k in ("status", "epochs", "best", "seconds", "params")}
        best = self.table.best
        self._emit(
            "trial_end", row["id"], **facts, **({"reason": row["reason"]} if "reason" in row else {}),
            goal_name=self.table.goal.name, winner=best["id"] if best else None,
        )  # fmt: skip

    def _emit(self, kind: str, id_: str, **facts: Any) -> None:
        self.tell({"kind": kind, "run": self.table.run_uri, "id": id_, **facts})


class GroupProcess:
    """A worker process and the group that it trains now."""

    def __init__(self, options: dict[str, Any], threads: int, emit: Emit) -> None:
        made: Any = ray.remote(Group)
        self._made = partial(made.options(**options).remote, threads, emit)
        self.actor: Any = self._made()
        self.trials: dict[str, dict[str, Any]] = {}
        self.plan: dict[str, Any] = {}
        self.failures = 0
        self.up = False  # whether the process has answered

    def begin(self, trials: Sequence[dict[str, Any]]) -> Any:
        """Start a group; a reference to what `Group.begin` gives."""
        self.trials, self.began = {one["id"]: one for one in trials}, time.perf_counter()
        return self.actor.begin.remote([one["tree"] for one in trials])

    def again(self) -> Any:
        """Start what is left of the group in a new process."""
        self.failures, self.up = self.failures + 1, False
        ray.kill(self.actor)
        self.actor = self._made()
        return self.begin(list(self.trials.values()))


def search(
    config: Config,
    sampler: TrialSearcher,
    table: TrialLog,
    watch: TrialReporter,
    from_workers: Emit,
    room: Any,
    rungs: SuccessiveHalving,
) -> list[dict[str, Any]]:
    """Train whatever the sampler proposes, in groups; what was planned and measured. Raises RunError."""
    options = {"num_cpus": room.cpus, "num_gpus": room.gpus, "max_restarts": 0}
    plans: list[dict[str, Any]] = []
    teams: list[GroupProcess] = []
    waiting: list[list[dict[str, Any]]] = []
    under_way: dict[Any, GroupProcess] = {}
    try:
        while True:
            if not waiting and not under_way:
                waiting = list(together(sampler.wave(), config.search.side_by_side))
                waiting = _spread(waiting, room.concurrent)
                if not waiting:
                    break
            busy = set(map(id, under_way.values()))
            while waiting and len(under_way) < room.concurrent:
                team = next((t for t in teams if id(t) not in busy), None)
                if team is None:
                    team = GroupProcess(options, room.cpus, from_workers)
                    teams.append(team)
                busy.add(id(team))
                group = waiting.pop(0)
                for one in group:
                    watch.start(one["id"], one["params"])
                under_way[team.begin(group)] = team
            if not all(team.up for team in under_way.values()):  # one may wait for what idle ones hold
                for idle in [team for team in teams if team not in under_way.values()]:
                    teams.remove(idle)
                    ray.kill(idle.actor)
            ready = ray.wait(list(under_way), num_returns=1)[0][0]
            team = under_way.pop(ready)
            try:
                found = ray.get(ready)
                team.up = True
                _take(found, team, table, watch, rungs)
            except ray.exceptions.RayTaskError as error:
                for id_, trial in team.trials.items():
                    reason = one_line(error.cause or error, _config(trial["tree"]))
                    watch.over(id_, "failed", reason, bundle=False)
                teams.remove(team)
                ray.kill(team.actor)
                continue
            except ray.exceptions.RayError as error:
                # The process is gone: killed, for want of memory perhaps, or with its node.
                if team.failures >= config.scale.max_failures:
                    raise RunError(
                        f"{config.run_uri}: the process of {len(team.trials)} trials died more than "
                        f"scale.max_failures = {config.scale.max_failures} times; with less memory at once: "
                        f"search.side_by_side = {max(1, len(team.trials) // 2)}"
                    ) from error
                under_way[team.again()] = team
                continue
            if team.trials:
                under_way[team.actor.epoch.remote()] = team
            else:
                plans.append(_beside(team))
    finally:
        for team in teams:
            ray.kill(team.actor)
    return plans


def _take(
    found: dict[str, Any], team: GroupProcess, table: TrialLog, watch: TrialReporter, rungs: SuccessiveHalving
) -> None:
    """What a group's process has said."""
    if "plan" in found:
        team.plan = found["plan"]
        with table.one_write():
            for id_, story in found["stories"].items():
                for record in story:
                    watch.epoch(id_, record, again=True)
                    rungs.tell(record["epoch"], {id_: record["best"]})
        found = {"records": {}, "over": [], **found}
    _judge(found, team, table, watch, rungs)


def _judge(
    found: dict[str, Any], team: GroupProcess, table: TrialLog, watch: TrialReporter, rungs: SuccessiveHalving
) -> None:
    """Take an epoch of a group; end the trials that are over or fall behind."""
    by_epoch: dict[int, dict[str, float | None]] = {}
    with table.one_write():
        for id_, record in found["records"].items():
            watch.epoch(id_, record, again=False)
            by_epoch.setdefault(record["epoch"], {})[id_] = record["best"]
    for id_, reason in found["failed"].items():
        if team.trials.pop(id_, None):
            watch.over(id_, "failed", reason, bundle=False)
    stopped = {id_ for epoch, best in by_epoch.items() for id_ in rungs.tell(epoch, best)}
    ended = [id_ for id_ in team.trials if id_ in stopped or id_ in found["over"]]
    if not ended:
        return
    keep = [row["id"] for row in table.with_bundles(ended) if row["id"] in ended]
    failed = ray.get(team.actor.end.remote(ended, keep))
    for id_ in ended:
        del team.trials[id_]
        status = "finished" if id_ in found["over"] else "stopped"
        watch.over(id_, "failed" if id_ in failed else status, failed.get(id_), bundle=id_ in keep)


def _beside(team: GroupProcess) -> dict[str, Any]:
    """A group's plan with what was measured beside what was predicted."""
    try:
        measured: dict[str, Any] = ray.get(team.actor.measured.remote())
    except ray.exceptions.RayActorError:  # lost with its node; the trials are over all the same
        measured = {}
    plan = {**team.plan, "took_s": time.perf_counter() - team.began}
    for depth in plan["depths"]:
        found = measured.get(str(depth["depth"]), {"seconds": 0.0, "pictures": 0})
        depth |= {"measured_s": found["seconds"], "measured_pictures": found["pictures"]}
    return plan


def _spread(groups: list[list[dict[str, Any]]], workers: int) -> list[list[dict[str, Any]]]:
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
