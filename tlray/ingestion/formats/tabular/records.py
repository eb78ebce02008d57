"""Files of rows: csv, tsv, jsonl, JSON, Parquet, and lists of ``path label`` as text."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tlray import storage
from tlray.data import shards
from tlray.errors import DataError, StorageError
from tlray.ingestion.formats.listing import HEAD, Listing, lines_of
from tlray.ingestion.formats.tabular.cells import is_number

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt", ".lst")
LISTS = (".txt", ".lst")
_TRIED = 50  # lines that tell the separator
_EXCEL = re.compile(r"sep=(.)", re.IGNORECASE)  # the first line that Excel writes or asks for
_SPACE = re.compile(r"\s*")
_BLANKS = re.compile(r"\s+")
csv.field_size_limit(16 * 2**20)


@dataclass(frozen=True)
class Records:
    """The rows of one file by column: text of csv, values of jsonl and Parquet."""

    file: str  # relative to the listing's root
    columns: dict[str, list[Any]]
    rows: list[int]  # where each row stands in the file, from 1: a line, or a row of Parquet


Names = Callable[[str], bool]  # whether a cell names a picture


def read(listing: Listing, path: str, names: Names, head: bool = False) -> Iterator[Records]:
    """The readings of a file that are possible, the likeliest first; none where it holds no rows.

    ``head``: only its beginning, as far as it can be read, and without errors for what is wrong there.
    Raises DataError with the file and the line, StorageError.
    """
    low = path.lower()
    if low.endswith(".parquet"):
        yield from _parquet(listing, path, head)
        return
    if low.endswith(".json"):
        yield from _json(listing, path, names, head)
        return
    text = _head_of(listing, path) if head else listing.text(path)
    if low.endswith((".jsonl", ".ndjson")):
        yield from _jsonl(listing, path, text, head)
        return
    yield from _separated(listing, path, text, names, head)
    if low.endswith(LISTS):
        yield from _lists(path, text, names)


def _head_of(listing: Listing, path: str) -> str:
    """The whole lines of a file's beginning."""
    data, text = listing.head(path), listing.head_text(path)
    cut = len(data) >= HEAD and "\n" in text
    return text[: text.rindex("\n")] if cut else text


def _separated(listing: Listing, path: str, text: str, names: Names, head: bool) -> Iterator[Records]:
    lines = lines_of(text)
    skipped, sign = opening(lines)
    lines = lines[skipped:]
    if sign is None:
        return
    reader = csv.reader(io.StringIO("\n".join(lines)), delimiter=sign, skipinitialspace=True, strict=not head)
    rows: list[tuple[int, list[str]]] = []
    start = skipped + 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((start, [cell.strip() for cell in row]))
            start = skipped + reader.line_num + 1
    except csv.Error as error:
        if not head:
            raise DataError(
                f"{listing.where(path)} row {start}: no valid table ({error}); accepted: cells separated "
                f"by {sign!r}, in double quotes where they hold one"
            ) from None
    if not rows:
        return
    first = rows[0][1]
    bare = _is_bare(rows, names)
    header = [f"column {n}" for n in range(1, len(first) + 1)] if bare else _header(first)
    columns: dict[str, list[Any]] = {name: [] for name in header}
    if len(columns) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        if head:
            return
        raise DataError(f"{listing.where(path)}: two columns {twice!r}; accepted: one of each")
    places = []
    for line, row in rows if bare else rows[1:]:
        while len(row) > len(header) and not row[-1]:
            row.pop()
        if len(row) > len(header) or len(row) < len(header) - 1:
            if head:
                continue
            raise DataError(
                f"{listing.where(path)} row {line}: no valid table ({len(row)} cells, the header has "
                f"{len(header)}); accepted: as many, separated by {sign!r}, in quotes where they hold one"
            )
        row += [""] * (len(header) - len(row))
        places.append(line)
        for name, cell in zip(header, row, strict=True):
            columns[name].append(cell)
    yield Records(path, columns, places)


def opening(lines: Sequence[str]) -> tuple[int, str | None]:
    """(number of lines before a table's first row: comments, empty ones, Excel's ``sep=;``; the sign between
    its cells, None where there is none)."""
    skipped = 0
    while skipped < len(lines) and (lines[skipped].startswith("#") or not lines[skipped].strip()):
        skipped += 1
    excel = _EXCEL.fullmatch(lines[skipped].strip()) if skipped < len(lines) else None
    if excel is not None:
        return skipped + 1, excel[1]
    return skipped, _sign([line for line in lines[skipped : skipped + _TRIED] if line.strip()])


