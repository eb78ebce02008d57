"""Rows of labelled pictures -> rows of an index: missing labels, a picture twice, names for numbers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tlray.data.schema import LABEL, LABELS, OBJECTS
from tlray.errors import DataError
from tlray.ingestion.findings import Finding, finding
from tlray.ingestion.formats.base import objects
from tlray.ingestion.formats.listing import Listing
from tlray.ingestion.formats.tabular import names
from tlray.ingestion.formats.tabular.labels import Label, where

_FEW_MISSING = 0.05  # share of rows without a label that are left out; more is an error


@dataclass(frozen=True)
class Row:
    """A picture, its split and its label, and where the table says so."""

    path: str
    split: str | None
    label: Label
    file: str
    line: int
    by_tail: str = ""  # the path as it stands in the table, if only its last parts led to the picture


def without_missing(listing: Listing, rows: list[Row], notes: list[Finding]) -> list[Row]:
    """Rows without a label left out where they are few, or the whole of a test split. Raises DataError."""
    if not any(row.label.missing for row in rows):
        return rows
    parts: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        parts[row.split or "", row.file if row.split is None else ""].append(row)
    kept: list[Row] = []
    lost: list[Row] = []
    for (split, file), members in parts.items():
        without = [row for row in members if row.label.missing]
        if len(without) == len(members) and len(parts) > 1:
            if split == "validation":
                raise DataError(
                    f"{where(listing, (members[0].file, members[0].line))}: none of the {len(members)} rows "
                    "of the validation split has a label; accepted: labels there, or no such rows"
                )
            text = f"{f'split {split}' if split else file} has no labels: its {{n}} pictures are left out"
            notes += finding("warning", "split_without_labels", [row.path for row in without], text)
        else:
            lost += without
            kept += [row for row in members if not row.label.missing]
    if lost:
        values = Counter(row.label.text for row in lost)
        what = ", ".join(
            f"{value!r} {n} times" if value else f"empty {n} times" for value, n in values.most_common(3)
        )
        if len(lost) > _FEW_MISSING * (len(lost) + len(kept)):
            first = lost[0]
            said = "label is empty" if not first.label.text else f"label {first.label.text!r} is no class"
            raise DataError(
                f"{where(listing, (first.file, first.line))}: {said} ({what} in {len(lost) + len(kept)} "
                f"rows); accepted: the name of a class, at most {_FEW_MISSING:.0%} of the rows without"
            )
        shown = [f"{row.file} row {row.line}: {row.path}" for row in lost]
        notes += finding(
            "warning", "row_without_label", shown, f"{{n}} rows have no label (left out): {what}"
        )
    return kept


def unique(listing: Listing, rows: list[Row], column: str, notes: list[Finding]) -> list[Row]:
    """Each picture once. Two rows of different labels are joined where several classes are wanted.

    Raises DataError for two labels, two splits, or two paths that led to one picture.
    """
    first: dict[str, Row] = {}
    twice = []
    for row in rows:
        other = first.setdefault(row.path, row)
        if other is row:
            continue
        here, there = where(listing, (row.file, row.line)), _short(other, row)
        if (row.by_tail or other.by_tail) and row.by_tail != other.by_tail:
            raise DataError(
                f"{here}: {row.by_tail or row.path!r} and {there} ({other.by_tail or other.path!r}) both "
                f"lead to {row.path}; accepted: paths of pictures that are there"
            )
        if row.split != other.split:
            raise DataError(
                f"{here}: {row.path!r} is in {row.split or 'no split'}, in {there} in "
                f"{other.split or 'no split'}; accepted: one split"
            )
        same = (row.label.one, row.label.several, row.label.boxes, row.label.flags) == (
            other.label.one, other.label.several, other.label.boxes, other.label.flags
        )  # fmt: skip
        if same:
            twice.append(f"{row.file} row {row.line}: {row.path}")
        elif column == LABELS and row.label.boxes is None:
            first[row.path] = replace(other, label=_joined(other.label, row.label))
        else:
            raise DataError(
                f"{here}: {row.path!r} stands in {there} too, with another label "
                f"({_shown(other.label)} there, {_shown(row.label)} here); accepted: one, or "
                "--task multilabel, which takes the rows of a picture as its classes"
            )
    notes += finding("warning", "row_twice", twice, "{n} rows repeat another one (taken once)")
    return list(first.values())


def _joined(a: Label, b: Label) -> Label:
    both = [*(a.several or ((a.one,) if a.one else ())), *(b.several or ((b.one,) if b.one else ()))]
    return replace(a, one=None, several=tuple(dict.fromkeys(both)))


def _short(other: Row, row: Row) -> str:
    return f"row {other.line}" if other.file == row.file else f"{other.file} row {other.line}"


def _shown(label: Label) -> str:
    return repr(label.one) if label.one is not None else repr("|".join(label.several or ()))


def with_class_names(
    listing: Listing, rows: list[Row], used: Sequence[str], notes: list[Finding]
) -> tuple[dict[str, list[str]], list[Row]]:
    """Names of classes in their order, where classes are numbers; and the rows with names for numbers."""
    numbers = sorted({int(number) for row in rows if row.label.numbered for number in _classes(row.label)})
    if not numbers or not all(row.label.numbered or not _classes(row.label) for row in rows):
        return {}, rows
    folders = {row.file.rpartition("/")[0] for row in rows}
    for source in names.class_names(listing, folders, used):
        known = dict(source.names)
        if source.counted and numbers[0] == 1 and numbers[-1] == len(known) and 0 in known:
            known = {number + 1: name for number, name in known.items()}
            notes.append(
                Finding(
                    "info", "classes_from_one", 1, f"{source.file}: its first line is class 1", [source.file]
                )
            )
        lacking = [str(number) for number in numbers if number not in known]
        if lacking:
            notes += finding(
                "warning", "names_not_used", lacking,
                f"{source.file} names {len(known)} classes, but {{n}} numbers of the labels are not there: "
                "the numbers are the names",
            )  # fmt: skip
            continue
        text = _apart(known, notes)
        never = [text[number] for number in sorted(text) if number not in set(numbers)]
        notes += finding("warning", "class_never", never, f"{{n}} classes of {source.file} occur in no row")
        notes.append(Finding("info", "class_names", len(text), f"class names are those of {source.file}", []))
        order = [text[number] for number in sorted(text)]
        return {name: order for name in (LABEL, LABELS, OBJECTS)}, [_renamed(row, text) for row in rows]
    gaps = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers)) if numbers[-1] < 100_000 else []
    notes += finding(
        "warning",
        "gaps_in_classes",
        [str(n) for n in gaps],
        "{n} numbers between those of the classes never occur",
    )
    return {name: [str(number) for number in numbers] for name in (LABEL, LABELS, OBJECTS)}, rows


def _classes(label: Label) -> list[str]:
    one = [label.one] if label.one is not None else []
    return [*one, *(label.several or ()), *(kind for kind, _ in label.boxes or ())]


def _apart(known: Mapping[int, str], notes: list[Finding]) -> dict[int, str]:
    """Two classes of one name, as ImageNet's two cranes, told apart by their numbers."""
    count = Counter(known.values())
    shared = sorted({name for name in known.values() if count[name] > 1})
    notes += finding(
        "warning",
        "class_name_twice",
        shared,
        "{n} names are those of several classes: their numbers are added",
    )
    return {n: f"{name} {n}" if count[name] > 1 else name for n, name in known.items()}


