"""How long people wait before the work begins, beside the import of torch in a fresh process.

    python tests/bench/bench_start.py [--repeats 3] [--quick] [--only predict worker] [--json]

    predict     `tlray predict` of one picture, from the command to its end
    worker      from Ray being up to a training worker that has its model and asks for the first batch
    serve       `tlray serve` of one model, from the command to the first answer of its endpoint
    quickstart  `tlray quickstart` on its drawn sample, set-up not counted; left out with --quick
    torch       `python -c "import torch"`

Each is run in turn, ``--repeats`` times, and torch before each of them. Told are the median seconds, the
smallest and the largest, and the median of torch's beside it: on a busy machine both grow. A run before the
first is not counted: files are in the page cache. The last line is JSON with --json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(1, str(ROOT))

NAMES = ("predict", "worker", "serve", "quickstart")
TLRAY = [sys.executable, "-m", "tlray"]
TIMEOUT_S = 900.0


def seconds(command: Sequence[str], work: Path) -> float:
    """How long a command takes. Raises CalledProcessError, its output in it."""
    began = time.perf_counter()
    subprocess.run(command, cwd=work, check=True, capture_output=True, timeout=TIMEOUT_S)
    return time.perf_counter() - began


def torch(work: Path) -> float:
    return seconds([sys.executable, "-c", "import torch"], work)


def predict(work: Path) -> float:
    return seconds([*TLRAY, "predict", str(work / "bundle"), str(work / "a.jpg")], work)


def worker(work: Path) -> float:
    command = [sys.executable, __file__, "--be-worker", str(work / "data")]
    done = subprocess.run(command, cwd=work, check=True, stdout=subprocess.PIPE, timeout=TIMEOUT_S)
    return float(done.stdout.split()[-1])


def serve(work: Path) -> float:
    began = time.perf_counter()
    command = [*TLRAY, "serve", str(work / "bundle"), "--port", "0", "--json"]
    with subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            told = json.loads(server.stdout.readline())
            url = f"{told['url']}/v1/models/{told['models'][0]}/predict"
            headers = {"Content-Type": "image/jpeg"}
            request = urllib.request.Request(url, (work / "a.jpg").read_bytes(), headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert answer.status == 200
            return time.perf_counter() - began
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)


def quickstart(work: Path) -> float:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        return seconds([*TLRAY, "quickstart", "--work", folder], work)


RUN: dict[str, Callable[[Path], float]] = {
    "predict": predict, "worker": worker, "serve": serve, "quickstart": quickstart,
}  # fmt: skip


def be_worker(data: str) -> None:
    """Train on a few pictures, and print how long after Ray was up the worker began."""
    from tlray import runtime
    from tlray.config import parse

    runtime.prepare()
    from tlray.training import fit

    with tempfile.TemporaryDirectory() as runs:
        config = parse(
            {
                "name": "a", "runs": runs, "data": {"uri": data}, "input": {"size": 64},
                "model": {"backbone": "resnet10t-nano", "weights": "builtin"}, "train": {"epochs": 1},
            },
            "bench",
        )  # fmt: skip
        starts: list[float] = []

        def seen(event: dict[str, Any]) -> None:
            if event["kind"] == "start":
                starts.append(time.perf_counter())

        with runtime.session():
            began = time.perf_counter()
            with runtime.events(seen) as emit:
                fit.fit(fit.resolve_config(config), emit)
        print(starts[0] - began)


def prepare(work: Path) -> None:
    """A picture, a data set and a bundle."""
    from tests.toys import LABELS, dataset, picture
    from tlray import tasks
    from tlray.bundle import bundle
    from tlray.data.image import Preprocess
    from tlray.models.backbone import Backbone

    (work / "a.jpg").write_bytes(picture(0, 0))
    dataset(work / "data", train=48, validation=16)
    task, backbone = tasks.load({"name": "classification"}), Backbone("resnet10t-nano", "builtin", size=64)
    preprocess = Preprocess(size=(64, 64), mean=backbone.mean, std=backbone.std)
    module, spec = task.build(backbone, LABELS), backbone.spec()
    model = bundle.Model(module, task, spec, 0, preprocess, LABELS, "f" * 64)
    bundle.save(str(work / "bundle"), model, {}, {}, [picture(1, 1)])


def summary(runs: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Of (seconds, torch's seconds) by name: ``NAME_s``, ``NAME_min_s``, ``NAME_max_s``, ``NAME_torch_s``."""
    found: dict[str, Any] = {}
    for name, pairs in runs.items():
        own = [one for one, _ in pairs]
        for key, value in (
            ("", statistics.median(own)), ("_min", min(own)), ("_max", max(own)),
            ("_torch", statistics.median(beside for _, beside in pairs)),
        ):  # fmt: skip
            found[f"{name}{key}_s"] = round(value, 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="without the quickstart")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--be-worker", metavar="DATA", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.be_worker:
        be_worker(asked.be_worker)
        return
    # Other commands take the tlray that this process would.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    names = [name for name in asked.only if not (asked.quick and name == "quickstart")]
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="tlray-bench-") as folder:
        prepare(Path(folder))
        for repeat in range(asked.repeats + 1):
            for name in names:
                if repeat == 0 and name == "quickstart":
                    continue  # long, and the others have read the same files
                beside = torch(Path(folder))
                took = RUN[name](Path(folder))
                if repeat:
                    runs[name].append((took, beside))
                print(f"{repeat or 'warm-up':>8} {name:<10} {took:6.1f} s   "
                      f"import torch {beside:5.1f} s", file=sys.stderr)  # fmt: skip
    found = summary(runs)
    for name in names:
        print(f"{name:<10} {found[f'{name}_s']:6.2f} s  ({found[f'{name}_min_s']:.2f} to "
              f"{found[f'{name}_max_s']:.2f}; import torch {found[f'{name}_torch_s']:.2f} s)")  # fmt: skip
    if asked.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
