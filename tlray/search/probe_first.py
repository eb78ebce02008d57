"""Going deeper from what is known: the most frozen trials first, their heads as a start for the others.

A linear probe is cheap, and fine-tuning that starts with its head instead of a random one distorts the
pretrained features less (Kumar et al., arXiv 2202.10054). So the trials of each lineage (those that differ
only in what can train side by side) come depth by depth, each starting with the head of the best linear
probe, and what is known by then can rule out those to come, which are then never run:

    a depth came to less than the one before it    those that train still more of the backbone; both tried
                                                   as often, and after as many epochs
    its score is below that of the best so far     where the search's own results support scores (scores.py):
                                                   a rank correlation of ``SUPPORT`` over ``CELLS``
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from tlray import storage
from tlray.config import Config
from tlray.models.backbone import Backbone
from tlray.search import scores
from tlray.search.scores import JUDGE
from tlray.search.space import Params, lineage, trial_id
from tlray.search.trial_log import TrialLog, TrialRow
from tlray.training.rundir import HEAD

SUPPORT, CELLS = 0.8, 4  # of the rank correlation, and places (backbone and depth) that it is taken over

One = TypeVar("One")


class ProbeFirst:
    """What a search's table says of trials to come."""

    def __init__(self, config: Config, table: TrialLog) -> None:
        self._config, self._table = config, table
        self._backbones: dict[str, Backbone] = {}

    def place(self, params: Params) -> tuple[str, int]:
        """A trial's backbone, and how many of its stages are frozen."""
        model = self._config.model
        name = params.get("model.backbone", model.backbone)
        if name not in self._backbones:
            self._backbones[name] = Backbone(name)
        return name, self._backbones[name].resolve(params.get("model.freeze", model.freeze))

    def depth(self, params: Params) -> int:
        """Frozen stages of a trial."""
        return self.place(params)[1]

    def steps(self, trials: Iterable[One], params: Callable[[One], Params]) -> list[list[One]]:
        """The trials step by step: the most frozen of each lineage, then the next depth of each, ..."""
        lineages: dict[str, dict[int, list[One]]] = {}
        for one in trials:
            by_depth = lineages.setdefault(lineage(params(one)), {})
            by_depth.setdefault(self.depth(params(one)), []).append(one)
        steps: list[list[One]] = []
        for by_depth in lineages.values():
            for i, depth in enumerate(sorted(by_depth, reverse=True)):
                steps += [[]] * (i == len(steps))
                steps[i] = steps[i] + by_depth[depth]
        return steps

    def waits(self, params: Params, running: Iterable[Params]) -> bool:
        """Whether a trial of the lineage that freezes more still runs."""
        here, mine = self.depth(params), lineage(params)
        return any(lineage(other) == mine and self.depth(other) > here for other in running)

    def head(self, params: Params) -> str | None:
        """The head to start with: the best linear probe's; one over trained stages would miss these."""
        name, _ = self.place(params)
        probes = self._before(params).get(len(self._backbones[name].stages), [])
        best = self._table.best_of(probes)
        uri = storage.join(self._table.folder(best["id"]), HEAD) if best else None
        # A probe from before `search.deepen` was asked for has left none.
        return uri if uri is not None and storage.exists(uri) else None

    def ruled_out(self, params: Params) -> str | None:
        """Why a trial need not be run; None: it may be worth it."""
        row = self._table.rows.get(trial_id(params))
        if row is not None and row["curve"]:
            return None  # it has begun
        return self._by_depth(params) or (self._by_score(params) if self._config.search.scores else None)

    def _by_depth(self, params: Params) -> str | None:
        before, goal = self._before(params), self._table.goal
        if len(before) < 2:
            return None
        (depth, rows), (other, others) = sorted(before.items())[:2]
        last, one_before = self._table.best_of(rows), self._table.best_of(others)
        if last is None or one_before is None or len(rows) < len(others):
            return None
        epochs = min(last["epochs"], one_before["epochs"])
        came, came_before = (row["curve"][epochs - 1]["best"] for row in (last, one_before))
        if came is None or came_before is None or not goal.better(came_before, came):
            return None
        return (
            f"after {epochs} epochs freeze depth {depth} had come to {goal.name} {came:.4g}, "
            f"{other} to {came_before:.4g}"
        )

    def _by_score(self, params: Params) -> str | None:
        told = scores.beside(self._table, self.place)
        known = [one for one in told if one["best"] is not None]
        support = scores.correlation(known, self._table.goal.direction)[JUDGE]
        place = self.place(params)
        mine = next((one for one in told if (one["backbone"], one["depth"]) == place), None)
        if len(known) < CELLS or support is None or support < SUPPORT or mine is None or mine in known:
            return None
        best = self._table.best_of(known)
        if best is None or mine[JUDGE] >= best[JUDGE]:
            return None
        return (
            f"{JUDGE} score {mine[JUDGE]:.4g}, of the best so far {best[JUDGE]:.4g}, "
            f"in a rank correlation with results of {support:.2f} over {len(known)}"
        )

    def _before(self, params: Params) -> dict[int, list[TrialRow]]:
        """The lineage's trials that are over and freeze more, by depth; not those that were ruled out."""
        here, by_depth = self.depth(params), dict[int, list[TrialRow]]()
        for row in self._table.rows.values():
            if row["curve"] and self._table.over(row["id"]) and lineage(row["params"]) == lineage(params):
                depth = self.depth(row["params"])
                if depth > here:
                    by_depth.setdefault(depth, []).append(row)
        return by_depth
