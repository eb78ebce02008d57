"""From the names of models to a running server: find their bundles, build the Serve application, start it.

A program that starts a server calls `run`. A RayService has ``tlray.serving.deploy:build`` as its
``import_path``, and the arguments of `build` in YAML as its ``args``.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import re
import signal
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import httpx
from ray import serve

from tlray import config, runtime, storage
from tlray.bundle import registry
from tlray.bundle.manifest import read_manifest
from tlray.config import Serving, Strict
from tlray.errors import ConfigError, RunError
from tlray.serving.app import ingress
from tlray.serving.model import Loader, Served, ServedModel, load_predictor
from tlray.storage import targets

logger = logging.getLogger(__name__)

APPLICATION = "tlray"
INGRESS_CPUS = 0.25  # parsing and waiting; the work is in the models' replicas
SHUTDOWN_TIMEOUT_S = 30.0
READY_TIMEOUT_S = 60.0  # for HTTP to answer once Serve says that every replica runs


class BuildArgs(Strict):
    """``args`` of an application in a Serve config or a RayService."""

    models: list[str]
    models_uri: str = "models"
    serve: Serving = Serving()
    verbose: bool = False


class Server:
    """A running server; ``url`` has no slash at its end. As a context manager it stops at the end."""

    def __init__(self, url: str, models: Sequence[Served], stack: contextlib.ExitStack) -> None:
        self.url, self.models, self._stack = url, list(models), stack

    def stop(self) -> None:
        """Stop the application, and Serve and Ray if this server started them. A second call does nothing."""
        self._stack.close()

    def wait(self) -> None:
        """Return when the process gets SIGINT or SIGTERM."""
        asked = threading.Event()
        before = {s: signal.signal(s, lambda *_: asked.set()) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            asked.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def resolve(refs: Sequence[str], models_uri: str) -> list[Served]:
    """References (name, name@3, name@live, a bundle's or run's URI) -> the models to serve.

    Raises RegistryError, BundleError or StorageError where a model is not found, ConfigError for no reference
    or one model twice.
    """
    if not refs:
        raise ConfigError(
            "no model to serve: accepted: names of the registry or URIs of bundles, one or more"
        )
    served = [_resolve(ref, models_uri) for ref in refs]
    keys = [s.key for s in served]
    for ref, one in zip(refs, served, strict=True):
        if keys.count(one.key) > 1:
            raise ConfigError(f"{ref!r}: {one.key!r} is served twice; accepted: each model once")
    return served


def _resolve(ref: str, models_uri: str) -> Served:
    uri, name, version = registry.find(ref, models_uri)
    return Served(re.sub(r"[^A-Za-z0-9._-]+", "-", name), version, storage.absolute(uri))


def check_gallery(served: Sequence[Served], settings: Serving) -> None:
    """Raise StorageError where one of the models needs a gallery and its folder cannot be made.

    An existing gallery may be read-only: then people are identified and none can be enrolled.
    """
    from tlray import tasks

    has_gallery = any(tasks.load(dict(read_manifest(model.uri).task)).gallery for model in served)
    if has_gallery and not storage.is_dir(settings.gallery):
        targets.check_folder(settings.gallery)


def build(args: dict[str, Any]) -> serve.Application:
    """The application from plain values (`BuildArgs`). Host and port are not among them: Serve's config has
    those."""
    checked = config.validate(BuildArgs, args, "serve arguments")
    served = resolve(checked.models, checked.models_uri)
    check_gallery(served, checked.serve)
    return application(served, checked.serve, verbose=checked.verbose)


def application(
    models: Sequence[Served], settings: Serving, load: Loader = load_predictor, verbose: bool = False
) -> serve.Application:
    """The Serve application: one deployment per model, and the HTTP application in front of them.

    Raises ConfigError for settings that contradict each other, StorageError for an invalid gallery URI.
    """
    if settings.max_replicas < settings.min_replicas:
        raise ConfigError(
            f"serve.max_replicas = {settings.max_replicas}: accepted: at least min_replicas "
            f"({settings.min_replicas})"
        )
    # A replica may have another working directory.
    settings = settings.model_copy(update={"gallery": storage.absolute(settings.gallery)})
    logs = {"log_level": "INFO" if verbose else "WARNING", "enable_access_log": verbose}
    bound = []
    for one in models:
        deployment = serve.deployment(
            name=f"model-{one.key.replace('@', '-v')}",
            ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
            # Two batches' worth, so that the next batch gathers while one runs.
            max_ongoing_requests=max(
                2 * settings.max_batch_size, math.ceil(2 * settings.target_ongoing_requests)
            ),
            max_queued_requests=settings.max_queued_requests,
            user_config={"max_batch_size": settings.max_batch_size, "batch_wait_s": settings.batch_wait_s},
            **_replicas(settings.min_replicas, settings.max_replicas, settings.target_ongoing_requests),
            **_common(settings, logs),
        )(ServedModel)
        bound.append(deployment.bind(one, settings, load))
    names = [(m.name, m.version, m.key, f"model-{m.key.replace('@', '-v')}") for m in models]
    front = serve.deployment(
        name="http",
        ray_actor_options={"num_cpus": INGRESS_CPUS},
        # Waiting requests belong to the models' queues, where they are counted; here nothing queues.
        max_ongoing_requests=10_000,
        **_replicas(1, math.ceil(settings.max_replicas * len(models) / 4), 64),
        **_common(settings, logs),
    )(ingress(names, settings))
    return front.bind(*bound)


def _replicas(least: int, most: int, target: float) -> dict[str, Any]:
    if least >= most:
        return {"num_replicas": least}
    # Serve looks back 30 s, waits 30 s to grow and 10 minutes to shrink: late for traffic in waves.
    return {
        "autoscaling_config": {
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": target,
            "look_back_period_s": 15,  # above the 10 s between two looks
            "upscale_delay_s": 5,
            "downscale_delay_s": 120,
        }
    }


def _common(settings: Serving, logs: dict[str, Any]) -> dict[str, Any]:
    return {
        "logging_config": logs,
        # A replica that is taken away finishes what it has accepted.
        "graceful_shutdown_timeout_s": settings.timeout_s,
        "graceful_shutdown_wait_loop_s": 0.2,
        # A bundle that does not load will not load the third time either; storage retries by itself.
        "max_constructor_retry_count": 2,
    }


def run(
    models: Sequence[str],
    serving: Serving,
    models_uri: str = "models",
    *,
    blocking: bool = False,
    verbose: bool = False,
) -> Server:
    """Serve models. Returns when all of them are warmed up, with ``blocking`` when the server was stopped.

    ``models``: references as `resolve` takes them; of two versions of a model the first answers for the plain
    name. Raises what `resolve` raises, ConfigError for settings that contradict each other, RunError where
    the server does not start.
    """
    served = resolve(models, models_uri)
    server = start(served, serving, verbose=verbose)
    if blocking:
        with server:
            server.wait()
    return server


def start(
    served: Sequence[Served], settings: Serving, *, load: Loader = load_predictor, verbose: bool = False
) -> Server:
    """`run` for models that are already resolved."""
    app = application(served, settings, load, verbose)
    with contextlib.ExitStack() as stack:
        stack.enter_context(runtime.session(verbose))
        _check_room(len(served), settings)
        port, ours = _start_serve(settings, verbose)
        stack.callback(_shut_down if ours else _take_down)
        try:
            serve.run(app, name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            raise RunError(f"the server did not start: {_cause(error)}") from error
        host = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "") else settings.host
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        _wait_ready(url)
        return Server(url, served, stack.pop_all())
    raise AssertionError("unreachable")  # an ExitStack may swallow exceptions; this one does not


def _check_room(num_models: int, settings: Serving) -> None:
    """Raise RunError where the cluster is too small for the fewest replicas: Serve would wait for ever."""
    import ray

    total = ray.cluster_resources()
    replicas = num_models * settings.min_replicas
    for key, kind, need in (
        ("cpus_per_replica", "CPU", replicas * settings.cpus_per_replica + INGRESS_CPUS),
        ("gpus_per_replica", "GPU", replicas * settings.gpus_per_replica),
    ):
        if need > total.get(kind, 0):
            raise RunError(
                f"serve.{key} = {getattr(settings, key):g} with {replicas} replicas: needs {need:g} {kind}s; "
                f"accepted: at most the cluster's {total.get(kind, 0):g}"
            )


def _take_down() -> None:
    serve.delete(APPLICATION)


def _shut_down() -> None:
    """`serve.shutdown` without the error that Ray prints when the controller dies during the call."""
    import ray
    from ray.serve.context import _get_global_client

    controller = {"name": "SERVE_CONTROLLER_ACTOR", "namespace": "serve"}
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is not None:
        ray.get(client._controller.graceful_shutdown.remote(wait=False))
        end = time.monotonic() + SHUTDOWN_TIMEOUT_S
        while controller in ray.util.list_named_actors(all_namespaces=True) and time.monotonic() < end:
            time.sleep(0.05)
    serve.shutdown()


def _start_serve(settings: Serving, verbose: bool) -> tuple[int, bool]:
    """Start Serve's HTTP proxy, or use the one that runs on the cluster.

    Returns its port, and whether it was started here.
    """
    running = _running_http()
    if running is not None:
        if settings.port not in (0, running.port):
            raise RunError(
                f"serve.port = {settings.port}: Serve runs on this cluster already, on port {running.port}; "
                "accepted: that port, or 0 for it"
            )
        return int(running.port), False
    port = _free_port(settings.host, settings.port)
    # Longer than the application's own timeout, which answers first. A client can switch this one off.
    options = {"host": settings.host, "port": port, "request_timeout_s": settings.timeout_s + 10}
    serve.start(
        http_options=options,
        logging_config={"log_level": "INFO" if verbose else "ERROR", "enable_access_log": verbose},
    )
    return port, True


def _running_http() -> Any:
    """HTTP options of the Serve that runs on this cluster; None where none runs."""
    from ray.serve.context import _get_global_client  # no public way to ask, up to Ray 2.60

    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else client.http_config


def _free_port(host: str, port: int) -> int:
    """The port, or any free one for 0. Raises RunError for a port in use: Serve would retry for minutes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:  # the address may be another node's
                raise RunError(
                    f"serve.port = {port} on {host}: {error.strerror}; accepted: a free port, or 0 for any"
                ) from None
            if port == 0:
                raise RunError(
                    f"serve.host = {host}: not an address of this machine; port 0 needs one"
                ) from None
            return port
        return int(probe.getsockname()[1])


def _cause(error: RuntimeError) -> str:
    """Why a replica died, in one line: that of our own exception if there is one, else the last line."""
    messages = [str(error)]
    for state in serve.status().applications.values():
        messages += [deployment.message for deployment in state.deployments.values()]
    lines = [line.strip() for text in messages for line in text.splitlines() if line.strip()]
    ours = [line for line in lines if re.match(r"(tlray\.errors\.)?[A-Z]\w*Error: ", line)]
    return (ours or lines or [type(error).__name__])[-1].removeprefix("tlray.errors.")[:300]


def _wait_ready(url: str) -> None:
    end = time.monotonic() + READY_TIMEOUT_S
    reason = "no answer"
    with httpx.Client(timeout=5, trust_env=False) as client:  # no proxy stands before our own host
        while time.monotonic() < end:
            try:
                answer = client.get(f"{url}/readyz")
                if answer.status_code == 200:
                    return
                reason = answer.text[:200]
            except httpx.HTTPError as error:
                reason = str(error)
            time.sleep(0.1)
    raise RunError(f"{url}: not ready after {READY_TIMEOUT_S:g} s: {reason}")
