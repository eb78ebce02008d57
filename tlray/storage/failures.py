"""Faults of filesystems, whoever raised them, as one StorageError of one line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from tlray.errors import StorageError, spelling_hint
from tlray.storage import s3
from tlray.storage.uri import is_local, split

_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "s3fs", "fsspec")  # what they raise is a fault of S3


@contextlib.contextmanager
def faults(uri: str) -> Iterator[None]:
    """Turn whatever a filesystem raises in the block into one StorageError that names the URI."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, ValueError | TypeError) and is_local(uri):
            raise  # a mistake in our code: local files raise OSError
        raise _translate(uri, error) from None
    except Exception as error:
        if type(error).__module__.split(".")[0] not in _LIBRARIES:
            raise
        raise _translate(uri, error) from None


def _translate(uri: str, error: BaseException) -> StorageError:
    code = s3.error_code(error)
    kind = type(error).__name__
    local = is_local(uri)
    if isinstance(error, FileNotFoundError):
        if not local and (code == "NoSuchBucket" or not s3.bucket_exists(split(uri)[1])):
            return StorageError(f"s3://{split(uri)[1].partition('/')[0]}: bucket not found; make it first")
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
        return StorageError(f"{uri}: {s3.endpoint()} cannot be reached ({kind}); tried several times")
    return StorageError(f"{uri}: {kind}")
