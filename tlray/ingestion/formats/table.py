"""A table of pictures and labels: csv, tsv, jsonl, JSON, Parquet, or a list of ``path label`` as text.

One table or several, one for each split (``train.csv``, ``train/metadata.csv``) or folder. The columns of
path, label and split are recognized by their cells and names (`tlray.ingestion.formats.tabular.roles`), paths
by the pictures that exist, with or without ending (`tlray.ingestion.formats.picture_paths`). Labels are one
of
    one class in a row       label, class, category, species, ...
    several classes in a row labels, tags: ``cat|dog``, ``['cat', 'dog']``, a list
    two or more columns of 0 and 1, one for each class; -1 means no where there is no 0
    objects                  metadata.jsonl of Hugging Face: bbox (x, y, width, height in px), categories
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tlray.data.schema import LABEL, LABELS, OBJECTS
from tlray.errors import DataError
from tlray.ingestion.findings import Finding, finding
from tlray.ingestion.formats import heuristics
from tlray.ingestion.formats.base import Index, Look, table
from tlray.ingestion.formats.listing import HEAD, Listing
from tlray.ingestion.formats.picture_paths import accepted
from tlray.ingestion.formats.tabular import cells, labels, records, roles, splits, tables
from tlray.ingestion.formats.tabular.rows import Row, index_rows, unique, with_class_names, without_missing

GIVES: tuple[str, ...] = (LABEL, LABELS, OBJECTS)
_MOST_MISSING = 0.5  # share of the rows: if more pictures are missing, the layout was not understood


def look(listing: Listing) -> Look | None:
    """Tables whose cells name pictures that exist."""
    label_tables, without_pictures = tables.find(listing, tables.candidates(listing), head=True)
    groups = tables.grouped(label_tables)
    labelled = [group for group in groups if group.labels is not None]
    used_tables = [t for group in labelled or groups for t in group.tables]
    files = [t.file for t in used_tables]
    if not used_tables:
        return _lost(listing, without_pictures)
    pictures = {path for t in used_tables for path in _spoken_of(listing, t)}
    summary = f"{', '.join(files[:3])}{', ...' if len(files) > 3 else ''} with names of pictures"
    if not labelled:
        if not listing.named and all(file.lower().endswith(records.LISTS) for file in files):
            return None  # lists of pictures belong to other layouts
        return Look(summary, pictures, files, f"{files[0]}: {groups[0].problem}")
    return Look(summary, pictures, files, gives=_gives(labelled))


def _spoken_of(listing: Listing, t: tables.LabelTable) -> set[str]:
    """Pictures of a table; where only its beginning was read, all pictures of the same folders."""
    pictures = {path for path in t.pictures if path is not None}
    if t.file.lower().endswith(".parquet") or len(listing.head(t.file)) >= HEAD:
        folder = posixpath.commonpath([posixpath.dirname(f"/{path}") for path in pictures])
        pictures |= {path for path in listing.pictures if f"/{path}".startswith(f"{folder.rstrip('/')}/")}
    return pictures


def _gives(groups: Sequence[tables.Group]) -> tuple[str, ...]:
    kinds = {group.labels.kind for group in groups if group.labels is not None}
    return (OBJECTS,) if kinds == {"objects"} else (LABEL, LABELS)


def _lost(listing: Listing, without_pictures: Sequence[tables.WithoutPictures]) -> Look | None:
    """What to say of a table none of whose pictures exists, or of the table that the user named."""
    for candidate in without_pictures:
        rows, column = candidate.rows, candidate.column
        if candidate.reason:
            return Look(f"{rows.file} with names of pictures", [], [rows.file], candidate.reason)
        if not rows.rows and (column or listing.named):
            return Look(
                f"{rows.file} with columns {', '.join(rows.columns)}", [], [rows.file],
                "it has no rows below the header; accepted: one row for each picture",
            )  # fmt: skip
        if column:
            first_name = cells.text(next(iter(rows.columns[column]), ""))
            return Look(
                f"{rows.file} with names of pictures in column {column}", [], [rows.file],
                f"none of those pictures is there, the first being {first_name!r}; accepted: "
                f"{accepted(listing, first_name)}",
            )  # fmt: skip
    if listing.named.lower().endswith(records.ENDINGS) and without_pictures:
        rows = without_pictures[0].rows
        return Look(
            f"{rows.file} with columns {', '.join(rows.columns)}", [], [rows.file],
            "none of them holds names of pictures that are there; accepted: a column path (file_name, image, "
            "id, ...), and one of labels",
        )  # fmt: skip
    return None


def index(listing: Listing, column: str) -> Index:
    """Table of (path, split, and what there is of label, labels and objects).

    Where ``labels`` is wanted, labels of one class are converted to it. Raises DataError for columns that are
    missing or ambiguous, values that are no labels, and pictures with two labels.
    """
    candidates = tables.candidates(listing)
    likely, unlikely = tables.find(listing, candidates, head=True)
    recognized = {t.file for t in likely}
    # The table that the user named is read even if its beginning is not recognized.
    label_tables, without_pictures = tables.find(
        listing, [path for path in candidates if path in recognized or listing.named]
    )
    groups = tables.grouped(label_tables)
    labelled = [group for group in groups if group.labels is not None]
    if not labelled:
        raise DataError(_refusal(listing, groups, without_pictures or unlikely))
    notes: list[Finding] = []
    rows = [row for group in labelled for row in _rows(listing, group, notes)]
    kinds = {group.labels.kind for group in labelled if group.labels is not None}
    if len(kinds) > 1:
        files = ", ".join(group.tables[0].file for group in labelled)
        raise DataError(
            f"{listing.root}: {files} hold labels of different kinds; accepted: one of them as SRC"
        )
    rows = splits.without_copies(rows, notes)
    rows = splits.with_lists(listing, rows, groups, notes)
    left_out = _left_over(listing, {row.path for row in rows}, notes)
    rows = without_missing(listing, rows, notes)
    rows = unique(listing, rows, column, notes)
    rows = splits.with_folders(rows, notes)
    for t in label_tables:
        notes += t.lookup.picture_paths.findings()
    notes += _unread(listing, {t.file for t in label_tables})
    names, rows = with_class_names(listing, rows, [t.file for t in label_tables], notes)
    rows_of_index, columns = index_rows(listing, rows, column)
    if columns == [OBJECTS]:
        names = {}
    return Index(
        table(rows_of_index, *columns),
        names={name: value for name, value in names.items() if name in columns},
        ignored=left_out,
        findings=notes,
        lists=[t.file for t in label_tables],
    )


def _refusal(
    listing: Listing, groups: Sequence[tables.Group], without_pictures: Sequence[tables.WithoutPictures]
) -> str:
    if groups:
        return f"{listing.where(groups[0].tables[0].file)}: {groups[0].problem}"
    problem = _lost(listing, without_pictures)
    if problem is not None:
        return f"{listing.where(problem.labels[0])}: {problem.lacks}"  # type: ignore[index]
    return (
        f"{listing.root}: no table with names of pictures; accepted: {', '.join(records.ENDINGS)} with a "
        f"column path (file_name, image, id, ...) and {roles.LABELS_ACCEPTED}"
    )


# ---- rows


def _rows(listing: Listing, group: tables.Group, notes: list[Finding]) -> list[Row]:
    """The rows of a group of tables with their labels."""
    assert group.labels is not None
    columns = tables.merged(group.tables)
    places = [(t.file, row) for t in group.tables for row in t.rows.rows]
    used_columns = group.splits.columns | group.labels.columns
    _say_unused(group, {name: columns[name] for name in columns if name not in used_columns}, notes)
    label_of_row = labels.read(listing, group.labels, columns, places, notes)
    split = splits.of_rows(listing, group, columns, places)
    rows, missing = [], []
    values = [value for t in group.tables for value in t.rows.columns[t.path]]
    hits = [(t, picture) for t in group.tables for picture in t.pictures]
    for n, ((file, line), (t, picture), value) in enumerate(zip(places, hits, values, strict=True)):
        path = picture
        text = cells.text(value)
        if path is None:
            several = t.lookup.several(text)
            if len(several) > 1:
                raise DataError(
                    f"{listing.where(file)} row {line}: {t.path} = {text!r} names {len(several)} pictures "
                    f"({several[0]}, {several[1]}); accepted: a path that names one"
                )
            missing.append((file, line, t.path, text))
            path = t.lookup.absent(text)
        by_tail = path in t.lookup.by_tail
        rows.append(Row(path, split[n], label_of_row[n], file, line, text if by_tail else ""))
    if len(missing) > _MOST_MISSING * len(rows):
        file, line, name, text = missing[0]
        raise DataError(
            f"{listing.where(file)} row {line}: {name} = {text!r}: no such picture, as for {len(missing)} of "
            f"{len(rows)} rows; accepted: {accepted(listing, text)}"
        )
    notes += finding(
        "warning", "missing_picture", [f"{file} row {line}: {text}" for file, line, _, text in missing],
        "{n} rows name pictures that are not there",
    )  # fmt: skip
    return rows


def _say_unused(group: tables.Group, unused: dict[str, list[Any]], notes: list[Finding]) -> None:
    assert group.labels is not None
    file = group.tables[0].file
    one_hot = group.labels.kind == "one_hot"
    nearly_yes_no = [name for name, values in unused.items() if one_hot and roles.is_rather_yes_no(values)]
    for severity, names in (
        ("warning", nearly_yes_no),
        ("info", [name for name in unused if name not in nearly_yes_no]),
    ):
        examples = [f"{file}: {name}" for name in names]
        notes += finding(severity, "unused_column", examples, "{n} columns of the table are not used")  # type: ignore[arg-type]
    if group.labels.guessed:
        text = f"{group.labels.column} of {file} is taken as the label: {group.labels.guessed}"
        notes.append(Finding("info", "label_column", 1, text, [group.labels.column]))


def _unread(listing: Listing, used: set[str]) -> list[Finding]:
    """A finding of other files that name pictures and could not be read as tables."""
    unread = [
        path
        for path in heuristics.label_files(listing)
        if path not in used and path.lower().endswith(records.ENDINGS) and not tables.SUBMISSION.search(path)
    ]
    naming_pictures = [path for path in unread if heuristics.names_pictures(listing, path)]
    return finding(
        "warning", "unread_file", naming_pictures, "{n} other files name pictures and were not read"
    )


def _left_over(listing: Listing, paths_of_rows: set[str], notes: list[Finding]) -> Counter[str]:
    """The number of pictures without a row; notes those beside labelled pictures and those in other
    folders."""
    folders = {posixpath.dirname(path) for path in paths_of_rows}
    without_row = [path for path in listing.pictures if path not in paths_of_rows]
    in_same_folders = [path for path in without_row if posixpath.dirname(path) in folders]
    in_other_folders = [path for path in without_row if posixpath.dirname(path) not in folders]
    notes += finding(
        "warning",
        "no_label",
        in_same_folders,
        "{n} pictures beside those of the table are in no row of it (left out)",
    )
    notes += finding(
        "info", "no_label", in_other_folders, "{n} pictures in other folders have no labels (left out)"
    )
    return Counter({"pictures in no table": len(without_row)}) if without_row else Counter()
