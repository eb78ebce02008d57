"""How labels lie on their pictures: on the picture as it is seen, before its EXIF turn, or at another size.

Tools state the size of the picture that they showed, and a mask has a size of its own: compared with the
picture, before and after its EXIF turn, it tells what the labels were made on. Boxes and masks are judged
by the same rules. Nothing is read here; N pictures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tlray.data import schema
from tlray.ingestion.findings import SHOWN, Finding, Severity

SAME_SHAPE = 0.01  # sides' ratio: within this a stated size is the same view at another scale
_TURNS = range(5, 9)  # EXIF orientations that swap the sides; of 2, 3 and 4 a size tells nothing

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]


@dataclass
class Views:
    """N pictures and the sizes that their labels are said to be of; ``what``: box or mask."""

    what: str
    paths: list[str]
    size_N2: Floats  # px, upright; nan of an unusable picture
    stated_N2: Floats  # px of what the labels were made on; nan where nothing says it
    orientation_N: Numbers
    has_N: Flags  # pictures with labels
    inside: Callable[[Floats], Flags]  # (N, 2) sizes -> (N,) whether all labels of a picture end within

    @property
    def shown_N(self) -> Flags:
        """Pictures with labels whose size is known."""
        return self.has_N & np.isfinite(self.size_N2).all(axis=1)

    def examples(self, chosen_N: Flags, sizes: bool = False) -> list[str]:
        """Pictures by name, with their sizes where wanted."""
        rows = np.flatnonzero(chosen_N)[:SHOWN].tolist()
        return [f"{self.paths[row]}{f': {self.sizes(row)}' if sizes else ''}" for row in rows]

    def sizes(self, row: int) -> str:
        """Both sizes of a picture, in words."""
        (w, h), (sw, sh) = self.size_N2[row].tolist(), self.stated_N2[row].tolist()
        said = "its mask" if self.what == "mask" else "stated"
        return f"{w:.0f} x {h:.0f} px, {said} {sw:.0f} x {sh:.0f}"


@dataclass(frozen=True)
class Placing:
    """What was decided: labels of ``turn_N`` are to be turned as EXIF turns their picture; ``stated_N2`` is
    the size that they were made on, before that turn; ``wrong_N``: of another view than the picture."""

    turn_N: Flags
    stated_N2: Floats
    wrong_N: Flags
    findings: list[Finding]

    def upright_N2(self, orientation_N: Numbers) -> Floats:
        """``stated_N2`` after the turn."""
        swapped_N = self.turn_N & np.isin(orientation_N, _TURNS)
        return np.where(swapped_N[:, None], self.stated_N2[:, ::-1], self.stated_N2)


def place(views: Views) -> Placing:
    """Decide it for every picture: where a size cannot tell, as the others of the set do."""
    size_N2, shown_N = views.size_N2, views.shown_N
    known_N = np.asarray(np.isfinite(views.stated_N2).all(axis=1))
    swaps_N = np.isin(views.orientation_N, _TURNS)
    # As stored, before EXIF turned the picture.
    stored_N2 = np.where(swaps_N[:, None], size_N2[:, ::-1], size_N2)
    stated_N2 = np.where(known_N[:, None], views.stated_N2, stored_N2)
    upright_N, as_stored_N = _same_view(stated_N2, size_N2), _same_view(stated_N2, stored_N2)
    use_N = shown_N & known_N

    # Some tools state the size from the file's header and show the upright picture all the same.
    turned_N2 = stated_N2[:, ::-1]
    only_upright_N = swaps_N & ~views.inside(stated_N2) & views.inside(turned_N2)
    only_stored_N = swaps_N & views.inside(stated_N2) & ~views.inside(turned_N2)
    clear_N = use_N & swaps_N & (upright_N != as_stored_N)
    header_N = clear_N & as_stored_N & only_upright_N
    if header_N.any() and not (clear_N & as_stored_N & only_stored_N).any():
        header_N = clear_N & as_stored_N
    stated_N2 = np.where(header_N[:, None], turned_N2, stated_N2)
    upright_N |= header_N
    as_stored_N &= ~header_N
    turn_N = clear_N & as_stored_N
    doubtful_N = use_N & (views.orientation_N > 1) & upright_N & as_stored_N
    if turn_N.any() and not (clear_N & upright_N).any():  # the tool looked at no EXIF, so nowhere
        turn_N |= doubtful_N
        doubtful_N[:] = False
    elif (clear_N & upright_N).any() and not turn_N.any():  # it looked at EXIF, so everywhere
        doubtful_N[:] = False
    turn_N |= _turn_unstated(views, shown_N & ~known_N & swaps_N)

    exchanged_N = use_N & ~upright_N & ~turn_N & _exchanged(views, stated_N2)
    wrong_N = use_N & ~upright_N & ~turn_N & ~exchanged_N
    placing = Placing(turn_N, stated_N2, wrong_N, [])
    scale_N = use_N & (upright_N | turn_N)
    scale_N &= (np.abs(placing.upright_N2(views.orientation_N) - size_N2) > 0).any(axis=1)
    # What is stated of an exchanged or another view is no measure.
    as_seen_N = exchanged_N | wrong_N | (~known_N & ~turn_N)
    stated_N2[as_seen_N] = size_N2[as_seen_N]
    things = "boxes" if views.what == "box" else "masks"
    level: Severity = "info" if views.what == "box" else "warning"
    rows: list[tuple[Severity, str, Flags, bool, str]] = [
        ("warning", "exif_doubtful", doubtful_N, False,
         f"pictures with {things} are turned by EXIF and their sizes do not tell whether the {things} are, "
         f"too ({things} are taken as those of the upright picture)"),
        (level, f"{views.what}_turned", turn_N, False,
         f"pictures have {things} of the picture as stored (turned with it by EXIF)"),
        ("info", "size_of_stored", header_N, False,
         f"pictures have {things} of the upright picture and the size before EXIF turned it ({things} are "
         "taken as they stand)"),
        (level, f"{views.what}_scaled", scale_N, True, f"pictures have {things} of another size (scaled)"),
        ("warning", "size_exchanged", exchanged_N, True,
         f"pictures have width and height exchanged in their label file ({things} are taken as they stand)"),
    ]  # fmt: skip
    for severity, kind, chosen_N, sizes, text in rows:
        if number := int(chosen_N.sum()):
            placing.findings.append(
                Finding(severity, kind, number, f"{number} {text}", views.examples(chosen_N, sizes))
            )
    return placing


def _same_view(a_N2: Floats, b_N2: Floats) -> Flags:
    """Whether two sizes are of one view, perhaps at different scales; a side may be rounded by 1 px."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio_N2 = a_N2 / b_N2
        within_N = np.abs(ratio_N2[:, 0] / ratio_N2[:, 1] - 1) <= SAME_SHAPE
        rounded_N = (np.abs(a_N2 / ratio_N2[:, ::-1] - b_N2) < 1).any(axis=1)
        rounded_N |= (np.abs(b_N2 * ratio_N2[:, ::-1] - a_N2) < 1).any(axis=1)
    return np.asarray(within_N | rounded_N)


