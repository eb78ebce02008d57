"""What all tests share: one local Ray, the real pictures, and an order in which no two clusters meet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.s3 import s3_server, s3_uri  # noqa: F401  (fixtures)

ROOT = Path(__file__).resolve().parent.parent

# Before Ray is imported: it reads these then, and its processes inherit them.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# 0 GPUs means 0 GPUs to the workers; otherwise Ray shows all to those that got none.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
# Workers import tlray and the test modules, whose functions are sent by name.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
# Nothing a test needs may be downloaded: a hub that is asked all the same fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# No window, no display.
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Pure tests first, then those that start clusters of their own, then those on the shared Ray.

    Two clusters at once on one host break the look-ups of Ray's State API. And the shared one has to be
    the last: a client of a cluster that ended, forgotten in some thread, ends this process a minute later.
    """

    def turn(item: pytest.Item) -> int:
        if item.get_closest_marker("cluster"):
            return 1
        return 2 * int("ray_local" in getattr(item, "fixturenames", ()))

    items.sort(key=turn)  # stable: within a turn the order stays


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[Any]:
    """The shared Ray: one node with 4 logical CPUs, dashboard on (without it a search hangs, ray 54305)."""
    import ray

    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=0,
            object_store_memory=512 * 2**20,
            include_dashboard=True,
            log_to_driver=False,
            logging_level="warning",
        )
    yield ray
    _end_ray()


def _end_ray() -> None:
    import sys

    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    serve = sys.modules.get("ray.serve")
    if serve is not None:
        serve.shutdown()
    from tlray import runtime

    runtime.disconnect()


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real pictures: ``$TLRAY_REALDATA``, else ../shared/data."""
    folder = Path(os.environ.get("TLRAY_REALDATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real pictures: {folder} is no folder")
    return folder
