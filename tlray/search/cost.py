"""What a group of trials will cost, before it starts: recompute the frozen part, or keep its output.

Two figures are measured for every depth d on a batch of the user's pictures: P_d, seconds a picture from its
bytes to the boundary (rendering and the frozen stages), and S_d, seconds a picture of a training step behind
it (forward, backward, the optimiser). With L trials, E epochs, N pictures and V views of each picture

    naive    = sum over d of L * E * N * (P_d + S_d)      every trial for itself
    ceiling  = V * N * P_max + sum over d of L * E * N * S_d     every frozen output computed once

and the plan lies between: trials of a group share each batch's prefix; boundaries from some depth on are
kept (in memory, or in the store where later searches find them) if that is quicker and there is room.
Early stopping is left out of all three.
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

SAMPLE = 32  # pictures that are measured with
REPEAT, BUDGET_S = 3, 1.0  # runs of what is timed; fewer where they take longer
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Depth:
    """What is known of the trials that begin at one boundary; seconds and bytes a picture."""

    depth: int
    stage: str  # after which it begins
    trials: int
    epochs: float  # of a trial, mean
    prefix_s: float
    suffix_s: float
    read_s: float
    bytes: int
    boundary: Boundary | None  # None: at the pixels


@dataclass(frozen=True)
class CostPlan:
    """Depths, what is done at each (recompute, memory, store), and the seconds that follow."""

    depths: list[Depth]
    rows: int
    views: int
    decisions: list[str]
    naive_s: float
    planned_s: float
    ceiling_s: float
    keep: dict[Boundary, str] = field(default_factory=dict)
    widening: float = 1.0  # bytes in memory (float32) for each in the store

    @property
    def gain(self) -> float:
        """How many times quicker than naive."""
        return self.naive_s / self.planned_s

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = []
        for d, decision in zip(self.depths, self.decisions, strict=True):
            naive = d.trials * d.epochs * self.rows * (d.prefix_s + d.suffix_s)
            factor = {"recompute": 0.0, "store": 1.0, "memory": self.widening}[decision]
            kept = round(factor * d.bytes * self.rows * self.views)
            shown = {k: v for k, v in asdict(d).items() if k != "boundary"}
            rows.append({**shown, "decision": decision, "naive_s": naive, "kept_bytes": kept})
        totals = {"naive_s": self.naive_s, "planned_s": self.planned_s, "ceiling_s": self.ceiling_s}
        return {"rows": self.rows, "views": self.views, "depths": rows, **totals, "gain": self.gain}


def choose(
    depths: Sequence[Depth],
    rows: int,
    views: int,
    memory_bytes: int,
    store_bytes: int,
    ready: Callable[[Boundary], bool] = lambda boundary: False,
    widening: float = 1.0,
) -> CostPlan:
    """The quickest of all cuts: depths up to the cut are computed with each batch, deeper ones kept.

    ``ready``: whether the store has a boundary already. What fits goes to the store, where it is found again,
    else to memory, where it is ``widening`` times as large; store_bytes = 0: there is no store.
    """
    epochs = max(d.epochs for d in depths)
    suffixes = sum(d.trials * d.epochs * rows * d.suffix_s for d in depths)
    naive = sum(d.trials * d.epochs * rows * (d.prefix_s + d.suffix_s) for d in depths)
    ceiling = views * rows * max(d.prefix_s for d in depths) + suffixes
    options = []
    for cut in sorted({0, *(d.depth for d in depths)}, reverse=True):
        kept = [d for d in depths if d.boundary is not None and d.depth > cut]
        computed = [d for d in depths if d not in kept]
        room = {"store": store_bytes, "memory": memory_bytes / widening}
        where: dict[Boundary, str] = {}
        for d in sorted(kept, key=lambda d: d.bytes):
            need = d.bytes * rows * views
            place = next((name for name, left in room.items() if need <= left), None)
            if place is None or d.boundary is None:
                break
            where[d.boundary] = place
            room[place] -= need
        if len(where) < len(kept):
            continue  # no room
        seconds = suffixes + sum(epochs * rows * d.read_s for d in kept)
        if computed:
            seconds += epochs * rows * max(d.prefix_s for d in computed)
        missing = [d.prefix_s for d in kept if d.boundary is not None and not ready(d.boundary)]
        seconds += views * rows * max(missing, default=0.0)
        options.append((seconds, -cut, where))
    planned, _, where = min(options, key=lambda option: option[:2])
    decisions = [where.get(d.boundary, "recompute") if d.boundary else "recompute" for d in depths]
    return CostPlan(list(depths), rows, views, decisions, naive, planned, ceiling, where, widening)


def measure(loop: Loop, views: int, ready: Callable[[Boundary], bool]) -> CostPlan:
    """Time the group's depths on a batch, and choose; see `choose`. Leaves the candidates as they were."""
    search, config = loop.runs[0].config.search, loop.runs[0].config
    rows = np.arange(min(SAMPLE, loop.order.num_rows, config.train.batch_size), dtype=np.int64)
    loader.make_batch(loop.source, loop.data.fingerprint, 0, rows[:1])  # opens files
    began = time.perf_counter()
    batch = loader.make_batch(loop.source, loop.data.fingerprint, 0, rows)
    # Rendering goes on in other processes, half of the cores', while this one computes.
    render_s = (time.perf_counter() - began) / len(rows) / max(1, runtime.cores() // 2)
    x_BCHW, targets = loader.to_device(batch, loop.worker.device, config.train.channels_last)
    by_boundary: dict[Boundary | None, list[Run]] = {}
    for run in loop.runs:
        by_boundary.setdefault(run.boundary, []).append(run)
    lead: Any = max(loop.runs, key=lambda run: run.boundary.depth if run.boundary else 0).model.module
    lead.eval()
    behind = [boundary for boundary in by_boundary if boundary is not None]
    with autocast(x_BCHW.device, config.train.precision):
        features: dict[Boundary, Features] = lead.backbone.features(x_BCHW, behind)
        prefix_s = _prefix_seconds(lead.backbone, x_BCHW, max((b.depth for b in behind), default=0))
    depths = []
    for boundary, runs in sorted(by_boundary.items(), key=lambda item: item[0].depth if item[0] else 0):
        given: Any = x_BCHW if boundary is None else features[boundary]
        num_values = 0 if boundary is None else _values(given) // len(x_BCHW)
        depth = boundary.depth if boundary else 0
        suffix_s: float | None = None
        for run in runs:
            with run.isolated():
                suffix_s = _step_seconds(run, given, targets)
            if suffix_s is not None:
                break
        if suffix_s is None:
            continue  # none of them can train
        depths.append(
            Depth(
                depth=depth,
                stage=lead.backbone.stages[depth - 1] if depth else "pixels",
                trials=sum(not run.error for run in runs),
                epochs=float(np.mean([run.config.train.epochs for run in runs if not run.error])),
                prefix_s=render_s + prefix_s[depth] / len(x_BCHW),
                suffix_s=suffix_s / len(x_BCHW),
                read_s=0.0 if boundary is None else _read_seconds(given) / len(x_BCHW),
                bytes=num_values * BYTES[search.cache_dtype],
                boundary=boundary,
            )
        )
    if not depths and loop.runs[0].error:
        raise loop.runs[0].error
    store = search.cache_mb * 2**20 if search.cache else 0
    memory, widening = search.memory_mb * 2**20, 4 / BYTES[search.cache_dtype]
    return choose(depths, loop.order.num_rows, views, memory, store, ready, widening)


def _step_seconds(run: Run, given: Any, targets: dict[str, Any]) -> float:
    """Of a training step on a batch: of a candidate like the run's, which leaves no trace."""
    device = run.worker.device
    config = run.config.override({"train.compile": False})  # it would take longer than what it saves here
    made = Candidate(copy_model(run.model, config), config, run.steps_per_epoch, device)
    made.train_mode()
    return _seconds(partial(made.step, given, targets, 0, 1.0), device)


@torch.no_grad()
def _prefix_seconds(backbone: Backbone, x_BCHW: torch.Tensor, depth: int) -> list[float]:
    """Seconds of the first 0, 1, ... ``depth`` stages, once warm, on a batch: the least of a few runs."""
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
    """The least of a few runs, fewer where they are long; the first one warms up."""
    found: list[float] = []
    while len(found) < 2 or (len(found) <= REPEAT and sum(found) < BUDGET_S):
        found.append(_timed(work, device)[0])
    return min(found)


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of a piece of work, and what came of it."""
    began = time.perf_counter()
    done = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, done


def _values(features: Features) -> int:
    tensors = [*features.maps.values(), *([features.pooled] if features.pooled is not None else [])]
    return sum(x.numel() for x in tensors)


def _read_seconds(features: Features) -> float:
    """Of copying a batch of features out of memory, rows in any order, and back to float32."""
    tensors = [*features.maps.values(), *([features.pooled] if features.pooled is not None else [])]
    kept = [x.half().cpu().numpy() for x in tensors]
    rows = np.random.default_rng(0).permutation(len(kept[0]))
    began = time.perf_counter()
    for values in kept:
        values[rows].astype(np.float32)
    return time.perf_counter() - began


def columns(plan: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A plan as a table for people: headings and rows; what was measured beside what was predicted."""
    heads = ["depth", "after", "trials", "prefix ms", "step ms", "alone s", "kept MB", "decision"]
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
    return [*heads, *(["steps s, predicted", "measured"] if measured else [])], rows
