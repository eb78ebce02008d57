"""Many files at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], num_threads: int, window: int
) -> Iterator[Result]:
    """``work`` of each item, in order; threads are at most ``window`` items ahead.

    The end does not wait for the threads. Where an error ends the caller, the garbage collector closes this
    iterator, perhaps while this very thread holds a lock of `threading` that waiting would need.
    """
    pool = ThreadPoolExecutor(num_threads)
    try:
        for start in range(0, len(items), window):
            yield from pool.map(work, items[start : start + window])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
