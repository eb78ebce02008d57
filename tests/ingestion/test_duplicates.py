"""Groups of equal and of similar pictures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlray.ingestion import duplicates


def test_banding_finds_what_comparing_all_finds() -> None:
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**64, 40, dtype=np.uint64)
    hashes = np.repeat(centres, 10)
    for n in range(len(hashes)):  # up to 9 bits away from the centre, also beyond the limit
        for bit in rng.choice(64, n % 10, replace=False):
            hashes[n] ^= np.uint64(1) << np.uint64(bit)
    thumbs = [bytes(range(192))] * len(hashes)
    parent = list(range(len(hashes)))

    def root(n: int) -> int:
        return n if parent[n] == n else root(parent[n])

    for a in range(len(hashes)):
        for b in range(a):
            if int(hashes[a] ^ hashes[b]).bit_count() <= duplicates.HASH_DISTANCE:
                x, y = root(a), root(b)
                parent[max(x, y)] = min(x, y)
    assert duplicates.near_groups(hashes, thumbs).tolist() == [root(n) for n in range(len(hashes))]


def test_all_alike_is_no_quadratic_work() -> None:
    hashes = np.full(200_000, 7, dtype=np.uint64)
    pixels = [bytes(range(192))] * len(hashes)
    assert set(duplicates.near_groups(hashes, pixels).tolist()) == {0}


@settings(deadline=None)
@given(st.integers(2, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=40))
def test_groups_are_joined(number: int, pairs: list[tuple[int, int]]) -> None:
    a, b = (np.arange(number) for _ in range(2))
    for n, (x, y) in enumerate((x % number, y % number) for x, y in pairs):
        groups = (a, b)[n % 2]
        groups[groups == max(groups[x], groups[y])] = min(groups[x], groups[y])
    joined = duplicates.merged(a, b)
    expected = b.copy()
    for row in range(number):
        expected[expected == max(expected[a[row]], expected[row])] = min(expected[a[row]], expected[row])
    assert joined.tolist() == expected.tolist()


def test_dropped_rows_leave_groups_named_by_their_smallest_row() -> None:
    assert duplicates.renumbered(np.array([1, 7, 1, 7, 9])).tolist() == [0, 1, 0, 1, 4]


def test_many_pairs_are_compared_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.uint64(7) ^ (np.uint64(1) << np.arange(60, dtype=np.uint64))  # any two differ by 2 bits
    thumbs = [bytes(range(192)) if n % 3 else bytes(range(192))[::-1] for n in range(60)]
    at_once = duplicates.near_groups(hashes, thumbs).tolist()
    monkeypatch.setattr(duplicates, "_PAIRS_AT_ONCE", 10)
    assert duplicates.near_groups(hashes, thumbs).tolist() == at_once
    assert at_once == [1 if n % 3 else 0 for n in range(60)]
