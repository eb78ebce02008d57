"""Nearest neighbours among the embeddings that `tlray embed` wrote.

The search is exact: it multiplies the query with one Parquet row group after the other and keeps the best
rows, so it needs memory for one row group. A million vectors of 512 numbers are 2 GB to read and 1 GFLOP, a
second or two. An approximate index, which would have to be kept up to date, pays only for many queries to
many millions of vectors.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from tlray import storage
from tlray.data import image, schema, shards
from tlray.data.dataset import Dataset
from tlray.errors import DataError

EMBEDDINGS = "embeddings.json"  # the manifest that `tlray embed` writes
TILE_PX, CAPTION_PX = 192, 30


@dataclass(frozen=True)
class Hit:
    """A neighbour. ``row``: its position in its split or among the files; ``similarity``: the cosine."""

    id: str
    path: str | None
    split: str | None
    row: int
    labels: dict[str, Any]
    similarity: float


def read_manifest(uri: str) -> dict[str, Any]:
    """The manifest of the embeddings at a URI. Raises DataError where they are missing or not complete."""
    place = storage.join(uri, EMBEDDINGS)
    if not storage.exists(place):
        raise DataError(f"{uri}: no {EMBEDDINGS}; accepted: what a finished `tlray embed` left")
    manifest: dict[str, Any] = storage.read_json(place)
    if not isinstance(manifest, dict):
        raise DataError(f"{place}: damaged (no object); accepted: what `tlray embed` left there")
    parts = manifest.get("parts")
    is_valid = {
        "parts": isinstance(parts, dict) and all(isinstance(part, dict) for part in parts.values()),
        "dim": isinstance(manifest.get("dim"), int),
        "labels": isinstance(manifest.get("labels"), dict),
        "data": isinstance(manifest.get("data"), str),
    }
    for key, valid in is_valid.items():
        if not valid:
            raise DataError(f"{place}: damaged (no {key}); accepted: what `tlray embed` left there")
    return manifest


def similar(
    uri: str, query: str, vector: Callable[[dict[str, Any], bytes], np.ndarray], top: int = 5
) -> tuple[list[Hit], bytes | None, dict[str, Any]]:
    """The rows nearest to ``query``: the id or path of another row, or a picture file.

    ``vector`` embeds a picture file (D,) with the model that the manifest names, as `embed.vector` does.
    Returns the hits, nearest first and without the row itself; the picture of the query, None where it is no
    longer there; the manifest. Raises DataError where the query is neither, PictureError for a bad picture.
    """
    manifest = read_manifest(uri)
    row = _row(uri, manifest, query)
    if row is not None:
        query_hit, query_D = row
        return nearest(uri, manifest, query_D, top, query_hit.id), picture(manifest, query_hit), manifest
    if not storage.exists(query) or storage.is_dir(query):
        raise DataError(f"{query}: neither a row of {uri} nor a file; accepted: an id, a path, a picture")
    data = storage.read_bytes(query)
    query_D = vector(manifest, data)
    return nearest(uri, manifest, query_D, top), data, manifest


def nearest(
    uri: str, manifest: dict[str, Any], query_D: np.ndarray, top: int = 5, without: str | None = None
) -> list[Hit]:
    """The ``top`` rows with the highest cosine to ``query_D`` (D,), nearest first; ties in the order of rows.

    ``without``: the id of a row that is left out.
    """
    if len(query_D) != manifest["dim"]:
        raise DataError(f"{uri}: holds {manifest['dim']} numbers a row, not {len(query_D)}: another model's")
    unit_D = query_D / max(float(np.linalg.norm(query_D)), 1e-12)
    best: list[Hit] = []
    for table, name, start in _groups(uri, manifest):
        rows = table.filter(table["embedding"].is_valid())
        if not rows.num_rows:
            continue
        vectors_ND = _vectors(rows)
        norms_N = np.linalg.norm(vectors_ND, axis=1)
        cosine_N = vectors_ND @ unit_D / np.maximum(norms_N, 1e-12)
        position = np.flatnonzero(table["embedding"].is_valid().to_numpy())
        for i in np.argsort(-cosine_N, kind="stable")[: top + 1].tolist():
            if rows[schema.ID][i].as_py() != without:
                best.append(_hit(rows, i, start + int(position[i]), manifest, name, float(cosine_N[i])))
        best = sorted(best, key=lambda hit: -hit.similarity)[:top]
    return best


def _row(uri: str, manifest: dict[str, Any], query: str) -> tuple[Hit, np.ndarray] | None:
    """The row with this id or path, and its vector (D,); None where no row has it."""
    for table, name, start in _groups(uri, manifest, [schema.ID, "path"]):
        for column in (schema.ID, "path"):
            matches = np.flatnonzero(np.array(table[column].to_pylist(), dtype=object) == query)
            if len(matches) == 0:
                continue
            rows = next(t for t, _, s in _groups(uri, manifest, part=name) if s == start)
            i = int(matches[0])
            if rows["embedding"][i].as_py() is None:
                raise DataError(f"{query}: has no embedding ({rows['error'][i].as_py()})")
            return _hit(rows, i, start + i, manifest, name, 1.0), _vectors(rows.slice(i, 1))[0]
    return None


def _groups(
    uri: str, manifest: dict[str, Any], columns: list[str] | None = None, part: str | None = None
) -> Iterator[tuple[pa.Table, str, int]]:
    """Row groups of one part or of all: rows, name of the part, position of the first row in its split."""
    for name, facts in manifest["parts"].items():
        if part not in (None, name):
            continue
        place, start = storage.join(uri, name), facts["start"]
        with shards.reading(place):
            file = shards.Parquet(place)
            handle = file.connect()
            for group, rows in enumerate(file.rows):
                yield file.group(handle, group, columns or file.schema.names), name, start
                start += rows


def _vectors(rows: pa.Table) -> np.ndarray:
    column = rows["embedding"].combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), -1)


def _hit(rows: pa.Table, i: int, row: int, manifest: dict[str, Any], name: str, cosine: float) -> Hit:
    values = {c: rows[c][i].as_py() for c in rows.column_names if c not in ("embedding", "error")}
    labels = {
        column: _named(value, manifest["labels"].get(column))
        for column, value in values.items()
        if column not in (schema.ID, schema.SPLIT, "path")
    }
    return Hit(values[schema.ID], values["path"], manifest["parts"][name]["split"], row, labels, cosine)


def _named(value: Any, names: list[str] | None) -> Any:
    """The value with class numbers replaced by class names."""
    if names is None:
        return value
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def summary(hit: Hit) -> str:
    """Path and labels of a row in one line."""
    labels = [", ".join(map(str, v)) if isinstance(v, list) else v for v in hit.labels.values()]
    return "  ".join(str(part) for part in (hit.path or hit.id, *labels) if isinstance(part, str) and part)


def picture(manifest: dict[str, Any], hit: Hit) -> bytes | None:
    """The encoded picture of a row; None where the data has been deleted or made anew."""
    root = manifest["data"]
    if hit.split is None:
        place = storage.join(root, hit.path or "") if root else str(hit.path)
        return storage.read_bytes(place) if storage.exists(place) else None
    if not storage.exists(root):
        return None
    data = Dataset.open(root)
    if data.fingerprint != manifest["fingerprint"]:
        return None  # the same row may be another picture now
    encoded: bytes = data.rows(hit.split, [hit.row], [schema.IMAGE])[schema.IMAGE][0].as_py()["bytes"]
    return encoded


def sheet(query: bytes | None, hits: list[Hit], manifest: dict[str, Any]) -> bytes:
    """A contact sheet as JPEG: the query's picture, then its neighbours, each with the cosine."""
    tiles = [(query, "asked for", "")]
    for hit in hits:
        label = next((v for v in hit.labels.values() if isinstance(v, str)), "")
        tiles.append((picture(manifest, hit), f"{hit.similarity:.3f}  {label}", hit.path or hit.id))
    columns = min(6, len(tiles))
    rows = -(-len(tiles) // columns)
    canvas = Image.new("RGB", (columns * TILE_PX, rows * (TILE_PX + CAPTION_PX)), "white")
    draw = ImageDraw.Draw(canvas)
    for n, (data, first, second) in enumerate(tiles):
        x, y = n % columns * TILE_PX, n // columns * (TILE_PX + CAPTION_PX)
        if data is not None:
            shown = image.decode(data)
            shown.thumbnail((TILE_PX - 8, TILE_PX - 8))
            canvas.paste(shown, (x + (TILE_PX - shown.width) // 2, y + (TILE_PX - shown.height) // 2))
        draw.text((x + 6, y + TILE_PX), first, fill="black")
        draw.text((x + 6, y + TILE_PX + 13), second[-30:], fill=(110, 110, 110))
    out = io.BytesIO()
    canvas.save(out, "JPEG", quality=90)
    return out.getvalue()


def to_dict(hit: Hit) -> dict[str, Any]:
    """Plain values for JSON."""
    return {**asdict(hit), "similarity": round(hit.similarity, 6)}
