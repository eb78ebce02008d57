"""A table of pictures: a .csv (or .tsv) file with columns path, label or labels and, if wanted, split.

The path's column may also be called file, image or filename. Paths are relative to the table's folder,
or absolute below it. Separator: comma, semicolon or tab, whichever the header holds most often.

``label`` is one class a row, ``labels`` any number of them, none too: ``shirt|blue``. What stands between
them is the first of ``|``, ``;`` and ``,`` that occurs anywhere in that column (in quotes where it is the
table's separator too), so with ``|`` the names themselves may hold the other two. Where there is neither
column, two or more others that hold nothing but 0 and 1 are classes, called as the columns are.
"""

from __future__ import annotations

import posixpath

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as pacsv
from pyarrow import fs as pafs

from tlray.errors import DataError
from tlray.formats import SPLITS

_PATH_COLUMNS = ("path", "file", "image", "filename")
_ENDINGS = (".csv", ".tsv")


def fits(fs: pafs.FileSystem, root: str) -> int:
    """2 (surer than class folders) where there is a table with the columns needed."""
    tables = _tables(fs, root)
    if root.lower().endswith(_ENDINGS) and tables:
        return 2  # a table was named: what is wrong with it is said by `index`
    if len(tables) != 1:
        return 0
    columns, delimiter = _header(fs, tables[0])
    if not any(name.lower() in _PATH_COLUMNS for name in columns):
        return 0
    if {"label", "labels"} & {name.lower() for name in columns}:
        return 2
    try:
        return 2 if _one_hot(_read(fs, tables[0], columns, delimiter)) else 0
    except DataError:
        return 0


def index(fs: pafs.FileSystem, root: str) -> pa.Table:
    """Table of (path, split, label and labels: what there is), sorted by path; ``root`` is the table or a
    folder holding just one.

    Raises DataError for missing columns, empty values, unknown splits, paths outside and paths twice.
    """
    tables = _tables(fs, root)
    if len(tables) != 1:
        have = ", ".join(posixpath.basename(name) for name in tables) or "none"
        raise DataError(f"{root}: tables found: {have}; accepted: a .csv file, or a folder with exactly one")
    table = tables[0]
    columns, delimiter = _header(fs, table)
    read = _read(fs, table, columns, delimiter)
    columns = read.column_names
    path_column = next((name for name in _PATH_COLUMNS if name in columns), None)
    several = _several(read)
    if path_column is None or ("label" not in columns and several is None):
        lacks = "label" if path_column is not None else "path"
        raise DataError(
            f"{table}: no column {lacks!r} among {', '.join(columns)}; accepted: "
            f"{'|'.join(_PATH_COLUMNS)}, label or labels (or columns of 0 and 1), and split if wanted"
        )
    if read.num_rows == 0:
        raise DataError(f"{table}: no rows below the header; accepted: one row for each picture")
    if several is not None and not any(several):
        raise DataError(f"{table}: no row has a class; accepted: labels as in shirt|blue")
    single = "label" in columns
    labels = pc.utf8_trim_whitespace(read["label"]).to_pylist() if single else [None] * read.num_rows
    splits = read["split"].to_pylist() if "split" in columns else [""] * read.num_rows
    folder = posixpath.dirname(table)
    lines: dict[str, int] = {}
    rows = []
    for line, (value, label, split) in enumerate(
        zip(read[path_column].to_pylist(), labels, splits, strict=True), 2
    ):
        path = _below(folder, value.strip())
        key = split.strip().lower()
        if path is None:
            raise DataError(f"{table} row {line}: {path_column} = {value!r}; accepted: a path below {folder}")
        if single and not label:
            raise DataError(f"{table} row {line}: label is empty; accepted: the name of a class")
        if key and key not in SPLITS:
            raise DataError(
                f"{table} row {line}: split = {split!r}; accepted: train, validation, test or empty"
            )
        if path in lines:
            raise DataError(f"{table} row {line}: {path!r} stands in row {lines[path]} too; accepted: once")
        lines[path] = line
        rows.append({"path": path, "split": SPLITS.get(key), "label": label})
    kinds = pa.schema([(name, pa.string()) for name in ("path", "split", "label")])
    index = pa.Table.from_pylist(rows, schema=kinds)
    if not single:
        index = index.drop_columns(["label"])
    if several is not None:
        index = index.append_column("labels", pa.array(several, pa.list_(pa.string())))
    return index.sort_by("path")


