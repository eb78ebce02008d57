"""The whole road as jobs on a cluster of two nodes, everything on S3; and what survives kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.s3 import s3_environment
from tlray import storage
from tlray.data import synthetic

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

ROOT = Path(__file__).resolve().parents[2]
SECRET = s3_environment("")["AWS_SECRET_ACCESS_KEY"]
PATIENCE_S = 400
SETTINGS = ["input.size=48", "train.batch_size=8", "track.tensorboard=false", "scale.cpus_per_worker=1"]


@dataclass
class Cluster:
    """A running cluster of two raylets and the bucket that its jobs read and write."""

    client: JobSubmissionClient
    bucket: str
    leader: int  # of the session that all of the cluster's processes are in

    def submit(self, verb: str, *arguments: str) -> str:
        command = [sys.executable, f"jobs/{verb}.py", *arguments, "--json"]
        return self.client.submit_job(
            entrypoint=" ".join(f"'{word}'" for word in command),
            runtime_env={
                "working_dir": str(ROOT),
                "excludes": [".git", "tests"],
                "env_vars": {k: os.environ[k] for k in s3_environment("")},
            },
        )

    def wait(self, job: str) -> dict[str, Any]:
        """The job's result: its last line."""
        deadline = time.monotonic() + PATIENCE_S
        while not (status := self.client.get_job_status(job)).is_terminal():
            assert time.monotonic() < deadline, self.client.get_job_logs(job)
            time.sleep(0.3)
        said = self.client.get_job_logs(job)
        assert status == JobStatus.SUCCEEDED, said
        found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
        return found

    def run(self, verb: str, *arguments: str) -> dict[str, Any]:
        return self.wait(self.submit(verb, *arguments))

    def kill_workers(self) -> None:
        """kill -9 to all workers of Ray Train, on any node."""
        _kill([pid for pid in _named("RayTrainWorker") if os.getsid(pid) == self.leader])

    def checkpoints(self, run: str) -> set[str]:
        place = storage.join(run, "checkpoints")
        return {f.path.split("/")[0] for f in storage.walk(place)} if storage.is_dir(place) else set()

    def until_step(self, run: str, step: int) -> None:
        """Wait until the run has a checkpoint of this step or of a later one."""
        deadline = time.monotonic() + PATIENCE_S
        while not any(int(name.split("-")[1]) >= step for name in self.checkpoints(run)):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _named(word: str) -> list[int]:
    """Processes whose command line has the word."""
    listing = ["ps", "-ww", "-axo", "pid=,stat=,args="]
    found = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.splitlines()
    lines = (line.split(None, 2) for line in found)
    return [int(pid) for pid, stat, args in lines if word in args and stat[0] != "Z"]


def _kill(pids: list[int]) -> None:
    assert pids, "nothing to kill"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster(s3_server: str) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="tl") as folder:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        for name, value in s3_environment(s3_server).items():
            patch.setenv(name, value)
        httpx.put(f"{s3_server}/road", timeout=10, trust_env=False).raise_for_status()
        local = [sys.executable, str(ROOT / "cluster" / "local.py")]
        size = ["--nodes", "2", "--cpus", "3", "--dashboard-port", "0", "--dir", folder]
        subprocess.run([*local, "start", *size], check=True, stdout=subprocess.DEVNULL, timeout=180)
        try:
            state = json.loads(Path(folder, "state.json").read_text())
            yield Cluster(JobSubmissionClient(state["dashboard"]), "s3://road", state["pid"])
        finally:
            stop = [*local, "stop", "--dir", folder]
            subprocess.run(stop, check=True, stdout=subprocess.DEVNULL, timeout=90)


@pytest.fixture(scope="module")
def data(cluster: Cluster) -> str:
    """A data set that a job on the cluster made out of drawn pictures, all of it on S3."""
    drawn, made = f"{cluster.bucket}/pictures", f"{cluster.bucket}/data"
    synthetic.draw(drawn, 18, 64)
    found = cluster.run("ingest", drawn, made)
    assert found["splits"] == {"train": 120, "validation": 30, "test": 30}
    return made


