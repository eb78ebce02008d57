"""A table of pictures and labels: csv, tsv, jsonl, Parquet, or a list of ``path label`` as text.

One table or several, one a split (``train.csv``, ``train/metadata.csv``) or one a folder. Which column is
the path, the label and the split is known by what the cells hold and by the columns' names
(`tlray.formats.tabular.roles`); paths by the pictures that are there, with or without ending
(`tlray.formats.places`). Labels are one of
    one class a row          label, class, category, species, ...
    several classes a row    labels, tags: ``cat|dog``, ``['cat', 'dog']``, a list
    two or more columns of 0 and 1, one a class; -1 is no where it stands for 0 throughout
    objects                  metadata.jsonl of Hugging Face: bbox (x, y, width, height in px), categories
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tlray.errors import DataError
from tlray.findings import Finding, finding
from tlray.formats import evidence
from tlray.formats.base import Index, Look, table
from tlray.formats.listing import HEAD, Listing, is_picture, split_in
from tlray.formats.places import Lookup, Places, accepted
from tlray.formats.tabular import cells, labels, records, roles
from tlray.formats.tabular.rows import Row, index_rows, unique, with_class_names, without_missing
from tlray.schema import LABEL, LABELS, OBJECTS

GIVES: tuple[str, ...] = (LABEL, LABELS, OBJECTS)
_SUBMISSION = re.compile(r"sample[_ -]?submission", re.IGNORECASE)
_TABLES = 50  # of one ending that are looked into: on object storage each costs a request
_MOST_MISSING = 0.5  # share of the rows whose pictures may be missing: more is another layout


@dataclass(frozen=True)
class _Table:
    """One file with a column of paths."""

    rows: records.Records
    path: str  # the column
    found: Lookup
    split: str | None  # that the file's or folder's name says
    pictures: Sequence[str | None]  # of each row, null where none is there

    @property
    def file(self) -> str:
        return self.rows.file

    def others(self) -> dict[str, Sequence[Any]]:
        """The columns beside the path."""
        return {name: values for name, values in self.rows.columns.items() if name != self.path}


@dataclass(frozen=True)
class _Lost:
    """One file whose cells name no picture that is there, and the column that seems to be one of paths."""

    rows: records.Records
    column: str
    why: str = ""  # what keeps it from being read, where that is known


@dataclass(frozen=True)
class _Group:
    """Tables of the same columns, which are read as one."""

    tables: list[_Table]
    splits: roles.SplitColumns = field(default_factory=roles.SplitColumns)
    labels: roles.Labels | None = None
    why_not: str = ""  # why no column is one of labels


def look(listing: Listing) -> Look | None:
    """Tables whose cells name pictures that are there."""
    tables, lost = _tables(listing, _candidates(listing), head=True)
    groups = _groups(tables)
    labelled = [group for group in groups if group.labels is not None]
    used = [t for group in labelled or groups for t in group.tables]
    files = [t.file for t in used]
    if not used:
        return _lost(listing, lost)
    pictures = {path for t in used for path in _spoken_of(listing, t)}
    summary = f"{', '.join(files[:3])}{', ...' if len(files) > 3 else ''} with names of pictures"
    if not labelled:
        if not listing.named and all(file.lower().endswith(records.LISTS) for file in files):
            return None  # lists of pictures belong to other layouts
        return Look(summary, pictures, files, f"{files[0]}: {groups[0].why_not}")
    return Look(summary, pictures, files, gives=_gives(labelled))


def _spoken_of(listing: Listing, t: _Table) -> set[str]:
    """Pictures of a table of which the beginning was read: the rest names those of the same folders."""
    there = {path for path in t.pictures if path is not None}
    if t.file.lower().endswith(".parquet") or len(listing.head(t.file)) >= HEAD:
        folder = posixpath.commonpath([posixpath.dirname(f"/{path}") for path in there])
        there |= {path for path in listing.pictures if f"/{path}".startswith(f"{folder.rstrip('/')}/")}
    return there


def _gives(groups: Sequence[_Group]) -> tuple[str, ...]:
    kinds = {group.labels.kind for group in groups if group.labels is not None}
    return (OBJECTS,) if kinds == {"objects"} else (LABEL, LABELS)


def _lost(listing: Listing, lost: Sequence[_Lost]) -> Look | None:
    """A table that names pictures none of which is there; or the table that the user named."""
    for one in lost:
        rows, column = one.rows, one.column
        if one.why:
            return Look(f"{rows.file} with names of pictures", [], [rows.file], one.why)
        if not rows.rows and (column or listing.named):
            return Look(
                f"{rows.file} with columns {', '.join(rows.columns)}", [], [rows.file],
                "it has no rows below the header; accepted: one row for each picture",
            )  # fmt: skip
        if column:
            first = cells.text(next(iter(rows.columns[column]), ""))
            return Look(
                f"{rows.file} with names of pictures in column {column}", [], [rows.file],
                f"none of those pictures is there, the first being {first!r}; accepted: "
                f"{accepted(listing, first)}",
            )  # fmt: skip
    if listing.named.lower().endswith(records.ENDINGS) and lost:
        rows = lost[0].rows
        return Look(
            f"{rows.file} with columns {', '.join(rows.columns)}", [], [rows.file],
            "none of them holds names of pictures that are there; accepted: a column path (file_name, image, "
            "id, ...), and one of labels",
        )  # fmt: skip
    return None


def index(listing: Listing, column: str) -> Index:
    """Table of (path, split, and what there is of label, labels and objects).

    Labels of one class are given as ``labels``, too, where that is the column wanted. Raises DataError for
    columns that are missing or of doubtful meaning, values that are no labels, pictures with two labels.
    """
    candidates = _candidates(listing)
    likely, _ = _tables(listing, candidates, head=True)
    known = {t.file for t in likely}
    # A head may be too short or damaged to know a table by: the one that was named is read in any case.
    tables, lost = _tables(listing, [path for path in candidates if path in known or listing.named])
    groups = _groups(tables)
    labelled = [group for group in groups if group.labels is not None]
    if not labelled:
        raise DataError(_refusal(listing, groups, lost or _tables(listing, candidates, head=True)[1]))
    notes: list[Finding] = []
    rows = [row for group in labelled for row in _rows(listing, group, notes)]
    kinds = {group.labels.kind for group in labelled if group.labels is not None}
    if len(kinds) > 1:
        files = ", ".join(group.tables[0].file for group in labelled)
        raise DataError(
            f"{listing.root}: {files} hold labels of different kinds; accepted: one of them as SRC"
        )
    rows = _without_copies(rows, notes)
    rows = _with_lists(listing, rows, groups, notes)
    left = _left_over(listing, {row.path for row in rows}, notes)
    rows = without_missing(listing, rows, notes)
    rows = unique(listing, rows, column, notes)
    rows = _with_folders(rows, notes)
    for t in tables:
        notes += t.found.places.findings()
    notes += _unread(listing, {t.file for t in tables})
    names, rows = with_class_names(listing, rows, [t.file for t in tables], notes)
    made, columns = index_rows(listing, rows, column)
    if columns == [OBJECTS]:
        names = {}
    return Index(
        table(made, *columns),
        names={name: value for name, value in names.items() if name in columns},
        ignored=left,
        findings=notes,
    )


def _refusal(listing: Listing, groups: Sequence[_Group], lost: Sequence[_Lost]) -> str:
    if groups:
        return f"{listing.where(groups[0].tables[0].file)}: {groups[0].why_not}"
    seen = _lost(listing, lost)
    if seen is not None:
        return f"{listing.where(seen.labels[0])}: {seen.lacks}"  # type: ignore[index]
    return (
        f"{listing.root}: no table with names of pictures; accepted: {', '.join(records.ENDINGS)} with a "
        f"column path (file_name, image, id, ...) and {roles.LABELS_ACCEPTED}"
    )


# ---- which files


def _candidates(listing: Listing) -> list[str]:
    """Files that may be tables of pictures, by their names."""
    ends: Counter[str] = Counter()
    kept = []
    for path in sorted(listing.labels(*records.ENDINGS), key=lambda path: (path.count("/"), path)):
        name = path.rpartition("/")[2]
        if _SUBMISSION.search(name) or "ImageSets" in path.split("/"):
            continue
        end = posixpath.splitext(path)[1].lower()
        if end in records.LISTS and not listing.named and _belongs_to_picture(listing, path):
            continue
        ends[end] += 1
        if ends[end] <= _TABLES:
            kept.append(path)
    return kept


def _belongs_to_picture(listing: Listing, path: str) -> bool:
    """Whether a text file is that of one picture, which lies beside it or in a folder beside."""
    own = posixpath.splitext(path)[0]
    parts = own.split("/")
    beside = [own, *("/".join([*parts[:n], "images", *parts[n + 1 :]]) for n in range(len(parts) - 1))]
    return any(stem.lower() in listing.by_stem for stem in beside)


def _tables(listing: Listing, files: Sequence[str], head: bool = False) -> tuple[list[_Table], list[_Lost]]:
    """Files whose cells name pictures; and the others, with the column that seems to name some or ""."""
    tables: list[_Table] = []
    lost: list[_Lost] = []
    for path in files:
        name = posixpath.splitext(path)[0].rpartition("/")[2]
        split = evidence.folder_split(path) or split_in(_words(name))
        found = Places(listing).lookup(path, posixpath.dirname(path), split=split)

        def names(cell: str, found: Lookup = found) -> bool:
            return bool(found.several(cell))

        first: records.Records | None = None
        for read in records.read(listing, path, names, head):
            if roles.holds_boxes(read.columns):
                first = None
                break
            try:
                column = roles.path_column(read.columns, names)
            except roles.Unclear as reason:
                lost.append(_Lost(read, "", str(reason)))
                first = None
                break
            if column is not None:
                values = [cells.text(value) for value in read.columns[column]]
                tables.append(_Table(read, column, found, split, [found.find(value) for value in values]))
                first = None
                break
            first = first or read
        if first is not None:
            lost.append(_Lost(first, roles.named_path_column(first.columns, is_picture) or ""))
    return tables, lost


def _words(name: str) -> str:
    """A name with its words apart: trainLabels -> train Labels."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


