"""URI -> bytes: local folders and ``s3://`` behind one set of functions.

The only user of s3fs and pyarrow.fs.

S3 goes through s3fs, because botocore beneath it follows the whole usual AWS environment (AWS_PROFILE with
its files, AWS_ENDPOINT_URL[_S3], AWS_REGION, roles, AWS_CA_BUNDLE). Clients are made per process, so nothing
breaks after a fork, and no credential is ever held by an object that can be pickled. Transient faults are
tried again by botocore and s3fs, for about ten seconds in all; what remains is one StorageError.

Names that begin with "." are tlray's own (staging, locks) and are never listed, walked or copied.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pyarrow import fs as pafs

from tlray.errors import DRIVE, StorageError, spelling_hint

UNFINISHED = ".unfinished"  # object that lies in an s3 target for as long as it is being written
_STALE_S = 24 * 3600  # age after which staging of a process that died is swept away
_STAGING = re.compile(r"\..+\.tmp-[0-9a-f]+")  # what `_aside` makes
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # one slash: s3:/bucket is a slip, not a folder
_FOREIGN = ("botocore", "aiobotocore", "aiohttp", "s3fs", "fsspec")  # whose exceptions mean the store
_clients: dict[tuple[int, int], Any] = {}
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FileInfo:
    """A file below some URI: its path relative to that, and its size in bytes."""

    path: str
    size: int


# ---- names


def is_local(uri: str) -> bool:
    """Whether a URI is a plain path or ``file://``. Raises StorageError for a scheme that is not served."""
    return _split(uri)[0] == "file"


def absolute(uri: str) -> str:
    """The URI as another process, with another working directory, can use it."""
    scheme, path = _split(uri)
    return path if scheme == "file" else f"s3://{path}"


def join(uri: str, *parts: str) -> str:
    """A URI below another one."""
    rest = "/".join(part.strip("/") for part in parts if part.strip("/"))
    base = uri if uri == "/" else uri.rstrip("/")
    return f"{base.rstrip('/')}/{rest}" if rest else base


def name(uri: str) -> str:
    """The last part of a URI."""
    return _split(uri)[1].rsplit("/", 1)[-1]


def parent(uri: str) -> str:
    """The URI without its last part."""
    scheme, path = _split(uri)
    above = os.path.dirname(path)
    return above if scheme == "file" else f"s3://{above}"


def _split(uri: str) -> tuple[str, str]:
    """Scheme ("file" or "s3") and path: absolute, or bucket/key without a slash at the end."""
    found = _SCHEME.match(uri)
    if not uri or (found is None and uri.startswith("s3:")):
        raise StorageError(f"{uri!r}: no URI; accepted: a local path, file:///path, s3://bucket/key")
    if "\0" in uri:
        raise StorageError(f"{uri!r}: holds a zero byte; accepted: a name without")
    if DRIVE.match(uri):
        raise StorageError(f"{uri}: no place on this machine{spelling_hint(uri)}")
    if found is None:
        path = os.path.expanduser(uri)
        if uri.startswith("~") and path == uri and not os.path.lexists(uri):
            user = uri.partition("/")[0]
            raise StorageError(f"{uri}: no home of that name here; accepted: ~/...; ./{user} for a folder")
        return "file", os.path.abspath(path)
    scheme, rest = found[1].lower(), uri[found.end() :]
    if scheme == "file":
        host = rest[1:].partition("/")[0] if rest.startswith("/") and rest[1:2] != "/" else ""
        if host not in ("", "localhost"):
            raise StorageError(f"{uri}: {host!r} stands where a machine's name does; accepted: file:///path")
        return "file", os.path.abspath("/" + rest.lstrip("/").removeprefix(f"{host}/").lstrip("/"))
    if scheme not in ("s3", "s3a"):
        raise StorageError(
            f"{scheme}://...: not served; accepted: a local path, file:///path, s3://bucket/key"
        )
    path = re.sub("/+", "/", rest.lstrip("/")).rstrip("/")
    bucket = path.partition("/")[0]
    if "@" in bucket or ":" in bucket:  # perhaps credentials: say nothing of what stands there
        raise StorageError("s3://...: no bucket's name; accepted: s3://bucket/key, credentials never in it")
    if not rest.startswith("/") or not bucket:
        raise StorageError(f"{uri}: no bucket; accepted: s3://bucket/key")
    return "s3", path


