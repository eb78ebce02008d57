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
import numpy.typing as npt
import pyarrow as pa

from tlray import schema
from tlray.errors import DataError
from tlray.findings import SHOWN, Finding, Severity

SAME_SHAPE = 0.01  # sides' ratio: within this a stated size is the same view at another scale
WRONG_SHARE = (
    0.2  # of pictures with boxes: beyond, labels of other pictures are likelier than single mistakes
)
FAR = 0.05  # of a side, and FAR_PX: tools let boxes reach a little out of a picture, not so far
FAR_PX = 3.0
_TURNS = range(5, 9)  # EXIF orientations that swap the sides; of 2, 3 and 4 a size tells nothing

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]


@dataclass
class _Boxes:
    """Boxes of N pictures: ``box_B4`` is (x, y, width, height), ``row_B`` the picture of each."""

    paths: list[str]
    box_B4: Floats
    row_B: Numbers
    name_B: list[str]
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

    @property
    def shown_N(self) -> Flags:
        """Pictures with boxes whose size is known."""
        has = np.zeros(len(self.paths), bool)
        has[self.row_B] = True
        return has & np.isfinite(self.size_N2).all(axis=1)

    def all_of(self, flag_B: Flags) -> Flags:
        """(N,) whether all boxes of a picture have the flag."""
        out = np.ones(len(self.paths), bool)
        np.logical_and.at(out, self.row_B, flag_B)
        return out

    def examples(self, chosen_N: Flags, text: str = "") -> list[str]:
        """Pictures by name, with their sizes."""
        rows = np.flatnonzero(chosen_N)[:SHOWN].tolist()
        return [f"{self.paths[row]}{self._sizes(row) if text == 'sizes' else ''}" for row in rows]

    def _sizes(self, row: int) -> str:
        (w, h), (sw, sh) = self.size_N2[row].tolist(), self.stated_N2[row].tolist()
        return f": {w:.0f} x {h:.0f} px, stated {sw:.0f} x {sh:.0f}"


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
    stated = [seen[name] if name in seen.column_names else None for name in _STATED]
    return _Boxes(
        seen["path"].to_pylist(),
        np.array(flat, np.float64).reshape(-1, 4),
        np.repeat(np.arange(len(rows), dtype=np.int64), counts),
        [name for row in rows for name in row["category"]],
        np.stack([_floats(seen[name], len(rows)) for name in ("width", "height")], axis=1),
        np.stack([_floats(column, len(rows)) for column in stated], axis=1),
        np.nan_to_num(_floats(seen["orientation"], len(rows)), nan=1).astype(np.int64),
    )


def _floats(column: Any, length: int) -> Floats:
    if column is None:
        return np.full(length, np.nan)
    return np.array([np.nan if value is None else value for value in column.to_pylist()], np.float64)


