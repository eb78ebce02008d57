from __future__ import annotations

import concurrent.futures
import http.server
import json
import multiprocessing
import os
import pickle
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tlray import storage
from tlray.errors import StorageError

SECRET = "testing-secret"


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place of each kind."""
    if request.param == "local":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3_uri')}/store"


def fill(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def contents(uri: str) -> dict[str, str]:
    return {f.path: storage.read_bytes(storage.join(uri, f.path)).decode() for f in storage.walk(uri)}


@pytest.mark.parametrize(
    ("uri", "parts", "joined"),
    [
        ("a", ("b", "c"), "a/b/c"),
        ("a/", ("/b/",), "a/b"),
        ("/", ("b",), "/b"),
        ("s3://b", ("k",), "s3://b/k"),
        ("s3://b/k/", (), "s3://b/k"),
    ],
)
def test_join(uri: str, parts: tuple[str, ...], joined: str) -> None:
    assert storage.join(uri, *parts) == joined


def test_names_of_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.name("s3://b/runs/one/") == "one"
    assert storage.parent("s3://b/runs/one/") == "s3://b/runs"
    assert storage.absolute("runs") == str(tmp_path / "runs")
    assert storage.absolute("file:///x/y/") == "/x/y"
    assert storage.absolute("s3://b//k/") == "s3://b/k"
    assert storage.is_local("runs") and storage.is_local("file:///x") and not storage.is_local("s3://b")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("gs://b/x", "gs"),
        ("s3:/b/x", "s3"),
        ("s3://", "bucket"),
        ("s3:b/x", "s3://bucket/key"),
        ("", "local path"),
    ],
)
def test_uris_that_are_none(uri: str, said: str) -> None:
    with pytest.raises(StorageError, match=said):
        storage.exists(uri)


def test_uri_with_credentials_is_refused_and_not_repeated() -> None:
    with pytest.raises(StorageError) as caught:
        storage.read_bytes("s3://KEY:hush@bucket/x")
    assert "hush" not in str(caught.value) and "KEY" not in str(caught.value)


def test_files(root: str) -> None:
    assert not storage.exists(root)
    storage.write_bytes(f"{root}/a/one.txt", b"1")
    storage.write_json(f"{root}/b.json", {"z": 1, "a": "ü"})
    storage.write_bytes(f"{root}/.hidden/x", b"x")
    storage.write_bytes(f"{root}/a/one.txt", b"22")
    assert storage.read_bytes(f"{root}/a/one.txt") == b"22"
    assert storage.read_bytes(f"{root}/b.json") == '{\n  "a": "ü",\n  "z": 1\n}\n'.encode()
    assert storage.read_json(f"{root}/b.json") == {"z": 1, "a": "ü"}
    assert storage.listdir(root) == ["a", "b.json"]
    assert storage.walk(root) == [storage.FileInfo("a/one.txt", 2), storage.FileInfo("b.json", 26)]
    assert storage.walk(f"{root}/b.json") == [storage.FileInfo("", 26)]
    assert storage.is_dir(f"{root}/a") and not storage.is_dir(f"{root}/b.json")
    storage.delete(f"{root}/a")
    storage.delete(f"{root}/a")
    assert not storage.exists(f"{root}/a/one.txt")
    assert storage.listdir(root) == ["b.json"]


def test_names_with_pattern_signs(root: str) -> None:
    storage.write_bytes(f"{root}/a[1]*.txt", b"1")
    storage.copy_dir(root, f"{root}-copy")
    storage.delete(f"{root}/a[1]*.txt")
    assert not storage.exists(f"{root}/a[1]*.txt")
    assert contents(f"{root}-copy") == {"a[1]*.txt": "1"}


def test_missing_things_say_where(root: str) -> None:
    storage.write_bytes(f"{root}/there", b"")
    for call in (storage.read_bytes, storage.listdir, storage.walk, storage.read_json):
        with pytest.raises(StorageError, match="nope: not found"):
            call(f"{root}/nope")
    with pytest.raises(StorageError, match="nope: not found"), storage.local_copy(f"{root}/nope"):
        pass
    with pytest.raises(StorageError, match="not a"):
        storage.listdir(f"{root}/there")


def test_damaged_json(root: str) -> None:
    storage.write_bytes(f"{root}/x.json", b"{")
    with pytest.raises(StorageError, match=r"x\.json: no valid JSON"):
        storage.read_json(f"{root}/x.json")


def test_open_fs_reads_ranges(root: str) -> None:
    storage.write_bytes(f"{root}/x", b"0123456789")
    fs, path = storage.open_fs(f"{root}/x")
    with pickle.loads(pickle.dumps(fs)).open_input_file(path) as file:
        assert file.read_at(3, 4) == b"456"
    assert SECRET.encode() not in pickle.dumps(fs)


def test_folders_go_up_and_down(root: str, tmp_path: Path) -> None:
    fill(tmp_path / "src", a="1", deep__b="2")
    storage.upload(tmp_path / "src", root)
    storage.copy_dir(root, f"{root}-copy")
    storage.download(f"{root}-copy", tmp_path / "down")
    assert contents(str(tmp_path / "down")) == {"a": "1", "deep/b": "2"}
    with storage.local_copy(root) as folder:
        assert (folder / "deep/b").read_text() == "2"
    with storage.local_copy(f"{root}/deep/b") as file:
        assert file.read_text() == "2"
    assert file.exists() == storage.is_local(root)


def test_publish_puts_all_or_nothing(root: str) -> None:
    uri = f"{root}/deep/bundle"
    with pytest.raises(RuntimeError), storage.publish(uri, "m.json") as folder:
        fill(folder, a="1")
        raise RuntimeError
    assert not storage.exists(uri)
    with storage.publish(uri, "m.json") as folder:
        fill(folder, **{"m.json": "{}"}, a="1", deep__b="2")
        assert not storage.exists(f"{uri}/m.json")
    assert contents(uri) == {"m.json": "{}", "a": "1", "deep/b": "2"}
    assert storage.listdir(f"{root}/deep") == ["bundle"]
    assert not folder.exists()


def test_publish_replaces_the_old_one_and_keeps_it_on_failure(root: str) -> None:
    with storage.publish(root, "m.json") as folder:
        fill(folder, **{"m.json": "1"}, gone="1")
    with pytest.raises(RuntimeError), storage.publish(root, "m.json") as folder:
        fill(folder, **{"m.json": "2"})
        raise RuntimeError
    assert contents(root) == {"m.json": "1", "gone": "1"}
    with storage.publish(root, "m.json") as folder:
        fill(folder, **{"m.json": "2"}, new="2")
    assert contents(root) == {"m.json": "2", "new": "2"}
    assert not storage.unfinished(root)


def test_publish_never_touches_other_peoples_files(root: str) -> None:
    storage.write_bytes(f"{root}/holiday.jpg", b"1")
    with pytest.raises(StorageError, match=r"holds other files \(holiday\.jpg\)"), storage.publish(root, "m"):
        pytest.fail("the block must not run")
    with (
        pytest.raises(StorageError, match="is a file"),
        storage.publish(f"{root}/holiday.jpg", "m"),
    ):
        pytest.fail("the block must not run")
    assert storage.listdir(root) == ["holiday.jpg"]


def test_local_publish_without_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_exchange", lambda one, other: False)
    for text in ("1", "2"):
        with storage.publish(str(tmp_path / "x"), "m") as folder:
            fill(folder, m=text)
    assert contents(str(tmp_path / "x")) == {"m": "2"}
    assert os.listdir(tmp_path) == ["x"]


def test_local_publish_sweeps_what_dead_processes_left(tmp_path: Path) -> None:
    old, young = tmp_path / ".x.tmp-aaaa", tmp_path / ".x.tmp-bbbb"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    with storage.publish(str(tmp_path / "x"), "m") as folder:
        fill(folder, m="1")
    assert sorted(os.listdir(tmp_path)) == [young.name, "x"]


def test_sweep(root: str) -> None:
    with storage.publish(f"{root}/whole", "m") as folder:
        fill(folder, m="1", data="1")
    storage.write_bytes(f"{root}/other/.hidden", b"2")
    dead = f"{root}/.half.tmp-0123abcd"
    storage.write_bytes(f"{dead}/data", b"3")
    gone = [".half.tmp-0123abcd"]
    if not storage.is_local(root):
        storage.write_bytes(f"{root}/half/data", b"4")
        storage.write_bytes(f"{root}/half/.unfinished", b"")
        storage.write_bytes(f"{root}/whole/.unfinished", b"")  # died before its very last step
        gone += ["half", "whole"]
    assert storage.sweep(root, "m", age_s=60) == []  # somebody may be writing
    assert storage.exists(f"{dead}/data")
    assert storage.sweep(root, "m", age_s=-60) == gone
    assert not storage.exists(dead)
    assert not storage.exists(f"{root}/half")
    assert not storage.unfinished(f"{root}/whole")
    assert contents(f"{root}/whole") == {"m": "1", "data": "1"}
    assert storage.read_bytes(f"{root}/other/.hidden") == b"2"
    assert storage.sweep(root, "m", age_s=-60) == []
    assert storage.sweep(f"{root}/nowhere", "m", age_s=-60) == []


def test_sweep_leaves_who_still_writes(tmp_path: Path) -> None:
    """A staging folder made long ago, in which a file is new."""
    with storage.publish(str(tmp_path / "x"), "m") as folder:
        fill(folder, m="1")
        os.utime(folder, (0, 0))
        assert storage.sweep(str(tmp_path), "m") == []
        os.utime(folder / "m", (0, 0))
        os.utime(folder, None)
        assert storage.sweep(str(tmp_path), "m") == []
    assert contents(str(tmp_path)) == {"x/m": "1"}


def test_a_reader_never_sees_half_a_folder(tmp_path: Path) -> None:
    """While a writer replaces a folder, its marker and its data, opened in one folder, always agree."""
    uri, stop, seen = str(tmp_path / "x"), threading.Event(), []

    def publish(text: str) -> None:
        with storage.publish(uri, "m") as folder:
            fill(folder, m=text, data=text)

    def read() -> None:
        while not stop.is_set():
            fd = os.open(uri, os.O_RDONLY)  # FileNotFoundError would fail the test: it is never absent
            try:
                with (
                    open(os.open("m", os.O_RDONLY, dir_fd=fd)) as m,
                    open(os.open("data", 0, dir_fd=fd)) as d,
                ):
                    seen.append(m.read() == d.read())
            except FileNotFoundError:
                pass  # the folder that we hold open has been replaced and removed
            finally:
                os.close(fd)

    publish("0")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        for number in range(1, 60):
            publish(str(number))
        stop.set()
        reader.result()
    assert seen and all(seen)


def test_s3_publish_writes_the_marker_last(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, order, real = f"{s3_uri}/x", [], storage._upload

    def upload(folder: Path, files: list[str], target: str) -> None:
        assert storage.unfinished(uri)
        assert not storage.exists(f"{uri}/m")
        order.extend(files)
        real(folder, files, target)

    monkeypatch.setattr(storage, "_upload", upload)
    with storage.publish(uri, "m") as folder:
        fill(folder, m="1", a="1", z="1")
    assert order == ["a", "z", "m"]


@pytest.mark.parametrize("old", [False, True])
def test_s3_publish_cleans_up_after_a_fault(s3_uri: str, monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    uri, real = f"{s3_uri}/x", storage._upload
    if old:
        with storage.publish(uri, "m") as folder:
            fill(folder, m="old")

    def upload(folder: Path, files: list[str], target: str) -> None:
        real(folder, files[:1], target)
        raise StorageError("fault")

    monkeypatch.setattr(storage, "_upload", upload)
    with pytest.raises(StorageError, match="fault"), storage.publish(uri, "m") as folder:
        fill(folder, m="new", a="1", b="2")
    fs, path = storage.open_fs(s3_uri)
    assert sorted(fs.handler.fs.find(path)) == ([f"{path}/x/m"] if old else [])
    if old:
        assert contents(uri) == {"m": "old"}


def test_s3_two_writers_of_one_fresh_target(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second takes nothing away that the first has there already."""
    uri, real, calls = f"{s3_uri}/x", storage._upload, list[list[str]]()

    def upload(folder: Path, files: list[str], target: str) -> None:
        calls.append(files)
        if len(calls) == 2:
            assert contents(uri).keys() >= {"a", "b"}
        real(folder, files, target)
        if len(calls) == 1:
            with storage.publish(uri, "m") as other:
                fill(other, a="1", b="2", m="1")

    monkeypatch.setattr(storage, "_upload", upload)
    with storage.publish(uri, "m") as folder:
        fill(folder, a="1", b="2", m="1")
    assert calls == [["a", "b"], ["a", "b"], ["m"], ["m"]]
    assert contents(uri) == {"a": "1", "b": "2", "m": "1"}


