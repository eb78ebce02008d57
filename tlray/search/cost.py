"""What a group of trials will cost, before it starts: recompute the frozen part, or keep its output.

Two times are measured for every depth d on a batch of the user's pictures: P_d, seconds per picture from its
bytes to the boundary (rendering and the frozen stages), and S_d, seconds per picture of a training step after
the boundary (forward, backward, optimiser). With L trials, E epochs, N pictures and V views of each picture

    naive    = sum over d of L * E * N * (P_d + S_d)             every trial alone
    ceiling  = V * N * P_max + sum over d of L * E * N * S_d     every frozen output computed once

and the plan lies between: the trials of a group share each batch's prefix, and features of the deeper
boundaries are kept, in memory or in the feature cache, where that is quicker and there is room.
None of the three takes early stopping into account.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from tlray import runtime
from tlray.data import loader
from tlray.models.backbone import Backbone, Boundary, Features
from tlray.training.build import copy_model
from tlray.training.candidate import Candidate, autocast
from tlray.training.loop import Loop
from tlray.training.run import Run

SAMPLE = 32  # pictures in the batch that times are measured on
REPEAT, BUDGET_S = 3, 1.0  # how often work is timed; less often once it has taken so many seconds
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
IN_MEMORY, IN_CACHE = "memory", "store"  # where features are kept; these words are in trials.json


@dataclass(frozen=True)
class Depth:
    """The trials that begin at one boundary; seconds and bytes are per picture."""

    depth: int
    stage: str  # the last frozen one
    trials: int
    epochs: float  # mean over the trials
    prefix_s: float
    suffix_s: float
    read_s: float
    bytes: int
    boundary: Boundary | None  # None: at the pixels


@dataclass(frozen=True)
class CostPlan:
    """The decision for each depth, and the seconds that it leads to.

    A decision is "recompute", or where the features are kept. ``keep`` has the latter by boundary.
    """

    depths: list[Depth]
    rows: int
    views: int
    decisions: list[str]
    naive_s: float
    planned_s: float
    ceiling_s: float
    keep: dict[Boundary, str] = field(default_factory=dict)
    widening: float = 1.0  # bytes in memory (float32) for each byte in the cache

    @property
    def gain(self) -> float:
        """How many times quicker than naive."""
        return self.naive_s / self.planned_s

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = []
        for d, decision in zip(self.depths, self.decisions, strict=True):
            naive = d.trials * d.epochs * self.rows * (d.prefix_s + d.suffix_s)
            factor = {"recompute": 0.0, IN_CACHE: 1.0, IN_MEMORY: self.widening}[decision]
            kept_bytes = round(factor * d.bytes * self.rows * self.views)
            facts = {k: v for k, v in asdict(d).items() if k != "boundary"}
            rows.append({**facts, "decision": decision, "naive_s": naive, "kept_bytes": kept_bytes})
        totals = {"naive_s": self.naive_s, "planned_s": self.planned_s, "ceiling_s": self.ceiling_s}
        return {"rows": self.rows, "views": self.views, "depths": rows, **totals, "gain": self.gain}


def choose(
    depths: Sequence[Depth],
    rows: int,
    views: int,
    memory_bytes: int,
    cache_bytes: int,
    ready: Callable[[Boundary], bool] = lambda boundary: False,
    widening: float = 1.0,
) -> CostPlan:
    """The quickest plan: features up to some depth are computed with each batch, deeper ones are kept.

    ``ready``: whether the cache has the features of a boundary already. What fits is kept in the cache, where
    later searches find it, otherwise in memory, where it is ``widening`` times as large.
    ``cache_bytes``: 0 where there is no cache.
    """
    epochs = max(d.epochs for d in depths)
    suffixes = sum(d.trials * d.epochs * rows * d.suffix_s for d in depths)
    naive = sum(d.trials * d.epochs * rows * (d.prefix_s + d.suffix_s) for d in depths)
    ceiling = views * rows * max(d.prefix_s for d in depths) + suffixes
    options = []
    for cut in sorted({0, *(d.depth for d in depths)}, reverse=True):
        kept = [d for d in depths if d.boundary is not None and d.depth > cut]
        computed = [d for d in depths if d not in kept]
        free = {IN_CACHE: cache_bytes, IN_MEMORY: memory_bytes / widening}
        keep: dict[Boundary, str] = {}
        for d in sorted(kept, key=lambda d: d.bytes):
            num_bytes = d.bytes * rows * views
            place = next((place for place, free_bytes in free.items() if num_bytes <= free_bytes), None)
            if place is None or d.boundary is None:
                break
            keep[d.boundary] = place
            free[place] -= num_bytes
        if len(keep) < len(kept):
            continue  # not all of it fits
        seconds = suffixes + sum(epochs * rows * d.read_s for d in kept)
        if computed:
            seconds += epochs * rows * max(d.prefix_s for d in computed)
        missing = [d.prefix_s for d in kept if d.boundary is not None and not ready(d.boundary)]
        seconds += views * rows * max(missing, default=0.0)
        options.append((seconds, -cut, keep))
    planned, _, keep = min(options, key=lambda option: option[:2])
    decisions = [keep.get(d.boundary, "recompute") if d.boundary else "recompute" for d in depths]
    return CostPlan(list(depths), rows, views, decisions, naive, planned, ceiling, keep, widening)


def measure(loop: Loop, views: int, ready: Callable[[Boundary], bool]) -> CostPlan:
    """Time the group's depths on a batch, and `choose`. The trials' models stay as they were."""
    search, config = loop.runs[0].config.search, loop.runs[0].config
    rows = np.arange(min(SAMPLE, loop.order.num_rows, config.train.batch_size), dtype=np.int64)
    loader.make_batch(loop.source, loop.data.fingerprint, 0, rows[:1])  # opens files, which is not timed
    began = time.perf_counter()
    batch = loader.make_batch(loop.source, loop.data.fingerprint, 0, rows)
    # Meanwhile other processes render, on half of the cores.
    render_s = (time.perf_counter() - began) / len(rows) / max(1, runtime.cores() // 2)
    x_BCHW, targets = loader.to_device(batch, loop.worker.device, config.train.channels_last)
    by_boundary: dict[Boundary | None, list[Run]] = {}
    for run in loop.runs:
        by_boundary.setdefault(run.boundary, []).append(run)
    most_frozen: Any = max(loop.runs, key=lambda run: run.boundary.depth if run.boundary else 0).model.module
    most_frozen.eval()
    behind = [boundary for boundary in by_boundary if boundary is not None]
    with autocast(x_BCHW.device, config.train.precision):
        features: dict[Boundary, Features] = most_frozen.backbone.features(x_BCHW, behind)
        prefix_s = _prefix_seconds(most_frozen.backbone, x_BCHW, max((b.depth for b in behind), default=0))
    depths = []
    for boundary, runs in sorted(by_boundary.items(), key=lambda item: item[0].depth if item[0] else 0):
        inputs: Any = x_BCHW if boundary is None else features[boundary]
        num_values = 0 if boundary is None else _num_values(inputs) // len(x_BCHW)
        depth = boundary.depth if boundary else 0
        suffix_s: float | None = None
        for run in runs:
            with run.isolated():
                suffix_s = _step_seconds(run, inputs, targets)
            if suffix_s is not None:
                break
        if suffix_s is None:
            continue  # none of these trials can train
        depths.append(
            Depth(
                depth=depth,
                stage=most_frozen.backbone.stages[depth - 1] if depth else "pixels",
                trials=sum(not run.error for run in runs),
                epochs=float(np.mean([run.config.train.epochs for run in runs if not run.error])),
                prefix_s=render_s + prefix_s[depth] / len(x_BCHW),
                suffix_s=suffix_s / len(x_BCHW),
                read_s=0.0 if boundary is None else _read_seconds(inputs) / len(x_BCHW),
                bytes=num_values * BYTES[search.cache_dtype],
                boundary=boundary,
            )
        )
    if not depths and loop.runs[0].error:
        raise loop.runs[0].error
    cache_bytes = search.cache_mb * 2**20 if search.cache else 0
    memory_bytes, widening = search.memory_mb * 2**20, 4 / BYTES[search.cache_dtype]
    return choose(depths, loop.order.num_rows, views, memory_bytes, cache_bytes, ready, widening)


def _step_seconds(run: Run, inputs: Any, targets: dict[str, Any]) -> float:
    """Seconds of a training step on a batch, measured with a copy of the run's model."""
    device = run.worker.device
    config = run.config.override({"train.compile": False})  # compiling would take longer than all the steps
    candidate = Candidate(copy_model(run.model, config), config, run.steps_per_epoch, device)
    candidate.train_mode()
    return _seconds(partial(candidate.step, inputs, targets, 0, 1.0), device)