def _renamed(row: Row, text: Mapping[int, str]) -> Row:
    label = row.label
    return replace(
        row,
        label=replace(
            label,
            one=None if label.one is None else text[int(label.one)],
            several=None if label.several is None else tuple(text[int(c)] for c in label.several),
            boxes=None if label.boxes is None else tuple((text[int(c)], box) for c, box in label.boxes),
        ),
    )


def index_rows(listing: Listing, rows: Sequence[Row], column: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of an index, and its label columns: what there is, ``column`` among it where it can be."""
    if any(row.label.boxes is not None for row in rows):
        made = [{OBJECTS: objects(row.label.boxes or (), **dict(row.label.flags))} for row in rows]
        return _with_paths(rows, made), [OBJECTS]
    several = [row.label.several for row in rows]
    one = [row.label.one for row in rows]
    columns: dict[str, list[Any]] = {}
    if all(value is not None for value in one):
        columns[LABEL] = one
        if column == LABELS or any(value is not None for value in several):
            columns[LABELS] = [list(v) if v is not None else [o] for v, o in zip(several, one, strict=True)]
    else:
        lists = [list(v) if v is not None else [o] for v, o in zip(several, one, strict=True)]
        if not any(lists):
            raise DataError(
                f"{listing.where(rows[0].file)}: no row has a class; accepted: labels as in shirt|blue"
            )
        if all(len(value) == 1 for value in lists):  # so it may be a classification as well
            columns[LABEL] = [value[0] for value in lists]
        columns[LABELS] = lists
    made = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return _with_paths(rows, made), list(columns)


def _with_paths(rows: Sequence[Row], made: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"path": row.path, "split": row.split, **label} for row, label in zip(rows, made, strict=True)]
