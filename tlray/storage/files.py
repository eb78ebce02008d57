"""Single files: read in whole or in part, written so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from tlray.errors import StorageError
from tlray.storage import s3
from tlray.storage.failures import faults
from tlray.storage.listing import check_regular
from tlray.storage.uri import split


def open_fs(uri: str) -> tuple[pafs.FileSystem, str]:
    """Arrow's filesystem and the path in it; local paths become absolute.

    What this filesystem raises later is OSError: use it within `faults`.
    """
    scheme, path = split(uri)
    if scheme == "file":
        return pafs.LocalFileSystem(), path
    with faults(uri):
        return pafs.PyFileSystem(pafs.FSSpecHandler(s3.client())), path


def read_bytes(uri: str) -> bytes:
    """A whole file."""
    scheme, path = split(uri)
    with faults(uri):
        if scheme == "s3":
            return bytes(s3.client().cat_file(path))
        check_regular(path)
        return Path(path).read_bytes()


def read_range(uri: str, start: int, length: int) -> bytes:
    """``length`` bytes of a file from ``start`` on, fewer where the file ends before."""
    scheme, path = split(uri)
    with faults(uri):
        if scheme == "s3":
            return bytes(s3.client().cat_file(path, start=start, end=start + length))
        check_regular(path)
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(length)


def read_head(uri: str, length: int) -> bytes:
    """The first ``length`` bytes of a file, fewer where it is shorter."""
    return read_range(uri, 0, length)


def write_bytes(uri: str, data: bytes) -> None:
    """Write or replace a file; readers see the old one or the new one, whole."""
    scheme, path = split(uri)
    with faults(uri):
        if scheme == "s3":
            s3.client().pipe_file(path, data)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        staged = staging_path(path)
        try:
            with open(staged, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(staged, path)
            fsync(os.path.dirname(path))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(staged)
            raise


def write_new(uri: str, data: bytes = b"") -> bool:
    """Write a file only where none exists; False, and nothing written, where one does.

    Of several writers one alone gets True, locally and on every store that honours ``If-None-Match`` (AWS,
    MinIO, Ceph, R2). On another store, two that write at the same instant may both get True.
    """
    scheme, path = split(uri)
    with faults(uri):
        if scheme == "file":
            os.makedirs(os.path.dirname(path), exist_ok=True)
            try:
                with open(path, "xb") as file:
                    file.write(data)
            except FileExistsError:
                return False
            return True
        return s3.put_if_unchanged(path, data, None)


def read_json(uri: str) -> Any:
    """A JSON file as plain values. Raises StorageError where it is none."""
    data = read_bytes(uri)
    try:
        return json.loads(data)
    except ValueError as error:
        raise StorageError(f"{uri}: no valid JSON ({error})") from None


def write_json(uri: str, obj: Any) -> None:
    """Write plain values, keys sorted, so that equal values give equal bytes."""
    write_bytes(uri, _json(obj))


def update_json(uri: str, change: Callable[[Any], Any]) -> Any:
    """Replace a JSON file by ``change(its value, None where there is no file)``; returns the new value.

    No writer undoes another's change: locally by a lock beside the file, on s3 by the object's ETag (there
    ``change`` may run several times). Raises StorageError after 20 lost races.
    """
    scheme, path = split(uri)
    if scheme == "file":
        with faults(uri):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            lock = open(f"{os.path.dirname(path)}/.{os.path.basename(path)}.lock", "w")  # noqa: SIM115
        with lock:
            with faults(uri):
                fcntl.flock(lock, fcntl.LOCK_EX)  # freed on close, or with the process
            value = change(read_json(uri) if os.path.exists(path) else None)
            write_json(uri, value)
            return value
    for attempt in range(20):
        with faults(uri):
            etag = s3.client().info(path)["ETag"] if s3.client().exists(path) else None
        # Content newer than the ETag does no harm: the conditional write then fails and we read again.
        value = change(read_json(uri) if etag else None)
        with faults(uri):
            if s3.put_if_unchanged(path, _json(value), etag):
                return value
        time.sleep(random.uniform(0, 0.05 * (attempt + 1)))
    raise StorageError(f"{uri}: others keep changing it; try again")


def _json(obj: Any) -> bytes:
    return (json.dumps(obj, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def staging_path(path: str) -> str:
    """A new hidden name beside a path, under which its content is written before it is renamed."""
    folder, base = os.path.split(path)
    return f"{folder}/.{base}.tmp-{secrets.token_hex(4)}"


def fsync(path: str | Path) -> None:
    """Have the system put a file's or folder's content onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
