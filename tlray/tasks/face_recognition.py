"""Face recognition as metric learning: a picture becomes a point, pictures of one person lie close together.

The people of training are not classes of the model. Their weights serve the loss alone and stay out of
bundles; whoever shall be known later is enrolled by a picture, and told apart by cosine similarity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from tlray.config import Count, NonNegative, Positive, Share, Strict
from tlray.data.image import Geometry, Preprocess
from tlray.data.schema import LABEL, Kind, Row, Target
from tlray.figures.charts import Column, Section, Shot, Table
from tlray.figures.svg import BLUE, GRID, RED, SOFT, Plot, to_svg
from tlray.tasks import base, losses
from tlray.tasks.base import Counts, Defaults, Goal, OneOf, Prediction, Remark, TrainingRows

if TYPE_CHECKING:  # it brings timm, which processes that only render need not load
    from tlray.models.backbone import Backbone

MARGINS = {"arcface": 0.5, "cosface": 0.35, "adaface": 0.4}  # of the papers; arcface's is an angle (rad)
MAX_PICTURES = 3000  # that are paired; of more, the people of a fixed random choice are
FOLDS = 10
THRESHOLDS_T = np.linspace(-1, 1, 2001)  # of cosine similarity


class Task(Strict):
    """Settings under ``task:``."""

    name: Literal["face_recognition"] = "face_recognition"
    goal: Annotated[
        Goal,
        OneOf(
            verification_accuracy="max",
            roc_auc="max",
            equal_error_rate="min",
            rank1="max",
            **{"tar_at_far_0.01": "max", "tar_at_far_0.001": "max"},
        ),
    ] = Goal("verification_accuracy", "max")
    head: Literal["arcface", "cosface", "adaface"] = "arcface"
    margin: NonNegative | None = None  # None: that of the head's paper
    scale: Positive = 30.0  # of the cosines in the loss; the papers' 64 is for 10,000 people and more
    embedding_size: Count = 128
    margin_warmup: Share = 0.1  # share of training in which the margin grows from 0
    pictures_per_person: Count = 4  # that come together in a batch of training
    mirror: bool = False  # an embedding is that of the picture and its mirror image; new trainings: true
    threshold: float | None = None  # cosine similarity from which two are one person; None: from validation

    columns: ClassVar[dict[str, Kind]] = {LABEL: "identity"}
    # Not the true accept rate at few false ones: on the some hundred pairs of a usual validation split that
    # hangs on a handful of impostors, while this rests on all pairs and is what `verify` delivers.
    defaults: ClassVar[Defaults] = Defaults(
        "colour",
        (0.7, 1.0),
        batch_size=32,
        rate_factor=0.6,
        backbone_lr_ratio=0.3,
        task={"mirror": True},
    )
    gallery: ClassVar[bool] = True
    detects: ClassVar[bool] = False
    supported_augmentations: ClassVar[tuple[str, ...]] = ("mixup", "cutmix")

    def preflight(self, rows: pa.Table, names: Mapping[str, list[str]]) -> tuple[pa.Table, list[Remark]]:
        """People with a single picture can be told from others, but show nothing of what stays the same."""
        usable = rows.filter(pc.is_null(rows["kind"])).select([LABEL]).drop_null()
        counts = usable.group_by(LABEL).aggregate([([], "count_all")]).to_pylist()
        single = sorted(str(found[LABEL]) for found in counts if found["count_all"] == 1)
        if not single:
            return rows, []
        said = f"{len(single)} of {len(counts)} people have a single picture: they make no pair of the same"
        return rows, [Remark("warning", "single_picture", said, single[:10])]

    @property
    def together(self) -> int:
        return self.pictures_per_person

    def unmeasurable(self, tables: Iterable[pa.Table], labels: list[str]) -> str | None:
        person_N = np.concatenate([np.zeros(0, np.int64), *(table[LABEL].to_numpy() for table in tables)])
        _, counts = np.unique(person_N[_chosen(person_N)], return_counts=True)
        if len(counts) < 2:
            return f"it has {len(counts) or 'no'} person, and no pair of two"
        return None if counts.max() > 1 else "none of its people has two pictures, so there is no pair of one"

    def adapted_to_data(
        self, rows: TrainingRows, backbone: Backbone, preprocess: Preprocess
    ) -> tuple[Task, str]:
        return self, ""

    def build(self, backbone: Backbone, labels: list[str], counts: Counts | None = None) -> nn.Module:
        """Linear embedding and batch norm over the backbone's pooled features; in training the head."""
        head = None if counts is None else _head(self, len(counts.by_class))
        return FaceEmbedder(backbone, self, head)

    def encode(self, row: Row, geometry: Geometry, labels: list[str]) -> Target:
        return {LABEL: np.int64(row[LABEL])}

    def decode(
        self, outputs: torch.Tensor, geometries: Sequence[Geometry], labels: list[str]
    ) -> list[Prediction]:
        """Unit vectors (B, D) -> ``{"embedding": D numbers}`` each."""
        return [{"embedding": np.round(x_D, 6).tolist()} for x_D in outputs.double().cpu().numpy()]

    def metrics(self, labels: list[str]) -> Metrics:
        return Metrics(self.threshold)

    def with_thresholds(self, metrics: base.Metrics) -> Task:
        """With the threshold of these pictures, where none was set and there are pairs to choose it by."""
        found = round(metrics.compute()["threshold"], 4)
        return self if found != found else self.model_copy(update={"threshold": found})

    def record(self, row: Row | None, prediction: Prediction) -> dict[str, Any]:
        return {**({"truth": int(row[LABEL])} if row is not None else {}), **prediction}

    def draw(self, picture: Image.Image, record: dict[str, Any], labels: list[str]) -> Image.Image:
        return picture  # an embedding has no place in the picture

    def draw_truth(self, picture: Image.Image, row: Row, labels: list[str]) -> Image.Image:
        return picture  # a person is a name, not a place

    def served(self, prediction: Prediction, min_score: float | None = None) -> Prediction:
        return prediction

    def image_of(self, prediction: Prediction) -> bytes | None:
        return None

    def summary(self, prediction: Prediction, top: int) -> str:
        x_D = prediction["embedding"]
        first = " ".join(f"{value:+.3f}" for value in x_D[:top])
        return f"embedding of {len(x_D)} numbers: {first}{' ...' if len(x_D) > top else ''}"

    def figures(self, evaluation: dict[str, Any]) -> list[Section]:
        """How well pairs are told apart, how similar they are, and the pairs that are told worst."""
        rows = evaluation["rows"]
        x_ND = np.array([row["embedding"] for row in rows], np.float32)
        pairs = _pairs(x_ND, np.array([row["truth"] for row in rows], np.int64))
        if not 0 < pairs.same_P.sum() < len(pairs.same_P):
            return []
        found, (far_T, tar_T) = evaluation["metrics"], _rates(pairs)
        names = ("tar_at_far_0.01", "tar_at_far_0.001", "equal_error_rate", "rank1", "accuracy_at_threshold")
        return [
            Section(
                "Verification",
                f"{int(pairs.same_P.sum())} pairs of one person, {int((~pairs.same_P).sum())} of two: the "
                "share of the former that is accepted (TAR) against that of the latter (FAR), by threshold. "
                f"Area below {found['roc_auc']:.4f}; the dot is the threshold {found['threshold']:.3f}.",
                [_roc(far_T, tar_T, found["threshold"])],
                [Table([Column("figure"), Column("value", 4)], [[name, found[name]] for name in names])],
            ),
            Section(
                "Similarities",
                "Cosine similarity of pairs of one person (blue) and of two (orange), each as shares of its "
                "own; the line is the threshold.",
                [_histogram(pairs, found["threshold"])],
            ),
            Section(
                "Worst pairs",
                "The least similar pairs of one person, the most similar of two. Sometimes it is the label.",
                shots=_worst(pairs),
            ),
        ]


