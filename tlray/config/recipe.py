"""YAML as plain values by the rules of YAML 1.2; a key that stands twice in a mapping is an error."""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar

import yaml

from tlray.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_DIGITS = "0123456789"
# Tag, pattern, and the characters that such a value can begin with.
_PLAIN = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", f"-+{_DIGITS}"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", f"-+.{_DIGITS}"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL", "~nN"),
    ("merge", r"<<", "<"),
)


class _Loader(yaml.SafeLoader):
    """The core schema of YAML 1.2: ``1e-3`` is a number, and ``no``, ``1:30`` and ``2024-01-01`` are text.
    PyYAML follows YAML 1.1, where the last three are false, 90 and a date."""

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
    """A mistake in YAML: ``line`` from 1 (None: unknown), ``why`` in words ("": the syntax)."""

    def __init__(self, line: int | None, why: str) -> None:
        super().__init__(why)
        self.line, self.why = line, why


def read(text: str, path: str) -> Any:
    """The value of a file's text. Raises ConfigError with the file, the line and the key."""
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
        if (repeated := _repeated_key(node)) is not None:
            why = f"{repeated.value!r} stands there twice; accepted: each key once"
            raise _Invalid(repeated.start_mark.line + 1, why)
        value = loader.construct_document(node)
        json.dumps(value, default=str, skipkeys=True)  # raises ValueError for an alias within its own anchor
        return value
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise _Invalid(mark.line + 1 if mark else None, "") from None


def _repeated_key(root: yaml.Node) -> yaml.ScalarNode | None:
    """The first key that stands twice in a mapping, looked for before ``<<`` merges keys that may repeat."""
    pending, visited = [root], set[int]()
    while pending:
        node = pending.pop(0)
        if id(node) in visited:  # an alias
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
        elif isinstance(node, yaml.MappingNode):
            keys = set[tuple[str, str]]()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in keys:
                        return key
                    keys.add((key.tag, key.value))
                pending += [key, value]
    return None
