"""How the cluster is divided among trials."""

from __future__ import annotations

from dataclasses import dataclass

import ray

from tlray import runtime
from tlray.config import Config

THREADS = 4  # of a CPU trial where scale.cpus_per_worker is auto: many small trials use cores better


@dataclass(frozen=True)
class TrialResources:
    """CPUs and GPUs of one worker of a trial, and how many trials train at once."""

    cpus: int
    gpus: float
    concurrent: int


def trial_resources(config: Config) -> TrialResources:
    """As many trials at once as the cluster's GPUs and half of its CPUs allow; the other half renders.

    Raises ConfigError where there is no room for even one trial.
    """
    scale, workers = config.scale, config.scale.num_workers
    need = runtime.resources(scale)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_cpus = sum(int(node.get("CPU", 0)) for node in nodes)
    most_cpus = max(int(node.get("CPU", 0)) for node in nodes)  # of one node
    gpus = need.gpus_per_worker
    by_gpu = (
        max(1, sum(_num_workers(node.get("GPU", 0), gpus) for node in nodes) // workers) if gpus else None
    )
    if scale.cpus_per_worker != "auto":
        cpus = need.cpus_per_worker
    elif by_gpu:
        cpus = max(1, min(most_cpus, num_cpus // 2) // max(1, by_gpu * workers // len(nodes)))
        cpus = min(cpus, need.cpus_per_worker)
    else:
        cpus = max(1, min(THREADS, most_cpus // 2, need.cpus_per_worker))
    by_cpu = max(1, num_cpus // 2 // (cpus * workers))
    possible = min(by_gpu, by_cpu) if by_gpu else by_cpu
    wanted = config.search.max_concurrent
    return TrialResources(cpus, gpus, possible if wanted == "auto" else min(possible, wanted))


def _num_workers(gpus: float, gpus_per_worker: float) -> int:
    """How many workers a node has GPUs for; a share of a GPU cannot be spread over two."""
    if gpus_per_worker < 1:
        return int(gpus) * int(1 / gpus_per_worker)
    return int(gpus // gpus_per_worker)
