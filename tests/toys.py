"""Toy objects: pictures in which the class is easy to see, and data sets of them without running ingest."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tlray import schema

LABELS = ["blob", "stripes", "waves"]


def picture(label: int, seed: int, size: tuple[int, int] = (72, 56), kind: str = "JPEG") -> bytes:
    """An encoded picture of one of three patterns, with noise."""
    rng = np.random.default_rng((label, seed))
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    phase = rng.uniform(0, 6)
    pattern = [
        np.exp(-((x - rng.uniform(0.3, 0.7)) ** 2 + (y - 0.5) ** 2) * 20),
        (np.sin(x * 40 + phase) > 0).astype(float),
        np.sin(y * 25 + phase) * 0.5 + 0.5,
    ][label]
    grey = pattern[..., None] * rng.uniform(120, 220, 3) + rng.normal(20, 8, (*pattern.shape, 3))
    out = io.BytesIO()
    Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(out, kind)
    return out.getvalue()


def dataset(folder: Path, group_rows: int = 16, **rows: int) -> str:
    """Write a classification data set with the named splits; its URI."""
    (folder / "data").mkdir(parents=True)
    kinds = schema.dataset_schema({schema.LABEL: (pa.int64(), schema.class_label(LABELS))})
    for number, (split, count) in enumerate(rows.items()):
        labels = [i % len(LABELS) for i in range(count)]
        pictures = [picture(label, 1000 * number + i) for i, label in enumerate(labels)]
        table = pa.table(
            {
                schema.IMAGE: pa.array(
                    [{"bytes": p, "path": f"{split}/{i}.jpg"} for i, p in enumerate(pictures)],
                    schema.IMAGE_TYPE,
                ),
                schema.SPLIT: [split] * count,
                schema.ID: [f"{split}{i:05d}" for i in range(count)],
                schema.WIDTH: pa.array([72] * count, pa.int32()),
                schema.HEIGHT: pa.array([56] * count, pa.int32()),
                schema.LABEL: labels,
            },
            schema=kinds,
        )
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet", row_group_size=group_rows)
    return str(folder)
