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
    rows: list[int]  # place of each row in the file, from 1: a line, or a row of Parquet


Names = Callable[[str], bool]  # whether a cell names a picture


def read(listing: Listing, path: str, names: Names, head: bool = False) -> Iterator[Records]:
    """The possible readings of a file, the likeliest first; none where it holds no rows.

    ``head``: only the beginning of the file, as far as it can be read, without errors for mistakes in it.
    Raises DataError with the file and the line, StorageError.
    """
    lower = path.lower()
    if lower.endswith(".parquet"):
        yield from _parquet(listing, path, head)
        return
    if lower.endswith(".json"):
        yield from _json(listing, path, names, head)
        return
    text = _head_of(listing, path) if head else listing.text(path)
    if lower.endswith((".jsonl", ".ndjson")):
        yield from _jsonl(listing, path, text, head)
        return
    yield from _separated(listing, path, text, names, head)
    if lower.endswith(LISTS):
        yield from _lists(path, text, names)


def _head_of(listing: Listing, path: str) -> str:
    """The whole lines in the beginning of a file."""
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
    first_cells = rows[0][1]
    has_no_header = _is_bare(rows, names)
    header = (
        [f"column {n}" for n in range(1, len(first_cells) + 1)] if has_no_header else _header(first_cells)
    )
    columns: dict[str, list[Any]] = {name: [] for name in header}
    if len(columns) < len(header):
        repeated = next(name for name in header if header.count(name) > 1)
        if head:
            return
        raise DataError(f"{listing.where(path)}: two columns {repeated!r}; accepted: one of each")
    places = []
    for line, row in rows if has_no_header else rows[1:]:
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
    """(number of lines before the first row of a table, the sign between its cells or None).

    Such lines are comments, empty lines and Excel's ``sep=;``.
    """
    skipped = 0
    while skipped < len(lines) and (lines[skipped].startswith("#") or not lines[skipped].strip()):
        skipped += 1
    excel = _EXCEL.fullmatch(lines[skipped].strip()) if skipped < len(lines) else None
    if excel is not None:
        return skipped + 1, excel[1]
    return skipped, _sign([line for line in lines[skipped : skipped + _TRIED] if line.strip()])


def _is_bare(rows: Sequence[tuple[int, list[str]]], names: Names) -> bool:
    """Whether the first row is no header, since it names a picture in the column where the other rows do.

    In other columns the class "3" may match 000003.jpg, and the header "image" the name of a picture.
    """
    first_cells, sample = rows[0][1], [row for _, row in rows[1 : 1 + _TRIED]]
    best_column, best_score = 0, (0, 0)
    for n in range(len(first_cells)):
        pictures = {row[n] for row in sample if n < len(row) and names(row[n])}
        # Of a column of 1 to 9 and one of p1.jpg to p9.jpg, take that of whole names.
        share = (sum("." in first_cell for first_cell in pictures), len(pictures))
        if share > best_score:
            best_column, best_score = n, share
    first_cell = first_cells[best_column]
    return (
        best_score[1] > 0 and ("." in first_cell or any(map(str.isdigit, first_cell))) and names(first_cell)
    )


def _header(cells: Sequence[str]) -> list[str]:
    """Names of columns, numbers for those without a name (the index of pandas)."""
    return [cell or f"column {n}" for n, cell in enumerate(cells, 1)]


def _sign(lines: Sequence[str]) -> str | None:
    """The separator by which most lines have as many cells as the first line."""
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
    """The rows of JSON: a list of flat objects, or an object of ``picture: label`` or ``label: [pictures]``.

    None for other JSON, and where most rows name no picture that exists.
    """
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
    """The members of a JSON list or object (as key and value) whose text may be cut off."""
    decoder, values = json.JSONDecoder(), list[Any]()
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
                member, start = decoder.raw_decode(text, _SPACE.match(text, colon + 1).end())  # type: ignore[union-attr]
                value = (value, member)
            values.append(value)
            start = _SPACE.match(text, start).end()  # type: ignore[union-attr]
            if text[start : start + 1] != ",":
                return values
    except (ValueError, RecursionError):
        return values


def _rows_of(content: Sequence[Any], names: Names) -> list[dict[str, Any]]:
    """The members of JSON as rows; none where they have another form or most name no picture."""
    if all(isinstance(member, dict) and all(map(_is_flat, member.values())) for member in content):
        rows = list(content)
        names_picture = [any(isinstance(v, str) and names(v) for v in row.values()) for row in rows[:_TRIED]]
    elif all(isinstance(member, tuple) and _is_flat(member[1]) for member in content):
        rows = [{"path": key, "label": value} for key, value in content]
        names_picture = [names(row["path"]) for row in rows[:_TRIED]]
        if not any(names_picture) and all(isinstance(value, list) for _, value in content):
            rows = [{"path": picture, "label": key} for key, value in content for picture in value]
            names_picture = [isinstance(row["path"], str) and names(row["path"]) for row in rows[:_TRIED]]
        elif any(isinstance(row["label"], list) for row in rows):
            rows = [{"path": row["path"], "labels": row["label"]} for row in rows]
    else:
        return []
    return rows if 2 * sum(names_picture) > len(names_picture) else []


def _is_flat(value: Any) -> bool:
    parts = value if isinstance(value, list) else [value]
    return not any(isinstance(part, list | dict) for part in parts)


def of_rows(path: str, rows: Sequence[dict[str, Any]], places: Sequence[int]) -> Records:
    """Rows as columns; null where a row lacks a key."""
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
    """Whether values of a type can be labels or paths: no bytes, and no extension types, which may run
    code."""
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
        path_position = order.index("path")
        cells = [_parted(line, path_position, names) for _, line in lines[:_TRIED]]
        if cells and sum(len(row) == 2 and names(row[path_position]) for row in cells) > len(cells) / 2:
            pairs = [(number, _parted(line, path_position, names)) for number, line in lines]
            pairs = [(number, row if len(row) == 2 else [row[0], ""]) for number, row in pairs]
            columns = {name: [row[n] for _, row in pairs] for n, name in enumerate(order)}
            # As in CUB-200's images.txt: numbers that count the pictures are no classes.
            if len(pairs) > 2 and columns["label"] == [str(n) for n in range(1, len(pairs) + 1)]:
                columns["id"] = columns.pop("label")
            yield Records(path, columns, [number for number, _ in pairs])
            return
    if lines and sum(names(line) for _, line in lines[:_TRIED]) > len(lines[:_TRIED]) / 2:
        yield Records(path, {"path": [line for _, line in lines]}, [number for number, _ in lines])


def _parted(line: str, path_position: int, names: Names) -> list[str]:
    """A line as path and label, in the order that ``path_position`` says.

    They are separated at the blank that leaves the longest path of a picture, or, where none leaves the path
    of a picture, at the blank that leaves the shortest label.
    """
    blanks = list(_BLANKS.finditer(line))
    for blank in blanks if path_position else reversed(blanks):
        cells = [line[: blank.start()], line[blank.end() :]]
        words = cells[1 - path_position].split()
        is_row_of_numbers = len(words) > 1 and all(map(is_number, words))
        if names(cells[path_position]) and not is_row_of_numbers:
            return cells
    return line.split(None, 1) if path_position else line.rsplit(None, 1)
