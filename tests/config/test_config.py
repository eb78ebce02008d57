"""The configuration tree: what it reads, what it refuses, and in which words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlray import config
from tlray.config import Choice, Config, Uniform, load, parse
from tlray.errors import ConfigError


def refusal(*overrides: str, path: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_defaults_are_valid_and_frozen() -> None:
    made = load(None)
    assert made == Config()
    with pytest.raises(Exception, match="frozen"):
        made.name = "other"  # type: ignore[misc]


def test_a_file_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: a\noptim: {lr: 0.5}\ntrain: {epochs: 3}\n")
    made = load(str(path), ["optim.lr=0.25", "train.early_stop_epochs=2", "data.uri=s3://b/x=y"])
    assert (made.name, made.optim.lr, made.train.epochs) == ("a", 0.25, 3)
    assert (made.train.early_stop_epochs, made.data.uri) == (2, "s3://b/x=y")


def test_an_empty_file_means_defaults(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# nothing yet\n")
    assert load(str(tmp_path / "a.yaml")) == Config()


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "0.001"])
def test_exponents_are_numbers(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        f"optim: {{lr: {text}}}\nsearch: {{space: {{optim.lr: {{choice: [{text}]}}}}}}"
    )
    made = load(str(tmp_path / "a.yaml"))
    assert made.optim.lr == 0.001
    assert made.search.space["optim.lr"] == Choice(choice=[0.001])
    assert load(None, [f"optim.lr={text}"]).optim.lr == 0.001


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_any_positive_rate_is_read_back_exactly(value: float) -> None:
    assert load(None, [f"optim.lr={value!r}"]).optim.lr == value


def test_unknown_keys_name_the_nearest_at_every_depth() -> None:
    assert refusal("optimm.lr=1") == "optimm (command line): unknown key; did you mean 'optim'?"
    assert refusal("optim.lrr=1") == "optim.lrr (command line): unknown key; did you mean 'lr'?"
    assert "accepted: " in refusal("optim.zzz=1")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.lr=-0.1", "optim.lr = -0.1 (command line): accepted: 'auto' or greater than 0"),
        ("optim.lr=.nan", "finite"),
        ("train.epochs=0", "greater than or equal to 1"),
        ("train.precision=fp8", "'fp32', 'bf16' or 'fp16'"),
        ("augment.scale=[0.9, 0.1]", "the smaller one first"),
        ("name=../elsewhere", "name = '../elsewhere'"),
        ("input.size=3", "input.size = 3"),
        ("seed=-1", "seed = -1"),
        ("optim=3", "optim = 3 (command line): accepted: keys of its own below it"),
        ("task=detection", "task = 'detection' (command line): accepted: keys of its own"),
        ("scale.gpus_per_worker=-1", "accepted: greater than or equal to 0 or 'auto'"),
        ("scale.gpus_per_worker=true", "scale.gpus_per_worker = True (command line): accepted: a number"),
        ("model.freeze=true", "model.freeze = True (command line): accepted: a whole number"),
        ("optim.lr=true", "optim.lr = True (command line): accepted: a number"),
        ("train.epochs=1:30", "train.epochs = '1:30'"),
        ("augment.scale=[true, 1]", "augment.scale.0 = True"),
        ("input.size=false", "input.size = False"),
        ("track.tensorboard=1", "track.tensorboard = 1 (command line): accepted: true or false"),
        ("name=true", "name = True (command line): accepted: text (in quotes"),
        ("name=12", "name = 12 (command line): accepted: text (in quotes"),
        ("search.space.optim.lr={low: true, high: 3}", "search.space.optim.lr.low = True"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_accepted(override: str, said: str) -> None:
    text = refusal(override)
    assert said in text
    assert text.startswith(override.partition("=")[0])


def test_each_value_is_blamed_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: x\noptim: {lr: -1}\n")
    accepted = "accepted: 'auto' or greater than 0"
    assert refusal(path=str(path)) == f"optim.lr = -1 ({path}): {accepted}"
    assert refusal("name=y", path=str(path)) == f"optim.lr = -1 ({path}): {accepted}"
    assert refusal("optim.lr=-2", path=str(path)) == f"optim.lr = -2 (command line): {accepted}"
    assert "optim.lr = -3 (command line)" in refusal("optim={lr: -3}", path=str(path))
    with pytest.raises(ConfigError, match=r"serve\.port = 99999 \(--port\)"):
        Config().override(
            {"serve.port": 99999, "serve.host": "h"}, {"serve.port": "--port", "serve.host": "-"}
        )


def test_keys_that_stand_twice_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for text, line, key in (
        ("name: a\noptim: {lr: 1}\nname: b\n", 3, "name"),
        ("optim:\n  lr: 1\n  lr: 2\n", 3, "lr"),
        ("input: {mean: [0, 0, 0]}\nsearch: {space: {a: {choice: [{b: 1, b: 2}]}}}\n", 2, "b"),
    ):
        path.write_text(text)
        assert refusal(path=str(path)) == (
            f"{path} line {line}: {key!r} stands there twice; accepted: each key once"
        )
    assert "'lr' stands there twice" in refusal("optim={lr: 1, lr: 2}")
    path.write_text("optim: &o {lr: 1, momentum: 0.5}\ndata: {uri: d}\n")
    assert load(str(path)).optim.momentum == 0.5


@pytest.mark.parametrize(
    ("text", "value"),
    [("no", "no"), ("on", "on"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("1_000", "1_000")],
)
def test_what_yaml_1_1_would_turn_into_something_else_stays_text(text: str, value: str) -> None:
    assert load(None, [f"data.uri={text}"]).data.uri == value


def test_words_for_yes_and_no_are_truth_values_where_those_belong() -> None:
    assert [load(None, [f"track.tensorboard={w}"]).track.tensorboard for w in ("no", "yes", "false")] == [
        False, True, False,
    ]  # fmt: skip


def test_a_file_that_is_not_there_says_what_its_name_may_mean(tmp_path: Path) -> None:
    (tmp_path / "my recipe.yaml").write_text("name: x\n")
    assert "did you mean" in refusal(path=f"{tmp_path}/my%20recipe.yaml")
    assert "a drive of Windows" in refusal(path="C:\\recipes\\a.yaml")
    assert "backslashes are no separators" in refusal(path="recipes\\a.yaml")


def test_overrides_that_are_none() -> None:
    assert "no valid YAML" in refusal("search.space.optim.lr={choice: &a [*a]}")
    assert "no valid YAML" in refusal(f"optim.lr={'[' * 5000}")
    assert "accepted: key=value" in refusal("optim.lr")
    assert "no valid YAML" in refusal("optim.lr=[1")


def test_files_that_are_none(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.yaml")
    assert refusal(path=missing).startswith(missing)
    assert "accepted: a YAML file" in refusal(path=str(tmp_path))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: 1\nb: [1, 2\nc: 3\n")
    assert f"{broken} line " in refusal(path=str(broken))
    broken.write_text("- a list\n")
    assert "holds a list" in refusal(path=str(broken))
    broken.write_text("name: x\n")
    assert "'name' is a single value" in refusal("name.deeper=1", path=str(broken))
    broken.write_bytes(b"name: \xff\xfe")
    assert "not UTF-8 text" in refusal(path=str(broken))


def test_the_space_of_a_search_takes_dotted_keys() -> None:
    made = load(None, ["search.space.train.batch_size={choice: [32, 64]}"])
    assert made.search.space["train.batch_size"] == Choice(choice=[32, 64])
    made = load(None, ["search.space={optim.lr: {low: 1e-4, high: 1e-2, log: true}}"])
    assert made.search.space == {"optim.lr": Uniform(low=1e-4, high=1e-2, log=True)}
    assert "above low" in refusal("search.space={optim.lr: {low: 2, high: 1}}")


def test_a_resolved_tree_survives_json() -> None:
    made = load(None, ["model.freeze=all", "input.mean=[0.5, 0.5, 0.5]", "serve.port=0"])
    assert parse(json.loads(made.model_dump_json()), "config.json") == made


@pytest.mark.parametrize(("value", "kind"), [("2", int), ("0.5", float), ("layer3", str), ("all", str)])
def test_freeze_keeps_its_type(value: str, kind: type) -> None:
    # 1 (one stage) and 1.0 (all of them) are different things.
    assert type(load(None, [f"model.freeze={value}"]).model.freeze) is kind


def test_override_gives_a_new_tree_and_leaves_the_old() -> None:
    old = Config()
    new = old.override({"optim.lr": 0.5, "model.freeze": "all"})
    assert (new.optim.lr, new.model.freeze, old) == (0.5, "all", Config())
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        old.override({"optim.lr": -1}, "trial 3")


def test_run_uri_joins_once() -> None:
    assert parse({"runs": "s3://b/runs/", "name": "x"}, "here").run_uri == "s3://b/runs/x"


def test_every_setting_says_nothing_twice() -> None:
    def keys(model: Any, prefix: str = "") -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, config.Strict):
                found += keys(kind, f"{prefix}{name}.")
            else:
                found.append(prefix + name)
        return found

    found = keys(Config)
    assert len(set(found)) == len(found)


def test_importing_the_configuration_loads_neither_ray_nor_torch() -> None:
    code = "import sys, tlray.config; print(sorted({'ray', 'torch', 'pyarrow', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
