"""What users get: `tlray train` by default and a search's winner, beside the best that others make of it.

    python tests/bench/bench_transfer.py ../shared/data WORK [--row NAME] [--arm NAME] [--seeds N] [--json]
    python tests/bench/bench_transfer.py ../shared/data WORK --summary    # of what WORK holds; runs nothing

Each row is a data set with a backbone, a size and a number of epochs that all arms share; each seed is a
whole run of every arm, one after the other, so that all meet the machine alike. What WORK holds is not run
again. Winners and rates are chosen on validation; test is only told, and `pooled` is both splits together.

    train         `tlray train` with nothing set but data, backbone, size, epochs and seed, or the recipe's
    tune          `tlray tune`, likewise
    plain         a short loop in PyTorch: AdamW, warm-up, cosine, random crops and flips; the best epoch of
                  the best of three rates
    probe         scikit-learn's logistic regression over frozen pooled features, the best of five strengths
    torchvision   torchvision's own way for detection and segmentation, ArcFace for faces, the better of two
                  rates; see transfer/references.py
    before        `tlray tune` with code and recipe as they were before rates and lengths were chosen by data;
                  before-train: `tlray train` likewise

The row of copies trains nothing: it judges the bundles of clothing-nano on blurred, noisy, compressed and
faded copies of the test split. Means and spreads are followed by what our arms have beyond the best peer,
with its 95 % interval over seeds. The last line is JSON with --json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transfer import copies, summary
from transfer.cases import CASES, SPLITS, Case, pictures
from transfer.ours import ours, score, tlray
from transfer.plain import plain, probe
from transfer.references import reference

from tlray import storage
from tlray.data.dataset import Dataset


class Bench(NamedTuple):
    """Where everything lies: pictures, and what is made of them."""

    root: Path
    work: Path
    epochs: int | None  # in place of the row's own, to try the benchmark out

    def case(self, row: str) -> Case:
        return CASES[row] if self.epochs is None else replace(CASES[row], epochs=self.epochs)

    def kept(self, row: str, seed: int, arm: str) -> str:
        return storage.join(str(self.work), f"{row}-{seed}-{arm}.json")

    def data(self, row: str, seed: int) -> Path:
        """The row's data set, made where it is not there yet."""
        case = self.case(row)
        source = pictures(case, self.root, self.work, seed)
        return self._ingested(source, source.name if case.per_class else case.data, case.task)

    def _ingested(self, source: Path, name: str, task: str) -> Path:
        data = self.work / "data" / name
        if not (data / "dataset.json").exists():
            # The shares are for data that comes without splits.
            tlray("ingest", str(source), str(data), "--task", task, "--validation", "0.2", "--test", "0.2")
        return data

    def measured(self, row: str, seed: int, arm: str) -> dict[str, Any]:
        """An arm's figures, kept in WORK once they are known."""
        kept = self.kept(row, seed, arm)
        if not storage.exists(kept):
            told = self._copies(row, seed, arm) if self.case(row).bundles else self._trained(row, seed, arm)
            storage.write_json(kept, told)
            print(row, seed, arm, {k: round(v, 4) for k, v in told.items()}, file=sys.stderr, flush=True)
        found: dict[str, Any] = storage.read_json(kept)
        return found

    def _trained(self, row: str, seed: int, arm: str) -> dict[str, Any]:
        case, data = self.case(row), self.data(row, seed)
        if arm in ("plain", "probe"):
            told: dict[str, Any] = (plain if arm == "plain" else probe)(case, data, self.root, seed)
        elif arm == "torchvision":
            told = reference(case, data, seed)
        else:
            told = ours(arm, case, data, self.root, self.work, f"{row}-{seed}-{arm}", seed)
        if case.figure == "pooled":
            rows = {split: Dataset.open(str(data)).num_rows(split) for split in SPLITS}
            told["pooled"] = sum(told[s] * rows[s] for s in SPLITS) / sum(rows.values())
        return told

    def _copies(self, row: str, seed: int, arm: str) -> dict[str, Any]:
        """Test figures of another row's bundle on each kind of copy, and their mean."""
        case, other = self.case(row), str(self.case(row).bundles)
        self.measured(other, seed, arm)
        bundle = self.work / "runs" / f"{other}-{seed}-{arm}" / "best"
        if not bundle.exists():
            raise SystemExit(f"{bundle}: not there; remove {self.kept(other, seed, arm)} to train it again")
        found = {}
        for kind in copies.COPIES:
            name = f"{case.data}-{kind}"
            source = copies.write(self.root / case.data, self.work / name, kind)
            data = self._ingested(source, name, case.task)
            found[kind] = score(str(bundle), data, "test")
        return {**found, "copies": statistics.mean(found.values())}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--row", action="append", choices=sorted(CASES))
    parser.add_argument("--arm", action="append", choices=sorted({a for c in CASES.values() for a in c.arms}))
    parser.add_argument("--seeds", type=int, help="how many, in place of each row's own number")
    parser.add_argument(
        "--epochs", type=int, help="in place of each row's own, to try it out; in another WORK"
    )
    parser.add_argument("--summary", action="store_true", help="of what WORK holds; run nothing")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    bench = Bench(args.data.resolve(), args.work.resolve(), args.epochs)
    bench.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    rows = args.row or list(CASES)
    found: summary.Found = {}
    for seed in range(args.seeds or max(CASES[row].seeds for row in rows)):
        for row in rows:
            if args.seeds is None and seed >= CASES[row].seeds:
                continue
            for arm in CASES[row].arms:
                if args.arm and arm not in args.arm:
                    continue
                if args.summary and not storage.exists(bench.kept(row, seed, arm)):
                    continue
                found.setdefault(row, {}).setdefault(arm, {})[seed] = bench.measured(row, seed, arm)
    print(summary.tables(found))
    if args.json:
        told = {"comparisons": summary.comparisons(found), "epochs": summary.epoch_ratios(found)}
        print(json.dumps({"figures": found, **told}))


if __name__ == "__main__":
    main()
