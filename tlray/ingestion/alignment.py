"""What labels were drawn on: the upright picture, the picture before its turn by EXIF, another size.

Label files state the size of the picture that the tool showed, and a mask has a size of its own. Compared
with the picture before and after its turn by EXIF, that size tells on which of them the labels were drawn.
The same rules hold for boxes and masks. No file is read here. N pictures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tlray.data import schema
from tlray.ingestion.findings import SHOWN, Finding, Severity

SAME_SHAPE = 0.01  # two sizes whose ratios of width to height differ by less show the same picture
_TURNS = range(5, 9)  # EXIF orientations that swap width and height; sizes cannot tell 2, 3 and 4

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]


@dataclass
class Labelled:
    """N pictures and the sizes of what their labels were drawn on."""

    kind: Literal["box", "mask"]  # of the labels
    paths: list[str]
    size_N2: Floats  # px, upright; nan of an unusable picture
    stated_N2: Floats  # px of what the labels were drawn on; nan where it is not stated
    orientation_N: Numbers
    has_N: Flags  # pictures with labels
    fit: Callable[[Floats], Flags]  # (N, 2) sizes -> (N,) whether all labels of a picture lie within

    @property
    def sized_N(self) -> Flags:
        """(N,) pictures with labels whose size is known."""
        return self.has_N & np.isfinite(self.size_N2).all(axis=1)

    def examples(self, chosen_N: Flags, sizes: bool = False) -> list[str]:
        """Paths of chosen pictures, with their sizes where wanted."""
        rows = np.flatnonzero(chosen_N)[:SHOWN].tolist()
        return [f"{self.paths[row]}{f': {self.sizes(row)}' if sizes else ''}" for row in rows]

    def sizes(self, row: int) -> str:
        """The size of a picture and the stated one, as text."""
        (w, h), (sw, sh) = self.size_N2[row].tolist(), self.stated_N2[row].tolist()
        other = "its mask" if self.kind == "mask" else "stated"
        return f"{w:.0f} x {h:.0f} px, {other} {sw:.0f} x {sh:.0f}"


@dataclass(frozen=True)
class Alignment:
    """What has to be done to labels so that they fit their upright pictures."""

    turn_N: Flags  # labels to be turned as EXIF turns their picture
    drawn_N2: Floats  # px, size of what the labels were drawn on, before that turn
    wrong_N: Flags  # labels of another picture, or of a part of theirs
    findings: list[Finding]

    def upright_N2(self, orientation_N: Numbers) -> Floats:
        """``drawn_N2`` after the turn."""
        swapped_N = self.turn_N & np.isin(orientation_N, _TURNS)
        return np.where(swapped_N[:, None], self.drawn_N2[:, ::-1], self.drawn_N2)


def align(labelled: Labelled) -> Alignment:
    """Decide for every picture what its labels were drawn on; where a size cannot tell, as for the others."""
    size_N2, sized_N = labelled.size_N2, labelled.sized_N
    stated_N = np.asarray(np.isfinite(labelled.stated_N2).all(axis=1))
    swaps_N = np.isin(labelled.orientation_N, _TURNS)
    # The size of the file, before EXIF turns the picture.
    stored_N2 = np.where(swaps_N[:, None], size_N2[:, ::-1], size_N2)
    drawn_N2 = np.where(stated_N[:, None], labelled.stated_N2, stored_N2)
    as_upright_N, as_stored_N = _same_shape(drawn_N2, size_N2), _same_shape(drawn_N2, stored_N2)
    comparable_N = sized_N & stated_N

    # Some tools show the upright picture but state the size from the header of the file.
    turned_N2 = drawn_N2[:, ::-1]
    only_upright_N = swaps_N & ~labelled.fit(drawn_N2) & labelled.fit(turned_N2)
    only_stored_N = swaps_N & labelled.fit(drawn_N2) & ~labelled.fit(turned_N2)
    decided_N = comparable_N & swaps_N & (as_upright_N != as_stored_N)
    from_header_N = decided_N & as_stored_N & only_upright_N
    if from_header_N.any() and not (decided_N & as_stored_N & only_stored_N).any():
        from_header_N = decided_N & as_stored_N
    drawn_N2 = np.where(from_header_N[:, None], turned_N2, drawn_N2)
    as_upright_N |= from_header_N
    as_stored_N &= ~from_header_N
    turn_N = decided_N & as_stored_N
    doubtful_N = comparable_N & (labelled.orientation_N > 1) & as_upright_N & as_stored_N
    any_upright = (decided_N & as_upright_N).any()
    if turn_N.any() and not any_upright:  # the tool ignored EXIF, so it did so everywhere
        turn_N |= doubtful_N
        doubtful_N[:] = False
    elif any_upright and not turn_N.any():  # the tool followed EXIF, so it did so everywhere
        doubtful_N[:] = False
    turn_N |= _turn_unstated(labelled, sized_N & ~stated_N & swaps_N)

    exchanged_N = comparable_N & ~as_upright_N & ~turn_N & _exchanged(labelled, drawn_N2)
    wrong_N = comparable_N & ~as_upright_N & ~turn_N & ~exchanged_N
    alignment = Alignment(turn_N, drawn_N2, wrong_N, [])
    scale_N = comparable_N & (as_upright_N | turn_N)
    scale_N &= (np.abs(alignment.upright_N2(labelled.orientation_N) - size_N2) > 0).any(axis=1)
    # Such a stated size is no measure of what the labels were drawn on.
    as_picture_N = exchanged_N | wrong_N | (~stated_N & ~turn_N)
    drawn_N2[as_picture_N] = size_N2[as_picture_N]
    labels = "boxes" if labelled.kind == "box" else "masks"
    level: Severity = "info" if labelled.kind == "box" else "warning"
    rows: list[tuple[Severity, str, Flags, bool, str]] = [
        ("warning", "exif_doubtful", doubtful_N, False,
         f"pictures with {labels} are turned by EXIF and their sizes do not tell whether the {labels} are, "
         f"too ({labels} are taken as those of the upright picture)"),
        (level, f"{labelled.kind}_turned", turn_N, False,
         f"pictures have {labels} of the picture as stored (turned with it by EXIF)"),
        ("info", "size_of_stored", from_header_N, False,
         f"pictures have {labels} of the upright picture and the size before EXIF turned it ({labels} are "
         "taken as they stand)"),
        (level, f"{labelled.kind}_scaled", scale_N, True, f"pictures have {labels} of another size (scaled)"),
        ("warning", "size_exchanged", exchanged_N, True,
         f"pictures have width and height exchanged in their label file ({labels} are taken as they stand)"),
    ]  # fmt: skip
    for severity, kind, chosen_N, sizes, text in rows:
        if number := int(chosen_N.sum()):
            alignment.findings.append(
                Finding(severity, kind, number, f"{number} {text}", labelled.examples(chosen_N, sizes))
            )
    return alignment


def _same_shape(a_N2: Floats, b_N2: Floats) -> Flags:
    """Whether two sizes have one ratio of width to height; a side may be rounded by 1 px."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio_N2 = a_N2 / b_N2
        within_N = np.abs(ratio_N2[:, 0] / ratio_N2[:, 1] - 1) <= SAME_SHAPE
        rounded_N = (np.abs(a_N2 / ratio_N2[:, ::-1] - b_N2) < 1).any(axis=1)
        rounded_N |= (np.abs(b_N2 * ratio_N2[:, ::-1] - a_N2) < 1).any(axis=1)
    return np.asarray(within_N | rounded_N)


