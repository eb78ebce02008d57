"""Rows of tables become rows of an index: missing labels, repeated pictures, names for class numbers."""

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

_FEW_MISSING = 0.05  # share of rows that may have no label and are left out; more are an error


@dataclass(frozen=True)
class Row:
    """A picture, its split, its label, and the place in the table."""

    path: str
    split: str | None
    label: Label
    file: str
    line: int
    by_tail: str = ""  # the path in the table, where only its last parts led to the picture


def without_missing(listing: Listing, rows: list[Row], notes: list[Finding]) -> list[Row]:
    """The rows that have a label. Raises DataError where many have none, unless those are a whole test
    split."""
    if not any(row.label.missing for row in rows):
        return rows
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.split or "", row.file if row.split is None else ""].append(row)
    labelled: list[Row] = []
    unlabelled: list[Row] = []
    for (split, file), members in groups.items():
        missing = [row for row in members if row.label.missing]
        if len(missing) == len(members) and len(groups) > 1:
            if split == "validation":
                raise DataError(
                    f"{where(listing, (members[0].file, members[0].line))}: none of the {len(members)} rows "
                    "of the validation split has a label; accepted: labels there, or no such rows"
                )
            text = f"{f'split {split}' if split else file} has no labels: its {{n}} pictures are left out"
            notes += finding("warning", "split_without_labels", [row.path for row in missing], text)
        else:
            unlabelled += missing
            labelled += [row for row in members if not row.label.missing]
    if unlabelled:
        values = Counter(row.label.text for row in unlabelled)
        value_counts = ", ".join(
            f"{value!r} {n} times" if value else f"empty {n} times" for value, n in values.most_common(3)
        )
        if len(unlabelled) > _FEW_MISSING * (len(unlabelled) + len(labelled)):
            example = unlabelled[0]
            text = example.label.text
            problem = f"label {text!r} is no class" if text else "label is empty"
            raise DataError(
                f"{where(listing, (example.file, example.line))}: {problem} ({value_counts} in "
                f"{len(unlabelled) + len(labelled)} rows); accepted: the name of a class, at most "
                f"{_FEW_MISSING:.0%} of the rows without"
            )
        examples = [f"{row.file} row {row.line}: {row.path}" for row in unlabelled]
        notes += finding(
            "warning", "row_without_label", examples, f"{{n}} rows have no label (left out): {value_counts}"
        )
    return labelled


def unique(listing: Listing, rows: list[Row], column: str, notes: list[Finding]) -> list[Row]:
    """Each picture once. Rows of one picture with different labels are joined where several classes are
    wanted.

    Raises DataError for a picture with two labels, two splits or two paths.
    """
    by_path: dict[str, Row] = {}
    repeated = []
    for row in rows:
        earlier = by_path.setdefault(row.path, row)
        if earlier is row:
            continue
        place, other_place = where(listing, (row.file, row.line)), _short(earlier, row)
        if (row.by_tail or earlier.by_tail) and row.by_tail != earlier.by_tail:
            raise DataError(
                f"{place}: {row.by_tail or row.path!r} and {other_place} "
                f"({earlier.by_tail or earlier.path!r}) both lead to {row.path}; accepted: paths of pictures "
                "that are there"
            )
        if row.split != earlier.split:
            raise DataError(
                f"{place}: {row.path!r} is in {row.split or 'no split'}, in {other_place} in "
                f"{earlier.split or 'no split'}; accepted: one split"
            )
        is_repetition = (row.label.one, row.label.several, row.label.boxes, row.label.flags) == (
            earlier.label.one, earlier.label.several, earlier.label.boxes, earlier.label.flags
        )  # fmt: skip
        if is_repetition:
            repeated.append(f"{row.file} row {row.line}: {row.path}")
        elif column == LABELS and row.label.boxes is None:
            by_path[row.path] = replace(earlier, label=_joined(earlier.label, row.label))
        else:
            raise DataError(
                f"{place}: {row.path!r} stands in {other_place} too, with another label "
                f"({_shown(earlier.label)} there, {_shown(row.label)} here); accepted: one, or "
                "--task multilabel, which takes the rows of a picture as its classes"
            )
    notes += finding("warning", "row_twice", repeated, "{n} rows repeat another one (taken once)")
    return list(by_path.values())


def _joined(a: Label, b: Label) -> Label:
    classes = [*(a.several or ((a.one,) if a.one else ())), *(b.several or ((b.one,) if b.one else ()))]
    return replace(a, one=None, several=tuple(dict.fromkeys(classes)))


def _short(earlier: Row, row: Row) -> str:
    return f"row {earlier.line}" if earlier.file == row.file else f"{earlier.file} row {earlier.line}"


