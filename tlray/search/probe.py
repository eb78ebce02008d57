"""An exact linear probe of frozen features: the baseline that a search of a classifier reports first.

Features of the training split, without augmentation, are computed in one pass: at every stage (the mean over
height and width), and pooled, as the head gets them. A logistic regression is fitted to its optimum on each
of them, and on all together (Head2Toe, arXiv 2201.03529). A held-out fifth of the training split decides how
strongly it is regularised, and which of the probes is reported. The validation split only measures.

With the standardising folded into it, the probe of the pooled features is a head like any other. It is saved
as a bundle, which may win the search, and as a head that trials can begin with (LP-FT, arXiv 2202.10054).
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

ROWS = 20_000  # of the training split at most, drawn from each class
STRENGTHS = tuple(10.0 ** (1 - k / 2) for k in range(11))  # of L2, beside the mean loss: 10 to 1e-4
VALUES = 2**27  # in all features together at most: 512 MB
ITERATIONS = 100
# With more multiplications per step several threads are used. Below, two threads took up to 20 times as long
# as one on a busy machine: there are many small products, and each waits for both threads.
LARGE = 2**27
SMALL = 50  # with fewer training pictures per class trials begin with the probe's head
TOGETHER = "all stages pooled together"


class Linear(NamedTuple):
    """Logits are ``x_ND @ weight_CD.T + bias_C``."""

    weight_CD: Tensor
    bias_C: Tensor

    def __call__(self, x_ND: Tensor) -> Tensor:
        return x_ND @ self.weight_CD.T + self.bias_C


@dataclass(frozen=True)
class Labels:
    """The classes of each picture, as the loss needs them.

    ``one_each``: exactly one class per picture (softmax); otherwise any number of classes (sigmoid).
    ``weight_C``: weights of classes in the loss (softmax), or of positive labels (sigmoid); None: all 1.
    """

    shown_NC: Tensor  # float32, 0 or 1
    one_each: bool
    weight_C: Tensor | None = None

    def __getitem__(self, rows: Any) -> Labels:
        return Labels(self.shown_NC[rows], self.one_each, self.weight_C)

    def loss(self, logits_NC: Tensor) -> Tensor:
        """The mean over pictures; with sigmoid the sum over classes."""
        if self.one_each:
            return F.cross_entropy(logits_NC, self.shown_NC.argmax(1), weight=self.weight_C)
        loss_NC = F.binary_cross_entropy_with_logits(
            logits_NC, self.shown_NC, pos_weight=self.weight_C, reduction="none"
        )
        return loss_NC.sum(1).mean()


def fit(x_ND: Tensor, labels: Labels, l2: float, start: Linear | None = None) -> Linear:
    """The logistic regression of least loss + l2 / 2 * |weights|^2, by L-BFGS; the bias has no penalty."""
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
    """A fitted probe, for features that are not standardised."""

    linear: Linear
    l2: float
    loss: float  # of the held-out rows, NaN where there are none


def probe(x_ND: Tensor, labels: Labels, held_N: Tensor) -> Probe:
    """Fit on all rows, with the strength of L2 at which a fit on the others predicts ``held_N`` (bool) best.

    Strengths are tried from strong to weak, each fit starting from the one before, until the loss of the
    held-out rows rises.
    """
    mean_D = x_ND.mean(0, dtype=torch.float64)
    z_ND = x_ND - mean_D.to(x_ND.dtype)
    std_D = z_ND.square().mean(0, dtype=torch.float64).sqrt()
    std_D = torch.where(std_D > 1e-6 * mean_D.abs(), std_D, torch.inf)  # a constant feature has no effect
    z_ND /= std_D.to(x_ND.dtype)
    l2, least, best = STRENGTHS[len(STRENGTHS) // 2], float("nan"), None
    if held_N.any():
        z, y, z_held, y_held = z_ND[~held_N], labels[~held_N], z_ND[held_N], labels[held_N]
        fitted: Linear | None = None
        for strength in STRENGTHS:
            fitted = fit(z, y, strength, fitted)
            loss = float(y_held.loss(fitted(z_held)))
            if best is not None and not loss < least:
                break
            l2, least, best = strength, loss, fitted
    whole = fit(z_ND, labels, l2, best)
    # Standardising, (x - mean) / std, is folded into weights and bias.
    weight_CD = whole.weight_CD.double() / std_D
    bias_C = whole.bias_C.double() - weight_CD @ mean_D
    return Probe(Linear(weight_CD.to(x_ND.dtype), bias_C.to(x_ND.dtype)), l2, least)


def held_out(shown_NC: np.ndarray, seed: int) -> np.ndarray:
    """A fifth of the rows of each class (bool), but one of two to four rows, and none of a single row."""
    rng, held_N = np.random.default_rng(seed), np.zeros(len(shown_NC), bool)
    for rows in _by_class(shown_NC):
        number = max(1, len(rows) // 5) if len(rows) > 1 else 0
        held_N[rng.choice(rows, number, replace=False)] = True
    return held_N


def drawn(shown_NC: np.ndarray, most: int, seed: int) -> np.ndarray:
    """About ``most`` rows at most, in order: the same share of each class, but at least one row."""
    if len(shown_NC) <= most:
        return np.arange(len(shown_NC))
    rng, share = np.random.default_rng(seed), most / len(shown_NC)
    parts = [rng.choice(rows, max(1, int(share * len(rows))), replace=False) for rows in _by_class(shown_NC)]
    return np.sort(np.concatenate(parts))


def _by_class(shown_NC: np.ndarray) -> list[np.ndarray]:
    """Rows of each class. A row of several classes counts for the rarest; rows of none are a class, too."""
    frequency_C = np.append(shown_NC.sum(0), len(shown_NC) + 1)
    with_none_NC = np.concatenate([shown_NC, np.ones((len(shown_NC), 1), bool)], 1)
    class_N = np.where(with_none_NC, frequency_C, len(shown_NC) + 2).argmin(1)
    return [np.flatnonzero(class_N == c) for c in np.unique(class_N)]


def head_of(model: Model) -> nn.Linear | None:
    """The head, where it is a single linear layer from pooled features to classes of pictures; or None."""
    kinds, head = set(model.task.columns.values()), getattr(model.module, "head", None)
    plain = isinstance(head, nn.Linear) and head.in_features == model.module.backbone.num_features  # type: ignore[union-attr]
    alone = {n for n in model.module.state_dict() if is_head(n)} == {"head.weight", "head.bias"}
    reads = getattr(model.module, "reads", None)
    return head if kinds <= {"class", "classes"} and plain and alone and reads is None else None


def start(config: Config, probes: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> str | None:
    """File of the head that a trial of these parameters begins with; None: a new head.

    With few pictures (see `SMALL`) it is the probe's, which distorts the pretrained features less. With many
    pictures that does not help, and training from a new head gets further.
    """
    if config.model.head is not None or "model.head" in params:
        return None
    row = _probe_for(probes, params)
    if row is None:
        return None
    setting = config.search.start_with_probe
    with_probe = row["pictures_a_class"] < SMALL if setting == "auto" else setting
    return _head(config, row) if with_probe else None


def head_for(config: Config, probes: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> str | None:
    """File of the probe's head for the backbone of a trial of these parameters, if there is one."""
    row = _probe_for(probes, params)
    return None if row is None else _head(config, row)


