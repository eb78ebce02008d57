"""Places that results go to, tried before the work: on disk, on S3, and by each verb of the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.test_cli import RECIPE, mistake
from tlray import storage
from tlray.errors import StorageError
from tlray.storage import targets


def said(uri: str, check: Any = targets.check_folder, **settings: Any) -> str:
    with pytest.raises(StorageError) as caught:
        check(uri, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_trying_leaves_nothing_behind(tmp_path: Path, s3_uri: str) -> None:
    for root in (str(tmp_path), s3_uri):
        targets.check_folder(f"{root}/a/b")
        targets.check_folder(f"{root}/a/b", beside=True)
        targets.check_file(f"{root}/a/b.json")
    targets.check_folder(f"file://{tmp_path}/new")
    assert os.listdir(tmp_path) == [] and not storage.exists(f"{s3_uri}/a")


def test_what_stands_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    assert "file: is a file; accepted: a folder" in said(f"{tmp_path}/file")
    assert f"{tmp_path}/file is a file; accepted: a place below" in said(f"{tmp_path}/file/a/b")
    assert "link: is a link that leads nowhere" in said(f"{tmp_path}/link")
    assert "folder: is a folder; accepted: the name of a file" in said(
        f"{tmp_path}/folder", targets.check_file
    )
    assert "is a folder's name" in said(f"{tmp_path}/new/", targets.check_file)
    # Renaming a finished file onto these would take the pipe or the device away.
    assert "is a pipe, a socket or a device" in said(f"{tmp_path}/pipe", targets.check_file)
    assert "is a pipe, a socket or a device" in said("/dev/null", targets.check_file)
    assert "/proc cannot be written" in said("/proc/new/place")
    assert "where a disk is mounted" in said("/proc", beside=True)
    assert "300 bytes; accepted: up to" in said(f"{tmp_path}/{'x' * 300}")
    assert "no UTF-8" in said(f"{tmp_path}/\udcff")


def test_a_place_that_this_user_may_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(targets.os, "mkdir", denied)  # the tests may run as root, whom nothing is denied
    assert f"{tmp_path} cannot be written (permission denied)" in said(f"{tmp_path}/a/b")


def test_a_bucket_that_is_not_there(s3_uri: str) -> None:
    assert "s3://no-such-bucket: bucket not found; make it first" in said("s3://no-such-bucket/runs/a")


SPELT = [
    ("C:\\data\\out", "C: is a drive of Windows; accepted: a path as /data/pictures"),
    ("d:/data/out", "d: is a drive of Windows"),
    ("file:///C:/data/out", "C: is a drive of Windows"),
    ("\\\\server\\share", "is a share of Windows"),
    ("out\\new", "backslashes are no separators here, as in 'out/new'"),
    ("out%20new", "as in 'out new'"),
    ("file:///tmp/out%20new", "as in '/tmp/out new'"),
    (" out", "blanks stand around it, as in 'out'"),
    ("'out'", "quotes stand around it, as in 'out'"),
    ("s3:/bucket/out", "no bucket; accepted: s3://bucket/key"),
    ("s3:bucket/out", "no URI; accepted: a local path, file:///path, s3://bucket/key"),
    ("gs://bucket/out", "not served; accepted: a local path"),
    ("file://out/new", "'out' stands where a machine's name does; accepted: file:///path"),
    ("~no-such-user/out", "no home of that name here; accepted: ~/..."),
    ("out\0new", "zero byte"),
    ("", "no URI"),
]


@pytest.mark.parametrize(("uri", "why"), SPELT)
def test_spellings_of_other_systems(
    uri: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert why in said(uri)
    assert why in said(uri, targets.check_file)
    assert os.listdir(tmp_path) == []


def test_an_odd_name_that_is_there_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("out\\new", "out%20new", " out", "~no-such-user"):
        Path(tmp_path, name).mkdir()
        targets.check_folder(name)


def test_home_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    targets.check_folder("~/runs")
    monkeypatch.setenv("HOME", "/dev/null")
    assert "~/runs: /dev/null is a pipe, a socket or a device" in said("~/runs")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with labelled pictures, something that passes for a bundle, and a file in the way."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for n in range(3):
            Image.effect_noise((32, 32), 10 + n).save(tmp_path / "in" / name / f"{n}.png")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    (tmp_path / "wall").write_text("mine")
    return tmp_path


VERBS = {
    "sample": ["sample", "OUT"],
    "ingest": ["ingest", "in", "OUT"],
    "train": ["train", RECIPE, "data.uri=in", "runs=OUT"],
    "tune": ["tune", RECIPE, "data.uri=in", "runs=OUT"],
    "cache": ["tune", RECIPE, "data.uri=in", "search.cache=OUT"],
    "evaluate": ["evaluate", "bundle", "in", "--out", "OUT"],
    "predict": ["predict", "bundle", "in", "--out", "OUT"],
    "embed": ["embed", "bundle", "in", "OUT"],
    "similar": ["similar", "vectors", "1", "--picture", "OUT"],
    "promote": ["promote", "bundle", "pets", "--models", "OUT"],
    "quickstart": ["quickstart", "in", "--work", "OUT"],
}


@pytest.mark.parametrize(
    ("place", "why"),
    [("wall/x", "is a file; accepted"), ("out%20new", "as in 'out new"), ("C:\\out", "drive of Windows")],
)
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_tries_its_place_first(
    verb: str, place: str, why: str, made: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def start(verbose: bool = False) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr("tlray.runtime.session", start)
    monkeypatch.setattr("tlray.bundle.registry.verify", lambda uri: start())
    before = sorted(os.listdir(made))
    assert why in mistake(capfd, *(word.replace("OUT", place) for word in VERBS[verb]))
    assert sorted(os.listdir(made)) == before and (made / "wall").read_text() == "mine"


def test_places_to_read_are_suggested(made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quoted = f"file://{made}/in%2Fcat"
    for args in (
        ["ingest", ".\\in", "out"],
        ["train", RECIPE, "data.uri=.\\in"],
        ["predict", "bundle", ".\\in", "--out", "out"],
        ["predict", "bundle", ".\\in"],
        ["quickstart", ".\\in"],
        ["evaluate", "bundle", ".\\in"],
    ):
        assert mistake(capfd, *args).endswith("/in'?")
    assert f"did you mean 'file://{made}/in/cat'?" in mistake(capfd, "ingest", quoted, "out")
    assert "drive of Windows" in mistake(capfd, "predict", "bundle", "C:\\in")
