"""An exact linear probe of frozen features: the baseline that every search of a classifier is told first.

Features of the training split, without augmentation, are taken in one pass at every stage (mean over the
places of its map) and pooled, as the head sees them. Over each of them, and over all together (Head2Toe,
arXiv 2201.03529), a logistic regression is fitted to its optimum; a held-out fifth of the training split
chooses how strongly it is regularised, and which features the baseline is told of. Validation only measures.

The probe of the pooled features is a head like any other, once the standardising is folded into it: it is
left as a bundle, which may win the search, and as a start for `model.head` (LP-FT, arXiv 2202.10054).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from tlray import storage
from tlray.bundle import bundle
from tlray.bundle.bundle import Model
from tlray.config import Config
from tlray.data import loader
from tlray.data.dataset import Dataset
from tlray.data.image import Geometry
from tlray.data.schema import Row
from tlray.models import eager
from tlray.models.backbone import POOLED, Features
from tlray.search.extra_bundle import leave
from tlray.search.transferability import BATCH, features_by_stage
from tlray.storage.json_values import finite
from tlray.tasks.base import TIE, Metrics
from tlray.training.build import initial_model, is_head
from tlray.training.rundir import HEAD, trial_folder

ROWS = 20_000  # of the training split at most, drawn by class
STRENGTHS = tuple(10.0 ** (1 - k / 2) for k in range(11))  # of L2, beside the mean loss: 10 to 1e-4
VALUES = 2**27  # of all features of the training split together at most: 512 MB
ITERATIONS = 100
# Multiplications of a step, above which several threads are quicker: below, two took up to 20 times as long
# as one on a busy machine, since each of many small products waits for both.
LARGE = 2**27
SMALL = 50  # training pictures a class below which trials begin with the probe's head
TOGETHER = "all stages pooled together"


class Linear(NamedTuple):
    """Logits are ``x_ND @ weight_CD.T + bias_C``."""

    weight_CD: Tensor
    bias_C: Tensor

    def __call__(self, x_ND: Tensor) -> Tensor:
        return x_ND @ self.weight_CD.T + self.bias_C


@dataclass(frozen=True)
class Labels:
    """Which classes each picture shows, as the loss takes it.

    ``one_each``: exactly one of them a picture (softmax); else each class for itself (sigmoid).
    ``weight_C``: what a class weighs in the loss (of one), or where it occurs (of several); None: all 1.
    """

    shown_NC: Tensor  # float32, 0 or 1
    one_each: bool
    weight_C: Tensor | None = None

    def __getitem__(self, rows: Any) -> Labels:
        return Labels(self.shown_NC[rows], self.one_each, self.weight_C)

    def loss(self, logits_NC: Tensor) -> Tensor:
        """Mean over pictures; of several classes each adds its own."""
        if self.one_each:
            return F.cross_entropy(logits_NC, self.shown_NC.argmax(1), weight=self.weight_C)
        loss_NC = F.binary_cross_entropy_with_logits(
            logits_NC, self.shown_NC, pos_weight=self.weight_C, reduction="none"
        )
        return loss_NC.sum(1).mean()


def fit(x_ND: Tensor, labels: Labels, l2: float, start: Linear | None = None) -> Linear:
    """The logistic regression of least loss + l2 / 2 * |weights|^2, by L-BFGS; the bias is not held down."""
    if start is None:
        num_classes = labels.shown_NC.shape[1]
        start = Linear(x_ND.new_zeros(num_classes, x_ND.shape[1]), x_ND.new_zeros(num_classes))
    weight_CD, bias_C = (nn.Parameter(x.clone()) for x in start)
    optimizer = eager.optimizer(torch.optim.LBFGS)(
        [weight_CD, bias_C], max_iter=ITERATIONS, line_search_fn="strong_wolfe",
        tolerance_grad=1e-5, tolerance_change=1e-7,
    )  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = labels.loss(x_ND @ weight_CD.T + bias_C) + l2 / 2 * weight_CD.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    return Linear(weight_CD.detach(), bias_C.detach())


class Probe(NamedTuple):
    """A fitted probe, for features as they come: nothing is left to standardise."""

    linear: Linear
    l2: float
    loss: float  # of the held-out rows, NaN where there are none


def probe(x_ND: Tensor, labels: Labels, held_N: Tensor) -> Probe:
    """Fit on all rows, with the strength at which the others than ``held_N`` (bool) foretell those best.

    From strong to weak, each fit beginning where the one before ended, until the loss of the held-out rises.
    """
    mean_D = x_ND.mean(0, dtype=torch.float64)
    z_ND = x_ND - mean_D.to(x_ND.dtype)
    std_D = z_ND.square().mean(0, dtype=torch.float64).sqrt()
    std_D = torch.where(std_D > 1e-6 * mean_D.abs(), std_D, torch.inf)  # a constant one says nothing
    z_ND /= std_D.to(x_ND.dtype)
    l2, least, best = STRENGTHS[len(STRENGTHS) // 2], float("nan"), None
    if held_N.any():
        z, y, z_held, y_held = z_ND[~held_N], labels[~held_N], z_ND[held_N], labels[held_N]
        found: Linear | None = None
        for strength in STRENGTHS:
            found = fit(z, y, strength, found)
            loss = float(y_held.loss(found(z_held)))
            if best is not None and not loss < least:
                break
            l2, least, best = strength, loss, found
    whole = fit(z_ND, labels, l2, best)
    # (x - mean) / std under the weights is x under weights / std.
    weight_CD = whole.weight_CD.double() / std_D
    bias_C = whole.bias_C.double() - weight_CD @ mean_D
    return Probe(Linear(weight_CD.to(x_ND.dtype), bias_C.to(x_ND.dtype)), l2, least)


def held_out(shown_NC: np.ndarray, seed: int) -> np.ndarray:
    """A fifth of each class's rows (bool), one where it has fewer than five, none where it has only one."""
    rng, held_N = np.random.default_rng(seed), np.zeros(len(shown_NC), bool)
    for rows in _by_class(shown_NC):
        number = max(1, len(rows) // 5) if len(rows) > 1 else 0
        held_N[rng.choice(rows, number, replace=False)] = True
    return held_N


def drawn(shown_NC: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most about ``most`` rows, in order: of each class its share, and one at least."""
    if len(shown_NC) <= most:
        return np.arange(len(shown_NC))
    rng, share = np.random.default_rng(seed), most / len(shown_NC)
    parts = [rng.choice(rows, max(1, int(share * len(rows))), replace=False) for rows in _by_class(shown_NC)]
    return np.sort(np.concatenate(parts))


def _by_class(shown_NC: np.ndarray) -> list[np.ndarray]:
    """Rows of each class; of several classes a row counts to the rarest of its own, and none is a class."""
    frequency_C = np.append(shown_NC.sum(0), len(shown_NC) + 1)
    with_none_NC = np.concatenate([shown_NC, np.ones((len(shown_NC), 1), bool)], 1)
    class_N = np.where(with_none_NC, frequency_C, len(shown_NC) + 2).argmin(1)
    return [np.flatnonzero(class_N == c) for c in np.unique(class_N)]


def head_of(model: Model) -> nn.Linear | None:
    """The head, where it is one linear layer over the pooled features that tells classes of pictures."""
    kinds, head = set(model.task.columns.values()), getattr(model.module, "head", None)
    plain = isinstance(head, nn.Linear) and head.in_features == model.module.backbone.num_features  # type: ignore[union-attr]
    alone = {n for n in model.module.state_dict() if is_head(n)} == {"head.weight", "head.bias"}
    reads = getattr(model.module, "reads", None)
    return head if kinds <= {"class", "classes"} and plain and alone and reads is None else None


def start(config: Config, probes: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> str | None:
    """The head that a trial of these settings begins with; None: the one that its task makes.

    Where there are few pictures the probe's (see `SMALL`): it distorts the pretrained features less. Where
    there are many that does not help, and the model comes further from a head that knows nothing.
    """
    if config.model.head is not None or "model.head" in params:
        return None
    found = _beside(probes, params)
    if found is None:
        return None
    asked = config.search.start_with_probe
    begins = found["pictures_a_class"] < SMALL if asked == "auto" else asked
    return _head(config, found) if begins else None


def head_for(config: Config, probes: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> str | None:
    """The probe's head over the backbone that a trial of these settings begins with, if there is one."""
    found = _beside(probes, params)
    return None if found is None else _head(config, found)


def _beside(probes: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> Mapping[str, Any] | None:
    same = {k: v for k, v in params.items() if k.startswith(("model.backbone", "model.weights", "input."))}
    alike = ({k: v for k, v in one["params"].items() if k != "model.freeze"} == same for one in probes)
    return next((one for one, fits in zip(probes, alike, strict=True) if fits), None)


def _head(config: Config, found: Mapping[str, Any]) -> str:
    return storage.join(trial_folder(config.run_uri, found["id"]), HEAD)


def measure(config: Config, id_: str, params: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """Probe the frozen backbone of these settings: a row of `TrialLog.probes`, for models with a `head_of`.

    Leaves the probe of the pooled features in RUN/trials/ID, as a bundle and as a head.
    Raises DataError for a picture that cannot be read.
    """
    began = time.perf_counter()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    own = {"name": id_, "runs": f"{config.run_uri}/trials", "model.head": None, "model.freeze": "all"}
    config = config.override({**params, **own}, f"trial {id_}")
    split, data = config.data.train_split, Dataset.open(config.data.uri)
    model = initial_model(config, data)
    task = model.task
    module: Any = model.module.to(device).eval()

    shown_NC, one_each = _shown(model, data.read(split, list(task.columns)).to_pylist())
    dimensions = sum(module.backbone.channels) + module.backbone.num_features
    rows = drawn(shown_NC, min(ROWS, VALUES // dimensions), config.seed)
    x_by_place, _ = _features(model, config, split, rows, device)
    weight_C = getattr(module, "class_weights", getattr(module, "pos_weight", None))
    labels = Labels(torch.from_numpy(shown_NC[rows]).float().to(device), one_each, weight_C)
    held_N = torch.from_numpy(held_out(shown_NC[rows], config.seed)).to(device)
    probes = {}
    for place, x_ND in x_by_place.items():
        torch.set_num_threads(threads if x_ND.numel() * len(model.labels) > LARGE else 1)
        probes[place] = probe(x_ND, labels, held_N)
    torch.set_num_threads(threads)

    module.head.weight.data.copy_(probes[POOLED].linear.weight_CD)
    module.head.bias.data.copy_(probes[POOLED].linear.bias_C)
    judges = _judged(model, config, probes, device)
    values = {place: judge.compute() for place, judge in judges.items()}
    own_metrics, seconds = values[POOLED], time.perf_counter() - began
    model = replace(model, task=task.with_thresholds(judges[POOLED]))
    uri = leave(model, config, own_metrics, ("probe", seconds))
    head = {name: value for name, value in bundle.weights(module).items() if is_head(name)}
    storage.write_bytes(storage.join(config.run_uri, HEAD), save(head))
    return {
        "id": id_, "params": dict(params), "status": "finished", "epochs": 0, "curve": [],
        "best": finite(own_metrics[task.goal.name]), "tie": own_metrics.get(TIE),
        "seconds": seconds, "bundle": uri,
        "pictures": len(rows), "pictures_a_class": len(shown_NC) / len(model.labels),
        "told": min(probes, key=lambda place: (finite(probes[place].loss) or 0.0, place != POOLED)),
        "places": [
            {
                "place": place, "dimensions": x_by_place[place].shape[1], "l2": one.l2,
                "held_out_loss": finite(one.loss), "value": finite(values[place][task.goal.name]),
            }
            for place, one in probes.items()
        ],
    }  # fmt: skip


def _shown(model: Model, rows: Sequence[Row]) -> tuple[np.ndarray, bool]:
    """Which classes each row shows, (N, C) bool, and whether that is one by the kind of label."""
    column, kind = next(iter(model.task.columns.items()))
    shown_NC = np.zeros((len(rows), len(model.labels)), bool)
    for i, row in enumerate(rows):
        shown_NC[i, row[column]] = True
    return shown_NC, kind == "class"


def _features(
    model: Model, config: Config, split: str, rows: np.ndarray, device: torch.device
) -> tuple[dict[str, Tensor], list[Geometry]]:
    """Features (N, D) of a split's rows at every stage, pooled, and together.

    What is pooled comes from the last stage's map, which is therefore left out of those together.
    """
    backbone: Any = model.module.backbone
    source = loader.Source(
        config.data.uri, split, model.task, tuple(model.labels), model.preprocess,
        cache_mb=config.data.cache_mb,
    )  # fmt: skip
    parts: dict[str, list[Tensor]] = {}
    geometries: list[Geometry] = []
    for batch in loader.pipeline(source, [(0, rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)]):
        for stage, x_BD in features_by_stage(backbone, batch.x_BCHW.to(device)).items():
            parts.setdefault(stage, []).append(x_BD.float())
        geometries += batch.geometries
    found = {stage: torch.cat(x) for stage, x in parts.items()}
    together = [x_ND for stage, x_ND in found.items() if stage != backbone.stages[-1]]
    return {**found, TOGETHER: torch.cat(together, dim=1)}, geometries


def _judged(
    model: Model, config: Config, probes: Mapping[str, Probe], device: torch.device
) -> dict[str, Metrics]:
    """What each probe says of the validation split, as metrics."""
    split, task = config.data.validation_split, model.task
    rows = Dataset.open(config.data.uri).read(split, list(task.columns)).to_pylist()
    everything = np.arange(len(rows), dtype=np.int64)
    x_by_place, geometries = _features(model, config, split, everything, device)
    found = {}
    for place, one in probes.items():
        found[place] = task.metrics(model.labels)
        for start in range(0, len(rows), BATCH):
            at = slice(start, start + BATCH)
            x_BD = x_by_place[place][at]
            if place == POOLED:  # as the bundle will predict
                said = model.predict_rendered(Features({}, x_BD, torch.Size()), geometries[at], device)  # type: ignore[arg-type]
            else:
                said = task.decode(one.linear(x_BD), geometries[at], model.labels)
            found[place].update(said, rows[at])
    return found