def test_s3_publish_goes_over_what_a_killed_one_left(s3_uri: str) -> None:
    uri = f"{s3_uri}/x"
    storage.write_bytes(f"{uri}/.unfinished", b"")
    storage.write_bytes(f"{uri}/stale", b"")
    with storage.publish(uri, "m") as folder:
        fill(folder, m="1")
    assert contents(uri) == {"m": "1"} and not storage.unfinished(uri)


def test_write_new_has_one_winner(root: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda i: storage.write_new(f"{root}/lock", str(i).encode()), range(8)))
    assert won.count(True) == 1
    assert storage.read_bytes(f"{root}/lock") == str(won.index(True)).encode()


def test_update_json_loses_no_change(root: str) -> None:
    def add(number: int) -> None:
        storage.update_json(f"{root}/x.json", lambda old: [*(old or []), number])

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(8)))
    assert sorted(storage.read_json(f"{root}/x.json")) == list(range(8))
    assert storage.listdir(root) == ["x.json"]


def _in_child(uri: str, queue: multiprocessing.Queue[bytes]) -> None:
    queue.put(storage.read_bytes(uri))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_works_after_a_fork(s3_uri: str) -> None:
    storage.write_bytes(f"{s3_uri}/x", b"1")
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[bytes] = context.Queue()
    child = context.Process(target=_in_child, args=(f"{s3_uri}/x", queue))
    child.start()
    assert queue.get(timeout=20) == b"1"
    child.join(10)
    assert storage.read_bytes(f"{s3_uri}/x") == b"1"


