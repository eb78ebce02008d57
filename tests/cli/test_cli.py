"""The command line, in its own process where exit codes and streams matter. Mistakes start no Ray."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tlray import cli, errors
from tlray.errors import DataError, RunError

ROOT = Path(__file__).resolve().parents[2]
RECIPE = str(ROOT / "jobs" / "recipes" / "clothing.yaml")
VERBS = {
    "sample", "ingest", "train", "tune", "evaluate", "predict", "promote", "rollback", "models", "serve",
    "report", "quickstart", "doctor", "embed", "similar", "cache", "rank",
}  # fmt: skip


def tlray(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "from tlray.cli import main; main()"
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-c", code, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=120
    )


def mistake(capfd: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that a user's mistake leaves on stderr, the lines of the display apart."""
    assert cli.run(list(args)) == 2
    said = capfd.readouterr()
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("tlray: ")
    assert "Traceback" not in said.out
    return lines[0]


def pictures(folder: Path, *classes: str, number: int = 12) -> Path:
    for c, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for n in range(number):
            Image.effect_noise((32, 32), 10 + 20 * n + c).save(folder / name / f"{n}.png")
    return folder


def test_help_is_instant_and_names_every_verb(tmp_path: Path) -> None:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        done = tlray("--help", cwd=tmp_path)
        times.append(time.perf_counter() - began)
    assert done.returncode == 0
    assert {line.split()[0] for line in done.stdout.split("Commands:")[1].splitlines() if line} == VERBS
    assert min(times) < 1  # 0.25 s on an idle machine
    code = "import sys, tlray.cli; assert not {'ray', 'torch', 'pyarrow', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_the_help_of_ingest_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    from tlray.ingestion import formats

    assert cli.run(["ingest", "--help"]) == 0
    text = capsys.readouterr().out
    said = text[text.index("--format") : text.index("--task")]
    readable = set(formats.names()) - {"refused", "unsupported"}  # the module that knows what is not read
    assert [name for name in ["auto", *readable] if not re.search(rf"\b{name}\b", said)] == []


def test_a_mistake_ends_with_code_2_and_one_line(tmp_path: Path) -> None:
    done = tlray("train", RECIPE, "optim.lr=-0.1", "--json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "tlray: optim.lr = -0.1 (command line): accepted: 'auto' or greater than 0\n"
    job = [sys.executable, str(ROOT / "jobs" / "train.py"), "nothing.yaml"]
    done = subprocess.run(job, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == (
        "tlray: nothing.yaml: cannot be read (No such file or directory); accepted: a YAML file\n"
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["ingest", "only-one"], "DST is missing; accepted: tlray ingest SRC DST, or"),
        (["ingest", "a", "b", "--max-side", "big"], "Invalid value for '--max-side'"),
        (["models", "--nothing"], "No such option"),
    ],
)
def test_mistakes_in_the_command_line(capfd: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    assert said in mistake(capfd, *args)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("optim.lr=-0.1", "optim.lr = -0.1"),
        ("optim.learning_rate=0.1", "unknown key; accepted: backbone_lr_ratio"),
        ("optim.lrr=0.1", "unknown key; did you mean 'lr'?"),
        ("train.epochs", "accepted: key=value"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "tune"])
def test_mistakes_in_settings(capfd: pytest.CaptureFixture[str], verb: str, change: str, said: str) -> None:
    assert said in mistake(capfd, verb, RECIPE, change)


