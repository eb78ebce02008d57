"""What `auto` stands for: chosen once, by task, family and number of pictures; what is given stays."""

from __future__ import annotations

import pytest

from tests import toys
from tlray import tasks
from tlray.config import Config, load
from tlray.models.backbone import traits
from tlray.training.defaults import resolve_auto


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toys.dataset(tmp_path_factory.mktemp("data") / "d", train=40, validation=4)


def of(uri: str, **changes: object) -> Config:
    return resolve_auto(Config().override({"data.uri": uri, **changes}))


def test_nothing_is_auto_any_more_and_settling_again_changes_nothing(dataset: str) -> None:
    found = of(dataset)
    assert "auto" not in str(found.model_dump(exclude={"scale", "search"}))
    assert found.search.space != "auto" and resolve_auto(found) == found
    assert found.search.space["optim.lr"].choice[1] == found.optim.lr


def test_what_is_given_stays(dataset: str) -> None:
    found = of(dataset, **{"optim.lr": 0.123, "train.epochs": 3, "augment.policy": "none"})
    assert (found.optim.lr, found.train.epochs, found.augment.policy) == (0.123, 3, "none")
    assert found.search.space["optim.lr"].choice == [0.061, 0.12, 0.25]


def test_rates_go_by_family_and_width() -> None:
    assert traits("resnet50") == ("batch", 2048)
    assert traits("vit_tiny_patch16_224") == ("layer", 192)
    assert traits("convnext_tiny").norm == "layer"


@pytest.mark.parametrize(("backbone", "low", "high"), [
    ("resnet10t-nano", 2e-3, 6e-3), ("resnet50", 3e-4, 2e-3), ("vit_base_patch16_224", 5e-5, 5e-4),
])  # fmt: skip
def test_the_rate_of_a_backbone_is_in_the_range_of_its_kind(
    dataset: str, backbone: str, low: float, high: float
) -> None:
    found = of(dataset, **{"model.backbone": backbone, "model.weights": "none"})
    assert low <= found.optim.lr <= high
    assert found.optim.layer_decay == 1.0  # nothing pretrained to keep


def test_few_pictures_get_more_epochs_and_smaller_batches(dataset: str) -> None:
    few, smaller = of(dataset), of(dataset, **{"train.batch_size": 2})
    assert (few.train.batch_size, few.train.epochs) == (32, 60)
    assert smaller.train.epochs == 30  # as many steps


def test_every_task_says_how_it_trains() -> None:
    for name in tasks.names():
        usual = tasks.load({"name": name}).defaults
        placed = any(kind in ("mask", "objects") for kind in tasks.load({"name": name}).columns.values())
        assert usual.policy == ("colour" if placed or name == "face_recognition" else "mild")


def test_new_trainings_of_faces_look_at_mirror_images_too(dataset: str) -> None:
    assert of(dataset, task={"name": "face_recognition"}).task["mirror"] is True
    by_hand = of(dataset, task={"name": "face_recognition", "mirror": False})
    assert by_hand.task["mirror"] is False
    assert tasks.load({"name": "face_recognition"}).mirror is False  # a bundle from before


def test_a_file_may_say_auto(tmp_path) -> None:
    (tmp_path / "a.yaml").write_text("optim: {lr: auto}\ntrain: {epochs: auto}\nsearch: {space: auto}\n")
    assert load(str(tmp_path / "a.yaml")) == Config()
