"""Names of numbered classes, from a small file beside the labels such as classes.txt."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tlray.ingestion.formats.listing import Listing, lines_of
from tlray.ingestion.formats.tabular import cells

_ENDINGS = (".txt", ".names", ".csv", ".tsv", ".json")
_WORDS = re.compile("class|label|categor|name|synset|sign", re.IGNORECASE)
_SMALL = 60 * 1024  # bytes: a list of classes is smaller
_NUMBER_FIRST = re.compile(r"(\d+)\s*[\s:,;=]\s*(\S.*)")
_NUMBER_LAST = re.compile(r"(\S.*?)\s*[\s:,;=]\s*(\d+)")


@dataclass(frozen=True)
class ClassNames:
    """Class names by number, and the file that states them."""

    file: str
    names: Mapping[int, str]
    counted: bool  # whether the numbers are positions in the file, from 0


def class_names(listing: Listing, folders: Collection[str], used: Collection[str]) -> list[ClassNames]:
    """Files that may name the classes: small files of such names in these folders or above, not in
    ``used``."""
    near_folders = {"", *folders, *(folder.rpartition("/")[0] for folder in folders)}
    tables = []
    for path in listing.files:
        folder, _, name = path.rpartition("/")
        lower = name.lower()
        if (
            folder not in near_folders
            or path in used
            or not lower.endswith(_ENDINGS)
            or not _WORDS.search(lower)
        ):
            continue
        if len(listing.head(path)) < _SMALL:
            text = listing.head_text(path)
            names = _json(text) if lower.endswith(".json") else _lines(text, lower.endswith((".csv", ".tsv")))
            if names is not None:
                tables.append(ClassNames(path, *names))
    return tables


def _json(text: str) -> tuple[dict[int, str], bool] | None:
    """A list of names, number -> name, or name -> number."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(content, list) and content and all(isinstance(name, str) for name in content):
        return dict(enumerate(content)), True
    if not isinstance(content, dict) or not content:
        return None
    if all(key.isdigit() and isinstance(name, str) for key, name in content.items()):
        return {int(key): name for key, name in content.items()}, False
    if all(isinstance(number, int) and not isinstance(number, bool) for number in content.values()):
        by_number = {number: name for name, number in content.items()}
        return (by_number, False) if len(by_number) == len(content) else None
    return None


def _lines(text: str, is_table: bool) -> tuple[dict[int, str], bool] | None:
    lines = lines_of(text)
    while lines and not lines[-1].strip():
        lines.pop()
    if is_table:
        rows = [row for row in csv.reader(lines, skipinitialspace=True) if row]
        return _pairs([row for row in rows if len(row) >= 2]) if rows else None
    lines_with_text = [line.strip() for line in lines if line.strip()]
    for pattern, number, name in ((_NUMBER_FIRST, 1, 2), (_NUMBER_LAST, 2, 1)):
        matches = [pattern.fullmatch(line) for line in lines_with_text]
        names = {int(m[number]): m[name].strip() for m in matches if m is not None}
        if lines_with_text and len(names) == len(lines_with_text):
            # Lines of two numbers, as of the id and class of a picture, hold no names.
            return None if all(map(cells.is_integer, names.values())) else (names, False)
    # Empty lines count for the numbers, too.
    return (
        ({n: line.strip() for n, line in enumerate(lines) if line.strip()}, True) if lines_with_text else None
    )


def _pairs(rows: list[list[str]]) -> tuple[dict[int, str], bool] | None:
    """Rows of a number and a name, in either order, with or without a header."""
    body = [row for row in rows if any(cells.is_integer(cell.strip()) for cell in row[:2])]
    if not body or len(body) < len(rows) - 1:
        return None
    number = 0 if all(cells.is_integer(row[0].strip()) for row in body) else 1
    if not all(cells.is_integer(row[number].strip()) for row in body):
        return None
    names = {int(float(row[number])): row[1 - number].strip() for row in body}
    return (names, False) if len(names) == len(body) else None
