"""How trials of a group wait for each other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest

from tlray.errors import RunError
from tlray.search.members import Members


class Toy:
    """A group whose trials have three epochs; ``late`` begins an epoch behind the others, ``bad`` fails."""

    def __init__(self, late: str = "", bad: str = "") -> None:
        self.late, self.bad = late, bad
        self.passes: list[set[str]] = []  # who was trained, pass by pass

    def begin(self, trees: Sequence[str]) -> None:
        if "broken" in trees:
            raise RunError("no data")
        self.done = {name: int(name != self.late) for name in trees}

    def epoch(self) -> dict[str, Any]:
        furthest = min(self.done.values())
        now = {name for name, done in self.done.items() if done == furthest and done < 4}
        self.passes.append(now)
        for name in now:
            self.done[name] += 1
        trained = [name for name in now if self.done[name] > 1 and name != self.bad]
        records = {name: {"epoch": self.done[name] - 1, "best": 0.5} for name in trained}
        failed = {self.bad: "does not fit"} if self.bad else {}
        over = [name for name, done in self.done.items() if done >= 4]
        return {"records": records, "failed": failed, "over": over}

    def end(self, names: Sequence[str], keep: Collection[str]) -> dict[str, str]:
        return {name: "disk full" for name in names if name in keep}

    def leave(self, name: str) -> None:
        self.done.pop(name)


def group(*names: str, **how: str) -> tuple[Members, Toy]:
    toy = Toy(**how)
    members = Members(lambda emit: toy, lambda event: None, "max")
    members.begin([{"config": {"id": name, "tree": name}} for name in names])
    return members, toy


def epochs(members: Members, name: str, number: int = 9) -> list[int]:
    told = [record["epoch"] for record in islice(members.records(name), number)]
    members.leave(name)
    return told


def test_an_epoch_is_trained_once_all_have_asked() -> None:
    members, toy = group("a", "b")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(epochs, members, "a")
        assert not toy.passes
        assert epochs(members, "b") == first.result(20) == [1, 2, 3]
    assert toy.passes == [{"a", "b"}] * 3
    assert members.beside(2) == {"a": 0.5, "b": 0.5}


def test_the_others_go_on_without_one_that_is_stopped() -> None:
    members, toy = group("a", "b", "c")
    with ThreadPoolExecutor(3) as pool:
        told = [pool.submit(epochs, members, *one) for one in (("a", 1), ("b", 9), ("c", 2))]
        assert [one.result(20) for one in told] == [[1], [1, 2, 3], [1, 2]]
    assert toy.passes == [{"a", "b", "c"}, {"b", "c"}, {"b"}]


def test_one_that_is_behind_catches_up() -> None:
    members, toy = group("a", "b", late="b")
    with ThreadPoolExecutor(2) as pool:
        told = [pool.submit(epochs, members, name) for name in "ab"]
        assert [one.result(20) for one in told] == [[1, 2, 3]] * 2
    assert toy.passes == [{"b"}] + [{"a", "b"}] * 3


def test_what_fails_has_its_reason() -> None:
    members, _ = group("a", "b", bad="a")
    with ThreadPoolExecutor(2) as pool:
        told = [pool.submit(epochs, members, name) for name in "ab"]
        with pytest.raises(RunError, match="does not fit"):
            told[0].result(20)
        members.leave("a")
        assert told[1].result(20) == [1, 2, 3]
    assert members.end("b", bundle=True) == "disk full" and members.end("b", bundle=False) is None
    broken, _ = group("broken")
    with pytest.raises(RunError, match="no data"):
        epochs(broken, "broken")


def test_a_trial_that_has_left_is_still_stopped() -> None:
    members, _ = group("a", "b")
    members._members["a"] = SimpleNamespace(stop=lambda: "stopped")  # type: ignore[assignment]
    members.leave("a")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(members.call, "a", "stop").result(20) == "stopped"
