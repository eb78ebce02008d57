"""Run lengths and outlines, beside COCO's own code."""

from __future__ import annotations

import json

import numpy as np
import pytest
from faster_coco_eval.core import mask as rle_codec

from tlray.errors import DataError
from tlray.ingestion.formats import outlines


@pytest.mark.parametrize("seed", range(8))
def test_run_lengths_and_boxes_are_coco_s(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 300, 2).tolist()
    mask_HW = np.zeros((height, width), np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        y, x = int(rng.integers(height)), int(rng.integers(width))
        mask_HW[y : y + int(rng.integers(1, 80)), x : x + int(rng.integers(1, 80))] = 1
    packed = rle_codec.encode(np.asfortranarray(mask_HW))
    counts = packed["counts"].decode()
    runs = outlines.run_lengths(counts)
    plain = np.repeat(np.arange(len(runs)) % 2, runs).reshape(width, height).T
    assert np.array_equal(plain, mask_HW)
    expected = rle_codec.toBbox(packed).tolist()
    assert outlines.around_runs([height, width], counts) == expected
    assert outlines.around_runs([height, width], runs) == expected
    rle = outlines.runs_of(mask_HW.astype(bool), 2, -1, width + 5, height)
    whole = rle_codec.decode([rle_codec.frPyObjects(rle, height, width + 5)])[:, :, 0]
    shifted = np.zeros((height, width + 5), np.uint8)
    shifted[: height - 1, 2 : width + 2] = mask_HW[1:]
    assert np.array_equal(whole, shifted)


def test_run_lengths_that_are_wrong() -> None:
    assert outlines.around_runs([2, 3], [6]) is None
    for size, counts in (([2, 3], [5]), ([2, 3], [7, -1]), ([2, 3], "\x7f\x01")):
        with pytest.raises(ValueError):
            outlines.around_runs(size, counts)


def test_turned_rectangles_and_ellipses() -> None:
    assert outlines.around(outlines.rectangle(10, 10, 20, 10, 90)) == pytest.approx([15, 5, 10, 20])
    assert outlines.rectangle(0, 0, 2, 1) == [0, 0, 2, 0, 2, 1, 0, 1]
    assert outlines.around(outlines.ellipse(10, 10, 2, 4, 90)) == pytest.approx([6, 8, 8, 4])


def test_ids_of_classes() -> None:
    names, ids = outlines.numbered("x", ["b", "Background", "a", "b"])
    assert names == ["background", "b", "a"] and ids == {"b": 1, "a": 2, "Background": 0}
    with pytest.raises(DataError, match="x: 255 classes; accepted: at most 254"):
        outlines.numbered("x", map(str, range(255)))


def test_unknown_pixels_are_painted_first() -> None:
    shapes = [{"id": 1}, {"id": 255}, {"id": 2}]
    assert [s["id"] for s in json.loads(outlines.mask(shapes)["shapes"])] == [255, 1, 2]