# ---- clients and faults


def open_fs(uri: str) -> tuple[pafs.FileSystem, str]:
    """Arrow's filesystem and the path in it; local paths become absolute.

    Faults of the filesystem itself come as OSError: wrap its use in `faults`.
    """
    scheme, path = _split(uri)
    if scheme == "file":
        return pafs.LocalFileSystem(), path
    with faults(uri):
        return pafs.PyFileSystem(pafs.FSSpecHandler(_s3())), path


def _s3() -> Any:
    """This process's s3fs client for the AWS environment as it stands now."""
    here = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))
    key = os.getpid(), hash(here)
    if key not in _clients:
        import s3fs  # 0.4 s, which purely local use need not pay

        client = s3fs.S3FileSystem(
            skip_instance_cache=True,  # its own cache does not look at the environment
            use_listings_cache=False,  # other processes write
            # Readers of row groups name exact ranges; read-ahead would fetch 50 MB beyond each.
            default_cache_type="none",
            config_kwargs={
                "retries": {"mode": "standard", "total_max_attempts": 4},
                "max_pool_connections": 32,
            },
        )
        client.retries = 2  # on top of botocore's four tries: covers connections that break while reading
        _clients.setdefault(key, client)
    return _clients[key]


@contextlib.contextmanager
def faults(uri: str) -> Iterator[None]:
    """Turn whatever a filesystem raises within into one StorageError that names the URI."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, ValueError | TypeError) and is_local(uri):
            raise  # ours, not the store's
        raise _fault(uri, error) from None
    except Exception as error:
        if type(error).__module__.split(".")[0] not in _FOREIGN:
            raise
        raise _fault(uri, error) from None


def _fault(uri: str, error: BaseException) -> StorageError:
    code = _code(error)
    kind = type(error).__name__
    local = is_local(uri)
    if isinstance(error, FileNotFoundError):
        if not local and (code == "NoSuchBucket" or not _bucket_there(uri)):
            return StorageError(f"s3://{_split(uri)[1].partition('/')[0]}: bucket not found; make it first")
        return StorageError(f"{uri}: not found{spelling_hint(uri)}")
    if isinstance(error, PermissionError):
        why = f" ({code}); accepted: AWS credentials that may use this bucket" if not local else ""
        return StorageError(f"{uri}: access denied{why}")
    if "Credential" in kind or kind == "ProfileNotFound" or "SSO" in kind or "Token" in kind:
        return StorageError(
            f"{uri}: no usable AWS credentials ({kind}); accepted: AWS_ACCESS_KEY_ID with "
            "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role"
        )
    if kind == "NoRegionError":
        return StorageError(f"{uri}: no region; set AWS_REGION")
    if kind == "ValueError" and "endpoint" in str(error):
        return StorageError(f"{uri}: AWS_ENDPOINT_URL is no address; accepted: https://host[:port]")
    if kind == "ParamValidationError":
        return StorageError(f"{uri}: not accepted by the store as a name; accepted: s3://bucket/key")
    if code:
        return StorageError(f"{uri}: the store answered {code}")
    if isinstance(error, OSError) and error.strerror and local:
        return StorageError(f"{uri}: {error.strerror[0].lower()}{error.strerror[1:]}")
    if not local and (
        isinstance(error, OSError | TimeoutError) or re.search("Connect|Timeout|HTTPClient", kind)
    ):
        return StorageError(f"{uri}: {_endpoint()} cannot be reached ({kind}); tried several times")
    return StorageError(f"{uri}: {kind}")


def _code(error: BaseException | None) -> str:
    """The store's own word for what went wrong, from anywhere in the chain of causes."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__ or error.__context__
    return ""


def _endpoint() -> str:
    """Where S3 is, without user and password, which a URL may carry."""
    client = getattr(_s3(), "_s3", None)
    url = urlsplit(client.meta.endpoint_url if client is not None else "")
    port = f":{url.port}" if url.port else ""
    return f"endpoint {url.scheme}://{url.hostname}{port}" if url.hostname else "the S3 endpoint"


def _bucket_there(uri: str) -> bool:
    try:
        _s3().call_s3("head_bucket", Bucket=_split(uri)[1].partition("/")[0])
    except FileNotFoundError:
        return False
    except Exception:  # cannot tell: the first fault is the one to report
        return True
    return True


