"""Verification: whether two pictures show one person, measured over pairs of pictures.

Letters in names: N pictures, M paired pictures, P pairs, T thresholds, F folds, D size of the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tlray.data.schema import LABEL, Row
from tlray.figures.charts import Column, Section, Shot, Table
from tlray.figures.svg import BLUE, GRID, RED, SOFT, Plot, to_svg
from tlray.tasks.base import Prediction

MAX_PICTURES = 3000  # limit of pictures that are paired, see `paired_pictures`
FOLDS = 10
THRESHOLDS_T = np.linspace(-1, 1, 2001)  # of cosine similarity


class Metrics:
    """Keeps embeddings and people; pairs are made by `compute`."""

    def __init__(self, threshold: float | None) -> None:
        self.threshold = threshold
        self.embeddings: list[list[float]] = []
        self.people: list[int] = []

    def update(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> None:
        for prediction, row in zip(predictions, rows, strict=True):
            self.embeddings.append(prediction["embedding"])
            self.people.append(int(row[LABEL]))

    def state(self) -> Any:
        return {"embeddings": self.embeddings, "people": self.people}

    def merge(self, state: Any) -> None:
        self.embeddings += state["embeddings"]
        self.people += state["people"]

    def compute(self) -> dict[str, float]:
        """Metrics over all pairs; pairs of one person and pairs of two have the same weight in accuracies.

        verification_accuracy: over ten folds of pairs as in LFW (Huang et al., UMass 07-49), with the
            threshold that is best on the other nine. LFW splits people; a validation split has too few.
        roc_auc: area below true accept rate by false accept rate.
        tar_at_far_F: true accept rate at the lowest threshold with a false accept rate of at most F.
        equal_error_rate: where false accept rate and false reject rate are equal.
        rank1: each person's first picture is enrolled; the share of other pictures for which the nearest of
            these shows the right person.
        threshold: the one that was set, else the one with the best accuracy on these pairs.
        accuracy_at_threshold: accuracy at that threshold.

        NaN where a kind of pair is missing.
        """
        person_N = np.array(self.people, np.int64)
        size = len(self.embeddings[0]) if self.embeddings else 0
        x_ND = np.array(self.embeddings, np.float32).reshape(len(person_N), size)
        pairs, nan = _pairs(x_ND, person_N), float("nan")
        rank1 = {"rank1": _rank1(x_ND, person_N)}
        if not _has_both_kinds(pairs):
            names = ("verification_accuracy", "roc_auc", "tar_at_far_0.01", "tar_at_far_0.001")
            more = ("equal_error_rate", "accuracy_at_threshold")
            threshold = nan if self.threshold is None else self.threshold
            return {**dict.fromkeys((*names, *more), nan), "threshold": threshold, **rank1}
        far_T, tar_T = _rates(pairs)
        best = THRESHOLDS_T[_best(far_T, tar_T)] if self.threshold is None else self.threshold
        accept_P = pairs.similarity_P >= best
        crossing = int(np.argmin(np.abs(far_T - (1 - tar_T))))
        return {
            "verification_accuracy": _tenfold(pairs),
            "roc_auc": float(np.trapezoid(tar_T[::-1], far_T[::-1])),
            "tar_at_far_0.01": float(tar_T[far_T <= 0.01].max(initial=0.0)),
            "tar_at_far_0.001": float(tar_T[far_T <= 0.001].max(initial=0.0)),
            "equal_error_rate": float(far_T[crossing] + 1 - tar_T[crossing]) / 2,
            "threshold": float(best),
            "accuracy_at_threshold": float(
                accept_P[pairs.same_P].mean() + (~accept_P[~pairs.same_P]).mean()
            ) / 2,
            **rank1,
        }  # fmt: skip


def sections(rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, float]) -> list[Section]:
    """How well pairs are told apart, their similarities, the worst pairs; empty without both kinds."""
    x_ND = np.array([row["embedding"] for row in rows], np.float32)
    pairs = _pairs(x_ND, np.array([row["truth"] for row in rows], np.int64))
    if not _has_both_kinds(pairs):
        return []
    far_T, tar_T = _rates(pairs)
    names = ("tar_at_far_0.01", "tar_at_far_0.001", "equal_error_rate", "rank1", "accuracy_at_threshold")
    return [
        Section(
            "Verification",
            f"{int(pairs.same_P.sum())} pairs of one person, {int((~pairs.same_P).sum())} of two. By "
            "threshold: the share of pairs of one person that is accepted (TAR), and of pairs of two (FAR). "
            f"Area below {metrics['roc_auc']:.4f}; the dot is the threshold {metrics['threshold']:.3f}.",
            [_roc(far_T, tar_T, metrics["threshold"])],
            [Table([Column("figure"), Column("value", 4)], [[name, metrics[name]] for name in names])],
        ),
        Section(
            "Similarities",
            "Cosine similarities: the distributions of pairs of one person (blue) and of two (orange). The "
            "line is the threshold.",
            [_histogram(pairs, metrics["threshold"])],
        ),
        Section(
            "Worst pairs",
            "The least similar pairs of one person, the most similar of two. Sometimes a label is wrong.",
            shots=_worst(pairs),
        ),
    ]


class _Pairs(NamedTuple):
    """All pairs of pictures: their positions, cosine similarity, and whether they show one person."""

    first_P: np.ndarray
    second_P: np.ndarray
    similarity_P: np.ndarray
    same_P: np.ndarray


def paired_pictures(person_N: np.ndarray) -> np.ndarray:
    """Positions of the pictures that are paired: all, or those of random people, at most MAX_PICTURES.

    The choice of people depends on the pictures alone, so it is the same each time.
    """
    if len(person_N) <= MAX_PICTURES:
        return np.arange(len(person_N))
    people, counts = np.unique(person_N, return_counts=True)
    order = np.random.default_rng(0).permutation(len(people))
    chosen = people[order[np.cumsum(counts[order]) <= MAX_PICTURES]]
    return np.flatnonzero(np.isin(person_N, chosen))


def _pairs(x_ND: np.ndarray, person_N: np.ndarray) -> _Pairs:
    chosen_M = paired_pictures(person_N)
    i_P, j_P = (chosen_M[at] for at in np.triu_indices(len(chosen_M), 1))
    x_MD = x_ND[chosen_M]
    similarity_P = (x_MD @ x_MD.T)[np.triu_indices(len(chosen_M), 1)]
    return _Pairs(i_P, j_P, similarity_P, person_N[i_P] == person_N[j_P])


def _has_both_kinds(pairs: _Pairs) -> bool:
    """Whether there is a pair of one person, and one of two."""
    return bool(0 < pairs.same_P.sum() < len(pairs.same_P))


# Not by scikit-learn's roc_curve: folds need counts at common thresholds, and binning millions of pairs is
# faster than sorting them.
def _counts(pairs: _Pairs, same: bool) -> np.ndarray:
    """(F, T): the pairs of one person (or of two) in a fold whose similarity reaches a threshold."""
    similarity_P = pairs.similarity_P[pairs.same_P == same]
    fold_P = np.random.default_rng(0).permutation(len(similarity_P)) % FOLDS
    num = len(THRESHOLDS_T)
    bin_P = np.clip(((similarity_P + 1) / 2 * (num - 1)).astype(np.int64), 0, num - 1)
    counts = np.bincount(fold_P * num + bin_P, minlength=FOLDS * num).reshape(FOLDS, num)
    return counts[:, ::-1].cumsum(1)[:, ::-1]


def _rates(pairs: _Pairs) -> tuple[np.ndarray, np.ndarray]:
    """False and true accept rates by threshold (T + 1,), both falling from 1 to 0."""
    impostor_T, genuine_T = (_counts(pairs, same).sum(0) for same in (False, True))
    far_T, tar_T = impostor_T / impostor_T[0], genuine_T / genuine_T[0]
    return np.append(far_T, 0.0), np.append(tar_T, 0.0)  # at a threshold above 1


def _best(far_T: np.ndarray, tar_T: np.ndarray) -> int:
    """Index of the threshold with the best accuracy; the middle one of several."""
    score_T = (tar_T - far_T)[: len(THRESHOLDS_T)]
    best = np.flatnonzero(score_T >= score_T.max() - 1e-12)
    return int(best[len(best) // 2])


def _tenfold(pairs: _Pairs) -> float:
    """Mean accuracy over folds, each at the threshold that is best on the other folds."""
    impostor_FT, genuine_FT = _counts(pairs, False), _counts(pairs, True)
    scores = []
    for fold in range(FOLDS):
        rest = [counts.sum(0) - counts[fold] for counts in (impostor_FT, genuine_FT)]
        sizes = [counts[fold, 0] for counts in (impostor_FT, genuine_FT)]
        if not all(sizes) or not all(counts[0] for counts in rest):
            continue  # too few pairs
        at = _best(*(counts / counts[0] for counts in rest))
        scores.append((1 - impostor_FT[fold, at] / sizes[0] + genuine_FT[fold, at] / sizes[1]) / 2)
    if scores:
        return float(np.mean(scores))
    far_T, tar_T = _rates(pairs)  # too few pairs for folds: the threshold is chosen on all of them
    at = _best(far_T, tar_T)
    return float(tar_T[at] + 1 - far_T[at]) / 2


def _rank1(x_ND: np.ndarray, person_N: np.ndarray) -> float:
    chosen_M = paired_pictures(person_N)
    people, first = np.unique(person_N[chosen_M], return_index=True)
    probe_M = np.delete(chosen_M, first)
    if len(probe_M) == 0:
        return float("nan")
    nearest_M = (x_ND[probe_M] @ x_ND[chosen_M[first]].T).argmax(1)
    return float((people[nearest_M] == person_N[probe_M]).mean())


def _worst(pairs: _Pairs, num: int = 8) -> list[Shot]:
    """The least similar pairs of one person and the most similar ones of two, ``num`` of each."""
    shots = []
    for same, truth in ((True, "one person"), (False, "two people")):
        at_P = np.flatnonzero(pairs.same_P == same)
        order = np.argsort(pairs.similarity_P[at_P] * (1 if same else -1), kind="stable")
        shots += [
            Shot(
                int(pairs.first_P[p]),
                [("truth", truth), ("similarity", f"{pairs.similarity_P[p]:.3f}")],
                beside=int(pairs.second_P[p]),
            )
            for p in at_P[order[:num]]
        ]
    return shots


def _roc(far_T: np.ndarray, tar_T: np.ndarray, threshold: float) -> bytes:
    """SVG: true against false accept rate; the latter on a log scale, since low rates matter."""
    at = int(np.clip(np.searchsorted(THRESHOLDS_T, threshold), 0, len(THRESHOLDS_T) - 1))
    with Plot(3.6, 2.8) as (figure, axes):
        least = max(1e-5, float(far_T[far_T > 0].min(initial=1.0)) / 2)
        axes.plot(np.maximum(far_T, least), tar_T, color=BLUE)
        axes.plot(max(far_T[at], least), tar_T[at], marker="o", ms=5, color=RED)
        axes.set_xscale("log")
        axes.set(xlim=(least, 1), ylim=(0, 1.02), xlabel="false accept rate", ylabel="true accept rate")
        axes.grid(color=GRID)
        return to_svg(figure)


def _histogram(pairs: _Pairs, threshold: float) -> bytes:
    """SVG: shares of pairs by similarity."""
    edges = np.linspace(-1, 1, 61)
    with Plot(3.6, 2.8) as (figure, axes):
        for same, colour, name, style in (
            (True, BLUE, "one person", "-"),
            (False, RED, "two people", (0, (4, 1.6))),
        ):
            counts, _ = np.histogram(pairs.similarity_P[pairs.same_P == same], edges)
            axes.stairs(counts / max(counts.sum(), 1), edges, color=colour, ls=style, label=name)
        axes.axvline(threshold, color=SOFT, lw=1)
        axes.set(xlim=(-1, 1), xlabel="cosine similarity", ylabel="share of pairs")
        axes.legend(loc="upper left")
        return to_svg(figure)
