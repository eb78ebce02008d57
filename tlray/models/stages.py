"""Cuts a timm model into stages: records a forward pass, replays it as a chain, compares them bit for bit.

A *unit* is a module that the model runs in its forward pass (a child, or a child of a plain container).
Between two units a model may do something itself, such as adding position embeddings or reordering axes. The
few operations of this kind in timm's models (*glue*) are tried until one fits. timm's ``feature_info`` says
which modules end a feature level; there are the boundaries of stages.
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

_PROBE_PX = 64  # small, and a multiple of all strides; models of a fixed size are probed at that size


class StagePlan(NamedTuple):
    """A verified cut: for each stage its name, its steps, and the properties of its output."""

    stages: tuple[str, ...]
    steps: tuple[tuple[str, ...], ...]  # names of modules; "@..." is glue
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    layouts: tuple[str, ...]  # BCHW, BHWC, BND, or "" where the output is no single map


class _Event(NamedTuple):
    """A call of a unit in the recorded forward pass."""

    name: str
    input: Tensor
    kwargs: dict[str, Any]
    result: Tensor


_plans: dict[Any, StagePlan] = {}  # by architecture, as finding one takes two forward passes


class Glue(nn.Module):
    """An operation between two modules; it owns the model's direct parameters (class token, ...)."""

    def __init__(self, model: nn.Module, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self._owner = (model,)  # in a tuple, so that the model is not registered as a submodule
        self._function = function
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self._owner[0], x)


class Reorder(nn.Module):
    """Reorders axes or tokens; without parameters."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "@flatten":
            return x.flatten(2).transpose(1, 2)
        return x.permute(0, 2, 3, 1) if self.name == "@to_bhwc" else x.permute(0, 3, 1, 2)


class Whole(nn.Module):
    """A whole model as one step, for models that are no chain."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.model.forward_features(x)  # type: ignore[operator]
        return result


