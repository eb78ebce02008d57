"""Lines of YOLO's label files: a box (class x y w h), an outline (class x y x y ...), a box with
keypoints."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tlray.errors import DataError
from tlray.ingestion.formats.listing import lines_of, text_of

Row = tuple[int, tuple[float, ...], int]  # class id, the numbers after it, number of the line

_SLACK = 0.1  # a number may be this far beyond 0 or 1: rounding, objects cut off by the edge; clipped later
_ROUNDING = 0.01
_NEARLY_ALL = 0.9  # share of the rows that decides what all of them are
_FEW = 4  # with fewer boxes than this nothing is concluded from all of them
_NUMBER = re.compile(r"[-+]?[\d.,]+(?:e[-+]?\d+)?", re.IGNORECASE)
_COMMA = re.compile(r"\d,\d|\d, |,\s*\d")


@dataclass(frozen=True)
class LabelFile:
    """Rows of one file, without repeated ones."""

    where: str
    rows: list[Row]
    num_double: int


def parse(where: str, data: bytes) -> LabelFile:
    """Rows of a label file. Raises DataError for a line that is no row of numbers."""
    rows: list[Row] = []
    known_rows = set()
    num_double = 0
    for number, line in enumerate(lines_of(text_of(where, data)), 1):
        cells = line.split()
        if not cells:
            continue
        try:
            label, *values = [float(part) for part in cells]
        except ValueError:
            hint = " with blanks between them and . in them" if _COMMA.search(line) else ""
            raise DataError(
                f"{where} line {number}: {_short(line)}; accepted: numbers{hint}, class x y width height"
            ) from None
        if not math.isfinite(sum(values) + label):
            raise DataError(
                f"{where} line {number}: {_short(line)}; accepted: numbers, none of them nan or inf"
            )
        if label != int(label) or label < 0:
            raise DataError(f"{where} line {number}: class {cells[0]}; accepted: whole numbers from 0")
        row = (int(label), tuple(values))
        if row in known_rows:
            num_double += 1
            continue
        known_rows.add(row)
        rows.append((*row, number))
    return LabelFile(where, rows, num_double)


def looks_like_rows(head: str) -> bool:
    """Whether a file's first lines are rows of five numbers or more with a class id first."""
    lines = [line.split() for line in lines_of(head)]
    lines = [cells for cells in lines[:-1] or lines if cells][:5]
    return bool(lines) and all(_is_row(cells) for cells in lines)


def _is_row(cells: Sequence[str]) -> bool:
    if len(cells) == 1 and cells[0].count(",") >= 4:  # not read, but this is what it is meant to be
        cells = cells[0].split(",")
    try:
        class_id, *rest_cells = cells
        shares = [float(part.replace(",", ".")) for part in rest_cells]
        if not _NUMBER.fullmatch(class_id):  # a name in place of the id, which `parse` refuses
            return len(shares) >= 4 and all(0 <= value <= 1 for value in shares)
        values = [float(class_id.replace(",", ".")), *shares]
    except ValueError:
        return False
    # A larger first number is no class id.
    return len(values) >= 5 and values[0] == math.floor(values[0]) and -1 <= values[0] < 100_000


# ---- checks of all rows together


def check(
    files: Sequence[LabelFile],
    names: Mapping[int, str],
    empty: Sequence[int],
    keypoints: tuple[int, int] | None,
) -> None:
    """Raises DataError for the first row that is no box, outline or (with ``keypoints``) pose, for a class
    without a name, and where the rows together show that their numbers mean something else."""
    _check_ids(files, names, empty)
    if not keypoints:
        _check_keypoints(files)
    for file in files:
        for _, values, line in file.rows:
            where = f"{file.where} line {line}"
            num = len(values)
            if keypoints and num not in (4, 4 + keypoints[0] * keypoints[1]):
                raise DataError(
                    f"{where}: {num + 1} numbers; accepted: {5 + keypoints[0] * keypoints[1]}, as kpt_shape "
                    f"{list(keypoints)} says"
                )
            if num == 5:
                raise DataError(
                    f"{where}: 6 numbers, class x y width height and one more (a confidence, as predictions "
                    "have it, or an angle); accepted: class x y width height, or an outline"
                )
            if not keypoints and (num < 4 or (num > 4 and (num < 6 or num % 2))):
                raise DataError(
                    f"{where}: {num + 1} numbers; accepted: class x y width height, or an outline (class and "
                    "three points or more); keypoints need kpt_shape in data.yaml"
                )
            _check_values(where, values[:4] if keypoints else values)
            if (keypoints or num == 4) and min(values[2:4]) < 0:
                raise DataError(f"{where}: width {values[2]:g}, height {values[3]:g}; accepted: 0 to 1")
    _check_corners(files)


