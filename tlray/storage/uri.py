"""URIs: which scheme and path one has, and how to join and take them apart. Asks no filesystem for files."""

from __future__ import annotations

import os
import re

from tlray.errors import DRIVE, StorageError, spelling_hint

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # one slash: s3:/bucket is a slip, not a folder


def is_local(uri: str) -> bool:
    """Whether a URI is a plain path or ``file://``. Raises StorageError for a scheme that is not served."""
    return split(uri)[0] == "file"


def absolute(uri: str) -> str:
    """The URI as another process, with another working directory, can use it."""
    scheme, path = split(uri)
    return path if scheme == "file" else f"s3://{path}"


def join(uri: str, *parts: str) -> str:
    """A URI below another one."""
    rest = "/".join(part.strip("/") for part in parts if part.strip("/"))
    base = uri if uri == "/" else uri.rstrip("/")
    return f"{base.rstrip('/')}/{rest}" if rest else base


def name(uri: str) -> str:
    """The last part of a URI."""
    return split(uri)[1].rsplit("/", 1)[-1]


def parent(uri: str) -> str:
    """The URI without its last part."""
    scheme, path = split(uri)
    above = os.path.dirname(path)
    return above if scheme == "file" else f"s3://{above}"


def split(uri: str) -> tuple[str, str]:
    """Scheme ("file" or "s3") and path: absolute, or bucket/key without a slash at the end.

    Raises StorageError for what is no URI, and for a scheme that is not served.
    """
    prefix = _SCHEME.match(uri)
    if not uri or (prefix is None and uri.startswith("s3:")):
        raise StorageError(f"{uri!r}: no URI; accepted: a local path, file:///path, s3://bucket/key")
    if "\0" in uri:
        raise StorageError(f"{uri!r}: holds a zero byte; accepted: a name without")
    if DRIVE.match(uri):
        raise StorageError(f"{uri}: no place on this machine{spelling_hint(uri)}")
    if prefix is None:
        path = os.path.expanduser(uri)
        if uri.startswith("~") and path == uri and not os.path.lexists(uri):
            user = uri.partition("/")[0]
            raise StorageError(f"{uri}: no home of that name here; accepted: ~/...; ./{user} for a folder")
        return "file", os.path.abspath(path)
    scheme, rest = prefix[1].lower(), uri[prefix.end() :]
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
    if "@" in bucket or ":" in bucket:  # these may be credentials: the message must not repeat them
        raise StorageError("s3://...: no bucket's name; accepted: s3://bucket/key, credentials never in it")
    if not rest.startswith("/") or not bucket:
        raise StorageError(f"{uri}: no bucket; accepted: s3://bucket/key")
    return "s3", path
