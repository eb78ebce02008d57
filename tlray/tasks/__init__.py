"""Kinds of vision task, one file each; found by the file's name, so a new task is a new file."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from tlray.config import validate
from tlray.dataset import Dataset
from tlray.errors import ConfigError, nearest
from tlray.tasks.base import Task


def names() -> list[str]:
    """Tasks that exist."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")


def load(settings: dict[str, Any], origin: str = "configuration") -> Task:
    """Make the task that ``settings["name"]`` names, from its other keys. Raises ConfigError."""
    name = settings.get("name")
    if name not in names():
        raise ConfigError(f"task.name = {name!r} ({origin}): unknown task; {nearest(str(name), names())}")
    module = importlib.import_module(f"tlray.tasks.{name}")
    task: Task = validate(module.Task, settings, origin, prefix="task.")
    return task


def class_column(task: Task) -> str | None:
    """The column that holds class numbers, where the task has one."""
    return next((name for name, (_, kind) in task.columns.items() if kind == "class"), None)


def labels_of(task: Task, data: Dataset) -> list[str]:
    """Label names in label order, as the data set holds them."""
    column = class_column(task)
    return data.labels(column) if column else []