# ---- looking


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    scheme, path = _split(uri)
    with faults(uri):
        return os.path.exists(path) if scheme == "file" else bool(_s3().exists(path))


def is_dir(uri: str) -> bool:
    """Whether a folder is there; on s3, whether anything lies below."""
    scheme, path = _split(uri)
    with faults(uri):
        return os.path.isdir(path) if scheme == "file" else bool(_s3().isdir(path))


def listdir(uri: str) -> list[str]:
    """Names in a folder, sorted, those with a leading dot left out. Raises StorageError where it is none."""
    scheme, path = _split(uri)
    with faults(uri):
        if scheme == "file":
            found = os.listdir(path)
        else:
            entries = _s3().ls(path, detail=True)
            if any(entry["name"] == path and entry["type"] == "file" for entry in entries):
                raise StorageError(f"{uri}: not a folder")
            found = [entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries]
    return sorted(entry for entry in set(found) if not entry.startswith("."))


def walk(uri: str) -> list[FileInfo]:
    """All files below a folder, sorted by path; a file yields itself with an empty path. Pipes, sockets and
    devices are none."""
    scheme, path = _split(uri)
    with faults(uri):
        found = _walk_local(path) if scheme == "file" else _walk_s3(path)
    visible = [f for f in found if not any(part.startswith(".") for part in f.path.split("/"))]
    return sorted(visible, key=lambda f: f.path)


def _walk_local(path: str) -> list[FileInfo]:
    if not os.path.isdir(path):
        return [FileInfo("", _regular(path).st_size)]
    found = []
    for folder, _, files in os.walk(path):
        for file in files:
            full = os.path.join(folder, file)
            with contextlib.suppress(FileNotFoundError):  # taken away meanwhile
                seen = os.stat(full)
                if stat.S_ISREG(seen.st_mode):
                    found.append(FileInfo(os.path.relpath(full, path), seen.st_size))
    return found


def _regular(path: str) -> os.stat_result:
    """What the system knows of a file. Raises OSError for what is none: opening a pipe waits for ever."""
    seen = os.stat(path)
    if not stat.S_ISREG(seen.st_mode) and not stat.S_ISDIR(seen.st_mode):
        raise OSError(errno.EINVAL, "is a pipe, a socket or a device; accepted: a file", path)
    return seen


def _walk_s3(path: str) -> list[FileInfo]:
    found = [
        FileInfo(key[len(path) :].lstrip("/"), int(info["size"] or 0))
        for key, info in _s3().find(path, detail=True).items()
        if not key.endswith("/") and info["type"] == "file"  # no folder markers of other tools
    ]
    if not found and not _s3().exists(path):
        raise FileNotFoundError(path)
    return found


@dataclass(frozen=True)
class Tree:
    """Files and folders below a URI, paths relative to it, sorted; and what could not be listed."""

    files: list[str]
    folders: list[str]
    broken: list[str]  # links that lead nowhere
    loops: list[str]  # links that lead back to a folder that holds them
    unnamed: list[str]  # names that are no UTF-8, as far as they can be shown
    special: list[str]  # pipes, sockets, devices, and links to them


def tree(uri: str) -> Tree:
    """All files and folders below a folder, hidden ones too; links are followed. Sizes are not asked for.

    One name or link that cannot be used does not stop the rest: it is listed apart. Raises StorageError.
    """
    scheme, path = _split(uri)
    with faults(uri):
        if scheme == "file":
            return _tree_local(path)
        files = [file.path for file in _walk_s3(path)]
    return Tree(sorted(files), [], [], [], [], [])


def _tree_local(root: str) -> Tree:
    seen = Tree([], [], [], [], [], [])
    pending = [("", frozenset({os.path.realpath(root)}))]  # a folder, and the real places of those above
    while pending:
        folder, above = pending.pop()
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                path = os.path.join(folder, entry.name)
                try:
                    path.encode()
                except UnicodeEncodeError:
                    seen.unnamed.append(os.fsencode(path).decode(errors="replace"))
                    continue
                try:
                    is_folder = entry.is_dir()
                    is_file = is_folder or stat.S_ISREG(entry.stat().st_mode)
                except OSError:  # of a link that leads nowhere, or to itself
                    seen.broken.append(path)
                    continue
                if not is_folder:
                    (seen.files if is_file else seen.special).append(path)
                    continue
                real = os.path.realpath(entry.path)
                if real in above:
                    seen.loops.append(path)
                    continue
                seen.folders.append(path)
                pending.append((path, above | {real}))
    for paths in (seen.files, seen.folders, seen.broken, seen.loops, seen.unnamed, seen.special):
        paths.sort()
    return seen


