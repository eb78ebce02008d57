from __future__ import annotations

import http.server
import json
import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.s3 import SECRET
from tlray import storage
from tlray.errors import StorageError


def one_line(caught: pytest.ExceptionInfo[StorageError]) -> str:
    text = str(caught.value)
    assert "\n" not in text and SECRET not in text and len(text) < 250
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    return text


def test_missing_bucket(s3_uri: str) -> None:
    for call in (storage.read_bytes, storage.listdir, lambda uri: storage.write_bytes(uri, b"")):
        with pytest.raises(StorageError) as caught:
            call("s3://no-such-bucket/x")
        assert one_line(caught).startswith("s3://no-such-bucket: bucket not found")


@pytest.mark.parametrize("user", ["", "me:hush@"])
def test_unreachable_endpoint(s3_uri: str, monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{user}127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(StorageError) as caught:
        storage.listdir(f"{s3_uri}/x")
    text = one_line(caught)
    assert "127.0.0.1:9 cannot be reached" in text and "hush" not in text
    assert time.monotonic() - start < 30


def test_no_credentials(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StorageError) as caught:
        storage.listdir(f"{s3_uri}/x")
    assert "no usable AWS credentials" in one_line(caught)


@contextmanager
def answering(status: int, code: str, times: int, then: str) -> Iterator[tuple[str, list[str]]]:
    """A proxy that answers the first requests with a fault and passes the others on."""
    met: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            met.append(self.path)
            if len(met) <= times:
                body, answer = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode(), status
            else:
                with urllib.request.urlopen(then + self.path, timeout=10) as inner:
                    body, answer = inner.read(), inner.status
            self.send_response(answer)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", met
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError")])
def test_transient_faults_are_tried_again(
    s3_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
) -> None:
    storage.write_bytes(f"{s3_uri}/x", b"1")
    with answering(status, code, 2, os.environ["AWS_ENDPOINT_URL"]) as (endpoint, met):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert storage.listdir(s3_uri) == ["x"]
    assert len(met) == 3


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [(403, "AccessDenied", "access denied"), (403, "SignatureDoesNotMatch", "access denied")],
)
def test_denied_is_said_at_once(
    s3_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    said: str,
) -> None:
    with answering(status, code, 99, "") as (endpoint, met):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StorageError) as caught:
            storage.listdir(s3_uri)
    assert said in one_line(caught) and code in one_line(caught)
    assert len(met) == 1


def test_bounded(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(500, "InternalError", 99, "") as (endpoint, met):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StorageError) as caught:
            storage.listdir(s3_uri)
    assert "InternalError" in one_line(caught)
    assert len(met) <= 8


def test_faults_leaves_our_own_mistakes_alone(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), storage.faults("s3://b/x"):
        print(1 / 0)
    with pytest.raises(TypeError), storage.faults(str(tmp_path)):
        json.dumps(object())


def test_local_faults(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/x: (file exists|not a directory)"):
        storage.write_bytes(str(tmp_path / "file/x"), b"")
    with pytest.raises(StorageError, match="is a directory"):
        storage.read_bytes(str(tmp_path))
