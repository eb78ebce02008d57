from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tlray import runtime
from tlray.config import Scale
from tlray.errors import ConfigError


def test_joins_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    for address, expected in (("", None), ("local", None), ("10.0.0.1:6379", "10.0.0.1:6379")):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert runtime.joined() == expected
    monkeypatch.delenv("RAY_ADDRESS")
    assert runtime.joined() is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert runtime.joined() == "auto"


def test_prepare_leaves_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {**runtime.ENVIRONMENT, **runtime.QUIET}:
        monkeypatch.setenv(name, "mine")  # also restores what prepare would set
    runtime.prepare()
    assert os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "mine"


def test_resources_fill_in_what_is_auto(ray_local: Any) -> None:
    assert runtime.resources(Scale()) == runtime.Resources(2, 0.0)  # half of the four CPUs
    assert runtime.resources(Scale(num_workers=2)) == runtime.Resources(1, 0.0)
    assert runtime.resources(Scale(cpus_per_worker=3)) == runtime.Resources(3, 0.0)


def test_resources_that_the_cluster_lacks_are_refused(ray_local: Any) -> None:
    with pytest.raises(ConfigError, match=r"num_workers = 9 .* at most 4 of the cluster's 4 CPUs"):
        runtime.resources(Scale(num_workers=9))
    with pytest.raises(ConfigError, match=r"with 4 CPUs each: accepted: at most 3 of the cluster's 4 CPUs"):
        runtime.resources(Scale(cpus_per_worker=4))
    with pytest.raises(ConfigError, match=r"1 GPUs each.* at most the cluster's 0 GPUs"):
        runtime.resources(Scale(gpus_per_worker=1))


def test_every_event_is_handled_before_the_context_closes(ray_local: Any) -> None:
    seen: list[dict[str, Any]] = []
    with runtime.events(seen.append) as emit:

        @ray_local.remote
        def work(n: int) -> None:
            for i in range(10):
                emit({"kind": "step", "n": n, "i": i})

        ray_local.get([work.remote(n) for n in range(2)])
        emit({"kind": "last"})
    assert len(seen) == 21 and seen[-1] == {"kind": "last"}
    for n in range(2):  # of one sender, in the order in which they were sent
        assert [e["i"] for e in seen if e.get("n") == n] == list(range(10))
    emit({"kind": "late"})  # nobody listens any more, and that is no error
    assert len(seen) == 21


def test_a_handler_that_fails_loses_one_event_only(ray_local: Any, caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    def handler(event: dict[str, Any]) -> None:
        if event["n"] == 0:
            raise ValueError("broken")
        seen.append(event["n"])

    with runtime.events(handler) as emit:
        emit({"n": 0})
        emit({"n": 1})
    assert seen == [1]
    assert "could not be shown" in caplog.text


def test_a_session_inside_ray_leaves_it_running(ray_local: Any) -> None:
    with runtime.session():
        pass
    assert ray_local.is_initialized()


@pytest.mark.cluster
def test_a_session_starts_ray_quietly_and_stops_it(tmp_path: Path) -> None:
    code = """
        import os
        from tlray import runtime
        with runtime.session():
            import ray
            assert ray.cluster_resources()["CPU"] == 2 * runtime.cores()

            @ray.remote
            def work():
                print("noise")
                return os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"]

            assert ray.get(work.remote()) == "0.3"
            assert len(runtime.nodes()) == 1
        assert not ray.is_initialized()
    """
    env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", *runtime.ENVIRONMENT)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
