from __future__ import annotations

import json
import math

import numpy as np

from tlray.storage.json_values import finite, without_nan


def test_finite() -> None:
    assert [finite(v) for v in (1, 0.5, np.float64(2))] == [1.0, 0.5, 2.0]
    assert [finite(v) for v in (True, None, "1", math.nan, -math.inf)] == [None] * 5


def test_without_nan() -> None:
    tree = {"a": [math.nan, 1.5, (math.inf, True)], 1: {"b": "x", "c": None}}
    plain = without_nan(tree)
    assert plain == {"a": [None, 1.5, [None, True]], "1": {"b": "x", "c": None}}
    json.dumps(plain, allow_nan=False)
