"""YAML as plain values, read as people mean it; a key that stands there twice is a mistake."""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar

import yaml

from tlray.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_DIGITS = "0123456789"
# Tag, pattern, and the characters that a value of it begins with.
_PLAIN = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", f"-+{_DIGITS}"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", f"-+.{_DIGITS}"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL", "~nN"),
    ("merge", r"<<", "<"),
)


class _Loader(yaml.SafeLoader):
    """The core schema of YAML 1.2: ``1e-3`` is a number; ``no``, ``1:30`` and ``2024-01-01`` are text,
    which YAML 1.1 takes for false, 90 and a date."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        first: [(_TAG + tag, re.compile(rf"(?:{p})\Z")) for tag, p, firsts in _PLAIN if first in firsts]
        for first in sorted({first for *_, firsts in _PLAIN for first in firsts})
    } | {"": [(_TAG + "null", re.compile(r"\Z"))]}

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        return int(text, 16 if "x" in text else 10)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        return float(re.sub(r"\.(?=[inIN])", "", str(self.construct_scalar(node))))


_Loader.add_constructor(_TAG + "int", _Loader.construct_yaml_int)
_Loader.add_constructor(_TAG + "float", _Loader.construct_yaml_float)


class _Invalid(Exception):
    """No YAML, or a key twice: ``line`` from 1 (None: unknown), ``why`` in words."""

    def __init__(self, line: int | None, why: str) -> None:
        super().__init__(why)
        self.line, self.why = line, why


def read(text: str, path: str) -> Any:
    """A file's text. Raises ConfigError with the file, the line and the key."""
    try:
        return _plain(text)
    except _Invalid as error:
        line = f" line {error.line}" if error.line else ""
        why = error.why or "no valid YAML; accepted: a mapping of keys"
        raise ConfigError(f"{path}{line}: {why}") from None


def read_value(text: str, origin: str) -> Any:
    """The value of a setting. Raises ConfigError."""
    try:
        return _plain(text)
    except _Invalid as error:
        raise ConfigError(f"{origin}: {error.why or 'the value is no valid YAML'}") from None


def _plain(text: str) -> Any:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if (double := _double(node)) is not None:
            why = f"{double.value!r} stands there twice; accepted: each key once"
            raise _Invalid(double.start_mark.line + 1, why)
        value = loader.construct_document(node)
        json.dumps(value, default=str, skipkeys=True)  # an alias inside of what it stands for is a ValueError
        return value
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise _Invalid(mark.line + 1 if mark else None, "") from None


def _double(root: yaml.Node) -> yaml.ScalarNode | None:
    """The first key that a mapping has twice. Looked for before anything is built: merged keys may repeat."""
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop(0)
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            keys = set[tuple[str, str]]()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in keys:
                        return key
                    keys.add((key.tag, key.value))
                waiting += [key, value]
    return None
