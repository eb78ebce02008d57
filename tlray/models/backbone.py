"""A timm model as a list of stages that can be frozen up to a depth, or run as a prefix and a suffix.

Letters in names: B batch, C channels, H and W height and width, N tokens, D embedding width.

How a model is cut into stages (`stages.plan`): timm lists for each architecture the modules that end a
feature level, and its feature extractors run the modules between them one after another. tlray does the
same, then compares the result with the model's own ``forward_features`` on a probe picture. A model for which
they differ in any bit becomes one single stage, so a wrong cut cannot go unnoticed.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlray.errors import ConfigError, nearest
from tlray.models import stages as cutting
from tlray.models import weights as source
from tlray.models.eager import Shapes, timm

log = logging.getLogger(__name__)

POOLED = "pooled"  # what pooled features are called beside the names of stages
_INTERPOLATIONS = ("bilinear", "bicubic")  # those of image.Preprocess


class DataConfig(NamedTuple):
    """The input of the pretrained weights: side in px, mean and std of values in 0..1."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


class Normalize(nn.Module):
    """Pixels 0..255 (uint8 or float, BCHW) to normalised floats; the first step of the stem.

    Mean and std are in the spec, not in the state dict, so that a backbone has the same keys as a timm file.
    The memory format (channels_last) is kept.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1) * 255, persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return (x_BCHW.to(self.mean.dtype) - self.mean) / self.std


class Stage(nn.Module):
    """Consecutive modules of a model; while frozen, it stays in eval mode."""

    def __init__(self, name: str, steps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.name = name
        self.frozen = False
        self.steps = nn.ModuleList(steps)

    def train(self, mode: bool = True) -> Stage:
        """As of nn.Module, but a frozen stage stays in eval mode: no dropout, fixed norm statistics."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


