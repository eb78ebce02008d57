"""tlray as a user runs it, from this tree or from the one before the recipes were made anew."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tlray import tasks
from tlray.bundle.predictor import Predictor
from tlray.data.loader import RowReader
from tlray.inference.evaluate import check

from .cases import RECIPES, SPLITS, Case, weights

ROOT = RECIPES.parents[1]
BATCH = 64  # of predictions
BEFORE = "ce12ab6"  # the last commit with rates, crops and lengths by hand


def tlray(*args: str, tree: Path = ROOT) -> dict[str, Any]:
    """The last line of a verb with --json, run from a source tree."""
    done = subprocess.run(
        [sys.executable, "-m", "tlray", *args, "--json"], capture_output=True, text=True, cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"tlray {' '.join(args)}: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def before(work: Path) -> Path:
    """The source tree of `BEFORE`, written into WORK once."""
    tree = work / f"tree-{BEFORE}"
    if not tree.exists():
        aside = work / f"tree-{BEFORE}-part"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        packed = subprocess.run(
            ["git", "archive", BEFORE, "tlray", "jobs"], cwd=ROOT, capture_output=True, check=True
        )
        subprocess.run(["tar", "-x", "-C", str(aside)], input=packed.stdout, check=True)
        aside.rename(tree)
    return tree


def ours(arm: str, case: Case, data: Path, root: Path, work: Path, name: str, seed: int) -> dict[str, Any]:
    """`train` or `tune`; of `before` and `before-train` with the recipe and the code of then."""
    tree = before(work) if arm.startswith("before") else ROOT
    given = {**case.settings, "train.epochs": case.epochs, "seed": seed, "data.uri": str(data)}
    given |= {"name": name, "runs": str(work / "runs"), "search.cache": None}
    if case.settings.get("model.backbone"):
        given["model.weights"] = str(weights(root))
    if case.recipe or tree != ROOT:
        recipe = tree / "jobs" / "recipes" / f"{case.data}.yaml"
    else:
        recipe = work / f"{name}.yaml"
        recipe.write_text(f"task: {{name: {case.task}}}\n")
    verb = "train" if arm.endswith("train") else "tune"
    began = time.perf_counter()
    found = tlray(verb, str(recipe), *(f"{k}={json.dumps(v)}" for k, v in given.items()), tree=tree)
    seconds = time.perf_counter() - began
    shutil.rmtree(work / "runs" / name / "checkpoints", ignore_errors=True)
    # Of a search all its trials: seconds that they spent, by the epochs that they trained.
    trained = [one for one in found.get("trials", [found]) if one["epochs"]]
    spent = sum(one["seconds"] for one in trained) / sum(one["epochs"] for one in trained)
    scores = {split: score(found["bundle"], data, split) for split in SPLITS}
    return {**scores, "seconds": seconds, "epoch_seconds": spent}


def score(bundle: str, data: Path, split: str) -> float:
    """The goal of a bundle's task on a split, by what serves it; evaluation says the same, with Ray."""
    check(bundle, str(data), split)
    predictor, read = Predictor(bundle), RowReader(str(data), split, cache_mb=1024)
    metrics = predictor.task.metrics(predictor.labels)
    numbers = range(read.data.num_rows(split))
    for first in numbers[::BATCH]:
        pictures, rows = zip(*map(read, numbers[first : first + BATCH]), strict=True)
        found: Any = predictor.predict(pictures)
        metrics.update(found, rows)
    return metrics.compute()[predictor.task.goal.name]


def goal(task: str) -> str:
    """The metric that decides."""
    return tasks.load({"name": task}).goal.name
