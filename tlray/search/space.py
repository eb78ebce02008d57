"""The space of a search: dotted keys of the configuration, each with its choices or its range.

Values are checked against the configuration before anything starts. For the sampler they are encoded: a
choice as its index (so that lists can be choices, and 0, 0.0 and False stay different), a range as a number.
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

# These keys are the same for all trials: their results could not be compared or found otherwise.
FIXED = ("name", "runs", "models", "search", "scale", "serve", "track", "task.name", "data.uri")
FIXED_TOO = ("task.goal", "data.validation_split", "data.test_split")
# Trials that differ only in these keys have the same batches and the same frozen stages: they are a lineage.
OWN = ("name", "runs", "optim.", "model.freeze", "model.drop_rate", "model.head", "train.epochs")
DIGITS = 4  # significant digits of a sampled number: more make no difference and are hard to read


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
        """The value of the key that stands for the sampler's number."""
        if self.values is not None:
            return self.values[int(raw)]
        if self.whole:
            return int(raw)
        return min(self.high, max(self.low, float(f"{raw:.{DIGITS}g}")))

    def encode(self, value: Any) -> float:
        """The inverse of `decode`. Raises ValueError for a value outside of the axis."""
        if self.values is not None:
            return [_text(v) for v in self.values].index(_text(value))
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not self.low <= value <= self.high:
            raise ValueError(value)
        return float(value)


@dataclass(frozen=True)
class Space:
    """All axes of a search."""

    axes: tuple[Axis, ...]

    @property
    def size(self) -> int | None:
        """The number of different trials; None: it is infinite."""
        if any(axis.values is None for axis in self.axes):
            return None
        return math.prod(len(axis.values or ()) for axis in self.axes)

    def product(self) -> Iterator[Params]:
        """Every combination, the last key changing fastest; only where all axes are choices."""
        keys = [axis.key for axis in self.axes]
        for values in itertools.product(*(axis.values or () for axis in self.axes)):
            yield dict(zip(keys, values, strict=True))

    def decode(self, raw: dict[str, Any]) -> Params:
        """The parameters that stand for the sampler's numbers."""
        return {axis.key: axis.decode(raw[axis.key]) for axis in self.axes}

    def encode(self, params: Params) -> dict[str, float] | None:
        """The inverse of `decode`; None for parameters outside of this space."""
        if set(params) != {axis.key for axis in self.axes}:
            return None
        try:
            return {axis.key: axis.encode(params[axis.key]) for axis in self.axes}
        except ValueError:
            return None

    def distributions(self) -> dict[str, Any]:
        """The space in Optuna's terms."""
        from optuna import distributions as optuna

        by_key: dict[str, Any] = {}
        for axis in self.axes:
            if axis.values is not None:
                by_key[axis.key] = optuna.CategoricalDistribution(range(len(axis.values)))
            elif axis.whole:
                by_key[axis.key] = optuna.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
            else:
                by_key[axis.key] = optuna.FloatDistribution(axis.low, axis.high, log=axis.log)
        return by_key


def trial_id(params: Params) -> str:
    """A trial's id. It depends on the parameters alone, so that the same trial has the same folder.

    It begins with a letter, so that YAML does not read ids such as 94e09080 as numbers.
    """
    return "t" + hashlib.sha256(_text(params).encode()).hexdigest()[:8]


def lineage(flat: Mapping[str, Any]) -> str:
    """The lineage of a trial, given by dotted keys: equal for trials that can train side by side."""
    return _text({key: value for key, value in flat.items() if not key.startswith(OWN)})


def build(config: Config) -> Space:
    """The space of a configuration. Raises ConfigError for an unknown key or value."""
    if not config.search.space:
        raise ConfigError("search.space = {} (configuration): accepted: at least one key, such as optim.lr")
    axes = tuple(_axis(config, key, config.search.space[key]) for key in sorted(config.search.space))
    space = Space(axes)
    if config.search.sampler == "grid" and space.size is None:
        key = next(axis.key for axis in axes if axis.values is None)
        raise ConfigError(
            f"search.space.{key} is a range, and search.sampler = 'grid' needs a finite number of values; "
            f"accepted: {{choice: [...]}} there, or sampler tpe or random"
        )
    return space


def _axis(config: Config, key: str, wanted: Range) -> Axis:
    """The axis of a key, checked. Raises ConfigError."""
    for fixed in (*FIXED, *FIXED_TOO):
        if key == fixed or key.startswith(f"{fixed}."):
            raise ConfigError(
                f"search.space.{key}: must be the same for all trials; "
                "accepted: keys of model, optim, train, ..."
            )
    if isinstance(wanted, Choice):
        values = [accepted(config, key, value) for value in wanted.choice]
        texts = [_text(value) for value in values]
        twice = next((v for i, v in enumerate(values) if texts[i] in texts[:i]), None)
        if len(set(texts)) < len(texts):
            raise ConfigError(f"search.space.{key} = {wanted.choice}: {twice!r} twice; accepted: each once")
        return Axis(key, tuple(values))
    if wanted.log and wanted.low <= 0:
        raise ConfigError(f"search.space.{key}.low = {wanted.low:g}: with log: true it must be above 0")
    low, high = accepted(config, key, wanted.low), accepted(config, key, wanted.high)
    whole = _is_whole(config, key, low, high)
    return Axis(key, None, low, high, wanted.log, whole)


def accepted(config: Config, key: str, value: Any) -> Any:
    """The value of a key as the configuration converts it. Raises ConfigError where it refuses the value."""
    origin = f"search.space.{key}"
    changed = config.override({key: value}, origin)
    if key.startswith(("task.", "augment.")):
        from tlray import tasks  # imports torch, which other keys do not need

        # Loading the task checks its own settings.
        tasks.check_augment(tasks.load(changed.task), changed.augment, origin)
    converted: Any = changed.model_dump(mode="json")
    for part in key.split("."):
        if not isinstance(converted, dict) or part not in converted:
            raise ConfigError(f"{origin}: unknown key")
        converted = converted[part]
    if isinstance(converted, dict):
        raise ConfigError(f"{origin}: is a group of keys; accepted: one of {', '.join(sorted(converted))}")
    return converted


def _is_whole(config: Config, key: str, low: Any, high: Any) -> bool:
    """Whether the key of a range takes whole numbers only: then the configuration refuses x.5."""
    if low != int(low) or high != int(high):
        return False
    try:
        accepted(config, key, int(low) + 0.5)
    except ConfigError:
        return True
    return False


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
