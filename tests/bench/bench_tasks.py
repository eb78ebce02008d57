"""Every task on real pictures: the search's winner beside a frozen backbone and training from scratch.

    python tests/bench/bench_tasks.py ../shared/data WORK [NAME ...]

Runs the recipes of jobs/recipes in WORK: ingest, tune, then both other arms with equal epochs; goes on where
it was stopped. Prints a table in Markdown; results are those of the test split.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import camvid_quarters
from bench_accuracy import arms

from tlray import config, runtime, search, storage
from tlray.ingestion.ingest import ingest

RECIPES = Path(__file__).resolve().parents[2] / "jobs" / "recipes"
COLUMNS = ("task", "data", "backbone", "metric", "frozen", "tuned", "from scratch", "minutes")


def row(name: str, source: str, work: str) -> str:
    """One recipe's line of the table; kept in WORK once it is known."""
    kept = storage.join(work, f"{name}.json")
    settings = config.load(
        str(RECIPES / f"{name}.yaml"),
        [f"data.uri={work}/data/{name}", f"runs={work}/runs", f"models={work}/models"],
    )
    if not storage.exists(kept):
        if not storage.exists(storage.join(settings.data.uri, "dataset.json")):
            if name == "camvid-quarters":  # made of another one's pictures
                camvid = Path(source).with_name("camvid")
                source = str(camvid_quarters.write(camvid, Path(work) / "quarters"))
            # The shares are for data that comes without splits.
            ingest(source, settings.data.uri, task=settings.task["name"], validation=0.2, test=0.2)
        result = search.tune(settings, lambda event: None)
        minutes = sum(trial["seconds"] for trial in result.trials) / 60  # of all starts
        storage.write_json(kept, {"arms": arms(settings), "metric": result.goal, "minutes": minutes})
    found = storage.read_json(kept)
    tests = " | ".join(f"{found['arms'][arm]['test']:.3f}" for arm in ("frozen", "winner", "from scratch"))
    task, backbone = settings.task["name"].replace("_", " "), settings.model.backbone
    return f"| {task} | {name} | {backbone} | {found['metric']} | {tests} | {found['minutes']:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("work")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    names = args.names or sorted(path.stem for path in RECIPES.glob("*.yaml"))
    lines = []
    with runtime.session():
        for name in names:
            lines.append(row(name, str(Path(args.data) / name), storage.absolute(args.work)))
            print(lines[-1], file=sys.stderr)
    print("\n".join([f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *lines]))
    print(json.dumps({"rows": lines}))


if __name__ == "__main__":
    main()
