"""The space that a search tries: dotted keys of the configuration, each with its choices or its range.

Values are checked against the tree before anything starts. What the sampler sees is encoded: a choice
is its index (so lists are choices too, and 0, 0.0 and False stay three things), a range a number.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tlray.config import Choice, Config, Range
from tlray.errors import ConfigError

Params = dict[str, Any]  # dotted key -> value

# What has to be the same for all trials of a search, else their results cannot be compared or found.
FIXED = ("name", "runs", "models", "search", "scale", "serve", "track", "task.name", "data.uri")
FIXED_TOO = ("task.goal", "data.validation_split", "data.test_split")
# In what trials may differ and still see the same batches and the same frozen part: one lineage.
OWN = ("name", "runs", "optim.", "model.freeze", "model.drop_rate", "model.head", "train.epochs")
DIGITS = 4  # significant ones of a sampled number: enough to matter, short enough to read


@dataclass(frozen=True)
class Axis:
    """One key: a list of values, or a range (``values`` is None), in whole numbers where the key is."""

    key: str
    values: tuple[Any, ...] | None = None
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def decode(self, raw: float) -> Any:
        """What the sampler proposes -> the value of the key."""
        if self.values is not None:
            return self.values[int(raw)]
        if self.whole:
            return int(raw)
        return min(self.high, max(self.low, float(f"{raw:.{DIGITS}g}")))

    def encode(self, value: Any) -> float:
        """The inverse of `decode`; raises ValueError for a value outside."""
        if self.values is not None:
            return [_text(v) for v in self.values].index(_text(value))
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not self.low <= value <= self.high:
            raise ValueError(value)
        return float(value)


@dataclass(frozen=True)
class Space:
    """All axes of a search."""

    axes: tuple[Axis, ...]

    @property
    def size(self) -> int | None:
        """How many different trials there are; None: no end of them."""
        if any(axis.values is None for axis in self.axes):
            return None
        return math.prod(len(axis.values or ()) for axis in self.axes)

    def product(self) -> Iterator[Params]:
        """Every combination, the last key changing fastest; only where all axes are choices."""
        keys = [axis.key for axis in self.axes]
        for values in itertools.product(*(axis.values or () for axis in self.axes)):
            yield dict(zip(keys, values, strict=True))

    def decode(self, raw: dict[str, Any]) -> Params:
        """What the sampler proposes -> settings."""
        return {axis.key: axis.decode(raw[axis.key]) for axis in self.axes}

    def encode(self, params: Params) -> dict[str, float] | None:
        """Settings -> what the sampler knows them as; None where they lie outside this space."""
        if set(params) != {axis.key for axis in self.axes}:
            return None
        try:
            return {axis.key: axis.encode(params[axis.key]) for axis in self.axes}
        except ValueError:
            return None

    def distributions(self) -> dict[str, Any]:
        """The space in Optuna's terms."""
        from optuna import distributions as optuna

        out: dict[str, Any] = {}
        for axis in self.axes:
            if axis.values is not None:
                out[axis.key] = optuna.CategoricalDistribution(range(len(axis.values)))
            elif axis.whole:
                out[axis.key] = optuna.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
            else:
                out[axis.key] = optuna.FloatDistribution(axis.low, axis.high, log=axis.log)
        return out


def trial_id(params: Params) -> str:
    """A trial's name: a function of its settings alone, so that the same trial is the same folder.

    The letter keeps YAML and the configuration from reading 94e09080 as a number.
    """
    return "t" + hashlib.sha256(_text(params).encode()).hexdigest()[:8]


def lineage(flat: Mapping[str, Any]) -> str:
    """What trials (dotted keys and their values) have in common that can train side by side."""
    return _text({key: value for key, value in flat.items() if not key.startswith(OWN)})


def build(config: Config) -> Space:
    """The space of a configuration. Raises ConfigError for an unknown key or value."""
    if not config.search.space:
        raise ConfigError("search.space = {} (configuration): accepted: at least one key, as optim.lr")
    axes = tuple(_axis(config, key, config.search.space[key]) for key in sorted(config.search.space))
    space = Space(axes)
    if config.search.sampler == "grid" and space.size is None:
        key = next(axis.key for axis in axes if axis.values is None)
        raise ConfigError(
            f"search.space.{key} is a range, and search.sampler = 'grid' needs an end: accepted: "
            f"{{choice: [...]}} there, or sampler tpe or random"
        )
    return space


def _axis(config: Config, key: str, wanted: Range) -> Axis:
    for fixed in (*FIXED, *FIXED_TOO):
        if key == fixed or key.startswith(f"{fixed}."):
            raise ConfigError(
                f"search.space.{key}: is the same for all trials; accepted: keys of model, optim, train, ..."
            )
    if isinstance(wanted, Choice):
        values = [accepted(config, key, value) for value in wanted.choice]
        texts = [_text(value) for value in values]
        twice = next((v for i, v in enumerate(values) if texts[i] in texts[:i]), None)
        if len(set(texts)) < len(texts):
            raise ConfigError(f"search.space.{key} = {wanted.choice}: {twice!r} stands there twice")
        return Axis(key, tuple(values))
    if wanted.log and wanted.low <= 0:
        raise ConfigError(f"search.space.{key}.low = {wanted.low:g}: with log: true it must be above 0")
    low, high = accepted(config, key, wanted.low), accepted(config, key, wanted.high)
    whole = _is_whole(config, key, low, high)
    return Axis(key, None, low, high, wanted.log, whole)


def accepted(config: Config, key: str, value: Any) -> Any:
    """The value of a key as the tree takes it, read back from it. Raises ConfigError."""
    origin = f"search.space.{key}"
    tried = config.override({key: value}, origin)
    if key.startswith(("task.", "augment.")):
        from tlray import tasks  # imports torch, which the rest does not need

        # The task's own settings are checked there.
        tasks.check_augment(tasks.load(tried.task), tried.augment, origin)
    here: Any = tried.model_dump(mode="json")
    for part in key.split("."):
        if not isinstance(here, dict) or part not in here:
            raise ConfigError(f"{origin}: unknown key")
        here = here[part]
    if isinstance(here, dict):
        raise ConfigError(f"{origin}: is a group of keys; accepted: one of {', '.join(sorted(here))}")
    return here


def _is_whole(config: Config, key: str, low: Any, high: Any) -> bool:
    """Whether a range's key takes whole numbers only: the tree refuses what lies half-way between two."""
    if low != int(low) or high != int(high):
        return False
    try:
        accepted(config, key, int(low) + 0.5)
    except ConfigError:
        return True
    return False


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
