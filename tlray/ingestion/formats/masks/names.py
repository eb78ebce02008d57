"""Tables beside masks that say which class an id, a grey value or a colour is.

By the header of a csv: ``name,r,g,b`` (class_dict.csv), ``Pixel Value, Class`` (_classes.csv of Roboflow).
Otherwise by the form of the lines: ``name:r,g,b:parts:actions`` (labelmap.txt of CVAT), ``r g b name``
(label_colors.txt of CamVid), ``name,r,g,b``, ``value, name``, or a name alone, whose id is the number of the
line (classes.txt). JSON: a list of names, or an object of ids and names or of names and colours.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tlray.data.masks import MaskCode
from tlray.errors import DataError
from tlray.ingestion.formats.listing import Listing

FILES = (
    "labelmap.txt", "label_map.txt", "label_colors.txt", "label_colours.txt", "label_color.txt",
    "colormap.txt", "class_dict.csv", "class_dict_seg.csv", "_classes.csv", "classes.csv",
    "classes.txt", "_classes.txt", "class_names.txt", "classnames.txt", "labels.txt", "names.txt",
    "colormap.csv", "label_colors.csv", "labels.csv", "classes.json", "labels.json", "id2label.json",
    "label_map.json", "obj_class_to_machine_color.json",
)  # fmt: skip
_NUMBER = r"(\d{1,3})"
_GAP = r"[\s,;:]+"
_LABELMAP = re.compile(rf"^(.+?):{_NUMBER},{_NUMBER},{_NUMBER}(?::.*)?$")  # its names may be numbers
_COLOUR_LAST = re.compile(rf"^(.+?)\s*[:,;\t ]\s*{_NUMBER}{_GAP}{_NUMBER}{_GAP}{_NUMBER}\s*(?::.*)?$")
_COLOUR_FIRST = re.compile(rf"^{_NUMBER}{_GAP}{_NUMBER}{_GAP}{_NUMBER}{_GAP}(.+)$")
_VALUE_FIRST = re.compile(r"^(-?\d{1,5})(?:\s*[,;:=\t]\s*|\s+)(\D.*)$")
_NAME_COLUMNS = ("name", "class", "class_name", "label", "category")
_VALUE_COLUMNS = ("pixel value", "pixel_value", "value", "id", "class_id", "label_id", "index")
_COLOUR_COLUMNS = (("r", "red"), ("g", "green"), ("b", "blue"))


@dataclass(frozen=True)
class Names:
    """Class names by id, which pixels are of which id, and the tables that say so."""

    names: list[str]
    code: MaskCode | None
    files: list[str]


def tables(listing: Listing) -> list[str]:
    """Files with the names of such tables; only that named as the source, if one was named."""
    return [
        path for path in listing.labels(".txt", ".csv", ".json") if path.rpartition("/")[2].lower() in FILES
    ]


def read(listing: Listing, files: Sequence[str]) -> Names | None:
    """The content of the tables; one of colours or values before a list of names. None where there is no
    table.

    Raises DataError for a table that cannot be understood, and for two that disagree.
    """
    best: Names | None = None
    for path in files:
        table = _json(listing, path) if path.lower().endswith(".json") else _text(listing, path)
        if table is None:
            continue
        if best is None or (best.code is None and table.code is not None):
            best = table
        elif (table.code is None) == (best.code is None):
            if (table.names, table.code) != (best.names, best.code):
                raise DataError(
                    f"{listing.where(path)}: says other classes than {best.files[0]}; accepted: one table, "
                    "or equal ones"
                )
            best = Names(best.names, best.code, [*best.files, path])
    return best


def _text(listing: Listing, path: str) -> Names | None:
    lines = listing.text(path).splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    if path.lower().endswith(".csv") and (of_columns := _columns(listing, path, lines)) is not None:
        return of_columns
    rows = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    if not rows:
        return None
    lines_with_text = [(number, line) for number, line in rows if line and not line.startswith("#")]
    forms = (
        (_LABELMAP, _last), (_COLOUR_FIRST, _first), (_COLOUR_LAST, _last), (_VALUE_FIRST, _value),
    )  # fmt: skip
    # All lines have one form, or all but the header of a csv.
    for start in (0, 1):
        for pattern, of_row in forms:
            matches = [pattern.match(_plain(line, path)) for _, line in lines_with_text[start:]]
            if matches and all(matches):
                pairs = [(of_row(match.groups()), number) for match, (number, _) in
                         zip(matches, lines_with_text[start:], strict=True) if match]  # fmt: skip
                return _of_pairs(listing, path, pairs)
    return _listed(listing, path, [_unquoted(line) for _, line in rows])


def _columns(listing: Listing, path: str, lines: Sequence[str]) -> Names | None:
    """The content of a csv whose header names the columns of class name and value or colour; else None."""
    sign = max(",;\t", key=lines[0].count) if lines else ","
    table = csv.reader(lines, delimiter=sign, skipinitialspace=True)
    header = [cell.strip().lower() for cell in next(table, [])]

    def column(names: Sequence[str]) -> int:
        return next((header.index(name) for name in names if name in header), -1)

    name_at, colour_at = column(_NAME_COLUMNS), [column(names) for names in _COLOUR_COLUMNS]
    key_at = colour_at if min(colour_at) >= 0 else [column(_VALUE_COLUMNS)]
    if min(name_at, *key_at) < 0:
        return None
    pairs: list[tuple[tuple[str, tuple[int, ...]], int]] = []
    for cells in table:
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{listing.where(path)} line {table.line_num}"
        if len(cells) != len(header) or not cells[name_at].strip():
            raise DataError(f"{where}: {sign.join(cells)!r}; accepted: {sign.join(header)}")
        numbers = [cells[position].strip() for position in key_at]
        if invalid := [number for number in numbers if not re.fullmatch(r"-?\d{1,5}", number)]:
            title = header[key_at[numbers.index(invalid[0])]]
            raise DataError(f"{where}: {title} = {invalid[0]!r}; accepted: a whole number")
        pairs.append(((cells[name_at].strip(), tuple(map(int, numbers))), table.line_num))
    return _of_pairs(listing, path, pairs) if pairs else None


def _plain(line: str, path: str) -> str:
    """A line with blanks for tabs; that of a csv without quotes around its cells."""
    if path.lower().endswith(".csv"):
        line = ",".join(next(csv.reader([line], skipinitialspace=True), []))
    return line.replace("\t", " ").strip()


def _unquoted(name: str) -> str:
    """A name without the quotes around it."""
    name = name.strip()
    return name[1:-1] if len(name) > 2 and name[0] == name[-1] and name[0] in "\"'" else name


def _first(groups: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    return _unquoted(groups[3]), tuple(map(int, groups[:3]))


def _last(groups: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    return _unquoted(groups[0].strip(" :,;")), tuple(map(int, groups[1:4]))


def _value(groups: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    return _unquoted(groups[1]), (int(groups[0]),)


def _of_pairs(listing: Listing, path: str, pairs: Sequence[tuple[tuple[str, tuple[int, ...]], int]]) -> Names:
    """The table made of ((name, colour as three numbers or value as one), line) for each row."""
    where, numbers = listing.where(path), {}
    names: list[str] = []
    ordered = sorted(pairs, key=lambda pair: pair[0][1]) if len(pairs[0][0][1]) == 1 else pairs
    for (name, key), line in ordered:
        if len(key) == 3 and not 0 <= min(key) <= max(key) <= 255:
            raise DataError(f"{where} line {line}: colour {key}; accepted: three numbers from 0 to 255")
        value = key[0] << 16 | key[1] << 8 | key[2] if len(key) == 3 else key[0]
        if value in numbers:
            kind = "colour" if len(key) == 3 else "value"
            raise DataError(
                f"{where} line {line}: {kind} {' '.join(map(str, key))} stands twice; accepted: once"
            )
        # Several colours may be of one class, as borders often are; one colour of two classes is a mistake.
        if name not in names:
            names.append(name)
        numbers[value] = names.index(name)
    if len(names) > 255:
        raise DataError(f"{where}: {len(names)} classes; accepted: at most 255")
    code = MaskCode(colours=numbers) if len(pairs[0][0][1]) == 3 else MaskCode(values=numbers)
    return Names(names, code, [path])


def _listed(listing: Listing, path: str, lines: Sequence[str]) -> Names | None:
    """A list of names by line; an empty line counts, and its name is its number."""
    if path.lower().endswith(".csv"):
        return None  # the csv has another meaning
    names = [name or str(number) for number, name in enumerate(lines)]
    for number, name in enumerate(names):
        if names.index(name) != number:
            raise DataError(
                f"{listing.where(path)} line {number + 1}: {name!r} stands in line {names.index(name) + 1}, "
                "too; accepted: a name once"
            )
    return Names(names, None, [path])


def _json(listing: Listing, path: str) -> Names | None:
    try:
        content = json.loads(listing.text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{listing.where(path)}: no JSON ({error}); accepted: a list or object of classes"
        ) from None
    if isinstance(content, list) and content and all(isinstance(name, str) for name in content):
        return _listed(listing, path, content)
    if not isinstance(content, Mapping) or not content:
        return None
    pairs: list[tuple[tuple[str, tuple[int, ...]], int]] = []
    for line, (key, value) in enumerate(content.items(), 1):
        if isinstance(value, str) and str(key).lstrip("-").isdigit():
            pairs.append(((value, (int(key),)), line))
        elif _whole(value):
            pairs.append(((str(key), (int(value),)), line))
        elif isinstance(value, list) and len(value) == 3 and all(map(_whole, value)):
            pairs.append(((str(key), tuple(value)), line))
        else:
            return None
    if len({len(numbers) for (_, numbers), _ in pairs}) > 1:
        return None
    return _of_pairs(listing, path, pairs)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
