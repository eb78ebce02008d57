"""Batches have the rows of the order, and the same pixels with any number of workers."""

import numpy as np
import pytest
import torch

from tests.toys import LABELS, damage, dataset
from tlray import tasks
from tlray.config import Augmentation
from tlray.data import loader
from tlray.data.dataset import Dataset
from tlray.data.image import Preprocess
from tlray.data.sampler import Order
from tlray.errors import DataError

PRE = Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("stream") / "d", train=50, validation=11)


def source(uri, split="train", augment=None):
    task = tasks.load({"name": "classification"})
    return loader.Source(uri, split, task, tuple(LABELS), PRE, augment, seed=3)


def test_two_workers_see_the_pixels_that_one_sees(ray_local, uri):
    rows = Dataset.open(uri).group_rows("train")
    split = source(uri, augment=Augmentation(policy="mild", scale=(0.35, 1.0), mixup=0.4, cutmix=1.0))
    alone, pair = Order(rows, 16, 3), Order(rows, 16, 3, world=2)
    last = 2 * alone.steps_per_epoch
    one = list(loader.train_batches(split, alone, 0, 0, last))
    halves = [list(loader.train_batches(split, pair, rank, 0, last)) for rank in (0, 1)]
    assert [len(h) for h in halves] == [len(one)] * 2 == [8, 8]
    for step, whole in enumerate(one):
        parts = [h[step] for h in halves if h[step] is not None]
        both = np.concatenate([p.rows for p in parts])
        assert sorted(both) == sorted(whole.rows) == sorted(alone.global_batch(step))
        pixels = torch.cat([p.x_BCHW for p in parts])
        targets = {name: torch.cat([p.targets[name] for p in parts]) for name in whole.targets}
        for i, row in enumerate(both):
            at = int(np.nonzero(whole.rows == row)[0][0])
            assert torch.equal(pixels[i], whole.x_BCHW[at])
            assert targets["label"][i] == row % 3
            assert all(targets[name][i] == value[at] for name, value in whole.targets.items())
    epochs = [np.concatenate([b.rows for b in one[:4]]), np.concatenate([b.rows for b in one[4:]])]
    assert all(sorted(e) == list(range(50)) for e in epochs)  # no row lost or doubled


def test_a_stream_may_start_at_any_step(ray_local, uri):
    split = source(uri, augment=Augmentation(policy="mild", scale=(0.35, 1.0)))
    order = Order(Dataset.open(uri).group_rows("train"), 16, 3)
    whole = list(loader.train_batches(split, order, 0, 0, 8))
    late = list(loader.train_batches(split, order, 0, 5, 8))
    assert [torch.equal(a.x_BCHW, b.x_BCHW) for a, b in zip(whole[5:], late, strict=True)] == [True] * 3


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_meets_every_row_once(ray_local, uri, world):
    split = source(uri, "validation")
    held = [loader.CachedBatches(split, rank, world, 4) for rank in range(world)]
    for _ in range(2):  # the second time from memory
        rows = [int(r) for h in held for batch in h for r in batch.rows]
        assert rows == list(range(11))


def test_a_damaged_picture_is_named(tmp_path):
    uri = dataset(tmp_path / "d", train=4)
    damage(uri, "train", 2)
    with pytest.raises(DataError, match=r"row 2, train/2\.jpg.*truncated"):
        loader.make_batch(source(uri), Dataset.open(uri).fingerprint, 0, np.array([1, 2]))


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("image", None, r"\(train, row 2\): 0 bytes"),
        ("label", None, r"row 2, train/2\.jpg\): column 'label' is null"),
    ],
)
def test_a_null_is_named(tmp_path, column, value, words):
    import pyarrow as pa
    import pyarrow.parquet as pq

    uri = dataset(tmp_path / "d", train=4)
    path = tmp_path / "d/data/train-00000-of-00001.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index(column)
    values = table[column].to_pylist()
    values[2] = value
    kind = table.schema.field(at)
    pq.write_table(table.set_column(at, kind, pa.array(values, kind.type)), path)
    with pytest.raises(DataError, match=words):
        loader.make_batch(source(uri), Dataset.open(uri).fingerprint, 0, np.array([1, 2]))


def test_a_damaged_picture_is_named_through_ray_too(ray_local, tmp_path):
    uri = dataset(tmp_path / "d", validation=11)
    damage(uri, "validation", 9)
    with pytest.raises(DataError, match=r"\(validation, row 9, validation/9\.jpg\): truncated"):
        list(loader.evaluation_batches(source(uri, "validation"), 0, 1, 4))


def test_the_row_cache_stays_within_its_budget(uri):
    reader = loader.RowReader(uri, "train", 1)
    reader.budget = 40_000
    for row in range(50):
        _, annotation = reader(row)
        assert annotation["label"] == row % 3 and annotation["id"] == f"train{row:05d}"
        assert len(reader._groups) == 1 or reader._cached_bytes <= reader.budget


def test_a_lonely_row_is_doubled():
    batch = loader.Batch(
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8), {"label": torch.tensor([2])}, np.array([7]), [], [""]
    )
    x, targets = loader.to_device(batch, torch.device("cpu"))
    assert x.shape[0] == 2 and targets["label"].tolist() == [2, 2]
