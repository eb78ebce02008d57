"""Nearest neighbours: those that a plain matrix product over all rows gives, whatever the row groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests import toys
from tlray.data import image
from tlray.data.dataset import Dataset
from tlray.errors import DataError
from tlray.inference import neighbors

DIM = 12
NAMES = ["red", "green", "blue"]


def written(folder: Path, vectors: np.ndarray, data: str = "/nowhere", fingerprint: str = "") -> str:
    """Embeddings as `tlray embed` leaves them: two parts of small row groups; row 4 has none."""
    (folder / "data").mkdir(parents=True)
    parts: dict[str, Any] = {}
    half = len(vectors) // 2
    for n, (start, stop) in enumerate([(0, half), (half, len(vectors))]):
        name = f"data/train-{n:05d}-of-00002.parquet"
        rows = range(start, stop)
        table = pa.table(
            {
                "id": [f"train{i:05d}" for i in rows],
                "split": ["train"] * len(rows),
                "path": [f"train/{i}.jpg" for i in rows],
                "label": pa.array([i % 3 for i in rows], pa.int64()),
                "error": pa.array([None if i != 4 else "truncated: damaged" for i in rows], pa.string()),
                "embedding": pa.array(
                    [None if i == 4 else vectors[i].tolist() for i in rows], pa.list_(pa.float32(), DIM)
                ),
            }
        )
        pq.write_table(table, folder / name, row_group_size=7)
        parts[name] = {"split": "train", "start": start, "stop": stop}
    manifest = {"dim": DIM, "stage": None, "parts": parts, "labels": {"label": NAMES}, "data": data}
    (folder / neighbors.EMBEDDINGS).write_text(json.dumps(manifest | {"fingerprint": fingerprint}))
    return str(folder)


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(60, DIM)).astype(np.float32)


def never(manifest: dict[str, Any], data: bytes) -> np.ndarray:
    raise AssertionError("a row needs no model")


@pytest.mark.parametrize("wanted", ["train00037", "train/37.jpg"])
def test_neighbours_of_a_row(tmp_path: Path, vectors: np.ndarray, wanted: str) -> None:
    hits, picture, _ = neighbors.similar(written(tmp_path / "e", vectors), wanted, never, top=8)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit[37]
    cosine[[4, 37]] = -2
    order = np.argsort(-cosine)[:8]
    assert [hit.row for hit in hits] == order.tolist() and picture is None
    np.testing.assert_allclose([hit.similarity for hit in hits], cosine[order], atol=1e-6)
    assert [hit.labels for hit in hits] == [{"label": NAMES[i % 3]} for i in order]
    assert neighbors.summary(hits[0]) == f"train/{order[0]}.jpg  {NAMES[order[0] % 3]}"


def test_neighbours_of_a_picture(tmp_path: Path, vectors: np.ndarray) -> None:
    file = tmp_path / "asked.jpg"
    file.write_bytes(toys.picture(0, 1))
    out = written(tmp_path / "e", vectors)
    hits, picture, _ = neighbors.similar(out, str(file), lambda manifest, data: 3 * vectors[11], top=100)
    assert picture == file.read_bytes() and len(hits) == 59
    assert hits[0].row == 11 and hits[0].similarity == pytest.approx(1)
    with pytest.raises(DataError, match="holds 12 numbers a row, not 5"):
        neighbors.similar(out, str(file), lambda manifest, data: np.ones(5))


def test_mistakes(tmp_path: Path, vectors: np.ndarray) -> None:
    out = written(tmp_path / "e", vectors)
    with pytest.raises(DataError, match=r"neither a row of .* nor a file"):
        neighbors.similar(out, "nothing", never)
    with pytest.raises(DataError, match=r"train00004: has no embedding \(truncated: damaged\)"):
        neighbors.similar(out, "train00004", never)
    with pytest.raises(DataError, match="accepted: what a finished `tlray embed` left"):
        neighbors.similar(str(tmp_path), "x", never)


def test_a_contact_sheet(tmp_path: Path, vectors: np.ndarray) -> None:
    data = toys.dataset(tmp_path / "d", train=60)
    out = written(tmp_path / "e", vectors, data, Dataset.open(data).fingerprint)
    hits, picture, manifest = neighbors.similar(out, "train00000", never, top=7)
    assert picture == Dataset.open(data).rows("train", [0])["image"][0].as_py()["bytes"]
    shown: Image.Image = image.decode(neighbors.sheet(picture, hits, manifest))
    assert shown.size == (6 * neighbors.TILE_PX, 2 * (neighbors.TILE_PX + neighbors.CAPTION_PX))
    first = np.asarray(shown)[20:170, 20:170]
    assert first.std() > 20  # something is drawn there
    assert neighbors.picture({**manifest, "fingerprint": "other"}, hits[0]) is None  # the data was made anew