class FaceEmbedder(nn.Module):
    """backbone -> pooled features (B, num_features) -> unit vectors (B, D)."""

    training_only = ("identities.",)

    def __init__(self, backbone: Backbone, settings: Task, head: nn.Module | None) -> None:
        super().__init__()
        self.backbone = backbone
        size, self.mirror, self.margin_warmup = (
            settings.embedding_size, settings.mirror, settings.margin_warmup,
        )  # fmt: skip
        self.needs_pixels = settings.mirror  # features of a mirror image are not mirrored features
        self.margin = float(getattr(head, "margin", 0.0))  # as the loss has it, radians or a cosine
        self.project = nn.Linear(backbone.num_features, size, bias=False)  # the norm has one
        self.norm = nn.BatchNorm1d(size)
        self.identities = head

    def forward(self, x_BCHW: torch.Tensor, targets: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Unit vectors, or with targets (``label`` (B,) int64: the person) the mean loss (scalar)."""
        if targets is None:
            return self.embed(x_BCHW)
        assert self.identities is not None, "a model from a bundle knows nobody of the training"
        head, x_BD = self.identities, self._points(x_BCHW)
        # In fp32 whatever the precision: an angle's cosine near 1 has no digits in half, and the library
        # would cast its weights to the type of what comes in.
        with torch.autocast(x_BD.device.type, enabled=False):
            x_BD = x_BD.float()
            if isinstance(head, AdaFace):
                head.measure(x_BD)
            return losses.mixed(lambda known: _by_row(head(x_BD, known[LABEL])), targets).mean()

    def embed(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Unit vectors (B, D)."""
        x_BD = F.normalize(self._points(x_BCHW).float())
        if not self.mirror:
            return x_BD
        return F.normalize(x_BD + F.normalize(self._points(x_BCHW.flip(-1)).float()))

    def trained(self, share: float) -> None:
        """The margin grows with training: at first people cannot be told apart even without one."""
        if self.identities is not None and self.margin_warmup:
            head: Any = self.identities
            head.margin = self.margin * min(1.0, share / self.margin_warmup)

    def _points(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x_BD = self.project(self.backbone.pooled(x_BCHW))
        if self.training and len(x_BD) == 1:  # one picture has no variance: the last batch of an epoch
            norm = self.norm
            return F.batch_norm(
                x_BD, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            )
        found: torch.Tensor = self.norm(x_BD)
        return found


def _head(task: Task, num_people: int) -> nn.Module:
    """The losses (B,) of points (B, D) and people (B,): softmax over cosines to the people, with a margin."""
    margin = MARGINS[task.head] if task.margin is None else task.margin
    if task.head == "adaface":
        return AdaFace(num_people, task.embedding_size, margin, task.scale)
    from pytorch_metric_learning import losses as known  # brings scikit-learn
    from pytorch_metric_learning.reducers import DoNothingReducer

    if task.head == "arcface":  # arXiv 1801.07698; degrees there
        margin, made = float(np.degrees(margin)), known.ArcFaceLoss
    else:
        made = known.CosFaceLoss  # arXiv 1801.09414
    rows = DoNothingReducer()
    head: nn.Module = made(num_people, task.embedding_size, margin=margin, scale=task.scale, reducer=rows)
    return head


def _by_row(found: Any) -> torch.Tensor:
    """The rows' losses (B,); the library has them in dictionaries."""
    loss_B: torch.Tensor = found["loss"]["losses"] if isinstance(found, dict) else found
    return loss_B


class AdaFace(nn.Module):
    """Loss whose margin follows the picture's quality, which the length of its vector stands for.

    Kim, Jain, Liu: AdaFace, arXiv 2204.00964, equations 6, 11 and 12, with their h and momentum.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        num_people: int,
        size: int,
        margin: float,
        scale: float,
        h: float = 0.333,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        self.W = nn.Parameter(F.normalize(torch.randn(size, num_people), dim=0))
        self.margin, self.scale, self.h, self.momentum = margin, scale, h, momentum
        self.register_buffer("mean", torch.tensor(20.0))  # of the lengths; both are the authors' first guess
        self.register_buffer("std", torch.tensor(100.0))

    @torch.no_grad()
    def measure(self, x_BD: torch.Tensor) -> None:
        """Take the lengths of a batch's vectors into account: once a batch, before its loss."""
        norm_B = _lengths(x_BD)
        if len(norm_B) > 1:
            self.mean.lerp_(norm_B.mean(), 1 - self.momentum)
            self.std.lerp_(norm_B.std(), 1 - self.momentum)

    def forward(self, x_BD: torch.Tensor, person_B: torch.Tensor) -> torch.Tensor:
        """Losses of the rows (B,)."""
        with torch.no_grad():
            norm_B = _lengths(x_BD)
            quality_B = ((norm_B - self.mean) / (self.std + 1e-3) * self.h).clamp(-1, 1)
        cosine_BP = F.normalize(x_BD) @ F.normalize(self.W, dim=0)
        own_B1 = cosine_BP.gather(1, person_B[:, None]).clamp(-1 + 1e-4, 1 - 1e-4)
        angle_B1 = (own_B1.acos() - self.margin * quality_B[:, None]).clamp(1e-4, np.pi - 1e-4)
        with_margin_B1 = angle_B1.cos() - self.margin * (1 + quality_B[:, None])
        logits_BP = self.scale * cosine_BP.scatter(1, person_B[:, None], with_margin_B1)
        return F.cross_entropy(logits_BP, person_B, reduction="none")


def _lengths(x_BD: torch.Tensor) -> torch.Tensor:
    norm_B: torch.Tensor = x_BD.norm(dim=1)
    return norm_B.clamp(1e-3, 100)


class Metrics:
    """Keeps embeddings and people; pairs are made when the figures are asked for."""

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
        """Of all pairs, those of one person and those of two weighing the same.

        verification_accuracy: tenfold as in LFW (Huang et al., UMass 07-49), the threshold of a fold chosen
        on the nine others; folds part pairs, not people, of whom a validation split has too few.
        roc_auc; tar_at_far_F: share of the pairs of one person accepted where at most a share F of the
        others is; equal_error_rate; rank1: share of pictures whose nearest among everybody's first one is of
        the same person; threshold: the one set, else the best here; accuracy_at_threshold: with that one.
        NaN where there are no pairs to tell it by.
        """
        person_N = np.array(self.people, np.int64)
        size = len(self.embeddings[0]) if self.embeddings else 0
        x_ND = np.array(self.embeddings, np.float32).reshape(len(person_N), size)
        pairs, nan = _pairs(x_ND, person_N), float("nan")
        found = {"rank1": _rank1(x_ND, person_N)}
        if not 0 < pairs.same_P.sum() < len(pairs.same_P):
            names = ("verification_accuracy", "roc_auc", "tar_at_far_0.01", "tar_at_far_0.001")
            more = ("equal_error_rate", "accuracy_at_threshold")
            threshold = nan if self.threshold is None else self.threshold
            return {**dict.fromkeys((*names, *more), nan), "threshold": threshold, **found}
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
            **found,
        }  # fmt: skip


class _Pairs(NamedTuple):
    """All pairs of pictures: positions, cosine similarity, whether they show one person."""

    first_P: np.ndarray
    second_P: np.ndarray
    similarity_P: np.ndarray
    same_P: np.ndarray


def _chosen(person_N: np.ndarray) -> np.ndarray:
    """Positions of at most MAX_PICTURES pictures, whole people of a fixed random choice; usually of all."""
    if len(person_N) <= MAX_PICTURES:
        return np.arange(len(person_N))
    people, counts = np.unique(person_N, return_counts=True)
    order = np.random.default_rng(0).permutation(len(people))
    taken = people[order[np.cumsum(counts[order]) <= MAX_PICTURES]]
    return np.flatnonzero(np.isin(person_N, taken))


def _pairs(x_ND: np.ndarray, person_N: np.ndarray) -> _Pairs:
    chosen_M = _chosen(person_N)
    i_P, j_P = (chosen_M[at] for at in np.triu_indices(len(chosen_M), 1))
    x_MD = x_ND[chosen_M]
    similarity_P = (x_MD @ x_MD.T)[np.triu_indices(len(chosen_M), 1)]
    return _Pairs(i_P, j_P, similarity_P, person_N[i_P] == person_N[j_P])


def _counts(pairs: _Pairs, same: bool) -> np.ndarray:
    """(FOLDS, thresholds): how many of the pairs of one person (or two) in a fold are at least so similar."""
    similarity_P = pairs.similarity_P[pairs.same_P == same]
    fold_P = np.random.default_rng(0).permutation(len(similarity_P)) % FOLDS
    num = len(THRESHOLDS_T)
    bin_P = np.clip(((similarity_P + 1) / 2 * (num - 1)).astype(np.int64), 0, num - 1)
    counts = np.bincount(fold_P * num + bin_P, minlength=FOLDS * num).reshape(FOLDS, num)
    return counts[:, ::-1].cumsum(1)[:, ::-1]


def _rates(pairs: _Pairs) -> tuple[np.ndarray, np.ndarray]:
    """False and true accept rates by threshold, both falling from 1 to 0."""
    impostor_T, genuine_T = (_counts(pairs, same).sum(0) for same in (False, True))
    far_T, tar_T = impostor_T / impostor_T[0], genuine_T / genuine_T[0]
    return np.append(far_T, 0.0), np.append(tar_T, 0.0)  # above 1 nothing is accepted


def _best(far_T: np.ndarray, tar_T: np.ndarray) -> int:
    """The threshold of the highest accuracy, both kinds of pair weighing the same; of several the middle."""
    score_T = (tar_T - far_T)[: len(THRESHOLDS_T)]
    best = np.flatnonzero(score_T >= score_T.max() - 1e-12)
    return int(best[len(best) // 2])


def _tenfold(pairs: _Pairs) -> float:
    impostor_FT, genuine_FT = _counts(pairs, False), _counts(pairs, True)
    scores = []
    for fold in range(FOLDS):
        rest = [counts.sum(0) - counts[fold] for counts in (impostor_FT, genuine_FT)]
        sizes = [counts[fold, 0] for counts in (impostor_FT, genuine_FT)]
        if not all(sizes) or not all(counts[0] for counts in rest):
            continue  # few pairs
        at = _best(*(counts / counts[0] for counts in rest))
        scores.append((1 - impostor_FT[fold, at] / sizes[0] + genuine_FT[fold, at] / sizes[1]) / 2)
    if scores:
        return float(np.mean(scores))
    far_T, tar_T = _rates(pairs)  # so few that none can be left out
    at = _best(far_T, tar_T)
    return float(tar_T[at] + 1 - far_T[at]) / 2


def _rank1(x_ND: np.ndarray, person_N: np.ndarray) -> float:
    chosen_M = _chosen(person_N)
    people, first = np.unique(person_N[chosen_M], return_index=True)
    probe_M = np.delete(chosen_M, first)
    if len(probe_M) == 0:
        return float("nan")
    nearest_M = (x_ND[probe_M] @ x_ND[chosen_M[first]].T).argmax(1)
    return float((people[nearest_M] == person_N[probe_M]).mean())


def _worst(pairs: _Pairs, num: int = 8) -> list[Shot]:
    shots = []
    for same, said in ((True, "one person"), (False, "two people")):
        at_P = np.flatnonzero(pairs.same_P == same)
        order = np.argsort(pairs.similarity_P[at_P] * (1 if same else -1), kind="stable")
        shots += [
            Shot(
                int(pairs.first_P[p]),
                [("truth", said), ("similarity", f"{pairs.similarity_P[p]:.3f}")],
                beside=int(pairs.second_P[p]),
            )
            for p in at_P[order[:num]]
        ]
    return shots


def _roc(far_T: np.ndarray, tar_T: np.ndarray, threshold: float) -> bytes:
    """SVG: true against false accept rate, the latter logarithmic, for what matters is at few."""
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
