"""What a name stands for: the same goes on, anything else is refused and touches nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import toys
from tlray import config, storage
from tlray.config import Config
from tlray.config.tree import flatten
from tlray.errors import ConfigError
from tlray.training import fit, resume


def settings(folder: Path, **changes: Any) -> Config:
    """As training has them: nothing is ``auto`` any more."""
    tree: dict[str, Any] = {
        "runs": str(folder), "data": {"uri": "d"}, "augment": {"policy": "mild", "scale": [1.0, 1.0]},
        "optim": {"lr": 0.001, "backbone_lr_ratio": 1.0, "layer_decay": 0.9},
        "train": {"epochs": 3, "batch_size": 64},
    }  # fmt: skip
    return config.parse(tree, "test").override(changes)


def trained(
    made: Config, fingerprint: str | None = "f", epochs: int = 2, name: str = "step-00000008"
) -> None:
    """What a training leaves, as far as it is looked at."""
    place = storage.join(made.run_uri, "checkpoints", name)
    manifest = {"config": made.model_dump(mode="json"), "fingerprint": fingerprint}
    storage.write_json(storage.join(place, "manifest.json"), manifest)
    storage.write_json(storage.join(place, "state.json"), {"history": [{}] * epochs})
    storage.write_json(storage.join(made.run_uri, "config.json"), made.model_dump(mode="json"))
    storage.write_json(storage.join(made.run_uri, "metrics.json"), {"epochs": []})


def refusal(made: Config, fingerprint: str = "f") -> str:
    before = {p: p.read_bytes() for p in Path(made.runs).rglob("*") if p.is_file()}
    with pytest.raises(ConfigError) as caught:
        resume.check_training(made, fingerprint)
    assert {p: p.read_bytes() for p in Path(made.runs).rglob("*") if p.is_file()} == before
    assert "\n" not in str(caught.value) and "--fresh" in str(caught.value)
    return str(caught.value)


def test_a_new_name_and_the_same_again_pass(tmp_path: Path) -> None:
    made = settings(tmp_path)
    assert resume.check_training(made, "f") == []
    trained(made)
    assert resume.check_training(made, "f") == []
    other = settings(tmp_path, **{"name": "other", "optim.lr": 0.5})
    assert resume.check_training(other, "g") == []


def test_every_key_that_differs_is_named_with_both_values(tmp_path: Path) -> None:
    trained(settings(tmp_path))
    said = refusal(settings(tmp_path, **{"optim.lr": 0.01, "model.freeze": "all", "data.uri": "e"}), "g")
    assert "optim.lr = 0.01: this run began with 0.001" in said
    assert "model.freeze = 'all': this run began with 0" in said
    assert "data.uri = 'e': not the data that this run began with ('d', fingerprint f, now g)" in said


# Every key that is not free, changed to something else that is accepted.
OTHER = {
    "seed": 1, "task.name": "multilabel", "task.label_smoothing": 0.2,
    "data.train_split": "other", "data.validation_split": "other", "data.shuffle_window": 3,
    "input.size": 64, "input.fit": "stretch", "input.mean": [0, 0, 0], "input.std": [1, 1, 1],
    "augment.scale": [0.5, 1.0], "augment.ratio": [1, 1], "augment.hflip": 0.1, "augment.vflip": 0.1,
    "augment.brightness": 0.1, "augment.contrast": 0.1, "augment.saturation": 0.1, "augment.views": 2,
    "augment.policy": "wide", "augment.scale_jitter": [0.5, 2.0], "augment.erase": 0.1,
    "augment.mixup": 0.2, "augment.cutmix": 1.0, "augment.mosaic": 0.5, "augment.class_balance": 0.5,
    "model.backbone": "resnet50", "model.weights": "none", "model.freeze": 1, "model.drop_rate": 0.1,
    "model.drop_path_rate": 0.1, "model.head": "h.safetensors",
    "optim.optimizer": "sgd", "optim.lr": 0.1, "optim.backbone_lr_ratio": 0.1, "optim.layer_decay": 0.5,
    "optim.weight_decay": 0.1, "optim.momentum": 0.5, "optim.warmup_ratio": 0.3, "optim.final_lr_ratio": 0.5,
    "optim.clip_grad_norm": 2, "train.batch_size": 3, "train.precision": "bf16",
    "train.channels_last": True, "train.compile": True, "train.soup": 0, "train.ema": 0.9,
    "task.goal": "log_loss",
}  # fmt: skip


def test_all_keys_are_compared_but_those_that_are_listed_as_free(tmp_path: Path) -> None:
    keys = {k for k in flatten(Config().model_dump(mode="json")) if not k.startswith("task.")}
    free = {k for k in keys if k.startswith(resume.FREE_OF_TRAINING)}
    assert keys - free == {k for k in OTHER if not k.startswith("task.")}
    trained(settings(tmp_path))
    for key, value in OTHER.items():
        assert f"{key} = " in refusal(settings(tmp_path, **{key: value}))


def test_what_is_free_goes_on(tmp_path: Path) -> None:
    trained(settings(tmp_path))
    changed = {
        "scale.num_workers": 2, "scale.max_failures": 0, "track.tensorboard": False, "serve.port": 1,
        "models": "elsewhere", "data.uri": "moved", "data.cache_mb": 1, "data.test_split": "x",
        "train.keep_checkpoints": 9, "train.checkpoint_every_steps": 5, "train.early_stop_epochs": 3,
        "search.num_trials": 1, "search.cache": None,
    }  # fmt: skip
    assert resume.check_training(settings(tmp_path, **changed), "f") == []
    # A default that is spelt out is the same.
    assert resume.check_training(settings(tmp_path, **{"task.label_smoothing": 0.05}), "f") == []


def test_more_epochs_go_on_and_it_is_said_what_becomes_of_the_schedule(tmp_path: Path) -> None:
    trained(settings(tmp_path, **{"train.epochs": 4}), epochs=2)
    (note,) = resume.check_training(settings(tmp_path, **{"train.epochs": 6}), "f")
    assert note.startswith("train.epochs 4 -> 6: goes on after epoch 2 with the learning rate")
    assert len(resume.check_training(settings(tmp_path, **{"train.epochs": 2}), "f")) == 1
    assert "train.epochs = 1: this run has had 2 epochs" in refusal(settings(tmp_path, **{"train.epochs": 1}))


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    made = settings(tmp_path)
    trained(made, fingerprint=None)
    place = Path(made.run_uri, "checkpoints", "step-00000008", "manifest.json")
    manifest = storage.read_json(str(place))
    del manifest["fingerprint"], manifest["config"]["augment"]["views"], manifest["config"]["search"]
    storage.write_json(str(place), manifest)
    (note,) = resume.check_training(made, "f")
    assert "without a fingerprint" in note
    assert "augment.views = 2: this run began with None" in refusal(
        settings(tmp_path, **{"augment.views": 2})
    )


def test_a_run_from_before_a_setting_of_its_task_goes_on_without_it(tmp_path: Path) -> None:
    """New trainings of detection have ``anchors: auto``; those from before had the standard ones."""
    uri = toys.scenes_dataset(tmp_path / "d", {"objects": "objects"}, train=2, validation=2)
    made = Config().override({"task.name": "detection", "data.uri": uri, "runs": str(tmp_path / "runs")})
    assert fit.resolve_config(made).task["anchors"] == "auto"
    old = fit.resolve_config(made).model_dump(mode="json")
    del old["task"]["anchors"]
    trained(config.parse(old, "test"))
    for _ in range(2):  # the second time it is spelt out
        again = fit.resolve_config(made)
        assert again.task["anchors"] == "standard" and resume.check_training(again, "f") == []
        storage.write_json(storage.join(again.run_uri, "config.json"), again.model_dump(mode="json"))
    assert fit.resolve_config(made, fresh=True).task["anchors"] == "auto"
    other = fit.resolve_config(made.override({"task.anchors": [[1, 2]]}))
    assert "task.anchors = [[1.0, 2.0]]: this run began with 'standard'" in refusal(other)
    Path(again.run_uri, "config.json").write_text("[")
    assert fit.resolve_config(made).task["anchors"] == "auto"


def test_what_the_weights_have_seen_counts_not_what_was_written_since(tmp_path: Path) -> None:
    trained(settings(tmp_path, **{"optim.lr": 0.5}))
    made = settings(tmp_path)
    storage.write_json(storage.join(made.run_uri, "config.json"), made.model_dump(mode="json"))
    assert "began with 0.5" in refusal(made)


def test_a_damaged_checkpoint_is_passed_over_and_the_best_epoch_counts_where_none_is_left(
    tmp_path: Path,
) -> None:
    made = settings(tmp_path)
    trained(settings(tmp_path, **{"optim.lr": 0.5}), name="step-00000004")
    for text in ("", "[]", "{}", "null", "{"):
        broken = Path(made.run_uri, "checkpoints", "step-00000008", "manifest.json")
        broken.parent.mkdir(exist_ok=True)
        broken.write_text(text)
        assert "began with 0.5" in refusal(made)
    Path(made.run_uri, "checkpoints").rename(Path(made.run_uri, "gone"))
    assert resume.check_training(made, "f") == []
    manifest = {"config": settings(tmp_path, seed=7).model_dump(mode="json"), "fingerprint": "f"}
    storage.write_json(storage.join(made.run_uri, "best", "manifest.json"), manifest)
    assert "seed = 0: this run began with 7" in refusal(made)


def test_a_search_is_not_taken_for_a_training(tmp_path: Path) -> None:
    made = settings(tmp_path)
    storage.write_json(storage.join(made.run_uri, "trials.json"), {})
    assert "is a search" in refusal(made)


def test_fresh_deletes_what_a_run_leaves_and_nothing_else(tmp_path: Path) -> None:
    made = settings(tmp_path)
    trained(made)
    Path(made.run_uri, "notes.txt").write_text("mine")
    storage.write_json(storage.join(made.run_uri, "trials", "t1", "config.json"), {})
    resume.clear(made)
    assert [p.name for p in Path(made.run_uri).iterdir()] == ["notes.txt"]
    best = Path(made.run_uri, "best")
    best.mkdir()
    (best / "mine.txt").write_text("no run ever was here")
    resume.clear(made)
    assert (best / "mine.txt").exists()


@pytest.mark.parametrize("key", ["model.weights", "model.head"])
def test_fresh_keeps_what_the_new_run_needs(tmp_path: Path, key: str) -> None:
    made = settings(tmp_path)
    trained(made)
    made = settings(tmp_path, **{key: f"{made.run_uri}/best/weights.safetensors"})
    with pytest.raises(ConfigError, match=rf"{key} = .*lies in the run that --fresh deletes"):
        resume.clear(made)
    assert Path(made.run_uri, "checkpoints").exists()