class Roped(nn.Module):
    """A block with rotary position embeddings for the grid that the model was built for."""

    def __init__(self, block: nn.Module, rope: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.block = block
        self.rope = rope
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(x, rope=_rope(self.rope, self.grid))
        return result


def _tokens(model: Any, x: Tensor) -> Tensor:
    """Add class and register tokens and position embeddings, by the model's own method."""
    embedded = model._pos_embed(x)
    result: Tensor = embedded[0] if isinstance(embedded, tuple) else embedded
    return result


def _class_token(model: Any, x: Tensor) -> Tensor:
    x = torch.cat((model.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
    return x if model.pos_embed is None else x + model.pos_embed


def _position(model: Any, x: Tensor) -> Tensor:
    result: Tensor = x + model.pos_embed
    return result


def _rope(rope: Any, grid: tuple[int, int]) -> Tensor:
    precomputed = getattr(rope, "feat_shape", None) is not None  # for the model's own grid
    result: Tensor = rope.get_embed() if precomputed else rope.get_embed(shape=grid)
    return result


_OWNING: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "@tokens": _tokens,
    "@class_token": _class_token,
    "@position": _position,
}
_GLUE = (*_OWNING, "@flatten", "@to_bhwc", "@to_bchw")


def steps(model: nn.Module, names: tuple[str, ...]) -> list[nn.Module]:
    """The modules of a stage by their step names, shared with the model."""
    return [_step(model, name) for name in names]


def plan(model: nn.Module, key: Any, in_chans: int, hw: tuple[int, int], fixed: bool, name: str) -> StagePlan:
    """Cut a new model into stages; its weights are unchanged afterwards.

    hw: input size in px; ``fixed``: the model was built for it. Plans are cached by ``key``.
    Raises ConfigError where the model does not work at that size.
    """
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if fixed and isinstance(patch, tuple) and any(s % p for s, p in zip(hw, patch, strict=True)):
        raise size_error(name, name, hw, ValueError("it would ignore a part of the picture"), patch[0])
    small = max(hw) <= _PROBE_PX
    key = (key, hw if small else None)
    if key not in _plans:
        mode = model.training
        restore = _disturb(model)
        try:
            sizes = [hw] if fixed or small else [(_PROBE_PX, _PROBE_PX), hw]
            _plans[key] = _cut(model.eval(), in_chans, sizes, name)
        finally:
            restore()
            model.train(mode)
    return _plans[key]


def size_error(
    name: str, arch: str, hw: tuple[int, int], error: Exception, multiple: int | None = None
) -> ConfigError:
    """The error for an input size that a model does not accept, with sizes that it does."""
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
    """timm's default input size of an architecture: height and width in px."""
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
    """Give constant parameters (gates and tokens of zeros) random values, so that leaving them out shows.

    Returns a function that restores them.
    """
    generator = torch.Generator().manual_seed(0)
    saved: list[tuple[nn.Parameter, Tensor]] = []
    with torch.no_grad():
        for p in model.parameters():
            if p.numel() and p.is_floating_point() and bool((p == p.flatten()[0]).all()):
                saved.append((p, p.detach().clone()))
                p.add_(torch.randn(p.shape, generator=generator).mul_(0.1).to(p))

    def restore() -> None:
        with torch.no_grad():
            for parameter, value in saved:
                parameter.copy_(value)

    return restore


@torch.no_grad()
def _cut(model: Any, in_chans: int, sizes: list[tuple[int, int]], name: str) -> StagePlan:
    """Find the plan, with a probe picture of the first size that the model accepts."""
    marks = _marks(model)
    for hw in sizes:
        x = torch.randn((1, in_chans, *hw), generator=torch.Generator().manual_seed(0))
        try:
            events, expected = _record(model, marks, x)
        except (AssertionError, ValueError, RuntimeError, IndexError) as error:
            if hw == sizes[-1]:
                raise size_error(name, name, hw, error) from None
            continue
        break
    names = _chain(model, events, x, expected)
    groups = _group(model, names, marks) if names else {}
    result = _outputs(model, groups, marks, x, expected) if groups else None
    if result is None:
        log.info("%s: its forward pass is no chain of modules; it is one stage (freeze: 0 or all)", name)
        channels, stride, layout = _shape(model, expected, x, None)
        return StagePlan(("all",), (("@whole",),), (channels,), (stride,), (layout,))
    return result


def _marks(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Name of the module that ends a feature level -> timm's description of it, in order."""
    info = getattr(model, "feature_info", None) or []
    info = getattr(info, "info", info)
    return {str(f["module"]): dict(f) for f in info if f.get("module")}


def _units(module: nn.Module, marks: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Units in order: children, or those inside of containers that have boundaries inside or cannot run."""
    for name, child in module.named_children():
        full = prefix + name
        plain = type(child).forward is nn.Sequential.forward
        inside = not marks or any(mark.startswith(f"{full}.") for mark in marks)
        if isinstance(child, nn.ModuleList) or (plain and inside and len(child)):  # type: ignore[arg-type]
            yield from _units(child, marks, f"{full}.")
        else:
            yield full, child


def _record(model: Any, marks: dict[str, Any], x: Tensor) -> tuple[list[_Event], Tensor]:
    """Run ``forward_features`` and record the calls of units with copies of inputs and results."""
    events: list[_Event] = []
    inputs: list[Any] = []  # of the calls that have not returned yet

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        inputs.append((args[0].clone() if args and isinstance(args[0], Tensor) else None, kwargs))

    def after(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            output = result.clone() if isinstance(result, Tensor) else result
            first_input, keywords = inputs.pop()
            events.append(_Event(name, first_input, keywords, output))

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
    """Step names that lead from x to the expected output; empty where no glue fits between two units."""
    names: list[str] = []
    current: Any = x
    for event in events:
        link = _link(model, current, event.input)
        if link is None:
            return []
        names += link
        roped = isinstance(event.kwargs.get("rope"), Tensor) and hasattr(model, "rope")
        names.append(f"@rope:{event.name}" if roped else event.name)
        current = event.result
    link = _link(model, current, expected)
    return [] if link is None else names + link


def _link(model: nn.Module, start: Any, end: Any) -> list[str] | None:
    """The glue that turns one tensor into another: empty for equal ones, None where none fits."""
    if not isinstance(start, Tensor) or not isinstance(end, Tensor):
        return None
    if torch.equal(start, end):
        return []
    for glue in _GLUE:
        try:
            if torch.equal(_step(model, glue)(start), end):
                return [glue]
        except (AssertionError, AttributeError, RuntimeError, IndexError, TypeError, ValueError):
            continue  # the model or the shape does not have what the glue needs
    return None


def _group(model: nn.Module, names: list[str], marks: dict[str, Any]) -> dict[str, list[str]]:
    """Steps by stage. A stage is named after the module that ends it; steps before the first are the stem.

    A step without parameters (an activation, a pooling) belongs to the stage before it.
    """
    stages: list[tuple[str, list[str]]] = [("stem", [])]
    if not marks:
        marks = {n: {} for n in names if "." in n and _has_parameters(model, n)}
    closed = False  # the stage's end was reached: the next step with parameters begins another stage
    for name in names:
        module = name.removeprefix("@rope:")
        has_parameters = _has_parameters(model, name)
        steps_here = stages[-1][1]
        mark = next((m for m in marks if m == module or m.startswith(f"{module}.")), None)
        # A first level inside a container begins with the container; the stem is what comes before it.
        top = module.split(".")[0]
        before = [n for n in steps_here if _has_parameters(model, n) and n.split(".")[0] != top]
        begins = bool(has_parameters and before and len(stages) == 1 and mark is not None and "." in mark)
        if has_parameters and (closed or begins):
            in_chain = [m for m in marks if m in names or f"@rope:{m}" in names]
            position = names.index(name)
            coming = [m for m in in_chain if max(_position_of(names, m), 0) >= position]
            if coming:  # else: a final norm or convolution, which belongs to the last stage
                stages.append((coming[0], []))
                steps_here = stages[-1][1]
            closed = False
        steps_here.append(name)
        closed = closed or mark == module
    return dict(stages) if len(stages) > 1 else {"all": names}


def _position_of(names: list[str], mark: str) -> int:
    return names.index(mark) if mark in names else names.index(f"@rope:{mark}")


def _has_parameters(model: nn.Module, name: str) -> bool:
    if name.startswith("@") and not name.startswith("@rope:"):
        return name in _OWNING
    return next(model.get_submodule(name.removeprefix("@rope:")).parameters(), None) is not None


def _outputs(
    model: nn.Module, groups: dict[str, list[str]], marks: dict[str, Any], x: Tensor, expected: Tensor
) -> StagePlan | None:
    """Replay the chain on the probe picture; None where its output is not exactly the expected one."""
    shapes, current = [], x.clone()
    for name, group in groups.items():
        try:
            for step in steps(model, tuple(group)):
                current = step(current)
        except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError):
            return None
        if not isinstance(current, Tensor):
            return None
        shapes.append(_shape(model, current, x, marks.get(name)))
    if not torch.equal(current, expected):
        return None
    channels, strides, layouts = zip(*shapes, strict=True)
    return StagePlan(tuple(groups), tuple(tuple(g) for g in groups.values()), channels, strides, layouts)


def _shape(model: Any, y: Any, x: Tensor, info: dict[str, Any] | None) -> tuple[int, int, str]:
    """Channels, stride and layout of an output; the aspect ratio shows which axes are height and width."""
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
    # timm's own number, if it is plausible: unpadded convolutions make the ratio of sizes inexact.
    exact = (info or {}).get("reduction")
    stride = exact if exact and abs(exact - x.shape[2] / height) < exact / 2 else x.shape[2] / height
    return channels, round(stride), "BHWC" if bhwc else "BCHW"