def _groups(tables: Sequence[_Table]) -> list[_Group]:
    """Tables by their columns, with the roles that these have."""
    same: dict[frozenset[str], list[_Table]] = defaultdict(list)
    for t in tables:
        same[frozenset(t.rows.columns)].append(t)
    groups = []
    for members in same.values():
        columns = merged(members)
        splits = roles.split_columns(columns)
        try:
            chosen = roles.labels({n: v for n, v in columns.items() if n not in splits.columns})
        except roles.Unclear as reason:
            groups.append(_Group(members, splits, why_not=str(reason)))
        else:
            groups.append(_Group(members, splits, chosen))
    return groups


def merged(tables: Sequence[_Table]) -> dict[str, list[Any]]:
    """The columns of tables, one below the other, without those of paths."""
    names = list(dict.fromkeys(name for t in tables for name in t.others()))
    return {
        name: [v for t in tables for v in t.others().get(name, [None] * len(t.rows.rows))] for name in names
    }


# ---- rows


def _rows(listing: Listing, group: _Group, notes: list[Finding]) -> list[Row]:
    """The rows of a group with their labels, as the cells say them."""
    assert group.labels is not None
    columns = merged(group.tables)
    places = [(t.file, row) for t in group.tables for row in t.rows.rows]
    taken = group.splits.columns | group.labels.columns
    _say_unused(group, {name: columns[name] for name in columns if name not in taken}, notes)
    said = labels.read(listing, group.labels, columns, places, notes)
    split = _splits(listing, group, columns, places)
    rows, missing = [], []
    values = [value for t in group.tables for value in t.rows.columns[t.path]]
    hits = [(t, picture) for t in group.tables for picture in t.pictures]
    for n, ((file, line), (t, picture), value) in enumerate(zip(places, hits, values, strict=True)):
        path = picture
        text = cells.text(value)
        if path is None:
            several = t.found.several(text)
            if len(several) > 1:
                raise DataError(
                    f"{listing.where(file)} row {line}: {t.path} = {text!r} names {len(several)} pictures "
                    f"({several[0]}, {several[1]}); accepted: a path that names one"
                )
            missing.append((file, line, t.path, text))
            path = t.found.absent(text)
        by_tail = path in t.found.by_tail
        rows.append(Row(path, split[n], said[n], file, line, text if by_tail else ""))
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


