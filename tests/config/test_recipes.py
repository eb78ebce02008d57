"""Every YAML of the tree is read by what it is meant for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tlray import config

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))


def tracked_yaml() -> list[Path]:
    found = [path for ending in ("*.yaml", "*.yml") for path in ROOT.rglob(ending)]
    inside = [path.relative_to(ROOT) for path in found]
    made = {"build", "data", "runs", "models", "tlray-quickstart"}
    return sorted(p for p in inside if p.parts[0] not in made and not p.parts[0].startswith("."))


def test_every_yaml_has_a_test_that_reads_it() -> None:
    homes = {("jobs", "recipes"), ("cluster", "ray-up.yaml"), ("k8s", "base"), ("k8s", "overlays")}
    assert [path for path in tracked_yaml() if path.parts[:2] not in homes] == []


@pytest.mark.parametrize("path", tracked_yaml(), ids=str)
def test_every_yaml_is_one(path: Path) -> None:
    documents = [part for part in yaml.safe_load_all((ROOT / path).read_text(encoding="utf-8")) if part]
    assert documents and all(isinstance(part, dict) for part in documents)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_a_configuration(path: Path) -> None:
    made = config.load(str(path))
    assert made.name == path.stem
    assert made.data.uri


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_point_of_a_recipes_space_is_a_configuration(path: Path) -> None:
    made = config.load(str(path))
    space = {} if made.search.space == "auto" else made.search.space
    for key, values in space.items():
        ends: list[Any] = values.choice if isinstance(values, config.Choice) else [values.low, values.high]
        for value in ends:
            made.override({key: value}, path.name)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipes_task_takes_its_settings(path: Path) -> None:
    from tlray import tasks

    assert tasks.load(config.load(str(path)).task).goal.name


def test_the_ray_up_file_is_one_to_ray() -> None:
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    made = yaml.safe_load((ROOT / "cluster" / "ray-up.yaml").read_text())
    jsonschema.validate(made, schema)
    assert made["head_node_type"] in made["available_node_types"]
    assert not set(made) - set(schema["properties"])