def _check_values(where: str, values: Sequence[float]) -> None:
    outside = next((v for v in values if not -_SLACK <= v <= 1 + _SLACK), None)
    if outside is not None:
        hint = " (px?)" if outside > 2 else ""
        raise DataError(f"{where}: {outside:g}{hint}; accepted: shares of the picture's sides, 0 to 1")


def _check_ids(files: Sequence[LabelFile], names: Mapping[int, str], empty: Sequence[int]) -> None:
    used = Counter(label for file in files for label, _, _ in file.rows)
    unknown = set(used) - set(names)
    if not unknown:
        return
    file, label, line = next((f, i, n) for f in files for i, _, n in f.rows if i in unknown)
    accepted = ", ".join(f"{k} ({n})" for k, n in [*names.items()][:20])
    and_more = f", ... ({len(names)} in all)" if len(names) > 20 else ""
    hint = ""
    if label in empty:
        hint = f" (line {label + 1} of the class list is empty)"
    elif 0 not in used and max(used) == max(names) + 1:
        hint = " (ids seem to begin at 1: 0 never occurs)"
    raise DataError(f"{file.where} line {line}: class {label}{hint}; accepted: {accepted}{and_more}")


def _check_keypoints(files: Sequence[LabelFile]) -> None:
    """Raises DataError where rows seem to be boxes with keypoints and no kpt_shape says so.

    Both these and outlines may have equally many numbers in all rows. Keypoints have a visibility of 0, 1 or
    2 as every third number, or all lie in the box of the first four numbers.
    """
    rows = [values for file in files for _, values, _ in file.rows]
    lengths = {len(values) for values in rows}
    if len(lengths) != 1 or lengths == {4}:
        return
    num = lengths.pop()
    if num < 6 or (num % 2 and (num - 4) % 3):
        return
    if num == 8 and sum(map(_is_parallelogram, rows)) >= len(rows) / 2:
        return  # oriented boxes
    with_marks = num > 4 and (num - 4) % 3 == 0 and all(set(values[6::3]) <= {0, 1, 2} for values in rows)
    if with_marks or sum(map(_points_in_box, rows)) >= _NEARLY_ALL * len(rows):
        where = next(file.where for file in files if file.rows)
        raise DataError(
            f"{where}: {num + 1} numbers in every row may be a box with keypoints or an outline; accepted: "
            "keypoints with kpt_shape (as [17, 3]) in data.yaml"
        )


def _is_parallelogram(v: Sequence[float]) -> bool:
    return abs(v[0] + v[4] - v[2] - v[6]) < 2e-3 and abs(v[1] + v[5] - v[3] - v[7]) < 2e-3


def _points_in_box(values: Sequence[float]) -> bool:
    x, y, w, h = values[:4]
    if w <= 0 or h <= 0 or not _inside(values[:4]):
        return False
    if len(values) % 2:
        return False
    points = zip(values[4::2], values[5::2], strict=True)
    return all(
        (px == 0 and py == 0)
        or (abs(px - x) <= w / 2 + _ROUNDING and abs(py - y) <= h / 2 + _ROUNDING)
        for px, py in points
    )  # fmt: skip


def _inside(box: Sequence[float]) -> bool:
    """Whether a box (centre x, y, width, height) lies within the picture."""
    return all(
        c - s / 2 >= -_ROUNDING and c + s / 2 <= 1 + _ROUNDING for c, s in zip(box[:2], box[2:], strict=True)
    )


def _check_corners(files: Sequence[LabelFile]) -> None:
    """Raises DataError where boxes seem to be written as x1 y1 x2 y2: read as centre and size they lead out
    of the picture."""
    boxes = [
        (values, file.where, line) for file in files for _, values, line in file.rows if len(values) == 4
    ]
    outside = [box for box in boxes if not _inside(box[0])]
    if (
        len(boxes) >= _FEW
        and len(outside) >= len(boxes) / 2
        and all(v[2] > v[0] and v[3] > v[1] for v, _, _ in boxes)
    ):
        values, where, line = outside[0]
        raise DataError(
            f"{where} line {line}: {' '.join(f'{v:g}' for v in values)}: "
            f"{len(outside)} of {len(boxes)} boxes lead out of their pictures and all fit as corners "
            "(x1 y1 x2 y2); accepted: centre x, centre y, width, height"
        )


# ---- boxes


def box_of(values: Sequence[float], is_pose: bool) -> list[float]:
    """x, y, width, height of the box, or of the box around the outline, in shares of the sides."""
    if is_pose or len(values) == 4:
        x, y, w, h = values[:4]
        return [x - w / 2, y - h / 2, w, h]
    xs, ys = values[::2], values[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _short(line: str) -> str:
    text = repr(line.strip())
    return text if len(text) <= 100 else f"{text[:97]}...'"
