"""Reading runs no code. Each payload is first read without tlray and must run there, or the test is void."""

from __future__ import annotations

import base64
import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
import ray.data._internal.tensor_extensions.arrow as ray_tensors

from tests import canary, toys
from tlray import cli, config
from tlray.data import extensions, shards
from tlray.data.dataset import Dataset
from tlray.errors import DataError
from tlray.inference import evaluate, inputs
from tlray.training import fit

REFUSED = re.compile(
    r"column 'extra': extension type ray\.data\.arrow_pickled_object, and reading such types may run code; "
    r"accepted: plain Arrow types and arrow\.bool8, arrow\.json, arrow\.uuid$"
)
NAMED = re.compile(r"column 'extra\.[a-z.]*(x|item|element)': extension type ray\.data\.arrow_pickled_object")
calls: list[str] = []


class Eager(pa.ExtensionType):
    """A type that runs code as soon as a schema that names it is read."""

    def __init__(self, storage: pa.DataType) -> None:
        super().__init__(storage, "tests.eager")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Eager:
        calls.append("sang")
        return cls(storage)


@pytest.fixture
def eager() -> Iterator[Eager]:
    pa.register_extension_type(Eager(pa.int64()))
    calls.clear()
    yield Eager(pa.int64())
    pa.unregister_extension_type("tests.eager")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file that a payload writes."""
    return tmp_path / "sang"


def with_payload(uri: str, file: Path) -> list[Path]:
    """Add a column to each Parquet file of a data set; returns the files."""
    files = sorted(Path(uri).rglob("*.parquet"))
    for path in files:
        table = pq.read_table(path)
        pq.write_table(table.append_column("extra", canary.column(file, table.num_rows)), path)
    return files


def sings(table: pa.Table, file: Path) -> None:
    """Assert that reading without tlray runs the payload."""
    table["extra"].to_pylist()
    assert file.exists()
    file.unlink()


def settings(uri: str, folder: Path) -> config.Config:
    return config.parse(
        {
            "name": "r", "runs": str(folder / "runs"), "data": {"uri": uri}, "input": {"size": 32},
            "task": {"name": "classification"}, "train": {"batch_size": 4},
        },
        "test",
    )  # fmt: skip


def test_parquet(tmp_path: Path, file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    uri = toys.dataset(tmp_path / "d", train=6, validation=6)
    first = with_payload(uri, file)[0]
    sings(pq.read_table(first), file)
    for read in (
        lambda: Dataset.open(uri),
        lambda: Dataset.open(str(first)),
        lambda: shards.Parquet(str(first)),
        lambda: fit.check(settings(uri, tmp_path)),
        lambda: inputs.Inputs.dataset(uri),
        lambda: inputs.find([uri], []),
    ):
        message = canary.refusal(read, file)
        assert message.startswith(str(tmp_path / "d/data/")) and REFUSED.search(message)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"{{name: r, runs: {tmp_path}/runs, task: {{name: classification}}, data: {{uri: {uri}}}}}"
    )
    for verb in (["train"], ["tune"], ["rank"]):
        assert cli.run([*verb, str(recipe)]) == 2
        assert re.search(r"tlray: .*extension type ray\.data", capfd.readouterr().err)
    assert not file.exists() and not (tmp_path / "runs").exists()


def test_only_the_columns_of_the_task_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.data.test_loader import source
    from tlray.data import loader as stream

    uri = toys.dataset(tmp_path / "d", train=6)
    path = tmp_path / "d/data/train-00000-of-00001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("extra", pa.array(["x"] * 6)), path)
    asked: list[list[str]] = []
    read = shards.Parquet.group

    def group(self: shards.Parquet, handle: Any, index: int, columns: list[str]) -> pa.Table:
        asked.append(sorted(columns))
        return read(self, handle, index, columns)

    monkeypatch.setattr(shards.Parquet, "group", group)
    batch = stream.make_batch(source(uri), Dataset.open(uri).fingerprint, 0, [1, 2])
    assert batch.num_rows == 2
    assert asked == [["image", "label"]]


@pytest.mark.parametrize("layout", ["save_to_disk", "one file"])
def test_arrow_streams(tmp_path: Path, file: Path, layout: str) -> None:
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"image": [b"x"] * 3, "label": [0, 1, 2]}).save_to_disk(str(folder))
    path = next(folder.glob("*.arrow"))
    with ipc.open_stream(path.read_bytes()) as stream:
        table = stream.read_all()
    table = table.append_column("extra", canary.column(file, 3))
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    with ipc.open_stream(path.read_bytes()) as stream:
        sings(stream.read_all(), file)
    uri = str(folder if layout == "save_to_disk" else path)
    message = canary.refusal(lambda: Dataset.open(uri), file)
    assert message.startswith(str(path)) and REFUSED.search(message)


def test_evaluate(tmp_path: Path, file: Path) -> None:
    from tests.inference.test_batch import made_bundle

    uri = toys.dataset(tmp_path / "d", test=6)
    bundle = made_bundle(tmp_path / "bundle")
    evaluate.check(bundle, uri, "test")
    sings(pq.read_table(with_payload(uri, file)[0]), file)
    assert REFUSED.search(canary.refusal(lambda: evaluate.check(bundle, uri, "test"), file))
    assert REFUSED.search(canary.refusal(lambda: evaluate.evaluate(bundle, uri, "test"), file))


def kinds(inner: pa.DataType) -> dict[str, pa.DataType]:
    """Types with an extension type at each place where a type can have one."""
    return {
        "x": inner,
        "struct.x": pa.struct([("a", pa.int32()), ("x", inner)]),
        "list.item": pa.list_(inner),
        "large.item": pa.large_list(inner),
        "fixed.item": pa.list_(inner, 2),
        "view.item": pa.list_view(inner),
        "map.entries.value": pa.map_(pa.string(), inner),
        "map.entries.key": pa.map_(inner, pa.string()),
        "dictionary": pa.dictionary(pa.int32(), inner),
        "dense.x": pa.dense_union([pa.field("x", inner)]),
        "sparse.x": pa.sparse_union([pa.field("x", inner)]),
        "runs.values": pa.run_end_encoded(pa.int32(), inner),
        "deep.item.x.entries.value.item": pa.list_(pa.struct([("x", pa.map_(pa.string(), pa.list_(inner)))])),
        "coded.x": pa.dictionary(pa.int32(), pa.struct([("x", inner)])),
    }


@pytest.mark.parametrize("path", list(kinds(pa.int8())))
@pytest.mark.parametrize("form", ["stream", "file", "parquet"])
def test_a_type_that_acts_while_the_schema_is_read(
    tmp_path: Path, eager: Eager, form: str, path: str
) -> None:
    name = path.split(".")[0]
    schema = pa.schema([("before", pa.int32()), (name, kinds(eager)[path])])
    if form == "stream":
        message = schema.serialize().to_pybytes()
        assert ipc.read_schema(pa.py_buffer(message)) is not None

        def read() -> Any:
            return extensions.stream_schema(message, "place")
    elif form == "file":
        sink = io.BytesIO()
        ipc.new_file(sink, schema).close()
        assert ipc.open_file(sink.getvalue()).schema is not None

        def read() -> Any:
            return extensions.open_file(pa.BufferReader(sink.getvalue()), "place")
    else:
        # Parquet lacks some of these types; the Arrow schema in the footer counts.
        target = tmp_path / "a.parquet"
        with pq.ParquetWriter(target, pa.schema([("x", pa.int64())]), store_schema=False) as writer:
            writer.write_table(pa.table({"x": [1]}))
            writer.add_key_value_metadata({"ARROW:schema": base64.b64encode(schema.serialize()).decode()})
        with contextlib.suppress(pa.ArrowException):  # the schema does not match the columns
            pq.read_schema(target)

        def read() -> Any:
            return extensions.parquet_footer(pa.OSFile(str(target)), "place")

    assert calls, "the canary cannot sing"
    calls.clear()
    name = "in run-end encoding" if path == "runs.values" else r"tests\.eager"
    with pytest.raises(DataError, match=rf"^place column '{re.escape(path)}': extension type {name}, and"):
        read()
    assert calls == []


def test_the_one_of_two_schemas_that_counts(tmp_path: Path, eager: Eager) -> None:
    """A footer may have a key twice: the value that pyarrow uses is checked."""
    path = tmp_path / "a.parquet"
    plain, acting = (
        base64.b64encode(pa.schema([("x", kind)]).serialize()).decode() for kind in (pa.int64(), eager)
    )
    for order in ([plain, acting], [acting, plain]):
        with pq.ParquetWriter(path, pa.schema([("x", pa.int64())]), store_schema=False) as writer:
            writer.write_table(pa.table({"x": [1]}))
            writer.add_key_value_metadata(pa.KeyValueMetadata([("ARROW:schema", one) for one in order]))
        assert path.read_bytes().count(b"ARROW:schema") == 2
        calls.clear()
        pq.read_schema(path)
        sang = bool(calls)
        calls.clear()
        if sang:
            with pytest.raises(DataError, match=r"tests\.eager"):
                shards.Parquet(str(path))
        else:
            assert shards.Parquet(str(path)).schema.field("x").type == pa.int64()
        assert calls == []
    with pq.ParquetWriter(path, pa.schema([("x", pa.int64())]), store_schema=False) as writer:
        writer.add_key_value_metadata({"ARROW:schema": "!" + acting})
    with pytest.raises(DataError, match="damaged"), shards.reading(str(path)):
        shards.Parquet(str(path))
    assert calls == []


def test_a_tensor_type_that_unpickles_in_the_schema(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's tensor type, with RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA set."""
    monkeypatch.setattr(ray_tensors, "_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA", True)
    tensor = {
        "ARROW:extension:name": "ray.data.arrow_tensor_v2",
        "ARROW:extension:metadata": canary.payload(file),
    }
    kinds = pa.schema(
        [pa.field("image", pa.binary()), pa.field("extra", pa.large_list(pa.int8()), metadata=tensor)]
    )
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([[b"x"], [[1]]], schema=kinds), path)
    with pytest.raises(Exception):  # noqa: B017 (it runs the payload, which gives no shape)
        pq.read_schema(path)
    assert file.exists()
    file.unlink()
    assert "ray.data.arrow_tensor_v2" in canary.refusal(lambda: Dataset.open(str(path)), file)


