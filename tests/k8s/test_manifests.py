"""The Kubernetes files against KubeRay's own definitions (v1.7.0, in crds/), unknown fields forbidden.

The API server drops unknown fields in silence; here they are errors. Rules that the operator checks
but the definitions do not say stand below as tests of their own.
"""

from __future__ import annotations

import ast
import lzma
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tlray import config

ROOT = Path(__file__).resolve().parent.parent.parent
BASE = sorted((ROOT / "k8s" / "base").glob("*/ray*.yaml"))
OVERLAYS = [
    ROOT / "k8s" / "base",
    *sorted(path.parent for path in ROOT.glob("k8s/overlays/*/kustomization.yaml")),
]
KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}


@cache
def schema(kind: str) -> dict[str, Any]:
    """The v1 schema of a kind with unknown fields forbidden."""
    packed = (Path(__file__).parent / "crds" / f"ray.io_{KINDS[kind]}.yaml.xz").read_bytes()
    crd = yaml.load(lzma.decompress(packed), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
    made: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    close(made)
    return made


def close(node: Any) -> None:
    if isinstance(node, list):
        for part in node:
            close(part)
    elif isinstance(node, dict):
        open_ended = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
        if isinstance(node.get("properties"), dict) and "type" in node and not open_ended:
            node["additionalProperties"] = False
        for part in node.values():
            close(part)


def pruned(value: Any) -> Any:
    """Without nulls, as the API server stores it."""
    if isinstance(value, dict):
        return {k: pruned(v) for k, v in value.items() if v is not None}
    return [pruned(v) for v in value] if isinstance(value, list) else value


def complaints(manifest: dict[str, Any]) -> list[str]:
    found = jsonschema.Draft202012Validator(schema(manifest["kind"])).iter_errors(pruned(manifest))
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def read(path: Path) -> dict[str, Any]:
    made = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(made, dict)
    return made


@cache
def built(folder: Path) -> list[dict[str, Any]]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]
    return {"RayJob": spec.get("rayClusterSpec"), "RayService": spec.get("rayClusterConfig")}.get(
        manifest["kind"], spec
    )


def pods(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spec = cluster_spec(manifest)
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        yield group["template"]["spec"]


every = pytest.mark.parametrize("path", BASE, ids=lambda path: path.stem)


def test_the_three_kinds_are_there() -> None:
    assert {read(path)["kind"] for path in BASE} == set(KINDS)


@every
def test_a_manifest_is_what_the_operator_knows(path: Path) -> None:
    assert complaints(read(path)) == []


@every
def test_the_check_sees_an_unknown_field_and_a_wrong_type(path: Path) -> None:
    manifest = read(path)
    pod = next(pods(manifest))
    pod["containers"][0]["livenessProb"] = {}
    cluster_spec(manifest)["workerGroupSpecs"][0]["maxReplicas"] = "8"
    said = "\n".join(complaints(manifest))
    assert "livenessProb" in said and "maxReplicas" in said


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda path: path.name)
def test_what_kustomize_builds_is_valid_too(folder: Path) -> None:
    for manifest in built(folder):
        assert complaints(manifest) == []
        for pod in pods(manifest):
            assert ":" in pod["containers"][0]["image"]


@every
def test_rules_of_the_operator_that_the_schema_does_not_say(path: Path) -> None:
    manifest = read(path)
    spec, cluster = manifest["spec"], cluster_spec(manifest)
    if cluster.get("autoscalerOptions", {}).get("version") == "v2":
        assert all(pod["restartPolicy"] == "Never" for pod in pods(manifest))
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    if manifest["kind"] != "RayCluster":
        assert "upgradeStrategy" not in cluster
    if manifest["kind"] == "RayJob":
        mode = spec["submissionMode"]
        assert mode in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
        assert not (mode == "SidecarMode" and "submitterPodTemplate" in spec)
        assert not (spec["shutdownAfterJobFinishes"] and "deletionRules" in spec.get("deletionStrategy", {}))
        assert not (spec["shutdownAfterJobFinishes"] and "clusterSelector" in spec)
        assert spec["ttlSecondsAfterFinished"] >= 0 and spec["activeDeadlineSeconds"] > 0


@every
def test_every_container_is_bounded_probed_and_unprivileged(path: Path) -> None:
    for pod in pods(read(path)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            asked, bound = container["resources"]["requests"], container["resources"]["limits"]
            assert asked["cpu"] and asked["memory"] == bound["memory"]  # Ray counts on the limit
            assert container["readinessProbe"] and container["livenessProbe"]
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert all("value" in entry and "SECRET" not in entry["name"] for entry in container["env"])
            assert {"tlray-aws"} == {e["secretRef"]["name"] for e in container["envFrom"] if "secretRef" in e}


def test_ray_has_the_version_of_the_lock() -> None:
    lock = (ROOT / "cluster" / "requirements.lock").read_text()
    for path in BASE:
        assert f"\nray=={cluster_spec(read(path))['rayVersion']} " in lock


def test_the_job_runs_an_entry_point_of_jobs_with_a_configuration_that_reads() -> None:
    (manifest,) = [read(path) for path in BASE if read(path)["kind"] == "RayJob"]
    python, script, recipe, *overrides = shlex.split(manifest["spec"]["entrypoint"])
    assert python == "python"
    assert (ROOT / script).is_file() and Path(script).parts[0] == "jobs"
    config.load(str(ROOT / recipe), overrides)


def test_the_service_names_an_application_that_exists() -> None:
    (manifest,) = [read(path) for path in BASE if read(path)["kind"] == "RayService"]
    from ray.serve.schema import ServeDeploySchema

    from tlray import config
    from tlray.serving.deploy import BuildArgs

    served = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(served)
    for application in served["applications"]:
        module, _, name = application["import_path"].partition(":")
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        config.validate(BuildArgs, application["args"], "rayservice.yaml")