def _is_bare(rows: Sequence[tuple[int, list[str]]], names: Names) -> bool:
    """Whether the first row is no header: it names a picture where the other rows do.

    Only in that column: the class "3" may be called as 000003.jpg is, and "image" as a picture by chance.
    """
    first, some = rows[0][1], [row for _, row in rows[1 : 1 + _TRIED]]
    best, most = 0, (0, 0)
    for n in range(len(first)):
        named = {row[n] for row in some if n < len(row) and names(row[n])}
        # Of two such columns, as of 1 to 9 beside p1.jpg to p9.jpg, the one of whole names.
        share = (sum("." in cell for cell in named), len(named))
        if share > most:
            best, most = n, share
    cell = first[best]
    return most[1] > 0 and ("." in cell or any(map(str.isdigit, cell))) and names(cell)


def _header(cells: Sequence[str]) -> list[str]:
    """Names of columns; those without one (pandas' index) by their number."""
    return [cell or f"column {n}" for n, cell in enumerate(cells, 1)]


def _sign(lines: Sequence[str]) -> str | None:
    """The separator with which most lines have as many cells as the first."""
    best: tuple[float, int, str] | None = None
    for sign in ",;\t|":
        try:
            counts = [len(row) for row in csv.reader(lines, delimiter=sign, skipinitialspace=True) if row]
        except csv.Error:
            continue
        if not counts or counts[0] < 2:
            continue
        score = (sum(count == counts[0] for count in counts) / len(counts), counts[0], sign)
        best = score if best is None or score[:2] > best[:2] else best
    return best[2] if best is not None and best[0] > 0.5 else None


def _jsonl(listing: Listing, path: str, text: str, head: bool) -> Iterator[Records]:
    rows: list[dict[str, Any]] = []
    places = []
    for number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if head:
                continue
            raise DataError(
                f"{listing.where(path)} line {number}: no JSON ({error}); accepted: one object a line"
            ) from None
        if not isinstance(row, dict):
            if head:
                return
            raise DataError(f"{listing.where(path)} line {number}: no object; accepted: one object a line")
        rows.append(row)
        places.append(number)
    if rows:
        yield of_rows(path, rows, places)


def _json(listing: Listing, path: str, names: Names, head: bool) -> Iterator[Records]:
    """A list of flat objects, or an object of ``picture: label`` or ``label: [pictures]``; other JSON, and
    such as names no picture that is there, is none of rows."""
    if not _rows_of(members(listing.head_text(path)), names):
        return
    if head:
        rows = _rows_of(members(listing.head_text(path)), names)
    else:
        try:
            content = json.loads(listing.text(path))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{listing.where(path)}: no JSON ({error}); accepted: valid JSON") from None
        rows = _rows_of(list(content.items()) if isinstance(content, dict) else content, names)
    if rows:
        yield of_rows(path, rows, range(1, len(rows) + 1))


def members(text: str) -> list[Any]:
    """What a JSON list or object (as key and value) holds, as far as the text goes."""
    decoder, found = json.JSONDecoder(), list[Any]()
    start = _SPACE.match(text, 0).end()  # type: ignore[union-attr]
    opened = text[start : start + 1]
    if opened not in ("[", "{"):
        return []
    try:
        while True:
            start = _SPACE.match(text, start + 1).end()  # type: ignore[union-attr]
            value, start = decoder.raw_decode(text, start)
            if opened == "{":
                colon = _SPACE.match(text, start).end()  # type: ignore[union-attr]
                more, start = decoder.raw_decode(text, _SPACE.match(text, colon + 1).end())  # type: ignore[union-attr]
                value = (value, more)
            found.append(value)
            start = _SPACE.match(text, start).end()  # type: ignore[union-attr]
            if text[start : start + 1] != ",":
                return found
    except (ValueError, RecursionError):
        return found


def _rows_of(content: Sequence[Any], names: Names) -> list[dict[str, Any]]:
    """Rows of members of JSON; none where they are of another kind or most name no picture."""
    if all(isinstance(one, dict) and all(map(_is_flat, one.values())) for one in content):
        rows = list(content)
        named = [any(isinstance(v, str) and names(v) for v in row.values()) for row in rows[:_TRIED]]
    elif all(isinstance(one, tuple) and _is_flat(one[1]) for one in content):
        rows = [{"path": key, "label": value} for key, value in content]
        named = [names(row["path"]) for row in rows[:_TRIED]]
        if not any(named) and all(isinstance(value, list) for _, value in content):
            rows = [{"path": picture, "label": key} for key, value in content for picture in value]
            named = [isinstance(row["path"], str) and names(row["path"]) for row in rows[:_TRIED]]
        elif any(isinstance(row["label"], list) for row in rows):
            rows = [{"path": row["path"], "labels": row["label"]} for row in rows]
    else:
        return []
    return rows if 2 * sum(named) > len(named) else []


