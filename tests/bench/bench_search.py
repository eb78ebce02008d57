"""What a search gains by computing the frozen part once, beside Ray Tune with one trial per configuration.

    python tests/bench/bench_search.py INGESTED [--repeat 5] [--arm NAME ...] [--json]

Arms, on the data set INGESTED (what `tlray ingest` made of ../shared/data/clothing):
    last_head    ResNet-50, random weights (for timing alone): {last stage, head} x 3 rates x 5 epochs
    stages_head  ResNet-50: {stage 2 .. head} x 3 rates x 5 epochs
    head_only    ResNet-50: head x 8 rates x 10 epochs
    builtin      the built-in backbone: {0.6, head} x 3 rates x 5 epochs
Each grid is searched by tlray and by the peer in turn: same seed, data, threads, order of batches, no early
stopping, one plain view of each picture (``augment.views: 1``), nothing left over from an earlier search.
The peer is Ray Tune as its users write it: one trial per configuration, actors reused, no gradient through
what is frozen, no checkpoints; its batches come from the same pipeline. ``--template`` adds the peer without
reused actors, as Ray's own template runs it. Times are of the search alone, Ray being up. Both must come to
the same accuracy in every trial. The last line is JSON with --json.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tlray import config, loop, runtime, search, storage
from tlray.config import Config
from tlray.search import driver, trial

RATES = [3e-4, 1e-3, 3e-3]
RESNET = {"model": {"backbone": "resnet50", "weights": "none"}, "input": {"size": 64}}
BUILTIN = {"model": {"backbone": "resnet10t-nano", "weights": "builtin"}, "input": {"size": 96}}
ARMS: dict[str, dict[str, Any]] = {
    "last_head": {**RESNET, "epochs": 5, "freeze": [4, "all"], "rates": RATES, "goal": 3.5},
    "stages_head": {**RESNET, "epochs": 5, "freeze": [2, 3, 4, "all"], "rates": RATES, "goal": 1.55},
    "head_only": {
        **RESNET, "epochs": 10, "freeze": ["all"], "goal": 40.0,
        "rates": [1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3, 6.4e-3, 1.28e-2],
    },
    "builtin": {**BUILTIN, "epochs": 5, "freeze": [0.6, "all"], "rates": RATES, "goal": None},
}  # fmt: skip


class Peer(trial.Trial):
    """One configuration in Tune's hands: the loop for itself, without checkpoints."""

    def _train(self) -> Any:
        made = loop.Loop([self._config], loop.Solo(self._threads), self._tell, sparing=True)
        for records in made.epochs():
            yield records[self._config.name]
        made.runs[0].publish_best()


def settings(arm: str, data: str, runs: str, fuse: bool) -> Config:
    """The search of an arm."""
    chosen = ARMS[arm]
    tree = {
        "name": arm, "runs": runs, "data": {"uri": data}, "model": chosen["model"], "input": chosen["input"],
        "augment": {"views": 1}, "train": {"epochs": chosen["epochs"], "batch_size": 64},
        "track": {"tensorboard": False},
        "search": {
            "sampler": "grid", "scheduler": "none", "fuse": fuse,
            "cache": f"{runs}/cache", "cache_dtype": "fp32",
            "space": {"model.freeze": {"choice": chosen["freeze"]}, "optim.lr": {"choice": chosen["rates"]}},
        },
    }  # fmt: skip
    return config.parse(tree, arm)


def once(arm: str, data: str, kind: str) -> dict[str, Any]:
    """Search an arm's grid once: seconds, accuracies by trial, bytes kept, peak memory, the plan."""
    runs = tempfile.mkdtemp(prefix="tlray-bench-")
    try:
        chosen = settings(arm, data, runs, fuse=kind == "tlray")
        driver.Trial = Peer if kind != "tlray" else trial.Trial  # type: ignore[misc]
        driver.REUSE = kind != "template"
        began = time.perf_counter()
        found = search.tune(chosen)
        seconds = time.perf_counter() - began
        story = storage.read_json(storage.join(chosen.run_uri, "trials.json"))
        kept = sum(f.stat().st_size for f in Path(runs, "cache").rglob("*") if f.is_file())
        return {
            "seconds": seconds, "accuracy": {row["id"]: row["best"] for row in found.trials},
            "bytes": kept, "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
            "plans": story["plans"],
        }  # fmt: skip
    finally:
        shutil.rmtree(runs, ignore_errors=True)


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--arm", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--template", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    kinds = ["tlray", "peer", *(["template"] if args.template else [])]
    figures: dict[str, Any] = {}
    with runtime.session():
        for arm in args.arm:
            done: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
            for number in range(args.repeat):
                for kind in kinds if number % 2 else reversed(kinds):
                    found = once(arm, storage.absolute(args.data), kind)
                    done[kind].append(found)
                    told = f"{arm} {number + 1}/{args.repeat} {kind:8} {found['seconds']:7.1f} s"
                    print(f"{told}  {found['bytes'] / 2**20:.0f} MB kept", file=sys.stderr, flush=True)
                ours, theirs = (done[kind][-1]["accuracy"] for kind in ("tlray", "peer"))
                worst = max(abs(ours[id_] - theirs[id_]) for id_ in theirs)
                assert worst < 0.005, f"{arm}: trials differ by {worst} in accuracy"
            pairs = list(zip(done["tlray"], done["peer"], strict=True))
            plans = [one["plans"] for one in done["tlray"]]
            ceilings = [sum(plan["ceiling_s"] for plan in found) for found in plans]
            times = [one["seconds"] for one in done["tlray"]]
            figures[arm] = {
                "gain": spread([peer["seconds"] / ours["seconds"] for ours, peer in pairs]),
                "of_ceiling": spread([c / t for c, t in zip(ceilings, times, strict=True)]),
                "ceiling_gain": spread(
                    [sum(p["naive_s"] / p["ceiling_s"] for p in f) / len(f) for f in plans]
                ),
                "goal": ARMS[arm]["goal"],
                "seconds": {kind: spread([one["seconds"] for one in found]) for kind, found in done.items()},
                "kept_mb": max(one["bytes"] for one in done["tlray"]) / 2**20,
            }
            print(json.dumps({arm: figures[arm]}), file=sys.stderr, flush=True)
    if args.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
