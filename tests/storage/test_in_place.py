"""Folders that are filled where they stay: complete, or not there at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tlray import storage
from tlray.errors import DataError
from tlray.storage.in_place import publish_in_place


@pytest.fixture(params=["local", "s3"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place of each kind where nothing is yet."""
    if request.param == "local":
        return str(tmp_path / "target")
    return f"{request.getfixturevalue('s3_uri')}/target"


def publish(uri: str, *names: str) -> None:
    with publish_in_place(uri, "done") as place:
        for name in (*names, "done"):
            storage.write_bytes(storage.join(place, name), name.encode())


def names_in(uri: str) -> list[str]:
    return [file.path for file in storage.walk(uri)] if storage.exists(uri) else []


def test_a_folder_is_complete_at_the_end(target: str) -> None:
    publish(target, "a", "b/c")
    assert names_in(target) == ["a", "b/c", "done"]
    assert not storage.unfinished(target)


def test_an_older_folder_is_replaced_whole(target: str) -> None:
    publish(target, "a", "old")
    publish(target, "a", "new")
    assert names_in(target) == ["a", "done", "new"]


def test_nobody_takes_an_unfinished_folder_for_a_complete_one(target: str) -> None:
    with publish_in_place(target, "done") as place:
        storage.write_bytes(storage.join(place, "done"), b"")
        assert storage.unfinished(target) or not storage.exists(storage.join(target, "done"))
    assert storage.exists(storage.join(target, "done"))


def test_an_exception_leaves_nothing_new(target: str) -> None:
    with pytest.raises(DataError, match="no picture"), publish_in_place(target, "done") as place:
        storage.write_bytes(storage.join(place, "a"), b"")
        raise DataError("no picture")
    assert names_in(target) == []
    assert not storage.unfinished(target)
