"""cluster/local.py for real: two raylets, a job through the Jobs API, nothing left over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "cluster" / "local.py"


def run(verb: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), verb, "--dir", str(folder), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)


def session(leader: int) -> list[str]:
    command = ["ps", "-ww", "-axo", "pid=,stat=,args="]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    found = []
    for line in said.stdout.splitlines():
        pid, stat = line.split()[:2]
        try:
            if os.getsid(int(pid)) == leader and not stat.startswith("Z"):
                found.append(line)
        except ProcessLookupError:
            continue
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: Ray's socket paths below it would be too long.
    with tempfile.TemporaryDirectory(prefix="tl", ignore_cleanup_errors=True) as made:
        yield Path(made)
        run("stop", Path(made))


@pytest.mark.slow
@pytest.mark.cluster
def test_two_nodes_start_take_a_job_and_leave_nothing(folder: Path) -> None:
    started = run("start", folder, "--nodes", "2", "--cpus", "1", "--dashboard-port", "0")
    assert started.returncode == 0, started.stderr
    state = json.loads((folder / "state.json").read_text())
    try:
        assert state["dashboard"] in started.stdout
        assert f"--address {state['dashboard']}" in started.stdout
        processes = session(state["pid"])
        assert sum("/raylet " in line for line in processes) == 2
        assert run("status", folder).returncode == 0
        again = run("start", folder)
        assert again.returncode == 2 and "runs already" in again.stderr

        from ray.job_submission import JobSubmissionClient

        client = JobSubmissionClient(state["dashboard"])
        code = "import ray; ray.init(); print('alive', sum(n['Alive'] for n in ray.nodes()))"
        job = client.submit_job(entrypoint=f'{sys.executable} -c "{code}"')
        deadline = time.monotonic() + 90
        while not client.get_job_status(job).is_terminal() and time.monotonic() < deadline:
            time.sleep(0.5)
        assert "alive 2" in client.get_job_logs(job)
    finally:
        stopped = run("stop", folder)
    assert stopped.stdout == "stopped\n"
    assert session(state["pid"]) == []
    assert run("status", folder).returncode == 1


def test_without_a_cluster(folder: Path) -> None:
    assert run("status", folder).returncode == 1
    assert run("stop", folder).returncode == 0


def test_a_foreign_process_id_is_never_touched(folder: Path) -> None:
    # The keeper died, its number was given to somebody else: here, to this test.
    (folder / "state.json").write_text(json.dumps({"pid": os.getpid()}))
    stopped = run("stop", folder)
    assert (stopped.returncode, "no cluster runs" in stopped.stdout) == (0, True)


def test_mistakes_are_one_line(folder: Path) -> None:
    assert "must be 1 or more" in run("start", folder, "--nodes", "0").stderr
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run("start", folder, "--dashboard-port", port)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --dashboard-port {port}: taken") and done.stderr.count("\n") == 1
