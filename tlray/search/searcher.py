"""Which trial comes next: unfinished ones first, then what Optuna or the grid proposes, none of it twice."""

from __future__ import annotations

import itertools
import random
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tlray.config import Config
from tlray.config.tree import flatten
from tlray.errors import ConfigError
from tlray.observer import Emit
from tlray.search import extend
from tlray.search.probe import start
from tlray.search.probe_first import ProbeFirst
from tlray.search.space import Params, Space, accepted, trial_id
from tlray.search.space import trial_id as id_of
from tlray.search.trial_log import RULED_OUT, TrialLog

MANY = 10**9  # trials of a space without end
TRIES = 30  # proposals that were there already, before a trial is taken from the rest of the space
Proposal = tuple[str, Params]  # a key of its own, and the settings
SCORE = "score"  # the metric under which Tune, its scheduler and the sampler know the goal


class TrialSearcher(Searcher):
    """A Ray Tune searcher that asks another one, OptunaSearch by default, and remembers all trials.

    The other one would propose a combination again (TPE does so often among few choices) and knows nothing
    of trials from before a restart.
    """

    def __init__(
        self,
        config: Config,
        space: Space,
        table: TrialLog,
        tell: Emit = lambda event: None,
        inner: Searcher | None = None,
    ) -> None:
        """``tell`` gets a ``note`` and ``search_more`` where the space grows, see extend.py.

        ``inner``: a searcher of the user's, in place of ``search.sampler``.
        """
        super().__init__(metric=SCORE, mode=table.goal.direction)
        self.config, self.space, self.table, self.tell = config, space, table, tell
        self.queue: list[Params] = [row["params"] for row in table.waiting()]
        self.given = {row["id"] for row in table.rows.values()}
        self.deepening = ProbeFirst(config, table) if config.search.deepen else None
        inside = [row for row in table.rows.values() if space.encode(row["params"]) is not None]
        if config.search.sampler == "grid":
            self.fresh = max(0, (space.size or 0) - len(inside))
        else:  # what was ruled out has cost nothing
            num_out = sum(row["status"] == RULED_OUT for row in inside)
            most = min(config.search.num_trials, (space.size or MANY) - num_out)
            self.fresh = max(0, most - (len(inside) - num_out))
        self.inner: Any = inner
        if inner is not None:
            inner.set_search_properties(SCORE, table.goal.direction, _tune_space(space))
        elif self.fresh and config.search.sampler != "grid":
            self.inner = _optuna(config, space, table)
        self._decode = space.decode if inner is None else partial(_checked, config, space)
        default = default_trial(config, space)
        if self.inner is not None and self.fresh and default and trial_id(default) not in self.given:
            # A sampler may never come to it, and a search must not end below what `tlray train` gives.
            self.queue.append(default)
            self.given.add(trial_id(default))
            self.fresh -= 1
        self.rule_out = table.rule_out
        self._side_by_side = side_by_side(config)
        self._third = -(-self.num_left // 3)
        self._steps: list[list[Proposal]] = []  # of the wave under way: each waits for the one before
        self._ready: list[Proposal] = []  # of the step under way
        self._keys = itertools.count()
        self._given_back = 0
        self._asked: dict[str, str] = {}  # a proposal's key, then Tune's id -> the inner one's id
        self.running: dict[str, Params] = {}
        self._rng = random.Random(config.seed)

    # A Tuner pickles itself when it is made, for Tuner.restore, which is not how a search goes on here.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: Any) -> TrialSearcher:
        return self

    @property
    def num_left(self) -> int:
        """Trials still to be proposed."""
        return len(self.queue) + self.fresh

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        """Metric and mode are those of the task already."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """Settings of the next trial; None: not before others have ended; or the mark that there is none.

        Trials that train side by side come in waves, so that they begin together. TPE learns from what has
        ended, so it proposes a third of its trials at a time.
        """
        while self._ready or self._next_step():
            key, params = self._ready[0]
            if self.deepening is not None and self.deepening.waits(params, self.running.values()):
                return None
            self._ready.pop(0)
            if (settings := self._settings(key, params)) is not None:
                self.running[trial_id] = params
                if key in self._asked:
                    self._asked[trial_id] = self._asked.pop(key)
                return settings
        return None if self.running else Searcher.FINISHED

    def _next_step(self) -> bool:
        """Begin the next step, or the next wave; False: there is none now."""
        if self.running and self._side_by_side:
            return False
        while not self._ready:
            if not self._steps:
                if not (self.num_left or self.extend()):
                    return False
                self._steps = self.steps()
            self._ready = self._steps.pop(0)
            if not (self._ready or self._steps or self.num_left):
                return False
        return True

    def extend(self) -> bool:
        """Once all trials are over: whether there are more, beyond an axis that the winner ends."""
        best = self.table.best_of(row for id_, row in self.table.rows.items() if self.table.over(id_))
        going_on = any(row["status"] == "running" for row in self.table.rows.values())
        if not self.config.search.extend or best is None or going_on or self.num_left:
            return False
        found, notes = extend.trials(self.config, self.space, self.table.extended, best["params"])
        self.queue += [params for params in found if trial_id(params) not in self.given]
        self.given |= {trial_id(params) for params in self.queue}
        for note in notes:
            if note not in self.table.notes:
                self.table.notes.append(note)
                self.tell({"kind": "note", "run": self.config.run_uri, "text": note})
        if self.queue:
            self.tell({"kind": "search_more", "run": self.config.run_uri, "trials": len(self.queue)})
        return bool(self.queue)

    def _settings(self, key: str, params: Params) -> dict[str, Any] | None:
        """What a Trainable gets; None where the trial is ruled out."""
        head = start(self.config, self.table.probes, params)
        if self.deepening is None:
            return trial_settings(self.config, params, head)
        reason = self.deepening.ruled_out(params)
        if reason is None:
            return trial_settings(self.config, params, self.deepening.head(params) or head)
        self.rule_out(trial_id(params), params, reason)
        if key in self._asked:
            self.inner.on_trial_complete(self._asked.pop(key), error=True)
        if self.inner is not None and self._given_back < TRIES:
            self._given_back += 1
            self.fresh += 1
        return None

    def steps(self) -> list[list[Proposal]]:
        """New trials in steps of which each waits for the one before; without `ProbeFirst` there is one."""
        size = self.num_left if self.inner is None else min(self.num_left, self._third)
        drawn: list[Proposal] = []
        for _ in range(size if self._side_by_side else 1):
            key = f"proposal-{next(self._keys)}"
            if (params := self._next(key)) is not None:
                drawn.append((key, params))
        if self.deepening is None or not drawn:
            return [drawn]
        return self.deepening.steps(drawn, lambda one: one[1])

    def _next(self, key: str) -> Params | None:
        """A trial that nobody has been given yet; None: there is none."""
        if self.queue:
            return self.queue.pop(0)
        if not self.fresh:
            return None
        self.fresh -= 1
        for number in range(TRIES if self.inner is not None else 0):
            asked = f"{key}-{number}"
            raw = self.inner.suggest(asked)
            if raw is None or raw == Searcher.FINISHED:  # a user's searcher waits for results, or has no more
                self.fresh = 0 if raw is not None else self.fresh + 1
                return None
            params = self._decode(raw)
            if trial_id(params) not in self.given:
                self.given.add(trial_id(params))
                self._asked[key] = asked
                return params
            self.inner.on_trial_complete(asked, error=True)  # had it: tells the sampler nothing new
        rest = [p for p in self.space.product() if trial_id(p) not in self.given] if self.space.size else []
        if not rest:
            return None
        if self.inner is None and self.deepening is not None:
            rest.sort(key=self.deepening.depth, reverse=True)
        params = rest[0] if self.inner is None else self._rng.choice(rest)
        self.given.add(trial_id(params))
        return params

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Only what a trial came to counts."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the sampler what a trial came to: its best epoch, early-stopped ones too."""
        params = self.running.pop(trial_id, None)
        if params is None or self.inner is None:
            return
        row = self.table.rows.get(id_of(params), {})
        if result is None and row.get("best") is not None:  # a scheduler has stopped it while it was paused
            result = {SCORE: row["best"]}
        failed = error or result is None or "failed" in result
        asked = self._asked.pop(trial_id, None)
        if asked is not None:
            self.inner.on_trial_complete(asked, None if failed else result, error=failed)
        elif not failed and result is not None and isinstance(self.inner, OptunaSearch):
            point = self.space.encode(params)
            if point is not None:  # not of one beyond the space, which the sampler does not know
                self.inner.add_evaluated_point(point, result[SCORE])

    def save(self, checkpoint_path: str) -> None:
        """Tune wants a file; ours is trials.json."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never asked for."""


def trial_settings(config: Config, params: Params, head: str | None = None) -> dict[str, Any]:
    """What a Trainable gets: the trial's id and its whole configuration, its run folder RUN/trials/ID."""
    id_ = trial_id(params)
    start = {"model.head": head} if head else {}
    own = {"name": id_, "runs": f"{config.run_uri}/trials"}
    trial = config.override({**start, **params, **own}, f"trial {id_}")
    return {"id": id_, "params": params, "tree": trial.model_dump_json()}


def _optuna(config: Config, space: Space, table: TrialLog) -> Any:
    """Ray's OptunaSearch, seeded, told of every trial that is over."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    inner: Any = OptunaSearch(
        space=space.distributions(),
        metric=SCORE,
        mode=table.goal.direction,
        sampler=kinds[config.search.sampler](seed=config.seed),
    )
    for row in table.rows.values():
        point = space.encode(row["params"])
        if point is not None and table.over(row["id"]) and row["best"] is not None:
            inner.add_evaluated_point(point, row["best"])
    return inner


def side_by_side(config: Config) -> bool:
    """Whether trials train side by side; those of several workers are Ray Train's."""
    return config.search.fuse and config.scale.num_workers == 1


def default_trial(config: Config, space: Space) -> Params | None:
    """The trial that trains as the configuration without a search would, where the space has it.

    It is proposed first and never stopped early: a search must not end below what `tlray train` gives, and
    early epochs say little of it. Deep and quick trainings begin behind and end ahead.
    """
    settings = flatten(config.model_dump(mode="json"))
    params = {axis.key: settings.get(axis.key) for axis in space.axes}
    return params if space.encode(params) is not None else None


def _tune_space(space: Space) -> dict[str, Any]:
    """The space in Ray Tune's terms, for a user's searcher that has none of its own."""
    domains: dict[str, Any] = {}
    for axis in space.axes:
        if axis.values is not None:
            domains[axis.key] = tune.choice(list(axis.values))
        elif axis.whole:
            whole = tune.lograndint if axis.log else tune.randint
            domains[axis.key] = whole(int(axis.low), int(axis.high) + 1)
        else:
            domains[axis.key] = (tune.loguniform if axis.log else tune.uniform)(axis.low, axis.high)
    return domains


def _checked(config: Config, space: Space, proposed: Params) -> Params:
    """What a user's searcher proposes. Raises ConfigError for a value that the configuration refuses."""
    keys = {axis.key for axis in space.axes}
    if proposed.keys() != keys:
        raise ConfigError(
            f"searcher: proposes {', '.join(sorted(proposed)) or 'nothing'}; accepted: values for the keys "
            f"of search.space, {', '.join(sorted(keys))}"
        )
    return {key: accepted(config, key, proposed[key]) for key in sorted(keys)}
