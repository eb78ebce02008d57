"""The exceptions for every mistake that a user can make, each with a message of one line.

    TlrayError                 exit code 2, one line, no traceback
    |-- ConfigError            a key or value of the configuration
    |-- DataError              a folder, data set, split or label
    |   `-- PictureError       bytes that are no usable picture (carries the HTTP status it means)
    |-- StorageError           a URI that cannot be read or written
    |-- BundleError            a bundle that is damaged, foreign or unsafe
    |-- RegistryError          a model name, version or alias
    `-- RunError               a run that cannot start or continue (workers died, no resources)

A message says the value, where it stood, and what is accepted:
``optim.lr = -0.1 (clothing.yaml): must be greater than 0``.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar
from urllib.parse import unquote

DRIVE = re.compile(r"(?:file:/*)?([A-Za-z]:)(?:[\\/]|%5[cC]|$)")  # C:\data, C:/data, file:///C:/data
HIDDEN = "(hidden)"
_SECRET_KEYS = re.compile(
    r"secret|passw|token|credential|api_?key|access_?key|private_?key|auth", re.IGNORECASE
)
_SECRETS = [
    (re.compile(r"(?<=://)[^/@\s'\"]+@"), f"{HIDDEN}@"),  # user:password@host
    (re.compile(r"([?&][\w.-]*(?:sig|token|key|secret|credential|password)[\w.-]*=)[^&\s'\"]+", re.I),
     rf"\1{HIDDEN}"),  # signed query
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), HIDDEN),  # access key ids
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}\b"), HIDDEN),  # hub tokens
]  # fmt: skip


class TlrayError(Exception):
    """Base of all mistakes that the user can correct."""


class ConfigError(TlrayError):
    """A configuration key or value is not accepted."""


class DataError(TlrayError):
    """A folder, data set, split or label is missing or unusable."""


class PictureError(DataError):
    """Bytes are no usable picture; ``kind`` is the reason, ``status`` the HTTP status of the answer."""

    STATUS: ClassVar[dict[str, int]] = {
        "not_a_picture": 415,
        "truncated": 400,
        "empty": 400,
        "too_many_pixels": 413,
        "not_a_mask": 415,
    }

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = self.STATUS[kind]

    def __reduce__(self) -> tuple[type[PictureError], tuple[str, str]]:
        # It is sent between processes, and exceptions with two arguments do not unpickle by default.
        return PictureError, (self.kind, str(self))


class StorageError(TlrayError):
    """A URI cannot be read or written."""


class BundleError(TlrayError):
    """A bundle is damaged, foreign or unsafe."""


class RegistryError(TlrayError):
    """A model's name, version or alias is unknown or already taken."""


class RunError(TlrayError):
    """A run cannot start or cannot continue."""


@contextlib.contextmanager
def about(place: str | Callable[[], str]) -> Iterator[None]:
    """Add a note that names ``place`` to an unexpected exception in the block; the command line shows it.

    A TlrayError names the place in its message and stays as it is.
    """
    try:
        yield
    except TlrayError:
        raise
    except Exception as error:
        error.add_note(place if isinstance(place, str) else place())
        raise


def nearest(value: str, accepted: Iterable[str], show: int = 8) -> str:
    """Say what is accepted, nearest first: ``did you mean 'lr'?`` or ``accepted: a, b, c``."""
    names = sorted(accepted)
    close = difflib.get_close_matches(value, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f", ... ({len(names)} in all)" if len(names) > show else ""
    return "accepted: " + ", ".join(names[:show]) + more


def spelling_hint(place: str) -> str:
    """The end of a message about a place that does not exist: what may be wrong with its spelling, or "".

    A corrected spelling that exists on this machine is suggested.
    """
    place = str(place)
    unquoted = unquote(place)
    drive = DRIVE.match(place)
    if drive:
        return f"; {drive[1]} is a drive of Windows; accepted: a path as /data/pictures"
    if place.startswith("\\\\"):
        return "; is a share of Windows; accepted: a path as /data/pictures, where it is mounted"
    for other, why in (
        (place.replace("\\", "/"), "backslashes are no separators here"),
        (unquoted, "%20 and the like stand for other characters in web addresses only"),
        (unquoted.removeprefix("file://"), "it is a web address"),
        (place.strip(), "blanks stand around it"),
        (place.strip("'\""), "quotes stand around it"),
    ):
        if other and other != place:
            exists = os.path.lexists(os.path.expanduser(other.removeprefix("file://")))
            return f"; {why}" + (f"; did you mean {other!r}?" if exists else f", as in {other!r}")
    return ""


def redact(text: str) -> str:
    """The text without passwords in URIs, signatures in queries, and keys of known kinds."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def redact_tree(tree: Any) -> Any:
    """A plain tree with every text redacted, and values hidden whose key says that they are secret."""
    if isinstance(tree, dict):
        return {
            key: HIDDEN if _SECRET_KEYS.search(str(key)) and value not in (None, "") else redact_tree(value)
            for key, value in tree.items()
        }
    if isinstance(tree, (list, tuple)):
        return [redact_tree(value) for value in tree]
    return redact(tree) if isinstance(tree, str) else tree
