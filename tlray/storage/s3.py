"""The S3 client of this process, and the requests that s3fs has no exact method for.

S3 goes through s3fs, because botocore beneath it follows the whole usual AWS environment (AWS_PROFILE with
its files, AWS_ENDPOINT_URL[_S3], AWS_REGION, roles, AWS_CA_BUNDLE). botocore and s3fs repeat a request after
a transient fault, for about ten seconds in all.

Paths are ``bucket/key``. Exceptions are those of the libraries: `failures.faults` translates them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

_clients: dict[tuple[int, int], Any] = {}  # by process and AWS environment


def client() -> Any:
    """This process's s3fs filesystem for the AWS environment as it is now.

    Each process makes its own, so that a fork breaks nothing and no object that can be pickled holds
    credentials.
    """
    environment = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))
    key = os.getpid(), hash(environment)
    if key not in _clients:
        import s3fs  # 0.4 s, which purely local use need not pay

        filesystem = s3fs.S3FileSystem(
            skip_instance_cache=True,  # its own cache does not look at the environment
            use_listings_cache=False,  # other processes write
            # Readers of row groups name exact ranges; read-ahead would fetch 50 MB beyond each.
            default_cache_type="none",
            config_kwargs={
                "retries": {"mode": "standard", "total_max_attempts": 4},
                "max_pool_connections": 32,
            },
        )
        filesystem.retries = 2  # on top of botocore's four: covers connections that break while reading
        _clients.setdefault(key, filesystem)
    return _clients[key]


def endpoint() -> str:
    """The address of the S3 server for messages, without the user and password that a URL may carry."""
    boto = getattr(client(), "_s3", None)
    url = urlsplit(boto.meta.endpoint_url if boto is not None else "")
    port = f":{url.port}" if url.port else ""
    return f"endpoint {url.scheme}://{url.hostname}{port}" if url.hostname else "the S3 endpoint"


def bucket_exists(path: str) -> bool:
    """Whether the bucket of a path exists; True, too, where the server does not tell."""
    try:
        client().call_s3("head_bucket", Bucket=path.partition("/")[0])
    except FileNotFoundError:
        return False
    except Exception:  # the fault that led here is reported, not this one
        return True
    return True


def error_code(error: BaseException | None) -> str:
    """The error code in the server's answer, looked for in the whole chain of causes; "" without one."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__ or error.__context__
    return ""


def put_if_unchanged(path: str, data: bytes, etag: str | None) -> bool:
    """Put an object only where none exists (``etag`` None) or where its ETag still is this one.

    False, and nothing written, otherwise.
    """
    bucket, _, key = path.partition("/")
    condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
    # Asking first prevents most overwrites on servers that ignore the condition.
    if etag is None and client().exists(path):
        return False
    try:
        client().call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
    except Exception as error:
        if error_code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
            return False
        if error_code(error) not in ("NotImplemented", "501"):
            raise
        client().call_s3("put_object", Bucket=bucket, Key=key, Body=data)
    return True


def delete_objects(paths: Sequence[str]) -> None:
    """Delete objects of one bucket by exact name; s3fs's own rm would take "[1]" in a name for a pattern."""
    for start in range(0, len(paths), 1000):  # the most that one request may name
        keys = [path.partition("/")[2] for path in paths[start : start + 1000]]
        request = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        answer = client().call_s3("delete_objects", Bucket=paths[0].partition("/")[0], Delete=request)
        if answer.get("Errors"):
            raise PermissionError(1, str(answer["Errors"][0].get("Code", "not deleted")))


def copy_objects(source: str, files: Sequence[str], target: str) -> None:
    """Copy files from one folder to another within the store: no byte passes through this machine."""
    for file in files:
        client().cp_file(f"{source}/{file}" if file else source, f"{target}/{file}" if file else target)
