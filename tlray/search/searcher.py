"""Which trial comes next: unfinished ones first, then what Optuna or the grid proposes, none of it twice."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tlray.config import Config
from tlray.observer import Emit
from tlray.search import extend
from tlray.search.probe import start
from tlray.search.probe_first import ProbeFirst
from tlray.search.space import Params, Space, trial_id
from tlray.search.trial_log import OVER, RULED_OUT, TrialLog

MANY = 10**9  # trials of a space without end
TRIES = 30  # proposals that were there already, before a trial is taken from the rest of the space
SCORE = "score"  # the metric under which Tune, its scheduler and the sampler know the goal


class TrialSearcher(Searcher):
    """A Ray Tune searcher around Ray's OptunaSearch, with a memory: the table of trials.

    Tune's own would propose a combination again (TPE does so often among few choices) and knows
    nothing of trials from before a restart. ``trial`` makes what a Trainable gets from settings.
    """

    def __init__(
        self,
        config: Config,
        space: Space,
        table: TrialLog,
        tell: Emit = lambda event: None,
    ) -> None:
        """``tell`` gets a ``note`` and ``search_more`` where the space grows, see extend.py."""
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
        self.inner = _optuna(config, space, table) if self.fresh and config.search.sampler != "grid" else None
        self.rule_out = table.rule_out
        self._held: tuple[str, Params] | None = None  # waits for those that freeze more
        self._keys = itertools.count()
        self._given_back = 0
        self._steps: list[list[tuple[str, Params]]] = []  # of the wave under way, with Tune's ids
        self._wave: dict[str, str] = {}  # ids of trials given out by `wave` -> their keys
        self._third = -(-(len(self.queue) + self.fresh) // 3)
        self.asked: dict[str, str] = {}  # Tune's id of a trial -> the inner sampler's
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
        """Settings of the next trial, or the mark that there is none."""
        while (params := self._held_or_next(trial_id)) is not None:
            if self.deepening is not None and self.deepening.waits(params, self.running.values()):
                self._held = (trial_id, params)
                return None
            self.running[trial_id] = params
            if (settings := self._settings(trial_id, params)) is not None:
                return settings
        return Searcher.FINISHED

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

    def _held_or_next(self, tune_id: str) -> Params | None:
        if self._held is None:
            return self._next(tune_id)
        (before, params), self._held = self._held, None
        if before in self.asked:
            self.asked[tune_id] = self.asked.pop(before)
        return params

    def _settings(self, tune_id: str, params: Params) -> dict[str, Any] | None:
        """What a Trainable gets; None where the trial is ruled out."""
        head = start(self.config, self.table.probes, params)
        if self.deepening is None:
            return trial_settings(self.config, params, head)
        reason = self.deepening.ruled_out(params)
        if reason is None:
            return trial_settings(self.config, params, self.deepening.head(params) or head)
        self.rule_out(trial_id(params), params, reason)
        self.on_trial_complete(tune_id, error=True)
        if self.inner is not None and self._given_back < TRIES:
            self._given_back += 1
            self.fresh += 1
        return None

    def wave(self) -> list[dict[str, Any]]:
        """Settings of trials that may begin now; none: there are no more. For who does without Tune.

        TPE learns from what has ended, so it proposes a third of its trials at a time.
        """
        for id_, key in list(self._wave.items()):
            if self.table.rows[id_]["status"] in (*OVER, "failed"):
                best = self.table.rows[id_]["best"]
                self.on_trial_complete(key, {SCORE: best}, error=best is None)
                del self._wave[id_]
        while self._steps or self.num_left or self.extend():
            self._steps = self._steps or self.steps()
            found = []
            for key, params in self._steps.pop(0):
                if (one := self._settings(key, params)) is not None:
                    self._wave[one["id"]] = key
                    found.append(one)
            if found:
                return found
        return []

    def steps(self) -> list[list[tuple[str, Params]]]:
        """New trials in steps of which each waits for the one before; without `ProbeFirst` there is one."""
        size = self.num_left if self.inner is None else min(self.num_left, self._third)
        drawn = []
        for number in range(size):
            key = f"wave-{len(self.given)}-{number}"
            if (params := self._next(key)) is not None:
                self.running[key] = params
                drawn.append((key, params))
        if self.deepening is None or not drawn:
            return [drawn]
        return self.deepening.steps(drawn, lambda one: one[1])

    def _next(self, tune_id: str) -> Params | None:
        if self.queue:
            return self.queue.pop(0)
        if not self.fresh:
            return None
        self.fresh -= 1
        for _ in range(TRIES):
            if self.inner is None:
                break
            key = f"{tune_id}-{next(self._keys)}"
            params = self.space.decode(self.inner.suggest(key))
            if trial_id(params) not in self.given:
                self.given.add(trial_id(params))
                self.asked[tune_id] = key
                return params
            self.inner.on_trial_complete(key, error=True)  # had it: tells the sampler nothing new
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
        failed = error or result is None or "failed" in result
        if params is None or self.inner is None:
            return
        key = self.asked.pop(trial_id, None)
        if key is not None:
            self.inner.on_trial_complete(key, None if failed else result, error=failed)
        elif not failed and result is not None:
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
