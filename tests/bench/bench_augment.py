"""What a training picture costs by way of augmentation: ms from a JPEG of 256 px to model input, one thread.

    python tests/bench/bench_augment.py [--sizes 96 224] [--pictures 128] [--repeat 5] [--json]

Told are medians of CPU time over ``--repeat`` passes, the settings in turn within each, of reading a row,
decoding, rendering, augmenting and encoding its target. The last line is JSON with --json.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tlray import tasks
from tlray.config import Augmentation
from tlray.data import loader, schema
from tlray.data.dataset import Dataset
from tlray.data.image import Preprocess

SIDE = 256
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> task, settings
    **{
        policy: ("classification", {"policy": policy})
        for policy in ("none", "colour", "mild", "wide", "rand", "photometric")
    },
    "erase": ("classification", {"erase": 1.0}),
    "mixup": ("classification", {"mixup": 0.2}),
    "cutmix": ("classification", {"cutmix": 1.0}),
    "mosaic": ("detection", {"mosaic": 1.0}),
}


def dataset(folder: Path, count: int) -> str:
    """Pictures with soft shapes and some grain, as photographs have them; a class and a box each."""
    (folder / "data").mkdir(parents=True)
    columns = {schema.LABEL: "class", schema.OBJECTS: "objects"}
    kinds = schema.dataset_schema(
        {name: (schema.TYPES[kind], schema.feature(kind, ["a", "b"])) for name, kind in columns.items()}
    )
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
        pixels = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
        pixels = (pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=90)
        rows.append(
            {
                "id": str(number), "path": f"{number}.jpg", "split": "train", "width": SIDE, "height": SIDE,
                schema.LABEL: number % 2, schema.IMAGE: {"bytes": out.getvalue(), "path": f"{number}.jpg"},
                schema.OBJECTS: {"bbox": [[40.0, 60.0, 90.0, 120.0]], "category": [number % 2]},
            }
        )  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=kinds)
    pq.write_table(table, folder / "data" / "train-00000-of-00001.parquet", row_group_size=128)
    return str(folder)


def seconds(source: loader.Source, rows: np.ndarray) -> float:
    """Of one pass over the rows, in batches of 32."""
    fingerprint, began = Dataset.open(source.uri).fingerprint, time.thread_time()
    for start in range(0, len(rows), 32):
        loader.make_batch(source, fingerprint, 0, rows[start : start + 32])
    return time.thread_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 224])
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows, plain = np.arange(args.pictures), {"policy": "none", "scale": (1.0, 1.0)}
    told: dict[str, dict[str, list[float]]] = {
        name: {str(size): [] for size in args.sizes} for name in SETTINGS
    }
    with tempfile.TemporaryDirectory(prefix="tlray-bench-") as folder:
        uri = dataset(Path(folder) / "data", args.pictures)
        for turn in range(args.repeat + 1):
            for size in args.sizes:
                pre = Preprocess(size=(size, size), mean=(0.5,) * 3, std=(0.5,) * 3)
                for name, (task, changes) in SETTINGS.items():
                    augment = Augmentation(**{**plain, **changes})
                    known = tasks.load({"name": task})
                    source = loader.Source(uri, "train", known, ("a", "b"), pre, augment)
                    taken = seconds(source, rows)
                    if turn:  # the first turn fills the caches
                        told[name][str(size)].append(1000 * taken / args.pictures)
    found = {
        name: {size: round(statistics.median(ms), 2) for size, ms in by_size.items()}
        for name, by_size in told.items()
    }
    for name, by_size in found.items():
        print(f"{name:12}" + "".join(f"{size:>5} px {ms:6.2f} ms" for size, ms in by_size.items()))
    if args.json:
        print(json.dumps({"ms": found, "pictures": args.pictures, "repeat": args.repeat}))


if __name__ == "__main__":
    main()
