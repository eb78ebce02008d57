"""Plain values checked against typed settings; the first mistake becomes an error of one line."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tlray.config.tree import within
from tlray.errors import ConfigError, nearest

S = TypeVar("S", bound=BaseModel)

AUTO: Any = "auto"  # `training.defaults.resolve_auto` chooses by task, backbone and number of pictures
MOVED = {"task.mixup": "augment.mixup"}  # keys of earlier versions -> the keys that replaced them


def validate(
    model: type[S], tree: Any, origin: str, prefix: str = "", origins: Mapping[str, str] | None = None
) -> S:
    """The settings object of plain values. Raises ConfigError for the first mistake in them.

    ``prefix``: of the keys in messages. ``origin``: where the values come from, for messages; ``origins``:
    the same for dotted keys that come from somewhere else.
    """

    def where(key: str) -> str:
        for name, other in (origins or {}).items():
            if within(key, [name]) or within(name, [key]):
                return other
        return origin

    try:
        settings = model.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        path = _path(tree, first["loc"])
        key = prefix + ".".join(path)
        if first["type"] == "extra_forbidden":
            hint = nearest(path[-1], _fields(model, path[:-1]))
            if key in MOVED:
                hint = f"accepted: {MOVED[key]}, which has taken its place"
            raise ConfigError(f"{key} ({where(key)}): unknown key; {hint}") from None
        if first["type"] == "invalid_key":
            raise ConfigError(f"{first['input']!r} ({where(key)}): no key; accepted: text") from None
        value = first["input"] if first["type"] != "missing" else "nothing"
        # For a value that may be one of several kinds, pydantic reports a mistake for each kind.
        accepted = [_accepted(e) for e in error.errors() if _path(tree, e["loc"]) == path]
        raise ConfigError(f"{key} = {value!r} ({where(key)}): accepted: {' or '.join(accepted)}") from None
    for keys, value, built in _leaves(tree, settings):
        # Pydantic accepts true as 1 and 1 as true; both are slips.
        if isinstance(value, bool) and not isinstance(built, bool):
            kind = {int: "a whole number", float: "a number"}.get(type(built), "a number or text")
            key = prefix + ".".join(keys)
            raise ConfigError(f"{key} = {value!r} ({where(key)}): accepted: {kind}")
        if isinstance(built, bool) and isinstance(value, int | float) and not isinstance(value, bool):
            key = prefix + ".".join(keys)
            raise ConfigError(f"{key} = {value!r} ({where(key)}): accepted: true or false")
    return settings


def _accepted(error: Any) -> str:
    """What pydantic would accept, in plain words."""
    if error.get("ctx", {}).get("class_name") in ("Choice", "Uniform"):
        return "{choice: [...]} or {low: ..., high: ...}"
    if error["type"] in ("model_type", "dict_type", "model_attributes_type"):
        return "keys of its own below it"
    if error["type"] == "string_type" and isinstance(error["input"], bool | int | float):
        return "text (in quotes: '\"...\"')"
    return str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")


def _path(tree: Any, loc: Sequence[int | str]) -> list[str]:
    """The keys that lead to a mistake, without the names of union members that pydantic puts between them."""
    path, here = [], tree
    for number, part in enumerate(loc):
        if isinstance(here, BaseModel):
            here = dict(here)
        is_key = isinstance(here, dict) and part in here
        is_key |= isinstance(here, list | tuple) and isinstance(part, int) and part < len(here)
        if is_key:
            here = here[part]
        elif number < len(loc) - 1 or not isinstance(here, dict):
            continue
        path.append(str(part))
    return path


def _leaves(
    tree: Any, settings: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Keys, the plain value at each, and the value that the settings have for it."""
    if isinstance(tree, dict) and isinstance(settings, BaseModel | dict):
        built = dict(settings)
        for key, value in tree.items():
            if key in built:
                yield from _leaves(value, built[key], (*path, str(key)))
    elif isinstance(tree, list | tuple) and isinstance(settings, list | tuple):
        for number, (value, item) in enumerate(zip(tree, settings, strict=False)):
            yield from _leaves(value, item, (*path, str(number)))
    else:
        yield path, tree, settings


def _fields(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Names of the fields of the settings object that a path leads to."""
    here: Any = model
    for part in path:
        if not (isinstance(here, type) and issubclass(here, BaseModel)) or part not in here.model_fields:
            continue  # a list index, a dict key or a union member's name
        here = here.model_fields[part].annotation
        for option in typing.get_args(here) if typing.get_origin(here) is not None else ():
            if isinstance(option, type) and issubclass(option, BaseModel):
                here = option
    if isinstance(here, types.UnionType) or not hasattr(here, "model_fields"):
        return []
    return list(here.model_fields)


def set_key(tree: dict[str, Any], key: str, value: Any, origin: str) -> None:
    """Set a dotted key in a tree. What follows ``search.space.`` is one key, although it contains dots."""
    node, parts = tree, key.split(".")
    if parts[:2] == ["search", "space"] and len(parts) > 3:
        parts = ["search", "space", ".".join(parts[2:])]
    for part in parts[:-1]:
        if node.get(part) == AUTO and part == "space":
            node[part] = {}  # naming an axis replaces the automatic space
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{key} ({origin}): {part!r} is a single value and has no keys below it")
    node[parts[-1]] = value