class Chain(nn.Module):
    """Consecutive stages of a backbone, shared with it; without stages it is the identity."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


@dataclass(frozen=True)
class Boundary:
    """The end of a frozen prefix of ``depth`` stages, and the features that a head reads.

    ``reads``: indices of the stages whose maps the head takes; None: the pooled features.
    """

    depth: int
    reads: tuple[int, ...] | None = None

    def keeps(self, num_stages: int) -> list[int]:
        """Stages of the prefix whose outputs the later stages and the head need."""
        for_head = [i for i in self.reads or () if i < self.depth]
        suffix_runs = self.depth < num_stages and (self.reads is None or max(self.reads) >= self.depth)
        return sorted({*for_head, self.depth - 1} if suffix_runs else for_head)


@dataclass(frozen=True)
class Features:
    """The outputs of a frozen prefix for a batch, from which a `Backbone` goes on in place of pixels.

    maps: outputs of stages, by index. pooled: (B, num_features), where the prefix is the whole backbone.
    shape: (B, C, H, W) of the pixels.
    """

    maps: dict[int, Tensor]
    pooled: Tensor | None
    shape: torch.Size

    def to(self, device: str | torch.device, **how: Any) -> Features:
        """A copy on a device."""
        maps = {i: x.to(device, **how) for i, x in self.maps.items()}
        return Features(maps, None if self.pooled is None else self.pooled.to(device, **how), self.shape)


class Backbone(nn.Module):
    """A timm model (or a built-in one) without its classifier, cut into stages.

    ``forward(x_BCHW)`` takes pixels 0..255, uint8 or float, and equals timm's ``forward_features`` of the
    normalised pixels. ``suffix(d)(prefix(d)(x))`` equals it bit for bit for every d in 0..len(stages).

    name: a timm model, with or without a pretrained tag, or one of ``weights.BUILTIN``.
    weights: builtin | timm | none | hf-hub:NAME | a local or s3:// .safetensors file.
    size: input side in px, or height and width; None: that of the pretrained weights. Models with position
        embeddings are built for it; convolutional ones take any size afterwards.
    mean, std: per channel, of values in 0..1; None: those of the pretrained weights.
    drop_rate: dropout on the pooled features, whatever the freeze depth.
    drop_path_rate: stochastic depth inside the stages that are not frozen.

    Raises ConfigError (unknown name, size or channels that do not fit, weights of another model),
    StorageError (weights that cannot be read or downloaded), BundleError (a damaged or unsafe file).
    """

    def __init__(
        self,
        name: str,
        weights: str = "none",
        *,
        in_chans: int = 3,
        size: int | tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        arch, extra = _architecture(name)
        origin = source.find(name, weights)
        config = _data_config(name, origin.pretrained_cfg)
        side = config.size if size is None else size
        hw = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
        if drop_path_rate:
            extra = {**extra, "drop_path_rate": drop_path_rate}
        self.name = name
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.drop_path_rate = drop_path_rate
        self.size = side
        self.interpolation = config.interpolation
        self.data_config = config
        self.mean = _per_channel("mean", mean, config.mean, in_chans)
        self.std = _per_channel("std", std, config.std, in_chans)
        model: Any
        model, fixed = _build(name, arch, extra, in_chans, hw)
        # The model is cut before the weights are loaded: a bundle, rebuilt without them, is cut the same way.
        key = (arch, tuple(sorted(extra.items())), in_chans, hw if fixed else None)
        plan = cutting.plan(model, key, in_chans, hw, fixed, name)
        source.load(model, origin, in_chans, name)
        self.num_features = int(getattr(model, "head_hidden_size", None) or model.num_features)
        self.normalize = Normalize(self.mean, self.std)
        self.model: Any = model
        parts = [cutting.steps(model, names) for names in plan.steps]
        parts[0] = [self.normalize, *parts[0]]
        # In a tuple, not a ModuleList: the parameters are registered once, under timm's names.
        self._chain = tuple(Stage(n, p) for n, p in zip(plan.stages, parts, strict=True))
        self._layouts = plan.layouts
        self._prefix_tokens = int(getattr(model, "num_prefix_tokens", 0))
        self._never_trained = frozenset(n for n, p in model.named_parameters() if not p.requires_grad)
        self.stages: list[str] = list(plan.stages)
        self.channels: list[int] = list(plan.channels)
        self.strides: list[int] = list(plan.strides)
        self.frozen_depth = 0

    def forward(self, x_BCHW: Tensor | Features) -> Tensor:
        """Pixels 0..255 to the final features: BCHW, BHWC or BND, as the architecture has them."""
        done = x_BCHW.maps if isinstance(x_BCHW, Features) else {-1: x_BCHW}
        last = max(done)
        x = done[last]
        for stage in self._chain[last + 1 :]:
            x = stage(x)
        return x

    def embed(self, features: Tensor) -> Tensor:
        """Final features to pooled features (B, num_features): timm's ``forward_head(pre_logits=True)``."""
        x_BD: Tensor = self.model.forward_head(features, pre_logits=True)
        return self._drop(x_BD)

    def pooled(self, x_BCHW: Tensor | Features) -> Tensor:
        """Pixels 0..255 to pooled features (B, num_features): `embed` of `forward`."""
        if isinstance(x_BCHW, Features) and x_BCHW.pooled is not None:
            return self._drop(x_BCHW.pooled)
        return self.embed(self(x_BCHW))

    def _drop(self, x_BD: Tensor) -> Tensor:
        return F.dropout(x_BD, self.drop_rate, self.training) if self.drop_rate else x_BD

    @torch.no_grad()
    def features(self, x_BCHW: Tensor, boundaries: Iterable[Boundary]) -> dict[Boundary, Features]:
        """The features at several boundaries in one pass; all stages below them must be frozen."""
        distinct, maps = set(boundaries), dict[int, Tensor]()
        last, x = max((b.depth for b in distinct), default=0), x_BCHW
        assert all(stage.frozen for stage in self._chain[:last]), "a stage below a boundary is not frozen"
        needed = {i for b in distinct for i in b.keeps(len(self.stages))}
        for i, stage in enumerate(self._chain[:last]):
            x = stage(x)
            if i in needed:
                maps[i] = x
        features = {}
        for b in distinct:
            whole = b.reads is None and b.depth == len(self.stages)
            pooled = self.model.forward_head(x, pre_logits=True) if whole else None
            features[b] = Features({i: maps[i] for i in b.keeps(len(self.stages))}, pooled, x_BCHW.shape)
        return features

    def prefix(self, depth: int | float | str) -> Chain:
        """The first ``depth`` stages, which take pixels; ``depth`` as in `resolve`."""
        return Chain(self._chain[: self.resolve(depth)])

    def suffix(self, depth: int | float | str) -> Chain:
        """The stages after the first ``depth``, which take the output of `prefix`."""
        return Chain(self._chain[self.resolve(depth) :])

    def pyramid(self, x_BCHW: Tensor | Features, stages: Sequence[int | str] | None = None) -> list[Tensor]:
        """Outputs of some stages (names or indices, None: all) as BCHW maps, in the order of the stages.

        Tokens become maps, without class and register tokens. ``channels`` and ``strides`` describe the maps.
        Raises ConfigError for an unknown stage.
        """
        asked = set(range(len(self.stages))) if stages is None else {self._index(s) for s in stages}
        h, w = x_BCHW.shape[-2:]
        done = x_BCHW.maps if isinstance(x_BCHW, Features) else {-1: x_BCHW}
        last, maps = max(done), []
        x = done[last]
        for i, stage in enumerate(self._chain[: max(asked, default=-1) + 1]):
            x = stage(x) if i > last else done.get(i, x)
            if i in asked:
                maps.append(self._as_map(x, i, h, w))
        return maps

    def resolve(self, depth: int | float | str) -> int:
        """A freeze depth as a number of stages: a count, a fraction 0.0..1.0, a stage's name or "all".

        A name includes that stage. 1 is one stage, 1.0 is all of them. Raises ConfigError.
        """
        n = len(self.stages)
        if isinstance(depth, str):
            if depth == "all":
                return n
            if depth in self.stages:
                return self.stages.index(depth) + 1
        elif isinstance(depth, float):
            if 0 <= depth <= 1:
                return math.floor(depth * n + 0.5)
        elif not isinstance(depth, bool) and 0 <= depth <= n:
            return depth
        names = ", ".join(self.stages if n < 8 else [*self.stages[:3], "...", self.stages[-1]])
        raise ConfigError(
            f"model.freeze = {depth!r} ({self.name}): accepted: 0 to {n}, a fraction 0.0 to 1.0, 'all' "
            f"or a stage: {names}"
        )

    def freeze(self, depth: int | float | str) -> int:
        """Freeze the first ``depth`` stages and unfreeze the others; returns the depth as a number.

        Frozen parameters need no gradient, and frozen stages stay in eval mode (norm statistics, dropout,
        stochastic depth) even after ``train()``. Parameters that only `embed` uses (a final norm, an
        attention pool) belong to the last stage. Raises ConfigError as `resolve` does.
        """
        d = self.resolve(depth)
        for i, stage in enumerate(self._chain):
            stage.frozen = i < d
        self.frozen_depth = d
        for i, parameters in self._owned():
            for name, parameter in parameters.items():
                parameter.requires_grad_(i >= d and name not in self._never_trained)
                if i < d:
                    parameter.grad = None  # an optimiser would apply a left-over gradient
        self.train(self.training)
        return d

    def train(self, mode: bool = True) -> Backbone:
        """As of nn.Module, but frozen stages stay in eval mode."""
        super().train(mode)
        if self._chain[-1].frozen:
            self.model.eval()
        for stage in self._chain:
            stage.train(mode)
        return self

    def held(self, depth: int | float | str) -> list[Tensor]:
        """Parameters and buffers that stay unchanged when frozen at a depth."""
        d = self.resolve(depth)
        parameters = [p for i, owned in self._owned() if i < d for p in owned.values()]
        return [*parameters, *(b for stage in self._chain[:d] for b in stage.buffers())]

    def keep_statistics(self) -> None:
        """Put batch norm into evaluation mode, so that it keeps its pretrained statistics in training."""
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def no_weight_decay(self) -> set[int]:
        """The `id` of each parameter that the timm model exempts from weight decay."""
        names = set(getattr(self.model, "no_weight_decay", set)())
        return {id(p) for name, p in self.model.named_parameters() if name in names}

    def parameter_groups(self) -> Iterator[tuple[int, dict[str, nn.Parameter]]]:
        """(stage index, {name in the state dict: parameter}) of trainable parameters, from the input on."""
        for i, parameters in self._owned():
            trainable = {f"model.{n}": p for n, p in parameters.items() if p.requires_grad}
            if trainable:
                yield i, trainable

    def spec(self) -> dict[str, Any]:
        """Plain values from which `from_spec` builds the same backbone without weights."""
        return {
            "name": self.name,
            "kwargs": {
                "in_chans": self.in_chans,
                "size": self.size if isinstance(self.size, int) else list(self.size),
                "mean": list(self.mean),
                "std": list(self.std),
                "drop_rate": self.drop_rate,
                "drop_path_rate": self.drop_path_rate,
            },
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Backbone:
        """Rebuild from `spec` with random weights, for ``load_state_dict``."""
        kwargs = dict(spec["kwargs"])
        if isinstance(kwargs.get("size"), list):
            kwargs["size"] = tuple(kwargs["size"])
        return cls(spec["name"], "none", **kwargs)

    def _owned(self) -> list[tuple[int, dict[str, nn.Parameter]]]:
        """All parameters by stage; those of no stage belong to `embed` and count for the last one."""
        stage_of = {id(p): i for i, stage in enumerate(self._chain) for p in stage.parameters()}
        last = len(self._chain) - 1
        owned: list[tuple[int, dict[str, nn.Parameter]]] = [(i, {}) for i in range(last + 1)]
        for name, parameter in self.model.named_parameters():
            owned[stage_of.get(id(parameter), last)][1][name] = parameter
        return owned

    def _index(self, stage: int | str) -> int:
        if isinstance(stage, str) and stage in self.stages:
            return self.stages.index(stage)
        if isinstance(stage, int) and -len(self.stages) <= stage < len(self.stages):
            return stage % len(self.stages)
        raise ConfigError(f"stage {stage!r} ({self.name}): {nearest(str(stage), self.stages, 99)}")

    def _as_map(self, x: Tensor, i: int, h: int, w: int) -> Tensor:
        if self._layouts[i] == "BHWC":
            return x.permute(0, 3, 1, 2).contiguous()
        if self._layouts[i] == "BND":
            tokens = x[:, self._prefix_tokens :]
            rows = math.ceil(h / self.strides[i])
            return tokens.transpose(1, 2).reshape(x.shape[0], x.shape[2], rows, -1)
        return x


def names(pattern: str = "*", pretrained: bool = True) -> list[str]:
    """Names of backbones that match a shell pattern; ``pretrained``: only those with weights."""
    builtin = [name for name in source.BUILTIN if fnmatchcase(name, pattern)]
    # timm gives a name once for each set of weights, with its tag: resnet50.a1_in1k
    others = timm.list_models(pattern, pretrained=pretrained)
    return [*builtin, *dict.fromkeys(name.partition(".")[0] for name in others)]


class Traits(NamedTuple):
    """Properties of an architecture on which its learning rate depends."""

    norm: Literal["batch", "layer", "other"]  # the most frequent kind; other: also without norms
    width: int  # of the pooled features


@cache
def traits(name: str) -> Traits:
    """Traits of a backbone by name. Raises ConfigError for an unknown one."""
    arch, extra = _architecture(name)
    try:
        with torch.device("meta"), Shapes():  # shapes alone, in milliseconds
            model: Any = timm.create_model(arch, pretrained=False, num_classes=0, **extra)
    except Exception:  # some constructors read values of parameters
        model = timm.create_model(arch, pretrained=False, num_classes=0, **extra)
    norms = Counter(kind for module in model.modules() if (kind := _norm_kind(module)))
    most = norms.most_common(1)
    width = int(getattr(model, "head_hidden_size", None) or model.num_features)
    return Traits(most[0][0] if most else "other", width)


def _norm_kind(module: nn.Module) -> Literal["batch", "layer", "other"] | None:
    """The kind of a norm; None: the module is no norm, or of a kind that hardly any network has."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "batch"
    if isinstance(module, nn.LayerNorm):
        return "layer"
    is_other = isinstance(module, nn.GroupNorm | nn.modules.instancenorm._InstanceNorm)
    return "other" if is_other or "RmsNorm" in type(module).__name__ else None  # timm has several RmsNorms


def _architecture(name: str) -> tuple[str, dict[str, Any]]:
    """timm's architecture name and constructor arguments of a backbone. Raises ConfigError."""
    if name in source.BUILTIN:
        return source.BUILTIN[name].arch, dict(source.BUILTIN[name].kwargs)
    if not timm.is_model(name):
        accepted = [*source.BUILTIN, *timm.list_models()]
        raise ConfigError(f"model.backbone = {name!r}: unknown; {nearest(name, accepted)}")
    arch, _, tag = name.partition(".")
    tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{arch}.*")]
    if tag and tag not in tags:
        raise ConfigError(f"model.backbone = {name!r}: {arch} has no weights {tag!r}; {nearest(tag, tags)}")
    return arch, {}


def _data_config(name: str, cfg: dict[str, Any]) -> DataConfig:
    if name in source.BUILTIN:
        b = source.BUILTIN[name]
        return DataConfig(b.size, b.mean, b.std, "bilinear")
    interpolation = str(cfg.get("interpolation") or "bilinear")
    return DataConfig(
        size=int((cfg.get("input_size") or (3, 224, 224))[-1]),
        mean=tuple(float(v) for v in cfg.get("mean") or source.IMAGENET_MEAN),
        std=tuple(float(v) for v in cfg.get("std") or source.IMAGENET_STD),
        interpolation=interpolation if interpolation in _INTERPOLATIONS else "bilinear",
    )


def _per_channel(
    key: str, setting: Sequence[float] | None, pretrained: tuple[float, ...], in_chans: int
) -> tuple[float, ...]:
    """One value per channel: the setting, else the pretrained ones, averaged for grey, repeated for more."""
    if setting is not None:
        if len(setting) != in_chans:
            raise ConfigError(f"input.{key} = {list(setting)}: accepted: {in_chans} numbers, one a channel")
        return tuple(float(v) for v in setting)
    if len(pretrained) == in_chans:
        return pretrained
    if in_chans == 1:
        return (sum(pretrained) / len(pretrained),)
    return tuple(pretrained[i % len(pretrained)] for i in range(in_chans))


def _build(
    name: str, arch: str, extra: dict[str, Any], in_chans: int, hw: tuple[int, int]
) -> tuple[nn.Module, bool]:
    """The timm model with random weights, and whether it is tied to its input size."""
    kwargs: dict[str, Any] = {**extra, "num_classes": 0, "in_chans": in_chans}
    for fixed in (True, False):
        sized: dict[str, Any] = {"img_size": hw} if fixed else {}
        try:
            model: nn.Module = timm.create_model(arch, pretrained=False, **kwargs, **sized)
        except TypeError as error:
            if fixed and "img_size" in str(error):
                continue  # a network without position embeddings
            if "drop_path_rate" in str(error):
                raise ConfigError(
                    f"model.drop_path_rate = {extra['drop_path_rate']} ({name}): accepted: 0, this "
                    "architecture has no stochastic depth"
                ) from None
            raise
        except (AssertionError, ValueError, RuntimeError) as error:
            if fixed and hw != cutting.pretrained_hw(arch):
                raise cutting.size_error(name, arch, hw, error) from None
            raise ConfigError(f"model.backbone = {name!r}: cannot be built ({_line(error)})") from None
        return model, fixed
    raise AssertionError("unreachable")


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
