"""Scores of backbones and freeze depths on the user's own pictures, without training.

Features of a sample of the training split are computed at every stage in one pass, and get three scores:

    knn     accuracy of a vote of the 5 most similar other pictures (by cosine)
    linear  accuracy of a ridge classifier, in five folds
    logme   log evidence of a linear model, per picture (You et al., LogME, arXiv 2102.11005)

Where a picture has several classes (also those of its boxes or of its mask) knn and linear are the mean
average precision over classes. They predict the results of linear probes; with fine-tuning the order may be
another one.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from tlray import tasks
from tlray.config import Config
from tlray.data import loader, schema
from tlray.data.dataset import Dataset
from tlray.data.image import Preprocess, decode_mask
from tlray.errors import DataError
from tlray.inference.embed import Bare
from tlray.models import weights as origins
from tlray.models.backbone import POOLED, Backbone, Boundary
from tlray.observer import Progress
from tlray.tasks.base import Task

ROWS = 1000  # of the training split, at most
BATCH = 32
FOLDS, NEIGHBOURS = 5, 5


@dataclass(frozen=True)
class Score:
    """One backbone at one stage; ``ms``: milliseconds per picture of the whole backbone."""

    backbone: str
    stage: str
    depth: int  # freeze depth of trials that begin there
    dimensions: int
    knn: float
    linear: float
    logme: float
    ms: float
    million_parameters: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def rank(
    config: Config, backbones: Sequence[str], rows: int = ROWS, progress: Progress | None = None
) -> list[Score]:
    """Scores of every backbone at every stage on at most ``rows`` pictures, the best by ``linear`` first.

    All backbones get ``model.weights``, except the built-in ones, which have their own. Raises ConfigError
    for an unknown backbone, DataError where the sample has one class only.
    """
    data, task = Dataset.open(config.data.uri), tasks.load(config.task)
    split = config.data.train_split
    tasks.check_split(task, data, split)
    total = sum(data.group_rows(split))
    at = np.unique(np.linspace(0, total - 1, min(rows, total)).astype(np.int64))
    column, kind = next(iter(task.columns.items()))
    labels = data.read(split, [column]).take(at)[column].to_pylist()
    y_NC = classes(kind, labels)
    if y_NC.shape[1] < 2 or (y_NC.sum(0) > 0).sum() < 2:
        raise DataError(f"{config.data.uri} ({split}): one class only; accepted: two or more")
    ranking = []
    for name in backbones:
        weights = "builtin" if name in origins.BUILTIN else config.model.weights
        bare = Bare(name, weights, config.input.size)
        bare.backbone.freeze("all")
        x_by_stage, seconds = _features(bare, config, task, at, name, progress)
        size = sum(p.numel() for p in bare.backbone.parameters()) / 1e6
        for stage, x_ND in x_by_stage.items():
            knn, linear = judge(x_ND, y_NC)
            evidence = logme(x_ND, y_NC)
            ms = 1e3 * seconds / len(at)
            depth = bare.backbone.resolve("all" if stage == POOLED else stage)
            ranking.append(Score(name, stage, depth, x_ND.shape[1], knn, linear, evidence, ms, size))
    return sorted(ranking, key=lambda score: -score.linear)


def _features(
    bare: Bare, config: Config, task: Task, rows: np.ndarray, name: str, progress: Progress | None
) -> tuple[dict[str, np.ndarray], float]:
    """Features (N, D) by stage, the mean over height and width, and pooled; and the network's seconds."""
    fit: Preprocess = bare.preprocess.model_copy(update={"fit": config.input.fit})
    source = loader.Source(
        config.data.uri, config.data.train_split, task, (), fit, cache_mb=config.data.cache_mb
    )
    fingerprint, seconds = Dataset.open(config.data.uri).fingerprint, 0.0
    by_stage: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(rows), BATCH):
        x_BCHW = loader.pixels(source, fingerprint, rows[start : start + BATCH]).to(bare.device)
        began = time.perf_counter()
        for stage, x_BD in features_by_stage(bare.backbone, x_BCHW).items():
            by_stage.setdefault(stage, []).append(x_BD.float().cpu().numpy())
        seconds += time.perf_counter() - began
        if progress is not None:
            progress(name, min(start + BATCH, len(rows)), len(rows))
    return {stage: np.concatenate(parts) for stage, parts in by_stage.items()}, seconds


