"""Bundles, runs and registries written by an earlier version (see make.py) open unchanged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.compatibility import tiny
from tests.compatibility.make import ROOT, STORED, settings
from tlray import report, search
from tlray.bundle import registry
from tlray.bundle.predictor import Predictor
from tlray.config import Config, parse
from tlray.data.dataset import Dataset
from tlray.search.result_grid import result_grid
from tlray.training import checkpoint, fit, loop, resume
from tlray.training.worker import LocalWorker


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the stored files, as if they had been made where the copy is."""
    tiny.register()
    copy = tmp_path_factory.mktemp("compatibility") / "files"
    shutil.copytree(STORED, copy)
    for path in copy.rglob("*.json"):
        if path.name != checkpoint.STATE:  # its checksum is in the manifest, and it holds no place
            path.write_text(path.read_text(encoding="utf-8").replace(ROOT, str(copy)), encoding="utf-8")
    return copy


def config(root: Path, name: str) -> Config:
    return parse(settings(str(root), name), "test")


@pytest.mark.parametrize("place", ["runs/trained", "runs/trained/best", "toys@1", "toys"])
def test_a_bundle_answers_as_it_did(root: Path, place: str) -> None:
    ref = str(root / place) if "/" in place else place
    uri = registry.find(ref, str(root / "models")).uri
    picture = (root / "picture.jpg").read_bytes()
    answer = json.loads((root / "answer.json").read_text())
    predictor = Predictor(uri, "cpu")
    prediction: Any = predictor.predict([picture])[0]
    assert [row["label"] for row in prediction["labels"]] == [
        row["label"] for row in answer["prediction"]["labels"]
    ]
    probabilities = [row["probability"] for row in answer["prediction"]["labels"]]
    assert [row["probability"] for row in prediction["labels"]] == pytest.approx(probabilities, abs=1e-5)
    assert list(predictor.embed([picture])[0]) == pytest.approx(answer["embedding"], abs=1e-5)


def test_the_registry_lists_its_model(root: Path) -> None:
    (model,) = registry.list_models(str(root / "models"))
    assert (model.name, model.live, model.versions) == ("toys", 1, [1])
    assert model.metrics["accuracy"] == json.loads((root / "runs/trained/evaluation.json").read_text())[
        "metrics"
    ]["accuracy"]


def test_a_finished_training_has_nothing_left_to_do(root: Path) -> None:
    again = fit.resolve_config(config(root, "trained"))
    assert resume.check_training(again, Dataset.open(again.data.uri).fingerprint) == []
    assert list(loop.epochs(again, LocalWorker(1), lambda event: None)) == []
    assert fit.result(again)["epochs"] == 1


def test_a_finished_search_has_nothing_left_to_do(root: Path) -> None:
    events: list[dict[str, Any]] = []
    result = search.tune(config(root, "tuned"), events.append)
    stored = json.loads((STORED / "runs/tuned/trials.json").read_text())["trials"]
    assert [row["params"] for row in result.trials] == [row["params"] for row in stored]
    assert [row["curve"] for row in result.trials] == [row["curve"] for row in stored]
    assert [event for event in events if event["kind"].startswith("trial")] == []
    assert Path(result.bundle, "manifest.json").is_file()
    assert len(result_grid(str(root / "runs/tuned"))) == 2


@pytest.mark.parametrize("run", ["trained", "tuned"])
def test_the_report_of_a_run_is_written_again(root: Path, run: str) -> None:
    page = Path(report.write(str(root / "runs" / run))).read_text()
    assert "</html>" in page and "stripes" in page
