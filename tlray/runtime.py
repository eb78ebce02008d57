"""The Ray session of a verb: join a cluster or start Ray here, quietly, and stop only what was started.

Also here, because every verb that uses Ray needs them: what resources a worker gets, and events from
workers to whoever watches on the driver.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tlray import storage
from tlray.config import Config, Scale
from tlray.errors import ConfigError, RunError

log = logging.getLogger(__name__)

Event = dict[str, Any]

# Ray reads these when it is imported or started; its processes inherit them or get them by runtime_env.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # The controller of a run looks at its workers (and takes their reports) this often; Ray's 2 s are felt.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    # A worker group that cannot be placed is tried anew after this; Ray waits 60 s.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    # 0 GPUs means 0 GPUs to a worker; otherwise Ray shows all to those that got none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}
QUIET = {
    "PYTHONWARNINGS": "ignore",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TQDM_DISABLE": "1",
}
LOGGERS = (
    "ray", "ray.data", "ray.train", "ray.tune", "ray.serve", "ray.widgets", "ray._private", "torch", "timm",
)  # fmt: skip
EMIT_TIMEOUT_S = 30.0  # a busy machine; an actor that is gone answers at once
STREAM_TIMEOUT_S = 10.0


@contextmanager
def session(verbose: bool = False) -> Iterator[None]:
    """Ray, for as long as the block runs.

    Joins the cluster of ``RAY_ADDRESS`` or of the Ray job this runs in; otherwise starts Ray on this
    machine and stops it at the end, also after an exception. Inside a session (or with Ray up already)
    it does nothing. Raises RunError where the cluster cannot be reached or Ray does not start.
    """
    prepare(verbose)
    import ray

    if ray.is_initialized():
        yield
        return
    _connect(verbose)
    try:
        yield
    finally:
        disconnect()


def prepare(verbose: bool = False) -> None:
    """Set the environment and the loggers; to be called before Ray is imported. Values set already stay."""
    for name, value in {**ENVIRONMENT, **({} if verbose else QUIET)}.items():
        os.environ.setdefault(name, value)
    if not verbose:
        warnings.filterwarnings("ignore", module=r"(ray|torch|timm)\b")
        warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm, in a notebook
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.ERROR)


def joined() -> str | None:
    """Address of the cluster that a session joins; None: it starts Ray on this machine."""
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    address = os.environ.get("RAY_ADDRESS") or ("auto" if inside_job else None)
    return None if address in (None, "", "local") else address


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _connect(verbose: bool) -> None:
    import ray

    address = joined()
    settings: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    if address:
        # Nodes may have been started without our environment. What the job itself set must not be set
        # again: Ray refuses two runtime environments that name the same variable.
        wanted = {**ENVIRONMENT, **({} if verbose else QUIET)}
        given = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")
        settings["runtime_env"] = {
            "env_vars": {k: os.environ[k] for k in wanted if f'"{k}"' not in given},
        }
        settings["address"] = address
    else:
        # Half of the logical CPUs are for training threads, half for tasks that render pictures.
        # The dashboard is on: without its State API a stopped trial's resources are never freed, and a
        # search hangs (github.com/ray-project/ray/issues/54305).
        settings |= {"address": "local", "num_cpus": 2 * cores(), "include_dashboard": True}
    try:
        ray.init(**settings)
    except ConnectionError as error:
        raise RunError(
            f"RAY_ADDRESS = {address}: no Ray cluster answers there; accepted: the address of a running one, "
            "or RAY_ADDRESS unset to start Ray on this machine"
        ) from error
    except Exception as error:  # Ray's own words for "it took too long" are a plain Exception
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(f"Ray did not start: {first[:200]}") from error
    for name in LOGGERS:  # Ray's modules set their own levels as they are imported
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.ERROR)


def disconnect() -> None:
    """End Ray, or leave the cluster.

    A stream that was closed early, by an error for one, leaves threads of Ray Data that run on for a moment;
    one that asks a Ray that is no more ends this process, exit code 1 and not a word.
    """
    import ray

    for thread in threading.enumerate():
        if thread.name == "iter_threaded":
            thread.join(STREAM_TIMEOUT_S)
    ray.shutdown()


def placed(config: Config) -> Config:
    """The configuration with URIs that Ray's workers, who have working directories of their own, can use."""
    places = {"runs": storage.absolute(config.runs)}
    if config.data.uri:
        places["data.uri"] = storage.absolute(config.data.uri)
    if config.search.cache:
        places["search.cache"] = storage.absolute(config.search.cache)
    if config.model.head:
        places["model.head"] = storage.absolute(config.model.head)
    weights = config.model.weights
    if weights.endswith(".safetensors") and not weights.startswith("hf-hub:"):
        places["model.weights"] = storage.absolute(weights)
    return config.override(places)


