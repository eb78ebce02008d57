"""Cells of a table: text, missing values, yes and no, numbers, lists written as text."""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

# Spelled as programs write them: a class may well be called "none" or "na".
MISSING = frozenset(
    ["", "nan", "NaN", "NAN", "null", "NULL", "None", "<NA>", "<na>", "N/A", "#N/A", "?", "nil"]
)
YES = frozenset(["1", "1.0", "true", "t", "yes", "y"])
NO = frozenset(["0", "0.0", "false", "f", "no", "n"])
_INTEGER = re.compile(r"[+-]?\d+(\.0*)?")
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_BRACKETS = {"[": "]", "{": "}", "(": ")"}


def text(value: Any) -> str:
    """A cell as text: nothing for null and NaN; 3 for the number 3.0, which pandas makes of 3 beside gaps."""
    if value is None:
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
    return value.strip() if isinstance(value, str) else str(value).strip()


def is_missing(cell: str) -> bool:
    """Whether a cell says that there is no value."""
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
    """What a cell of 0 and 1 (True and False, yes and no) says; None for anything else."""
    low = cell.lower()
    return True if low in YES else False if low in NO else None


def as_list(value: Any) -> list[str] | None:
    """The texts of a list, or of one written as text: ``['cat', 'dog']``, ``{cat,dog}``, ``["cat" "dog"]``.

    None where the value is neither. Nothing that the text holds is run.
    """
    if isinstance(value, list | tuple):
        return [text(part) for part in value]
    if not isinstance(value, str) or len(value) < 2 or _BRACKETS.get(value[0]) != value[-1]:
        return None
    inner = value[1:-1].strip()
    quoted = _QUOTED.findall(inner)
    if quoted:
        # What stands between the quoted texts is commas and blanks: numpy writes lists without commas.
        if _QUOTED.sub("", inner).replace(",", "").strip():
            return None
        try:
            return [str(ast.literal_eval(part)).strip() for part in quoted]
        except (ValueError, SyntaxError):
            return None
    sign = "," if "," in inner else None
    return [part.strip() for part in inner.split(sign) if part.strip()]


def says_null(value: Any) -> list[str]:
    """The parts of a list that say that there is no value. In quotes, and in JSON and Parquet, ``"null"`` is
    a text as any other, so that only the empty one is left out."""
    quoted = not isinstance(value, str) or bool(_QUOTED.search(value))
    return [part for part in as_list(value) or () if not part or (not quoted and is_missing(part))]


def separator(cells: Sequence[str], several: bool) -> str | None:
    """What stands between the classes of a cell, by evidence; None where each cell is one class.

    ``several``: the column is called as one of several classes is (labels, tags), so any sign counts; else
    the parts must come back in different company, as the parts of "tench, Tinca tinca" never do. A blank
    is one only where the parts come back, too.
    """
    distinct = set(cells) - MISSING
    for sign in "|;,":
        mixed = [cell for cell in distinct if sign in cell]
        if mixed and (several or sign == "|" or len(parts(distinct, sign)) < len(distinct)):
            return sign
    mixed = [cell for cell in distinct if " " in cell]
    if not mixed or not several:
        return None
    words = parts(distinct, " ")
    alone = any(cell in words for cell in distinct if " " not in cell and words[cell] > 1)
    # "black cat" beside "cat" may be a class of its own: every word must come back.
    back = all(words[word] > 1 for cell in mixed for word in cell.split())
    return " " if len(words) <= len(distinct) / 2 or (alone and back) else None


def parts(cells: Iterable[str], sign: str) -> Counter[str]:
    """The parts of cells, and in how many cells each is."""
    return Counter(part for cell in cells for part in dict.fromkeys(split(cell, sign)))


def split(cell: str, sign: str | None) -> list[str]:
    """The classes of a cell, each once."""
    if is_missing(cell):
        return []
    whole = [cell] if sign is None else cell.split(None if sign == " " else sign)
    return list(dict.fromkeys(part for part in map(str.strip, whole) if not is_missing(part)))
