"""Scores (transferability.py) of a space's backbones and freeze depths, and how well they predict results.

A score is measured on the features after the frozen stages, so freeze depth 0 has none. Scores may rule
trials out only where they agree with the search's own results: see `correlation` (Spearman's).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from tlray.config import Config
from tlray.models.backbone import POOLED
from tlray.search import transferability
from tlray.search.space import Params
from tlray.search.trial_log import TrialLog

NAMES = ("linear", "knn", "logme")
JUDGE = "linear"  # the score that rules trials out, see probe_first.py
FEWEST = 3  # places (backbone and freeze depth) that a rank correlation needs


def measure(config: Config, trial_log: TrialLog, cpus: int, gpus: float) -> list[dict[str, Any]]:
    """Score, on the cluster, at every depth each backbone of the space that has no scores in the log yet.

    Raises the errors of `transferability.rank`.
    """
    axis = next((axis for axis in trial_log.space.axes if axis.key == "model.backbone"), None)
    scored = {score["backbone"] for score in trial_log.scores}
    names = [config.model.backbone] if axis is None else list(axis.values or ())
    names = [name for name in names if name not in scored]
    task: Any = ray.remote(transferability.rank)
    task = task.options(num_cpus=cpus, num_gpus=gpus)
    scores_by_backbone = ray.get([task.remote(config, [name]) for name in names])
    # At the last depth there are two scores, of the last stage's map and of the pooled features. The pooled
    # ones come last and stay: they are what a linear probe is trained on.
    by_place = {
        (score.backbone, score.depth): score
        for scores in scores_by_backbone
        for score in sorted(scores, key=lambda score: score.stage == POOLED)
    }
    return [
        {"backbone": b, "depth": d, "stage": score.stage, **{name: getattr(score, name) for name in NAMES}}
        for (b, d), score in sorted(by_place.items())
    ]


def with_results(trial_log: TrialLog, place: Callable[[Params], tuple[str, int]]) -> list[dict[str, Any]]:
    """The log's scores, each with the ``best`` value of the trials at its place (None: there are none).

    ``place``: gives a trial's backbone and freeze depth.
    """
    best_by_place: dict[tuple[str, int], float] = {}
    for row in trial_log.rows.values():
        if row["best"] is not None and trial_log.over(row["id"]) and "outside" not in row:
            here = place(row["params"])
            if trial_log.goal.better(row["best"], best_by_place.get(here)):
                best_by_place[here] = row["best"]
    return [
        {**score, "best": best_by_place.get((score["backbone"], score["depth"]))}
        for score in trial_log.scores
    ]


def correlation(scores: Sequence[dict[str, Any]], direction: str) -> dict[str, float | None]:
    """Rank correlation of each kind of score with results, which `with_results` has added.

    1: the higher the score, the better the result. None for fewer than ``FEWEST`` places, and where all
    scores or all results are equal.
    """
    from scipy.stats import spearmanr  # takes most of a second to import

    complete = [score for score in scores if score["best"] is not None]
    sign = 1 if direction == "max" else -1
    results = [sign * score["best"] for score in complete]
    correlations: dict[str, float | None] = {}
    for name in NAMES:
        values = [score[name] for score in complete]
        usable = len(complete) >= FEWEST and len(set(values)) > 1 and len(set(results)) > 1
        correlations[name] = float(spearmanr(values, results).statistic) if usable else None
    return correlations
