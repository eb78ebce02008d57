"""What ``auto`` in a configuration stands for: values by task, family of backbone and number of pictures.

`resolve_auto` chooses them once, before anything begins. Behind it a configuration holds numbers alone: they
are stored in the run's folder, and a run that goes on is compared with them.
"""

from __future__ import annotations

import math
from typing import Any

from tlray import tasks
from tlray.config import Config
from tlray.data.dataset import Dataset
from tlray.models.backbone import traits

# AdamW's learning rate of the head, times the width of the features: wider features need a lower rate, and
# networks with layer norm (transformers, ConvNeXt) need a far lower one than networks with batch norm. For
# other norms the number is a guess, and a range test measures the rate, see `is_guess`.
RATE_BY_WIDTH = {"batch": 1.6, "layer": 0.15, "other": 0.15}
MAX_RATE = 6e-3
SGD_RATE = 0.05
LAYER_DECAY = {"batch": 0.9, "layer": 0.75, "other": 0.75}
STEPS = 600  # optimiser steps that a training gets, if that gives a number of epochs within EPOCHS
EPOCHS = (10, 60)
LEAST_BATCH = 32  # of a small data set, where the task's usual batch is larger
SPACE_RATES = (0.5, 1.0, 2.0)  # factors of the chosen rate that a search without a space of its own tries
SPACE_DEPTHS = (0, 0.6, "all")


def resolve_auto(config: Config) -> Config:
    """The configuration with a value for every ``auto``; without data unchanged, since it cannot be trained.

    Raises TlrayError for an unknown task or backbone, and for data that cannot be opened.
    """
    if not config.data.uri:
        return config
    rows = Dataset.open(config.data.uri).num_rows(config.data.train_split)
    usual = tasks.load(config.task).defaults
    config = config.model_copy(update={"task": {**usual.task, **config.task}})
    batch = min(usual.batch_size, max(LEAST_BATCH, rows // 16))
    config = _filled(
        config,
        {
            "augment.policy": usual.policy,
            "augment.scale": list(usual.scale),
            "train.batch_size": batch,
            "optim.backbone_lr_ratio": usual.backbone_lr_ratio,
        },
    )
    epochs = math.ceil(STEPS * config.train.batch_size / max(1, rows))
    config = _filled(config, {"train.epochs": min(max(epochs, EPOCHS[0]), EPOCHS[1])})
    rate_and_decay: tuple[Any, ...] = (config.optim.lr, config.optim.layer_decay)
    if "auto" in rate_and_decay:
        norm, width = traits(config.model.backbone)
        rate = min(MAX_RATE, RATE_BY_WIDTH[norm] / width) if config.optim.optimizer == "adamw" else SGD_RATE
        decay = 1.0 if config.model.weights == "none" else LAYER_DECAY[norm]
        config = _filled(config, {"optim.lr": _rounded(rate * usual.rate_factor), "optim.layer_decay": decay})
    rates = [_rounded(config.optim.lr * factor) for factor in SPACE_RATES]
    space = {"model.freeze": {"choice": list(SPACE_DEPTHS)}, "optim.lr": {"choice": rates}}
    return _filled(config, {"search.space": space})


def is_guess(config: Config) -> bool:
    """Whether the rate that `resolve_auto` will choose is a guess, since the norms are of an unknown kind."""
    rate: Any = config.optim.lr
    return bool(rate == "auto") and traits(config.model.backbone).norm == "other"


def _filled(config: Config, values: dict[str, Any]) -> Config:
    """The configuration with the values of those keys that are ``auto`` in it."""
    tree = config.model_dump(mode="json")
    chosen = {}
    for key, value in values.items():
        group, name = key.split(".")
        if tree[group][name] == "auto":
            chosen[key] = value
    return config.override(chosen, "auto") if chosen else config


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")