def _probe_for(
    probes: Sequence[Mapping[str, Any]], params: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """The row of the probe with the same backbone, weights and input as a trial of these parameters."""
    same = {k: v for k, v in params.items() if k.startswith(("model.backbone", "model.weights", "input."))}
    alike = ({k: v for k, v in row["params"].items() if k != "model.freeze"} == same for row in probes)
    return next((row for row, fits in zip(probes, alike, strict=True) if fits), None)


def _head(config: Config, row: Mapping[str, Any]) -> str:
    return storage.join(trial_folder(config.run_uri, row["id"]), HEAD)


def measure(config: Config, id_: str, params: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """Probe the frozen backbone of these parameters; the model must have a `head_of`.

    Returns a row of `TrialLog.probes`. Writes the probe of the pooled features into RUN/trials/ID, as a
    bundle and as a head.
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
    metrics = _evaluate(model, config, probes, device)
    values = {place: m.compute() for place, m in metrics.items()}
    own_metrics, seconds = values[POOLED], time.perf_counter() - began
    model = replace(model, task=task.with_thresholds(metrics[POOLED]))
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
                "place": place, "dimensions": x_by_place[place].shape[1], "l2": fitted.l2,
                "held_out_loss": finite(fitted.loss), "value": finite(values[place][task.goal.name]),
            }
            for place, fitted in probes.items()
        ],
    }  # fmt: skip


def _shown(model: Model, rows: Sequence[Row]) -> tuple[np.ndarray, bool]:
    """The classes of each row, (N, C) bool, and whether this kind of label has exactly one per row."""
    column, kind = next(iter(model.task.columns.items()))
    shown_NC = np.zeros((len(rows), len(model.labels)), bool)
    for i, row in enumerate(rows):
        shown_NC[i, row[column]] = True
    return shown_NC, kind == "class"


def _features(
    model: Model, config: Config, split: str, rows: np.ndarray, device: torch.device
) -> tuple[dict[str, Tensor], list[Geometry]]:
    """Features (N, D) of a split's rows: at every stage, pooled, and all together.

    The last stage is left out of "all together": the pooled features are computed from its map.
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
    x_by_place = {stage: torch.cat(x) for stage, x in parts.items()}
    together = [x_ND for stage, x_ND in x_by_place.items() if stage != backbone.stages[-1]]
    return {**x_by_place, TOGETHER: torch.cat(together, dim=1)}, geometries


def _evaluate(
    model: Model, config: Config, probes: Mapping[str, Probe], device: torch.device
) -> dict[str, Metrics]:
    """Metrics of each probe on the validation split."""
    split, task = config.data.validation_split, model.task
    rows = Dataset.open(config.data.uri).read(split, list(task.columns)).to_pylist()
    everything = np.arange(len(rows), dtype=np.int64)
    x_by_place, geometries = _features(model, config, split, everything, device)
    metrics = {}
    for place, fitted in probes.items():
        metrics[place] = task.metrics(model.labels)
        for start in range(0, len(rows), BATCH):
            at = slice(start, start + BATCH)
            x_BD = x_by_place[place][at]
            if place == POOLED:  # in the way that the bundle predicts
                predictions = model.predict_rendered(Features({}, x_BD, torch.Size()), geometries[at], device)  # type: ignore[arg-type]
            else:
                predictions = task.decode(fitted.linear(x_BD), geometries[at], model.labels)
            metrics[place].update(predictions, rows[at])
    return metrics
