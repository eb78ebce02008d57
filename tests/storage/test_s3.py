from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from tlray import storage


def _in_child(uri: str, queue: multiprocessing.Queue[bytes]) -> None:
    queue.put(storage.read_bytes(uri))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_works_after_a_fork(s3_uri: str) -> None:
    storage.write_bytes(f"{s3_uri}/x", b"1")
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[bytes] = context.Queue()
    child = context.Process(target=_in_child, args=(f"{s3_uri}/x", queue))
    child.start()
    assert queue.get(timeout=20) == b"1"
    child.join(10)
    assert storage.read_bytes(f"{s3_uri}/x") == b"1"


def test_endpoint_of_s3_alone_goes_first(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    storage.write_bytes(f"{s3_uri}/x", b"1")
    assert storage.read_bytes(f"{s3_uri}/x") == b"1"


def test_profile(s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text(
        f"[profile here]\nregion = us-east-1\nendpoint_url = {os.environ['AWS_ENDPOINT_URL']}\n"
        "aws_access_key_id = a\naws_secret_access_key = b\n"
    )
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "here")
    storage.write_bytes(f"{s3_uri}/x", b"1")
    assert storage.exists(f"{s3_uri}/x")