def _is_flat(value: Any) -> bool:
    plain = value if isinstance(value, list) else [value]
    return not any(isinstance(one, list | dict) for one in plain)


def of_rows(path: str, rows: Sequence[dict[str, Any]], places: Sequence[int]) -> Records:
    """Rows as columns; a key that a row lacks is null there."""
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    return Records(path, {name: [row.get(name) for row in rows] for name in names}, list(places))


def _parquet(listing: Listing, path: str, head: bool) -> Iterator[Records]:
    place = listing.where(path)
    try:
        with storage.faults(place):
            file = shards.Parquet(place)
            plain = [field.name for field in file.schema if is_plain(field.type)]
            if embeds_pictures(file.schema) or not plain:
                return
            handle = file.connect()
            groups = range(min(1, len(file.rows))) if head else range(len(file.rows))
            tables = [file.group(handle, n, plain) for n in groups]
    except (pa.ArrowException, StorageError) as error:
        if head:
            return
        raise DataError(f"{place}: no valid Parquet file ({str(error).splitlines()[0]})") from None
    if tables:
        table = pa.concat_tables(tables)
        columns = {name: table[name].to_pylist() for name in plain}
        yield Records(path, columns, list(range(1, table.num_rows + 1)))


def is_plain(kind: pa.DataType) -> bool:
    """Whether values of a type can be labels or paths: no extension types, which may run code, no bytes."""
    if isinstance(kind, pa.BaseExtensionType):
        return False
    if pa.types.is_dictionary(kind):
        return is_plain(kind.value_type)
    if kind.num_fields:
        return all(is_plain(kind.field(n).type) for n in range(kind.num_fields))
    return not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def embeds_pictures(schema: pa.Schema) -> bool:
    """Whether a column holds encoded pictures, as Hugging Face writes them."""
    return any(
        pa.types.is_struct(field.type)
        and {"bytes", "path"} <= {field.type.field(n).name for n in range(field.type.num_fields)}
        for field in schema
    ) or any(
        (pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type))
        and field.name.lower() in ("image", "img", "bytes", "image_bytes", "jpg", "png")
        for field in schema
    )


def _lists(path: str, text: str, names: Names) -> Iterator[Records]:
    """Lines of ``path label``, or ``label path``; both may hold blanks."""
    lines = [(number, line.strip()) for number, line in enumerate(lines_of(text), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    for order in (("path", "label"), ("label", "path")):
        at = order.index("path")
        cells = [_parted(line, at, names) for _, line in lines[:_TRIED]]
        if cells and sum(len(row) == 2 and names(row[at]) for row in cells) > len(cells) / 2:
            two = [(number, _parted(line, at, names)) for number, line in lines]
            two = [(number, row if len(row) == 2 else [row[0], ""]) for number, row in two]
            columns = {name: [row[n] for _, row in two] for n, name in enumerate(order)}
            # As in CUB-200's images.txt: numbers that count the pictures are no classes.
            if len(two) > 2 and columns["label"] == [str(n) for n in range(1, len(two) + 1)]:
                columns["id"] = columns.pop("label")
            yield Records(path, columns, [number for number, _ in two])
            return
    if lines and sum(names(line) for _, line in lines[:_TRIED]) > len(lines[:_TRIED]) / 2:
        yield Records(path, {"path": [line for _, line in lines]}, [number for number, _ in lines])


def _parted(line: str, at: int, names: Names) -> list[str]:
    """Path (the first cell, or the second: ``at``) and label: of the blanks that may separate them the one
    that leaves the longest path of a picture; where none does, the one that leaves the shortest label."""
    blanks = list(_BLANKS.finditer(line))
    for blank in blanks if at else reversed(blanks):
        cells = [line[: blank.start()], line[blank.end() :]]
        words = cells[1 - at].split()
        if names(cells[at]) and not (len(words) > 1 and all(map(is_number, words))):  # a row of numbers
            return cells
    return line.split(None, 1) if at else line.rsplit(None, 1)
