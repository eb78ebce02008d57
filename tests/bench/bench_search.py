"""What a search gains by computing the frozen part once, beside Ray Tune with one trial per configuration.

    python tests/bench/bench_search.py ../shared/data/clothing [--arm NAME ...] [--rows 512] [--repeat 5]
        [--repeat-full 5] [--template] [--json]

FOLDER holds train/CLASS, validation/CLASS and test/CLASS. Arms; the first four are grids without early
stopping, on --rows training pictures and a quarter as many for validation, evenly from all classes:
    last_head         ResNet-50, random weights (for timing alone): {last stage, head} x 3 rates x 5 epochs
    stages_head       ResNet-50: {stage 2 .. head} x 3 rates x 5 epochs
    head_only         ResNet-50: head x 8 rates x 10 epochs
    builtin           the built-in backbone: {0.6, head} x 3 rates x 5 epochs
    time_to_accuracy  jobs/recipes/clothing.yaml as it stands, early stopping too, on all pictures: seconds
                      until a side has its finished model; tlray's counts where its accuracy on the test split
                      is at most 0.5 points below the peer's, else the repetition is missed (a gain of 0)
Peer and tlray search in turn, whoever is first changes: same seed, data, threads, order of batches, one view
of each picture in the grids (``augment.views: 1``), nothing left over from an earlier search, so that tlray's
time includes filling its store. The peer is Ray Tune as its users write it: one trial per configuration,
actors reused, no gradient through what is frozen, no checkpoints; its batches come from the same pipeline.
``--template`` adds the peer without reused actors, as Ray's own template runs it. Times are of the search
alone, Ray being up and its rendering processes warm.

``of_ceiling`` is the gain reached / the gain that the plan of the same run holds for possible (naive_s /
ceiling_s: from P_d and S_d, see tlray/search/cost.py); of all grids, the worst one's stands in the last line.
``gain_once_started``: without the seconds until the first process that trains has loaded its code, which
both sides spend once, whatever the number of pictures.
In every grid all trials must come to the same validation accuracy on both sides, give or take TOLERANCE
pictures; otherwise the exit code is 1. Memory: ``trainer_mb`` is the peak RSS of the largest process that
trained, ``peak_mb`` the peak of the sum over all worker processes of this Ray session (training, rendering,
idle) of RSS less pages shared with others, both looked at every SAMPLE_S seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from tlray import config, runtime, search, storage, tasks
from tlray.config import Config
from tlray.data import loader
from tlray.data.dataset import Dataset
from tlray.data.image import Preprocess
from tlray.inference.evaluate import evaluate
from tlray.ingestion.ingest import ingest
from tlray.search import features, group, trial, tuner
from tlray.training import loop
from tlray.training import run as training_run
from tlray.training.worker import LocalWorker

RECIPE = Path(__file__).parents[2] / "jobs" / "recipes" / "clothing.yaml"
FULL = "time_to_accuracy"
RATES = [3e-4, 1e-3, 3e-3]
RESNET = {"model": {"backbone": "resnet50", "weights": "none"}, "input": {"size": 128}}
BUILTIN = {"model": {"backbone": "resnet10t-nano", "weights": "builtin"}, "input": {"size": 96}}
GRIDS: dict[str, dict[str, Any]] = {
    "last_head": {**RESNET, "epochs": 5, "freeze": [4, "all"], "rates": RATES},
    "stages_head": {**RESNET, "epochs": 5, "freeze": [2, 3, 4, "all"], "rates": RATES},
    "head_only": {
        **RESNET, "epochs": 10, "freeze": ["all"],
        "rates": [1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3, 6.4e-3, 1.28e-2],
    },
    "builtin": {**BUILTIN, "epochs": 5, "freeze": [0.6, "all"], "rates": RATES},
}  # fmt: skip
GOALS = {"of_ceiling": 0.9, "last_head": 3.5, "stages_head": 1.55, "head_only": 40.0, FULL: 5.0}
TOLERANCE = 2  # pictures of the validation split: sums in another order may turn a close one
POINTS = 0.005  # of accuracy on the test split
SAMPLE_S = 0.5
Figures = dict[str, Any]


class Peer(trial.Trial):
    """One configuration in Tune's hands: the loop for itself, without checkpoints.

    A model is written where it is the best so far of this process, as tlray does; so the winner's is there.
    """

    best_here: float | None = None

    def _train(self) -> Any:
        training_run.SAVE_EVERY_S = math.inf
        began = time.time()
        storage.write_json(
            storage.join(self._config.run_uri, "config.json"), self._config.model_dump(mode="json")
        )
        made = loop.Loop([self._config], LocalWorker(self._threads), self._emit_step, sparing=True)
        self._emit({"kind": "bench", "at": began, "pid": os.getpid(), "threads": torch.get_num_threads()})
        try:
            for records in made.epochs():
                yield records[self._config.name]
        finally:  # also where Tune stops it early
            run = made.runs[0]
            if run.now.best is not None and run.task.goal.better(run.now.best, self.best_here):
                self.best_here = run.now.best
                run.publish_best()
            run.write_story()


class Watched:
    """tlray's own group, telling where its time went.

    No subclass: the driver has this in the group's place, and would send its base class along by value.
    """

    def __init__(self, threads: int, emit: Any) -> None:
        self.group, self.emit = group.Group(threads, emit), emit
        self.laps: dict[str, float] = {}
        for place, name, lap in ((group, "measure", "plan"), (features.PrefixBatches, "_fill", "tables")):
            setattr(place, name, self.timed(getattr(place, name), lap))

    def timed(self, work: Callable[..., Any], lap: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                self.laps[lap] = self.laps.get(lap, 0.0) + time.perf_counter() - began

        return run

    def begin(self, trees: Any) -> Any:
        at, began = time.time(), time.perf_counter()
        self.laps.clear()
        found = self.group.begin(trees)
        self.laps["build"] = time.perf_counter() - began - self.laps.get("plan", 0.0)
        self.emit({"kind": "bench", "at": at, "pid": os.getpid(), "threads": torch.get_num_threads()})
        return found

    def epoch(self) -> Any:
        return self.group.epoch()

    def end(self, names: Any, keep: Any) -> Any:
        began = time.perf_counter()
        try:
            return self.group.end(names, keep)
        finally:
            self.laps["end"] = self.laps.get("end", 0.0) + time.perf_counter() - began

    def leave(self, name: str) -> None:
        self.group.leave(name)

    def over(self) -> Any:
        runs = self.group._loop.runs
        spent = {name: sum(run.spent[name] for run in runs) for name in runs[0].spent if name != "prepare"}
        tables = self.laps.get("tables", 0.0)
        laps = {**self.laps, **spent, "wait": spent["wait"] - tables}  # tables are filled while steps wait
        self.emit({"kind": "bench", "laps": laps})
        return self.group.over()


class Memory:
    """Looks at the Ray workers that this process has started while the block runs; see the top."""

    def __init__(self) -> None:
        self.rss: dict[int, int] = {}  # peak by process
        self.private = 0  # peak of the sum
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        import psutil  # Ray's own, on the path once it is imported

        me = psutil.Process()
        while not self._over.wait(SAMPLE_S):
            total = 0
            for child in me.children(recursive=True):
                try:
                    name = (child.cmdline() or [""])[0]
                    if name.startswith("ray::") and not name.endswith("Agent"):  # Ray's own services
                        used = child.memory_info()
                        total += used.rss - used.shared
                        self.rss[child.pid] = max(used.rss, self.rss.get(child.pid, 0))
                except psutil.Error:  # gone meanwhile
                    continue
            self.private = max(self.private, total)


def settings(arm: str, data: str, runs: str, kind: str, epochs: int | None) -> Config:
    """The search of an arm."""
    own = {
        "runs": runs, "data.uri": data, "track.tensorboard": False,
        "search.fuse": kind == "tlray", "search.cache": f"{runs}/cache", "search.probe": False,
    }  # fmt: skip
    if arm == FULL:
        chosen = config.load(str(RECIPE)).override(own)
    else:
        grid = GRIDS[arm]
        space = {"model.freeze": {"choice": grid["freeze"]}, "optim.lr": {"choice": grid["rates"]}}
        tree = {
            "name": arm, "model": grid["model"], "input": grid["input"], "augment": {"views": 1},
            "train": {"epochs": grid["epochs"], "batch_size": 64},
            "search": {"sampler": "grid", "scheduler": "none", "cache_dtype": "fp32", "space": space},
        }  # fmt: skip
        chosen = config.parse(tree, arm).override(own)
    return chosen.override({"train.epochs": epochs}) if epochs else chosen


@contextmanager
def side(kind: str) -> Iterator[None]:
    """Have the search run as this side does."""
    before = tuner.Trial, tuner.REUSE, group.Group
    tuner.Trial, tuner.REUSE, group.Group = Peer, kind != "template", Watched  # type: ignore[misc]
    try:
        yield
    finally:
        tuner.Trial, tuner.REUSE, group.Group = before  # type: ignore[misc]


def warm(chosen: Config) -> None:
    """Have rendering processes load their code: those that a trial of Tune's had end with it."""
    data, task = Dataset.open(chosen.data.uri), tasks.load(chosen.task)
    pre = Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    source = loader.Source(chosen.data.uri, "train", task, tuple(tasks.labels_of(task, data)), pre)
    for _ in loader.pipeline(source, [(0, np.arange(8))] * 4):
        pass


