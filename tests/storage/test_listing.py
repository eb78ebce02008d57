from __future__ import annotations

import os
from pathlib import Path

import pytest

from tlray import storage
from tlray.errors import StorageError


def test_files(root: str) -> None:
    assert not storage.exists(root)
    storage.write_bytes(f"{root}/a/one.txt", b"1")
    storage.write_json(f"{root}/b.json", {"z": 1, "a": "ü"})
    storage.write_bytes(f"{root}/.hidden/x", b"x")
    storage.write_bytes(f"{root}/a/one.txt", b"22")
    assert storage.read_bytes(f"{root}/a/one.txt") == b"22"
    assert storage.read_bytes(f"{root}/b.json") == '{\n  "a": "ü",\n  "z": 1\n}\n'.encode()
    assert storage.read_json(f"{root}/b.json") == {"z": 1, "a": "ü"}
    assert storage.listdir(root) == ["a", "b.json"]
    assert storage.walk(root) == [storage.FileInfo("a/one.txt", 2), storage.FileInfo("b.json", 26)]
    assert storage.walk(f"{root}/b.json") == [storage.FileInfo("", 26)]
    assert storage.is_dir(f"{root}/a") and not storage.is_dir(f"{root}/b.json")
    storage.delete(f"{root}/a")
    storage.delete(f"{root}/a")
    assert not storage.exists(f"{root}/a/one.txt")
    assert storage.listdir(root) == ["b.json"]


def test_missing_things_say_where(root: str) -> None:
    storage.write_bytes(f"{root}/there", b"")
    for call in (storage.read_bytes, storage.listdir, storage.walk, storage.read_json):
        with pytest.raises(StorageError, match="nope: not found"):
            call(f"{root}/nope")
    with pytest.raises(StorageError, match="nope: not found"), storage.local_copy(f"{root}/nope"):
        pass
    with pytest.raises(StorageError, match="not a"):
        storage.listdir(f"{root}/there")


def test_pipes_and_devices_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "null.jpg").symlink_to("/dev/null")
    (tmp_path / "b.jpg").write_bytes(b"x")
    assert [file.path for file in storage.walk(str(tmp_path))] == ["b.jpg"]
    seen = storage.tree(str(tmp_path))
    assert (seen.files, seen.special) == (["b.jpg"], ["a.jpg", "null.jpg"])
    for name in ("a.jpg", "null.jpg"):
        for read in (storage.read_bytes, storage.walk, lambda uri: storage.read_head(uri, 9)):
            with pytest.raises(StorageError, match=rf"{name}: is a pipe, a socket or a device; accepted"):
                read(str(tmp_path / name))