def _turn_unstated(labelled: Labelled, asked_N: Flags) -> Flags:
    """Which of the asked pictures, without stated sizes, have labels drawn before EXIF's turn.

    Those whose labels fit only the picture as stored. Where no labels fit only the upright picture, also
    those whose labels fit both.
    """
    fit_upright_N, fit_stored_N = labelled.fit(labelled.size_N2), labelled.fit(labelled.size_N2[:, ::-1])
    only_stored_N = asked_N & fit_stored_N & ~fit_upright_N
    if only_stored_N.any() and not (asked_N & fit_upright_N & ~fit_stored_N).any():
        return asked_N & fit_stored_N
    return only_stored_N


def _exchanged(labelled: Labelled, stated_N2: Floats) -> Flags:
    """Pictures whose label files exchange width and height by mistake.

    The labels prove it: all of them fit the pictures, and some do not fit the stated sizes.
    """
    swapped_N = labelled.sized_N & np.asarray((stated_N2 == labelled.size_N2[:, ::-1]).all(axis=1))
    fits_N, beyond_N = labelled.fit(labelled.size_N2), ~labelled.fit(stated_N2)
    proven = (swapped_N & beyond_N).any() and fits_N[swapped_N].all()
    return swapped_N if proven else np.zeros(len(swapped_N), bool)


