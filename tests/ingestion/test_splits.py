"""Splits that are cut off: every class stays in train, groups stay whole, classes keep their shares."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlray.ingestion.splits import LEAST_PEOPLE, by_person, stratified

SHARES = {"test": 0.1, "validation": 0.1}


def keys(seed: int, names: Sequence[int]) -> np.ndarray:
    hashes = [hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8] for name in names]
    return np.frombuffer(b"".join(hashes), ">u8").astype(np.uint64)


def cut(classes: list[list[str]], seed: int = 0, shares: dict[str, float] = SHARES) -> list[str]:
    """Each picture is a group of its own."""
    rows = range(len(classes))
    return stratified(classes, np.array(rows), keys(seed, rows), shares)


def shown(classes: list[list[str]], split: list[str]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {"train": Counter(), "validation": Counter(), "test": Counter()}
    for names, where in zip(classes, split, strict=True):
        counts[where].update(set(names))
    return counts


@st.composite
def pictures(draw: Any) -> tuple[list[list[str]], np.ndarray, dict[str, float], int]:
    """Random classes of each picture, groups, shares and a seed."""
    number = draw(st.integers(1, 60))
    names = [f"c{i}" for i in range(draw(st.integers(1, 12)))]
    most = draw(st.integers(1, 4))
    classes = draw(
        st.lists(st.lists(st.sampled_from(names), max_size=most), min_size=number, max_size=number)
    )
    groups = np.array([draw(st.integers(0, n)) if draw(st.booleans()) else n for n in range(number)])
    share = st.floats(0.01, 0.45)
    wanted = draw(st.sampled_from([("test", "validation"), ("validation",), ("test",)]))
    return classes, groups[groups], {split: draw(share) for split in wanted}, draw(st.integers(0, 99))


@given(pictures(), st.randoms())
@settings(max_examples=300, deadline=None)
def test_whatever_the_pictures(case: Any, random: Any) -> None:
    classes, groups, shares, seed = case
    key = keys(seed, groups.tolist())
    split = stratified(classes, groups, key, shares)
    assert len(split) == len(classes)  # each picture is in one split
    assert set(split) <= {"train", *shares}
    for group in set(groups.tolist()):
        assert len({split[i] for i in np.flatnonzero(groups == group)}) == 1
    counts = shown(classes, split)
    assert set(counts["train"]) == {name for names in classes for name in names}
    # The order of the pictures decides nothing.
    order = list(range(len(classes)))
    random.shuffle(order)
    other = stratified([classes[i] for i in order], groups[order], key[order], shares)
    assert other == [split[i] for i in order]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.floats(0.02, 0.3), st.floats(0.02, 0.3))
@settings(max_examples=150, deadline=None)
def test_one_class_a_picture(sizes: list[int], validation: float, test: float) -> None:
    shares = {"test": test, "validation": validation}
    classes = [[f"c{c}"] for c, size in enumerate(sizes) for _ in range(size)]
    split = cut(classes, shares=shares)
    counts = shown(classes, split)
    for part, share in shares.items():
        for c, size in enumerate(sizes):
            number = counts[part][f"c{c}"]
            assert number <= max(math.ceil(size * share), 1)
            if size >= 3:
                assert number >= max(1, math.floor(size * share))
        # The sum is what was asked for, but for classes of which each split gets one.
        asked = sum(max(size * share, 1) for size in sizes)
        assert split.count(part) <= asked + len(sizes) / 2
        if min(sizes) >= 3:
            assert split.count(part) >= math.floor(len(classes) * share)


@pytest.mark.parametrize("seed", range(5))
def test_a_long_tail_of_several_classes_a_picture(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chance = 1 / np.arange(1, 61) ** 1.2
    classes = [
        [f"c{c}" for c in rng.choice(60, rng.integers(0, 6), p=chance / chance.sum())] for _ in range(3000)
    ]
    split = cut(classes, seed)
    counts = shown(classes, split)
    total = Counter(name for names in classes for name in set(names))
    for part in SHARES:
        assert split.count(part) == pytest.approx(300, rel=0.1)
        for name, number in total.items():
            if number >= 3:
                assert counts[part][name] >= 1
            assert counts[part][name] == pytest.approx(0.1 * number, rel=0.25, abs=2)
        empty = [i for i, names in enumerate(classes) if not names]
        assert sum(split[i] == part for i in empty) == pytest.approx(0.1 * len(empty), abs=1)


def test_rare_classes_stay_in_train_and_common_ones_are_shared() -> None:
    classes = [["cat", f"rare{n // 2}"] if n < 20 else ["cat"] for n in range(40)]
    for seed in range(20):
        split = cut(classes, seed)
        assert Counter(split) == {"train": 32, "validation": 4, "test": 4}
        assert shown(classes, split)["train"] == {"cat": 32} | {f"rare{n}": 2 for n in range(10)}


def test_small_classes_alone_still_give_splits() -> None:
    """Each of them is too small for a share of its own."""
    classes = [[f"c{n // 2}"] for n in range(200)]
    split = cut(classes)
    assert Counter(split) == {"train": 160, "validation": 20, "test": 20}
    assert len(shown(classes, split)["train"]) == 100


@pytest.mark.parametrize("size", [1, 2])
def test_too_few_for_a_split(size: int) -> None:
    assert cut([["cat"]] * size) == ["train"] * size
    assert cut([["cat"], ["dog"], ["hat"]] * size)[:3] == ["train"] * 3


def test_a_new_picture_moves_few_others() -> None:
    rng = np.random.default_rng(0)
    one = [[f"c{c}"] for c in rng.integers(0, 8, 400)]
    several = [[f"c{c}" for c in rng.integers(0, 20, rng.integers(1, 4))] for _ in range(400)]
    for classes, most in ((one, 8), (several, 40)):
        before = cut(classes[:-1])
        after = cut(classes)
        assert sum(a != b for a, b in zip(before, after, strict=False)) <= most


def test_another_seed_cuts_off_others() -> None:
    classes = [["cat"], ["dog"]] * 50
    assert cut(classes, 0) == cut(classes, 0) != cut(classes, 1)


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=30), st.floats(0.02, 0.4), st.integers(0, 99),
    st.sampled_from([("test", "validation"), ("validation",), ("test",)]),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_people_are_split_whole(sizes: list[int], share: float, seed: int, wanted: tuple[str, ...]) -> None:
    person = np.repeat(np.arange(len(sizes)), sizes)
    split = by_person(person, keys(seed, range(len(person))), dict.fromkeys(wanted, share))
    where = {p: {split[i] for i in np.flatnonzero(person == p)} for p in range(len(sizes))}
    assert all(len(there) == 1 for there in where.values())
    several = [p for p, size in enumerate(sizes) if size > 1]
    for number, part in enumerate(wanted[::-1], 1):
        people = [p for p in where if where[p] == {part}]
        assert set(people) <= set(several)
        if len(several) >= LEAST_PEOPLE * (number + 1):
            assert len(people) >= LEAST_PEOPLE
        else:
            assert people == []
    if len(several) >= 2:
        assert sum(where[p] == {"train"} for p in several) >= 2


def test_people_keep_the_shares() -> None:
    person = np.repeat(np.arange(100), 10)
    split = by_person(person, keys(0, range(1000)), {"validation": 0.2, "test": 0.1})
    assert Counter(split) == {"train": 700, "validation": 200, "test": 100}