def unfinished(uri: str) -> bool:
    """Whether `publish` is writing there now, or died while it did (s3 only; locally that cannot be seen)."""
    return not is_local(uri) and exists(join(uri, UNFINISHED))


# ---- single files


def read_bytes(uri: str) -> bytes:
    """A whole file."""
    scheme, path = _split(uri)
    with faults(uri):
        if scheme == "s3":
            return bytes(_s3().cat_file(path))
        _regular(path)
        return Path(path).read_bytes()


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], num_threads: int, window: int
) -> Iterator[Result]:
    """``work`` of each item, in order; threads are at most ``window`` items ahead.

    Threads are not waited for at the end. A caller that an error ends leaves this iterator to the garbage
    collector, which may run while this very thread holds a lock of `threading` that joining needs.
    """
    pool = ThreadPoolExecutor(num_threads)
    try:
        for start in range(0, len(items), window):
            yield from pool.map(work, items[start : start + window])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def read_range(uri: str, start: int, length: int) -> bytes:
    """Bytes of a file from ``start`` on, ``length`` of them or as many as there are."""
    scheme, path = _split(uri)
    with faults(uri):
        if scheme == "s3":
            return bytes(_s3().cat_file(path, start=start, end=start + length))
        _regular(path)
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(length)


def read_head(uri: str, length: int) -> bytes:
    """The first bytes of a file, fewer where it is shorter."""
    return read_range(uri, 0, length)


def write_bytes(uri: str, data: bytes) -> None:
    """Write or replace a file; readers see the old one or the new one, whole."""
    scheme, path = _split(uri)
    with faults(uri):
        if scheme == "s3":
            _s3().pipe_file(path, data)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        aside = _aside(path)
        try:
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            _fsync(os.path.dirname(path))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside)
            raise


def write_new(uri: str, data: bytes = b"") -> bool:
    """Write a file only where none is yet; False, and nothing done, where one is.

    Exclusive locally and on every store that honours ``If-None-Match`` (AWS, MinIO, Ceph, R2); on one that
    does not know it, two writers of the same instant may both be told True.
    """
    scheme, path = _split(uri)
    with faults(uri):
        if scheme == "file":
            os.makedirs(os.path.dirname(path), exist_ok=True)
            try:
                with open(path, "xb") as file:
                    file.write(data)
            except FileExistsError:
                return False
            return True
        return _put_if(path, data, None)


def _put_if(path: str, data: bytes, etag: str | None) -> bool:
    """Put an s3 object where it is absent (etag None) or still the one that was read; False otherwise."""
    bucket, _, key = path.partition("/")
    condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
    if etag is None and _s3().exists(path):  # spares stores that ignore the condition most of the harm
        return False
    try:
        _s3().call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
    except Exception as error:
        if _code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
            return False
        if _code(error) not in ("NotImplemented", "501"):
            raise
        _s3().call_s3("put_object", Bucket=bucket, Key=key, Body=data)
    return True


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
    """Replace a JSON file by ``change(what it holds, None where it is absent)`` and return the new value.

    No writer undoes another's change: a lock beside the file locally, the object's ETag on s3 (there
    ``change`` may run several times). Raises StorageError after 20 lost races.
    """
    scheme, path = _split(uri)
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
            etag = _s3().info(path)["ETag"] if _s3().exists(path) else None
        # Content newer than the ETag does no harm: the conditional write then fails and we read again.
        value = change(read_json(uri) if etag else None)
        with faults(uri):
            if _put_if(path, _json(value), etag):
                return value
        time.sleep(random.uniform(0, 0.05 * (attempt + 1)))
    raise StorageError(f"{uri}: others keep changing it; try again")


