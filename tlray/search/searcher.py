"""Which trial comes next: unfinished ones first, then what Optuna or the grid proposes, never one twice."""

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

MANY = 10**9  # the number of trials in an infinite space
TRIES = 30  # after so many repeated proposals in a row a trial is drawn from the rest of the space
Proposal = tuple[str, Params]  # a unique key, and the settings
SCORE = "score"  # the name that Tune, its scheduler and the sampler have for the goal


class TrialSearcher(Searcher):
    """A Ray Tune searcher that asks another one, by default OptunaSearch, and remembers all trials.

    The other searcher would propose some settings again (TPE often does where there are few choices), and it
    does not know the trials from before a restart.
    """

    def __init__(
        self,
        config: Config,
        space: Space,
        trial_log: TrialLog,
        emit: Emit = lambda event: None,
        inner: Searcher | None = None,
    ) -> None:
        """``emit`` gets ``note`` and ``search_more`` events where the space is extended, see extend.py.

        ``inner``: the user's own searcher, in place of ``search.sampler``.
        """
        super().__init__(metric=SCORE, mode=trial_log.goal.direction)
        self.config, self.space, self.trial_log, self.emit = config, space, trial_log, emit
        self.queue: list[Params] = [row["params"] for row in trial_log.waiting()]
        self.proposed = {row["id"] for row in trial_log.rows.values()}
        self.probe_first = ProbeFirst(config, trial_log) if config.search.deepen else None
        inside = [row for row in trial_log.rows.values() if space.encode(row["params"]) is not None]
        if config.search.sampler == "grid":
            self.num_new = max(0, (space.size or 0) - len(inside))
        else:  # trials that were ruled out do not count as tried: they have cost nothing
            num_ruled_out = sum(row["status"] == RULED_OUT for row in inside)
            num_trials = min(config.search.num_trials, (space.size or MANY) - num_ruled_out)
            self.num_new = max(0, num_trials - (len(inside) - num_ruled_out))
        self.inner: Any = inner
        if inner is not None:
            inner.set_search_properties(SCORE, trial_log.goal.direction, _tune_space(space))
        elif self.num_new and config.search.sampler != "grid":
            self.inner = _optuna(config, space, trial_log)
        self._own_sampler = inner is None
        self._decode = space.decode if inner is None else partial(_checked, config, space)
        default = default_trial(config, space)
        if self.inner is not None and self.num_new and default and trial_id(default) not in self.proposed:
            # A sampler may never propose it, but a search must not end with less than `tlray train` gives.
            self.queue.append(default)
            self.proposed.add(trial_id(default))
            self.num_new -= 1
        self.rule_out = trial_log.rule_out
        self._side_by_side = side_by_side(config)
        self._wave_size = max(1, -(-self.num_left // 3))
        self._steps: list[list[Proposal]] = []  # of the present wave: each step waits for the one before
        self._ready: list[Proposal] = []  # of the present step, not started yet
        self._inner_waits = False  # whether the user's searcher has no proposal before others have ended
        self._stopped = False
        self._keys = itertools.count()
        self._num_replaced = 0  # trials that were ruled out and have others in their place
        # The inner searcher's ids, by the proposal's key, and by Tune's id once the trial has started.
        self._inner_ids: dict[str, str] = {}
        self.running: dict[str, Params] = {}
        self._rng = random.Random(config.seed)

    # A Tuner pickles its searcher for Tuner.restore, which is not how a search is continued here.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: Any) -> TrialSearcher:
        return self

    @property
    def num_left(self) -> int:
        """Trials still to be proposed."""
        return len(self.queue) + self.num_new

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        """Does nothing: metric and mode are those of the task."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """Settings of the next trial; None: wait for others to end; ``Searcher.FINISHED``: there are no more.

        Trials that train side by side come in waves, so that they begin together. TPE learns from trials that
        have ended, so it proposes a third of its trials at a time.
        """
        while self._ready or self._next_step():
            key, params = self._ready[0]
            if self.probe_first is not None and self.probe_first.waits(params, self.running.values()):
                return None
            self._ready.pop(0)
            if (settings := self._settings(key, params)) is not None:
                self.running[trial_id] = params
                if key in self._inner_ids:
                    self._inner_ids[trial_id] = self._inner_ids.pop(key)
                return settings
        waits = self.running or (self.num_left and not self._stopped)
        return None if waits else Searcher.FINISHED

    def _next_step(self) -> bool:
        """Begin the next step, of the next wave if need be; False: there is none now."""
        if (self.running and self._side_by_side) or self._stopped:
            return False
        while not self._ready:
            if not self._steps:
                if not (self.num_left or self.extend()):
                    return False
                self._steps = self.steps()
                if self._inner_waits and not any(self._steps):
                    return False
            self._ready = self._steps.pop(0)
        return True

    def stop(self) -> None:
        """Propose no more trials."""
        self._stopped = True
        self._ready, self._steps = [], []

    def extend(self) -> bool:
        """Once all trials are over, queue trials beyond the ends of axes; False: there are none."""
        rows = self.trial_log.rows
        best = self.trial_log.best_of(row for id_, row in rows.items() if self.trial_log.over(id_))
        any_running = any(row["status"] == "running" for row in rows.values())
        if not self.config.search.extend or best is None or any_running or self.num_left:
            return False
        values_beyond, notes = extend.trials(self.config, self.space, self.trial_log.extended, best["params"])
        self.queue += [params for params in values_beyond if trial_id(params) not in self.proposed]
        self.proposed |= {trial_id(params) for params in self.queue}
        for note in notes:
            if note not in self.trial_log.notes:
                self.trial_log.notes.append(note)
                self.emit({"kind": "note", "run": self.config.run_uri, "text": note})
        if self.queue:
            self.emit({"kind": "search_more", "run": self.config.run_uri, "trials": len(self.queue)})
        return bool(self.queue)

    def _settings(self, key: str, params: Params) -> dict[str, Any] | None:
        """The config that Tune passes to a trial; None where the trial is ruled out."""
        head = start(self.config, self.trial_log.probes, params)
        if self.probe_first is None:
            return trial_settings(self.config, params, head)
        reason = self.probe_first.ruled_out(params)
        if reason is None:
            return trial_settings(self.config, params, self.probe_first.head(params) or head)
        self.rule_out(trial_id(params), params, reason)
        if key in self._inner_ids:
            self.inner.on_trial_complete(self._inner_ids.pop(key), error=True)
        if self.inner is not None and self._num_replaced < TRIES:
            self._num_replaced += 1
            self.num_new += 1
        return None

    def steps(self) -> list[list[Proposal]]:
        """The next wave of trials, in steps each of which waits for the one before.

        Without `ProbeFirst` there is one step.
        """
        size = self.num_left if self.inner is None else min(self.num_left, self._wave_size)
        proposals: list[Proposal] = []
        self._inner_waits = False
        for _ in range(size if self._side_by_side else 1):
            key = f"proposal-{next(self._keys)}"
            if (params := self._propose(key)) is not None:
                proposals.append((key, params))
        if self.probe_first is None or not proposals:
            return [proposals]
        return self.probe_first.steps(proposals, lambda proposal: proposal[1])

    def _propose(self, key: str) -> Params | None:
        """A trial that has not been proposed before; None: there is none."""
        if self.queue:
            return self.queue.pop(0)
        if not self.num_new:
            return None
        self.num_new -= 1
        for number in range(TRIES if self.inner is not None else 0):
            inner_id = f"{key}-{number}"
            raw = self.inner.suggest(inner_id)
            if raw is None:
                self._inner_waits = True
                self.num_new += 1
                return None
            if raw == Searcher.FINISHED:
                self.num_new = 0
                return None
            params = self._decode(raw)
            if trial_id(params) not in self.proposed:
                self.proposed.add(trial_id(params))
                self._inner_ids[key] = inner_id
                return params
            # Proposed before: as a failure it teaches the sampler nothing.
            self.inner.on_trial_complete(inner_id, error=True)
        if not self.space.size:
            return None
        rest = [params for params in self.space.product() if trial_id(params) not in self.proposed]
        if not rest:
            return None
        if self.inner is None and self.probe_first is not None:
            rest.sort(key=self.probe_first.depth, reverse=True)
        params = rest[0] if self.inner is None else self._rng.choice(rest)
        self.proposed.add(trial_id(params))
        return params

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Does nothing: the sampler learns from finished trials only."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the sampler the best value of a trial, also of one that was stopped early."""
        params = self.running.pop(trial_id, None)
        if params is None or self.inner is None:
            return
        row = self.trial_log.rows.get(id_of(params), {})
        if result is None and row.get("best") is not None:  # the scheduler stopped it while it was paused
            result = {SCORE: row["best"]}
        failed = error or result is None or "failed" in result
        inner_id = self._inner_ids.pop(trial_id, None)
        if inner_id is not None:
            self.inner.on_trial_complete(inner_id, None if failed else result, error=failed)
        elif not failed and result is not None and self._own_sampler:
            point = self.space.encode(params)
            if point is not None:  # the sampler does not know values beyond the ends of axes
                self.inner.add_evaluated_point(point, result[SCORE])

    def save(self, checkpoint_path: str) -> None:
        """Write the empty file that Tune expects: the searcher's state is in trials.json."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never called."""


def trial_settings(config: Config, params: Params, head: str | None = None) -> dict[str, Any]:
    """The config that Tune passes to a trial: id, parameters, and the whole configuration as JSON.

    The trial's run folder is RUN/trials/ID. ``head``: file of the head that the trial begins with.
    """
    id_ = trial_id(params)
    start = {"model.head": head} if head else {}
    own = {"name": id_, "runs": f"{config.run_uri}/trials"}
    trial = config.override({**start, **params, **own}, f"trial {id_}")
    return {"id": id_, "params": params, "tree": trial.model_dump_json()}


def _optuna(config: Config, space: Space, trial_log: TrialLog) -> Any:
    """Ray's OptunaSearch with the configuration's seed; it is told every trial that is over."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    inner: Any = OptunaSearch(
        space=space.distributions(),
        metric=SCORE,
        mode=trial_log.goal.direction,
        sampler=kinds[config.search.sampler](seed=config.seed),
    )
    for row in trial_log.rows.values():
        point = space.encode(row["params"])
        if point is not None and trial_log.over(row["id"]) and row["best"] is not None:
            inner.add_evaluated_point(point, row["best"])
    return inner


def side_by_side(config: Config) -> bool:
    """Whether trials train side by side; trials of several workers do not, they are run by Ray Train."""
    return config.search.fuse and config.scale.num_workers == 1


def default_trial(config: Config, space: Space) -> Params | None:
    """The trial with the configuration's own values; None where the space does not have it.

    It is proposed first and never stopped early, so that a search does not end with less than `tlray train`
    gives. Its first epochs say little: trials that train many stages start behind and end ahead.
    """
    settings = flatten(config.model_dump(mode="json"))
    params = {axis.key: settings.get(axis.key) for axis in space.axes}
    return params if space.encode(params) is not None else None


def _tune_space(space: Space) -> dict[str, Any]:
    """The space in Ray Tune's terms, for a user's searcher that was made without one."""
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
    """The settings that a user's searcher proposes, checked.

    Raises ConfigError for other keys than the space's, and for a value that the configuration refuses.
    """
    keys = {axis.key for axis in space.axes}
    if proposed.keys() != keys:
        raise ConfigError(
            f"searcher: proposes {', '.join(sorted(proposed)) or 'nothing'}; accepted: values for the keys "
            f"of search.space: {', '.join(sorted(keys))}"
        )
    return {key: accepted(config, key, proposed[key]) for key in sorted(keys)}
