"""Payloads that sing where reading runs code: each makes a file as soon as it is brought to life."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data  # registers Ray's extension types  # noqa: F401
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

from tlray.errors import DataError

NAME = "ray.data.arrow_pickled_object"


class _Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def payload(file: Path) -> bytes:
    """A pickle that makes an empty file when it is loaded."""
    return pickle.dumps(_Payload(file))


def column(file: Path, rows: int) -> pa.Array:
    """Ray's pickled objects, each of which makes an empty file when its value is looked at."""
    stored = pa.array([payload(file)] * rows, pa.large_binary())
    return pa.ExtensionArray.from_storage(ArrowPythonObjectType(), stored)


def refusal(read: Callable[[], Any], file: Path) -> str:
    """What the DataError says by which ``read`` refuses a payload; no file was made."""
    try:
        read()
    except DataError as error:
        said = str(error)
    else:
        raise AssertionError("was read")
    assert not file.exists(), "ran"
    assert "\n" not in said
    return said
