from __future__ import annotations

import pytest


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: object) -> str:
    """An empty place of each kind."""
    if request.param == "local":
        return f"{tmp_path}/store"
    return f"{request.getfixturevalue('s3_uri')}/store"
