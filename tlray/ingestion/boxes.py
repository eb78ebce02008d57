"""Boxes as label files state them, compared with their pictures and put right where the case is clear.

Pure functions of the table of what was seen: index columns and `preflight.SEEN`, in which width and height
are those of the upright picture and ``orientation`` is EXIF's. Nothing is read here.

Letters in names: B boxes, all pictures' in one array; N pictures.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.data import schema
from tlray.errors import DataError
from tlray.ingestion.findings import SHOWN, Finding, Severity
from tlray.ingestion.views import Flags, Floats, Numbers, Views, orientations, pairs, place

WRONG_SHARE = (
    0.2  # of pictures with boxes: beyond, labels of other pictures are likelier than single mistakes
)
FAR = 0.05  # of a side, and FAR_PX: tools let boxes reach a little out of a picture, not so far
FAR_PX = 3.0


@dataclass
class _Boxes:
    """Boxes of N pictures: ``box_B4`` is (x, y, width, height), ``row_B`` the picture of each."""

    paths: list[str]
    box_B4: Floats
    row_B: Numbers
    name_B: list[str]
    flags_B: dict[str, list[bool]]  # `schema.FLAGS` that the table has
    size_N2: Floats  # px, upright; nan of an unusable picture
    stated_N2: Floats  # px as the label file states it; nan where it does not
    orientation_N: Numbers

    @property
    def ends_B2(self) -> Floats:
        """Right and lower edge of each box."""
        return self.box_B4[:, :2] + self.box_B4[:, 2:]

    def inside_N(self, size_N2: Floats) -> Flags:
        """(N,) whether all boxes of a picture end within a size."""
        return self.all_of(np.asarray((self.ends_B2 <= size_N2[self.row_B] + 1).all(axis=1)))

    def all_of(self, flag_B: Flags) -> Flags:
        """(N,) whether all boxes of a picture have the flag."""
        out = np.ones(len(self.paths), bool)
        np.logical_and.at(out, self.row_B, flag_B)
        return out

    @property
    def views(self) -> Views:
        """The pictures, as `tlray.ingestion.views.place` judges them."""
        has = np.zeros(len(self.paths), bool)
        has[self.row_B] = True
        return Views("box", self.paths, self.size_N2, self.stated_N2, self.orientation_N, has, self.inside_N)


def compare(source: str, seen: pa.Table, relative: bool) -> tuple[pa.Table, list[Finding]]:
    """Boxes in px of the upright picture, and what was found about them; a table without boxes as it is.

    ``relative``: boxes are in shares of the sides. Sizes that label files state (`formats.base.STATED`) are
    compared with the pictures', and dropped. Boxes drawn on the picture as stored, before EXIF turned it, are
    turned; those of a larger or smaller copy are scaled. Raises DataError where more than `WRONG_SHARE` of
    the pictures have another size than stated, or boxes that reach far out of them.
    """
    if schema.OBJECTS not in seen.column_names:
        return seen, []
    boxes, findings = _boxes(seen), list[Finding]()
    if relative or _in_shares(source, boxes, findings):
        known_N = np.asarray(np.isfinite(boxes.stated_N2).all(axis=1))
        size_N2 = np.where(known_N[:, None], boxes.stated_N2, boxes.size_N2)
        boxes.box_B4 *= np.tile(size_N2[boxes.row_B], 2)
    _right_way(boxes, findings)
    _match_sizes(source, boxes, findings)
    if not relative:
        _check_far(source, boxes)
    kept_B = _once(boxes, findings)
    column = _column(boxes, kept_B, seen.schema.field(schema.OBJECTS).type)
    seen = seen.set_column(seen.column_names.index(schema.OBJECTS), schema.OBJECTS, column)
    return seen.drop_columns([name for name in _STATED if name in seen.column_names]), findings


_STATED = ("stated_width", "stated_height")


def turned(box_B4: Floats, stored_B2: Floats, orientation_B: Numbers) -> Floats:
    """Boxes of a picture as stored (``stored_B2``: width and height) -> of the upright one, by EXIF's number;
    what `image` does to pixels."""
    x, y, w, h = box_B4.T
    right, below = stored_B2[:, 0] - x - w, stored_B2[:, 1] - y - h  # distances from the other two edges
    out = box_B4.copy()
    for number, columns in {
        2: (right, y, w, h),
        3: (right, below, w, h),
        4: (x, below, w, h),
        5: (y, x, h, w),
        6: (below, x, h, w),
        7: (below, right, h, w),
        8: (y, right, h, w),
    }.items():
        at = np.asarray(orientation_B == number)
        out[at] = np.stack(columns, axis=1)[at]
    return out


# ---- the table


def _boxes(seen: pa.Table) -> _Boxes:
    rows = seen[schema.OBJECTS].to_pylist()
    counts = [len(row["bbox"]) for row in rows]
    flat = [box for row in rows for box in row["bbox"]]
    return _Boxes(
        seen["path"].to_pylist(),
        np.array(flat, np.float64).reshape(-1, 4),
        np.repeat(np.arange(len(rows), dtype=np.int64), counts),
        [name for row in rows for name in row["category"]],
        {
            flag: [value for row in rows for value in schema.flagged(row, flag)]
            for flag in schema.flags_of(seen.schema.field(schema.OBJECTS).type)
        },
        pairs(seen, "width", "height"),
        pairs(seen, *_STATED),
        orientations(seen),
    )


def _column(boxes: _Boxes, kept_B: Flags, kind: pa.DataType) -> pa.Array:
    counts = np.bincount(boxes.row_B[kept_B], minlength=len(boxes.paths)).tolist()
    lists = {"bbox": boxes.box_B4.tolist(), "category": boxes.name_B, **boxes.flags_B}
    kept = {name: list(itertools.compress(values, kept_B.tolist())) for name, values in lists.items()}
    values, at = [], 0
    for count in counts:
        values.append({name: part[at : at + count] for name, part in kept.items()})
        at += count
    return pa.array(values, kind)


def _note(
    findings: list[Finding], level: Severity, kind: str, count: int, text: str, examples: Sequence[str] = ()
) -> None:
    if count:
        findings.append(Finding(level, kind, count, f"{count} {text}", list(examples[:SHOWN])))


# ---- what may be wrong


def _in_shares(source: str, boxes: _Boxes, findings: list[Finding]) -> bool:
    """Whether boxes that are said to be px are shares of the sides: all of them lie within 0 to 1."""
    x0, y0, w, h = boxes.box_B4.T
    # Of no area are boxes of 0, which are neither.
    small_B = (
        (np.minimum(x0, y0) >= -1e-6) & (np.maximum(x0 + w, y0 + h) <= 1 + 1e-6) & (np.minimum(w, h) > 0)
    )
    sized_B = np.minimum(w, h) > 0
    if not small_B.any():
        return False
    if small_B.sum() == sized_B.sum():
        _note(
            findings, "info", "boxes_in_shares", int(small_B.sum()), "boxes are shares of the sides, not px"
        )
        return True
    if small_B.mean() > WRONG_SHARE:
        rows = [
            boxes.paths[boxes.row_B[at]] for at in (np.flatnonzero(small_B)[0], np.flatnonzero(~small_B)[0])
        ]
        raise DataError(
            f"{source}: {int(small_B.sum())} of {len(small_B)} boxes lie within 0 to 1, as in {rows[0]}, "
            f"others do not, as in {rows[1]}; accepted: px, or shares of the sides, for all boxes alike"
        )
    return False


def _right_way(boxes: _Boxes, findings: list[Finding]) -> None:
    """Boxes drawn from right to left or upwards get their left upper corner."""
    size_B2 = boxes.box_B4[:, 2:]
    odd_B = np.asarray((size_B2 < 0).any(axis=1) & np.isfinite(boxes.box_B4).all(axis=1))
    boxes.box_B4[odd_B, :2] += np.minimum(size_B2[odd_B], 0)
    boxes.box_B4[odd_B, 2:] = np.abs(size_B2[odd_B])
    paths = [boxes.paths[row] for row in boxes.row_B[odd_B][:SHOWN]]
    _note(
        findings,
        "warning",
        "box_swapped",
        int(odd_B.sum()),
        "boxes of negative width or height (put right)",
        paths,
    )


def _match_sizes(source: str, boxes: _Boxes, findings: list[Finding]) -> None:
    """Turn and scale boxes from the size that their label file states to that of the upright picture."""
    views = boxes.views
    placing, shown_N = place(views), views.shown_N
    wrong_N = placing.wrong_N
    if wrong_N.sum() > WRONG_SHARE * shown_N.sum():
        raise DataError(
            f"{source}: {int(wrong_N.sum())} of {int(shown_N.sum())} pictures with boxes have another size "
            f"than their label file states, as {views.examples(wrong_N, True)[0]}; accepted: labels of "
            f"these pictures, of their size or of the same shape"
        )
    at_B = placing.turn_N[boxes.row_B]
    rows_B = boxes.row_B[at_B]
    boxes.box_B4[at_B] = turned(boxes.box_B4[at_B], placing.stated_N2[rows_B], boxes.orientation_N[rows_B])
    factor_N2 = np.where(shown_N[:, None], boxes.size_N2 / placing.upright_N2(boxes.orientation_N), 1.0)
    boxes.box_B4 *= np.tile(factor_N2[boxes.row_B], 2)
    findings += placing.findings
    _note(
        findings, "warning", "size_differs", int(wrong_N.sum()),
        "pictures with boxes have another size than their label file states (boxes are taken as they stand)",
        views.examples(wrong_N, True),
    )  # fmt: skip


def _check_far(source: str, boxes: _Boxes) -> None:
    """Raises DataError where boxes of many pictures reach far out of them."""
    size_B2 = boxes.size_N2[boxes.row_B]
    start_B2, end_B2 = boxes.box_B4[:, :2], boxes.ends_B2
    limit_B2 = size_B2 * FAR + FAR_PX
    with np.errstate(invalid="ignore"):
        far_B = np.asarray(((end_B2 > size_B2 + limit_B2) | (start_B2 < -limit_B2)).any(axis=1))
        corners_B2 = boxes.box_B4[:, 2:]
        as_corners = bool(((corners_B2 > start_B2) & (corners_B2 <= size_B2 + FAR_PX)).all())
    shown_N = boxes.views.shown_N
    far_N = ~boxes.all_of(~far_B) & shown_N
    if far_N.sum() <= WRONG_SHARE * shown_N.sum():
        return
    box = boxes.box_B4[np.flatnonzero(far_B & far_N[boxes.row_B])[0]]
    row = int(np.flatnonzero(far_N)[0])
    (w, h), number = boxes.size_N2[row].tolist(), f"{int(far_N.sum())} of {int(shown_N.sum())}"
    hint = "; taken as two corners they would fit" if as_corners else "; were the pictures shrunk afterwards?"
    at = f"{boxes.paths[row]} ({w:.0f} x {h:.0f} px): {box[0]:g}, {box[1]:g}, {box[2]:g} x {box[3]:g}"
    raise DataError(
        f"{source}: boxes of {number} pictures reach far out of them, as {at}{hint}; accepted: boxes in px "
        "of these pictures"
    )


def _once(boxes: _Boxes, findings: list[Finding]) -> Flags:
    """Boxes without those that stand twice: same picture, class and coordinates."""
    first: set[tuple[Any, ...]] = set()
    kept, twice = [], []
    for row, name, box in zip(boxes.row_B.tolist(), boxes.name_B, boxes.box_B4.tolist(), strict=True):
        key = (row, name, *box)
        kept.append(key not in first)
        first.add(key)
        if not kept[-1]:
            twice.append(f"{boxes.paths[row]}: {name} {box[0]:g}, {box[1]:g}, {box[2]:g} x {box[3]:g}")
    _note(findings, "warning", "box_double", len(twice), "boxes stand twice (taken once)", twice)
    return np.array(kept, bool)
