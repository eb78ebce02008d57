"""What this machine and its cluster offer, and what is missing: `tlray doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tlray import runtime
from tlray.errors import TlrayError

PACKAGES = ("ray", "torch", "torchvision", "timm", "pyarrow", "pillow", "s3fs", "optuna", "fastapi")
OPTIONAL = {"mlflow": "metrics to MLflow: pip install tlray[mlflow]"}
MEMORY_GIB, DISK_GIB, SHM_GIB, OPEN_FILES = 4, 5, 1, 4096
ENDPOINT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Check:
    """One fact. ``ok`` None: neither good nor bad; ``required``: nothing works without it."""

    name: str
    value: str
    ok: bool | None = None
    hint: str = ""
    required: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(verbose: bool = False) -> list[Check]:
    """Check everything; a problem is a `Check`, never an exception. Joins a cluster but starts none."""
    return [*_software(), *_machine(), *_gpus(), *_cluster(verbose), *_storage()]


def to_text(checks: list[Check]) -> str:
    """One line for each fact; the missing ones are marked, and explained at the end."""
    marks = {True: "ok", False: "!!", None: "  "}
    width = max(len(check.name) for check in checks)
    lines = [f"{marks[check.ok]}  {check.name:<{width}}  {check.value}" for check in checks]
    hints = [f"{check.name}: {check.hint}" for check in checks if check.ok is False]
    return "\n".join([*lines, "", *(hints or ["nothing is missing"])])


def _software() -> list[Check]:
    here = platform.python_version()
    new = tuple(int(n) for n in re.findall(r"\d+", here)[:2]) >= (3, 11)
    facts = [Check("Python", here, new, "" if new else "3.11 or newer is needed", True)]
    for name in PACKAGES:
        version = _version(name)
        hint = "" if version else f"not installed: pip install {name}"
        facts.append(Check(name, version or "-", version is not None, hint, True))
    for name, hint in OPTIONAL.items():
        version = _version(name) or _version(f"{name}-skinny")
        facts.append(Check(name, version or f"- (optional; {hint})"))
    return facts


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> list[Check]:
    facts = [Check("system", f"{platform.system()} {platform.release()} {platform.machine()}")]
    cores = runtime.cores()
    facts.append(Check("CPU cores", str(cores), cores >= 2, "below 2, Ray has little room"))
    memory = _memory_gib()
    if memory is not None:
        enough = memory >= MEMORY_GIB
        facts.append(Check("memory", f"{memory:.1f} GiB", enough, f"{MEMORY_GIB} GiB or more are needed"))
    free = shutil.disk_usage(".").free / 2**30
    hint = f"{DISK_GIB} GiB should be free"
    facts.append(Check("free disk here", f"{free:.1f} GiB", free >= DISK_GIB, hint))
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total / 2**30
        hint = "Ray's object store falls back to disk: slow (docker run --shm-size=2g)"
        facts.append(Check("shared memory", f"{size:.1f} GiB", size >= SHM_GIB, hint))
    try:
        import resource

        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        hint = "ulimit -n 65536 helps large clusters"
        facts.append(Check("open files", str(files), files >= OPEN_FILES, hint))
    except ImportError:
        pass
    return facts


def _memory_gib() -> float | None:
    """Memory that this process may use: that of the machine, or the limit of its container."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(file).read_text()))
        except (OSError, ValueError):
            continue
    return total / 2**30


def _gpus() -> list[Check]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        said = ""
    if not said:
        return [Check("GPUs", "none: training runs on the CPU")]
    facts = [Check(f"GPU {n}", line.strip()) for n, line in enumerate(said.splitlines())]
    import torch  # takes seconds, so only on machines with a GPU

    usable = torch.cuda.is_available()
    hint = "torch cannot use the GPUs: driver and torch's CUDA version do not go together"
    return [*facts, Check("torch with CUDA", str(torch.version.cuda), usable, hint)]


def _cluster(verbose: bool) -> list[Check]:
    address = runtime.joined()
    if address is None:
        return [Check("Ray cluster", "none (RAY_ADDRESS is not set): Ray is started here when needed")]
    try:
        with runtime.session(verbose):
            nodes = runtime.nodes()
    except TlrayError as error:
        return [Check("Ray cluster", address, False, str(error))]
    facts = [Check("Ray cluster", f"{address}, {len(nodes)} nodes", True)]
    for name, resources in nodes:
        said = ", ".join(f"{resources.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
        facts.append(Check(f"node {name}", f"{said}, {resources.get('memory', 0) / 2**30:.1f} GiB"))
    return facts


def _storage() -> list[Check]:
    """Whether object storage answers, if the environment has settings for it. Shows no credentials."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_REGION")
    if not any(os.environ.get(name) for name in names):
        return [Check("object storage", "not set up (no AWS_* variables): s3:// URIs need them")]
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    own = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    endpoint = own or f"https://s3.{region}.amazonaws.com"
    shown = re.sub(r"//[^/@]*@", "//", endpoint)
    if not re.match(r"https?://", endpoint):
        return [
            Check(
                "object storage", shown, False, "accepted: an endpoint that begins with http:// or https://"
            )
        ]
    try:
        urllib.request.urlopen(endpoint, timeout=ENDPOINT_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        pass  # it answers; that it demands credentials is fine
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return [Check("object storage", shown, False, f"{shown} does not answer: {reason}")]
    return [Check("object storage", f"{shown} answers", True)]
