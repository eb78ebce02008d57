"""Face recognition: metrics by hand, heads that learn, no people of training in a bundle, real faces."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.contract.test_tasks import PRE, Toy
from tlray import config, tasks
from tlray.bundle import bundle
from tlray.bundle.predictor import Predictor
from tlray.tasks.face_recognition.model import MARGINS, AdaFace
from tlray.training.candidate import Candidate

HEADS = ("arcface", "cosface", "adaface")


def points(*degrees: float) -> list[dict[str, Any]]:
    """Predictions on the unit circle: their similarity is the cosine of the angle between them."""
    return [{"embedding": [math.cos(math.radians(d)), math.sin(math.radians(d))]} for d in degrees]


def scored(degrees: list[float], people: list[int], **settings: Any) -> Any:
    metrics = tasks.load({"name": "face_recognition", **settings}).metrics([])
    metrics.update(points(*degrees), [{"label": person} for person in people])
    return metrics


# Two people with three pictures each. Pairs of one person are 10, 10, 20 and 10, 30, 40 degrees apart, pairs
# of two people 80, 90, 120 / 70, 80, 110 / 60, 70, 100. They do not overlap: cos 40 = 0.766, cos 60 = 0.5.
APART = ([0, 10, 20, 80, 90, 120], [0, 0, 0, 1, 1, 1])


def test_people_who_are_told_apart_perfectly():
    metrics = scored(*APART).compute()
    assert metrics["verification_accuracy"] == metrics["roc_auc"] == metrics["rank1"] == 1
    assert metrics["tar_at_far_0.01"] == metrics["tar_at_far_0.001"] == metrics["accuracy_at_threshold"] == 1
    assert metrics["equal_error_rate"] == 0
    assert 0.5 < metrics["threshold"] < 0.766


def test_figures_of_people_who_overlap():
    # Degrees of one person: 0, 60; of the other: 50, 90. Genuine pairs: cos 60 = 0.5, cos 40 = 0.766.
    # Impostors: cos 50 = 0.643, cos 90 = 0, cos 10 = 0.985, cos 30 = 0.866.
    degrees, people = [0, 60, 50, 90], [0, 0, 1, 1]
    metrics = scored(degrees, people).compute()
    # Of 2 x 4 combinations, the genuine pair is more similar in three: 0.5 > 0, 0.766 > 0.643, 0.766 > 0.
    assert metrics["roc_auc"] == pytest.approx(3 / 8, abs=1e-3)
    assert metrics["tar_at_far_0.01"] == 0
    # The best threshold is above 0: it accepts both genuine pairs and 3 of 4 impostors: (1 + 1 / 4) / 2.
    assert metrics["accuracy_at_threshold"] == pytest.approx(0.625) and 0 < metrics["threshold"] <= 0.5
    # Enrolled with 0 and 50 degrees; 60 is nearer to the wrong one, 90 to the right one.
    assert metrics["rank1"] == 0.5
    fixed = scored(degrees, people, threshold=0.7).compute()  # one of two genuine, two of four impostors
    assert fixed["threshold"] == 0.7 and fixed["accuracy_at_threshold"] == pytest.approx(0.5)


def test_auc_is_that_of_the_library():
    from torchmetrics.functional.classification import binary_auroc

    rng = np.random.default_rng(0)
    people = rng.integers(0, 6, 40)
    x_ND = rng.normal(size=(6, 8))[people] + 0.9 * rng.normal(size=(40, 8))
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    metrics = tasks.load({"name": "face_recognition"}).metrics([])
    metrics.update([{"embedding": x.tolist()} for x in x_ND], [{"label": int(p)} for p in people])
    i, j = np.triu_indices(40, 1)
    theirs = binary_auroc(
        torch.from_numpy((x_ND @ x_ND.T)[i, j] + 1) / 2, torch.from_numpy(people[i] == people[j]).long()
    )
    assert metrics.compute()["roc_auc"] == pytest.approx(float(theirs), abs=2e-3)
    assert 0.6 < metrics.compute()["verification_accuracy"] < 1


def test_without_pairs_there_are_no_figures_and_no_threshold():
    task = tasks.load({"name": "face_recognition"})
    for degrees, people in (([], []), ([0, 10], [0, 0]), ([0, 10], [0, 1])):
        metrics = scored(degrees, people)
        assert math.isnan(metrics.compute()["verification_accuracy"])
        assert task.with_thresholds(metrics) is task


def test_the_threshold_of_validation_is_kept_one_set_by_hand_too():
    metrics = scored(*APART)
    chosen = tasks.load({"name": "face_recognition"}).with_thresholds(metrics)
    assert chosen.threshold == pytest.approx(metrics.compute()["threshold"], abs=1e-4)
    assert chosen.metrics([]).threshold == chosen.threshold
    by_hand = tasks.load({"name": "face_recognition", "threshold": 0.3})
    assert by_hand.with_thresholds(scored(*APART, threshold=0.3)).threshold == 0.3


@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns_to_tell_toys_apart(head: str):
    toy = Toy("face_recognition", head=head, embedding_size=32)
    targets = toy.targets()
    optimizer = torch.optim.AdamW(toy.module.parameters(), lr=3e-3)
    first, score = None, 0.0
    for _ in range(40):
        loss = toy.module(toy.x, targets)
        first = float(loss.detach()) if first is None else first
        optimizer.zero_grad()
        loss.backward()
        grads = [p.grad for p in toy.module.identities.parameters()]
        assert grads and all(g is not None and g.isfinite().all() and g.abs().sum() > 0 for g in grads)
        optimizer.step()
        score = toy.metrics(toy.predict()).compute()["verification_accuracy"]
        if score > 0.95:
            break
    assert score > 0.95 and float(loss.detach()) < first


@pytest.mark.parametrize("head", HEADS)
def test_a_margin_makes_it_harder(head: str):
    losses = []
    for margin in (0.0, 0.4):
        toy = Toy("face_recognition", head=head, margin=margin)
        losses.append(float(toy.module(toy.x, toy.targets()).detach()))
    assert losses[0] < losses[1]


def test_adaface_is_its_equation():
    torch.manual_seed(0)
    head = AdaFace(3, 4, margin=0.4, scale=10.0)
    x_BD, person_B = torch.randn(5, 4) * 10, torch.tensor([0, 1, 2, 0, 1])
    norms = x_BD.norm(dim=1)
    mean, std = 0.99 * 20 + 0.01 * norms.mean(), 0.99 * 100 + 0.01 * norms.std()
    logits = torch.nn.functional.normalize(x_BD) @ torch.nn.functional.normalize(head.W, dim=0)
    logits = logits.detach().clone()
    for i, person in enumerate(person_B.tolist()):
        z = max(-1.0, min(1.0, float((norms[i] - mean) / std * 0.333)))
        logits[i, person] = math.cos(math.acos(float(logits[i, person])) - 0.4 * z) - (0.4 * z + 0.4)
    expected = torch.nn.functional.cross_entropy(10 * logits, person_B)
    head.measure(x_BD)
    assert float(head(x_BD, person_B).mean().detach()) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_the_margin_grows_over_the_first_steps(head: str):
    toy = Toy("face_recognition", head=head, margin_warmup=0.2)
    toy.module.eval()  # the same embeddings each time
    losses = []
    for share, margin in ((0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.9, 1.0)):
        toy.module.trained(share)
        assert toy.module.identities.margin == pytest.approx(margin * MARGINS[head])
        losses.append(float(toy.module(toy.x, toy.targets()).detach()))
    assert losses[0] < losses[1] < losses[2] == pytest.approx(losses[3], rel=1e-2)  # AdaFace's means change
    at_once = Toy("face_recognition", head=head, margin_warmup=0.0).module
    at_once.trained(0.0)
    assert at_once.identities.margin == pytest.approx(MARGINS[head])


def test_a_step_of_training_knows_its_margin():
    toy = Toy("face_recognition", margin_warmup=0.5)
    model = bundle.Model(toy.module, toy.task, toy.module.backbone.spec(), 0, PRE, [], "f" * 64)
    rates = {"lr": 1e-3, "backbone_lr_ratio": 1.0, "layer_decay": 1.0}
    chosen = config.parse({"train": {"epochs": 2}, "optim": rates}, "test")
    candidate = Candidate(model, chosen, 4, torch.device("cpu"), 1)
    full = MARGINS["arcface"]
    for step, share in ((0, 0.0), (2, 0.5), (4, 1.0), (1, 0.25)):  # in any order, as after a restart
        candidate.step(toy.x, toy.targets(), step, 1.0)
        assert toy.module.identities.margin == pytest.approx(share * full)


def test_a_picture_and_its_mirror_image_have_one_embedding():
    plain, mirrored = (Toy("face_recognition", mirror=mirror).module.eval() for mirror in (False, True))
    x, flipped = (toy_x := Toy("face_recognition").x), toy_x.flip(-1)
    with torch.inference_mode():
        assert torch.equal(mirrored(x), mirrored(flipped))
        assert not torch.allclose(plain(x), plain(flipped), atol=1e-3)
        both = torch.nn.functional.normalize(plain(x) + plain(flipped))
        torch.testing.assert_close(mirrored(x), both)
        assert torch.equal(mirrored.embed(x), mirrored(x))


def test_a_bundle_from_before_these_settings_predicts_as_it_did(tmp_path: Path):
    toy = Toy("face_recognition", threshold=0.42)
    before = toy.predict()
    model = bundle.Model(toy.module, toy.task, toy.module.backbone.spec(), 0, PRE, [], "f" * 64)
    bundle.save(str(tmp_path / "b"), model, {}, {}, toy.pictures[:2])
    file = tmp_path / "b" / bundle.MANIFEST
    manifest = json.loads(file.read_text())
    for key in ("goal", "mirror", "margin_warmup", "pictures_per_person"):
        del manifest["task"][key]
    file.write_text(json.dumps(manifest))
    assert Predictor(str(tmp_path / "b")).predict(toy.pictures) == before


def test_one_picture_is_a_batch_too():
    toy = Toy("face_recognition")
    loss = toy.module(toy.x[:1], {"label": torch.tensor([1])})
    assert loss.isfinite()


def test_a_bundle_knows_nobody_of_the_training(tmp_path: Path):
    toy = Toy("face_recognition", threshold=0.42)
    model = bundle.Model(toy.module, toy.task, toy.module.backbone.spec(), 0, PRE, [], "f" * 64)
    bundle.save(str(tmp_path / "b"), model, {}, {}, toy.pictures[:2])
    from safetensors import safe_open

    with safe_open(tmp_path / "b" / bundle.WEIGHTS, "np") as file:
        assert not [name for name in file.keys() if name.startswith("identities")]  # noqa: SIM118
    assert [name for name in toy.module.state_dict() if name.startswith("identities")]
    predictor = Predictor(str(tmp_path / "b"))
    assert predictor.labels == [] and predictor.task.threshold == 0.42
    x_BD = np.stack(predictor.embed(toy.pictures))
    assert x_BD.shape == (8, 128) and np.linalg.norm(x_BD, axis=1) == pytest.approx(np.ones(8), abs=1e-5)
    predicted = [prediction["embedding"] for prediction in predictor.predict(toy.pictures)]
    np.testing.assert_allclose(predicted, x_BD, atol=1e-5)
    assert toy.task.image_of({"embedding": predicted[0]}) is None and toy.task.gallery


def test_people_with_a_single_picture_are_told():
    task = tasks.load({"name": "face_recognition"})
    rows = pa.table({"label": ["a", "a", "b", "c"], "kind": pa.array([None, None, None, "x"], pa.string())})
    kept, remarks = task.preflight(rows, {})
    assert kept is rows
    assert [(r.severity, r.kind, r.examples) for r in remarks] == [("warning", "single_picture", ["b"])]


def test_the_report_shows_the_worst_pairs():
    toy = Toy("face_recognition")
    predictions = toy.predict()
    rows = [toy.task.record(r, p) for r, p in zip(toy.rows, predictions, strict=True)]
    shown = {"rows": json.loads(json.dumps(rows)), "metrics": toy.metrics(predictions).compute()}
    sections = toy.task.figures(shown)
    assert [s.title for s in sections] == ["Verification", "Similarities", "Worst pairs"]
    for shot in sections[2].shots:
        same = toy.rows[shot.row]["label"] == toy.rows[shot.beside]["label"]
        assert dict(shot.lines)["truth"] == ("one person" if same else "two people")


@pytest.mark.realdata
@pytest.mark.slow
def test_the_road_on_real_faces(ray_local: Any, realdata: Path, tmp_path: Path) -> None:
    from tlray import cli
    from tlray.data.dataset import Dataset

    data, runs = str(tmp_path / "data"), tmp_path / "runs"
    source = str(realdata / "orl-faces")
    shares = ["--validation", "0.2", "--test", "0.2"]
    assert cli.run(["ingest", source, data, "--task", "face_recognition", *shares, "--json"]) == 0
    made = Dataset.open(data)
    people = [set(made.read(s, ["label"])["label"].to_pylist()) for s in ("train", "validation", "test")]
    assert [len(there) for there in people] == [24, 8, 8] and len(set.union(*people)) == 40
    recipe = str(Path(__file__).parents[2] / "jobs" / "recipes" / "orl-faces.yaml")
    small = [f"data.uri={data}", f"runs={runs}", "train.epochs=6"]
    assert cli.run(["train", recipe, *small, "--json"]) == 0
    metrics = json.loads((runs / "orl-faces" / "evaluation.json").read_text())["metrics"]
    # Untrained, the pretrained features have 0.95 and 0.88 on people like these.
    assert metrics["roc_auc"] > 0.965 and metrics["verification_accuracy"] > 0.9, metrics
    manifest = json.loads((runs / "orl-faces" / "best" / "manifest.json").read_text())
    assert manifest["labels"] == [] and -1 < manifest["task"]["threshold"] < 1
