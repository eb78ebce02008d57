"""Odd inputs of every verb: each ends with code 2 and one line that says what is accepted. Starts no Ray."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.test_cli import RECIPE, mistake
from tests.toys import dataset
from tlray import cli, config
from tlray.bundle import bundle
from tlray.data.dataset import Dataset
from tlray.training import fit as training


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound and unsound pictures, data sets, bundles, registries, runs and recipes by their names."""
    root = tmp_path_factory.mktemp("things")
    for name in ("cat", "dog"):
        (root / "in" / name).mkdir(parents=True)
        for n in range(12):
            Image.effect_noise((32, 32), 10 + n).save(root / "in" / name / f"{n}.png")
    data = dataset(root / "ds", train=24, validation=6, test=6)
    made = config.Config().override({"data.uri": data, "input.size": 32})
    model = training.check(training.resolve_config(made))
    model.module.eval()
    golden = [p["bytes"] for p in Dataset.open(data).rows("train", [0])["image"].to_pylist()]
    bundle.save(str(root / "bundle"), model, {"accuracy": 0.5}, made.model_dump(mode="json"), golden)
    files: dict[str, str | bytes] = {
        "text.txt": "hello", "zero.jpg": b"", "bad.yaml": "a: [1,", "list.yaml": "- 1",
        "bin.yaml": b"\xff\xfe\0x",
        "run/config.json": "{broken", "run2/config.json": "[]", "run3/config.json": '{"data": 5, "task": 7}',
        "vectors/embeddings.json": "{}", "vectors2/embeddings.json": "[]",
        "vectors3/embeddings.json": '{"parts": {"a": 1}, "dim": 3, "labels": {}, "data": "x"}',
        "list/manifest.json": "[1]", "bare/manifest.json": "{}", "broken/manifest.json": "{",
        "text/pets/aliases.json": "nope", "events/pets/aliases.json": '{"live": 1, "history": [1]}',
        "word/pets/aliases.json": '{"live": "one", "history": []}',
        "cache/0123456789abcdef/manifest.json": "[]",
    }  # fmt: skip
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    for name in ("text", "events", "word"):
        shutil.copytree(root / "bundle", root / name / "pets" / "1")
    (root / "empty").mkdir()
    return root


def visible(folder: Path) -> list[str]:
    """All files but locks."""
    return sorted(str(path) for path in folder.rglob("*") if not path.name.startswith("."))


