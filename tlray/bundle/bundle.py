"""The bundle, the only artefact: a folder that holds a model and all it takes to use it.

    manifest.json                  task, backbone, preprocess, labels, metrics, checksums; written last
    weights.safetensors            the parameters
    golden/*, golden.safetensors   a few pictures and the model's raw outputs for them when it was saved
    README.md                      the card, for people

A training checkpoint is a bundle with more files beside these. No pickle is ever loaded.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from safetensors.torch import load_file, save_file
from torch import nn

from tlray import storage, tasks
from tlray.bundle.files import GOLDEN as GOLDEN
from tlray.bundle.files import MANIFEST as MANIFEST
from tlray.bundle.files import WEIGHTS as WEIGHTS
from tlray.data.image import Geometry, Preprocess, render
from tlray.errors import BundleError, TlrayError
from tlray.models.backbone import Backbone
from tlray.tasks.base import Prediction, Task

GOLDEN_TOLERANCE = 1e-2  # of the outputs' largest value: another processor's fp32 and TF32 stay far below
_PACKAGES = ("tlray", "torch", "torchvision", "timm", "ray", "pyarrow", "pillow", "numpy")


class Manifest(BaseModel):
    """What a bundle is; see the module's docstring."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    created: str
    task: dict[str, Any]
    backbone: dict[str, Any]
    freeze_depth: int
    stages: int | None = None  # of the backbone; None in bundles from before it was kept
    preprocess: Preprocess
    labels: list[str]
    metrics: dict[str, float]
    fingerprint: str  # of the data set it was trained on
    config: dict[str, Any]
    versions: dict[str, str]
    checksums: dict[str, str] = {}  # file -> sha256, of every other file

    @field_validator("task")
    @classmethod
    def of_today(cls, value: dict[str, Any]) -> dict[str, Any]:
        return tasks.kept(value)


@dataclass(frozen=True)
class Model:
    """A model in memory with what surrounds it: what a bundle is made from, and what loading gives."""

    module: nn.Module
    task: Task
    backbone: Mapping[str, Any]
    freeze_depth: int
    preprocess: Preprocess
    labels: list[str]
    fingerprint: str
    notes: tuple[str, ...] = ()  # of a new one: what people are told of how it begins

    @torch.inference_mode()
    def predict_rendered(
        self, x_BCHW: torch.Tensor, geometries: Sequence[Geometry], device: str | torch.device = "cpu"
    ) -> list[Prediction]:
        """Model input (uint8, on any device) -> predictions in source pixels."""
        x_BCHW = x_BCHW.to(device, non_blocking=True)
        return self.task.decode(self.module(x_BCHW), geometries, self.labels)

    def predict(self, pictures: Sequence[bytes], device: str | torch.device = "cpu") -> list[Prediction]:
        """Encoded pictures -> predictions. Raises PictureError at the first bad one."""
        rendered = [render(data, self.preprocess) for data in pictures]
        x_BCHW = torch.from_numpy(np.stack([x for x, _ in rendered]))
        return self.predict_rendered(x_BCHW, [geometry for _, geometry in rendered], device)


