"""How a timm model is cut into stages: watch one forward pass, replay it as a chain, compare bit for bit.

A *unit* is a module that the model runs on its way (a child, or a child of a plain container); between
two units a model may do something itself (add position embeddings, reorder axes), and that is found by
trying the few things that timm's models do (*glue*). Where a boundary lies comes from timm's
``feature_info``, which says which modules end a feature level.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tlray.errors import ConfigError
from tlray.models.eager import timm

log = logging.getLogger(__name__)

_PROBE_PX = 64  # small, and a multiple of every stride; networks tied to their size are probed at that


class StagePlan(NamedTuple):
    """A cut that was checked: per stage its name, the steps to run, and what comes out."""

    stages: tuple[str, ...]
    steps: tuple[tuple[str, ...], ...]  # names of modules; "@..." is glue
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    layouts: tuple[str, ...]  # BCHW, BHWC, BND, or "" where the output is no single map


class _Event(NamedTuple):
    name: str
    given: Tensor
    kwargs: dict[str, Any]
    result: Tensor


_plans: dict[Any, StagePlan] = {}  # the probe costs two forward passes: once per architecture and process


class Glue(nn.Module):
    """What a model does between two of its modules; owns the model's bare parameters (class token, ...)."""

    def __init__(self, model: nn.Module, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self._owner = (model,)  # in a tuple: the model is not a part of its own stem
        self._function = function
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self._owner[0], x)


class Reorder(nn.Module):
    """Axes or tokens in another order: no parameters, no model."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "@flatten":
            return x.flatten(2).transpose(1, 2)
        return x.permute(0, 2, 3, 1) if self.name == "@to_bhwc" else x.permute(0, 3, 1, 2)


class Whole(nn.Module):
    """A model that is no chain, as one step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.model.forward_features(x)  # type: ignore[operator]
        return result