def _turn_unstated(views: Views, asked_N: Flags) -> Flags:
    """Pictures whose labels only fit them as stored; nothing is stated about their size. Those whose labels
    fit both ways follow where all others of the set are so."""
    upright_N, stored_N = views.inside(views.size_N2), views.inside(views.size_N2[:, ::-1])
    only_stored_N, only_upright_N = asked_N & stored_N & ~upright_N, asked_N & upright_N & ~stored_N
    if only_stored_N.any() and not only_upright_N.any():
        return asked_N & stored_N
    return only_stored_N


def _exchanged(views: Views, stated_N2: Floats) -> Flags:
    """Pictures whose stated width is their height and the other way round, where labels show that they are of
    the picture all the same: they fit it, and not all would fit the stated size."""
    swapped_N = views.shown_N & np.asarray((stated_N2 == views.size_N2[:, ::-1]).all(axis=1))
    fits_N, beyond_N = views.inside(views.size_N2), ~views.inside(stated_N2)
    proven = (swapped_N & beyond_N).any() and fits_N[swapped_N].all()
    return swapped_N if proven else np.zeros(len(swapped_N), bool)


# ---- of a table


def floats(column: Any, length: int) -> Floats:
    """A column of numbers, nan for null; all nan where there is none."""
    if column is None:
        return np.full(length, np.nan)
    return np.array([np.nan if value is None else value for value in column.to_pylist()], np.float64)