@dataclass(frozen=True)
class Resources:
    """What one worker gets."""

    cpus_per_worker: int
    gpus_per_worker: float


def resources(scale: Scale) -> Resources:
    """Fill in what is "auto" from the running cluster.

    GPUs: one each where the cluster has as many as workers, else none. CPUs: half of a node's,
    shared out among the workers on it; the other half renders. Raises ConfigError where the cluster
    cannot hold the workers.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = sum(int(node.get("CPU", 0)) for node in nodes)
    gpus = sum(float(node.get("GPU", 0)) for node in nodes)
    workers = scale.num_workers
    on_one_node = -(-workers // len(nodes))
    largest = max(int(node.get("CPU", 0)) for node in nodes)
    auto_gpu, auto_cpu = 1.0 if gpus >= workers else 0.0, max(1, largest // (2 * on_one_node))
    per_gpu = auto_gpu if scale.gpus_per_worker == "auto" else float(scale.gpus_per_worker)
    per_cpu = auto_cpu if scale.cpus_per_worker == "auto" else int(scale.cpus_per_worker)
    # Tasks that render need one, and workers that hold them all would wait for pixels for ever.
    most = cpus if scale.cpus_per_worker == "auto" else cpus - 1
    if workers * per_cpu > most:
        raise ConfigError(
            f"scale.num_workers = {workers} with {per_cpu} CPUs each: "
            f"accepted: at most {most} of the cluster's {cpus} CPUs"
        )
    if workers * per_gpu > gpus:
        raise ConfigError(
            f"scale.num_workers = {workers} with {per_gpu:g} GPUs each: "
            f"accepted: at most the cluster's {gpus:g} GPUs"
        )
    return Resources(per_cpu, per_gpu)


class EventSender:
    """Sends events from any process of the cluster; picklable. Never raises: watching is not the work."""

    def __init__(self, actor: Any) -> None:
        self._actor, self._dead = actor, False

    def __call__(self, event: Event) -> None:
        if self._dead:
            return
        import ray

        try:
            # Waited for, so that what a task emitted has arrived when the task has ended.
            ray.get(self._actor.put_nowait.remote(event), timeout=EMIT_TIMEOUT_S)
        except Exception as error:
            self._dead = True
            log.debug("nobody listens any more: %s", error)


@contextmanager
def events(handler: Callable[[Event], None]) -> Iterator[EventSender]:
    """A channel from workers to ``handler``, which a thread of this process calls, one event at a time.

    Everything emitted before the block ends is handled before the context closes.
    """
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    actor: Any = queue.actor
    emit = EventSender(actor)
    thread = threading.Thread(target=_drain, args=(actor, handler), name="tlray-events", daemon=True)
    thread.start()
    try:
        yield emit
    finally:
        emit(_END)
        thread.join(timeout=2 * EMIT_TIMEOUT_S)
        ray.kill(actor)


_END: Event = {"kind": "end of events"}


def _drain(actor: Any, handler: Callable[[Event], None]) -> None:
    import ray

    while True:
        try:
            event = ray.get(actor.get.remote())
        except Exception as error:  # the queue died, with its node or with Ray
            log.debug("no more events: %s", error)
            return
        if event == _END:
            return
        try:
            handler(event)
        except Exception:
            log.warning("an event could not be shown: %r", event, exc_info=True)


def nodes() -> list[tuple[str, dict[str, float]]]:
    """Living nodes of the running cluster: address and what each offers."""
    import ray

    return [(node["NodeManagerAddress"], dict(node["Resources"])) for node in ray.nodes() if node["Alive"]]
