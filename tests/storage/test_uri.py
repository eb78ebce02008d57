from __future__ import annotations

from pathlib import Path

import pytest

from tlray import storage
from tlray.errors import StorageError


@pytest.mark.parametrize(
    ("uri", "parts", "joined"),
    [
        ("a", ("b", "c"), "a/b/c"),
        ("a/", ("/b/",), "a/b"),
        ("/", ("b",), "/b"),
        ("s3://b", ("k",), "s3://b/k"),
        ("s3://b/k/", (), "s3://b/k"),
    ],
)
def test_join(uri: str, parts: tuple[str, ...], joined: str) -> None:
    assert storage.join(uri, *parts) == joined


def test_names_of_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.name("s3://b/runs/one/") == "one"
    assert storage.parent("s3://b/runs/one/") == "s3://b/runs"
    assert storage.absolute("runs") == str(tmp_path / "runs")
    assert storage.absolute("file:///x/y/") == "/x/y"
    assert storage.absolute("s3://b//k/") == "s3://b/k"
    assert storage.is_local("runs") and storage.is_local("file:///x") and not storage.is_local("s3://b")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("gs://b/x", "gs"),
        ("s3:/b/x", "s3"),
        ("s3://", "bucket"),
        ("s3:b/x", "s3://bucket/key"),
        ("", "local path"),
    ],
)
def test_uris_that_are_none(uri: str, said: str) -> None:
    with pytest.raises(StorageError, match=said):
        storage.exists(uri)


def test_uri_with_credentials_is_refused_and_not_repeated() -> None:
    with pytest.raises(StorageError) as caught:
        storage.read_bytes("s3://KEY:hush@bucket/x")
    assert "hush" not in str(caught.value) and "KEY" not in str(caught.value)
