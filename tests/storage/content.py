"""Folders filled with short texts, and their texts read again."""

from __future__ import annotations

from pathlib import Path

from tlray import storage


def fill(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def contents(uri: str) -> dict[str, str]:
    return {f.path: storage.read_bytes(storage.join(uri, f.path)).decode() for f in storage.walk(uri)}