def versions() -> dict[str, str]:
    """Versions that matter to a model's numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def save(
    uri: str,
    model: Model,
    metrics: Mapping[str, float],
    config: Mapping[str, Any],
    golden: Sequence[bytes] = (),
    beside: Callable[[Path], None] | None = None,
) -> Manifest:
    """Publish a bundle at a URI, whole or not at all; ``beside`` may add files to the staged folder.

    The module may be on any device; it is put into evaluation mode for the golden samples and back.
    """
    module = model.module
    with storage.publish(uri, MANIFEST) as folder:
        save_file(weights(module), folder / WEIGHTS)
        if beside is not None:
            beside(folder)
        if golden:
            _write_golden(folder, model, golden)
        facts = Manifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            task=model.task.model_dump(mode="json"),  # type: ignore[attr-defined]
            backbone=dict(model.backbone),
            freeze_depth=model.freeze_depth,
            stages=len(module.backbone.stages),  # type: ignore[union-attr, arg-type]
            preprocess=model.preprocess,
            labels=model.labels,
            metrics={k: float(v) for k, v in metrics.items()},
            fingerprint=model.fingerprint,
            config=dict(config),
            versions=versions(),
        )
        (folder / "README.md").write_text(_card(facts), encoding="utf-8")
        sums = {
            path.relative_to(folder).as_posix(): _sha256(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        manifest = facts.model_copy(update={"checksums": sums})
        text = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return manifest


def weights(module: nn.Module, training_only: bool = False) -> dict[str, torch.Tensor]:
    """The parameters and statistics that a bundle holds; or those that only training needs."""
    prefixes = tuple(getattr(module, "training_only", ()))
    return {
        name: value.detach().cpu().contiguous()
        for name, value in module.state_dict().items()
        if name.startswith(prefixes) == training_only
    }


def _write_golden(folder: Path, model: Model, pictures: Sequence[bytes]) -> None:
    device = next(model.module.parameters()).device
    was_training = model.module.training
    model.module.eval()
    outputs = _outputs(model, pictures, device)
    model.module.train(was_training)
    (folder / "golden").mkdir()
    for number, data in enumerate(pictures):
        (folder / "golden" / f"{number}.bin").write_bytes(data)
    save_file(outputs, folder / GOLDEN)


@torch.inference_mode()
def _outputs(model: Model, pictures: Sequence[bytes], device: str | torch.device) -> dict[str, torch.Tensor]:
    """Raw outputs by position in whatever structure the task's module returns; modules that rank things
    before they return say in ``golden`` what to compare instead."""
    x_BCHW = torch.from_numpy(np.stack([render(data, model.preprocess)[0] for data in pictures])).to(device)
    compared = getattr(model.module, "golden", model.module)
    leaves = torch.utils._pytree.tree_leaves(compared(x_BCHW))
    return {str(i): leaf.float().cpu().contiguous() for i, leaf in enumerate(leaves)}


def read_manifest(uri: str) -> Manifest:
    """The manifest alone, unchecked against the files. Raises BundleError."""
    if not storage.exists(storage.join(uri, MANIFEST)):
        raise BundleError(
            f"{uri}: no bundle; accepted: a folder with {MANIFEST}, as training leaves in RUN/best"
        )
    try:
        return Manifest.model_validate(storage.read_json(storage.join(uri, MANIFEST)))
    except (ValidationError, ValueError) as error:
        said = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            said = f"{where}: {first['msg']}" if where else "no object"
        raise BundleError(
            f"{uri}/{MANIFEST}: {said}; accepted: what training leaves in RUN/best (format 1)"
        ) from None


def verify(uri: str) -> Manifest:
    """Check every file against the manifest. Raises BundleError naming the first that differs."""
    with storage.local_copy(uri) as folder:
        return _verify(uri, folder)


def _verify(uri: str, folder: Path) -> Manifest:
    manifest = read_manifest(uri)
    for name, expected in manifest.checksums.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{uri}/{name}: points out of the bundle")
        if not path.is_file():
            raise BundleError(f"{uri}/{name}: missing, though the manifest lists it")
        if _sha256(path) != expected:
            raise BundleError(f"{uri}/{name}: changed since it was saved (sha256 differs from the manifest)")
    if WEIGHTS not in manifest.checksums:
        raise BundleError(
            f"{uri}/{MANIFEST}: lists no {WEIGHTS}; accepted: weights as safetensors, never a pickle"
        )
    return manifest


def load(uri: str, device: str | torch.device = "cpu") -> tuple[Manifest, Model]:
    """Verify, build, load weights and run the golden samples. Raises BundleError.

    A model that no longer says what it said when it was saved is refused.
    """
    with storage.local_copy(uri) as folder:
        manifest = _verify(uri, folder)
        try:
            state = load_file(folder / WEIGHTS)
        except Exception as error:  # safetensors raises its own and plain exceptions for foreign bytes
            raise BundleError(
                f"{uri}/{WEIGHTS}: no safetensors file ({error}); a pickle is refused"
            ) from None
        try:
            task = tasks.load(manifest.task, origin=f"{uri}/{MANIFEST}")
            backbone = Backbone.from_spec(manifest.backbone)
            module = task.build(backbone, manifest.labels)
            module.load_state_dict(state)
        except (TlrayError, RuntimeError) as error:
            raise BundleError(
                f"{uri}: does not fit this version of tlray: {str(error).splitlines()[0]}"
            ) from None
        module.to(device).eval()
        model = Model(
            module, task, manifest.backbone, manifest.freeze_depth, manifest.preprocess, manifest.labels,
            manifest.fingerprint,
        )  # fmt: skip
        _check_golden(uri, folder, model, device)
    return manifest, model


def _check_golden(uri: str, folder: Path, model: Model, device: str | torch.device) -> None:
    if not (folder / GOLDEN).is_file():
        return
    expected = load_file(folder / GOLDEN)
    pictures = [
        path.read_bytes() for path in sorted((folder / "golden").iterdir(), key=lambda p: int(p.stem))
    ]
    found = _outputs(model, pictures, device)
    for name, was in expected.items():
        now = found.get(name)
        scale = float(was.abs().max().clamp(min=1e-6))
        worst = (
            float("inf") if now is None or now.shape != was.shape else float((now - was).abs().max()) / scale
        )
        if not worst <= GOLDEN_TOLERANCE:
            raise BundleError(
                f"{uri}: its golden samples give other outputs (off by {worst:.3g} of the largest; accepted: "
                f"at most {GOLDEN_TOLERANCE}): the model is not what was saved"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _card(facts: Manifest) -> str:
    metrics = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(facts.metrics.items()))
    width, height = facts.preprocess.size
    return f"""# {facts.config.get("name", "model")}

A tlray bundle, made {facts.created}: {facts.task["name"]} with {facts.backbone.get("name")},
{facts.freeze_depth} of {facts.stages} stages frozen, input {width} x {height} px.

| metric (validation) | value |
| --- | --- |
{metrics}

{len(facts.labels)} labels: {", ".join(facts.labels[:50])}{" ..." if len(facts.labels) > 50 else ""}

Training data: fingerprint {facts.fingerprint[:16]}.
Use: `tlray predict THIS_FOLDER picture.jpg`, `tlray promote THIS_FOLDER NAME`.
"""
