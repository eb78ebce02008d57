"""The model that a training starts with: pretrained backbone, frozen to its depth, under a new head."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import cast

from torch import nn

from tlray import storage, tasks
from tlray.bundle import bundle
from tlray.bundle.bundle import Model
from tlray.config import Config
from tlray.data.dataset import Dataset
from tlray.data.image import Preprocess
from tlray.errors import ConfigError
from tlray.models import weights
from tlray.models.backbone import Backbone
from tlray.tasks.base import Counts, Task, TrainingRows

RGB = tuple[float, float, float]


def build_model(
    config: Config,
    task: Task,
    labels: list[str],
    counts: Counts | None,
    fingerprint: str,
    rows: TrainingRows | None = None,
) -> Model:
    """Pretrained backbone, frozen to its depth, under a new head; preprocessing that fits its weights.

    ``rows``: of the training split, for what the task chooses by them.
    """
    chosen = config.input
    backbone = Backbone(
        config.model.backbone,
        config.model.weights,
        size=chosen.size,
        mean=chosen.mean,
        std=chosen.std,
        drop_rate=config.model.drop_rate,
        drop_path_rate=config.model.drop_path_rate,
    )
    depth = backbone.freeze(config.model.freeze)
    side = backbone.size
    preprocess = Preprocess(
        size=(side, side) if isinstance(side, int) else (side[1], side[0]),
        fit=chosen.fit,
        mean=cast(RGB, backbone.mean),
        std=cast(RGB, backbone.std),
        interpolation="bicubic" if backbone.interpolation == "bicubic" else "bilinear",
    )
    task, note = (task, "") if rows is None else task.adapted_to_data(rows, backbone, preprocess)
    module = task.build(backbone, labels, counts)
    notes = [note]
    if config.model.head:
        notes.append(_start_with(module, task, labels, config.model.head))
    told = tuple(filter(None, notes))
    return Model(module, task, backbone.spec(), depth, preprocess, labels, fingerprint, told)


def initial_model(config: Config, data: Dataset) -> Model:
    """The model that a training on this data set starts with. Raises TlrayError."""
    task, split = tasks.load(config.task), config.data.train_split
    labels, counts = tasks.labels_of(task, data), tasks.counts(task, data, split)
    return build_model(config, task, labels, counts, data.fingerprint, tasks.training_rows(data, split))


def start_key(config: Config) -> str:
    """What an untrained model depends on but for what `copy_model` takes up: those of a kind are copies."""
    settings = config.model_dump(mode="json", exclude={"name", "runs", "optim"})
    for group, key in (("model", "freeze"), ("model", "drop_rate"), ("train", "epochs")):
        del settings[group][key]
    return json.dumps(settings)


def copy_model(built: Model, config: Config) -> Model:
    """A copy for other settings of the same `start_key`; of an untrained model, what `build_model` gives.

    The copy shares with ``built`` what is frozen in it, so that must not train there.
    Raises ConfigError for a depth that the backbone does not have.
    """
    held = cast(Backbone, built.module.backbone).held(config.model.freeze)
    module = copy.deepcopy(built.module, {id(tensor): tensor for tensor in held})
    backbone = cast(Backbone, module.backbone)
    depth = backbone.freeze(config.model.freeze)
    backbone.drop_rate = config.model.drop_rate
    return replace(built, module=module, backbone=backbone.spec(), freeze_depth=depth)


def is_head(name: str) -> bool:
    """Whether a tensor of a task's module belongs to its head."""
    return not name.startswith("backbone.")


def _start_with(module: nn.Module, task: Task, labels: list[str], uri: str) -> str:
    """Put the head of a bundle, or of a file, in place of the random one; what people are told of it.

    Of a bundle of other labels the layers that are made for classes stay random. Raises ConfigError.
    """
    random: tuple[str, ...] = ()
    file, told = uri, ""
    if storage.exists(storage.join(uri, bundle.MANIFEST)):
        manifest, file = bundle.read_manifest(uri), storage.join(uri, bundle.WEIGHTS)
        random = () if manifest.labels == labels else tuple(getattr(module, "class_layers", ()))
        if manifest.task["name"] != task.name or (manifest.labels != labels and not random):
            what = f"its task is {manifest.task['name']}"
            what = "its labels are others" if manifest.task["name"] == task.name else what
            raise ConfigError(f"model.head = {uri!r}: {what}; accepted: a model of the same task and labels")
        kept = "all but the layer of the classes, since its labels are others" if random else "all of it"
        told = f"model.head = {uri}: {kept} is where training starts"
    found = {name: value for name, value in weights.read(file, "model.head").items() if is_head(name)}
    found = {name: value for name, value in found.items() if not name.startswith(random)}
    have = {name: value for name, value in module.state_dict().items() if is_head(name)}
    # What only training needs (the centres of a margin loss) is not in a bundle.
    wanted = {name for name in bundle.weights(module) if is_head(name) and not name.startswith(random)}
    missing = wanted - found.keys()
    other = {name for name, value in found.items() if name not in have or have[name].shape != value.shape}
    if wrong := sorted(missing | other):
        raise ConfigError(
            f"model.head = {uri!r}: {wrong[0]} {'is missing' if wrong[0] in missing else 'does not fit'}; "
            "accepted: the head of a model of the same task, labels and backbone"
        )
    module.load_state_dict(found, strict=False)
    return told