def once(arm: str, data: str, kind: str, epochs: int | None = None) -> Figures:
    """One search by one side."""
    runs = tempfile.mkdtemp(prefix="tlray-bench-")
    heard: list[Figures] = []
    try:
        chosen = settings(arm, data, runs, kind, epochs)
        warm(chosen)
        with side(kind), Memory() as memory:
            since, began = time.time(), time.perf_counter()

            def hear(event: Figures) -> None:
                if event["kind"] in ("bench", "search_start", "trial_epoch"):
                    heard.append({**event, "after": time.perf_counter() - began})

            found = search.tune(chosen, hear)
            seconds = time.perf_counter() - began
        failed = [row["reason"] for row in found.trials if row["status"] == "failed"]
        if failed:
            raise SystemExit(f"{arm}, {kind}: trials failed: {failed[0]}")
        story = storage.read_json(storage.join(chosen.run_uri, "trials.json"))
        told = [event for event in heard if event["kind"] == "bench"]
        begun = [event for event in told if "at" in event]
        laps: dict[str, float] = {"start": begun[0]["at"] - since}
        for event in told:
            for name, value in event.get("laps", {}).items():
                laps[name] = laps.get(name, 0.0) + value
        if kind != "tlray":
            laps |= {stage["name"]: stage["seconds"] for stage in story["stages"]}
        laps["rest"] = seconds - sum(laps.values())
        epochs_told = [event for event in heard if event["kind"] == "trial_epoch"]
        reached = next(e["after"] for e in epochs_told if e["id"] == found.best and e["goal"] == found.value)
        figures = {
            "seconds": seconds, "best_epoch_s": reached, "laps": laps, "plans": story["plans"],
            "accuracy": {row["id"]: row["best"] for row in found.trials},
            "loss": {row["id"]: row["curve"][-1]["train_loss"] for row in found.trials},
            "best": found.params, "epochs": found.epochs,
            "threads": sorted({event["threads"] for event in begun}),
            "processes": len({event["pid"] for event in begun}),
            "concurrent": next(event["concurrent"] for event in heard if event["kind"] == "search_start"),
            "stored_mb": _bytes(Path(runs, "cache")) / 2**20, "peak_mb": memory.private / 2**20,
            "trainer_mb": max((memory.rss.get(event["pid"], 0) for event in begun), default=0) / 2**20,
        }  # fmt: skip
        if arm == FULL:
            figures["test_accuracy"] = evaluate(found.bundle, data, "test")["metrics"]["accuracy"]
        return figures
    finally:
        shutil.rmtree(runs, ignore_errors=True)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def subset(folder: Path, target: Path, rows: int) -> str:
    """A data set of ``rows`` training pictures, a quarter as many for validation and for test; its place.

    The first of every class, in turn, so that classes are even as far as they go.
    """
    for split, wanted in (("train", rows), ("validation", -(-rows // 4)), ("test", -(-rows // 4))):
        classes = [sorted(c.iterdir()) for c in sorted((folder / split).iterdir()) if c.is_dir()]
        turns = itertools.chain.from_iterable(itertools.zip_longest(*classes))
        for picture in itertools.islice(filter(None, turns), wanted):
            place = target / "pictures" / split / picture.parent.name / picture.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, place)
    return whole(target / "pictures", target / "data")


def whole(folder: Path, target: Path) -> str:
    """A folder of pictures, ingested; its place."""
    made = ingest(str(folder.resolve()), str(target))
    print(f"{target.parent.name}: {made.splits}", file=sys.stderr, flush=True)
    return made.uri


def spread(values: list[float]) -> Figures:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def compare(arm: str, done: dict[str, list[Figures]], validation_rows: int) -> Figures:
    """What an arm's repetitions come to."""
    ours, theirs = done["tlray"], done["peer"]
    pairs = list(zip(ours, theirs, strict=True))
    gains = [peer["seconds"] / mine["seconds"] for mine, peer in pairs]
    figures: Figures = {"goal": GOALS.get(arm), "sound": True}
    if arm == FULL:
        held = [mine["test_accuracy"] >= peer["test_accuracy"] - POINTS for mine, peer in pairs]
        figures |= {
            "gain": spread([gain if good else 0.0 for gain, good in zip(gains, held, strict=True)]),
            "gain_whatever_accuracy": spread(gains), "missed": held.count(False),
            "gain_to_best_epoch": spread([p["best_epoch_s"] / m["best_epoch_s"] for m, p in pairs]),
            "test_accuracy": {k: [one["test_accuracy"] for one in found] for k, found in done.items()},
        }  # fmt: skip
    else:
        totals = [{k: sum(p[k] for p in m["plans"]) for k in ("naive_s", "ceiling_s")} for m in ours]
        ceilings = [total["naive_s"] / total["ceiling_s"] for total in totals]
        worst = max(abs(m["accuracy"][id_] - p["accuracy"][id_]) for m, p in pairs for id_ in p["accuracy"])
        figures |= {
            "gain": spread(gains), "ceiling": spread(ceilings),
            "of_ceiling": spread([gain / ceiling for gain, ceiling in zip(gains, ceilings, strict=True)]),
            "naive_s": spread([total["naive_s"] for total in totals]),
            "ceiling_s": spread([total["ceiling_s"] for total in totals]),
            "accuracy_differs": worst, "sound": worst <= TOLERANCE / validation_rows + 1e-9,
            "loss_differs": max(
                abs(m["loss"][id_] / p["loss"][id_] - 1) for m, p in pairs for id_ in p["loss"]
            ),
        }  # fmt: skip
    for name in ("seconds", "peak_mb", "trainer_mb", "stored_mb"):
        figures[name] = {kind: spread([one[name] for one in found]) for kind, found in done.items()}
    for kind, found in done.items():
        names = sorted({name for one in found for name in one["laps"]})
        figures[f"{kind}_laps_s"] = {
            name: statistics.median([one["laps"].get(name, 0.0) for one in found]) for name in names
        }
        figures[f"{kind}_runs_as"] = {k: found[0][k] for k in ("threads", "processes", "concurrent")}
    figures["gain_once_started"] = spread([
        (peer["seconds"] - peer["laps"]["start"]) / (mine["seconds"] - mine["laps"]["start"])
        for mine, peer in pairs
    ])  # fmt: skip
    if "template" in done:
        gains = [t["seconds"] / m["seconds"] for t, m in zip(done["template"], ours, strict=True)]
        figures["gain_template"] = spread(gains)
    return figures


def summary(arms: dict[str, Figures]) -> Figures:
    """The goals' figures, None where not measured."""
    found: Figures = {name: arms[name]["gain"] if name in arms else None for name in GOALS}
    grids = [figures["of_ceiling"] for figures in arms.values() if "of_ceiling" in figures]
    found["of_ceiling"] = min(grids, key=lambda one: one["median"], default=None)
    out: Figures = {}
    for name, one in found.items():
        out[name] = one["median"] if one else None
        out[f"{name}_spread"] = [one["min"], one["max"]] if one else None
    return out


def show(arms: dict[str, Figures], total: Figures, console: Console) -> None:
    """A table of goals; where one is missed, where tlray's time went."""
    heads = ("", "goal", "median", "spread", "", "of ceiling", "peer s", "tlray s", "peak MB", "stored MB")
    table = Table(*heads, box=None)

    def line(name: str, goal: float | None, one: Figures, *more: str) -> None:
        verdict = "" if goal is None else "met" if one["median"] >= goal else "MISSED"
        told = f"{one['min']:.2f} .. {one['max']:.2f}"
        table.add_row(name, "" if goal is None else f"{goal:g}", f"{one['median']:.2f}", told, verdict, *more)

    for arm, found in arms.items():
        s, peak = found["seconds"], found["peak_mb"]
        part = found.get("of_ceiling")
        line(
            arm, found["goal"], found["gain"], f"{part['median']:.2f}" if part else "",
            f"{s['peer']['median']:.1f}", f"{s['tlray']['median']:.1f}",
            f"{peak['peer']['max']:.0f} / {peak['tlray']['max']:.0f}",
            f"{found['stored_mb']['tlray']['max']:.0f}",
        )  # fmt: skip
        line("  once a process has started", None, found["gain_once_started"])
        if "gain_template" in found:
            took = f"{s['template']['median']:.1f}"
            line("  without reused actors", None, found["gain_template"], "", took)
    if total["of_ceiling"] is not None:
        low, high = total["of_ceiling_spread"]
        one = {"median": total["of_ceiling"], "min": low, "max": high}
        line("of_ceiling, worst", GOALS["of_ceiling"], one)
    console.print(table)
    for arm, found in arms.items():
        for kind in ("peer", "tlray"):
            console.print(f"{arm}, {kind}: {_spell(found[f'{kind}_runs_as'])}", highlight=False)
        short = found["goal"] is not None and found["gain"]["median"] < found["goal"]
        if short or found.get("of_ceiling", {"median": 1.0})["median"] < GOALS["of_ceiling"]:
            for kind in ("peer", "tlray"):
                laps = {k: round(v, 1) for k, v in found[f"{kind}_laps_s"].items()}
                console.print(f"  {kind}'s seconds: {_spell(laps)}", highlight=False)
            if "ceiling_s" in found:
                plan = {k: round(found[f"{k}_s"]["median"], 1) for k in ("naive", "ceiling")}
                console.print(f"  the plan's seconds: {_spell(plan)}", highlight=False)
        if not found["sound"]:
            console.print(f"  UNSOUND: accuracy differs by {found['accuracy_differs']:.4f}")
        if found.get("missed"):
            console.print(f"  {found['missed']} repetitions missed the accuracy: {found['test_accuracy']}")


def _spell(values: Figures) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def main() -> None:
    everything = [*GRIDS, FULL]
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arm", nargs="*", default=everything, choices=everything)
    parser.add_argument("--rows", type=int, default=512, help="training pictures of a grid's arm")
    parser.add_argument("--rows-full", type=int, help="of time_to_accuracy, for a quick look; all by default")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--repeat-full", type=int, default=5, help="of time_to_accuracy")
    parser.add_argument("--epochs", type=int, help="in every arm, for a quick look")
    parser.add_argument("--template", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    kinds = ["tlray", "peer", *(["template"] if args.template else [])]
    arms: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="tlray-bench-") as place, runtime.session():
        few = subset(args.folder, Path(place, "few"), args.rows) if set(args.arm) & set(GRIDS) else ""
        full = ""
        if FULL in args.arm and args.rows_full:
            full = subset(args.folder, Path(place, "full"), args.rows_full)
        elif FULL in args.arm:
            full = whole(args.folder, Path(place, "full", "data"))
        for arm in args.arm:
            data = full if arm == FULL else few
            done: dict[str, list[Figures]] = {kind: [] for kind in kinds}
            repeat = args.repeat_full if arm == FULL else args.repeat
            for number in range(repeat):
                for kind in kinds if number % 2 else reversed(kinds):
                    found = once(arm, data, kind, args.epochs)
                    done[kind].append(found)
                    told = {k: found[k] for k in ("threads", "processes", "concurrent")}
                    text = f"{arm} {number + 1}/{repeat} {kind:8} {found['seconds']:7.1f} s  {_spell(told)}"
                    laps = {k: round(v, 2) for k, v in found["laps"].items()}
                    print(f"{text}\n    {_spell(laps)}", file=sys.stderr, flush=True)
            validation = Dataset.open(data).num_rows("validation")
            arms[arm] = compare(arm, done, validation)
            print(json.dumps({arm: arms[arm]}), file=sys.stderr, flush=True)
    total = summary(arms)
    show(arms, total, Console(stderr=args.json, width=120))
    if args.json:
        print(json.dumps({**total, "rows": args.rows, "arms": arms}))
    raise SystemExit(not all(figures["sound"] for figures in arms.values()))


if __name__ == "__main__":
    main()
