from __future__ import annotations

import threading
import time

import pytest

from tlray import storage


def test_threads_work_in_order() -> None:
    def slower_first(n: int) -> int:
        time.sleep((n % 4 == 0) / 100)
        return n

    assert list(storage.in_threads(slower_first, range(40), 4, 8)) == list(range(40))
    with pytest.raises(ZeroDivisionError):
        list(storage.in_threads(lambda n: 1 // n, [1, 0], 2, 2))


def test_an_iterator_that_is_left_early_waits_for_no_thread() -> None:
    """The garbage collector may be what ends it, inside a lock that waiting needs: then both would hang."""
    go_on = threading.Event()
    late = threading.Timer(20, go_on.set)  # a wait ends, and is seen
    late.start()
    begun: list[int] = []

    def work(n: int) -> int:
        begun.append(n)
        if n:
            go_on.wait()
        return n

    results = storage.in_threads(work, range(8), 2, 8)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert not go_on.is_set()
    go_on.set()
    late.cancel()
    late.join()
    assert len(begun) < 8, "what nobody asks for is not begun any more"
