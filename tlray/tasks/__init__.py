"""Vision tasks, one file or folder each. A task is loaded by its module's name: a new file is a new task."""

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

_SHARED = ("base", "losses")  # modules of this package that are not tasks


def names() -> list[str]:
    """Names of all tasks."""
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
    """A task's settings from a bundle or a run, without the keys that an earlier version had under ``task``
    and that have moved to another section."""
    return {key: value for key, value in settings.items() if f"task.{key}" not in MOVED}


def check_augment(task: Task, settings: Augmentation, origin: str = "configuration") -> None:
    """Raise ConfigError for an augmentation that cannot be applied to the task's labels."""
    for key in ("mixup", "cutmix", "mosaic", "class_balance"):
        value = getattr(settings, key)
        if value and key not in task.supported_augmentations:
            accepted = ", ".join(f"augment.{name}" for name in task.supported_augmentations) or "0"
            raise ConfigError(
                f"augment.{key} = {value} ({origin}): the labels of {task.name} cannot follow it; accepted: "
                f"{accepted}"
            )


def for_columns(columns: Iterable[str], kinds: Mapping[str, Kind] | None = None) -> list[str]:
    """Tasks, by name, whose label columns are all among ``columns``; ``kinds``: what columns mean, where
    known."""
    available, known_kinds = set(columns), dict(kinds or {})
    return [
        name
        for name in names()
        if (needed := load({"name": name}).columns).keys() <= available
        and all(known_kinds.get(column, kind) == kind for column, kind in needed.items())
    ]


def labels_of(task: Task, data: Dataset) -> list[str]:
    """Class names of the data set, in label order.

    Empty for identities: people are enrolled when the model is used, not when it is trained.
    """
    for column, kind in task.columns.items():
        if kind != "identity":
            return data.labels(column)
    return []


def check_split(task: Task, data: Dataset, split: str) -> None:
    """Raise DataError for the first row of a split that lacks a picture or a valid label."""
    data.check_pictures(split)
    for column, kind in task.columns.items():
        data.check_labels(split, column, kind, len(data.labels(column)))


def identity(task: Task) -> str | None:
    """The column that says which person (or thing) a picture shows; None: the task has none."""
    return next((column for column, kind in task.columns.items() if kind == "identity"), None)


def together(task: Task, data: Dataset, split: str) -> Together | None:
    """What `sampler.Order` needs to place rows of one label side by side; None: they are not grouped."""
    if task.together <= 1:
        return None
    column = next(iter(task.columns))
    return Together(data.read(split, [column])[column].to_numpy(), task.together)


def training_rows(data: Dataset, split: str) -> TrainingRows:
    """The function by which `Task.adapted_to_data` reads training rows."""
    return lambda columns: data.read(split, [name for name in columns if name in data.schema.names])


def counts(task: Task, data: Dataset, split: str) -> Counts | None:
    """Number of rows of each class or identity; None where labels are boxes or masks."""
    for column, kind in task.columns.items():
        if kind not in ("class", "identity", "classes"):
            continue
        values = data.read(split, [column])[column]
        if kind == "classes":
            values = pc.list_flatten(values)
        num_classes = 0 if kind == "identity" else len(data.labels(column))
        by_class = [int(n) for n in np.bincount(values.to_numpy(), minlength=num_classes)]
        return Counts(by_class, data.num_rows(split))
    return None
