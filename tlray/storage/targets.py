"""Places that a command will write to, tried before its long work starts.

The check makes a hidden folder or object where the results will lie, and removes it. A place spelt as on
another system (backslashes, %20, blanks or quotes around it) would be made under exactly that name, so it is
refused unless it exists.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import PurePath

from tlray import storage
from tlray.errors import StorageError, spelling_hint
from tlray.storage.files import staging_path

_MOST_BYTES = 255 - len(os.path.basename(staging_path("/")))  # of a name, so that its staging has one, too


def check_folder(uri: str, beside: bool = False) -> None:
    """Raise StorageError where no folder can be made or filled.

    ``beside``: the folder is made beside the place and renamed (`storage.publish`), so its parent is tried.
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
    """The local path, once its spelling is checked; None for a place on s3, where a write is tried."""
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
        with contextlib.suppress(StorageError):  # a user who may write is not always allowed to delete
            storage.delete(probe)
        return None
    for part in PurePath(path).parts:
        if len(part.encode()) > _MOST_BYTES:
            raise StorageError(
                f"{part[:40]}...: a name of {len(part.encode())} bytes; accepted: up to {_MOST_BYTES} bytes "
                "between slashes"
            )
    return path


def _try(uri: str, folder: str) -> None:
    """Make a folder in ``folder``, or in the nearest one above that exists, and remove it."""
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    prefix = f"{uri}: " + (f"{folder} " if folder != uri.rstrip("/") else "")
    if not os.path.isdir(folder):
        raise StorageError(f"{prefix}{_is(folder)}; accepted: a place below a folder")
    probe = f"{folder}/.tried.tmp-{secrets.token_hex(4)}"
    try:
        os.mkdir(probe)
        os.rmdir(probe)
    except OSError as error:
        why = (error.strerror or type(error).__name__).lower()
        raise StorageError(
            f"{prefix}cannot be written ({why}); accepted: a place that this user may write"
        ) from None


def _is(path: str) -> str:
    """What a path is that is not what was expected."""
    if not os.path.exists(path):
        return "is a link that leads nowhere"
    if os.path.isdir(path):
        return "is a folder"
    return "is a file" if stat.S_ISREG(os.stat(path).st_mode) else "is a pipe, a socket or a device"
