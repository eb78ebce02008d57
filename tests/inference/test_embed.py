"""Embeddings of a whole data set: by a bundle, by a bare backbone, by a stage of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests import toys
from tests.inference.test_batch import made_bundle
from tlray.data.dataset import Dataset
from tlray.data.image import render
from tlray.errors import ConfigError, DataError
from tlray.inference import embed, inputs
from tlray.models.backbone import Backbone


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return toys.dataset(tmp_path_factory.mktemp("data") / "d", group_rows=8, train=11, test=5)


def test_a_bundle_gives_the_features_its_head_sees(ray_local: Any, data: str, tmp_path: Path) -> None:
    embedder = embed.Embedder(made_bundle(tmp_path / "bundle"))
    out = str(tmp_path / "out")
    manifest = embed.embed(embedder, inputs.Inputs.dataset(data), out)
    table = pq.read_table(tmp_path / "out" / "data" / "train-00000-of-00001.parquet")
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), manifest["dim"])
    assert table.column_names == ["id", "split", "path", "label", "error", "embedding"]
    model = embedder.load()
    rows = Dataset.open(data).rows("train", [7, 2])
    for index, row in zip((7, 2), rows.to_pylist(), strict=True):
        x_CHW, _ = render(row["image"]["bytes"], model.preprocess)
        one = model.embed_rendered(torch.from_numpy(x_CHW[None]))[0]
        assert table["id"][index].as_py() == row["id"]
        np.testing.assert_allclose(table["embedding"][index].as_py(), one, rtol=1e-3, atol=1e-4)
    assert manifest["labels"] == {"label": toys.LABELS} and manifest["num_rows"] == 16
    with pytest.raises(DataError, match="holds other work"):
        embed.embed(embedder, inputs.Inputs.dataset(data), out, stage="stem")


def test_a_bare_backbone_and_a_stage_of_it(ray_local: Any, data: str, tmp_path: Path) -> None:
    embedder, out = embed.Embedder.backbone("resnet10t-nano", None, 32), tmp_path / "out"
    backbone = Backbone("resnet10t-nano", "builtin", size=32).eval()
    stage = backbone.stages[1]
    manifest = embed.embed(embedder, inputs.Inputs.dataset(data, ["test"]), str(out), stage)
    assert manifest["dim"] == backbone.channels[1] and list(manifest["parts"]) == [
        "data/test-00000-of-00001.parquet"
    ]
    stored = pq.read_table(out / "data" / "test-00000-of-00001.parquet")["embedding"].to_pylist()
    encoded = [p["bytes"] for p in Dataset.open(data).rows("test", range(5))["image"].to_pylist()]
    preprocess = embedder.load().preprocess
    x = torch.from_numpy(np.stack([render(p, preprocess)[0] for p in encoded]))
    with torch.inference_mode():
        expected = backbone.pyramid(x, [stage])[0].mean(dim=(2, 3)).numpy()
    np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-4)
    assert embed.Embedder.from_facts(manifest) == embedder
    np.testing.assert_allclose(embed.vector(manifest, encoded[3]), expected[3], rtol=1e-3, atol=1e-4)


def test_an_unknown_stage_or_backbone(data: str, tmp_path: Path) -> None:
    source = inputs.Inputs.dataset(data)
    with pytest.raises(ConfigError, match="stage 'nothing'"):
        embed.embed(
            embed.Embedder.backbone("resnet10t-nano", None, 32), source, str(tmp_path / "a"), "nothing"
        )
    with pytest.raises(ConfigError, match="resnet51"):
        embed.embed(embed.Embedder.backbone("resnet51", "none"), source, str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()
