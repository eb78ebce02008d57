"""The bundle, tlray's only artefact: a folder with a model and everything that is needed to use it.

    manifest.json                  task, backbone, preprocess, labels, metrics, checksums; written last
    weights.safetensors            the parameters
    golden/*, golden.safetensors   a few pictures, and the model's raw outputs for them at the time of saving
    README.md                      the card, for people

A training checkpoint is a bundle with more files. No pickle is ever loaded. manifest.py reads the manifest.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tlray import storage, tasks
from tlray.bundle.manifest import (
    GOLDEN,
    MANIFEST,
    WEIGHTS,
    Manifest,
    read_manifest,
    sha256,
    verify,
    verify_files,
)
from tlray.data.image import Geometry, Preprocess, render_batch
from tlray.errors import BundleError, TlrayError
from tlray.models.backbone import Backbone
from tlray.tasks.base import Prediction, Task

__all__ = [  # with what manifest.py has: code that has torch anyway imports one module
    "GOLDEN", "GOLDEN_TOLERANCE", "MANIFEST", "WEIGHTS", "Manifest", "Model", "load", "read_manifest", "save",
    "verify", "versions", "weights",
]  # fmt: skip
GOLDEN_TOLERANCE = 1e-2  # share of the largest output; fp32 and TF32 of other processors differ by far less
_PACKAGES = ("tlray", "torch", "torchvision", "timm", "ray", "pyarrow", "pillow", "numpy")


@dataclass(frozen=True)
class Model:
    """A model in memory and everything that a bundle keeps of it: `save` takes one, `load` gives one."""

    module: nn.Module
    task: Task
    backbone: Mapping[str, Any]
    freeze_depth: int
    preprocess: Preprocess
    labels: list[str]
    fingerprint: str
    notes: tuple[str, ...] = ()  # of a new model: how it was initialised, one line each, for the user

    @torch.inference_mode()
    def predict_rendered(
        self, x_BCHW: torch.Tensor, geometries: Sequence[Geometry], device: str | torch.device = "cpu"
    ) -> list[Prediction]:
        """Model input (uint8, on any device) -> predictions in source pixels."""
        x_BCHW = x_BCHW.to(device, non_blocking=True)
        return self.task.decode(self.module(x_BCHW), geometries, self.labels)

    def predict(self, pictures: Sequence[bytes], device: str | torch.device = "cpu") -> list[Prediction]:
        """Encoded pictures -> predictions. Raises PictureError at the first bad one."""
        batch = render_batch(pictures, self.preprocess)
        return self.predict_rendered(torch.from_numpy(batch.x_BCHW), batch.geometries, device)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a model's outputs."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def save(
    uri: str,
    model: Model,
    metrics: Mapping[str, float],
    config: Mapping[str, Any],
    golden: Sequence[bytes] = (),
    beside: Callable[[Path], None] | None = None,
) -> Manifest:
    """Publish a bundle at a URI, whole or not at all; ``beside`` may add files to its folder before that.

    The module may be on any device. For the golden samples it runs in evaluation mode; its mode is restored.
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
            path.relative_to(folder).as_posix(): sha256(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        manifest = facts.model_copy(update={"checksums": sums})
        text = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return manifest


def weights(module: nn.Module, training_only: bool = False) -> dict[str, torch.Tensor]:
    """Parameters and statistics of a module that a bundle keeps; with ``training_only`` all the others."""
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
    """Raw outputs of the task's module for some pictures, by position in the structure that it returns.

    Where these cannot be compared, because the module ranks things first, its ``golden`` gives others.
    """
    x_BCHW = torch.from_numpy(render_batch(pictures, model.preprocess).x_BCHW).to(device)
    compared = getattr(model.module, "golden", model.module)
    leaves = torch.utils._pytree.tree_leaves(compared(x_BCHW))
    return {str(i): leaf.float().cpu().contiguous() for i, leaf in enumerate(leaves)}


def load(uri: str, device: str | torch.device = "cpu") -> tuple[Manifest, Model]:
    """Check the files, build the model, load its weights and run the golden samples.

    Raises BundleError, also where the golden samples give other outputs than when the bundle was saved.
    """
    with storage.local_copy(uri) as folder:
        manifest = verify_files(uri, folder)
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
    outputs = _outputs(model, pictures, device)
    for name, saved in expected.items():
        output = outputs.get(name)
        if output is None or output.shape != saved.shape:
            difference = float("inf")
        else:
            difference = float((output - saved).abs().max() / saved.abs().max().clamp(min=1e-6))
        if not difference <= GOLDEN_TOLERANCE:
            raise BundleError(
                f"{uri}: its golden samples give other outputs (off by {difference:.3g} of the largest; "
                f"accepted: at most {GOLDEN_TOLERANCE}): the model is not what was saved"
            )


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
