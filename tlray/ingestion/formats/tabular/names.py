"""Names of numbered classes, from the small file that lies beside the labels: classes.txt and its kin."""

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
    """Names by number, and the file that says them."""

    file: str
    names: Mapping[int, str]
    counted: bool  # the numbers are positions in the file, from 0


def class_names(listing: Listing, folders: Collection[str], used: Collection[str]) -> list[ClassNames]:
    """Files that may name the classes: small, called so, in these folders or above, not among those used."""
    near = {"", *folders, *(folder.rpartition("/")[0] for folder in folders)}
    found = []
    for path in listing.files:
        folder, _, name = path.rpartition("/")
        low = name.lower()
        if folder not in near or path in used or not low.endswith(_ENDINGS) or not _WORDS.search(low):
            continue
        if len(listing.head(path)) < _SMALL:
            text = listing.head_text(path)
            names = _json(text) if low.endswith(".json") else _lines(text, low.endswith((".csv", ".tsv")))
            if names is not None:
                found.append(ClassNames(path, *names))
    return found


def _json(text: str) -> tuple[dict[int, str], bool] | None:
    """A list of names, number -> name, or name -> number."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(said, list) and said and all(isinstance(name, str) for name in said):
        return dict(enumerate(said)), True
    if not isinstance(said, dict) or not said:
        return None
    if all(key.isdigit() and isinstance(name, str) for key, name in said.items()):
        return {int(key): name for key, name in said.items()}, False
    if all(isinstance(number, int) and not isinstance(number, bool) for number in said.values()):
        turned = {number: name for name, number in said.items()}
        return (turned, False) if len(turned) == len(said) else None
    return None


def _lines(text: str, is_table: bool) -> tuple[dict[int, str], bool] | None:
    lines = lines_of(text)
    while lines and not lines[-1].strip():
        lines.pop()
    if is_table:
        rows = [row for row in csv.reader(lines, skipinitialspace=True) if row]
        return _pairs([row for row in rows if len(row) >= 2]) if rows else None
    filled = [line.strip() for line in lines if line.strip()]
    for pattern, number, name in ((_NUMBER_FIRST, 1, 2), (_NUMBER_LAST, 2, 1)):
        matches = [pattern.fullmatch(line) for line in filled]
        named = {int(m[number]): m[name].strip() for m in matches if m is not None}
        if filled and len(named) == len(filled):
            # Two numbers a line, as the ids and classes of pictures, name nothing.
            return None if all(map(cells.is_integer, named.values())) else (named, False)
    # Every line has its number, an empty one too.
    return ({n: line.strip() for n, line in enumerate(lines) if line.strip()}, True) if filled else None


def _pairs(rows: list[list[str]]) -> tuple[dict[int, str], bool] | None:
    """A table of numbers and names, in either order, with or without a header."""
    body = [row for row in rows if any(cells.is_integer(cell.strip()) for cell in row[:2])]
    if not body or len(body) < len(rows) - 1:
        return None
    number = 0 if all(cells.is_integer(row[0].strip()) for row in body) else 1
    if not all(cells.is_integer(row[number].strip()) for row in body):
        return None
    named = {int(float(row[number])): row[1 - number].strip() for row in body}
    return (named, False) if len(named) == len(body) else None