def _shown(label: Label) -> str:
    return repr(label.one) if label.one is not None else repr("|".join(label.several or ()))


def with_class_names(
    listing: Listing, rows: list[Row], used: Sequence[str], notes: list[Finding]
) -> tuple[dict[str, list[str]], list[Row]]:
    """(class names by column, in order; rows with names for numbers), where classes are numbers."""
    numbers = sorted({int(number) for row in rows if row.label.numbered for number in _classes(row.label)})
    if not numbers or not all(row.label.numbered or not _classes(row.label) for row in rows):
        return {}, rows
    folders = {row.file.rpartition("/")[0] for row in rows}
    for source in names.class_names(listing, folders, used):
        names_by_number = dict(source.names)
        if (
            source.counted
            and numbers[0] == 1
            and numbers[-1] == len(names_by_number)
            and 0 in names_by_number
        ):
            names_by_number = {number + 1: name for number, name in names_by_number.items()}
            notes.append(
                Finding(
                    "info", "classes_from_one", 1, f"{source.file}: its first line is class 1", [source.file]
                )
            )
        lacking = [str(number) for number in numbers if number not in names_by_number]
        if lacking:
            notes += finding(
                "warning", "names_not_used", lacking,
                f"{source.file} names {len(names_by_number)} classes, but {{n}} numbers of the labels are "
                "not there: the numbers are the names",
            )  # fmt: skip
            continue
        name_of = _apart(names_by_number, notes)
        never = [name_of[number] for number in sorted(name_of) if number not in set(numbers)]
        notes += finding("warning", "class_never", never, f"{{n}} classes of {source.file} occur in no row")
        notes.append(
            Finding("info", "class_names", len(name_of), f"class names are those of {source.file}", [])
        )
        order = [name_of[number] for number in sorted(name_of)]
        return {name: order for name in (LABEL, LABELS, OBJECTS)}, [_renamed(row, name_of) for row in rows]
    gaps = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers)) if numbers[-1] < 100_000 else []
    notes += finding(
        "warning",
        "gaps_in_classes",
        [str(n) for n in gaps],
        "{n} numbers between those of the classes never occur",
    )
    return {name: [str(number) for number in numbers] for name in (LABEL, LABELS, OBJECTS)}, rows


def _classes(label: Label) -> list[str]:
    single = [label.one] if label.one is not None else []
    return [*single, *(label.several or ()), *(kind for kind, _ in label.boxes or ())]


def _apart(names_by_number: Mapping[int, str], notes: list[Finding]) -> dict[int, str]:
    """Names by number, with the number added to names of two classes, as to ImageNet's two cranes."""
    count = Counter(names_by_number.values())
    shared = sorted({name for name in names_by_number.values() if count[name] > 1})
    notes += finding(
        "warning",
        "class_name_twice",
        shared,
        "{n} names are those of several classes: their numbers are added",
    )
    return {n: f"{name} {n}" if count[name] > 1 else name for n, name in names_by_number.items()}


def _renamed(row: Row, name_of: Mapping[int, str]) -> Row:
    label = row.label
    return replace(
        row,
        label=replace(
            label,
            one=None if label.one is None else name_of[int(label.one)],
            several=None if label.several is None else tuple(name_of[int(c)] for c in label.several),
            boxes=None if label.boxes is None else tuple((name_of[int(c)], box) for c, box in label.boxes),
        ),
    )


def index_rows(listing: Listing, rows: Sequence[Row], column: str) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows of an index, its label columns): all kinds of labels that are there, ``column`` if possible."""
    if any(row.label.boxes is not None for row in rows):
        values = [{OBJECTS: objects(row.label.boxes or (), **dict(row.label.flags))} for row in rows]
        return _with_paths(rows, values), [OBJECTS]
    several = [row.label.several for row in rows]
    single = [row.label.one for row in rows]
    columns: dict[str, list[Any]] = {}
    if all(value is not None for value in single):
        columns[LABEL] = single
        if column == LABELS or any(value is not None for value in several):
            columns[LABELS] = [
                list(v) if v is not None else [o] for v, o in zip(several, single, strict=True)
            ]
    else:
        lists = [list(v) if v is not None else [o] for v, o in zip(several, single, strict=True)]
        if not any(lists):
            raise DataError(
                f"{listing.where(rows[0].file)}: no row has a class; accepted: labels as in shirt|blue"
            )
        if all(len(value) == 1 for value in lists):  # one class each, so a classification is possible, too
            columns[LABEL] = [value[0] for value in lists]
        columns[LABELS] = lists
    values = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return _with_paths(rows, values), list(columns)


def _with_paths(rows: Sequence[Row], values: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"path": row.path, "split": row.split, **label} for row, label in zip(rows, values, strict=True)]