def recipe(cluster: Cluster, data: str, name: str, *more: str) -> tuple[list[str], str]:
    """Arguments that have the recipe of the clothes run on other data, and the folder of the run."""
    runs = f"{cluster.bucket}/runs"
    chosen = [f"name={name}", f"data.uri={data}", f"runs={runs}", *SETTINGS, *more]
    return ["jobs/recipes/clothing.yaml", *chosen], f"{runs}/{name}"


def test_search_promote_evaluate_serve(cluster: Cluster, data: str) -> None:
    config, run = recipe(
        cluster, data, "road", "train.epochs=2", "search.scheduler=none",
        "search.space.model.freeze={choice: [all, 0.5]}", "search.space.optim.lr={choice: [0.003]}",
    )  # fmt: skip
    found = cluster.run("tune", *config)
    assert [trial["status"] for trial in found["trials"]] == ["finished"] * 2
    assert b"</html>" in storage.read_bytes(found["report"])

    models = f"{cluster.bucket}/models"
    assert cluster.run("promote", run, "things", "--models", models)["version"] == 1
    told = cluster.run("evaluate", "things", data, "--split", "test", "--models", models)
    assert told["rows"] == 30

    job = cluster.submit("serve", "things", "--port", "0", "--models", models)
    deadline, said = time.monotonic() + PATIENCE_S, ""
    while not said.rstrip().endswith("}") and time.monotonic() < deadline:
        time.sleep(0.5)
        said = cluster.client.get_job_logs(job)
    url = json.loads(said.strip().splitlines()[-1])["url"]
    hits = 0
    rows = [f for f in storage.walk(f"{cluster.bucket}/pictures/test") if f.path.endswith(".jpg")]
    for file in rows:
        reply = httpx.post(
            f"{url}/v1/models/things/predict",
            content=storage.read_bytes(f"{cluster.bucket}/pictures/test/{file.path}"),
            headers={"Content-Type": "image/jpeg"}, timeout=60, trust_env=False,
        )  # fmt: skip
        (prediction,) = reply.json()["predictions"]
        hits += prediction["label"] == file.path.split("/")[0]
    assert hits / len(rows) == told["metrics"]["accuracy"]
    cluster.client.stop_job(job)

    # Nobody who reads the bucket learns how to get into it.
    for file in storage.walk(cluster.bucket):
        assert SECRET.encode() not in storage.read_bytes(f"{cluster.bucket}/{file.path}"), file.path


def test_what_is_killed_goes_on_and_ends_with_the_same_weights(cluster: Cluster, data: str) -> None:
    often = ["scale.num_workers=2", "train.epochs=4", "train.checkpoint_every_steps=5"]

    def weights(run: str) -> bytes:
        return storage.read_bytes(f"{run}/best/weights.safetensors")

    config, whole = recipe(cluster, data, "whole", *often)
    assert cluster.run("train", *config)["steps"] == 4 * 15

    # The workers: Ray Train starts others, which go on from the newest checkpoint.
    name = f"killed-{os.getpid()}"  # in no other command line of this machine
    config, run = recipe(cluster, data, name, *often)
    job = cluster.submit("train", *config)
    cluster.until_step(run, 5)
    cluster.kill_workers()

    # The driver of the very same run: the same name again goes on.
    cluster.until_step(run, 25)
    _kill(_named(f"name={name}"))
    deadline = time.monotonic() + 60
    while not cluster.client.get_job_status(job).is_terminal() and time.monotonic() < deadline:
        time.sleep(0.3)
    assert cluster.client.get_job_status(job) == JobStatus.FAILED
    assert cluster.run("train", *config)["steps"] == 4 * 15
    assert weights(run) == weights(whole)