def test_data_that_is_not_there(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "data.uri = 'data/clothing': not found" in mistake(capfd, "train", RECIPE)
    for args in (["ingest", "nowhere", "to"], ["quickstart", "nowhere"], ["quickstart", "--data=nowhere"]):
        assert "nowhere: not found; accepted: a folder" in mistake(capfd, *args)
    assert "nowhere: no run lies here" in mistake(capfd, "report", "nowhere")
    assert "some/where: no bundle there" in mistake(capfd, "promote", "some/where", "pets")
    assert "pets: unknown model" in mistake(capfd, "predict", "pets", "a.jpg")
    assert "pets: unknown model" in mistake(capfd, "rollback", "pets")


@pytest.mark.parametrize("merge", [False, True])
def test_merging_classes_is_asked_for(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, merge: bool
) -> None:
    def ingest(*args: Any, **settings: Any) -> None:
        raise DataError(f"merge_classes is {settings['merge_classes']}")

    monkeypatch.setattr("tlray.api.ingest", ingest)
    option = ["--merge-classes"] if merge else []
    assert f"merge_classes is {merge}" in mistake(capfd, "ingest", "from", "to", *option)


def test_an_empty_class(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", "cat", "dog")
    (folder / "bird").mkdir()
    assert "bird" in mistake(capfd, "ingest", str(folder), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_unknown_backbone(capfd: pytest.CaptureFixture[str], tmp_path: Path, dataset: str) -> None:
    recipe = tmp_path / "a.yaml"
    recipe.write_text(f"data: {{uri: {dataset}}}\nmodel: {{backbone: resnet51, weights: none}}\n")
    capfd.readouterr()  # what making the data set said
    assert "resnet51" in mistake(capfd, "train", str(recipe))


@pytest.fixture
def dataset(tmp_path: Path, ray_local: Any) -> str:
    folder = pictures(tmp_path / "pictures", "cat", "dog")
    target = str(tmp_path / "dataset")
    assert cli.run(["ingest", str(folder), target, "--json"]) == 0
    return target


@pytest.fixture
def bundle(dataset: str, tmp_path: Path) -> str:
    """An untrained model: what a verb does with it is the same."""
    from tlray import config
    from tlray.bundle import bundle
    from tlray.data.dataset import Dataset
    from tlray.training import fit as training

    made = config.Config().override({"data.uri": dataset, "input.size": 32, "runs": str(tmp_path / "runs")})
    model = training.check(training.resolve_config(made))
    model.module.eval()
    uri = str(tmp_path / "bundle")
    golden = [p["bytes"] for p in Dataset.open(dataset).rows("train", [0])["image"].to_pylist()]
    bundle.save(uri, model, {"accuracy": 0.5}, made.model_dump(mode="json"), golden)
    return uri


def answer(capfd: pytest.CaptureFixture[str], *args: str, code: int = 0) -> dict[str, Any]:
    """What --json prints: one line and nothing else."""
    capfd.readouterr()
    assert cli.run([*args, "--json"]) == code
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 1, lines
    found: dict[str, Any] = json.loads(lines[0])
    return found


def test_the_verbs_of_a_model(
    bundle: str, dataset: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    models, registry = str(tmp_path / "models"), ["--models", str(tmp_path / "models")]
    file = str(tmp_path / "pictures" / "cat" / "0.png")
    wrong = tmp_path / "wrong.jpg"
    wrong.write_text("no picture")

    assert answer(capfd, "promote", bundle, "pets", *registry)["version"] == 1
    assert answer(capfd, "promote", bundle, "pets", *registry)["version"] == 2
    assert answer(capfd, "models", *registry)["models"][0]["live"] == 2
    assert answer(capfd, "rollback", "pets", *registry) == {"name": "pets", "version": 1}
    assert cli.run(["models", *registry]) == 0
    assert "pets" in capfd.readouterr().out

    found = answer(capfd, "predict", "pets@2", file, str(tmp_path / "pictures" / "dog"), *registry)
    assert len(found["predictions"]) == 13 and found["predictions"][0]["file"] == file
    found = answer(capfd, "predict", bundle, file, str(wrong), code=2)
    assert [p.get("error", {}).get("reason") for p in found["predictions"]] == [None, "not_a_picture"]
    assert f"{wrong}: " in mistake(capfd, "predict", bundle, str(wrong))

    to = tmp_path / "rows.json"
    found = answer(capfd, "evaluate", "pets", dataset, "--split", "validation", "--out", str(to), *registry)
    assert found["metrics"] == json.loads(to.read_text())["metrics"]
    assert "split" in mistake(capfd, "evaluate", bundle, dataset, "--split", "nothing")
    assert models


def test_embeddings_and_predictions_of_a_data_set(
    bundle: str, dataset: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, pictures = str(tmp_path / "predictions"), tmp_path / "pictures"
    found = answer(capfd, "predict", bundle, dataset, "--out", out)
    assert (found["num_rows"], found["rows"], found["num_errors"], found["out"]) == (24, 24, 0, out)
    assert answer(capfd, "predict", bundle, dataset, "--out", out)["rows"] == 0
    assert "or --out URI" in mistake(capfd, "predict", bundle, dataset)
    assert "no split 'x'" in mistake(capfd, "predict", bundle, dataset, "--split", "x", "--out", out + "x")

    vectors = str(tmp_path / "vectors")
    found = answer(capfd, "embed", "resnet10t-nano", str(pictures), vectors, "--size", "32")
    assert found["num_rows"] == 24 and found["dim"] > 100
    assert "which has its own" in mistake(capfd, "embed", bundle, dataset, vectors + "x", "--size", "32")
    sheet = tmp_path / "sheet.jpg"
    found = answer(capfd, "similar", vectors, "cat/0.png", "--top", "3", "--picture", str(sheet))
    assert len(found["hits"]) == 3
    with Image.open(sheet) as drawn:
        assert drawn.size[0] > 500
    found = answer(capfd, "similar", vectors, str(pictures / "dog" / "3.png"), "--top", "1")
    assert found["hits"][0]["path"] == "dog/3.png" and found["hits"][0]["similarity"] > 0.999
    assert "neither a row" in mistake(capfd, "similar", vectors, "nothing")


def test_sample_and_doctor(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = answer(capfd, "sample", str(tmp_path / "s"), "--per-class", "6", "--size", "32")
    assert found["splits"] == {"train": 40, "validation": 10, "test": 10}
    assert "num_per_class = 2: accepted: 6 or more" in _last(capfd, "sample", str(tmp_path / "t"), "2")
    found = answer(capfd, "doctor")
    assert {"Python", "ray", "torch", "CPU cores", "memory", "GPUs", "object storage"} <= {
        one["name"] for one in found["found"]
    }


def _last(capfd: pytest.CaptureFixture[str], verb: str, target: str, number: str) -> str:
    return mistake(capfd, verb, target, "--per-class", number)


def test_doctor_tells_storage_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from tlray.cli import doctor

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://user:secret@127.0.0.1:9")
    found = doctor._storage()[0]
    assert found.ok is False and "secret" not in found.value + found.hint


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    from tlray import report

    def fail(_: str) -> str:
        raise error

    monkeypatch.setattr(report, "write", fail)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(RunError("workers died"), 2, "tlray: workers died"), (KeyboardInterrupt(), 130, "tlray: interrupted")],
)
def test_what_each_kind_of_end_gives(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fail_with(error, monkeypatch)
    assert cli.run(["report", "x"]) == code
    assert capfd.readouterr().err == said + "\n"
    cli.run(["report", "x", "-v"])
    assert ("Traceback" in capfd.readouterr().err) == (code != 130)


def unexpected(capfd: pytest.CaptureFixture[str], *args: str) -> tuple[str, str]:
    """The last line of an unexpected error, and what lies in the file that it names."""
    assert cli.run(list(args)) == 1
    said = capfd.readouterr().err
    found = re.search(r"the whole traceback is in (\S+)$", said)
    assert found is not None, said
    file = Path(found[1])
    assert file.stat().st_mode & 0o077 == 0  # it may tell of data that others must not see
    text = file.read_text(encoding="utf-8")
    file.unlink()
    return said, text


def test_an_unexpected_error_is_one_line_and_a_file(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    error = ValueError("boom\nmore")
    error.add_note("cats.csv, row 7")
    fail_with(error, monkeypatch)
    said, whole = unexpected(capfd, "report", "https://me:hush@host/x")
    assert said.startswith("tlray: unexpected ValueError: boom (cats.csv, row 7); a fault of tlray's")
    assert said.count("\n") == 1
    assert "Traceback" in whole and "boom\nmore" in whole and "tlray report https://(hidden)@host/x" in whole
    said, whole = unexpected(capfd, "report", "x", "-v")
    assert "Traceback" in said and "Traceback" in whole


def test_an_unexpected_error_where_no_file_can_be_made(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(**_: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    fail_with(MemoryError(), monkeypatch)
    monkeypatch.setattr("tlray.cli.fault.tempfile", SimpleNamespace(mkstemp=full))
    assert cli.run(["report", "x"]) == 1
    said = capfd.readouterr().err
    assert said.startswith("Traceback") and "\ntlray: unexpected MemoryError; a fault" in said
    assert said.endswith("traceback is above (No space left on device)\n")


@pytest.mark.parametrize("verb", sorted(VERBS - {"cache"}))
def test_a_bug_in_any_verb_ends_in_one_place(
    verb: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    args = {
        "sample": ["to"], "ingest": ["from", "to"], "train": [RECIPE], "tune": [RECIPE], "rank": [RECIPE],
        "evaluate": ["b", "d"], "predict": ["b", "d"], "promote": ["b", "n"], "rollback": ["n"],
        "report": ["r"], "embed": ["b", "d", "to"], "similar": ["v", "1"], "serve": ["n"],
    }.get(verb, [])  # fmt: skip

    def boom(*_: Any, **__: Any) -> None:
        raise LookupError("boom")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tlray.cli.output.Output.__init__", boom)
    said, whole = unexpected(capfd, verb, *args)
    assert said.startswith("tlray: unexpected LookupError: boom; a fault of tlray's") and "in boom" in whole


def test_what_a_task_of_ray_raised_is_told(
    ray_local: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray.exceptions

    def raised(error: Exception) -> Exception:
        @ray.remote
        def work() -> None:
            with errors.about("cat/3.png"):
                raise error

        with pytest.raises(ray.exceptions.RayTaskError) as caught:
            ray.get(work.remote())
        return caught.value

    fail_with(raised(ZeroDivisionError("by zero")), monkeypatch)
    said, whole = unexpected(capfd, "report", "x")
    assert said.startswith("tlray: unexpected ZeroDivisionError: by zero (cat/3.png); ")
    assert "in work" in whole
    fail_with(raised(DataError("cat/4.png: is a dog")), monkeypatch)
    assert mistake(capfd, "report", "x") == "tlray: cat/4.png: is a dog"
