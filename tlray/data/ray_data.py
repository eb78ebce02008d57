"""Ray Data without progress bars of its own: tlray counts pictures itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[Any]:
    """Data sets of Ray Data made in this block run without progress bars. Yields their DataContext, which may
    be changed further."""
    logger = logging.getLogger("ray.data")
    level = logger.level or logging.WARNING
    import ray.data

    logger.setLevel(level)  # the import has reset it
    # This one warns once in every process that the bars are off.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    with ray.data.DataContext.current(context):
        yield context
