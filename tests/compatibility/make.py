"""Writes the files in stored/, with an old version of tlray:

    git worktree add --detach OLD 859e09b
    PYTHONPATH=OLD:. python tests/compatibility/make.py

Every later version must open them, so they are never made again with a later version.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import ray

from tests.compatibility import tiny
from tests.toys import dataset, picture
from tlray import api
from tlray.bundle import registry
from tlray.bundle.predictor import Predictor
from tlray.config import parse

ROOT = "/tmp/tlray-compatibility"  # where the files were made; some of them hold it
STORED = Path(__file__).resolve().parent / "stored"


class Silent:
    """An observer that shows nothing."""

    def begin(self) -> None: ...

    def event(self, event: dict[str, object]) -> None: ...

    def progress(self, stage: str, done: int, total: int) -> None: ...


def settings(root: str, name: str) -> dict[str, object]:
    """The configuration of a run below ``root``: one epoch of two steps, two trials."""
    return {
        "name": name, "runs": f"{root}/runs", "data": {"uri": f"{root}/data"}, "input": {"size": 32},
        "model": {"backbone": tiny.NAME, "weights": "none"}, "augment": {"policy": "none"},
        "optim": {"lr": 0.01}, "train": {"epochs": 1, "batch_size": 8, "keep_checkpoints": 1},
        "track": {"tensorboard": False}, "scale": {"cpus_per_worker": 1},
        "search": {
            "space": {"optim.lr": {"choice": [0.01, 0.001]}}, "sampler": "grid", "extend": False,
            "probe": False, "soup": 0,
        },
    }  # fmt: skip


def main() -> None:
    root = Path(ROOT)
    shutil.rmtree(root, ignore_errors=True)
    dataset(root / "data", train=12, validation=6)
    ray.init(address="local", num_cpus=4, runtime_env={"worker_process_setup_hook": tiny.register})
    tiny.register()
    trained = api.train(parse(settings(ROOT, "trained"), "make.py"), Silent())
    api.tune(parse(settings(ROOT, "tuned"), "make.py"), Silent())
    ray.shutdown()
    registry.promote(trained["bundle"], f"{ROOT}/models", "toys")
    query = picture(1, 77)
    (root / "picture.jpg").write_bytes(query)
    predictor = Predictor(trained["bundle"], "cpu")
    answer = {
        "prediction": predictor.predict([query])[0],
        "embedding": np.asarray(predictor.embed([query])[0]).tolist(),
    }
    (root / "answer.json").write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    for page in root.glob("runs/*/report.html"):  # large, and the test writes it anew
        page.unlink()
    shutil.rmtree(STORED, ignore_errors=True)
    shutil.copytree(root, STORED)


if __name__ == "__main__":
    main()
