"""A real HTTP S3 server for tests: the fixture `s3_uri` gives a fresh bucket and points AWS_* at it.

Import both fixtures into conftest.py: ``from tests.s3 import s3_server, s3_uri``.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

SECRET = "testing-secret"


def s3_environment(endpoint: str) -> dict[str, str]:
    """The AWS environment of a server with made-up keys; no file of the user's is read."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Endpoint of a server that lives as long as the test session."""
    from moto.server import ThreadedMotoServer  # about a second

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_uri(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """``s3://`` URI of a fresh, empty bucket, with the environment to reach it."""
    import urllib.request

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_environment(s3_server).items():
        monkeypatch.setenv(name, value)
    bucket = f"tlray-{uuid.uuid4().hex[:12]}"
    request = urllib.request.Request(f"{s3_server}/{bucket}", method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
    return f"s3://{bucket}"
