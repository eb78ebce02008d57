"""The manifest of a bundle: what the model is, and the checksums of the bundle's files. Needs no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from tlray import storage, tasks
from tlray.bundle.files import GOLDEN as GOLDEN
from tlray.bundle.files import MANIFEST as MANIFEST
from tlray.bundle.files import WEIGHTS as WEIGHTS
from tlray.data.image import Preprocess
from tlray.errors import BundleError


class Manifest(BaseModel):
    """Everything that a bundle says about its model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    created: str
    task: dict[str, Any]
    backbone: dict[str, Any]
    freeze_depth: int
    stages: int | None = None  # number of the backbone's stages; None in bundles of early versions
    preprocess: Preprocess
    labels: list[str]
    metrics: dict[str, float]
    fingerprint: str  # of the data set that the model was trained on
    config: dict[str, Any]
    versions: dict[str, str]
    checksums: dict[str, str] = {}  # file -> sha256, of every other file

    @field_validator("task")
    @classmethod
    def drop_moved_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Early versions kept settings under ``task`` that belong to another section now."""
        return tasks.kept(value)


def read_manifest(uri: str) -> Manifest:
    """The manifest of a bundle; the other files are not looked at. Raises BundleError."""
    if not storage.exists(storage.join(uri, MANIFEST)):
        raise BundleError(
            f"{uri}: no bundle; accepted: a folder with {MANIFEST}, as training leaves in RUN/best"
        )
    try:
        return Manifest.model_validate(storage.read_json(storage.join(uri, MANIFEST)))
    except (ValidationError, ValueError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            reason = f"{key}: {first['msg']}" if key else "no object"
        raise BundleError(
            f"{uri}/{MANIFEST}: {reason}; accepted: what training leaves in RUN/best (format 1)"
        ) from None


def verify(uri: str) -> Manifest:
    """Check every file of a bundle against the manifest. Raises BundleError naming the first that differs."""
    with storage.local_copy(uri) as folder:
        return verify_files(uri, folder)


def verify_files(uri: str, folder: Path) -> Manifest:
    """`verify` of the bundle at ``uri``, whose files are in a local folder."""
    manifest = read_manifest(uri)
    for name, expected in manifest.checksums.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{uri}/{name}: points out of the bundle")
        if not path.is_file():
            raise BundleError(f"{uri}/{name}: missing, though the manifest lists it")
        if sha256(path) != expected:
            raise BundleError(f"{uri}/{name}: changed since it was saved (sha256 differs from the manifest)")
    if WEIGHTS not in manifest.checksums:
        raise BundleError(
            f"{uri}/{MANIFEST}: lists no {WEIGHTS}; accepted: weights as safetensors, never a pickle"
        )
    return manifest


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
