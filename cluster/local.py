"""A real Ray cluster of several nodes on this machine, to try what a cluster does without having one.

    python cluster/local.py start --nodes 2 --cpus 2      # head and one worker node, each its own raylet
    python cluster/local.py status
    python cluster/local.py stop

One keeper process, leader of its own session, owns every process of the cluster: `stop` ends that
session and nothing else, so other Ray clusters of this host go on (`ray stop` would end them all).
Where the keeper itself is killed, Ray's reaper ends the rest. Needs nothing but Ray.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 30


def main() -> None:
    parser = argparse.ArgumentParser(prog="cluster/local.py", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in (
        ("start", "start the cluster and say how to reach it"),
        ("status", "say whether it runs; exit code 1 when not"),
        ("stop", "stop it"),
        ("keep", "what `start` runs in the background"),
    ):
        sub = verbs.add_parser(verb, help=text)
        sub.add_argument("--dir", type=Path, default=default_folder(), help="folder of its state and logs")
        if verb in ("start", "keep"):
            sub.add_argument("--nodes", type=count, default=2, help="nodes, the head counted in")
            sub.add_argument("--cpus", type=count, default=2, help="logical CPUs of each node")
            sub.add_argument("--gpus", type=int, default=0, help="logical GPUs of the head node")
            sub.add_argument("--object-store-mb", type=count, default=512, help="of each node")
            sub.add_argument("--dashboard-port", type=int, default=8265, help="0 takes any free one")
    args = parser.parse_args()
    {"start": start, "status": status, "stop": stop, "keep": keep}[args.verb](args)


def default_folder() -> Path:
    # Short: the paths of Ray's sockets below it may have 107 characters at most.
    return Path(tempfile.gettempdir()) / f"tlray-cluster-{os.getuid()}"


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more")
    return value


def start(args: argparse.Namespace) -> None:
    """Start the keeper, wait until every node is there, print addresses."""
    if keeper_pid(args.dir) is not None:
        fail(f"a cluster runs already ({args.dir}); stop it first, or name another folder with --dir")
    if args.dashboard_port and not port_is_free(args.dashboard_port):
        fail(f"--dashboard-port {args.dashboard_port}: taken; accepted: a free port, or 0 for any")
    args.dir.mkdir(parents=True, exist_ok=True)
    state_file(args.dir).unlink(missing_ok=True)
    command = [sys.executable, os.path.abspath(__file__), "keep", "--dir", str(args.dir)]
    for name in ("nodes", "cpus", "gpus", "object_store_mb", "dashboard_port"):
        command += ["--" + name.replace("_", "-"), str(getattr(args, name))]
    log_path = args.dir / "keeper.log"
    with log_path.open("wb") as log:
        keeper = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while not state_file(args.dir).exists():
        if keeper.poll() is not None or time.monotonic() > deadline:
            end_session(keeper.pid)
            last = log_path.read_text(errors="replace").strip().splitlines()[-1:]
            fail(f"the cluster did not start: {' '.join(last) or 'no output'} (all of it: {log_path})")
        time.sleep(0.2)
    show(json.loads(state_file(args.dir).read_text()))


def status(args: argparse.Namespace) -> None:
    """Print addresses of a running cluster."""
    if keeper_pid(args.dir) is None:
        print(f"no cluster runs ({args.dir})")
        raise SystemExit(1)
    show(json.loads(state_file(args.dir).read_text()))


def stop(args: argparse.Namespace) -> None:
    """Ask the keeper to shut the cluster down; end its session when it does not."""
    pid = keeper_pid(args.dir)
    if pid is None:
        print(f"no cluster runs ({args.dir})")
        return
    os.kill(pid, signal.SIGTERM)
    wait_until_gone(pid)
    end_session(pid)
    state_file(args.dir).unlink(missing_ok=True)
    print("stopped")


def keep(args: argparse.Namespace) -> None:
    """Own the cluster until SIGTERM."""
    # Set before Ray is imported: it reads them then, and its processes inherit them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A folder of its own also keeps the address out of the place where a bare `ray.init()` of any
    # other program of this host would find it and join.
    os.environ["RAY_TMPDIR"] = str(args.dir)
    (args.dir / "ray").mkdir(exist_ok=True)
    from ray.cluster_utils import Cluster

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    each: dict[str, Any] = {"num_cpus": args.cpus, "object_store_memory": args.object_store_mb * 2**20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            **each,
            "num_gpus": args.gpus,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": args.dashboard_port or None,
            "dashboard_agent_listen_port": free_port(),
        },
    )
    try:
        for _ in range(args.nodes - 1):
            cluster.add_node(**each)
        state = {
            "pid": os.getpid(),
            "address": cluster.address,
            "dashboard": f"http://{cluster.webui_url}",
            "nodes": args.nodes,
            "cpus": args.cpus,
            "logs": str(args.dir / "ray" / "session_latest" / "logs"),
        }
        aside = state_file(args.dir).with_suffix(".tmp")
        aside.write_text(json.dumps(state))
        aside.replace(state_file(args.dir))
        while True:
            signal.pause()
    finally:
        cluster.shutdown()


def show(state: dict[str, Any]) -> None:
    print(f"{state['nodes']} nodes with {state['cpus']} CPUs each; stop: python cluster/local.py stop")
    print(f"address    {state['address']}    (ray.init, or RAY_ADDRESS)")
    print(f"dashboard  {state['dashboard']}")
    print(f"logs       {state['logs']}")
    ray = shlex.quote(str(Path(sys.executable).with_name("ray")))
    print(
        f"submit     {ray} job submit --address {state['dashboard']} --working-dir . "
        "-- python jobs/tune.py jobs/recipes/clothing.yaml"
    )


def state_file(folder: Path) -> Path:
    return folder / "state.json"


def keeper_pid(folder: Path) -> int | None:
    """Process id of the living keeper of this folder; None where it is gone or the number was reused."""
    try:
        pid = int(json.loads(state_file(folder).read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return None
    # -ww: else a long command line may be cut to the width of a screen, and the folder stands at its end.
    said = subprocess.run(["ps", "-ww", "-p", str(pid), "-o", "args="], capture_output=True, text=True).stdout
    return pid if f"keep --dir {folder} " in said else None


def session_pids(leader: int) -> list[int]:
    """Living processes of the keeper's session."""
    said = subprocess.run(["ps", "-axo", "pid=,stat="], capture_output=True, text=True, check=True).stdout
    found = []
    for line in said.splitlines():
        pid, stat = line.split()[:2]
        with contextlib.suppress(OSError):
            if not stat.startswith("Z") and os.getsid(int(pid)) == leader:
                found.append(int(pid))
    return found


def wait_until_gone(leader: int) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while session_pids(leader) and time.monotonic() < deadline:
        time.sleep(0.1)


def end_session(leader: int) -> None:
    for pid in session_pids(leader):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until_gone(leader)  # a killed process takes a moment to go


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