def _column(boxes: _Boxes, kept_B: Flags, kind: pa.DataType) -> pa.Array:
    counts = np.bincount(boxes.row_B[kept_B], minlength=len(boxes.paths)).tolist()
    flat, names = boxes.box_B4[kept_B].tolist(), list(itertools.compress(boxes.name_B, kept_B.tolist()))
    values, at = [], 0
    for count in counts:
        values.append({"bbox": flat[at : at + count], "category": names[at : at + count]})
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
    size_N2, shown_N = boxes.size_N2, boxes.shown_N
    known_N = np.asarray(np.isfinite(boxes.stated_N2).all(axis=1))
    swaps_N = np.isin(boxes.orientation_N, _TURNS)
    # As stored, before EXIF turned the picture.
    stored_N2 = np.where(swaps_N[:, None], size_N2[:, ::-1], size_N2)
    stated_N2 = np.where(known_N[:, None], boxes.stated_N2, stored_N2)
    upright_N, as_stored_N = _same_view(stated_N2, size_N2), _same_view(stated_N2, stored_N2)
    use_N = shown_N & known_N

    # Some tools state the size from the file's header and show the upright picture all the same.
    turned_N2 = stated_N2[:, ::-1]
    only_upright_N = swaps_N & ~boxes.inside_N(stated_N2) & boxes.inside_N(turned_N2)
    only_stored_N = swaps_N & boxes.inside_N(stated_N2) & ~boxes.inside_N(turned_N2)
    clear_N = use_N & swaps_N & (upright_N != as_stored_N)
    header_N = clear_N & as_stored_N & only_upright_N
    if header_N.any() and not (clear_N & as_stored_N & only_stored_N).any():
        header_N = clear_N & as_stored_N
    stated_N2 = np.where(header_N[:, None], turned_N2, stated_N2)
    upright_N |= header_N
    as_stored_N &= ~header_N
    turn_N = clear_N & as_stored_N
    doubtful_N = use_N & (boxes.orientation_N > 1) & upright_N & as_stored_N
    if turn_N.any() and not (clear_N & upright_N).any():  # the tool looked at no EXIF, so nowhere
        turn_N |= doubtful_N
    elif not (clear_N & upright_N).any() or turn_N.any():
        _note(
            findings, "warning", "exif_doubtful", int(doubtful_N.sum()),
            "pictures with boxes are turned by EXIF and their sizes do not tell whether the boxes are, too "
            "(boxes are taken as those of the upright picture)", boxes.examples(doubtful_N),
        )  # fmt: skip
    turn_N |= _turn_unstated(boxes, shown_N & ~known_N & swaps_N)

    exchanged_N = use_N & ~upright_N & ~turn_N & _exchanged(boxes, stated_N2)
    wrong_N = use_N & ~upright_N & ~turn_N & ~exchanged_N
    if wrong_N.sum() > WRONG_SHARE * shown_N.sum():
        raise DataError(
            f"{source}: {int(wrong_N.sum())} of {int(shown_N.sum())} pictures with boxes have another size "
            f"than their label file states, as {boxes.examples(wrong_N, 'sizes')[0]}; accepted: labels of "
            f"these pictures, of their size or of the same shape"
        )
    at_B = turn_N[boxes.row_B]
    rows_B = boxes.row_B[at_B]
    boxes.box_B4[at_B] = turned(boxes.box_B4[at_B], stated_N2[rows_B], boxes.orientation_N[rows_B])
    # From here on all sizes are those of upright pictures.
    stated_N2 = np.where((turn_N & swaps_N)[:, None], stated_N2[:, ::-1], stated_N2)
    scale_N = use_N & (upright_N | turn_N) & (np.abs(stated_N2 - size_N2) > 0).any(axis=1)
    factor_N2 = np.where(scale_N[:, None], size_N2 / stated_N2, 1.0)
    boxes.box_B4 *= np.tile(factor_N2[boxes.row_B], 2)

    _note(
        findings, "info", "box_turned", int(turn_N.sum()),
        "pictures have boxes of the picture as stored (turned with it by EXIF)", boxes.examples(turn_N),
    )  # fmt: skip
    _note(
        findings, "info", "size_of_stored", int(header_N.sum()),
        "pictures have boxes of the upright picture and the size before EXIF turned it (boxes are taken as "
        "they stand)", boxes.examples(header_N),
    )  # fmt: skip
    _note(
        findings, "info", "box_scaled", int(scale_N.sum()),
        "pictures have boxes of a picture of another size (scaled)", boxes.examples(scale_N, "sizes"),
    )  # fmt: skip
    _note(
        findings, "warning", "size_exchanged", int(exchanged_N.sum()),
        "pictures have width and height exchanged in their label file (boxes are taken as they stand)",
        boxes.examples(exchanged_N, "sizes"),
    )  # fmt: skip
    _note(
        findings, "warning", "size_differs", int(wrong_N.sum()),
        "pictures with boxes have another size than their label file states (boxes are taken as they stand)",
        boxes.examples(wrong_N, "sizes"),
    )  # fmt: skip


def _same_view(a_N2: Floats, b_N2: Floats) -> Flags:
    """Whether two sizes are of one view, perhaps at different scales; a side may be rounded by 1 px."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio_N2 = a_N2 / b_N2
        within_N = np.abs(ratio_N2[:, 0] / ratio_N2[:, 1] - 1) <= SAME_SHAPE
        rounded_N = (np.abs(a_N2 * ratio_N2[:, ::-1] ** -1 - b_N2) < 1).any(axis=1)
    return within_N | rounded_N


def _turn_unstated(boxes: _Boxes, asked_N: Flags) -> Flags:
    """Pictures whose boxes only fit them as stored; nothing is stated about their size. Those whose boxes fit
    both ways follow where all others of the set are so."""
    upright_N, stored_N = boxes.inside_N(boxes.size_N2), boxes.inside_N(boxes.size_N2[:, ::-1])
    only_stored_N, only_upright_N = asked_N & stored_N & ~upright_N, asked_N & upright_N & ~stored_N
    if only_stored_N.any() and not only_upright_N.any():
        return asked_N & stored_N
    return only_stored_N


def _exchanged(boxes: _Boxes, stated_N2: Floats) -> Flags:
    """Pictures whose stated width is their height and the other way round, where boxes show that they are of
    the picture all the same: they fit it, and not all would fit the stated size."""
    swapped_N = boxes.shown_N & np.asarray((stated_N2 == boxes.size_N2[:, ::-1]).all(axis=1))
    fits_N, beyond_N = boxes.inside_N(boxes.size_N2), ~boxes.inside_N(stated_N2)
    proven = (swapped_N & beyond_N).any() and fits_N[swapped_N].all()
    return swapped_N if proven else np.zeros(len(swapped_N), bool)


def _check_far(source: str, boxes: _Boxes) -> None:
    """Raises DataError where boxes of many pictures reach far out of them."""
    size_B2 = boxes.size_N2[boxes.row_B]
    start_B2, end_B2 = boxes.box_B4[:, :2], boxes.ends_B2
    limit_B2 = size_B2 * FAR + FAR_PX
    with np.errstate(invalid="ignore"):
        far_B = np.asarray(((end_B2 > size_B2 + limit_B2) | (start_B2 < -limit_B2)).any(axis=1))
        corners_B2 = boxes.box_B4[:, 2:]
        as_corners = bool(((corners_B2 > start_B2) & (corners_B2 <= size_B2 + FAR_PX)).all())
    shown_N = boxes.shown_N
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
