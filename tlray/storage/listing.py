"""What exists: files and folders of a place, without their bytes."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass, field, fields

from tlray.errors import StorageError
from tlray.storage import s3
from tlray.storage.failures import faults
from tlray.storage.uri import split


@dataclass(frozen=True)
class FileInfo:
    """A file below a folder: its path relative to the folder, and its size in bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class Tree:
    """Files and folders below a folder, paths relative to it, sorted; and what could not be listed."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # links that lead nowhere
    loops: list[str] = field(default_factory=list)  # links that lead back to a folder above them
    unnamed: list[str] = field(default_factory=list)  # names that are no UTF-8, as far as they can be shown
    special: list[str] = field(default_factory=list)  # pipes, sockets, devices, and links to them


def exists(uri: str) -> bool:
    """Whether a file or folder exists."""
    scheme, path = split(uri)
    with faults(uri):
        return os.path.exists(path) if scheme == "file" else bool(s3.client().exists(path))


def is_dir(uri: str) -> bool:
    """Whether a folder exists; on s3, whether anything lies below."""
    scheme, path = split(uri)
    with faults(uri):
        return os.path.isdir(path) if scheme == "file" else bool(s3.client().isdir(path))


def listdir(uri: str) -> list[str]:
    """Names in a folder, sorted, without those that begin with a dot. Raises StorageError for no folder."""
    scheme, path = split(uri)
    with faults(uri):
        if scheme == "file":
            names = os.listdir(path)
        else:
            entries = s3.client().ls(path, detail=True)
            if any(entry["name"] == path and entry["type"] == "file" for entry in entries):
                raise StorageError(f"{uri}: not a folder")
            names = [entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries]
    return sorted(entry for entry in set(names) if not entry.startswith("."))


def walk(uri: str) -> list[FileInfo]:
    """All files below a folder, sorted by path; of a single file that file, with an empty path.

    Without hidden ones, and without pipes, sockets and devices.
    """
    scheme, path = split(uri)
    with faults(uri):
        files = _walk_local(path) if scheme == "file" else _walk_s3(path)
    visible = [f for f in files if not any(part.startswith(".") for part in f.path.split("/"))]
    return sorted(visible, key=lambda f: f.path)


def _walk_local(path: str) -> list[FileInfo]:
    if not os.path.isdir(path):
        return [FileInfo("", check_regular(path).st_size)]
    infos = []
    for folder, _, names in os.walk(path):
        for entry in names:
            full = os.path.join(folder, entry)
            with contextlib.suppress(FileNotFoundError):  # somebody has deleted it since
                status = os.stat(full)
                if stat.S_ISREG(status.st_mode):
                    infos.append(FileInfo(os.path.relpath(full, path), status.st_size))
    return infos


def _walk_s3(path: str) -> list[FileInfo]:
    infos = [
        FileInfo(key[len(path) :].lstrip("/"), int(info["size"] or 0))
        for key, info in s3.client().find(path, detail=True).items()
        if not key.endswith("/") and info["type"] == "file"  # no folder markers of other tools
    ]
    if not infos and not s3.client().exists(path):
        raise FileNotFoundError(path)
    return infos


def tree(uri: str) -> Tree:
    """All files and folders below a folder, hidden ones too; links are followed, and sizes are not read.

    A name or link that cannot be used does not stop the rest: it has a list of its own. Raises StorageError.
    """
    scheme, path = split(uri)
    with faults(uri):
        if scheme == "file":
            return _tree_local(path)
        return Tree(sorted(file.path for file in _walk_s3(path)))


def _tree_local(root: str) -> Tree:
    result = Tree()
    pending = [("", frozenset({os.path.realpath(root)}))]  # a folder; the real paths of it and those above
    while pending:
        folder, above = pending.pop()
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                path = os.path.join(folder, entry.name)
                try:
                    path.encode()
                except UnicodeEncodeError:
                    result.unnamed.append(os.fsencode(path).decode(errors="replace"))
                    continue
                try:
                    is_folder = entry.is_dir()
                    is_file = is_folder or stat.S_ISREG(entry.stat().st_mode)
                except OSError:  # a link that leads nowhere, or to itself
                    result.broken.append(path)
                    continue
                if not is_folder:
                    (result.files if is_file else result.special).append(path)
                    continue
                real = os.path.realpath(entry.path)
                if real in above:
                    result.loops.append(path)
                    continue
                result.folders.append(path)
                pending.append((path, above | {real}))
    for part in fields(result):
        getattr(result, part.name).sort()
    return result


def check_regular(path: str) -> os.stat_result:
    """The status of a local file or folder. Raises OSError for a pipe, which would block whoever opens it,
    a socket or a device."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EINVAL, "is a pipe, a socket or a device; accepted: a file", path)
    return status
