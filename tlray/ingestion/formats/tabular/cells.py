"""Cells of a table: text, missing values, yes and no, numbers, lists written as text."""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

# As programs write them; in other spellings, as "none" or "na", it may be the name of a class.
MISSING = frozenset(
    ["", "nan", "NaN", "NAN", "null", "NULL", "None", "<NA>", "<na>", "N/A", "#N/A", "?", "nil"]
)
YES = frozenset(["1", "1.0", "true", "t", "yes", "y"])
NO = frozenset(["0", "0.0", "false", "f", "no", "n"])
_INTEGER = re.compile(r"[+-]?\d+(\.0*)?")
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_BRACKETS = {"[": "]", "{": "}", "(": ")"}


def text(value: Any) -> str:
    """A cell as text: "" for null and NaN; "3" for 3.0, which pandas makes of 3 in a column with empty
    cells."""
    if value is None:
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
    return value.strip() if isinstance(value, str) else str(value).strip()


def is_missing(cell: str) -> bool:
    """Whether a cell means that there is no value."""
    return cell in MISSING


def is_integer(cell: str) -> bool:
    """Whether a cell is a whole number, perhaps written as 3.0."""
    return bool(_INTEGER.fullmatch(cell))


def is_number(cell: str) -> bool:
    """Whether a cell is a number."""
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def yes_or_no(cell: str) -> bool | None:
    """The answer in a cell of 0 and 1 (True and False, yes and no); None for anything else."""
    lower = cell.lower()
    return True if lower in YES else False if lower in NO else None


def as_list(value: Any) -> list[str] | None:
    """The texts of a list, or of one written as text: ``['cat', 'dog']``, ``{cat,dog}``, ``["cat" "dog"]``.

    None where the value is neither. Nothing in the text is executed.
    """
    if isinstance(value, list | tuple):
        return [text(part) for part in value]
    if not isinstance(value, str) or len(value) < 2 or _BRACKETS.get(value[0]) != value[-1]:
        return None
    inner = value[1:-1].strip()
    quoted = _QUOTED.findall(inner)
    if quoted:
        # Between the quoted texts are commas and blanks; numpy writes lists without commas.
        if _QUOTED.sub("", inner).replace(",", "").strip():
            return None
        try:
            return [str(ast.literal_eval(part)).strip() for part in quoted]
        except (ValueError, SyntaxError):
            return None
    sign = "," if "," in inner else None
    return [part.strip() for part in inner.split(sign) if part.strip()]


def null_parts(value: Any) -> list[str]:
    """The parts of a list that mean that there is no value. In quotes, and in JSON and Parquet, ``"null"`` is
    a text like any other and only the empty text means it."""
    is_quoted = not isinstance(value, str) or bool(_QUOTED.search(value))
    return [part for part in as_list(value) or () if not part or (not is_quoted and is_missing(part))]


def separator(cells: Sequence[str], several: bool) -> str | None:
    """The sign between the classes of a cell, as far as the cells prove it; None where each cell is one
    class.

    ``several``: the name of the column says that a cell may have several classes (labels, tags), so any sign
    counts. Otherwise parts must recur beside different other parts, which those of "tench, Tinca tinca" never
    do. A blank separates only where parts recur.
    """
    distinct = set(cells) - MISSING
    for sign in "|;,":
        joined = [cell for cell in distinct if sign in cell]
        if joined and (several or sign == "|" or len(parts(distinct, sign)) < len(distinct)):
            return sign
    joined = [cell for cell in distinct if " " in cell]
    if not joined or not several:
        return None
    words = parts(distinct, " ")
    some_alone = any(cell in words for cell in distinct if " " not in cell and words[cell] > 1)
    # "black cat" beside "cat" may be a class of its own, so every word must recur.
    all_return = all(words[word] > 1 for cell in joined for word in cell.split())
    return " " if len(words) <= len(distinct) / 2 or (some_alone and all_return) else None


def parts(cells: Iterable[str], sign: str) -> Counter[str]:
    """The parts of cells, and the number of cells that each is in."""
    return Counter(part for cell in cells for part in dict.fromkeys(split(cell, sign)))


def split(cell: str, sign: str | None) -> list[str]:
    """The classes of a cell, each once."""
    if is_missing(cell):
        return []
    pieces = [cell] if sign is None else cell.split(None if sign == " " else sign)
    return list(dict.fromkeys(part for part in map(str.strip, pieces) if not is_missing(part)))