def pairs(seen: pa.Table, *names: str) -> Floats:
    """Two columns of sizes, (N, 2)."""
    columns = [seen[name] if name in seen.column_names else None for name in names]
    return np.stack([floats(column, seen.num_rows) for column in columns], axis=1)


def orientations(seen: pa.Table) -> Numbers:
    """EXIF's number of each picture, 1 where there is none."""
    return np.nan_to_num(floats(seen["orientation"], seen.num_rows), nan=1).astype(np.int64)


def place_masks(seen: pa.Table) -> tuple[pa.Table, list[Finding]]:
    """Which masks are turned and scaled onto their pictures; a table without masks as it is.

    Gives a column ``mask_turn`` (EXIF's number by which a mask is to be turned, 1 = not), for outlines the
    size that they are drawn on as ``stated_width`` and ``stated_height``, and a kind and reason for masks of
    another view than their picture.
    """
    if schema.MASK not in seen.column_names:
        return seen, []
    shapes = [None if value is None else value["shapes"] for value in seen[schema.MASK].to_pylist()]
    drawn_N = np.array([shape is not None for shape in shapes])
    size_N2, orientation_N = pairs(seen, "width", "height"), orientations(seen)
    of_files_N2, of_outlines_N2 = (pairs(seen, f"{of}_width", f"{of}_height") for of in ("mask", "stated"))
    stated_N2 = np.where(drawn_N[:, None], of_outlines_N2, of_files_N2)
    fine_N = np.array([kind is None for kind in seen["kind"].to_pylist()])
    with np.errstate(invalid="ignore"):
        # Only of these it matters how far outlines reach.
        asked_N = drawn_N & fine_N & ((orientation_N > 1) | (stated_N2 == size_N2[:, ::-1]).all(axis=1))
    ends = [_end(shape or "") if ask else (0.0, 0.0) for shape, ask in zip(shapes, asked_N, strict=True)]
    end_N2 = np.array(ends).reshape(-1, 2)

    def inside(limit_N2: Floats) -> Flags:
        return np.asarray((end_N2 <= limit_N2 + 1).all(axis=1))

    views = Views("mask", seen["path"].to_pylist(), size_N2, stated_N2, orientation_N, fine_N, inside)
    placing = place(views)
    kinds, reasons = seen["kind"].to_pylist(), seen["reason"].to_pylist()
    for row in np.flatnonzero(placing.wrong_N).tolist():
        kinds[row] = "mask_size"
        reasons[row] = f"{views.sizes(row)}; accepted: the same size, or another one of the same shape"
    canvas_N2 = np.where((drawn_N & np.isfinite(size_N2).all(axis=1))[:, None], placing.stated_N2, np.nan)
    width_N, height_N = ([None if np.isnan(v) else int(v) for v in side.tolist()] for side in canvas_N2.T)
    turn_N = np.where(placing.turn_N, orientation_N, 1)
    for name, values, kind in (
        ("kind", kinds, pa.string()), ("reason", reasons, pa.string()),
        ("stated_width", width_N, pa.int32()), ("stated_height", height_N, pa.int32()),
        ("mask_turn", turn_N.tolist(), pa.int32()),
    ):  # fmt: skip
        column = pa.array(values, kind)
        at = seen.column_names.index(name) if name in seen.column_names else -1
        seen = seen.append_column(name, column) if at < 0 else seen.set_column(at, name, column)
    return seen, placing.findings


def _end(shapes: str) -> tuple[float, float]:
    """Largest x and y of outlines in px; 0 where they are shares or runs, which have their size with them."""
    points: list[Sequence[float]] = [
        polygon
        for shape in json.loads(shapes or "[]")
        if not shape.get("relative")
        for polygon in shape.get("polygons", ())
    ]
    xs = [x for polygon in points for x in polygon[::2]]
    ys = [y for polygon in points for y in polygon[1::2]]
    return max(xs, default=0.0), max(ys, default=0.0)
