"""A bundle says what it said when it was saved, or is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.toys import LABELS, picture
from tlray import tasks
from tlray.bundle import bundle
from tlray.bundle.manifest import sha256
from tlray.bundle.predictor import Predictor
from tlray.data.image import Preprocess
from tlray.errors import BundleError, ConfigError, PictureError
from tlray.models.backbone import Backbone

GOLDEN = [picture(i, 9) for i in range(3)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    task = tasks.load({"name": "classification"})
    backbone = Backbone("resnet10t-nano", "builtin", size=64)
    backbone.freeze("all")
    module = task.build(backbone, LABELS)
    torch.nn.init.normal_(module.head.weight)
    preprocess = Preprocess(size=(64, 64), mean=backbone.mean, std=backbone.std)
    return bundle.Model(module, task, backbone.spec(), 5, preprocess, LABELS, "f" * 64)


@pytest.fixture
def saved(model, tmp_path):
    bundle.save(str(tmp_path / "b"), model, {"accuracy": 0.5}, {"name": "toy"}, GOLDEN)
    return tmp_path / "b"


def rewrite_sums(folder):
    """What somebody would do who changed a file and mended its checksum."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["checksums"] = {n: sha256(folder / n) for n in manifest["checksums"]}
    path.write_text(json.dumps(manifest))


def test_predictions_survive_the_round_trip(model, saved):
    model.module.eval()
    assert Predictor(str(saved)).predict(GOLDEN) == model.predict(GOLDEN)
    assert bundle.verify(str(saved)).metrics == {"accuracy": 0.5}


def test_a_setting_of_training_that_has_moved_is_passed_over(model, saved):
    """Bundles of before mixing was augmentation's say `mixup` among the task's settings."""
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["task"]["mixup"] = 0.2
    (saved / "manifest.json").write_text(json.dumps(manifest))
    model.module.eval()
    assert Predictor(str(saved)).predict(GOLDEN) == model.predict(GOLDEN)
    with pytest.raises(ConfigError, match=r"task\.mixup .*unknown key; accepted: augment\.mixup"):
        tasks.load({"name": "classification", "mixup": 0.2})


def test_nothing_is_left_of_a_bundle_that_could_not_be_saved(model, tmp_path):
    with pytest.raises(PictureError):
        bundle.save(str(tmp_path / "b"), model, {}, {}, [b"no picture"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["weights.safetensors", "golden.safetensors", "golden/0.bin", "README.md"])
def test_a_changed_or_missing_file_is_named(saved, name):
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=f"{name}: changed"):
        bundle.load(str(saved))
    (saved / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        bundle.verify(str(saved))


def test_other_weights_fail_the_golden_samples(saved):
    state = load_file(saved / "weights.safetensors")
    state["head.weight"] = state["head.weight"] * 1.1
    save_file(state, saved / "weights.safetensors")
    rewrite_sums(saved)
    with pytest.raises(BundleError, match="golden samples give other outputs"):
        Predictor(str(saved))


def test_a_pickle_is_refused(saved):
    torch.save({"head.weight": torch.zeros(3)}, saved / "weights.safetensors")
    rewrite_sums(saved)
    with pytest.raises(BundleError, match="pickle is refused"):
        bundle.load(str(saved))


def test_unknown_formats_and_foreign_folders_are_refused(saved, tmp_path):
    with pytest.raises(BundleError, match=r"no bundle; accepted: a folder with manifest\.json"):
        bundle.load(str(tmp_path))
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(BundleError, match="format"):
        bundle.load(str(saved))
    (saved / "manifest.json").write_text(json.dumps({**manifest, "checksums": {"../../x": "0"}}))
    with pytest.raises(BundleError, match="points out of the bundle"):
        bundle.load(str(saved))


def test_a_bad_picture_keeps_its_place_and_harms_no_neighbour(saved):
    predictor = Predictor(str(saved))
    alone = predictor.predict([GOLDEN[1]])
    mixed = predictor.predict([b"x", GOLDEN[1], b""], on_error="return")
    assert isinstance(mixed[0], PictureError) and isinstance(mixed[2], PictureError)
    assert mixed[1]["label"] == alone[0]["label"]
    assert np.isclose(mixed[1]["probability"], alone[0]["probability"], atol=1e-5)
    with pytest.raises(PictureError):
        predictor.predict([b"x"])


def test_an_embedding_is_the_pooled_features_or_a_stages(model, saved):
    predictor = Predictor(str(saved))
    features, error = predictor.embed([GOLDEN[0], b"no picture"], on_error="return")
    assert isinstance(error, PictureError) and features.dtype == np.float32
    logits = features @ model.module.head.weight.detach().numpy().T + model.module.head.bias.detach().numpy()
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    (prediction,) = predictor.predict(GOLDEN[:1])
    probabilities = {item["label"]: item["probability"] for item in prediction["labels"]}
    assert [probabilities[name] for name in LABELS] == pytest.approx(shares, abs=1e-4)
    backbone = model.module.backbone
    for name, channels in zip(backbone.stages, backbone.channels, strict=True):
        assert predictor.embed(GOLDEN[:1], stage=name)[0].shape == (channels,)
    with pytest.raises(PictureError):
        predictor.embed([b"no picture"])
    with pytest.raises(ConfigError, match="stage 'layer9'"):
        predictor.embed(GOLDEN, stage="layer9")
