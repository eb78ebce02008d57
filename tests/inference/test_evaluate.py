"""What is wrong with a data set is told before anything is predicted."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import toys
from tests.inference.test_batch import made_bundle
from tlray import cli
from tlray.errors import DataError
from tlray.inference import evaluate


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made_bundle(tmp_path_factory.mktemp("model") / "bundle")


def with_labels(uri: str, split: str, labels: list[int | None]) -> Path:
    """Put other labels into the file of a split; the file."""
    path = Path(uri) / f"data/{split}-00000-of-00001.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("label")
    pq.write_table(table.set_column(at, "label", pa.array(labels, pa.int64())), path)
    return path


def test_labels_are_checked(model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    uri = toys.dataset(tmp_path / "d", train=6, test=6)
    evaluate.check(model, uri, "test")
    path = with_labels(uri, "test", [0, 1, 2, 0, -1, 1])
    evaluate.check(model, uri, "train")
    words = f"{path} row 4 column 'label': -1; accepted: 0 to 2, as there are 3 classes"
    for run in (evaluate.check, evaluate.evaluate):
        with pytest.raises(DataError) as caught:
            run(model, uri, "test")
        assert str(caught.value) == words
    # Told without Ray, which takes long to start.
    assert cli.run(["evaluate", model, uri]) == 2
    assert capfd.readouterr().err == f"tlray: {words}\n"
    with_labels(uri, "test", [-1] * 6)
    with pytest.raises(DataError, match="split 'test' has no labels"):
        evaluate.check(model, uri, "test")


def test_other_classes_and_splits(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys, "LABELS", [*toys.LABELS[:2], "zebra"])
    uri = toys.dataset(tmp_path / "d", test=6)
    with pytest.raises(DataError, match=r"differing: waves, zebra\); accepted: a data set with the same"):
        evaluate.check(model, uri, "test")
    with pytest.raises(DataError, match="no split 'holdout'"):
        evaluate.check(model, uri, "holdout")
