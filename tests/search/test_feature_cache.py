from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tlray import cli, storage
from tlray.errors import StorageError
from tlray.search import feature_cache as module
from tlray.search.feature_cache import FeatureCache, Key, Shards

KEY = Key("data0", "train", '{"size": 32}', "resnet@0123", "3 of 1,2,3", "fp32")
SHAPES: dict[str, tuple[int, ...]] = {"stage1": (3, 4, 5), "pooled": (8,), "one": ()}
ROW_BYTES = 4 * (60 + 8 + 1)


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty cache of each kind."""
    if request.param == "local":
        return str(tmp_path / "cache")
    return f"{request.getfixturevalue('s3_uri')}/cache"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows in a part of fp32, fourteen of the others."""
    monkeypatch.setattr(module, "PART_BYTES", 7 * ROW_BYTES)


@pytest.fixture
def large_parts(small_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an entry takes little more than its rows."""
    monkeypatch.setattr(module, "PART_BYTES", 2**18)


def key(name: str = "data0", dtype: str = "fp32") -> Key:
    return dataclasses.replace(KEY, data=name, dtype=dtype)


def outputs(num_rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal((num_rows, *shape)) * 10 ** rng.uniform(-9, 3, (num_rows, *shape))).astype(
            np.float32
        )
        for name, shape in SHAPES.items()
    }


def fill(cache: FeatureCache, key: Key, rows: dict[str, np.ndarray], batch: int = 5) -> None:
    num_rows = len(rows["pooled"])
    with cache.write(key, num_rows) as writer:
        for start in range(0, num_rows, batch):
            writer.add({name: x[start : start + batch] for name, x in rows.items()})


def found(cache: FeatureCache, key: Key) -> Shards:
    shards = cache.find(key)
    assert shards is not None
    return shards


def same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """Bit by bit."""
    assert got.keys() == want.keys()
    for name, x in want.items():
        assert (got[name].dtype, got[name].shape) == (np.float32, x.shape)
        assert got[name].tobytes() == x.tobytes(), name


def everything(folder: str) -> list[str]:
    return sorted(os.path.relpath(os.path.join(at, f), folder) for at, _, fs in os.walk(folder) for f in fs)


def test_digests() -> None:
    assert len(KEY.digest) == 16
    other = [dataclasses.replace(KEY, **{field.name: "bf16"}) for field in dataclasses.fields(Key)]
    assert len({one.digest for one in [KEY, *other]}) == 7
    assert KEY.digest == Key(**dataclasses.asdict(KEY)).digest == "35c9934ff1b4187b"  # what lies in caches


def test_what_is_written_is_found_bit_by_bit(uri: str) -> None:
    cache, rows = FeatureCache(uri), outputs(30)
    rows["pooled"][3, :4] = [np.nan, np.inf, -0.0, 1e-45]
    assert cache.find(KEY) is None
    assert KEY not in cache
    fill(cache, KEY, rows)
    assert KEY in cache
    with found(FeatureCache(uri), KEY) as shards:
        assert (shards.num_rows, shards.shapes) == (30, SHAPES)
        assert shards.max_error == {"stage1": 0.0, "pooled": 0.0, "one": 0.0}
        assert shards.nbytes > 30 * ROW_BYTES
        same(shards.gather(np.arange(30)), rows)
        some = np.array([29, 6, 7, 0, 7, 28])
        same(shards.gather(some), {name: x[some] for name, x in rows.items()})
        same(shards.gather(some[:0]), {name: x[:0] for name, x in rows.items()})
        for bad in (-1, 30):
            with pytest.raises(IndexError, match=r"accepted: 0 \.\.\. 29"):
                shards.gather([0, bad])
    assert cache.find(key("other")) is None
    names = [f"part-{n:05d}.arrow" for n in range(5)]
    assert storage.listdir(storage.join(uri, KEY.digest)) == ["entry.json", *names]
    (entry,) = cache.ls()
    assert (entry.digest, entry.key, entry.rows) == (KEY.digest, KEY, 30)
    sizes = [f.size for f in storage.walk(storage.join(uri, KEY.digest)) if f.path.endswith(".arrow")]
    assert entry.bytes == shards.nbytes == sum(sizes)


def nearest_bf16(x: np.ndarray) -> np.ndarray:
    """The nearer one of the two neighbours; of two as near, the one whose last bit is 0."""
    below = x.view(np.uint32) & 0xFFFF0000
    above = below + 0x10000  # away from zero
    low, high = (np.abs(x.astype(np.float64) - n.view(np.float32)) for n in (below, above))
    up = (high < low) | ((high == low) & (below & 0x10000 != 0))
    return np.where(up, above, below).astype(np.uint32).view(np.float32)


@pytest.fixture(params=[False, True], ids=["", "flushed"])
def denormals(request: pytest.FixtureRequest) -> Any:
    """As they are, and flushed to 0 as training has them."""
    torch.set_flush_denormal(request.param)
    yield
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_rounding_is_to_nearest_and_its_error_is_stated(denormals: None, tmp_path: Path, dtype: str) -> None:
    cache, rows = FeatureCache(str(tmp_path)), outputs(30)
    # Ties, to even in both directions; subnormals of fp16; zeros; the largest.
    rows["pooled"][0] = [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 1e-7, -6e-8, -0.0, 65504]
    fill(cache, key(dtype=dtype), rows)
    with found(cache, key(dtype=dtype)) as shards:
        got = shards.gather(np.arange(30))
        for name, x in rows.items():
            nearest = x.astype(np.float16).astype(np.float32) if dtype == "fp16" else nearest_bf16(x)
            assert np.array_equal(got[name], nearest)
            assert shards.max_error[name] == np.abs(got[name] - x).max() > 0
        order = np.random.default_rng(1).permutation(30)
        same(shards.gather(order), {name: x[order] for name, x in got.items()})
    (entry,) = cache.ls()
    assert entry.max_error == shards.max_error
    assert entry.bytes < 30 * ROW_BYTES / 2 + 3 * 3000  # three parts with a header and a footer


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("wide", [0, 10**9])
def test_wide_and_narrow_rows_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, wide: int
) -> None:
    rows, cache = outputs(40), FeatureCache(str(tmp_path))
    fill(cache, key(dtype=dtype), rows)
    order = np.random.default_rng(1).integers(0, 40, 100)
    with found(cache, key(dtype=dtype)) as shards:
        monkeypatch.setattr(module, "_WIDE", wide)
        got = shards.gather(order)
    for name, x in rows.items():
        assert np.abs(got[name] - x[order]).max() <= shards.max_error[name]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65505.0])
def test_values_that_a_type_cannot_hold(tmp_path: Path, value: float) -> None:
    rows, cache = outputs(30), FeatureCache(str(tmp_path))
    rows["pooled"][17, 2] = value
    with pytest.raises(StorageError, match=r"pooled: .* 65504, the largest of fp16; accepted: bf16, fp32"):
        fill(cache, key(dtype="fp16"), rows)
    if np.isfinite(value):
        fill(cache, key(dtype="bf16"), rows)
    else:
        with pytest.raises(StorageError, match=r"the largest of bf16; accepted: fp32"):
            fill(cache, key(dtype="bf16"), rows)
        assert everything(str(tmp_path)) == []


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shards, dict[str, np.ndarray]]]:
    cache, rows = FeatureCache(str(tmp_path_factory.mktemp("kept"))), outputs(53)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART_BYTES", 7 * ROW_BYTES)
        fill(cache, KEY, rows, batch=17)
    with found(cache, KEY) as shards:
        yield shards, rows


@settings(deadline=None)  # a machine may be busy
@given(st.lists(st.integers(0, 52), max_size=80))
def test_gather_in_any_order(kept: tuple[Shards, dict[str, np.ndarray]], wanted: list[int]) -> None:
    shards, rows = kept
    same(shards.gather(np.array(wanted, np.int64)), {name: x[wanted] for name, x in rows.items()})


def test_files_are_plain_arrow(tmp_path: Path) -> None:
    cache, rows = FeatureCache(str(tmp_path)), outputs(10)
    fill(cache, key(dtype="fp16"), rows)
    with pa.memory_map(str(tmp_path / key(dtype="fp16").digest / "part-00000.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table.schema.field("stage1").type == pa.fixed_shape_tensor(pa.float16(), (3, 4, 5))
    read = table["stage1"].chunk(0).to_numpy_ndarray()
    assert np.array_equal(read, rows["stage1"].astype(np.float16))


def test_what_fails_leaves_nothing(uri: str) -> None:
    cache, rows = FeatureCache(uri), outputs(30)
    with pytest.raises(RuntimeError, match="power"), cache.write(KEY, 30) as writer:
        writer.add(rows)
        raise RuntimeError("power")
    with pytest.raises(StorageError, match="30 rows of 31; nothing is kept"), cache.write(KEY, 31) as writer:
        writer.add(rows)
    with pytest.raises(StorageError, match="more than the 29 rows"), cache.write(KEY, 29) as writer:
        writer.add(rows)
    with pytest.raises(AssertionError, match="other names or shapes"), cache.write(KEY, 60) as writer:
        writer.add(rows)
        writer.add({"pooled": rows["pooled"]})
    assert cache.find(KEY) is None
    assert cache.ls() == []
    if storage.is_local(uri):
        assert everything(uri) == []
    else:
        assert not storage.is_dir(uri)


PROCESS = """
import pathlib, sys, time, numpy as np
from tlray.search import feature_cache as cache
uri, name, cache.PART_BYTES, *key = sys.argv[1:]
cache.PART_BYTES = int(cache.PART_BYTES)
rows = dict(np.load(name + ".npz"))
with cache.FeatureCache(uri).write(cache.Key(*key), 30) as writer:
    writer.add({n: x[:20] for n, x in rows.items()})
    pathlib.Path(name + ".begun").touch()
    while not pathlib.Path(name + ".go").exists():
        time.sleep(0.01)
    writer.add({n: x[20:] for n, x in rows.items()})
"""


def writer(uri: str, name: Path, seed: int) -> subprocess.Popen[bytes]:
    """Another process that has written two thirds of KEY, and goes on when NAME.go is there."""
    np.savez(f"{name}.npz", **outputs(30, seed))
    values = [uri, str(name), str(module.PART_BYTES), *dataclasses.astuple(KEY)]
    process = subprocess.Popen([sys.executable, "-c", PROCESS, *values])
    end = time.monotonic() + 120
    while not Path(f"{name}.begun").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    return process


def test_a_killed_writer_leaves_what_gc_removes(tmp_path: Path) -> None:
    uri, cache = str(tmp_path / "cache"), FeatureCache(str(tmp_path / "cache"))
    process = writer(uri, tmp_path / "a", 0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (staging,) = os.listdir(uri)
    assert everything(uri) != []
    assert cache.find(KEY) is None and cache.ls() == []
    assert cache.gc(0) == [] and os.listdir(uri) == [staging]  # for all anyone knows it is at work
    for path in (Path(uri, staging), *Path(uri, staging).iterdir()):
        os.utime(path, (time.time() - module.STALE_S - 1,) * 2)
    fill(cache, KEY, outputs(30))
    assert cache.gc() == []
    assert os.listdir(uri) == [KEY.digest]
    same(found(cache, KEY).gather(range(30)), outputs(30))


def test_a_slow_writer_is_not_taken_for_dead(tmp_path: Path) -> None:
    cache, rows = FeatureCache(str(tmp_path)), outputs(2)
    with cache.write(KEY, 2) as writer:
        (staging,) = tmp_path.iterdir()
        os.utime(staging, (0, 0))
        writer.add({name: x[:1] for name, x in rows.items()})  # fills no part: no file is written
        assert cache.sweep() == []
        writer.add({name: x[1:] for name, x in rows.items()})
    same(found(cache, KEY).gather([0, 1]), rows)


def test_two_processes_write_the_same_key(uri: str, tmp_path: Path) -> None:
    first, second = writer(uri, tmp_path / "a", 1), writer(uri, tmp_path / "b", 2)
    Path(tmp_path / "a.go").touch()
    assert first.wait() == 0
    cache, every = FeatureCache(uri), range(30)
    early = found(cache, KEY)
    same(early.gather(every), outputs(30, 1))
    Path(tmp_path / "b.go").touch()
    assert second.wait() == 0
    late = found(FeatureCache(uri), KEY)
    same(late.gather(every), outputs(30, 1))  # the second was too late: an entry does not change
    same(early.gather(every), outputs(30, 1))
    fill(cache, KEY, outputs(30, 3))  # one who has seen that it is there means to replace it
    same(found(cache, KEY).gather(every), outputs(30, 3))
    same(early.gather(every), outputs(30, 1))
    assert len(cache.ls()) == 1
    assert not [path for path in everything(uri) if "tmp" in path]


def test_readers_outlive_the_entry(uri: str) -> None:
    cache = FeatureCache(uri)
    fill(cache, KEY, outputs(30))
    shards = found(cache, KEY)
    assert [entry.digest for entry in cache.rm([KEY.digest])] == [KEY.digest]
    assert cache.find(KEY) is None
    same(shards.gather(range(30)), outputs(30))


def test_a_copy_of_s3_is_made_once_and_leaves_no_files(
    s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fetched: list[str] = []
    download = storage.download

    def counted(uri: str, local_dir: Any) -> None:
        fetched.append(uri)
        download(uri, local_dir)

    monkeypatch.setattr("tlray.storage.folders.download", counted)
    cache = FeatureCache(f"{s3_uri}/cache")
    fill(cache, KEY, outputs(30))
    one, two = found(cache, KEY), found(FeatureCache(f"{s3_uri}/cache"), KEY)
    assert len(fetched) == 1
    one.close()
    same(two.gather(range(30)), outputs(30))
    assert os.listdir(tmp_path) == []
    two.close()
    with found(cache, KEY) as shards:
        same(shards.gather(range(30)), outputs(30))
    assert len(fetched) == 2


@pytest.mark.parametrize("harm", ["shorter", "gone", "no json", "other key"])
def test_a_damaged_entry_is_none_and_can_be_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    cache = FeatureCache(str(tmp_path))
    fill(cache, KEY, outputs(30))
    part, marker = tmp_path / KEY.digest / "part-00002.arrow", tmp_path / KEY.digest / "entry.json"
    if harm == "shorter":
        os.truncate(part, 500)
    elif harm == "gone":
        part.unlink()
    elif harm == "no json":
        marker.write_text("{")
    else:
        facts = json.loads(marker.read_text())
        marker.write_text(json.dumps({**facts, "key": {**facts["key"], "data": "x"}}))
    assert cache.find(KEY) is None
    assert "damaged" in caplog.text
    fill(cache, KEY, outputs(30))
    same(found(cache, KEY).gather(range(30)), outputs(30))


def test_half_a_removal_is_in_nobodys_way(uri: str) -> None:
    cache = FeatureCache(uri)
    for _ in range(2):
        fill(cache, KEY, outputs(30))
        storage.delete(storage.join(uri, KEY.digest, "entry.json"))
    fill(cache, KEY, outputs(30))
    storage.delete(storage.join(uri, KEY.digest, "entry.json"))
    assert cache.sweep() == [KEY.digest]
    assert not storage.exists(storage.join(uri, KEY.digest))


def mark(cache: FeatureCache, key: Key, used: float) -> None:
    storage.write_json(storage.join(cache.uri, "used", key.digest), used)


@pytest.mark.usefixtures("large_parts")
def test_gc_evicts_the_longest_unused(uri: str) -> None:
    cache, keys = FeatureCache(uri), [key(f"data{n}") for n in range(4)]
    now = time.time()
    for n, one in enumerate(keys):
        fill(cache, one, outputs(2000), batch=2000)  # 0.53 MB
        mark(cache, one, now + 100 + [3, 1, 0, 2][n])
    storage.write_bytes(storage.join(uri, "mine.txt"), b"")
    storage.write_bytes(storage.join(uri, "mine", "mine.txt"), b"")
    storage.write_bytes(storage.join(uri, "used", "0" * 16), b"1")  # of an entry long gone
    assert [entry.key for entry in cache.ls()] == [keys[2], keys[1], keys[3], keys[0]]
    assert cache.gc() == [] and len(cache.ls()) == 4
    assert cache.gc(3) == [] and len(cache.ls()) == 4
    gone = cache.gc(2, keep={keys[2].digest})
    assert [entry.key for entry in gone] == [keys[1]]
    assert [entry.key for entry in cache.gc(1, keep=[keys[3].digest])] == [keys[2], keys[0]]
    assert [entry.key for entry in cache.ls()] == [keys[3]]
    assert cache.find(keys[0]) is None
    same(found(cache, keys[3]).gather(range(2000)), outputs(2000))
    assert storage.listdir(uri) == sorted([keys[3].digest, "mine", "mine.txt", "used"])
    assert storage.listdir(storage.join(uri, "used")) == [keys[3].digest]


@pytest.mark.usefixtures("large_parts")
def test_a_limit_is_kept_while_writing(tmp_path: Path) -> None:
    cache, keys = FeatureCache(str(tmp_path), limit_mb=1), [key(f"data{n}") for n in range(3)]
    fill(cache, keys[0], outputs(2000), batch=2000)
    fill(cache, keys[1], outputs(1500), batch=1500)
    mark(cache, keys[0], time.time() + 100)
    fill(cache, keys[2], outputs(1000), batch=1000)
    assert [entry.key for entry in cache.ls()] == [keys[2], keys[0]]
    with pytest.raises(
        StorageError, match=r"search.cache_mb = 1: 4000 rows of 276 bytes take 2 MB; accepted: 2 or more"
    ):
        fill(cache, key("more"), outputs(4000))
    assert len(cache.ls()) == 2
    fill(cache, keys[2], outputs(3500), batch=3500)  # 0.92 MB: nothing else fits beside it
    assert [entry.key for entry in cache.ls()] == [keys[2]]


def test_finding_marks_at_most_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FeatureCache(str(tmp_path))
    fill(cache, KEY, outputs(30))
    (before,) = cache.ls()
    assert before.used == before.created
    found(cache, KEY)
    (after,) = cache.ls()
    assert after.used > before.used
    found(cache, KEY)
    assert cache.ls() == [after]
    monkeypatch.setattr(module, "USED_EVERY_S", 0)
    found(cache, KEY)
    assert cache.ls()[0].used > after.used


def test_a_read_only_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FeatureCache(str(tmp_path))
    fill(cache, KEY, outputs(30))

    def refuse(uri: str, data: bytes) -> None:
        raise StorageError(f"{uri}: access denied")

    monkeypatch.setattr(storage, "write_bytes", refuse)
    same(found(cache, KEY).gather(range(30)), outputs(30))


def test_rm_takes_beginnings(tmp_path: Path) -> None:
    cache, keys = FeatureCache(str(tmp_path)), [key(f"data{n}") for n in range(17)]  # two begin alike
    for one in keys:
        fill(cache, one, outputs(1))
    digests = [one.digest for one in keys]
    double = next(d[0] for d in digests if sum(o[0] == d[0] for o in digests) > 1)
    for bad, said in [(double, "entries begin so"), ("xyz", "no such entry"), ("", "no such entry")]:
        with pytest.raises(StorageError, match=said):
            cache.rm([digests[0], bad])
        assert len(cache.ls()) == 17
    gone = cache.rm([digests[0][:15], digests[0], digests[1]])
    assert [entry.digest for entry in gone] == digests[:2]
    assert {entry.digest for entry in cache.ls()} == set(digests[2:])
    with pytest.raises(StorageError, match="accepted: nothing, it is empty"):
        FeatureCache(str(tmp_path / "none")).rm(["a"])


@pytest.mark.usefixtures("large_parts")
def test_the_verb(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def verb(*args: str) -> dict[str, Any]:
        assert cli.run(["cache", *args, "--json"]) == 0
        line = capfd.readouterr().out.splitlines()[-1]
        result: dict[str, Any] = json.loads(line)
        return result

    assert verb("ls") == {"cache": "cache", "entries": [], "bytes": 0}
    cache, keys = FeatureCache("cache"), [key(f"data{n}") for n in range(3)]
    for one in keys:
        fill(cache, one, outputs(2000), batch=2000)
    listed = verb("ls", "--cache", str(tmp_path / "cache"))
    assert [e["digest"] for e in listed["entries"]] == [one.digest for one in keys]
    assert listed["entries"][0]["key"] == dataclasses.asdict(keys[0])
    assert listed["bytes"] == 3 * listed["entries"][0]["bytes"]
    assert cli.run(["cache", "ls"]) == 0
    said = capfd.readouterr().out.splitlines()
    assert len(said) == 4 and said[1].startswith(keys[0].digest)
    (tmp_path / "cache" / ".x.tmp-0123abcd").mkdir()
    os.utime(tmp_path / "cache" / ".x.tmp-0123abcd", (0, 0))
    result = verb("gc", "--limit-mb", "1")
    assert [e["digest"] for e in result["removed"]] == [keys[0].digest, keys[1].digest]
    assert result["leftovers"] == [".x.tmp-0123abcd"]
    assert cli.run(["cache", "rm", "nothing"]) == 2
    assert capfd.readouterr().err == (
        f"tlray: 'nothing': no such entry in {tmp_path}/cache; accepted: {keys[2].digest}\n"
    )
    assert [e["digest"] for e in verb("rm", keys[2].digest[:9])["removed"]] == [keys[2].digest]
    assert verb("ls")["entries"] == []
    assert cli.run(["cache", "gc", "--limit-mb", "-1"]) == 2
    assert "Invalid value for '--limit-mb'" in capfd.readouterr().err
