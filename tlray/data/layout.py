"""Which files of a folder or bucket make up a data set, and which split each belongs to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tlray import storage
from tlray.data.image import EXTENSIONS
from tlray.data.schema import SPLITS
from tlray.errors import DataError

MANIFEST = "dataset.json"
_ACCEPTED = "a data set of `tlray ingest`, Parquet files, or a folder of datasets' save_to_disk"


@dataclass(frozen=True)
class Layout:
    """The files of a data set in global order."""

    files: list[tuple[str | None, str]]  # (split, None where the path does not name one; path below the URI)
    sizes: list[int]  # bytes of each file
    manifest: dict[str, Any]  # of tlray's own data sets, else empty
    fingerprints: list[str]  # of save_to_disk: Arrow streams have no footer that tells their content


def find(uri: str) -> Layout:
    """Find the layout of a data set. Raises DataError where there is none."""
    sizes = {f.path: f.size for f in storage.walk(uri)}
    manifest: dict[str, Any] = {}
    fingerprints: list[str] = []
    files: list[tuple[str | None, str]]
    if MANIFEST in sizes:
        manifest = storage.read_json(storage.join(uri, MANIFEST))
        paths = [p for p in manifest.get("files", sizes) if p.endswith(".parquet")]
        for path in paths:
            if path not in sizes:
                raise DataError(f"{uri}/{path}: missing, though {MANIFEST} lists it")
        files = [(_split_of(path), path) for path in sorted(paths)]
    elif "dataset_dict.json" in sizes:
        names = storage.read_json(storage.join(uri, "dataset_dict.json")).get("splits", [])
        states = {name: storage.read_json(storage.join(uri, name, "state.json")) for name in names}
        files = [(name, f"{name}/{path}") for name in names for path in _saved(states[name])]
        fingerprints = [str(states[name].get("_fingerprint")) for name in names]
    elif "state.json" in sizes:
        state = storage.read_json(storage.join(uri, "state.json"))
        files = [(state.get("_split"), path) for path in _saved(state)]
        fingerprints = [str(state.get("_fingerprint"))]
    elif list(sizes) == [""]:
        files = [(_split_of(storage.name(uri)), "")] if uri.endswith((".parquet", ".arrow")) else []
    else:
        files = [(_split_of(path), path) for path in sorted(sizes) if path.endswith(".parquet")]
    if not files:
        if any(path.lower().endswith(EXTENSIONS) for path in sizes):
            raise DataError(f"{uri}: holds pictures, no data set; run `tlray ingest` on it first")
        there = ", ".join(sorted({p.split("/")[0] for p in sizes})[:5]) or "nothing"
        raise DataError(f"{uri}: no data set; accepted: {_ACCEPTED}; there: {there}")
    return Layout(files, [sizes.get(path, 0) for _, path in files], manifest, fingerprints)


def _saved(state: dict[str, Any]) -> list[str]:
    """The files of one ``save_to_disk`` folder, in their order."""
    return [str(entry["filename"]) for entry in state.get("_data_files", [])]


def _split_of(path: str) -> str | None:
    """The split in a path such as ``train-00000-of-00002.parquet``, ``train/x.parquet``, ``val.parquet``."""
    stem = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    sharded = re.fullmatch(r"(\w[\w.-]*?)-\d{5}-of-\d{5}(-\w+)?", stem)
    if sharded:
        return sharded[1]
    parts = [*path.split("/")[:-1][::-1], stem]
    for part in [stem, *parts]:
        if part.lower() in SPLITS:
            return part
    words = [
        word for part in [stem, *parts] for word in re.split(r"[-_. 0-9]+", part) if word.lower() in SPLITS
    ]
    return words[0] if words else None
