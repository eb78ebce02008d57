"""A table of pictures: a .csv (or .tsv) file with columns path, label and, if wanted, split.

The path's column may also be called file, image or filename. Paths are relative to the table's folder,
or absolute below it. Separator: comma, semicolon or tab, whichever the header holds most often.
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
    columns = _header(fs, tables[0])[0]
    return 2 if "label" in columns and any(name in columns for name in _PATH_COLUMNS) else 0


def index(fs: pafs.FileSystem, root: str) -> pa.Table:
    """Table of (path, split, label), sorted by path; ``root`` is the table or a folder holding just one.

    Raises DataError for missing columns, empty values, unknown splits, paths outside and paths twice.
    """
    tables = _tables(fs, root)
    if len(tables) != 1:
        have = ", ".join(posixpath.basename(name) for name in tables) or "none"
        raise DataError(f"{root}: tables found: {have}; accepted: a .csv file, or a folder with exactly one")
    table = tables[0]
    columns, delimiter = _header(fs, table)
    path_column = next((name for name in _PATH_COLUMNS if name in columns), None)
    if path_column is None or "label" not in columns:
        lacks = "label" if path_column is not None else "path"
        raise DataError(
            f"{table}: no column {lacks!r} among {', '.join(columns)}; accepted: "
            f"{'|'.join(_PATH_COLUMNS)}, label, and split if wanted"
        )
    wanted = [path_column, "label", *(["split"] if "split" in columns else [])]
    try:
        with fs.open_input_stream(table) as stream:
            read = pacsv.read_csv(
                stream,
                read_options=pacsv.ReadOptions(column_names=columns, skip_rows=1),
                parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=pacsv.ConvertOptions(
                    include_columns=wanted,
                    column_types=dict.fromkeys(wanted, pa.string()),
                    strings_can_be_null=False,
                ),
            )
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{table}: no valid table ({str(error).splitlines()[0]}); accepted: UTF-8 text"
        ) from None
    if read.num_rows == 0:
        raise DataError(f"{table}: no rows below the header; accepted: one row for each picture")
    labels = pc.utf8_trim_whitespace(read["label"]).to_pylist()
    splits = read["split"].to_pylist() if "split" in wanted else [""] * read.num_rows
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
        if not label:
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
    return pa.Table.from_pylist(rows, schema=kinds).sort_by("path")


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
    """Column names in lower case, and the separator."""
    with fs.open_input_stream(table) as stream:
        head = stream.read(64 * 1024)
    first = head.removeprefix(b"\xef\xbb\xbf").split(b"\n")[0].decode("utf-8", errors="replace").strip()
    delimiter = max(",;\t", key=first.count)
    return [name.strip().strip('"').strip().lower() for name in first.split(delimiter)], delimiter


def _below(folder: str, value: str) -> str | None:
    """Path relative to the folder; None where it leads out of it."""
    path = value.split("://", 1)[-1]
    if "://" in value or path.startswith("/"):
        if not path.startswith(folder.rstrip("/") + "/"):
            return None
        path = path[len(folder.rstrip("/")) + 1 :]
    path = posixpath.normpath(path)
    return None if path == "." or path == ".." or path.startswith("../") else path
