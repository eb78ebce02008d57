"""Places that a verb will write to, tried before its long work starts.

What can be told by trying is tried: a hidden folder or object is made where the results will lie, and taken
away again. A place whose spelling is another system's (backslashes, %20, blanks or quotes around it) would be
made under just that name, so it is refused unless it is there already.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import PurePath

from tlray import storage
from tlray.errors import StorageError, spelling_hint

_ASIDE = len(".") + len(".tmp-01234567")  # bytes that names of staging have more, see storage
_LONGEST = 255 - _ASIDE


def check_folder(uri: str, beside: bool = False) -> None:
    """Raise StorageError where no folder can be made or filled.

    ``beside``: it is made beside the place and renamed (`storage.publish`), so the folder above is tried.
    """
    path = _path(uri)
    if path is None:
        return
    if beside and os.path.ismount(path):
        raise StorageError(f"{uri}: is a place where a disk is mounted; accepted: a folder in it")
    if os.path.lexists(path) and not os.path.isdir(path):
        raise StorageError(f"{uri}: {_is(path)}; accepted: a folder, or a place where one can be made")
    _try(uri, os.path.dirname(path) if beside else path)


def check_file(uri: str) -> None:
    """Raise StorageError where no file can be written or replaced."""
    path = _path(uri)
    if path is None:
        return
    if os.path.lexists(path) and not os.path.isfile(path):
        raise StorageError(f"{uri}: {_is(path)}; accepted: the name of a file")
    if uri.endswith("/"):
        raise StorageError(f"{uri}: is a folder's name; accepted: the name of a file")
    _try(uri, os.path.dirname(path))


def _path(uri: str) -> str | None:
    """The local path, checked as far as its spelling goes; None: on s3, and tried there."""
    try:
        uri.encode()
    except UnicodeEncodeError:
        shown = uri.encode(errors="surrogateescape").decode(errors="replace")
        raise StorageError(f"{shown}: holds bytes that are no UTF-8; accepted: a name in UTF-8") from None
    path = storage.absolute(uri)
    why = spelling_hint(uri.removeprefix("file://"))
    if why and not storage.exists(uri):
        raise StorageError(f"{uri}: is not there, and is not made under that name{why}")
    if not storage.is_local(uri):
        probe = storage.join(uri, f".tried.tmp-{secrets.token_hex(4)}")
        storage.write_bytes(probe, b"")
        with contextlib.suppress(StorageError):  # who may write may not always delete
            storage.delete(probe)
        return None
    for part in PurePath(path).parts:
        if len(part.encode()) > _LONGEST:
            raise StorageError(
                f"{part[:40]}...: a name of {len(part.encode())} bytes; accepted: up to {_LONGEST} bytes "
                "between slashes"
            )
    return path


def _try(uri: str, folder: str) -> None:
    """Make a folder in ``folder``, or in the nearest one above that is there, and remove it."""
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    said = f"{uri}: " + (f"{folder} " if folder != uri.rstrip("/") else "")
    if not os.path.isdir(folder):
        raise StorageError(f"{said}{_is(folder)}; accepted: a place below a folder")
    probe = f"{folder}/.tried.tmp-{secrets.token_hex(4)}"
    try:
        os.mkdir(probe)
        os.rmdir(probe)
    except OSError as error:
        why = (error.strerror or type(error).__name__).lower()
        raise StorageError(
            f"{said}cannot be written ({why}); accepted: a place that this user may write"
        ) from None


def _is(path: str) -> str:
    """What stands at a path that is not what is wanted."""
    if not os.path.exists(path):
        return "is a link that leads nowhere"
    if os.path.isdir(path):
        return "is a folder"
    return "is a file" if stat.S_ISREG(os.stat(path).st_mode) else "is a pipe, a socket or a device"
