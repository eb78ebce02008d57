"""The rank correlation of scores with results, against another implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional import spearman_corrcoef

from tlray.search import scores


@pytest.mark.parametrize("levels", [4, 1000], ids=["many ties", "hardly a tie"])
def test_the_rank_correlation_is_spearmans(levels: int) -> None:
    rng = np.random.default_rng(levels)
    values_RN = rng.integers(0, levels, (20, len(scores.NAMES) + 1)) / 64
    rows = [dict(zip((*scores.NAMES, "best"), map(float, row), strict=True)) for row in values_RN]
    rows.insert(7, dict.fromkeys(scores.NAMES, 3.0) | {"best": None})  # counts for nothing
    measured = scores.correlation(rows, "max")
    results = torch.tensor(values_RN[:, -1])
    for name, values in zip(scores.NAMES, values_RN.T, strict=False):
        expected = float(spearman_corrcoef(torch.tensor(values), results))
        assert measured[name] == pytest.approx(expected, abs=1e-6)
