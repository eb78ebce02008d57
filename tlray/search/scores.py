"""Scores (transferability.py) of the backbones and freeze depths of a space, and how far results agree.

A score is taken at the end of the frozen stages, so freeze depth 0 has none. Whether scores may decide
anything is for the search's own results to say: `correlation` (Spearman's) of scores and results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from tlray.config import Config
from tlray.search import transferability
from tlray.search.space import Params
from tlray.search.trial_log import TrialLog

NAMES = ("linear", "knn", "logme")
JUDGE = "linear"  # the one that prunes
FEWEST = 3  # places (backbone and depth) that a rank correlation is taken over


def measure(config: Config, table: TrialLog, cpus: int, gpus: float) -> list[dict[str, Any]]:
    """Scores of each backbone of the space at each depth that the table lacks, on the cluster.

    Raises what `transferability.rank` does.
    """
    axis = next((axis for axis in table.space.axes if axis.key == "model.backbone"), None)
    known = {one["backbone"] for one in table.scores}
    names = [config.model.backbone] if axis is None else list(axis.values or ())
    names = [name for name in names if name not in known]
    work: Any = ray.remote(transferability.rank)
    work = work.options(num_cpus=cpus, num_gpus=gpus)
    found = ray.get([work.remote(config, [name]) for name in names])
    # The last stage is scored twice; what a probe reads of it is the pooled one.
    told = {
        (one.backbone, one.depth): one
        for scores in found
        for one in sorted(scores, key=lambda one: one.stage == transferability.POOLED)
    }
    return [
        {"backbone": b, "depth": d, "stage": one.stage, **{name: getattr(one, name) for name in NAMES}}
        for (b, d), one in sorted(told.items())
    ]


def beside(table: TrialLog, place: Callable[[Params], tuple[str, int]]) -> list[dict[str, Any]]:
    """The table's scores, each with the best value that trials there came to (None: there is none).

    ``place``: a trial's backbone and freeze depth.
    """
    found: dict[tuple[str, int], float] = {}
    for row in table.rows.values():
        if row["best"] is not None and table.over(row["id"]) and "outside" not in row:
            where = place(row["params"])
            if table.goal.better(row["best"], found.get(where)):
                found[where] = row["best"]
    return [{**one, "best": found.get((one["backbone"], one["depth"]))} for one in table.scores]


def correlation(told: Sequence[dict[str, Any]], direction: str) -> dict[str, float | None]:
    """Rank correlation of each score with what `beside` knows; 1: the higher the score the better the result.

    None over fewer than ``FEWEST`` places, or where all are equal.
    """
    from scipy.stats import spearmanr  # takes most of a second to import

    known = [one for one in told if one["best"] is not None]
    sign = 1 if direction == "max" else -1
    results = [sign * one["best"] for one in known]
    out: dict[str, float | None] = {}
    for name in NAMES:
        values = [one[name] for one in known]
        usable = len(known) >= FEWEST and len(set(values)) > 1 and len(set(results)) > 1
        out[name] = float(spearmanr(values, results).statistic) if usable else None
    return out