def _say_unused(group: _Group, unused: dict[str, list[Any]], notes: list[Finding]) -> None:
    assert group.labels is not None
    file = group.tables[0].file
    one_hot = group.labels.kind == "one_hot"
    nearly = [name for name, values in unused.items() if one_hot and roles.is_rather_yes_no(values)]
    for severity, names in (("warning", nearly), ("info", [name for name in unused if name not in nearly])):
        shown = [f"{file}: {name}" for name in names]
        notes += finding(severity, "unused_column", shown, "{n} columns of the table are not used")  # type: ignore[arg-type]
    if group.labels.guessed:
        text = f"{group.labels.column} of {file} is taken as the label: {group.labels.guessed}"
        notes.append(Finding("info", "label_column", 1, text, [group.labels.column]))


def _splits(
    listing: Listing, group: _Group, columns: dict[str, list[Any]], places: Sequence[tuple[str, int]]
) -> list[str | None]:
    """The split of each row by its column, or by the table's name."""
    own = [t.split for t in group.tables for _ in t.rows.rows]
    name, flags = group.splits.named, group.splits.flags
    if name is not None:
        made: list[str | None] = []
        for (file, line), value in zip(places, columns[name], strict=True):
            text = cells.text(value)
            split = None if cells.is_missing(text) else roles.split_name(text, name)
            if split is None and not cells.is_missing(text):
                raise DataError(
                    f"{listing.where(file)} row {line}: {name} = {text!r}; accepted: train, validation, "
                    "test or empty"
                )
            made.append(split)
        return made
    if flags:
        out: list[str | None] = []
        for row in zip(*(columns[flag] for flag in flags), strict=True):
            yes = [
                s for s, value in zip(flags.values(), row, strict=True) if cells.yes_or_no(cells.text(value))
            ]
            only_train = list(flags.values()) == ["train"]
            out.append(yes[0] if yes else "test" if only_train else "train")
        return out
    return list(own)


