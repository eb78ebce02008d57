"""The processes that train together, and how they exchange values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Worker(Protocol):
    """One of the processes that train together."""

    rank: int
    world: int
    device: torch.device
    threads: int

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order; every rank has to call it, and waits for the others."""
        ...


@dataclass
class LocalWorker:
    """The only process of a training."""

    threads: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def gather(self, value: Any) -> list[Any]:
        return [value]