@torch.no_grad()
def _prefix_seconds(backbone: Backbone, x_BCHW: torch.Tensor, depth: int) -> list[float]:
    """Seconds of the first 0, 1, ... ``depth`` stages on a batch: the least of a few runs."""
    stages = list(backbone.prefix(depth).stages)
    least = [math.inf] * depth
    began = time.perf_counter()
    for _ in range(REPEAT):
        x = x_BCHW
        for i, stage in enumerate(stages):
            seconds, x = _timed(partial(stage, x), x.device)
            least[i] = min(least[i], seconds)
        if time.perf_counter() - began > BUDGET_S:
            break
    return [0.0, *itertools.accumulate(least)]


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The least seconds of a few runs, fewer where they are long; the first one warms up."""
    times: list[float] = []
    while len(times) < 2 or (len(times) <= REPEAT and sum(times) < BUDGET_S):
        times.append(_timed(work, device)[0])
    return min(times)


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of some work, and its result."""
    began = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


def _tensors(features: Features) -> list[torch.Tensor]:
    return [*features.maps.values(), *([features.pooled] if features.pooled is not None else [])]


def _num_values(features: Features) -> int:
    return sum(x.numel() for x in _tensors(features))


def _read_seconds(features: Features) -> float:
    """Seconds of reading a batch of features from memory, rows in random order, as float32."""
    kept = [x.half().cpu().numpy() for x in _tensors(features)]
    rows = np.random.default_rng(0).permutation(len(kept[0]))
    began = time.perf_counter()
    for values in kept:
        values[rows].astype(np.float32)
    return time.perf_counter() - began


def columns(plan: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A plan as headings and rows for people, with the measured times beside the predicted ones."""
    headings = ["depth", "after", "trials", "prefix ms", "step ms", "alone s", "kept MB", "decision"]
    measured = any("measured_s" in d for d in plan["depths"])
    rows = []
    for d in plan["depths"]:
        row = [
            str(d["depth"]), d["stage"], str(d["trials"]), f"{1e3 * d['prefix_s']:.2f}",
            f"{1e3 * d['suffix_s']:.2f}", f"{d['naive_s']:.1f}", f"{d['kept_bytes'] / 2**20:.1f}",
            d["decision"],
        ]  # fmt: skip
        if measured:
            pictures = d.get("measured_pictures", 0)
            row += [f"{pictures * d['suffix_s']:.1f}", f"{d.get('measured_s', 0.0):.1f}"]
        rows.append(row)
    return [*headings, *(["steps s, predicted", "measured"] if measured else [])], rows