# ---- faults: one line each, nothing secret


def one_line(caught: pytest.ExceptionInfo[StorageError]) -> str:
    text = str(caught.value)
    assert "\n" not in text and SECRET not in text and len(text) < 250
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    return text


def test_missing_bucket(s3_uri: str) -> None:
    for call in (storage.read_bytes, storage.listdir, lambda uri: storage.write_bytes(uri, b"")):
        with pytest.raises(StorageError) as caught:
            call("s3://no-such-bucket/x")
        assert one_line(caught).startswith("s3://no-such-bucket: bucket not found")


@pytest.mark.parametrize("user", ["", "me:hush@"])
def test_unreachable_endpoint(s3_uri: str, monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{user}127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(StorageError) as caught:
        storage.listdir(f"{s3_uri}/x")
    text = one_line(caught)
    assert "127.0.0.1:9 cannot be reached" in text and "hush" not in text
    assert time.monotonic() - start < 30


def test_endpoint_of_s3_alone_goes_first(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    storage.write_bytes(f"{s3_uri}/x", b"1")
    assert storage.read_bytes(f"{s3_uri}/x") == b"1"


def test_profile(s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text(
        f"[profile here]\nregion = us-east-1\nendpoint_url = {os.environ['AWS_ENDPOINT_URL']}\n"
        "aws_access_key_id = a\naws_secret_access_key = b\n"
    )
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "here")
    storage.write_bytes(f"{s3_uri}/x", b"1")
    assert storage.exists(f"{s3_uri}/x")


def test_no_credentials(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StorageError) as caught:
        storage.listdir(f"{s3_uri}/x")
    assert "no usable AWS credentials" in one_line(caught)


@contextmanager
def answering(status: int, code: str, times: int, then: str) -> Iterator[tuple[str, list[str]]]:
    """A proxy that answers the first requests with a fault and passes the others on."""
    met: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            met.append(self.path)
            if len(met) <= times:
                body, answer = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode(), status
            else:
                with urllib.request.urlopen(then + self.path, timeout=10) as inner:
                    body, answer = inner.read(), inner.status
            self.send_response(answer)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", met
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError")])
def test_transient_faults_are_tried_again(
    s3_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
) -> None:
    storage.write_bytes(f"{s3_uri}/x", b"1")
    with answering(status, code, 2, os.environ["AWS_ENDPOINT_URL"]) as (endpoint, met):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert storage.listdir(s3_uri) == ["x"]
    assert len(met) == 3


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [(403, "AccessDenied", "access denied"), (403, "SignatureDoesNotMatch", "access denied")],
)
def test_denied_is_said_at_once(
    s3_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    said: str,
) -> None:
    with answering(status, code, 99, "") as (endpoint, met):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StorageError) as caught:
            storage.listdir(s3_uri)
    assert said in one_line(caught) and code in one_line(caught)
    assert len(met) == 1


