"""Pretrained weights: their sources, and how they are adapted to a model.

All sources are read in the same way: a safetensors file becomes a state dict, timm's filter for the
architecture renames keys and resamples position embeddings, the first convolution is adapted to the number of
channels, the classifier is dropped, and everything else must fit exactly. Pickles are never loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tlray import storage
from tlray.errors import BundleError, ConfigError, StorageError, TlrayError, nearest
from tlray.models.eager import timm

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_ACCEPTED = "builtin, timm, none, hf-hub:NAME or a .safetensors file (local or s3://)"
_PICKLES = (".pth", ".pt", ".bin", ".pkl", ".pickle", ".ckpt", ".tar")
_PREFIXES = ("", "model.", "module.", "backbone.", "backbone.model.", "_orig_mod.")
_HEADS = ("head.", "head_dist.", "fc.", "classifier.", "last_linear.")


class Builtin(NamedTuple):
    """A backbone whose weights are part of this package (see backbones/README.md)."""

    arch: str  # timm's name
    kwargs: dict[str, Any]  # for timm.create_model
    file: str
    size: int  # px
    mean: tuple[float, ...]
    std: tuple[float, ...]


BUILTIN = {
    "resnet10t-nano": Builtin(
        arch="resnet10t",
        kwargs={"channels": (32, 64, 160, 320), "stem_width": 16},
        file="resnet10t-nano-tinyimagenet.safetensors",
        size=64,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
}


def default(name: str) -> str:
    """``model.weights`` for the pretrained weights that come with a backbone."""
    return "builtin" if name in BUILTIN else "timm"


class Origin(NamedTuple):
    """The source of weights: the setting, its kind, its URI, and timm's description of the weights."""

    weights: str
    kind: str  # none | file | hub
    uri: str  # a file, or a repository with @revision
    pretrained_cfg: dict[str, Any]


def find(name: str, weights: str) -> Origin:
    """The source that ``model.weights`` names for a backbone. Reads nothing, except a hub's config.json.

    Raises ConfigError for a value that is not accepted, also with this backbone, StorageError when the hub
    cannot be reached, BundleError for a pickle.
    """
    builtin = BUILTIN.get(name)
    cfg = _timm_cfg(builtin.arch if builtin else name)
    if weights == "none":
        return Origin(weights, "none", "", cfg)
    if weights == "builtin":
        if builtin is None:
            raise ConfigError(
                f"model.weights = 'builtin': model.backbone = {name!r} has none; accepted: "
                f"timm, none, hf-hub:NAME or a .safetensors file (backbones with built-in weights: "
                f"{', '.join(BUILTIN)})"
            )
        return Origin(weights, "file", str(Path(__file__).parent / "backbones" / builtin.file), cfg)
    if weights == "timm":
        if builtin is not None:
            raise ConfigError(f"model.weights = 'timm': {name!r} has none there; accepted: builtin or none")
        hub = cfg.get("hf_hub_id")
        if not hub:
            raise ConfigError(f"model.weights = 'timm': timm has none for {name!r}; {_with_weights(name)}")
        return Origin(weights, "hub", str(hub), cfg)
    if weights.startswith("hf-hub:"):
        return Origin(weights, "hub", weights.removeprefix("hf-hub:"), {**cfg, **_hub_cfg(name, weights)})
    if weights.lower().endswith(_PICKLES):
        raise BundleError(
            f"model.weights = {weights!r}: a pickle can run code and is never loaded; accepted: {_ACCEPTED}"
        )
    if not weights.lower().endswith(".safetensors"):
        raise ConfigError(f"model.weights = {weights!r}: accepted: {_ACCEPTED}")
    return Origin(weights, "file", weights, cfg)


def load(model: nn.Module, origin: Origin, in_chans: int, name: str) -> None:
    """Load weights into a model made by timm with ``num_classes=0``; each tensor must be present.

    Raises StorageError (missing or not reachable), BundleError (damaged or a pickle), ConfigError (weights of
    another model, with what is missing, unexpected or of another shape).
    """
    if origin.kind == "none":
        return
    with _local(origin) as path:
        state = _read(path, f"model.weights = {origin.weights!r}", _ACCEPTED)
    state = fit(state, model, origin, in_chans, name)
    model.load_state_dict(state, strict=True)


