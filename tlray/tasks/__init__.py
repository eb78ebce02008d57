"""Kinds of vision task, one file or folder each; found by its name, so a new task is a new file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc

from tlray.config import MOVED, Augmentation, validate
from tlray.data.dataset import Dataset
from tlray.data.sampler import Together
from tlray.data.schema import Kind
from tlray.errors import ConfigError, nearest
from tlray.tasks.base import Counts, Task, TrainingRows

_SHARED = ("base", "losses")  # modules here that are no task


def names() -> list[str]:
    """Tasks that exist."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _SHARED)


def load(settings: dict[str, Any], origin: str = "configuration") -> Task:
    """Make the task that ``settings["name"]`` names, from its other keys. Raises ConfigError."""
    name = settings.get("name")
    if name not in names():
        raise ConfigError(f"task.name = {name!r} ({origin}): unknown task; {nearest(str(name), names())}")
    module = importlib.import_module(f"tlray.tasks.{name}")
    task: Task = validate(module.Task, settings, origin, prefix="task.")
    return task


def kept(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A task's settings as a bundle or a run of an earlier version holds them, without those that only
    training read and that are elsewhere now."""
    return {key: value for key, value in settings.items() if f"task.{key}" not in MOVED}


def check_augment(task: Task, settings: Augmentation, origin: str = "configuration") -> None:
    """Raise ConfigError for a way to change pictures that the task's labels cannot follow."""
    for key in ("mixup", "cutmix", "mosaic", "class_balance"):
        value = getattr(settings, key)
        if value and key not in task.supported_augmentations:
            accepted = ", ".join(f"augment.{name}" for name in task.supported_augmentations) or "0"
            raise ConfigError(
                f"augment.{key} = {value} ({origin}): the labels of {task.name} cannot follow it; accepted: "
                f"{accepted}"
            )


def for_columns(columns: Iterable[str], kinds: Mapping[str, Kind] | None = None) -> list[str]:
    """Tasks whose label columns are among these, with these meanings where any are given; the plainest
    first."""
    there, meant = set(columns), dict(kinds or {})
    return [
        name
        for name in names()
        if (wants := load({"name": name}).columns).keys() <= there
        and all(meant.get(column, kind) == kind for column, kind in wants.items())
    ]


def labels_of(task: Task, data: Dataset) -> list[str]:
    """Names of the classes that the model knows, in label order, as the data set holds them.

    None for identities: who is known is decided when the model is used, not when it is trained.
    """
    for column, kind in task.columns.items():
        if kind != "identity":
            return data.labels(column)
    return []


def check_split(task: Task, data: Dataset, split: str) -> None:
    """Raise DataError for the first row of a split without a picture or a label of the task's kind."""
    data.check_pictures(split)
    for column, kind in task.columns.items():
        data.check_labels(split, column, kind, len(data.labels(column)))


def identity(task: Task) -> str | None:
    """The column of people (or things) that tells which pictures hang together; None: each is by itself."""
    return next((column for column, kind in task.columns.items() if kind == "identity"), None)


def together(task: Task, data: Dataset, split: str) -> Together | None:
    """What `sampler.Order` needs for batches in which rows of one label come together; None: they do not."""
    if task.together <= 1:
        return None
    column = next(iter(task.columns))
    return Together(data.read(split, [column])[column].to_numpy(), task.together)


def training_rows(data: Dataset, split: str) -> TrainingRows:
    """What `Task.adapted_to_data` reads by."""
    return lambda columns: data.read(split, [name for name in columns if name in data.schema.names])


def counts(task: Task, data: Dataset, split: str) -> Counts | None:
    """Rows of a split per class or identity; None where a row has pixels or boxes instead."""
    for column, kind in task.columns.items():
        if kind not in ("class", "identity", "classes"):
            continue
        values = data.read(split, [column])[column]
        if kind == "classes":
            values = pc.list_flatten(values)
        known = 0 if kind == "identity" else len(data.labels(column))
        found = [int(n) for n in np.bincount(values.to_numpy(), minlength=known)]
        return Counts(found, data.num_rows(split))
    return None
