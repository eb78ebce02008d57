from __future__ import annotations

import concurrent.futures
import os
import threading
from pathlib import Path

import pytest

from tests.storage.content import contents, fill
from tlray import storage
from tlray.errors import StorageError
from tlray.storage import publishing


def test_publish_puts_all_or_nothing(root: str) -> None:
    uri = f"{root}/deep/bundle"
    with pytest.raises(RuntimeError), storage.publish(uri, "m.json") as folder:
        fill(folder, a="1")
        raise RuntimeError
    assert not storage.exists(uri)
    with storage.publish(uri, "m.json") as folder:
        fill(folder, **{"m.json": "{}"}, a="1", deep__b="2")
        assert not storage.exists(f"{uri}/m.json")
    assert contents(uri) == {"m.json": "{}", "a": "1", "deep/b": "2"}
    assert storage.listdir(f"{root}/deep") == ["bundle"]
    assert not folder.exists()


def test_publish_replaces_the_old_one_and_keeps_it_on_failure(root: str) -> None:
    with storage.publish(root, "m.json") as folder:
        fill(folder, **{"m.json": "1"}, gone="1")
    with pytest.raises(RuntimeError), storage.publish(root, "m.json") as folder:
        fill(folder, **{"m.json": "2"})
        raise RuntimeError
    assert contents(root) == {"m.json": "1", "gone": "1"}
    with storage.publish(root, "m.json") as folder:
        fill(folder, **{"m.json": "2"}, new="2")
    assert contents(root) == {"m.json": "2", "new": "2"}
    assert not storage.unfinished(root)


def test_publish_never_touches_other_peoples_files(root: str) -> None:
    storage.write_bytes(f"{root}/holiday.jpg", b"1")
    with pytest.raises(StorageError, match=r"holds other files \(holiday\.jpg\)"), storage.publish(root, "m"):
        pytest.fail("the block must not run")
    with (
        pytest.raises(StorageError, match="is a file"),
        storage.publish(f"{root}/holiday.jpg", "m"),
    ):
        pytest.fail("the block must not run")
    assert storage.listdir(root) == ["holiday.jpg"]


def test_local_publish_without_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "_exchange", lambda one, other: False)
    for text in ("1", "2"):
        with storage.publish(str(tmp_path / "x"), "m") as folder:
            fill(folder, m=text)
    assert contents(str(tmp_path / "x")) == {"m": "2"}
    assert os.listdir(tmp_path) == ["x"]


def test_local_publish_sweeps_what_dead_processes_left(tmp_path: Path) -> None:
    old, young = tmp_path / ".x.tmp-aaaa", tmp_path / ".x.tmp-bbbb"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    with storage.publish(str(tmp_path / "x"), "m") as folder:
        fill(folder, m="1")
    assert sorted(os.listdir(tmp_path)) == [young.name, "x"]


def test_sweep(root: str) -> None:
    with storage.publish(f"{root}/whole", "m") as folder:
        fill(folder, m="1", data="1")
    storage.write_bytes(f"{root}/other/.hidden", b"2")
    dead = f"{root}/.half.tmp-0123abcd"
    storage.write_bytes(f"{dead}/data", b"3")
    gone = [".half.tmp-0123abcd"]
    if not storage.is_local(root):
        storage.write_bytes(f"{root}/half/data", b"4")
        storage.write_bytes(f"{root}/half/.unfinished", b"")
        storage.write_bytes(f"{root}/whole/.unfinished", b"")  # died before its very last step
        gone += ["half", "whole"]
    assert storage.sweep(root, "m", age_s=60) == []  # somebody may be writing
    assert storage.exists(f"{dead}/data")
    assert storage.sweep(root, "m", age_s=-60) == gone
    assert not storage.exists(dead)
    assert not storage.exists(f"{root}/half")
    assert not storage.unfinished(f"{root}/whole")
    assert contents(f"{root}/whole") == {"m": "1", "data": "1"}
    assert storage.read_bytes(f"{root}/other/.hidden") == b"2"
    assert storage.sweep(root, "m", age_s=-60) == []
    assert storage.sweep(f"{root}/nowhere", "m", age_s=-60) == []


