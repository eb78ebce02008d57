"""The order of rows: a pure function of (seed, epoch, index), the same for any number of workers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlray.data.sampler import Order, Together, num_lanes, share
from tlray.errors import ConfigError

groups = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(groups, st.integers(1, 96), st.integers(0, 3), st.integers(0, 2))
def test_every_row_once_an_epoch(rows, batch_size, seed, epoch):
    order = Order(rows, batch_size, seed)
    assert sorted(order.epoch(epoch)) == list(range(sum(rows)))
    assert order.steps_per_epoch == -(-sum(rows) // batch_size)


@settings(max_examples=60, deadline=None)
@given(groups, st.sampled_from([4, 8, 12, 64, 128]), st.integers(0, 5))
def test_global_batches_do_not_depend_on_the_number_of_workers(rows, batch_size, seed):
    alone = Order(rows, batch_size, seed)
    for world in (1, 2, 4):
        many = Order(rows, batch_size, seed, world)
        assert many.steps_per_epoch == alone.steps_per_epoch
        for step in range(2 * alone.steps_per_epoch):
            parts = [many.local_batch(step, rank) for rank in range(world)]
            assert sorted(np.concatenate(parts)) == sorted(alone.global_batch(step))
            if len(alone.global_batch(step)) == batch_size:
                assert {len(part) for part in parts} == {batch_size // world}


@settings(max_examples=60, deadline=None)
@given(groups, st.integers(1, 96))
def test_batches_of_an_epoch_are_near_equal(rows, batch_size):
    order = Order(rows, batch_size, 0)
    sizes = [len(order.global_batch(step)) for step in range(order.steps_per_epoch)]
    assert sum(sizes) == sum(rows)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=40, deadline=None)
@given(groups, st.sampled_from([4, 8, 32]), st.integers(1, 6), st.integers(2, 5), st.integers(0, 3))
def test_rows_of_one_label_come_together(rows, batch_size, people, number, epoch):
    labels = np.random.default_rng(0).integers(0, people, sum(rows))
    order = Order(rows, batch_size, 0, together=Together(labels, number))
    line = order.epoch(epoch)
    assert sorted(line) == list(range(sum(rows)))
    assert (line == Order(rows, batch_size, 0, 4, together=Together(labels, number)).epoch(epoch)).all()
    groups_of = {
        person: -(-count // number)
        for person, count in zip(*np.unique(labels, return_counts=True), strict=True)
    }
    changes = 1 + int((np.diff(labels[line]) != 0).sum())  # groups of one person may be neighbours
    assert changes <= sum(groups_of.values())


def test_people_of_a_large_split_are_grouped_within_the_window():
    """Otherwise each batch would read as many row groups as it has rows."""
    rows, window = [128] * 200, 2048
    labels = np.arange(sum(rows)) // 20  # stored person by person
    plain, grouped = (Order(rows, 32, 0, window=window, together=t) for t in (None, Together(labels, 4)))
    for start in range(0, sum(rows), window):
        chunks = [order.epoch(1)[start : start + window] for order in (plain, grouped)]
        assert len(set(chunks[1] // 128)) <= len(set(chunks[0] // 128)) < 100
    changes = [int((np.diff(labels[order.epoch(1)]) != 0).sum()) for order in (plain, grouped)]
    assert changes[1] < 0.35 * changes[0]


def test_epochs_and_seeds_differ_and_repeat():
    order = Order([50] * 8, 32, seed=1)
    assert (order.epoch(0) != order.epoch(1)).any()
    assert (order.epoch(0) == Order([50] * 8, 32, seed=1).epoch(0)).all()
    assert (order.epoch(0) != Order([50] * 8, 32, seed=2).epoch(0)).any()


def test_a_batch_mixes_rows_from_all_over_a_sorted_data_set():
    order = Order([128] * 40, 64, seed=0)
    labels = order.global_batch(3) // 512  # ten classes, stored one after another
    assert len(set(labels)) >= 8


def test_a_lane_reads_few_row_groups_at_a_time():
    rows = [128] * 400
    order = Order(rows, 64, seed=0, window=8192)
    per_lane = order.epoch(0).reshape(-1, 64)
    touched = {int(r) // 128 for r in per_lane[:100, 0]}
    assert len(touched) <= 3


@pytest.mark.parametrize(("batch", "lanes"), [(64, 64), (128, 64), (96, 48), (100, 50), (7, 7), (67, 1)])
def test_lanes_divide_the_batch(batch, lanes):
    assert num_lanes(batch) == lanes


def test_workers_that_cannot_share_a_batch_are_refused():
    with pytest.raises(ConfigError, match=r"num_workers = 3 .* accepted: 1, 2, 4"):
        Order([100], 64, 0, world=3)


@given(st.integers(0, 50), st.integers(1, 9))
def test_evaluation_shares_cover_every_row_once(rows, world):
    parts = [share(rows, rank, world) for rank in range(world)]
    assert list(np.concatenate(parts)) == list(range(rows))
