"""Folders that appear whole: written aside, then put into place, one chosen file (the marker) last."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tlray.errors import StorageError
from tlray.storage import s3
from tlray.storage.failures import faults
from tlray.storage.files import fsync, staging_path
from tlray.storage.folders import delete, put_files
from tlray.storage.listing import exists, is_dir, walk
from tlray.storage.uri import is_local, join, split

UNFINISHED = ".unfinished"  # an object that exists in an s3 target for as long as `publish` writes there
_STALE_S = 24 * 3600  # age after which staging counts as left behind by a process that died
_STAGING = re.compile(r"\..+\.tmp-[0-9a-f]+")  # names that `staging_path` makes


@contextlib.contextmanager
def publish(uri: str, marker: str) -> Iterator[Path]:
    """A local folder to fill; when the block ends, its files are at ``uri``, ``marker`` written last.

    Where the marker exists, all other files exist beside it. An exception leaves nothing new behind.
    Locally the folder is staged beside the target and renamed onto it; where the target exists, the two are
    exchanged in one step if the system can. On s3 files go directly to a target that does not exist yet. One
    that exists stays as it is until the new files are staged in the store; then its marker is deleted, and
    copies within the store replace it: a process killed in that short time leaves neither.
    Raises StorageError where the target holds files but no marker: those are somebody else's.
    """
    local, path = is_local(uri), split(uri)[1]
    replaces = _check_target(uri, marker)
    if local:
        with faults(uri):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _sweep_local(os.path.dirname(path), _STALE_S, f".{os.path.basename(path)}.tmp-")
            staging = Path(staging_path(path))
            staging.mkdir()
    else:
        staging = Path(tempfile.mkdtemp(prefix="tlray-"))
    try:
        yield staging
        assert (staging / marker).is_file(), f"nothing was staged as {marker}"
        if local:
            with faults(uri):
                _publish_local(staging, path, marker)
        else:
            _publish_s3(staging, uri, marker, replaces)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def unfinished(uri: str) -> bool:
    """Whether `publish` is writing there now, or died in the middle (s3 only; locally always False)."""
    return not is_local(uri) and exists(join(uri, UNFINISHED))


def _check_target(uri: str, marker: str) -> bool:
    """Whether an older publication will be replaced. Raises StorageError for a target with other files."""
    if unfinished(uri):
        return False
    if not exists(uri):
        return False
    if not is_dir(uri):
        raise StorageError(f"{uri}: is a file; accepted: a folder to be made or replaced")
    if exists(join(uri, marker)):
        return True
    files = [f.path for f in walk(uri)]
    if files:
        raise StorageError(f"{uri}: holds other files ({files[0]}) and no {marker}; accepted: an empty place")
    return False


def sweep(uri: str, marker: str, age_s: float = _STALE_S) -> list[str]:
    """Remove from a folder what processes that died in `publish` left; returns the names, sorted.

    That is staging, and on s3 unfinished targets, where nothing was written for ``age_s`` seconds: a process
    that still writes is left alone.
    """
    local, path = is_local(uri), split(uri)[1]
    with faults(uri):
        return sorted(_sweep_local(path, age_s) if local else _sweep_s3(path, marker, age_s))


def _sweep_local(folder: str, age_s: float, prefix: str = ".") -> list[str]:
    removed = []
    for entry in os.listdir(folder) if os.path.isdir(folder) else []:
        staging = os.path.join(folder, entry)
        if entry.startswith(prefix) and _STAGING.fullmatch(entry) and os.path.isdir(staging):
            with contextlib.suppress(OSError):  # another process has renamed or removed it since
                times = [os.stat(staging).st_mtime, *(file.stat().st_mtime for file in os.scandir(staging))]
                if time.time() - max(times) > age_s:
                    shutil.rmtree(staging, ignore_errors=True)
                    removed.append(entry)
    return removed


def _sweep_s3(path: str, marker: str, age_s: float) -> list[str]:
    times: dict[str, dict[str, float]] = {}  # name in the folder -> its objects -> when they were written
    for key, info in s3.client().find(path, detail=True).items():
        first, _, rest = key[len(path) :].lstrip("/").partition("/")
        if rest and info["type"] == "file":
            times.setdefault(first, {})[rest] = info["LastModified"].timestamp()
    removed = []
    for entry, objects in times.items():
        dead = _STAGING.fullmatch(entry) or UNFINISHED in objects
        if dead and time.time() - max(objects.values()) > age_s:
            # With its marker a target is whole, and only `publish`'s last step is missing.
            stale = [UNFINISHED] if marker in objects and UNFINISHED in objects else list(objects)
            s3.delete_objects([f"{path}/{entry}/{name}" for name in stale])
            removed.append(entry)
    return removed


def _publish_local(staging: Path, path: str, marker: str) -> None:
    """Put all bytes onto the disk, the marker's last, then rename."""
    files = [p for p in staging.rglob("*") if p.is_file() and p != staging / marker]
    for file in [*files, staging / marker, staging]:
        fsync(file)
    while True:
        try:
            os.rename(staging, path)  # onto nothing, or onto an empty folder
            break
        except OSError:
            if not os.path.isdir(path):
                raise
        if _exchange(str(staging), path):  # staging now holds the old folder, which the caller removes
            break
        # Some filesystems (NFS) cannot: for a moment nothing is there, and never half of something.
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, staging_path(str(staging)))
    fsync(os.path.dirname(path))
    for old in Path(staging.parent).glob(f".{staging.name}.tmp-*"):
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: str, other: str) -> bool:
    """Exchange two folders in one step (Linux renameat2 with RENAME_EXCHANGE); False where it cannot."""
    import ctypes

    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here = -100  # AT_FDCWD
    return call is not None and call(here, os.fsencode(one), here, os.fsencode(other), 2) == 0


def _publish_s3(staging: Path, uri: str, marker: str, replaces: bool) -> None:
    path = split(uri)[1]
    files = [f.path for f in walk(str(staging)) if f.path != marker]
    staged = staging_path(path)  # of the store
    target_changed = not replaces
    try:
        if replaces:
            put_files(staging, files, f"s3://{staged}")
        with faults(uri):
            s3.client().pipe_file(f"{path}/{UNFINISHED}", b"")
            target_changed = True
            if replaces:
                s3.client().rm_file(f"{path}/{marker}")
            # Another process may be writing the same new target: files that both write are not deleted.
            keep = {UNFINISHED, *(() if replaces else files)}
            s3.delete_objects(
                [key for key in s3.client().find(path) if key.removeprefix(f"{path}/") not in keep]
            )
            if replaces:
                s3.copy_objects(staged, files, path)
        if not replaces:
            put_files(staging, files, uri)
        put_files(staging, [marker], uri)
        delete(join(uri, UNFINISHED))
    except BaseException:
        if target_changed:
            with contextlib.suppress(StorageError):
                delete(uri)
        raise
    finally:
        if replaces:
            with contextlib.suppress(StorageError):
                delete(f"s3://{staged}")