def fit(
    state: dict[str, Tensor], model: nn.Module, origin: Origin, in_chans: int, name: str
) -> dict[str, Tensor]:
    """Adapt a state dict to the model's keys and shapes. Raises ConfigError with what does not fit."""
    expected = model.state_dict()
    # In single precision: adapting the weights of a file in half precision would round them once more.
    state = {k: v.float() if v.is_floating_point() else v for k, v in _strip(state, expected).items()}
    what = f"model.weights = {origin.weights!r} ({name})"
    for module in (sys.modules[cls.__module__] for cls in type(model).__mro__):
        adapt = getattr(module, "checkpoint_filter_fn", None)
        if adapt is not None:
            try:
                with torch.no_grad():
                    state = adapt(state, model)
            except (KeyError, ValueError, RuntimeError, IndexError, AttributeError) as error:
                why = f"{type(error).__name__}: {error}".splitlines()[0]
                raise ConfigError(f"{what}: not weights of this architecture ({why})") from None
            break
    _adapt_channels(state, expected, origin.pretrained_cfg, in_chans, what)
    for key, tensor in expected.items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros_like(tensor))
    missing = [k for k in expected if k not in state]
    extra = [k for k in state if k not in expected and not k.startswith(_head(origin.pretrained_cfg))]
    shapes = [k for k, v in expected.items() if k in state and state[k].shape != v.shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors missing (first: {missing[0]})")
    if extra:
        problems.append(f"{len(extra)} not expected (first: {extra[0]})")
    if shapes:
        k = shapes[0]
        stored_shape, model_shape = tuple(state[k].shape), tuple(expected[k].shape)
        problems.append(
            f"{len(shapes)} of another shape (first: {k} is {stored_shape}, the model has {model_shape})"
        )
    if problems:
        raise ConfigError(f"{what}: does not fit: {'; '.join(problems)}")
    return {k: state[k] for k in expected}


def _timm_cfg(name: str) -> dict[str, Any]:
    """timm's description of the weights of a known model name."""
    cfg = timm.get_pretrained_cfg(name)
    return {} if cfg is None else dict(cfg.to_dict())


def _with_weights(name: str) -> str:
    """Models of a similar name that have weights, for an error."""
    names = timm.list_pretrained()
    family = [n for n in names if n.startswith(name.partition("_")[0])]
    return nearest(name, family or names) + ", or model.weights = none"


def _head(cfg: dict[str, Any]) -> tuple[str, ...]:
    """Prefixes of the keys of a classifier, which may be in a file and not in the model."""
    names = cfg.get("classifier") or ()
    return (*_HEADS, *(f"{n}." for n in ((names,) if isinstance(names, str) else names)))


def _strip(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the key prefix under which a training framework (or our bundle) stores the backbone."""
    best = max(_PREFIXES, key=lambda p: sum(p + k in state for k in expected))
    if not best or not any(best + k in state for k in expected):
        return dict(state)
    return {k.removeprefix(best): v for k, v in state.items() if k.startswith(best)}


def _adapt_channels(
    state: dict[str, Tensor], expected: dict[str, Tensor], cfg: dict[str, Any], in_chans: int, what: str
) -> None:
    """Adapt the first convolution to ``in_chans`` channels as timm does: summed for grey, else repeated."""
    firsts = cfg.get("first_conv") or ()
    for first in (firsts,) if isinstance(firsts, str) else firsts:
        key = f"{first}.weight"
        if key not in state or key not in expected or state[key].shape == expected[key].shape:
            continue
        num_channels = state[key].shape[1] if state[key].ndim == 4 else 3
        try:
            state[key] = timm.models.adapt_input_conv(in_chans, state[key], base_chans=num_channels)
        except (NotImplementedError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"{what}: cannot be adapted from {num_channels} to {in_chans} channels ({error})"
            ) from None


def read(uri: str, key: str) -> dict[str, Tensor]:
    """A safetensors file that ``key`` of the configuration names. Raises StorageError, BundleError."""
    with storage.local_copy(uri) as path:
        return _read(Path(path), f"{key} = {uri!r}", "a .safetensors file (local or s3://)")


def _read(path: Path, where: str, accepted: str) -> dict[str, Tensor]:
    """A safetensors file; pickles are recognised by their content, whatever the name."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise StorageError(
            f"{where}: cannot be read ({error.strerror}); accepted: a .safetensors file"
        ) from None
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise BundleError(f"{where}: holds a pickle, which is never loaded; accepted: {accepted}")
    try:
        return dict(load_file(path))
    except (SafetensorError, ValueError, OSError) as error:
        raise BundleError(f"{where}: no whole safetensors file ({error})") from None


@contextmanager
def _local(origin: Origin) -> Iterator[Path]:
    if origin.kind == "hub":
        yield _download(origin.uri, origin.weights, origin.pretrained_cfg)
    else:
        with storage.local_copy(origin.uri) as path:
            yield Path(path)


def _download(hub: str, weights: str, cfg: dict[str, Any]) -> Path:
    """The safetensors file of a repository on the Hugging Face hub, or its cached copy."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, revision = hub.partition("@")
    declared = str(cfg.get("hf_hub_filename") or "model.safetensors")
    stem = declared.rpartition(".")[0]
    names = [declared] if declared.endswith(".safetensors") else [f"{stem}.safetensors"]
    if "open_clip" in stem:
        names.append("open_clip_model.safetensors")
    names.append("model.safetensors")
    for filename in dict.fromkeys(names):
        try:
            return Path(hf_hub_download(repository, filename, revision=revision or None))
        except LocalEntryNotFoundError as error:
            raise _offline(weights, repository, error) from None
        except EntryNotFoundError:
            continue
        except Exception as error:  # a boundary: whatever the hub's client and the network under it raise
            raise _offline(weights, repository, error) from None
    raise StorageError(
        f"model.weights = {weights!r}: {repository} has no .safetensors file (a pickle is never loaded)"
    )


def _hub_cfg(name: str, weights: str) -> dict[str, Any]:
    """timm's description inside a hub repository; its architecture must be the backbone's."""
    repository = weights.removeprefix("hf-hub:")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise ConfigError(f"model.weights = {weights!r}: accepted: hf-hub:OWNER/NAME[@REVISION]")
    try:
        cfg, arch, _ = timm.models.load_model_config_from_hf(repository)
    except TlrayError:
        raise
    except Exception as error:  # a boundary, as above
        raise _offline(weights, repository, error) from None
    ours = (BUILTIN[name].arch if name in BUILTIN else name).partition(".")[0]
    if arch and arch != ours:
        raise ConfigError(
            f"model.weights = {weights!r}: weights of {arch}; accepted: model.backbone = {arch}"
        )
    return {k: v for k, v in dict(cfg).items() if v is not None}


def _offline(weights: str, repository: str, error: Exception) -> StorageError:
    why = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return StorageError(
        f"model.weights = {weights!r}: {repository} could not be downloaded ({type(error).__name__}: {why}); "
        "these work without a network: builtin (with backbone "
        f"{', '.join(BUILTIN)}), a .safetensors file, none"
    )
