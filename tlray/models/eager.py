"""timm, torchvision and torch's optimisers without torch._dynamo, the compiler behind `torch.compile`.

Importing torch._dynamo and sympy takes 5 s, more than the rest of torch. timm, torchvision and the optimisers
import it for decorators that say "do not compile this", and for one question that a call asks. Here those
wait for the first `torch.compile` of the process, which works as ever. Modules of tlray take `timm` from
here; whoever imports it first decides how long that takes.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch._compile import _disable_dynamo
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

__all__ = ["Shapes", "optimizer", "timm"]

_DYNAMO, _UTILS = "torch._dynamo", "torch._dynamo.utils"
_DECORATED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
_INITIALISERS = frozenset(
    ("add_", "clamp_", "div_", "erfinv_", "fill_", "mul_", "normal_", "uniform_", "zero_")
)
_Kind = TypeVar("_Kind", bound=Optimizer)


@contextmanager
def _without_dynamo() -> Iterator[None]:
    """For the import of torchvision and timm."""
    if _DYNAMO in sys.modules:
        yield
        return

    def is_compile_supported(device_type: Any) -> Any:
        from torch._dynamo import utils

        return utils.is_compile_supported(device_type)

    # torchvision.ops.roi_align imports this one function, and calls it where no kernel of its own fits.
    utils = ModuleType(_UTILS)
    utils.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    # timm.layers.typing takes `disable` for methods of NaFlexVit; torch's own `_disable_dynamo` is the same,
    # but imports torch._dynamo when such a method is first called.
    compiler: Any = torch.compiler
    disable = compiler.disable
    sys.modules[_UTILS], compiler.disable = utils, _disable_dynamo
    try:
        yield
    finally:
        compiler.disable = disable
        del sys.modules[_UTILS]


with _without_dynamo():
    import timm


def optimizer(kind: type[_Kind]) -> type[_Kind]:
    """An optimiser class without the decorators for `torch.compile`; it learns the same, bit for bit.

    They would import torch._dynamo at the first step. A compiled model may be trained with it.
    """
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in _DECORATED}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(inspect.unwrap(kind.step))})


class Shapes(TorchFunctionMode):
    """For a model of shapes alone: a context manager inside `torch.device("meta")`, where nothing has values.

    What would initialise values is left out; torch's own versions for the meta device import torch._dynamo.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _INITIALISERS:
            return args[0] if args else kwargs["tensor"]
        if func is torch.linspace:  # rates of stochastic depth, which models read
            kwargs = {**kwargs, "device": "cpu"}
        return func(*args, **kwargs)