def _read(fs: pafs.FileSystem, table: str, columns: list[str], delimiter: str) -> pa.Table:
    """All of a table as text; the columns that have a meaning in lower case. Raises DataError."""
    meaning = (*_PATH_COLUMNS, "label", "labels", "split")
    names = [name.lower() if name.lower() in meaning else name for name in columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{table}: two columns {twice!r}; accepted: one of each")
    try:
        with fs.open_input_stream(table) as stream:
            return pacsv.read_csv(
                stream,
                read_options=pacsv.ReadOptions(column_names=names, skip_rows=1),
                parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=pacsv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
                ),
            )
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{table}: no valid table ({str(error).splitlines()[0]}); accepted: UTF-8 text"
        ) from None


def _several(read: pa.Table) -> list[list[str]] | None:
    """The classes of each row; None where no column says them."""
    if "labels" in read.column_names:
        cells = read["labels"].to_pylist()
        sign = next((s for s in "|;," if any(s in cell for cell in cells)), "|")
        # A class that is named twice is there once.
        return [list(dict.fromkeys(filter(None, map(str.strip, cell.split(sign))))) for cell in cells]
    names = [] if "label" in read.column_names else _one_hot(read)
    if not names:
        return None
    there = [[value.strip() == "1" for value in read[name].to_pylist()] for name in names]
    return [[n for n, yes in zip(names, row, strict=True) if yes] for row in zip(*there, strict=True)]


def _one_hot(read: pa.Table) -> list[str]:
    """Columns that hold nothing but 0 and 1, two or more of them: one alone is rather a flag."""
    others = [name for name in read.column_names if name not in (*_PATH_COLUMNS, "split", "labels", "label")]
    found = [
        name
        for name in others
        if {value.strip() for value in pc.unique(read[name]).to_pylist()} <= {"0", "1"}
    ]
    return found if len(found) > 1 and read.num_rows else []


def _tables(fs: pafs.FileSystem, root: str) -> list[str]:
    """The table itself, or the tables in a folder (not below it)."""
    info = fs.get_file_info(root)
    if info.type == pafs.FileType.File:
        return [root] if root.lower().endswith(_ENDINGS) else []
    if info.type == pafs.FileType.NotFound:
        return []
    found = fs.get_file_info(pafs.FileSelector(root))
    return sorted(
        f.path
        for f in found
        if f.type == pafs.FileType.File
        and f.path.lower().endswith(_ENDINGS)
        and not f.base_name.startswith(".")
    )


def _header(fs: pafs.FileSystem, table: str) -> tuple[list[str], str]:
    """Column names, and the separator."""
    with fs.open_input_stream(table) as stream:
        head = stream.read(64 * 1024)
    first = head.removeprefix(b"\xef\xbb\xbf").split(b"\n")[0].decode("utf-8", errors="replace").strip()
    delimiter = max(",;\t", key=first.count)
    return [name.strip().strip('"').strip() for name in first.split(delimiter)], delimiter


def _below(folder: str, value: str) -> str | None:
    """Path relative to the folder; None where it leads out of it."""
    path = value.split("://", 1)[-1]
    if "://" in value or path.startswith("/"):
        if not path.startswith(folder.rstrip("/") + "/"):
            return None
        path = path[len(folder.rstrip("/")) + 1 :]
    path = posixpath.normpath(path)
    return None if path == "." or path == ".." or path.startswith("../") else path
