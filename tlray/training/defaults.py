"""What ``auto`` in a configuration stands for: values by task, family of backbone and number of pictures.

`settle` decides them once, before anything begins. From there on a configuration holds numbers alone; a run's
folder keeps those, and the same name is compared by them.
"""

from __future__ import annotations

import math
from typing import Any

from tlray import tasks
from tlray.config import Config
from tlray.data.dataset import Dataset
from tlray.models.backbone import traits

# AdamW's rate of a head over a backbone: what is right falls with the width of the features, and networks of
# layer norm (transformers, ConvNeXt) stand much less than those of batch norm. Of others it is a guess that
# training has measured, see `is_guess`.
RATE_BY_WIDTH = {"batch": 1.6, "layer": 0.15, "other": 0.15}
MAX_RATE = 6e-3
SGD_RATE = 0.05
LAYER_DECAY = {"batch": 0.9, "layer": 0.75, "other": 0.75}
STEPS = 600  # of a training, within these numbers of epochs
EPOCHS = (10, 60)
LEAST_BATCH = 32  # of few pictures, where the task's own is larger
SPACE_RATES = (0.5, 1.0, 2.0)  # of the rate above, in a search without a space
SPACE_DEPTHS = (0, 0.6, "all")


def settle(config: Config) -> Config:
    """The configuration with a value for every ``auto``.

    Without data nothing is decided, since training is refused then. Raises TlrayError for an unknown task or
    backbone and for data that cannot be opened.
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
    given: tuple[Any, ...] = (config.optim.lr, config.optim.layer_decay)
    if "auto" in given:
        norm, width = traits(config.model.backbone)
        rate = min(MAX_RATE, RATE_BY_WIDTH[norm] / width) if config.optim.optimizer == "adamw" else SGD_RATE
        decay = 1.0 if config.model.weights == "none" else LAYER_DECAY[norm]
        config = _filled(config, {"optim.lr": _rounded(rate * usual.rate_factor), "optim.layer_decay": decay})
    rates = [_rounded(config.optim.lr * factor) for factor in SPACE_RATES]
    space = {"model.freeze": {"choice": list(SPACE_DEPTHS)}, "optim.lr": {"choice": rates}}
    return _filled(config, {"search.space": space})


def is_guess(config: Config) -> bool:
    """Whether the rate that `settle` will give is a guess: nothing is known of networks with such norms."""
    given: Any = config.optim.lr
    return bool(given == "auto") and traits(config.model.backbone).norm == "other"


def _filled(config: Config, values: dict[str, Any]) -> Config:
    """Those of the values whose key is ``auto`` now."""
    tree = config.model_dump(mode="json")
    chosen = {}
    for key, value in values.items():
        group, name = key.split(".")
        if tree[group][name] == "auto":
            chosen[key] = value
    return config.override(chosen, "auto") if chosen else config


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")
