"""What a further candidate costs where many train side by side: linear probes over one backbone's pass.

    python tests/bench/bench_heads.py INGESTED [--heads 52] [--repeat 5] [--backbone resnet10t-nano] [--json]

INGESTED is what `tlray ingest` made of ../shared/data/clothing. A group trains one head, or as many as
``--heads`` (DINOv2's linear evaluation, arXiv 2304.07193, trains 52), for an epoch of which pictures,
backbone and validation are part: nothing is kept from before. In turn, ``--repeat`` times each. Told are
    ratio     seconds of the epoch (steps and validation) with many heads over those with one
    overhead  seconds that each further head takes beside its steps and its validation: building it, reading
              its checkpoint, its config.json, telling its metrics, its story, ending it
``--here`` renders pictures in this process in place of Ray Data's, so that nothing is hidden behind it.
The last line is JSON with --json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from tlray import config, runtime, storage
from tlray.data import loader
from tlray.search.group import Group


def trees(number: int, data: str, runs: str, backbone: str, weights: str) -> list[str]:
    """Settings of as many heads, each with a learning rate of its own."""
    found = []
    for i in range(number):
        tree = {
            "name": f"head{i}", "runs": runs, "data": {"uri": data}, "input": {"size": 96},
            "model": {"backbone": backbone, "weights": weights, "freeze": "all"},
            "optim": {"lr": 1e-4 * 1.1**i}, "train": {"epochs": 1, "batch_size": 64},
            "search": {"cache": None},
        }  # fmt: skip
        found.append(config.parse(tree, "bench").model_dump_json())
    return found


def once(number: int, data: str, backbone: str, weights: str) -> dict[str, float]:
    """Train a group of heads: seconds of its epoch, and of all that is neither steps nor validation."""
    with tempfile.TemporaryDirectory(prefix="tlray-bench-") as runs:
        given = trees(number, data, runs, backbone, weights)
        group, began = Group(1, lambda event: None), time.perf_counter()
        group.begin(given)
        found = group.epoch()
        assert len(found["records"]) == number and not found["failed"], found["failed"]
        parts = [run.spent for run in group._loop.runs]
        epoch = sum(part[name] for part in parts for name in ("wait", "train", "validate"))
        group.end(list(found["records"]), keep=[])
        group.epoch()  # trackers are closed
        return {"epoch": epoch, "beside": time.perf_counter() - began - epoch}


def here(source: loader.Source, plan: Any) -> Iterator[loader.Batch]:
    """Batches made in this process."""
    fingerprint = loader.Dataset.open(source.uri).fingerprint
    for epoch, rows in plan:
        yield loader.make_batch(source, fingerprint, epoch, rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--heads", type=int, default=52)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--backbone", default="resnet10t-nano")
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--here", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.here:
        loader.pipeline = here
    told: dict[str, list[float]] = {"one_s": [], "many_s": [], "ratio": [], "overhead_s": []}
    with contextlib.nullcontext() if args.here else runtime.session():
        given = (storage.absolute(args.data), args.backbone, args.weights)
        once(1, *given)  # warms up
        for turn in range(args.repeat):
            numbers = (1, args.heads) if turn % 2 else (args.heads, 1)
            found = {number: once(number, *given) for number in numbers}
            one, many = found[1], found[args.heads]
            told["one_s"].append(one["epoch"])
            told["many_s"].append(many["epoch"])
            told["ratio"].append(many["epoch"] / one["epoch"])
            told["overhead_s"].append((many["beside"] - one["beside"]) / (args.heads - 1))
            print({key: round(values[-1], 4) for key, values in told.items()}, file=sys.stderr, flush=True)
    figures = {key: {"median": statistics.median(v), "min": min(v), "max": max(v)} for key, v in told.items()}
    for key, value in figures.items():
        print(f"{key:10} {value['median']:8.4f}   {value['min']:.4f} to {value['max']:.4f}")
    if args.json:
        print(json.dumps({"heads": args.heads, "repeat": args.repeat, **figures}))


if __name__ == "__main__":
    main()
