from __future__ import annotations

import concurrent.futures
import pickle

import pytest

from tests.s3 import SECRET
from tlray import storage
from tlray.errors import StorageError


def test_damaged_json(root: str) -> None:
    storage.write_bytes(f"{root}/x.json", b"{")
    with pytest.raises(StorageError, match=r"x\.json: no valid JSON"):
        storage.read_json(f"{root}/x.json")


def test_open_fs_reads_ranges(root: str) -> None:
    storage.write_bytes(f"{root}/x", b"0123456789")
    fs, path = storage.open_fs(f"{root}/x")
    with pickle.loads(pickle.dumps(fs)).open_input_file(path) as file:
        assert file.read_at(3, 4) == b"456"
    assert SECRET.encode() not in pickle.dumps(fs)


def test_write_new_has_one_winner(root: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda i: storage.write_new(f"{root}/lock", str(i).encode()), range(8)))
    assert won.count(True) == 1
    assert storage.read_bytes(f"{root}/lock") == str(won.index(True)).encode()


def test_update_json_loses_no_change(root: str) -> None:
    def add(number: int) -> None:
        storage.update_json(f"{root}/x.json", lambda old: [*(old or []), number])

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(8)))
    assert sorted(storage.read_json(f"{root}/x.json")) == list(range(8))
    assert storage.listdir(root) == ["x.json"]
