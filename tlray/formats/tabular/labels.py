"""Cells of label columns -> classes: missing ones, yes and no, numbers and their names, a picture twice."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tlray.errors import DataError
from tlray.findings import Finding, finding
from tlray.formats.listing import Listing
from tlray.formats.tabular import cells, names, roles
from tlray.schema import LABEL, LABELS, OBJECTS

Place = tuple[str, int]  # file, row
_FEW_MISSING = 0.05  # share of rows without a label that are left out; more is an error


@dataclass(frozen=True)
class Label:
    """What a row says: its class, its classes, its boxes. ``text`` is what stands there, for messages."""

    text: str = ""
    one: str | None = None
    several: tuple[str, ...] | None = None
    boxes: tuple[tuple[str, tuple[float, ...]], ...] | None = None
    numbered: bool = False  # classes are numbers
    missing: bool = False


@dataclass(frozen=True)
class Row:
    """A picture, its split and its label, and where the table says so."""

    path: str
    split: str | None
    label: Label
    file: str
    line: int
    by_tail: str = ""  # the path as it stands in the table, if only its last parts led to the picture


def read(
    listing: Listing,
    chosen: roles.Labels,
    columns: Mapping[str, Sequence[Any]],
    places: Sequence[Place],
    notes: list[Finding],
) -> list[Label]:
    """The label of each row. Raises DataError with file and row for a value that is none."""
    if chosen.kind == "objects":
        return _objects(listing, chosen.column, columns[chosen.column], places)
    if chosen.kind == "one_hot":
        return _one_hot(listing, chosen.one_hot, columns, places, notes)
    if chosen.kind == "several":
        return _several(listing, chosen.column, columns[chosen.column], places, True, notes)
    first = _one(listing, chosen, columns, places, notes)
    if chosen.also is None:
        return first
    second = _several(listing, chosen.also.column, columns[chosen.also.column], places, True, notes)
    return [replace(a, several=b.several) for a, b in zip(first, second, strict=True)]


def _one(
    listing: Listing,
    chosen: roles.Labels,
    columns: Mapping[str, Sequence[Any]],
    places: Sequence[Place],
    notes: list[Finding],
) -> list[Label]:
    raw = columns[chosen.column]
    texts = [cells.text(value) for value in raw]
    if any(cells.as_list(value) is not None for value in roles.sample(raw)) or cells.separator(texts, False):
        return _several(listing, chosen.column, raw, places, False, notes)
    there = set(texts) - cells.MISSING
    numbered = bool(there) and all(map(cells.is_integer, there))
    if there and not numbered and all(map(cells.is_number, there)):
        at = next(n for n, text in enumerate(texts) if not cells.is_integer(text) and text in there)
        raise DataError(
            f"{_where(listing, places[at])}: {chosen.column} = {texts[at]}: a measure, no class; "
            f"accepted: {roles.LABELS_ACCEPTED}"
        )
    commas = [text for text in there if "," in text or ";" in text]
    notes += finding(
        "info", "separator_in_class", sorted(commas),
        f"{{n}} values of {chosen.column} hold , or ; and are each taken as a class: call the column labels "
        "where they are several",
    )  # fmt: skip
    if numbered:
        floats = sorted(text for text in there if "." in text)
        if floats and len(floats) < len(there):
            notes += finding(
                "info", "number_as_float", floats, f"{{n}} values of {chosen.column} as 1.0 are taken as 1"
            )
        # -1 beside other numbers is nobody's class; where there are only -1 and 1 it is one.
        minus = "-1" in {_integer(text) for text in there} and len({_integer(t) for t in there} - {"1"}) > 1
        named = [cells.text(v) for v in columns[chosen.names]] if chosen.names else [""] * len(texts)
        return [_number(text, name, minus) for text, name in zip(texts, named, strict=True)]
    return [Label(text, one=text, missing=cells.is_missing(text)) for text in texts]


def _number(text: str, name: str, minus: bool) -> Label:
    if cells.is_missing(text):
        return Label(text, missing=True)
    number = _integer(text)
    if minus and number == "-1":
        return Label(text, missing=True)
    return Label(text, one=name or number, numbered=not name)


def _integer(text: str) -> str:
    return str(int(float(text))) if "." in text else text.removeprefix("+")


def _several(
    listing: Listing,
    column: str,
    raw: Sequence[Any],
    places: Sequence[Place],
    said: bool,
    notes: list[Finding],
) -> list[Label]:
    """Classes of lists, of lists as text, or of texts with a separator."""
    lists = [cells.as_list(value) for value in raw]
    texts = [cells.text(value) for value in raw]
    plain = [text for text, one in zip(texts, lists, strict=True) if one is None]
    as_lists = len(plain) < len(raw)
    if as_lists and any(text not in cells.MISSING for text in plain):
        at = next(n for n, one in enumerate(lists) if one is None and texts[n] not in cells.MISSING)
        raise DataError(
            f"{_where(listing, places[at])}: {column} = {texts[at]!r}: no list, as in other rows; "
            "accepted: one form, as in ['cat', 'dog'] or cat|dog"
        )
    sign = None if as_lists else cells.separator(plain, said)
    if sign is None and not as_lists:
        notes += finding(
            "warning", "blank_in_class", sorted({text for text in plain if " " in text})[:100],
            f"values of {column} hold blanks and are each taken as one class: put | between several",
        ) if said else []  # fmt: skip
    if as_lists:
        _refuse_vectors(listing, column, lists, places)
    made = []
    for text, one in zip(texts, lists, strict=True):
        parts = cells.split(text, sign) if one is None else [p for p in one if p not in cells.MISSING]
        made.append(Label(text, several=tuple(dict.fromkeys(parts))))
    seen = {name for label in made for name in label.several or ()}
    if seen and all(map(cells.is_integer, seen)):
        made = [
            replace(label, several=tuple(map(_integer, label.several or ())), numbered=True) for label in made
        ]
    return made


def _refuse_vectors(
    listing: Listing, column: str, lists: Sequence[list[str] | None], places: Sequence[Place]
) -> None:
    """Lists of 0 and 1, one a class: which class is which stands nowhere."""
    full = [one for one in lists if one]
    sizes = {len(one) for one in full}
    if full and len(sizes) == 1 and sizes != {1}:
        seen = {part for one in full for part in one}
        if seen <= {"0", "1", "0.0", "1.0"} and any(len(set(one)) < len(one) for one in full):
            raise DataError(
                f"{_where(listing, places[0])}: {column} holds lists of {sizes.pop()} zeros and ones without "
                "the names of the classes; accepted: lists of names, or a column of 0 and 1 for each class"
            )


def _one_hot(
    listing: Listing,
    names: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    places: Sequence[Place],
    notes: list[Finding],
) -> list[Label]:
    """Columns of yes and no. An empty cell is no, and is counted; -1 is no only where 0 never occurs."""
    texts = {name: [cells.text(value) for value in columns[name]] for name in names}
    seen = {cells.text(text) for values in texts.values() for text in set(values)} - cells.MISSING
    signs = {"1", "-1", "1.0", "-1.0"}
    minus_is_no = seen <= signs
    if minus_is_no and seen & {"-1", "-1.0"}:
        notes.append(
            Finding("info", "minus_is_no", len(names), "-1 and 1: -1 is taken as no", list(names[:20]))
        )
    chosen: list[list[str]] = [[] for _ in places]
    empty = []
    for name, values in texts.items():
        gaps = 0
        for n, text in enumerate(values):
            yes = False if minus_is_no and text in ("-1", "-1.0") else cells.yes_or_no(text)
            if cells.is_missing(text):
                gaps += 1
            elif yes is None:
                same = values.count(text)
                hint = ": uncertain, as some data sets mean it, is neither" if text in ("-1", "-1.0") else ""
                raise DataError(
                    f"{_where(listing, places[n])}: {name} = {text!r} ({same} times in this column){hint}; "
                    "accepted: 0 or 1 in each row of a column that is a class"
                )
            elif yes:
                chosen[n].append(name)
        if gaps:
            empty.append(f"{name}: {gaps}")
    notes += finding(
        "warning", "empty_is_no", empty, "{n} columns of 0 and 1 have empty cells, which are taken as 0"
    )
    never = [name for name in names if not any(name in row for row in map(set, chosen))]
    notes += finding("warning", "class_never", never, "{n} classes occur in no row")
    return [Label("", several=tuple(row)) for row in chosen]


def _objects(listing: Listing, column: str, raw: Sequence[Any], places: Sequence[Place]) -> list[Label]:
    """Boxes as Hugging Face writes them: lists ``bbox`` (x, y, width, height in px) and ``categories``."""
    made = []
    for place, value in zip(places, raw, strict=True):
        said = value if isinstance(value, dict) else {}
        boxes = said.get("bbox") or []
        key = next((k for k in ("category", "categories", "label", "labels", "category_id") if k in said), "")
        kinds = said.get(key) or []
        if value is not None and (len(boxes) != len(kinds) or (boxes and not key)):
            raise DataError(
                f"{_where(listing, place)}: {column} holds {len(boxes)} boxes and {len(kinds)} classes; "
                "accepted: lists bbox and categories of equal length"
            )
        read = []
        for box, kind in zip(boxes, kinds, strict=True):
            if (
                not isinstance(box, list | tuple)
                or len(box) != 4
                or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in box)
            ):
                raise DataError(
                    f"{_where(listing, place)}: bbox = {json.dumps(box, default=str)[:80]}; accepted: "
                    "x, y, width, height in px"
                )
            read.append((cells.text(kind), tuple(float(v) for v in box)))
        numbered = bool(read) and all(cells.is_integer(kind) for kind, _ in read)
        made.append(Label("", boxes=tuple(read), numbered=numbered))
    return made


# ---- rows with labels


def without_missing(listing: Listing, rows: list[Row], notes: list[Finding]) -> list[Row]:
    """Rows without a label left out where they are few, or the whole of a split. Raises DataError."""
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
                f"{_where(listing, (first.file, first.line))}: {said} ({what} in {len(lost) + len(kept)} "
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
        here, there = _where(listing, (row.file, row.line)), _short(other, row)
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
        same = (row.label.one, row.label.several, row.label.boxes) == (
            other.label.one, other.label.several, other.label.boxes
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


def named(
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


def values(listing: Listing, rows: Sequence[Row], column: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of an index, and its label columns: what there is, ``column`` among it where it can be."""
    if any(row.label.boxes is not None for row in rows):
        made = [
            {
                OBJECTS: {
                    "bbox": [list(box) for _, box in row.label.boxes or ()],
                    "category": [kind for kind, _ in row.label.boxes or ()],
                }
            }
            for row in rows
        ]
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


def _where(listing: Listing, place: Place) -> str:
    return f"{listing.where(place[0])} row {place[1]}"