# ---- columns of a table


def floats(column: Any, length: int) -> Floats:
    """A column as numbers, nan for null; nan throughout for a missing column."""
    if column is None:
        return np.full(length, np.nan)
    return np.array([np.nan if value is None else value for value in column.to_pylist()], np.float64)


def pairs(table: pa.Table, *names: str) -> Floats:
    """Two columns as an array (N, 2)."""
    columns = [table[name] if name in table.column_names else None for name in names]
    return np.stack([floats(column, table.num_rows) for column in columns], axis=1)


def orientations(table: pa.Table) -> Numbers:
    """EXIF's number of each picture, 1 where there is none."""
    return np.nan_to_num(floats(table["orientation"], table.num_rows), nan=1).astype(np.int64)


def align_masks(table: pa.Table) -> tuple[pa.Table, list[Finding]]:
    """(table, findings): how each mask has to be turned and scaled to fit its picture.

    The table gets a column ``mask_turn`` (the EXIF orientation by which a mask is to be turned, 1 = not),
    for outlines the size of what they were drawn on as ``stated_width`` and ``stated_height``, and a kind and
    reason for masks that do not fit. A table without masks stays as it is.
    """
    if schema.MASK not in table.column_names:
        return table, []
    shapes = [None if value is None else value["shapes"] for value in table[schema.MASK].to_pylist()]
    outlined_N = np.array([shape is not None for shape in shapes])
    size_N2, orientation_N = pairs(table, "width", "height"), orientations(table)
    of_files_N2 = pairs(table, "mask_width", "mask_height")
    of_outlines_N2 = pairs(table, "stated_width", "stated_height")
    stated_N2 = np.where(outlined_N[:, None], of_outlines_N2, of_files_N2)
    usable_N = np.array([kind is None for kind in table["kind"].to_pylist()])
    with np.errstate(invalid="ignore"):
        # How far outlines reach decides for these pictures only, and takes time to find out.
        reach_matters_N = (
            outlined_N & usable_N & ((orientation_N > 1) | (stated_N2 == size_N2[:, ::-1]).all(axis=1))
        )
    ends = [
        _end(shape or "") if matters else (0.0, 0.0)
        for shape, matters in zip(shapes, reach_matters_N, strict=True)
    ]
    end_N2 = np.array(ends).reshape(-1, 2)

    def fit(limit_N2: Floats) -> Flags:
        return np.asarray((end_N2 <= limit_N2 + 1).all(axis=1))

    labelled = Labelled("mask", table["path"].to_pylist(), size_N2, stated_N2, orientation_N, usable_N, fit)
    alignment = align(labelled)
    kinds, reasons = table["kind"].to_pylist(), table["reason"].to_pylist()
    for row in np.flatnonzero(alignment.wrong_N).tolist():
        kinds[row] = "mask_size"
        reasons[row] = f"{labelled.sizes(row)}; accepted: the same size, or another one of the same shape"
    canvas_N2 = np.where((outlined_N & np.isfinite(size_N2).all(axis=1))[:, None], alignment.drawn_N2, np.nan)
    width_N, height_N = ([None if np.isnan(v) else int(v) for v in side.tolist()] for side in canvas_N2.T)
    turn_N = np.where(alignment.turn_N, orientation_N, 1)
    for name, values, kind in (
        ("kind", kinds, pa.string()), ("reason", reasons, pa.string()),
        ("stated_width", width_N, pa.int32()), ("stated_height", height_N, pa.int32()),
        ("mask_turn", turn_N.tolist(), pa.int32()),
    ):  # fmt: skip
        column = pa.array(values, kind)
        position = table.schema.get_field_index(name)
        table = (
            table.append_column(name, column) if position < 0 else table.set_column(position, name, column)
        )
    return table, alignment.findings


def _end(shapes: str) -> tuple[float, float]:
    """Largest x and y of outlines, px; 0 where all are in shares of the sides or run lengths."""
    polygons: list[Sequence[float]] = [
        polygon
        for shape in json.loads(shapes or "[]")
        if not shape.get("relative")
        for polygon in shape.get("polygons", ())
    ]
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return max(xs, default=0.0), max(ys, default=0.0)
