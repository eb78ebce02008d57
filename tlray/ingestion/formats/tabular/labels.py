"""The labels of rows from the cells of label columns: texts, numbers, lists, yes and no, boxes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tlray.data.schema import FLAGS
from tlray.errors import DataError
from tlray.ingestion.findings import Finding, finding
from tlray.ingestion.formats.listing import Listing
from tlray.ingestion.formats.tabular import cells, roles

Place = tuple[str, int]  # file, number of the row


@dataclass(frozen=True)
class Label:
    """The label of a row: its class, its classes or its boxes; ``text`` is the cell, for messages."""

    text: str = ""
    one: str | None = None
    several: tuple[str, ...] | None = None
    boxes: tuple[tuple[str, tuple[float, ...]], ...] | None = None
    flags: tuple[tuple[str, tuple[bool, ...]], ...] = ()  # of the boxes: `schema.FLAGS`
    numbered: bool = False  # classes are numbers
    missing: bool = False


def read(
    listing: Listing,
    chosen: roles.Labels,
    columns: Mapping[str, Sequence[Any]],
    places: Sequence[Place],
    notes: list[Finding],
) -> list[Label]:
    """The label of each row. Raises DataError with file and row for a value that is no label."""
    if chosen.kind == "objects":
        return _objects(listing, chosen.column, columns[chosen.column], places)
    if chosen.kind == "one_hot":
        return _one_hot(listing, chosen.one_hot, columns, places, notes)
    if chosen.kind == "several":
        return _several(listing, chosen.column, columns[chosen.column], places, True, notes)
    single = _one(listing, chosen, columns, places, notes)
    if chosen.also is None:
        return single
    several = _several(listing, chosen.also.column, columns[chosen.also.column], places, True, notes)
    return [replace(a, several=b.several) for a, b in zip(single, several, strict=True)]


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
    objects = next((n for n, value in enumerate(raw) if isinstance(value, dict)), None)
    if objects is not None:
        raise DataError(
            f"{where(listing, places[objects])}: {chosen.column} = {texts[objects][:60]}: an object; "
            "accepted: the name of a class, or a list of names"
        )
    values = set(texts) - cells.MISSING
    numbered = bool(values) and all(map(cells.is_integer, values))
    if values and not numbered and all(map(cells.is_number, values)):
        row = next(n for n, text in enumerate(texts) if not cells.is_integer(text) and text in values)
        raise DataError(
            f"{where(listing, places[row])}: {chosen.column} = {texts[row]}: a measure, no class; "
            f"accepted: {roles.LABELS_ACCEPTED}"
        )
    commas = [text for text in values if "," in text or ";" in text]
    notes += finding(
        "info", "separator_in_class", sorted(commas),
        f"{{n}} values of {chosen.column} hold , or ; and are each taken as a class: call the column labels "
        "where they are several",
    )  # fmt: skip
    if numbered:
        floats = sorted(text for text in values if "." in text)
        if floats and len(floats) < len(values):
            notes += finding(
                "info", "number_as_float", floats, f"{{n}} values of {chosen.column} as 1.0 are taken as 1"
            )
        # -1 beside other numbers means no label; where there are only -1 and 1 it is a class.
        minus_is_missing = (
            "-1" in {_integer(text) for text in values} and len({_integer(t) for t in values} - {"1"}) > 1
        )
        class_names = [cells.text(v) for v in columns[chosen.names]] if chosen.names else [""] * len(texts)
        return [_number(text, name, minus_is_missing) for text, name in zip(texts, class_names, strict=True)]
    if len(values) >= roles.MANY * len(texts) and len(texts) >= roles.FEW:
        text = (
            f"{chosen.column} has {len(values)} classes for {len(texts)} pictures: rather texts than classes"
        )
        notes.append(Finding("warning", "class_for_every_picture", len(values), text, sorted(values)[:20]))
    return [Label(text, one=text, missing=cells.is_missing(text)) for text in texts]


def _number(text: str, name: str, minus_is_missing: bool) -> Label:
    if cells.is_missing(text):
        return Label(text, missing=True)
    number = _integer(text)
    if minus_is_missing and number == "-1":
        return Label(text, missing=True)
    return Label(text, one=name or number, numbered=not name)


def _integer(text: str) -> str:
    return str(int(float(text))) if "." in text else text.removeprefix("+")


def _several(
    listing: Listing,
    column: str,
    raw: Sequence[Any],
    places: Sequence[Place],
    says_several: bool,
    notes: list[Finding],
) -> list[Label]:
    """Labels of several classes: lists, lists written as text, or texts with a separator."""
    lists = [cells.as_list(value) for value in raw]
    texts = [cells.text(value) for value in raw]
    unlisted = [text for text, parts_of_list in zip(texts, lists, strict=True) if parts_of_list is None]
    as_lists = len(unlisted) < len(raw)
    if as_lists and any(text not in cells.MISSING for text in unlisted):
        row = next(
            n
            for n, parts_of_list in enumerate(lists)
            if parts_of_list is None and texts[n] not in cells.MISSING
        )
        raise DataError(
            f"{where(listing, places[row])}: {column} = {texts[row]!r}: no list, as in other rows; "
            "accepted: one form, as in ['cat', 'dog'] or cat|dog"
        )
    sign = None if as_lists else cells.separator(unlisted, says_several)
    if sign == " ":
        notes += finding(
            "warning", "split_at_blanks", sorted({text for text in unlisted if " " in text})[:100],
            f"values of {column} are split at blanks: put | between the classes of a cell",
        )  # fmt: skip
    if sign is None and not as_lists:
        notes += finding(
            "warning", "blank_in_class", sorted({text for text in unlisted if " " in text})[:100],
            f"values of {column} hold blanks and are each taken as one class: put | between several",
        ) if says_several else []  # fmt: skip
    if as_lists:
        _refuse_vectors(listing, column, lists, places)
    label_list = []
    null_words, null_like_classes = Counter[str](), Counter[str]()
    for value, text, parts_of_list in zip(raw, texts, lists, strict=True):
        if parts_of_list is None:
            parts = cells.split(text, sign)
            pieces = [text] if sign is None else [part.strip() for part in text.split(sign)]
            null_words.update(part for part in pieces if part and cells.is_missing(part))
        else:
            null_parts = cells.null_parts(value)
            parts = [part for part in parts_of_list if part not in null_parts]
            null_words.update(filter(None, null_parts))
            null_like_classes.update(part for part in parts if cells.is_missing(part))
        label_list.append(Label(text, several=tuple(dict.fromkeys(parts))))
    notes += finding(
        "warning", "null_label", [f"{word}: {n}" for word, n in null_words.most_common()],
        f"{{n}} words in {column} say that there is no value (taken as no class)",
    )  # fmt: skip
    notes += finding(
        "warning", "class_called_null", [f"{word}: {n}" for word, n in null_like_classes.most_common()],
        f"{{n}} classes in {column} are called as missing values are (a text in a list is taken as a class)",
    )  # fmt: skip
    class_names = {name for label in label_list for name in label.several or ()}
    if class_names and all(map(cells.is_integer, class_names)):
        label_list = [
            replace(label, several=tuple(map(_integer, label.several or ())), numbered=True)
            for label in label_list
        ]
    return label_list


def _refuse_vectors(
    listing: Listing, column: str, lists: Sequence[list[str] | None], places: Sequence[Place]
) -> None:
    """Raises DataError for lists of 0 and 1, a number for each class: nothing says which class is which."""
    filled = [values for values in lists if values]
    sizes = {len(values) for values in filled}
    if filled and len(sizes) == 1 and sizes != {1}:
        distinct = {part for values in filled for part in values}
        if distinct <= {"0", "1", "0.0", "1.0"} and any(len(set(values)) < len(values) for values in filled):
            raise DataError(
                f"{where(listing, places[0])}: {column} holds lists of {sizes.pop()} zeros and ones without "
                "the names of the classes; accepted: lists of names, or a column of 0 and 1 for each class"
            )


def _one_hot(
    listing: Listing,
    names: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    places: Sequence[Place],
    notes: list[Finding],
) -> list[Label]:
    """Labels of columns of yes and no. An empty cell is no and is reported; -1 is no where 0 never occurs."""
    texts = {name: [cells.text(value) for value in columns[name]] for name in names}
    distinct = {cells.text(text) for values in texts.values() for text in set(values)} - cells.MISSING
    signs = {"1", "-1", "1.0", "-1.0"}
    minus_is_no = distinct <= signs
    if minus_is_no and distinct & {"-1", "-1.0"}:
        notes.append(
            Finding("info", "minus_is_no", len(names), "-1 and 1: -1 is taken as no", list(names[:20]))
        )
    classes_of_rows: list[list[str]] = [[] for _ in places]
    with_gaps = []
    for name, values in texts.items():
        num_empty = 0
        for n, text in enumerate(values):
            yes = False if minus_is_no and text in ("-1", "-1.0") else cells.yes_or_no(text)
            if cells.is_missing(text):
                num_empty += 1
            elif yes is None:
                count = values.count(text)
                hint = ": uncertain, as some data sets mean it, is neither" if text in ("-1", "-1.0") else ""
                raise DataError(
                    f"{where(listing, places[n])}: {name} = {text!r} ({count} times in this column){hint}; "
                    "accepted: 0 or 1 in each row of a column that is a class"
                )
            elif yes:
                classes_of_rows[n].append(name)
        if num_empty:
            with_gaps.append(f"{name}: {num_empty}")
    notes += finding(
        "warning", "empty_is_no", with_gaps, "{n} columns of 0 and 1 have empty cells, which are taken as 0"
    )
    never = [name for name in names if not any(name in row for row in map(set, classes_of_rows))]
    notes += finding("warning", "class_never", never, "{n} classes occur in no row")
    return [Label("", several=tuple(row)) for row in classes_of_rows]


def _objects(listing: Listing, column: str, raw: Sequence[Any], places: Sequence[Place]) -> list[Label]:
    """Boxes as Hugging Face writes them: lists ``bbox`` (x, y, width, height in px) and ``categories``,
    perhaps with lists of `schema.FLAGS`."""
    label_list = []
    for place, value in zip(places, raw, strict=True):
        objects = value if isinstance(value, dict) else {}
        boxes = objects.get("bbox") or []
        key = next(
            (k for k in ("category", "categories", "label", "labels", "category_id") if k in objects), ""
        )
        kinds = objects.get(key) or []
        if value is not None and (len(boxes) != len(kinds) or (boxes and not key)):
            raise DataError(
                f"{where(listing, place)}: {column} holds {len(boxes)} boxes and {len(kinds)} classes; "
                "accepted: lists bbox and categories of equal length"
            )
        checked = []
        for box, kind in zip(boxes, kinds, strict=True):
            if (
                not isinstance(box, list | tuple)
                or len(box) != 4
                or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in box)
            ):
                raise DataError(
                    f"{where(listing, place)}: bbox = {json.dumps(box, default=str)[:80]}; accepted: "
                    "x, y, width, height in px"
                )
            checked.append((cells.text(kind), tuple(float(v) for v in box)))
        numbered = bool(checked) and all(cells.is_integer(kind) for kind, _ in checked)
        flags = tuple(
            (name, _flags(listing, place, name, objects[name], len(boxes)))
            for name in FLAGS
            if objects.get(name)
        )
        label_list.append(Label("", boxes=tuple(checked), flags=flags, numbered=numbered))
    return label_list


def _flags(listing: Listing, place: Place, name: str, values: Any, count: int) -> tuple[bool, ...]:
    is_valid = isinstance(values, list) and len(values) == count and all(v in (0, 1, None) for v in values)
    if not is_valid:
        raise DataError(
            f"{where(listing, place)}: {name} = {json.dumps(values, default=str)[:80]} beside {count} boxes; "
            "accepted: 0 or 1 for each box"
        )
    return tuple(map(bool, values))


def where(listing: Listing, place: Place) -> str:
    """A place in a file, for messages."""
    return f"{listing.where(place[0])} row {place[1]}"