class Roped(nn.Module):
    """A block that takes rotary position embeddings, computed for the grid that the model was built for."""

    def __init__(self, block: nn.Module, rope: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.block = block
        self.rope = rope
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(x, rope=_rope(self.rope, self.grid))
        return result


def _tokens(model: Any, x: Tensor) -> Tensor:
    """Class and register tokens and position embeddings, by the model's own method."""
    y = model._pos_embed(x)
    result: Tensor = y[0] if isinstance(y, tuple) else y
    return result


def _class_token(model: Any, x: Tensor) -> Tensor:
    x = torch.cat((model.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
    return x if model.pos_embed is None else x + model.pos_embed


def _position(model: Any, x: Tensor) -> Tensor:
    result: Tensor = x + model.pos_embed
    return result


def _rope(rope: Any, grid: tuple[int, int]) -> Tensor:
    kept = getattr(rope, "feat_shape", None) is not None  # computed once, for the model's own grid
    result: Tensor = rope.get_embed() if kept else rope.get_embed(shape=grid)
    return result


_OWNING: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "@tokens": _tokens,
    "@class_token": _class_token,
    "@position": _position,
}
_GLUE = (*_OWNING, "@flatten", "@to_bhwc", "@to_bchw")


def steps(model: nn.Module, names: tuple[str, ...]) -> list[nn.Module]:
    """The modules that a stage's step names stand for, shared with the model."""
    return [_step(model, name) for name in names]


def plan(model: nn.Module, key: Any, in_chans: int, hw: tuple[int, int], fixed: bool, name: str) -> StagePlan:
    """Cut a freshly made model into stages; the weights stay as they are.

    hw is the input size in px; ``fixed`` says that the model was built for it. Results are kept by ``key``.
    Raises ConfigError when the model cannot work at that size.
    """
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if fixed and isinstance(patch, tuple) and any(s % p for s, p in zip(hw, patch, strict=True)):
        raise size_error(name, name, hw, ValueError("it would cut off a strip"), patch[0])
    small = max(hw) <= _PROBE_PX
    key = (key, hw if small else None)
    if key not in _plans:
        mode = model.training
        restore = _disturb(model)
        try:
            tried = [hw] if fixed or small else [(_PROBE_PX, _PROBE_PX), hw]
            _plans[key] = _cut(model.eval(), in_chans, tried, name)
        finally:
            restore()
            model.train(mode)
    return _plans[key]


def size_error(
    name: str, arch: str, hw: tuple[int, int], error: Exception, multiple: int | None = None
) -> ConfigError:
    """The one line for an input size that a model does not take, with sizes that it does."""
    pretrained = pretrained_hw(arch)[0]
    text = f"{hw[0]}" if hw[0] == hw[1] else f"{hw[0]}x{hw[1]}"
    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if multiple:
        low = max(min(hw) // multiple, 1) * multiple
        accepted = f"multiples of {multiple}, such as {low} or {low + multiple}"
    else:
        accepted = f"{pretrained}, the size of the pretrained weights, or some other multiples of 32"
    return ConfigError(f"input.size = {text} ({name}): accepted: {accepted} ({why})")


def pretrained_hw(arch: str) -> tuple[int, int]:
    """The size in px that timm declares for an architecture, which is what it is built for by default."""
    cfg = timm.get_pretrained_cfg(arch)
    size = cfg.input_size if cfg is not None else (3, 224, 224)
    return int(size[1]), int(size[2])


def _step(model: nn.Module, name: str) -> nn.Module:
    if name in _OWNING:
        return Glue(model, _OWNING[name])
    if name.startswith("@rope:"):
        grid: Any = model.get_submodule("patch_embed").grid_size
        return Roped(model.get_submodule(name[6:]), model.get_submodule("rope"), grid)
    if name == "@whole":
        return Whole(model)
    return Reorder(name) if name.startswith("@") else model.get_submodule(name)


def _disturb(model: nn.Module) -> Callable[[], None]:
    """Give constant parameters (zero gates, zero tokens) random values, which show what is left out."""
    generator = torch.Generator().manual_seed(0)
    kept: list[tuple[nn.Parameter, Tensor]] = []
    with torch.no_grad():
        for p in model.parameters():
            if p.numel() and p.is_floating_point() and bool((p == p.flatten()[0]).all()):
                kept.append((p, p.detach().clone()))
                p.add_(torch.randn(p.shape, generator=generator).mul_(0.1).to(p))

    def restore() -> None:
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)

    return restore


@torch.no_grad()
def _cut(model: Any, in_chans: int, tried: list[tuple[int, int]], name: str) -> StagePlan:
    marks = _marks(model)
    for hw in tried:
        x = torch.randn((1, in_chans, *hw), generator=torch.Generator().manual_seed(0))
        try:
            events, expected = _watch(model, marks, x)
        except (AssertionError, ValueError, RuntimeError, IndexError) as error:
            if hw == tried[-1]:
                raise size_error(name, name, hw, error) from None
            continue
        break
    found = _chain(model, events, x, expected)
    groups = _group(model, found, marks) if found else {}
    result = _outputs(model, groups, marks, x, expected) if groups else None
    if result is None:
        log.info("%s: its forward pass is no chain of modules; it is one stage (freeze: 0 or all)", name)
        channels, stride, layout = _shape(model, expected, x, None)
        return StagePlan(("all",), (("@whole",),), (channels,), (stride,), (layout,))
    return result


def _marks(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Module name that ends a feature level -> what timm says about it, in order."""
    info = getattr(model, "feature_info", None) or []
    info = getattr(info, "info", info)
    return {str(f["module"]): dict(f) for f in info if f.get("module")}


def _units(module: nn.Module, marks: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Children in order; a plain container is opened where boundaries lie inside (or where it cannot run)."""
    for name, child in module.named_children():
        full = prefix + name
        plain = type(child).forward is nn.Sequential.forward
        inside = not marks or any(mark.startswith(f"{full}.") for mark in marks)
        if isinstance(child, nn.ModuleList) or (plain and inside and len(child)):  # type: ignore[arg-type]
            yield from _units(child, marks, f"{full}.")
        else:
            yield full, child


def _watch(model: Any, marks: dict[str, Any], x: Tensor) -> tuple[list[_Event], Tensor]:
    """Run ``forward_features``; note which units ran, on what, with what result (copied)."""
    events: list[_Event] = []
    given: list[Any] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        given.append((args[0].clone() if args and isinstance(args[0], Tensor) else None, kwargs))

    def after(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            kept = result.clone() if isinstance(result, Tensor) else result
            start, keywords = given.pop()
            events.append(_Event(name, start, keywords, kept))

        return hook

    handles = []
    for name, unit in _units(model, marks):
        handles.append(unit.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(unit.register_forward_hook(after(name), with_kwargs=True))
    try:
        expected = model.forward_features(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    return events, expected


def _chain(model: nn.Module, events: list[_Event], x: Tensor, expected: Any) -> list[str]:
    """Step names that lead from x to the expected output; empty when there is a gap that no glue fills."""
    names: list[str] = []
    here: Any = x
    for event in events:
        link = _link(model, here, event.given)
        if link is None:
            return []
        names += link
        roped = isinstance(event.kwargs.get("rope"), Tensor) and hasattr(model, "rope")
        names.append(f"@rope:{event.name}" if roped else event.name)
        here = event.result
    link = _link(model, here, expected)
    return [] if link is None else names + link


def _link(model: nn.Module, here: Any, there: Any) -> list[str] | None:
    """Glue that turns one tensor into another: nothing, one piece, or None when none fits."""
    if not isinstance(here, Tensor) or not isinstance(there, Tensor):
        return None
    if torch.equal(here, there):
        return []
    for glue in _GLUE:
        try:
            if torch.equal(_step(model, glue)(here), there):
                return [glue]
        except (AssertionError, AttributeError, RuntimeError, IndexError, TypeError, ValueError):
            continue  # a thing that this model or this shape does not have
    return None


def _group(model: nn.Module, names: list[str], marks: dict[str, Any]) -> dict[str, list[str]]:
    """Steps by stage, each named after the module that ends it; what comes before the first is the stem.

    What learns nothing (an activation, a pooling) joins the stage before.
    """
    stages: list[tuple[str, list[str]]] = [("stem", [])]
    if not marks:
        marks = {n: {} for n in names if "." in n and _learns(model, n)}
    closed = False  # the stage's last level has ended: the next module that learns begins another
    for name in names:
        module = name.removeprefix("@rope:")
        learns = _learns(model, name)
        here = stages[-1][1]
        mark = next((m for m in marks if m == module or m.startswith(f"{module}.")), None)
        # A first level inside a container begins with it: what stands before the container is the stem.
        top = module.split(".")[0]
        before = [n for n in here if _learns(model, n) and n.split(".")[0] != top]
        begins = bool(learns and before and len(stages) == 1 and mark is not None and "." in mark)
        if learns and (closed or begins):
            ahead = [m for m in marks if m in names or f"@rope:{m}" in names]
            at = names.index(name)
            coming = [m for m in ahead if max(_at(names, m), 0) >= at]
            if coming:  # else: a final norm or convolution, part of the last stage
                stages.append((coming[0], []))
                here = stages[-1][1]
            closed = False
        here.append(name)
        closed = closed or mark == module
    return dict(stages) if len(stages) > 1 else {"all": names}


def _at(names: list[str], mark: str) -> int:
    return names.index(mark) if mark in names else names.index(f"@rope:{mark}")


def _learns(model: nn.Module, name: str) -> bool:
    if name.startswith("@") and not name.startswith("@rope:"):
        return name in _OWNING
    return next(model.get_submodule(name.removeprefix("@rope:")).parameters(), None) is not None


def _outputs(
    model: nn.Module, groups: dict[str, list[str]], marks: dict[str, Any], x: Tensor, expected: Tensor
) -> StagePlan | None:
    """Replay the chain from the probe picture; None when it does not give the expected output exactly."""
    shapes, here = [], x.clone()
    for name, group in groups.items():
        try:
            for step in steps(model, tuple(group)):
                here = step(here)
        except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError):
            return None
        if not isinstance(here, Tensor):
            return None
        shapes.append(_shape(model, here, x, marks.get(name)))
    if not torch.equal(here, expected):
        return None
    channels, strides, layouts = zip(*shapes, strict=True)
    return StagePlan(tuple(groups), tuple(tuple(g) for g in groups.values()), channels, strides, layouts)


def _shape(model: Any, y: Any, x: Tensor, info: dict[str, Any] | None) -> tuple[int, int, str]:
    """Channels, stride and layout of an output. A square probe shows which axes are height and width."""
    if isinstance(y, Tensor) and y.ndim == 3:
        tokens = y.shape[1] - int(getattr(model, "num_prefix_tokens", 0))
        exact = (info or {}).get("reduction")
        stride = exact or round(math.sqrt(x.shape[2] * x.shape[3] / max(tokens, 1)))
        whole = math.ceil(x.shape[2] / stride) * math.ceil(x.shape[3] / stride) == tokens
        return y.shape[2], stride, "BND" if whole else ""
    if not isinstance(y, Tensor) or y.ndim != 4:
        return int(getattr(model, "num_features", 0)), 0, ""
    ratio = x.shape[2] / x.shape[3]
    first, last = (abs(a / b - ratio) < 0.01 for a, b in ((y.shape[1], y.shape[2]), (y.shape[2], y.shape[3])))
    declared = str(getattr(getattr(model, "output_fmt", ""), "value", getattr(model, "output_fmt", "")))
    bhwc = first if first != last else declared == "NHWC"
    channels, height = (y.shape[3], y.shape[1]) if bhwc else (y.shape[1], y.shape[2])
    # timm's own number where it has one: unpadded convolutions make the ratio of the sizes inexact.
    exact = (info or {}).get("reduction")
    stride = exact if exact and abs(exact - x.shape[2] / height) < exact / 2 else x.shape[2] / height
    return channels, round(stride), "BHWC" if bhwc else "BCHW"
