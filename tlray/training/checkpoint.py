"""Training checkpoints: bundles that also hold the optimiser and the position in training.

    RUN/checkpoints/step-00000120/    a bundle, and beside it the files named below

A checkpoint is published whole and checked when it is read. Where one is damaged, the one before it is used:
neither a full disk nor a kill during a write ends a run for good.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tlray import storage
from tlray.bundle import bundle
from tlray.errors import BundleError, StorageError
from tlray.training.candidate import Candidate
from tlray.training.rundir import CHECKPOINTS

log = logging.getLogger(__name__)

STATE = "state.json"  # the position, past epochs, and the state of the gradient scaler
OPTIMIZER = "optimizer.safetensors"
TRAINING_ONLY = "training_only.safetensors"  # weights that a bundle leaves out
AVERAGES = "averages.safetensors"  # of weights, see average.py


def _folder(run_uri: str) -> str:
    return storage.join(run_uri, CHECKPOINTS)


def save(
    run_uri: str,
    candidate: Candidate,
    state: Mapping[str, Any],
    metrics: Mapping[str, float],
    config: Mapping[str, Any],
    keep: int,
) -> str:
    """Publish a checkpoint of ``state["step"]`` steps, then delete all but the newest ``keep``; its URI."""

    def beside(folder: Path) -> None:
        save_file(candidate.optimizer_tensors(), folder / OPTIMIZER)
        save_file(bundle.weights(candidate.model.module, training_only=True), folder / TRAINING_ONLY)
        save_file(candidate.snapshots.tensors(), folder / AVERAGES)
        stored = {**state, "scaler": candidate.scaler.state_dict()}
        (folder / STATE).write_text(json.dumps(stored) + "\n", encoding="utf-8")

    uri = storage.join(_folder(run_uri), f"step-{state['step']:08d}")
    bundle.save(uri, candidate.model, metrics, config, beside=beside)
    for name in listing(run_uri)[:-keep]:
        storage.delete(storage.join(_folder(run_uri), name))
    return uri


def listing(run_uri: str) -> list[str]:
    """Names of a run's checkpoints, oldest first."""
    if not storage.is_dir(_folder(run_uri)):
        return []
    return sorted(name for name in storage.listdir(_folder(run_uri)) if name.startswith("step-"))


def restore(run_uri: str, candidate: Candidate) -> dict[str, Any] | None:
    """Load the newest sound checkpoint into a candidate; its state, or None without one."""
    for name in reversed(listing(run_uri)):
        uri = storage.join(_folder(run_uri), name)
        try:
            return _read(uri, candidate)
        except (BundleError, StorageError, OSError, ValueError, KeyError) as error:
            log.warning("%s: damaged, the checkpoint before it is tried: %s", uri, error)
    return None


def _read(uri: str, candidate: Candidate) -> dict[str, Any]:
    bundle.verify(uri)
    with storage.local_copy(uri) as folder:
        state_dict = load_file(folder / bundle.WEIGHTS) | load_file(folder / TRAINING_ONLY)
        candidate.model.module.load_state_dict(state_dict)
        candidate.load_optimizer_tensors(load_file(folder / OPTIMIZER))
        if (folder / AVERAGES).exists():  # checkpoints of an earlier version have none
            candidate.snapshots.load(load_file(folder / AVERAGES), candidate.device)
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    candidate.scaler.load_state_dict(state.pop("scaler"))
    return state


def golden_rows(num_rows: int, count: int = 3) -> Sequence[int]:
    """Rows of the validation split, spread evenly, that become golden samples."""
    return sorted({i * num_rows // count for i in range(min(count, num_rows))})