@pytest.mark.parametrize("stored", [True, False])
def test_pyarrows_own_plain_types_are_given_out_as_their_values(tmp_path: Path, stored: bool) -> None:
    path = tmp_path / "train.parquet"
    table = pa.table(
        {
            "image": [b"x"],
            "label": [0],
            "told": pa.array(["{}"], pa.json_()),
            "key": pa.array([b"0" * 16], pa.uuid()),
        }
    )
    pq.write_table(table, path, store_schema=stored)
    data = Dataset.open(str(path))
    assert data.schema.field("told").type == pa.string()
    assert data.schema.field("key").type == pa.binary(16)
    assert data.read("train", ["told", "key"]).to_pylist() == [{"told": "{}", "key": b"0" * 16}]


def test_no_whole_arrow_file() -> None:
    sink = io.BytesIO()
    ipc.new_file(sink, pa.schema([("x", pa.int8())])).close()
    whole = sink.getvalue()
    assert extensions.open_file(pa.BufferReader(whole), "place").schema.names == ["x"]
    for part in (b"", whole[:5], whole[:-1], b"\xff" * 4 + b"ARROW1", b"\0" * 40 + b"\xff\xff\0\0ARROW1"):
        with pytest.raises(pa.ArrowInvalid):
            extensions.open_file(pa.BufferReader(part), "place")


