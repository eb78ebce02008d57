"""Boxes of label files, compared with their pictures and corrected where the mistake is clear.

Pure functions of the table of an index and of `preflight.INSPECTED`, whose width and height are those of the
upright picture; no file is read here.

Letters in names: B boxes of all pictures, N pictures.
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
from tlray.ingestion.alignment import Flags, Floats, Labelled, Numbers, align, orientations, pairs
from tlray.ingestion.findings import SHOWN, Finding, Severity

# Share of the pictures with boxes: if more are wrong, the labels are those of other pictures.
WRONG_SHARE = 0.2
# Tools let boxes reach a little out of the picture. Farther than a share of the side and some px is wrong.
FAR = 0.05
FAR_PX = 3.0


@dataclass
class _Boxes:
    """All boxes of N pictures: ``box_B4`` is (x, y, width, height), ``row_B`` the picture of each box."""

    paths: list[str]
    box_B4: Floats
    row_B: Numbers
    name_B: list[str]
    flags_B: dict[str, list[bool]]  # those of `schema.FLAGS` that the table has
    size_N2: Floats  # px, upright; nan of an unusable picture
    stated_N2: Floats  # px, as label files state it; nan where they do not
    orientation_N: Numbers

    @property
    def ends_B2(self) -> Floats:
        """Right and lower edge of each box."""
        return self.box_B4[:, :2] + self.box_B4[:, 2:]

    def fit_N(self, size_N2: Floats) -> Flags:
        """(N,) whether all boxes of a picture end within the given size."""
        return self.all_N(np.asarray((self.ends_B2 <= size_N2[self.row_B] + 1).all(axis=1)))

    def all_N(self, flag_B: Flags) -> Flags:
        """(N,) whether all boxes of a picture have the flag."""
        all_N = np.ones(len(self.paths), bool)
        np.logical_and.at(all_N, self.row_B, flag_B)
        return all_N

    @property
    def labelled(self) -> Labelled:
        """The pictures, as `tlray.ingestion.alignment.align` takes them."""
        has_boxes_N = np.zeros(len(self.paths), bool)
        has_boxes_N[self.row_B] = True
        return Labelled(
            "box", self.paths, self.size_N2, self.stated_N2, self.orientation_N, has_boxes_N, self.fit_N
        )


def compare(source: str, inspected: pa.Table, relative: bool) -> tuple[pa.Table, list[Finding]]:
    """(table with boxes in px of the upright pictures, findings).

    ``relative``: boxes are in shares of the sides. The sizes that label files state (`formats.base.STATED`)
    are compared with those of the pictures and dropped. Boxes drawn before EXIF turned the picture are
    turned, those drawn on a larger or smaller copy are scaled. A table without boxes stays as it is. Raises
    DataError where more than `WRONG_SHARE` of the pictures have another size than stated, or boxes far
    outside.
    """
    if schema.OBJECTS not in inspected.column_names:
        return inspected, []
    boxes, findings = _boxes(inspected), list[Finding]()
    if relative or _in_shares(source, boxes, findings):
        known_N = np.asarray(np.isfinite(boxes.stated_N2).all(axis=1))
        size_N2 = np.where(known_N[:, None], boxes.stated_N2, boxes.size_N2)
        boxes.box_B4 *= np.tile(size_N2[boxes.row_B], 2)
    _normalize(boxes, findings)
    _match_sizes(source, boxes, findings)
    if not relative:
        _check_far(source, boxes)
    chosen_B = _first_of_equals(boxes, findings)
    column = _column(boxes, chosen_B, inspected.schema.field(schema.OBJECTS).type)
    inspected = inspected.set_column(inspected.column_names.index(schema.OBJECTS), schema.OBJECTS, column)
    return inspected.drop_columns([name for name in _STATED if name in inspected.column_names]), findings


_STATED = ("stated_width", "stated_height")


def turned(box_B4: Floats, stored_B2: Floats, orientation_B: Numbers) -> Floats:
    """Boxes of pictures before EXIF's turn, of width and height ``stored_B2``, as boxes of the upright
    pictures."""
    x, y, w, h = box_B4.T
    # Distances from the right and the lower edge.
    right, below = stored_B2[:, 0] - x - w, stored_B2[:, 1] - y - h
    upright_B4 = box_B4.copy()
    for orientation, columns in {
        2: (right, y, w, h),
        3: (right, below, w, h),
        4: (x, below, w, h),
        5: (y, x, h, w),
        6: (below, x, h, w),
        7: (below, right, h, w),
        8: (y, right, h, w),
    }.items():
        with_orientation = np.asarray(orientation_B == orientation)
        upright_B4[with_orientation] = np.stack(columns, axis=1)[with_orientation]
    return upright_B4


# ---- from the table and back


def _boxes(inspected: pa.Table) -> _Boxes:
    rows = inspected[schema.OBJECTS].to_pylist()
    counts = [len(row["bbox"]) for row in rows]
    flat = [box for row in rows for box in row["bbox"]]
    return _Boxes(
        inspected["path"].to_pylist(),
        np.array(flat, np.float64).reshape(-1, 4),
        np.repeat(np.arange(len(rows), dtype=np.int64), counts),
        [name for row in rows for name in row["category"]],
        {
            flag: [value for row in rows for value in schema.flagged(row, flag)]
            for flag in schema.flags_of(inspected.schema.field(schema.OBJECTS).type)
        },
        pairs(inspected, "width", "height"),
        pairs(inspected, *_STATED),
        orientations(inspected),
    )


def _column(boxes: _Boxes, chosen_B: Flags, kind: pa.DataType) -> pa.Array:
    counts = np.bincount(boxes.row_B[chosen_B], minlength=len(boxes.paths)).tolist()
    lists = {"bbox": boxes.box_B4.tolist(), "category": boxes.name_B, **boxes.flags_B}
    chosen = {name: list(itertools.compress(values, chosen_B.tolist())) for name, values in lists.items()}
    values, start = [], 0
    for count in counts:
        values.append({name: part[start : start + count] for name, part in chosen.items()})
        start += count
    return pa.array(values, kind)


def _note(
    findings: list[Finding], level: Severity, kind: str, count: int, text: str, examples: Sequence[str] = ()
) -> None:
    if count:
        findings.append(Finding(level, kind, count, f"{count} {text}", list(examples[:SHOWN])))


# ---- checks and corrections


def _in_shares(source: str, boxes: _Boxes, findings: list[Finding]) -> bool:
    """Whether boxes that should be in px are in shares of the sides: all numbers lie within 0 to 1."""
    x0, y0, w, h = boxes.box_B4.T
    # Boxes without area, as of zeros alone, could be either.
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
        paths = [
            boxes.paths[boxes.row_B[box]] for box in (np.flatnonzero(small_B)[0], np.flatnonzero(~small_B)[0])
        ]
        raise DataError(
            f"{source}: {int(small_B.sum())} of {len(small_B)} boxes lie within 0 to 1, as in {paths[0]}, "
            f"others do not, as in {paths[1]}; accepted: px, or shares of the sides, for all boxes alike"
        )
    return False


def _normalize(boxes: _Boxes, findings: list[Finding]) -> None:
    """Boxes of negative width or height get their left upper corner."""
    size_B2 = boxes.box_B4[:, 2:]
    negative_B = np.asarray((size_B2 < 0).any(axis=1) & np.isfinite(boxes.box_B4).all(axis=1))
    boxes.box_B4[negative_B, :2] += np.minimum(size_B2[negative_B], 0)
    boxes.box_B4[negative_B, 2:] = np.abs(size_B2[negative_B])
    paths = [boxes.paths[row] for row in boxes.row_B[negative_B][:SHOWN]]
    _note(
        findings,
        "warning",
        "box_swapped",
        int(negative_B.sum()),
        "boxes of negative width or height (put right)",
        paths,
    )


def _match_sizes(source: str, boxes: _Boxes, findings: list[Finding]) -> None:
    """Turn and scale boxes from the size that their label file states to that of the upright picture."""
    labelled = boxes.labelled
    alignment, sized_N = align(labelled), labelled.sized_N
    wrong_N = alignment.wrong_N
    if wrong_N.sum() > WRONG_SHARE * sized_N.sum():
        raise DataError(
            f"{source}: {int(wrong_N.sum())} of {int(sized_N.sum())} pictures with boxes have another size "
            f"than their label file states, as {labelled.examples(wrong_N, True)[0]}; accepted: labels of "
            f"these pictures, of their size or of the same shape"
        )
    turn_B = alignment.turn_N[boxes.row_B]
    rows_B = boxes.row_B[turn_B]
    boxes.box_B4[turn_B] = turned(
        boxes.box_B4[turn_B], alignment.drawn_N2[rows_B], boxes.orientation_N[rows_B]
    )
    factor_N2 = np.where(sized_N[:, None], boxes.size_N2 / alignment.upright_N2(boxes.orientation_N), 1.0)
    boxes.box_B4 *= np.tile(factor_N2[boxes.row_B], 2)
    findings += alignment.findings
    _note(
        findings, "warning", "size_differs", int(wrong_N.sum()),
        "pictures with boxes have another size than their label file states (boxes are taken as they stand)",
        labelled.examples(wrong_N, True),
    )  # fmt: skip


def _check_far(source: str, boxes: _Boxes) -> None:
    """Raises DataError where boxes of more than `WRONG_SHARE` of the pictures reach far out of them."""
    size_B2 = boxes.size_N2[boxes.row_B]
    start_B2, end_B2 = boxes.box_B4[:, :2], boxes.ends_B2
    limit_B2 = size_B2 * FAR + FAR_PX
    with np.errstate(invalid="ignore"):
        far_B = np.asarray(((end_B2 > size_B2 + limit_B2) | (start_B2 < -limit_B2)).any(axis=1))
        corners_B2 = boxes.box_B4[:, 2:]
        as_corners = bool(((corners_B2 > start_B2) & (corners_B2 <= size_B2 + FAR_PX)).all())
    sized_N = boxes.labelled.sized_N
    far_N = ~boxes.all_N(~far_B) & sized_N
    if far_N.sum() <= WRONG_SHARE * sized_N.sum():
        return
    box = boxes.box_B4[np.flatnonzero(far_B & far_N[boxes.row_B])[0]]
    row = int(np.flatnonzero(far_N)[0])
    (w, h), share = boxes.size_N2[row].tolist(), f"{int(far_N.sum())} of {int(sized_N.sum())}"
    hint = "; taken as two corners they would fit" if as_corners else "; were the pictures shrunk afterwards?"
    example = f"{boxes.paths[row]} ({w:.0f} x {h:.0f} px): {box[0]:g}, {box[1]:g}, {box[2]:g} x {box[3]:g}"
    raise DataError(
        f"{source}: boxes of {share} pictures reach far out of them, as {example}{hint}; accepted: boxes in "
        "px of these pictures"
    )


def _first_of_equals(boxes: _Boxes, findings: list[Finding]) -> Flags:
    """(B,) which boxes are no repetition of an earlier one: same picture, class and coordinates."""
    known: set[tuple[Any, ...]] = set()
    is_first, repeated = [], []
    for row, name, box in zip(boxes.row_B.tolist(), boxes.name_B, boxes.box_B4.tolist(), strict=True):
        key = (row, name, *box)
        is_first.append(key not in known)
        known.add(key)
        if not is_first[-1]:
            repeated.append(f"{boxes.paths[row]}: {name} {box[0]:g}, {box[1]:g}, {box[2]:g} x {box[3]:g}")
    _note(findings, "warning", "box_double", len(repeated), "boxes stand twice (taken once)", repeated)
    return np.array(is_first, bool)
