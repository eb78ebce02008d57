"""The most frozen trials first: their heads are the start of the others, and their results rule others out.

A linear probe is cheap, and fine-tuning that starts with its head instead of a random one distorts the
pretrained features less (Kumar et al., arXiv 2202.10054). So the trials of each lineage (those that can train
side by side) are run depth by depth, the most frozen first, and each trial starts with the head of the best
linear probe. A trial is ruled out, and never run, for one of two reasons:

    depth    A depth was worse than the more frozen one before it, compared after as many epochs and with no
             fewer trials. Then trials that freeze still less are ruled out.
    score    The score of its backbone and depth is below that of the best trial so far. Only where scores
             (scores.py) agree with the search's own results: a rank correlation of ``SUPPORT`` or more over
             ``PLACES`` places or more.
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

SUPPORT = 0.8  # the least rank correlation
PLACES = 4  # the fewest places (backbone and freeze depth) that it is computed over

T = TypeVar("T")


class ProbeFirst:
    """The order of a search's trials, their heads, and which are ruled out, from the log of its trials."""

    def __init__(self, config: Config, trial_log: TrialLog) -> None:
        self._config, self._trial_log = config, trial_log
        self._backbones: dict[str, Backbone] = {}

    def place(self, params: Params) -> tuple[str, int]:
        """A trial's backbone, and how many of its stages are frozen."""
        model = self._config.model
        name = params.get("model.backbone", model.backbone)
        if name not in self._backbones:
            self._backbones[name] = Backbone(name)
        return name, self._backbones[name].resolve(params.get("model.freeze", model.freeze))

    def depth(self, params: Params) -> int:
        """The number of frozen stages of a trial."""
        return self.place(params)[1]

    def steps(self, trials: Iterable[T], params: Callable[[T], Params]) -> list[list[T]]:
        """The trials in steps: the most frozen ones of each lineage, then those of the next depth, ...

        ``params``: gives a trial's parameters.
        """
        lineages: dict[str, dict[int, list[T]]] = {}
        for trial in trials:
            by_depth = lineages.setdefault(lineage(params(trial)), {})
            by_depth.setdefault(self.depth(params(trial)), []).append(trial)
        steps: list[list[T]] = []
        for by_depth in lineages.values():
            for i, depth in enumerate(sorted(by_depth, reverse=True)):
                steps += [[]] * (i == len(steps))
                steps[i] = steps[i] + by_depth[depth]
        return steps

    def waits(self, params: Params, running: Iterable[Params]) -> bool:
        """Whether a trial of the same lineage that freezes more stages is still running."""
        depth, own_lineage = self.depth(params), lineage(params)
        return any(lineage(other) == own_lineage and self.depth(other) > depth for other in running)

    def head(self, params: Params) -> str | None:
        """File of the head to start with: that of the best linear probe; None: there is none.

        Heads of other trials do not fit: they were trained on stages that changed with them.
        """
        name, _ = self.place(params)
        probes = self._more_frozen(params).get(len(self._backbones[name].stages), [])
        best = self._trial_log.best_of(probes)
        uri = storage.join(self._trial_log.folder(best["id"]), HEAD) if best else None
        # Probes that were trained without `search.deepen` have not written their heads.
        return uri if uri is not None and storage.exists(uri) else None

    def ruled_out(self, params: Params) -> str | None:
        """Why a trial is not to be run; None: it is to be run."""
        row = self._trial_log.rows.get(trial_id(params))
        if row is not None and row["curve"]:
            return None  # it has begun already
        return self._by_depth(params) or (self._by_score(params) if self._config.search.scores else None)

    def _by_depth(self, params: Params) -> str | None:
        """Why the results of more frozen trials rule a trial out; None: they do not."""
        more_frozen, goal = self._more_frozen(params), self._trial_log.goal
        if len(more_frozen) < 2:
            return None
        (depth, rows), (earlier_depth, earlier_rows) = sorted(more_frozen.items())[:2]
        best, earlier_best = self._trial_log.best_of(rows), self._trial_log.best_of(earlier_rows)
        if best is None or earlier_best is None or len(rows) < len(earlier_rows):
            return None
        epochs = min(best["epochs"], earlier_best["epochs"])
        value, earlier_value = (row["curve"][epochs - 1]["best"] for row in (best, earlier_best))
        if value is None or earlier_value is None or not goal.better(earlier_value, value):
            return None
        return (
            f"after {epochs} epochs freeze depth {depth} had reached {goal.name} {value:.4g}, "
            f"freeze depth {earlier_depth} {earlier_value:.4g}"
        )

    def _by_score(self, params: Params) -> str | None:
        """Why the score of its backbone and depth rules a trial out; None: it does not."""
        by_place = scores.with_results(self._trial_log, self.place)
        tried = [score for score in by_place if score["best"] is not None]
        support = scores.correlation(tried, self._trial_log.goal.direction)[JUDGE]
        place = self.place(params)
        own = next((score for score in by_place if (score["backbone"], score["depth"]) == place), None)
        if len(tried) < PLACES or support is None or support < SUPPORT or own is None or own in tried:
            return None
        best = self._trial_log.best_of(tried)
        if best is None or own[JUDGE] >= best[JUDGE]:
            return None
        return (
            f"{JUDGE} score {own[JUDGE]:.4g}, that of the best so far {best[JUDGE]:.4g}; scores and results "
            f"have a rank correlation of {support:.2f} over {len(tried)} places"
        )

    def _more_frozen(self, params: Params) -> dict[int, list[TrialRow]]:
        """Trials of the same lineage that are over and freeze more stages, by depth; none that never ran."""
        own_depth, by_depth = self.depth(params), dict[int, list[TrialRow]]()
        for row in self._trial_log.rows.values():
            if row["curve"] and self._trial_log.over(row["id"]) and lineage(row["params"]) == lineage(params):
                depth = self.depth(row["params"])
                if depth > own_depth:
                    by_depth.setdefault(depth, []).append(row)
        return by_depth