def test_vectors(tmp_path: Path, file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from tests.inference.test_neighbors import never, written
    from tlray.inference import batch, neighbors

    uri = written(tmp_path / "vectors", np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32))
    assert neighbors.similar(uri, "train00003", never)[0]
    part = with_payload(uri, file)[0]
    sings(pq.read_table(part), file)
    for read in (
        lambda: neighbors.similar(uri, "train00003", never),
        lambda: neighbors.nearest(uri, neighbors.read_manifest(uri), np.ones(12)),
        lambda: batch._num_errors(str(part)),  # a job that resumes reads the parts that exist
    ):
        message = canary.refusal(read, file)
        assert message.startswith(str(part)) and REFUSED.search(message)
    assert cli.run(["similar", uri, "train00003"]) == 2
    assert REFUSED.search(capfd.readouterr().err.strip())
    assert not file.exists()


def test_the_feature_cache(tmp_path: Path, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Features can be computed again, so an entry with such a type counts as absent."""
    from tests.search.test_feature_cache import KEY, fill, found, outputs
    from tlray.search.feature_cache import FeatureCache

    store = FeatureCache(str(tmp_path / "cache"))
    fill(store, KEY, outputs(30))
    path = tmp_path / "cache" / KEY.digest / "part-00000.arrow"
    with ipc.open_file(path.read_bytes()) as reader:
        table = reader.read_all()
    for name in ("extra", table.column_names[0]):  # added, or in place of an expected column
        changed = table.drop_columns([name]) if name in table.column_names else table
        changed = changed.append_column(name, canary.column(file, table.num_rows))
        with ipc.new_file(path, changed.schema) as writer:
            writer.write_table(changed)
        with ipc.open_file(path.read_bytes()) as reader:
            sings(reader.read_all().rename_columns([*changed.column_names[:-1], "extra"]), file)
        assert store.find(KEY) is None
        assert not file.exists()
        assert f"column '{name}': extension type ray.data.arrow_pickled_object" in caplog.text
    fill(store, KEY, outputs(30))
    with found(store, KEY) as again:
        assert again.num_rows == 30


@pytest.mark.parametrize(
    "wrap",
    [
        lambda values: pa.StructArray.from_arrays([values], names=["x"]),
        lambda values: pa.ListArray.from_arrays(pa.array(range(len(values) + 1), pa.int32()), values),
        lambda values: pa.StructArray.from_arrays(
            [pa.ListArray.from_arrays(pa.array(range(len(values) + 1), pa.int32()), values)], names=["x"]
        ),
    ],
    ids=["struct", "list", "struct of list"],
)
def test_payloads_within_other_columns(tmp_path: Path, file: Path, wrap: Any) -> None:
    uri = toys.dataset(tmp_path / "d", train=4)
    path = tmp_path / "d/data/train-00000-of-00001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("extra", wrap(canary.column(file, 4))), path)
    sings(pq.read_table(path), file)
    assert NAMED.search(canary.refusal(lambda: Dataset.open(uri), file))
