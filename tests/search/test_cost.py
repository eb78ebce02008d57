"""The plan's arithmetic: naive, ceiling, and the choice between them."""

from __future__ import annotations

from typing import Any

import pytest

from tlray.models.backbone import Boundary
from tlray.search.cost import Depth, choose, columns

MB = 2**20


def depth(number: int, prefix_s: float, suffix_s: float, num_bytes: int = 1000, **more: Any) -> Depth:
    made = {"trials": 3, "epochs": 5, "read_s": 1e-6, **more}
    boundary = Boundary(number) if number else None
    return Depth(
        number, "x", made["trials"], made["epochs"], prefix_s, suffix_s, made["read_s"], num_bytes, boundary
    )


TWO = [depth(4, 0.009, 0.004, 16_000), depth(5, 0.010, 0.0001, 2_000)]


def test_naive_and_ceiling_are_what_they_say() -> None:
    plan = choose(TWO, rows=1000, views=1, memory_bytes=0, cache_bytes=1000 * MB)
    assert plan.naive_s == pytest.approx(3 * 5 * 1000 * (0.009 + 0.004 + 0.010 + 0.0001))
    assert plan.ceiling_s == pytest.approx(1000 * 0.010 + 3 * 5 * 1000 * (0.004 + 0.0001))
    assert plan.ceiling_s <= plan.planned_s <= plan.naive_s
    assert plan.keep == {Boundary(4): "store", Boundary(5): "store"}
    stored = plan.to_dict()
    assert [row["kept_bytes"] for row in stored["depths"]] == [16_000_000, 2_000_000]
    headings, rows = columns(stored)
    assert all(len(row) == len(headings) for row in rows)


def test_a_new_view_every_epoch_is_computed_but_once_for_all_trials() -> None:
    plan = choose(TWO, rows=1000, views=5, memory_bytes=1000 * MB, cache_bytes=1000 * MB)
    assert plan.decisions == ["recompute", "recompute"]
    suffixes = 3 * 5 * 1000 * 0.0041
    assert plan.planned_s == pytest.approx(5 * 1000 * 0.010 + suffixes)


def test_what_lies_in_the_cache_costs_nothing_to_make() -> None:
    plan = choose(TWO, 1000, 5, 0, 1000 * MB, ready=lambda boundary: True)
    assert plan.keep.keys() == {Boundary(4), Boundary(5)} and plan.planned_s < 5 * 1000 * 0.010 + 62


def test_no_room_and_slow_reading_are_minded() -> None:
    # 16 MB for the map, 2 MB for the pooled features: where only these fit, they help nothing.
    plan = choose(TWO, 1000, 1, memory_bytes=2 * MB, cache_bytes=0)
    assert plan.keep == {} and plan.planned_s == pytest.approx(5 * 1000 * 0.010 + 61.5)
    plan = choose(TWO, 1000, 1, memory_bytes=17 * MB, cache_bytes=2 * MB)
    assert plan.keep == {Boundary(4): "memory", Boundary(5): "store"}
    slow = [depth(1, 0.001, 0.01, 1000, read_s=0.002), depth(5, 0.010, 0.0001, 2_000)]
    assert choose(slow, 1000, 1, 1000 * MB, 1000 * MB).keep == {Boundary(5): "store"}


def test_trials_at_the_pixels_are_never_kept() -> None:
    plan = choose([depth(0, 0.001, 0.03), *TWO], 1000, 1, 1000 * MB, 1000 * MB)
    assert plan.decisions == ["recompute", "store", "store"]
    assert plan.planned_s >= plan.ceiling_s