def _with_lists(
    listing: Listing, rows: list[Row], groups: Sequence[_Group], notes: list[Finding]
) -> list[Row]:
    """Splits by lists without labels (train.txt, val.txt), where the labelled tables give none."""
    if any(row.split for row in rows):
        return rows
    known = {row.path for row in rows}
    split: dict[str, tuple[str, str]] = {}
    for group in groups:
        if group.labels is not None:
            continue
        places = [(t.file, row) for t in group.tables for row in t.rows.rows]
        pictures = [picture for t in group.tables for picture in t.pictures]
        own = _splits(listing, group, merged(group.tables), places)
        for (file, _), picture, name in zip(places, pictures, own, strict=True):
            if name is None or picture is None or picture not in known:
                continue
            if split.setdefault(picture, (name, file))[0] != name:
                raise DataError(
                    f"{listing.where(file)}: {picture} stands in {split[picture][1]} too; accepted: one split"
                )
    if not split:
        return rows
    outside = [row.path for row in rows if row.path not in split]
    notes += finding("warning", "in_no_list", outside, "{n} pictures are in no list of a split (left out)")
    return [replace(row, split=split[row.path][0]) for row in rows if row.path in split]


def _with_folders(rows: list[Row], notes: list[Finding]) -> list[Row]:
    """Splits by the folders that the pictures are in, where nothing else gives them."""
    if any(row.split for row in rows):
        without = [f"{row.file} row {row.line}: {row.path}" for row in rows if not row.split]
        notes += finding("warning", "no_split", without, "{n} rows name no split: taken as train")
        return rows
    folders = [evidence.folder_split(row.path) for row in rows]
    if "train" not in folders or None in folders:
        return rows
    return [replace(row, split=split) for row, split in zip(rows, folders, strict=True)]


def _without_copies(rows: list[Row], notes: list[Finding]) -> list[Row]:
    """Without tables that only repeat what those of the splits say (all.csv beside train.csv, val.csv)."""
    in_splits = {row.path for row in rows if row.split}
    whole = defaultdict(list)
    for row in rows:
        if not row.split:
            whole[row.file].append(row)
    copies = [f for f, own in whole.items() if in_splits and all(row.path in in_splits for row in own)]
    others = {row.file for row in rows if row.split}
    copies = [file for file in copies if file not in others]
    notes += finding(
        "info", "repeated_table", copies, "{n} tables only repeat those of the splits (not used)"
    )
    return [row for row in rows if row.file not in copies]


def _unread(listing: Listing, used: set[str]) -> list[Finding]:
    """Files that name pictures, too, and could not be read as tables."""
    others = [
        path
        for path in evidence.label_files(listing)
        if path not in used and path.lower().endswith(records.ENDINGS) and not _SUBMISSION.search(path)
    ]
    named = [path for path in others if evidence.names_pictures(listing, path)]
    return finding("warning", "unread_file", named, "{n} other files name pictures and were not read")


def _left_over(listing: Listing, named: set[str], notes: list[Finding]) -> Counter[str]:
    """Pictures that no row names: among those that have labels, and in folders without any."""
    folders = {posixpath.dirname(path) for path in named}
    left = [path for path in listing.pictures if path not in named]
    beside = [path for path in left if posixpath.dirname(path) in folders]
    apart = [path for path in left if posixpath.dirname(path) not in folders]
    notes += finding(
        "warning", "no_label", beside, "{n} pictures beside those of the table are in no row of it (left out)"
    )
    notes += finding("info", "no_label", apart, "{n} pictures in other folders have no labels (left out)")
    return Counter({"pictures in no table": len(left)}) if left else Counter()
