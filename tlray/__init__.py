"""Pictures in, the best fine-tuned model behind an endpoint out: transfer learning for vision on Ray.

    data = tlray.ingest("pictures", "data/mine")
    run = tlray.tune(data, name="mine")
    model = tlray.load(run)
    model("cat.jpg")

The names are those of `tlray.api.notebook`, which is loaded when one of them is used first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlray.api.notebook import (
        Data,
        Metrics,
        Model,
        Prediction,
        Run,
        ingest,
        list_backbones,
        load,
        promote,
        serve,
        train,
        tune,
    )

__version__ = "0.1.0"
__all__ = [
    "Data", "Metrics", "Model", "Prediction", "Run", "__version__", "ingest", "list_backbones", "load",
    "promote", "serve", "train", "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tlray' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module("tlray.api.notebook"), name)
    return value


def __dir__() -> list[str]:
    return list(__all__)