TRAIN = ["train", RECIPE, "data.uri=ds"]
ODD: list[tuple[list[str], str]] = [
    (["ingest", "in", "out", "--seed", "-1"], "seed = -1: accepted: 0 or more"),
    (["ingest", "in", "out", "--validation", "nan"], "validation = nan: accepted: a share"),
    (["ingest", "in", "out", "--max-side", "0"], "max_side = 0: accepted: 16 px or more"),
    (["ingest", "in", ""], "'': no URI"),
    (["ingest", "zero.jpg", "out"], "is one picture; accepted: a folder"),
    (["sample", "s", "--seed", "-5"], "seed = -5: accepted: 0 or more"),
    (["train", "bad.yaml"], "bad.yaml line 1: no valid YAML"),
    (["train", "list.yaml"], "holds a list; accepted: a mapping of keys"),
    (["train", "bin.yaml"], "not UTF-8 text"),
    (["train", "in"], "in: cannot be read (Is a directory); accepted: a YAML file"),
    ([*TRAIN, "name=a/b"], "accepted: 1 to 64 of A-Z a-z 0-9 . _ -, the first of them a letter or a digit"),
    ([*TRAIN, "name=../x"], "accepted: 1 to 64 of A-Z"),
    ([*TRAIN, "name=größe"], "accepted: 1 to 64 of A-Z"),
    ([*TRAIN, "name="], "name = None (command line): accepted: a valid string"),
    ([*TRAIN, "optim.lr=1e400"], "accepted: 'auto' or a finite number"),
    ([*TRAIN, "train.epochs=1.5"], "accepted: 'auto' or a valid integer"),
    ([*TRAIN, "optim=5"], "accepted: keys of its own below it"),
    ([*TRAIN, "model.head=ds"], "cannot be read (Is a directory); accepted: a .safetensors file"),
    ([*TRAIN, "data.uri=text.txt"], "no data set; accepted"),
    ([*TRAIN, "runs=text.txt"], "is a file; accepted"),
    (["tune", RECIPE, "data.uri=ds", "search.space={optim.lr: []}"],
     "{choice: [...]} or {low: ..., high: ...}"),
    (["evaluate", "list", "ds"], "list/manifest.json: no object; accepted: what training leaves in RUN/best"),
    (["evaluate", "bare", "ds"], "bare/manifest.json: created: Field required; accepted: what training"),
    (["evaluate", "broken", "ds"], "broken/manifest.json: no valid JSON"),
    (["evaluate", "bundle", "ds", "--out", "in"], "in: is a folder; accepted: the name of a file"),
    (["predict", "bundle", "zero.jpg"], "zero.jpg: 0 bytes: accepted: an encoded picture"),
    (["predict", "bundle", "/dev/zero"], "is a pipe, a socket or a device"),
    (["predict", "bundle", "empty"], "holds no picture; accepted: files ending in"),
    (["promote", "bundle", "Pets"], "no model's name; accepted: a-z 0-9 . _ -"),
    (["promote", "bundle", "pets", "--models", "text"], "aliases.json: no valid JSON"),
    (["promote", "bundle", "pets", "--models", "events"], 'damaged; accepted: {"live": 1, "history": []}'),
    (["rollback", "pets", "--models", "events"], "aliases.json: damaged; accepted"),
    (["rollback", "pets", "--models", "word"], "aliases.json: damaged; accepted"),
    (["models", "--models", "word"], "aliases.json: damaged; accepted"),
    (["models", "--models", "text.txt"], "text.txt: is a file; accepted: a registry's folder"),
    (["predict", "pets", "zero.jpg", "--models", "text.txt"],
     "text.txt: is a file; accepted: a registry's folder"),
    (["report", ""], "'': no URI"),
    (["report", "run"], "no run lies here (run/config.json: no valid JSON"),
    (["report", "run2"], "no run lies here (run2/config.json: holds no JSON object); accepted"),
    (["similar", "vectors", "1"], "embeddings.json: damaged (no parts); accepted: what `tlray embed`"),
    (["similar", "vectors2", "1"], "embeddings.json: damaged (no object)"),
    (["similar", "vectors3", "1"], "embeddings.json: damaged (no parts)"),
    (["cache", "ls", "--cache", "text.txt"], "text.txt: is a file; accepted: the folder of a feature cache"),
    (["cache", "gc", "--cache", "text.txt"], "text.txt: is a file; accepted: the folder of a feature cache"),
    (["cache", "rm", "", "--cache", "empty"], "'': no such entry"),
    (["serve", "list"], "list/manifest.json: no object"),
    (["serve", "bundle", "bundle"], "is served twice; accepted: each model once"),
    (["serve", "bundle", "--port", "99999"], "accepted: less than or equal to 65535"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "said"), ODD, ids=[" ".join(args) for args, _ in ODD])
def test_an_odd_input_is_one_line(
    args: list[str], said: str, things: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray would start")

    monkeypatch.chdir(things)
    monkeypatch.setattr("tlray.runtime.session", start)
    before = visible(things)
    assert said in mistake(capfd, *args)
    assert visible(things) == before


def test_what_is_not_there_yet_is_not_called_empty(
    things: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(things)
    assert cli.run(["models", "--models", "modles"]) == 0
    assert capfd.readouterr().out == "modles: no model yet; tlray promote RUN NAME\n"
    assert cli.run(["models", "--models", "modles", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"models": []}


def test_a_damaged_entry_of_the_store_is_passed_over(
    things: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(things)
    assert cli.run(["cache", "ls", "--cache", "cache"]) == 0
    assert "cache: empty" in capfd.readouterr().out


def test_a_report_passes_over_settings_of_another_form(
    things: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(things)
    assert cli.run(["report", "run3"]) == 0
    assert capfd.readouterr().err == ""
