"""Code that runs inside Ray Train's controller. It imports little: that process needs no torch or timm."""

from __future__ import annotations

from typing import Any

import ray
import ray.train

from tlray.observer import Emit


class ControllerHandle(ray.train.UserCallback):
    """Runs inside Ray Train's controller and sends its handle, by which the controller can be ended."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        """Called when all workers have reported an epoch."""
        self._emit({"kind": "leader", "actor": ray.get_runtime_context().current_actor})