def test_sweep_leaves_who_still_writes(tmp_path: Path) -> None:
    """A staging folder made long ago, in which a file is new."""
    with storage.publish(str(tmp_path / "x"), "m") as folder:
        fill(folder, m="1")
        os.utime(folder, (0, 0))
        assert storage.sweep(str(tmp_path), "m") == []
        os.utime(folder / "m", (0, 0))
        os.utime(folder, None)
        assert storage.sweep(str(tmp_path), "m") == []
    assert contents(str(tmp_path)) == {"x/m": "1"}


def test_a_reader_never_sees_half_a_folder(tmp_path: Path) -> None:
    """While a writer replaces a folder, its marker and its data, opened in one folder, always agree."""
    uri, stop, seen = str(tmp_path / "x"), threading.Event(), []

    def publish(text: str) -> None:
        with storage.publish(uri, "m") as folder:
            fill(folder, m=text, data=text)

    def read() -> None:
        while not stop.is_set():
            fd = os.open(uri, os.O_RDONLY)  # FileNotFoundError would fail the test: it is never absent
            try:
                with (
                    open(os.open("m", os.O_RDONLY, dir_fd=fd)) as m,
                    open(os.open("data", 0, dir_fd=fd)) as d,
                ):
                    seen.append(m.read() == d.read())
            except FileNotFoundError:
                pass  # the folder that we hold open has been replaced and removed
            finally:
                os.close(fd)

    publish("0")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        for number in range(1, 60):
            publish(str(number))
        stop.set()
        reader.result()
    assert seen and all(seen)


def test_s3_publish_writes_the_marker_last(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, order, real = f"{s3_uri}/x", [], publishing.put_files

    def upload(folder: Path, files: list[str], target: str) -> None:
        assert storage.unfinished(uri)
        assert not storage.exists(f"{uri}/m")
        order.extend(files)
        real(folder, files, target)

    monkeypatch.setattr(publishing, "put_files", upload)
    with storage.publish(uri, "m") as folder:
        fill(folder, m="1", a="1", z="1")
    assert order == ["a", "z", "m"]


@pytest.mark.parametrize("old", [False, True])
def test_s3_publish_cleans_up_after_a_fault(s3_uri: str, monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    uri, real = f"{s3_uri}/x", publishing.put_files
    if old:
        with storage.publish(uri, "m") as folder:
            fill(folder, m="old")

    def upload(folder: Path, files: list[str], target: str) -> None:
        real(folder, files[:1], target)
        raise StorageError("fault")

    monkeypatch.setattr(publishing, "put_files", upload)
    with pytest.raises(StorageError, match="fault"), storage.publish(uri, "m") as folder:
        fill(folder, m="new", a="1", b="2")
    fs, path = storage.open_fs(s3_uri)
    assert sorted(fs.handler.fs.find(path)) == ([f"{path}/x/m"] if old else [])
    if old:
        assert contents(uri) == {"m": "old"}


def test_s3_two_writers_of_one_fresh_target(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second takes nothing away that the first has there already."""
    uri, real, calls = f"{s3_uri}/x", publishing.put_files, list[list[str]]()

    def upload(folder: Path, files: list[str], target: str) -> None:
        calls.append(files)
        if len(calls) == 2:
            assert contents(uri).keys() >= {"a", "b"}
        real(folder, files, target)
        if len(calls) == 1:
            with storage.publish(uri, "m") as other:
                fill(other, a="1", b="2", m="1")

    monkeypatch.setattr(publishing, "put_files", upload)
    with storage.publish(uri, "m") as folder:
        fill(folder, a="1", b="2", m="1")
    assert calls == [["a", "b"], ["a", "b"], ["m"], ["m"]]
    assert contents(uri) == {"a": "1", "b": "2", "m": "1"}


def test_s3_publish_goes_over_what_a_killed_one_left(s3_uri: str) -> None:
    uri = f"{s3_uri}/x"
    storage.write_bytes(f"{uri}/.unfinished", b"")
    storage.write_bytes(f"{uri}/stale", b"")
    with storage.publish(uri, "m") as folder:
        fill(folder, m="1")
    assert contents(uri) == {"m": "1"} and not storage.unfinished(uri)