@torch.inference_mode()
def features_by_stage(backbone: Backbone, x_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
    """Features (B, D) of a frozen backbone, in one pass: by stage (mean over height and width) and pooled."""
    num_stages = len(backbone.stages)
    end, all_maps = Boundary(num_stages), Boundary(num_stages, tuple(range(num_stages)))
    features = backbone.features(x_BCHW, [end, all_maps])
    maps = backbone.pyramid(features[all_maps]) if backbone.strides[0] else []
    by_stage = {stage: m.mean(dim=(2, 3)) for stage, m in zip(backbone.stages, maps, strict=False)}
    pooled = features[end].pooled
    assert pooled is not None, "the end of a backbone has pooled features"
    return {**by_stage, POOLED: pooled}


def classes(kind: schema.Kind, values: Sequence[Any]) -> np.ndarray:
    """Which classes each picture has, (N, C) bool, from any kind of label; only classes that some lack."""
    if kind in ("class", "identity"):
        sets = [{value} for value in values]
    elif kind == "classes":
        sets = [set(value) for value in values]
    elif kind == "objects":
        sets = [set(value["category"]) for value in values]
    else:
        sets = [set(np.unique(decode_mask(value["bytes"])).tolist()) for value in values]
    y_NC = np.zeros((len(sets), 1 + max((max(s) for s in sets if s), default=0)), bool)
    for i, classes_of_picture in enumerate(sets):
        y_NC[i, list(classes_of_picture)] = True
    # A class that all pictures have, or none, tells no features apart.
    return y_NC[:, (y_NC.sum(0) > 0) & (y_NC.sum(0) < len(sets))]


def judge(x_ND: np.ndarray, y_NC: np.ndarray) -> tuple[float, float]:
    """(knn, linear) of features; see the module's docstring."""
    from sklearn.linear_model import RidgeClassifierCV  # type: ignore[import-untyped]
    from sklearn.metrics import average_precision_score  # type: ignore[import-untyped]
    from sklearn.model_selection import KFold, cross_val_predict  # type: ignore[import-untyped]

    x_ND = x_ND - x_ND.mean(0)
    x_ND /= x_ND.std(0) + 1e-6
    unit_ND = x_ND / (np.linalg.norm(x_ND, axis=1, keepdims=True) + 1e-9)
    near_NN = unit_ND @ unit_ND.T
    np.fill_diagonal(near_NN, -np.inf)
    nearest_NK = np.argsort(-near_NN, axis=1, kind="stable")[:, :NEIGHBOURS]
    weight_NK = np.take_along_axis(near_NN, nearest_NK, 1).clip(1e-3)
    votes_NC = (y_NC[nearest_NK] * weight_NK[..., None]).sum(1)
    ridge = RidgeClassifierCV(alphas=np.logspace(0, 5, 6))
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    one_each = bool((y_NC.sum(1) == 1).all())
    truth = y_NC.argmax(1) if one_each else y_NC.astype(int)
    try:
        with warnings.catch_warnings():  # a class that a fold lacks gets the lowest score there
            warnings.simplefilter("ignore", RuntimeWarning)
            decided_NC = cross_val_predict(ridge, x_ND, truth, cv=folds, method="decision_function")
    except ValueError as error:  # a fold has pictures of one class only
        raise DataError(
            f"too few pictures of some labels to compare features by ({str(error).splitlines()[0][:160]}); "
            f"accepted: a few of each, for {FOLDS} folds"
        ) from None
    if not one_each:
        return tuple(float(average_precision_score(y_NC, s, average="macro")) for s in (votes_NC, decided_NC))  # type: ignore[return-value]
    guess_N = (decided_NC > 0).astype(int) if decided_NC.ndim == 1 else decided_NC.argmax(1)
    return float((votes_NC.argmax(1) == truth).mean()), float((guess_N == truth).mean())


def logme(x_ND: np.ndarray, y_NC: np.ndarray) -> float:
    """Log evidence per picture of a Bayesian linear model, mean over classes; the higher the better."""
    x_ND = x_ND.astype(np.float64)
    n, d = x_ND.shape
    u_NK, s_K, _ = np.linalg.svd(x_ND, full_matrices=False)
    power_K, evidence = s_K**2, []
    for y_N in y_NC.T.astype(np.float64):
        z_K = u_NK.T @ y_N
        rest = float(y_N @ y_N - z_K @ z_K)  # the part of the labels outside of the features' span
        alpha, beta = 1.0, 1.0
        for _ in range(100):
            ratio = alpha / beta
            gamma = float((power_K / (power_K + ratio)).sum())
            m2 = float((power_K * z_K**2 / (power_K + ratio) ** 2).sum())
            residual = float((z_K**2 / (1 + power_K / ratio) ** 2).sum()) + rest
            alpha, beta = gamma / (m2 + 1e-9), (n - gamma) / (residual + 1e-9)
            if abs(alpha / beta - ratio) <= 1e-3 * ratio:
                break
        log_det = float(np.log(alpha + beta * power_K).sum()) + (d - len(power_K)) * np.log(alpha)
        evidence.append(
            (d * np.log(alpha) + n * np.log(beta) - n * np.log(2 * np.pi) - log_det) / 2
            - (beta * residual + alpha * m2) / 2
        )
    return float(np.mean(evidence) / n)
