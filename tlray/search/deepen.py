"""Going deeper from what is known: the most frozen trials first, their heads as a start for the others.

A linear probe is cheap, and fine-tuning that starts with its head instead of a random one distorts the
pretrained features less (Kumar et al., arXiv 2202.10054). So the trials of each lineage (those that differ
only in what can train side by side) come depth by depth, each depth starting with the best head so far, and
what is known by then can rule out those to come, which are then never run:

    a depth came to less than the one before it    those that train still more of the backbone
    its score is below that of the best so far     where the search's own results support scores (scores.py):
                                                   a rank correlation of ``SUPPORT`` over ``CELLS``
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from tlray import storage
from tlray.backbone import Backbone
from tlray.config import Config
from tlray.loop import HEAD
from tlray.search import scores
from tlray.search.space import Params, lineage
from tlray.search.trials import Row, Table

SUPPORT, CELLS = 0.8, 4  # of the rank correlation, and depths (of all backbones) that it is taken over

One = TypeVar("One")


class Deepening:
    """What a search's table says of trials to come."""

    def __init__(self, config: Config, table: Table) -> None:
        self._config, self._table = config, table
        self._backbones: dict[str, Backbone] = {}

    def depth(self, params: Params) -> int:
        """Frozen stages of a trial."""
        model = self._config.override(params).model
        if model.backbone not in self._backbones:
            self._backbones[model.backbone] = Backbone(model.backbone)
        return self._backbones[model.backbone].resolve(model.freeze)

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

    def head(self, params: Params) -> str | None:
        """The head to start with: that of the best trial of the lineage that freezes more."""
        best = self._table.best_of(self._before(params).values())
        return storage.join(self._table.folder(best["id"]), HEAD) if best else None

    def ruled_out(self, params: Params) -> str | None:
        """Why a trial need not be run; None: it may be worth it."""
        before, goal = self._before(params), self._table.goal
        if len(before) > 1:
            (depth, last), (other, row) = sorted(before.items())[:2]
            if goal.better(row["best"], last["best"]):
                came, before_that = f"{last['best']:.4g}", f"{row['best']:.4g}"
                return f"freeze depth {depth} came to {goal.name} {came}, {other} to {before_that}"
        return self._by_score(params) if self._config.search.scores else None

    def _by_score(self, params: Params) -> str | None:
        told = scores.beside(self._config, self._table, self.depth)
        known = [one for one in told if one["best"] is not None]
        support = scores.correlation(known, self._table.goal.direction)[scores.JUDGE]
        key = (self._config.override(params).model.backbone, self.depth(params))
        mine = next((one for one in told if (one["backbone"], one["depth"]) == key), None)
        if len(known) < CELLS or support is None or support < SUPPORT or mine is None or mine in known:
            return None
        best = self._table.best_of(known)
        if best is None or mine[scores.JUDGE] >= best[scores.JUDGE]:
            return None
        return (
            f"{scores.JUDGE} score {mine[scores.JUDGE]:.4g}, of the best so far {best[scores.JUDGE]:.4g}, "
            f"in a rank correlation with results of {support:.2f} over {len(known)}"
        )

    def _before(self, params: Params) -> dict[int, Row]:
        """The best trial that is over of each depth of the lineage that freezes more."""
        here, by_depth = self.depth(params), dict[int, list[Row]]()
        for row in self._table.rows.values():
            if self._table.over(row["id"]) and lineage(row["params"]) == lineage(params):
                by_depth.setdefault(self.depth(row["params"]), []).append(row)
        best = {depth: self._table.best_of(rows) for depth, rows in by_depth.items() if depth > here}
        return {depth: row for depth, row in best.items() if row is not None}
