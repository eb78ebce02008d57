"""Whole folders: copied up, down and across, and deleted. Not atomic: `publishing.publish` is."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tlray.errors import StorageError
from tlray.storage import s3
from tlray.storage.failures import faults
from tlray.storage.listing import walk
from tlray.storage.uri import is_local, join, name, split


def delete(uri: str) -> None:
    """Remove a file or a whole folder, hidden files in it too; where nothing exists, do nothing."""
    scheme, path = split(uri)
    with faults(uri):
        if scheme == "s3":
            if "/" not in path:
                raise StorageError(f"{uri}: a whole bucket is never deleted; accepted: s3://bucket/key")
            s3.delete_objects(list(s3.client().find(path)))
        elif os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)


def download(uri: str, local_dir: str | Path) -> None:
    """Copy a folder's files (or one file) into a local folder, which may exist."""
    target = Path(local_dir)
    files = [f.path for f in walk(uri)]
    if any(".." in path.split("/") for path in files):  # an s3 key may contain it
        raise StorageError(f"{uri}: holds a name with '..'; not copied")
    sources = [join(split(uri)[1], path) for path in files]
    targets = [str(target / (path or name(uri))) for path in files]
    with faults(str(target)):
        for folder in {os.path.dirname(path) for path in targets} | {str(target)}:
            os.makedirs(folder, exist_ok=True)
    with faults(uri):
        if is_local(uri):
            for source, path in zip(sources, targets, strict=True):
                shutil.copyfile(source, path)
        elif sources:
            s3.client().get(sources, targets)


def upload(local_dir: str | Path, uri: str) -> None:
    """Copy the files of a local folder to a URI; files that exist there under other names stay."""
    if is_local(uri):
        download(str(local_dir), split(uri)[1])
    else:
        put_files(Path(local_dir), [f.path for f in walk(str(local_dir))], uri)


def put_files(folder: Path, files: Sequence[str], uri: str) -> None:
    """Copy some files of a local folder to s3."""
    path = split(uri)[1]
    with faults(uri):
        if files:
            s3.client().put([str(folder / file) for file in files], [f"{path}/{file}" for file in files])


def copy_dir(src_uri: str, dst_uri: str) -> None:
    """Copy a folder's files to another place; files that exist there under other names stay."""
    if is_local(src_uri):
        upload(split(src_uri)[1], dst_uri)
    elif is_local(dst_uri):
        download(src_uri, split(dst_uri)[1])
    else:
        files = [f.path for f in walk(src_uri)]
        with faults(dst_uri):
            s3.copy_objects(split(src_uri)[1], files, split(dst_uri)[1])


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A file or folder as a local path: itself, or a temporary copy of what lies on s3."""
    if is_local(uri):
        path = Path(split(uri)[1])
        if not path.exists():
            raise StorageError(f"{uri}: not found")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="tlray-", ignore_cleanup_errors=True) as folder:
        is_file = [f.path for f in walk(uri)] == [""]
        download(uri, folder)
        yield Path(folder, name(uri)) if is_file else Path(folder)
