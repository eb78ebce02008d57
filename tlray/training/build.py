"""The model that training starts with: the pretrained backbone, frozen to its depth, under a new head."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import cast

import torch
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
    """The pretrained backbone, frozen to its depth, under a new head, with the preprocessing of its weights.

    ``rows``: of the training split; the task chooses some of its settings by them (`Task.fitted`).
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
    return Model(
        module, task, backbone.spec(), depth, preprocess, labels, fingerprint, tuple(filter(None, notes))
    )


def initial_model(config: Config, data: Dataset) -> Model:
    """The model that a training on this data set starts with. Raises TlrayError."""
    task, split = tasks.load(config.task), config.data.train_split
    labels, counts = tasks.labels_of(task, data), tasks.counts(task, data, split)
    return build_model(config, task, labels, counts, data.fingerprint, tasks.training_rows(data, split))


class InitialModels:
    """Initial models of candidates on one data set. Of many with the same `start_key` one is built; the
    others are copies that share its frozen weights."""

    def __init__(self, data: Dataset, device: torch.device, many: bool) -> None:
        self._data, self._device, self._many = data, device, many
        self._by_key: dict[str, Model] = {}

    def build(self, config: Config) -> Model:
        """The model that this candidate begins with. Raises TlrayError."""
        key = start_key(config)
        model = self._by_key.get(key)
        if model is None:
            torch.manual_seed(config.seed)
            model = initial_model(config, self._data)
            if not self._many:
                return model
            # Onto the device before copying: otherwise each copy moves shared statistics there for itself.
            model.module.to(self._device)
            self._by_key[key] = model
        return copy_model(model, config)


def start_key(config: Config) -> str:
    """Equal for configurations whose initial models `copy_model` makes from each other."""
    settings = config.model_dump(mode="json", exclude={"name", "runs", "optim"})
    for group, key in (("model", "freeze"), ("model", "drop_rate"), ("train", "epochs")):
        del settings[group][key]
    return json.dumps(settings)


def copy_model(built: Model, config: Config) -> Model:
    """A copy of an untrained model for another configuration with the same `start_key`.

    The copy shares the tensors that are frozen in it with ``built``, so nothing may train those in ``built``.
    Raises ConfigError for a depth that the backbone does not have.
    """
    frozen = cast(Backbone, built.module.backbone).held(config.model.freeze)
    module = copy.deepcopy(built.module, {id(tensor): tensor for tensor in frozen})
    backbone = cast(Backbone, module.backbone)
    depth = backbone.freeze(config.model.freeze)
    backbone.drop_rate = config.model.drop_rate
    return replace(built, module=module, backbone=backbone.spec(), freeze_depth=depth)


def is_head(name: str) -> bool:
    """Whether a tensor of a task's module belongs to its head."""
    return not name.startswith("backbone.")


def _start_with(module: nn.Module, task: Task, labels: list[str], uri: str) -> str:
    """Replace the random head by that of a bundle or a .safetensors file; the note for the user.

    Where a bundle has other labels, the layers that depend on the classes stay random. Raises ConfigError.
    """
    random: tuple[str, ...] = ()
    file, note = uri, ""
    if storage.exists(storage.join(uri, bundle.MANIFEST)):
        manifest, file = bundle.read_manifest(uri), storage.join(uri, bundle.WEIGHTS)
        random = () if manifest.labels == labels else tuple(getattr(module, "class_layers", ()))
        if manifest.task["name"] != task.name or (manifest.labels != labels and not random):
            what = f"its task is {manifest.task['name']}"
            what = "its labels are others" if manifest.task["name"] == task.name else what
            raise ConfigError(f"model.head = {uri!r}: {what}; accepted: a model of the same task and labels")
        kept = "all but the layer of the classes, since its labels are others" if random else "all of it"
        note = f"model.head = {uri}: {kept} is where training starts"
    stored = {name: value for name, value in weights.read(file, "model.head").items() if is_head(name)}
    stored = {name: value for name, value in stored.items() if not name.startswith(random)}
    head = {name: value for name, value in module.state_dict().items() if is_head(name)}
    # A bundle lacks what only training needs, as the centres of a margin loss.
    needed = {name for name in bundle.weights(module) if is_head(name) and not name.startswith(random)}
    missing = needed - stored.keys()
    unfit = {name for name, value in stored.items() if name not in head or head[name].shape != value.shape}
    if wrong := sorted(missing | unfit):
        raise ConfigError(
            f"model.head = {uri!r}: {wrong[0]} {'is missing' if wrong[0] in missing else 'does not fit'}; "
            "accepted: the head of a model of the same task, labels and backbone"
        )
    module.load_state_dict(stored, strict=False)
    return note
