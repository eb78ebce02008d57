"""Training checkpoints: bundles that also hold the optimiser and the cursor; the newest sound one is found.

    RUN/checkpoints/step-00000120/    a bundle + optimizer.safetensors + state.json + what bundles leave out

They are published whole and checked when they are read. A damaged one is passed over for the one
before it, so neither a full disk nor a kill in the middle of a write can stop a run for good.
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

STATE, OPTIMIZER, TRAINING_ONLY = "state.json", "optimizer.safetensors", "training_only.safetensors"
AVERAGES = "averages.safetensors"


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
    """Publish the state of training after ``state["step"]`` steps, then drop all but the newest ``keep``."""

    def beside(folder: Path) -> None:
        save_file(candidate.optimizer_tensors(), folder / OPTIMIZER)
        save_file(bundle.weights(candidate.model.module, training_only=True), folder / TRAINING_ONLY)
        save_file(candidate.snapshots.tensors(), folder / AVERAGES)
        facts = {**state, "scaler": candidate.scaler.state_dict()}
        (folder / STATE).write_text(json.dumps(facts) + "\n", encoding="utf-8")

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
    """Load the newest sound checkpoint into a candidate; its state, or None where there is none."""
    for name in reversed(listing(run_uri)):
        uri = storage.join(_folder(run_uri), name)
        try:
            return _read(uri, candidate)
        except (BundleError, StorageError, OSError, ValueError, KeyError) as error:
            log.warning("%s: passed over, the checkpoint before it is tried: %s", uri, error)
    return None


def _read(uri: str, candidate: Candidate) -> dict[str, Any]:
    bundle.verify(uri)
    with storage.local_copy(uri) as folder:
        state_dict = load_file(folder / bundle.WEIGHTS) | load_file(folder / TRAINING_ONLY)
        candidate.model.module.load_state_dict(state_dict)
        candidate.load_optimizer_tensors(load_file(folder / OPTIMIZER))
        if (folder / AVERAGES).exists():  # not of an earlier version
            candidate.snapshots.load(load_file(folder / AVERAGES), candidate.device)
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    candidate.scaler.load_state_dict(state.pop("scaler"))
    return state


def golden_rows(num_rows: int, count: int = 3) -> Sequence[int]:
    """Which rows of the validation split become golden samples: spread evenly."""
    return sorted({i * num_rows // count for i in range(min(count, num_rows))})
