"""Masks on their pictures; boxes are judged by the same rules, see test_boxes."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from tlray.ingestion.alignment import align_masks
from tlray.ingestion.formats.base import MASK_TYPE

Size = tuple[int, int]
KINDS = pa.schema(
    [
        ("path", pa.string()), ("kind", pa.string()), ("reason", pa.string()), ("mask", MASK_TYPE),
        *((name, pa.int32()) for name in ("width", "height", "orientation", "mask_width", "mask_height")),
        *((name, pa.int32()) for name in ("stated_width", "stated_height")),
    ]
)  # fmt: skip


def file(path: str, mask: Size, size: Size, orientation: int = 1) -> dict[str, Any]:
    """A picture of an upright size, and a mask file."""
    return {
        "path": path, "width": size[0], "height": size[1], "orientation": orientation,
        "mask": {"paths": ["m.png"], "shapes": None}, "mask_width": mask[0], "mask_height": mask[1],
    }  # fmt: skip


def outline(
    path: str, points: list[float], stated: Size | None, size: Size, orientation: int
) -> dict[str, Any]:
    """A picture of an upright size, and one polygon."""
    canvas = stated or size
    return {
        **file(path, canvas, size, orientation),
        "mask": {"paths": [], "shapes": json.dumps([{"id": 1, "polygons": [points]}])},
        "stated_width": stated and stated[0], "stated_height": stated and stated[1],
    }  # fmt: skip


def run(*rows: dict[str, Any]) -> tuple[list[Any], dict[str, int]]:
    """Of each picture the turn of its mask, or the kind that it is left out with; and findings by kind."""
    seen, findings = align_masks(pa.Table.from_pylist(list(rows), schema=KINDS))
    turns = [row["kind"] or row["mask_turn"] for row in seen.to_pylist()]
    return turns, {finding.kind: finding.count for finding in findings}


@pytest.mark.parametrize(
    ("mask", "size", "orientation", "turn", "kinds"),
    [
        ((6, 4), (6, 4), 1, 1, []),
        ((6, 4), (6, 4), 6, 1, []),
        ((6, 4), (4, 6), 6, 6, ["mask_turned"]),
        ((6, 4), (4, 6), 1, "mask_size", []),
        ((60, 40), (600, 400), 1, 1, ["mask_scaled"]),
        ((60, 40), (400, 600), 8, 8, ["mask_turned", "mask_scaled"]),
        ((60, 40), (599, 401), 3, 1, ["exif_doubtful", "mask_scaled"]),
        ((10, 7), (600, 400), 1, 1, ["mask_scaled"]),
        ((60, 40), (600, 500), 1, "mask_size", []),
        ((500, 400), (600, 400), 6, "mask_size", []),
    ],
)
def test_how_a_mask_lies(mask: Size, size: Size, orientation: int, turn: Any, kinds: list[str]) -> None:
    assert run(file("a", mask, size, orientation)) == ([turn], dict.fromkeys(kinds, 1))


def test_masks_whose_size_does_not_tell_follow_the_others() -> None:
    square, half = file("a", (9, 9), (9, 9), 6), file("b", (6, 4), (6, 4), 3)
    assert run(square, half) == ([1, 1], {"exif_doubtful": 2})
    assert run(square, half, file("c", (6, 4), (4, 6), 8)) == ([6, 3, 8], {"mask_turned": 3})
    assert run(square, half, file("c", (4, 6), (4, 6), 8)) == ([1, 1, 1], {})
    unlike = [file("c", (4, 6), (4, 6), 8), file("d", (6, 4), (4, 6), 8)]
    assert run(square, half, *unlike) == ([1, 1, 1, 8], {"exif_doubtful": 2, "mask_turned": 1})


def test_outlines_of_the_upright_picture_with_the_size_of_the_stored_one() -> None:
    tall = outline("a", [1, 1, 30, 1, 30, 55], (60, 40), (40, 60), 6)
    flat = outline("b", [1, 1, 9, 1, 9, 9], (60, 40), (40, 60), 6)
    seen, findings = align_masks(pa.Table.from_pylist([tall, flat], schema=KINDS))
    assert seen["mask_turn"].to_pylist() == [1, 1] and seen["stated_width"].to_pylist() == [40, 40]
    assert {f.kind: f.count for f in findings} == {"size_of_stored": 2}
    wide = outline("c", [1, 1, 55, 1, 55, 30], (60, 40), (40, 60), 6)
    assert run(flat, wide) == ([6, 6], {"mask_turned": 2})


def test_outlines_without_a_stated_size_and_with_exchanged_sides() -> None:
    wide = outline("a", [1, 1, 55, 1, 55, 30], None, (40, 60), 6)
    seen, findings = align_masks(pa.Table.from_pylist([wide], schema=KINDS))
    assert seen["mask_turn"].to_pylist() == [6] and seen["stated_width"].to_pylist() == [60]
    assert [f.kind for f in findings] == ["mask_turned"]
    inside = outline("b", [1, 1, 9, 1, 9, 9], None, (40, 60), 6)
    seen, findings = align_masks(pa.Table.from_pylist([inside], schema=KINDS))
    assert (seen["mask_turn"].to_pylist(), seen["stated_width"].to_pylist(), findings) == ([1], [40], [])
    exchanged = outline("c", [1, 1, 55, 1, 55, 30], (40, 60), (60, 40), 1)
    seen, findings = align_masks(pa.Table.from_pylist([exchanged], schema=KINDS))
    assert seen["stated_width"].to_pylist() == [60] and [f.kind for f in findings] == ["size_exchanged"]


def test_tables_without_masks_and_pictures_that_cannot_be_used() -> None:
    table = pa.table({"path": ["a"], "label": ["x"]})
    assert align_masks(table) == (table, [])
    broken = file("a", (6, 4), (4, 6), 1) | {"width": None, "height": None, "kind": "truncated"}
    assert run(broken) == (["truncated"], {})