def test_bounded(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(500, "InternalError", 99, "") as (endpoint, met):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StorageError) as caught:
            storage.listdir(s3_uri)
    assert "InternalError" in one_line(caught)
    assert len(met) <= 8


def test_faults_leaves_our_own_mistakes_alone(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), storage.faults("s3://b/x"):
        print(1 / 0)
    with pytest.raises(TypeError), storage.faults(str(tmp_path)):
        json.dumps(object())


def test_local_faults(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/x: (file exists|not a directory)"):
        storage.write_bytes(str(tmp_path / "file/x"), b"")
    with pytest.raises(StorageError, match="is a directory"):
        storage.read_bytes(str(tmp_path))


def test_pipes_and_devices_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "null.jpg").symlink_to("/dev/null")
    (tmp_path / "b.jpg").write_bytes(b"x")
    assert [file.path for file in storage.walk(str(tmp_path))] == ["b.jpg"]
    seen = storage.tree(str(tmp_path))
    assert (seen.files, seen.special) == (["b.jpg"], ["a.jpg", "null.jpg"])
    for name in ("a.jpg", "null.jpg"):
        for read in (storage.read_bytes, storage.walk, lambda uri: storage.read_head(uri, 9)):
            with pytest.raises(StorageError, match=rf"{name}: is a pipe, a socket or a device; accepted"):
                read(str(tmp_path / name))


def test_threads_work_in_order() -> None:
    def slower_first(n: int) -> int:
        time.sleep((n % 4 == 0) / 100)
        return n

    assert list(storage.in_threads(slower_first, range(40), 4, 8)) == list(range(40))
    with pytest.raises(ZeroDivisionError):
        list(storage.in_threads(lambda n: 1 // n, [1, 0], 2, 2))


def test_an_iterator_that_is_left_early_waits_for_no_thread() -> None:
    """The garbage collector may be what ends it, inside a lock that waiting needs: then both would hang."""
    go_on = threading.Event()
    late = threading.Timer(20, go_on.set)  # a wait ends, and is seen
    late.start()
    begun: list[int] = []

    def work(n: int) -> int:
        begun.append(n)
        if n:
            go_on.wait()
        return n

    results = storage.in_threads(work, range(8), 2, 8)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert not go_on.is_set()
    go_on.set()
    late.cancel()
    late.join()
    assert len(begun) < 8, "what nobody asks for is not begun any more"