def _json(obj: Any) -> bytes:
    return (json.dumps(obj, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


# ---- folders


def delete(uri: str) -> None:
    """Remove a file or a whole folder, tlray's hidden files in it too; nothing there is no fault."""
    scheme, path = _split(uri)
    with faults(uri):
        if scheme == "s3":
            if "/" not in path:
                raise StorageError(f"{uri}: a whole bucket is never deleted; accepted: s3://bucket/key")
            _delete_s3(list(_s3().find(path)))
        elif os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)


def _delete_s3(paths: list[str]) -> None:
    """Delete objects by their exact names; s3fs's own rm would take "[1]" in a name for a pattern."""
    for start in range(0, len(paths), 1000):
        keys = [path.partition("/")[2] for path in paths[start : start + 1000]]
        gone = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        answer = _s3().call_s3("delete_objects", Bucket=paths[0].partition("/")[0], Delete=gone)
        if answer.get("Errors"):
            raise PermissionError(1, str(answer["Errors"][0].get("Code", "not deleted")))


def download(uri: str, local_dir: str | Path) -> None:
    """Copy a folder's files (or one file) into a local folder, which may exist."""
    target = Path(local_dir)
    files = [f.path for f in walk(uri)]
    if any(".." in path.split("/") for path in files):  # a key of s3 may say so
        raise StorageError(f"{uri}: holds a name with '..'; not copied")
    sources = [join(_split(uri)[1], path) for path in files]
    places = [str(target / (path or name(uri))) for path in files]
    with faults(str(target)):
        for folder in {os.path.dirname(place) for place in places} | {str(target)}:
            os.makedirs(folder, exist_ok=True)
    with faults(uri):
        if is_local(uri):
            for source, place in zip(sources, places, strict=True):
                shutil.copyfile(source, place)
        elif sources:
            _s3().get(sources, places)


def upload(local_dir: str | Path, uri: str) -> None:
    """Copy the files of a local folder to a URI, beside what is there; not atomic, see `publish`."""
    if is_local(uri):
        download(str(local_dir), _split(uri)[1])
    else:
        _upload(Path(local_dir), [f.path for f in walk(str(local_dir))], uri)


def _upload(folder: Path, files: list[str], uri: str) -> None:
    path = _split(uri)[1]
    with faults(uri):
        if files:
            _s3().put([str(folder / file) for file in files], [f"{path}/{file}" for file in files])


def copy_dir(src_uri: str, dst_uri: str) -> None:
    """Copy a folder's files to another place, beside what is there; not atomic, see `publish`."""
    if is_local(src_uri):
        upload(_split(src_uri)[1], dst_uri)
    elif is_local(dst_uri):
        download(src_uri, _split(dst_uri)[1])
    else:
        files = [f.path for f in walk(src_uri)]
        with faults(dst_uri):
            _copy_s3(_split(src_uri)[1], files, _split(dst_uri)[1])


def _copy_s3(source: str, files: list[str], target: str) -> None:
    """Copy within the store: no byte passes through this machine."""
    for file in files:
        _s3().cp_file(f"{source}/{file}" if file else source, f"{target}/{file}" if file else target)


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A file or folder as a local path: itself, or a temporary copy of what lies on s3."""
    if is_local(uri):
        path = Path(_split(uri)[1])
        if not path.exists():
            raise StorageError(f"{uri}: not found")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="tlray-", ignore_cleanup_errors=True) as folder:
        one = [f.path for f in walk(uri)] == [""]
        download(uri, folder)
        yield Path(folder, name(uri)) if one else Path(folder)


# ---- publishing a folder


@contextlib.contextmanager
def publish(uri: str, marker: str) -> Iterator[Path]:
    """A local folder to fill; when the block ends, its files are at ``uri``, ``marker`` the last of them.

    Whoever finds the marker finds everything else beside it. An exception leaves nothing new behind.
    Locally the folder is staged beside the target and renamed onto it (an older one is exchanged in the
    same instant where the system can). On s3 a fresh target is written directly; an older one stays as it
    is until the new files lie staged in the store, loses its marker, and is replaced by copies within the
    store: a process killed in that short time leaves neither.
    Raises StorageError where the target holds files but no marker: those are somebody else's.
    """
    local, path = is_local(uri), _split(uri)[1]
    old = _target(uri, marker)
    if local:
        with faults(uri):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _sweep_local(os.path.dirname(path), _STALE_S, f".{os.path.basename(path)}.tmp-")
            staging = Path(_aside(path))
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
            _publish_s3(staging, uri, marker, old)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _target(uri: str, marker: str) -> bool:
    """Whether an older publication is to be replaced; refuses a target with other content."""
    if unfinished(uri):
        return False
    if not exists(uri):
        return False
    if not is_dir(uri):
        raise StorageError(f"{uri}: is a file; accepted: a folder to be made or replaced")
    if exists(join(uri, marker)):
        return True
    there = [f.path for f in walk(uri)]
    if there:
        raise StorageError(f"{uri}: holds other files ({there[0]}) and no {marker}; accepted: an empty place")
    return False


def _aside(path: str) -> str:
    folder, base = os.path.split(path)
    return f"{folder}/.{base}.tmp-{secrets.token_hex(4)}"


def sweep(uri: str, marker: str, age_s: float = _STALE_S) -> list[str]:
    """Remove what publishers that died left in a folder; returns the names, sorted.

    That is staging, and on s3 targets that were never finished, if nothing in them was written for
    ``age_s`` seconds: a publisher at work is left alone as long as it writes more often than that.
    """
    local, path = is_local(uri), _split(uri)[1]
    with faults(uri):
        return sorted(_sweep_local(path, age_s) if local else _sweep_s3(path, marker, age_s))


def _sweep_local(folder: str, age_s: float, prefix: str = ".") -> list[str]:
    gone = []
    for entry in os.listdir(folder) if os.path.isdir(folder) else []:
        old = os.path.join(folder, entry)
        if entry.startswith(prefix) and _STAGING.fullmatch(entry) and os.path.isdir(old):
            with contextlib.suppress(OSError):  # published, or swept by another, meanwhile
                written = [os.stat(old).st_mtime, *(file.stat().st_mtime for file in os.scandir(old))]
                if time.time() - max(written) > age_s:
                    shutil.rmtree(old, ignore_errors=True)
                    gone.append(entry)
    return gone


def _sweep_s3(path: str, marker: str, age_s: float) -> list[str]:
    below: dict[str, dict[str, float]] = {}  # name in the folder -> its objects -> when they were written
    for key, info in _s3().find(path, detail=True).items():
        first, _, rest = key[len(path) :].lstrip("/").partition("/")
        if rest and info["type"] == "file":
            below.setdefault(first, {})[rest] = info["LastModified"].timestamp()
    gone = []
    for entry, objects in below.items():
        dead = _STAGING.fullmatch(entry) or UNFINISHED in objects
        if dead and time.time() - max(objects.values()) > age_s:
            # With its marker it is whole: only the last step was missing.
            rest = [UNFINISHED] if marker in objects and UNFINISHED in objects else list(objects)
            _delete_s3([f"{path}/{entry}/{name}" for name in rest])
            gone.append(entry)
    return gone


def _publish_local(staging: Path, path: str, marker: str) -> None:
    """Settle all bytes on disk, the marker's last, then rename."""
    files = [p for p in staging.rglob("*") if p.is_file() and p != staging / marker]
    for file in [*files, staging / marker, staging]:
        _fsync(file)
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
            os.rename(path, _aside(str(staging)))
    _fsync(os.path.dirname(path))
    for rest in Path(staging.parent).glob(f".{staging.name}.tmp-*"):
        shutil.rmtree(rest, ignore_errors=True)


def _exchange(one: str, other: str) -> bool:
    """Exchange two folders in one step (Linux renameat2 with RENAME_EXCHANGE); False where it cannot."""
    import ctypes

    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here = -100  # AT_FDCWD
    return call is not None and call(here, os.fsencode(one), here, os.fsencode(other), 2) == 0


def _fsync(path: str | Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _publish_s3(staging: Path, uri: str, marker: str, old: bool) -> None:
    path = _split(uri)[1]
    files = [f.path for f in walk(str(staging)) if f.path != marker]
    aside = f"s3://{_aside(path)}"
    touched = not old
    try:
        if old:
            _upload(staging, files, aside)
        with faults(uri):
            _s3().pipe_file(f"{path}/{UNFINISHED}", b"")
            touched = True
            if old:
                _s3().rm_file(f"{path}/{marker}")
            # Another writer of the same fresh target may be at work: what both have is left to the last.
            stay = {UNFINISHED, *(() if old else files)}
            _delete_s3([key for key in _s3().find(path) if key.removeprefix(f"{path}/") not in stay])
            if old:
                _copy_s3(_split(aside)[1], files, path)
        if not old:
            _upload(staging, files, uri)
        _upload(staging, [marker], uri)
        delete(join(uri, UNFINISHED))
    except BaseException:
        if touched:
            with contextlib.suppress(StorageError):
                delete(uri)
        raise
    finally:
        if old:
            with contextlib.suppress(StorageError):
                delete(aside)
