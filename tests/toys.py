"""Toy objects: pictures in which the label is easy to see, and data sets of them without running ingest."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tlray.data import schema

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


def names(kind: str) -> list[str]:
    """Class names that a label column of some kind has: pixels also show the ground."""
    return ["ground", *LABELS] if kind == "mask" else LABELS


def scene(label: int, seed: int, size: tuple[int, int] = (96, 80)) -> tuple[bytes, list[float], bytes]:
    """An encoded picture of one object on grey ground; its box (x, y, width, height), px; its mask as PNG."""
    rng = np.random.default_rng((label, seed))
    ground = rng.normal(90, 12, (size[1], size[0], 3))
    w, h = (int(rng.integers(side // 3, side // 2)) for side in size)
    x, y = int(rng.integers(size[0] - w)), int(rng.integers(size[1] - h))
    there = np.zeros((size[1], size[0]), bool)
    there[y : y + h, x : x + w] = True
    columns = np.arange(size[0])[None, :, None]
    shade = [np.float64(230), np.where(columns % 8 < 4, 240, 20), np.float64(15)][label]
    tint = np.array([[1.0, 0.3, 0.3], [1.0, 1.0, 1.0], [1.0, 1.0, 6.0]][label])
    pixels = np.where(there[..., None], shade * tint, ground)
    ids = np.where(there, label + 1, 0).astype(np.uint8)
    encoded = []
    for array, kind in ((pixels.clip(0, 255).astype(np.uint8), "JPEG"), (ids, "PNG")):
        out = io.BytesIO()
        Image.fromarray(array).save(out, kind)
        encoded.append(out.getvalue())
    return encoded[0], [x, y, w, h], encoded[1]


def labels_of(kind: str, number: int) -> Any:
    """The label of the number-th scene, as a data set holds it."""
    label = number % len(LABELS)
    _, box, mask = scene(label, number)
    return {
        "class": label,
        "identity": label,
        "classes": sorted({label, number % 2}),
        "objects": {"bbox": [box], "category": [label]},
        "mask": {"bytes": mask, "path": f"{number}.png"},
    }[kind]


def scenes(columns: Mapping[str, str], count: int) -> tuple[list[bytes], list[dict[str, Any]]]:
    """Pictures and the rows that a task with these label columns is given."""
    pictures = [scene(i % len(LABELS), i)[0] for i in range(count)]
    rows = [
        {"id": str(i), "path": f"{i}.jpg", "width": 96, "height": 80}
        | {name: labels_of(kind, i) for name, kind in columns.items()}
        for i in range(count)
    ]
    return pictures, rows


def scenes_dataset(folder: Path, columns: Mapping[str, Any], **counts: int) -> str:
    """Write a data set of scenes for a task with these label columns; its URI."""
    (folder / "data").mkdir(parents=True)
    kinds = schema.dataset_schema(
        {name: (schema.TYPES[kind], schema.feature(kind, names(kind))) for name, kind in columns.items()}
    )
    for split, count in counts.items():
        pictures, rows = scenes(columns, count)
        for row, picture in zip(rows, pictures, strict=True):
            row |= {"split": split, "id": split + row["id"], "image": {"bytes": picture, "path": row["path"]}}
        table = pa.Table.from_pylist(rows, schema=kinds)
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet", row_group_size=16)
    return str(folder)


def damage(uri: str, split: str, row: int) -> None:
    """Cut a picture of a data set off after 300 bytes."""
    path = Path(uri, "data", f"{split}-00000-of-00001.parquet")
    table = pq.read_table(path)
    pictures = table[schema.IMAGE].to_pylist()
    pictures[row]["bytes"] = pictures[row]["bytes"][:300]
    image = table.schema.field(0)
    pq.write_table(table.set_column(0, image, pa.array(pictures, image.type)), path)


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
