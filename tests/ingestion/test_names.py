"""One spelling of each class; names that look like one class are said, or merged on request."""

from __future__ import annotations

import unicodedata
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlray.errors import DataError
from tlray.ingestion.names import clean, likeness, unify

BOXES = pa.struct([("bbox", pa.list_(pa.list_(pa.float64()))), ("category", pa.list_(pa.string()))])
CAFE, CAFE_DECOMPOSED = "caf\u00e9", "cafe\u0301"


def table(column: str, values: list[Any], kind: pa.DataType | None = None) -> pa.Table:
    paths = [f"{n}.jpg" for n in range(len(values))]
    return pa.table({"path": paths, column: pa.array(values, kind or pa.string())})


def kinds_of(findings: list[Any]) -> dict[str, tuple[str, int]]:
    return {f.kind: (f.severity, f.count) for f in findings}


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("cat", "cat"),
        (" cat\t", "cat"),
        ("\ufeffcat", "cat"),
        ("cat\u200b \u00a0", "cat"),
        ("\u3000cat\r", "cat"),
        ("traffic  light", "traffic  light"),
        (CAFE_DECOMPOSED, CAFE),
        ("\u200b", ""),
        ("a\u200db", "a\u200db"),  # within a name it may mean something
        ("\U0001f3f4\U000e0067\U000e0062\U000e007f", "\U0001f3f4\U000e0067\U000e0062\U000e007f"),
    ],
)
def test_names_are_composed_and_trimmed(raw: str, name: str) -> None:
    assert clean(raw) == name


@settings(deadline=None)
@given(st.text())
def test_cleaning_twice_changes_nothing(raw: str) -> None:
    name = clean(raw)
    assert clean(name) == name == unicodedata.normalize("NFC", name)
    assert clean(f" \ufeff{unicodedata.normalize('NFD', raw)}\u200b\n") == name


@pytest.mark.parametrize(
    "names",
    [
        ("Cat", "cat", "CAT", "\uff23\uff41\uff54", "c\u200bat"),
        ("1", "1.0", "01", "1.", "001.00", "+1", "\uff11"),
        ("0", "00", "0.0"),
        ("-1", "-1.0", "-01"),
        ("1.5", "1.50", "01.5"),
        ("traffic light", "traffic_light", "Traffic-Light", "traffic  light"),
        ("Stra\u00dfe", "STRASSE"),
    ],
)
def test_what_looks_like_one_class(names: tuple[str, ...]) -> None:
    assert len({likeness(name) for name in names}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cat", "cats"),
        ("1", "10"),
        ("1", "-1"),
        ("1.5", "15"),
        ("C", "C-"),
        ("C", "C+"),
        ("_a", "a"),
        ("12345678901234567890123456789012", "12345678901234567890123456789013"),
        ("1.0.0", "1"),
        (CAFE, "cafe"),
        ("v1", "v1.0"),
    ],
)
def test_what_does_not(one: str, other: str) -> None:
    assert likeness(one) != likeness(other)


@pytest.mark.parametrize("kind", ["class", "identity"])
def test_spellings_of_one_class_become_one(kind: Any) -> None:
    rows = table("label", [CAFE, CAFE_DECOMPOSED, "tea ", "tea"])
    made, names, findings = unify(rows, {"label": kind}, {}, merge=False)
    assert made["label"].to_pylist() == [CAFE, CAFE, "tea", "tea"]
    assert made["path"] == rows["path"] and names == {}
    assert kinds_of(findings) == {"names_cleaned": ("info", 2)}
    assert findings[0].examples == [f"'cafe\\u0301' -> '{CAFE}': 1 labels", "'tea ' -> 'tea': 1 labels"]


def test_clean_names_are_left_alone() -> None:
    rows = table("label", ["cat", "dog", None])
    made, names, findings = unify(rows, {"label": "class"}, {}, merge=True)
    assert made is rows and names == {} and findings == []


def test_names_that_look_like_one_are_said_with_counts() -> None:
    rows = table("label", ["Cat", "cat", "cat", "dog", "1", "1.0"])
    made, _, findings = unify(rows, {"label": "class"}, {}, merge=False)
    assert made is rows
    assert kinds_of(findings) == {"similar_names": ("warning", 2)}
    assert findings[0].examples == [
        "'1' (1 labels) = '1.0' (1 labels)",
        "'Cat' (1 labels) = 'cat' (2 labels)",
    ]
    assert "--merge-classes" in findings[0].message


def test_they_are_merged_into_the_most_frequent_or_the_first() -> None:
    rows = table("label", ["Cat", "cat", "cat ", "dog", "Dog"])
    made, _, findings = unify(rows, {"label": "class"}, {}, merge=True)
    assert made["label"].to_pylist() == ["cat", "cat", "cat", "Dog", "Dog"]
    assert kinds_of(findings) == {"names_cleaned": ("info", 1), "names_merged": ("info", 2)}
    assert "'Cat' (1 labels) = 'cat' (2 labels) -> 'cat'" in findings[1].examples


def test_a_picture_has_no_class_twice() -> None:
    rows = table("labels", [["Cat", "dog", "cat"], [], ["cat", "cat "]], pa.list_(pa.string()))
    made, _, _ = unify(rows, {"labels": "classes"}, {}, merge=False)
    assert made["labels"].to_pylist() == [["Cat", "dog", "cat"], [], ["cat"]]
    made, _, _ = unify(rows, {"labels": "classes"}, {}, merge=True)
    assert made["labels"].to_pylist() == [["cat", "dog"], [], ["cat"]]
    assert made.schema == rows.schema


def test_boxes_keep_their_places() -> None:
    boxes = {"bbox": [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]], "category": ["Cat ", "cat"]}
    rows = table("objects", [boxes, {"bbox": [], "category": []}], BOXES)
    made, _, findings = unify(rows, {"objects": "objects"}, {}, merge=True)
    assert made["objects"].to_pylist() == [
        {"bbox": boxes["bbox"], "category": ["Cat", "Cat"]},
        {"bbox": [], "category": []},
    ]
    assert made.schema == rows.schema
    assert findings[1].examples == ["'Cat' (1 labels) = 'cat' (1 labels) -> 'Cat'"]


def test_given_names_keep_their_order_and_have_no_doubles() -> None:
    rows = table("label", ["dog", "cat ", "cat", "Cat"])
    given_names = {"label": ["dog", "", "cat ", "bird", "cat", "Cat", "bird\ufeff"]}
    made, names, _ = unify(rows, {"label": "class"}, given_names, merge=False)
    assert names == {"label": ["dog", "cat", "bird", "Cat"]}
    assert made["label"].to_pylist() == ["dog", "cat", "cat", "Cat"]
    _, names, findings = unify(rows, {"label": "class"}, given_names, merge=True)
    assert names == {"label": ["dog", "cat", "bird"]}
    assert kinds_of(findings)["names_merged"] == ("info", 1)


def test_the_ids_of_masks_stay() -> None:
    rows = table("mask", ["a.png"])
    made, names, findings = unify(
        rows, {"mask": "mask"}, {"mask": ["road ", "", "Car", "car", ""]}, merge=True
    )
    assert made is rows and names == {"mask": ["road", "", "Car", "car", ""]}
    assert kinds_of(findings) == {"similar_names": ("warning", 1)}
    assert "the ids of masks are not merged" in findings[0].message
    with pytest.raises(
        DataError, match="mask: the ids 0 and 2 are both named 'road'; accepted: a name of its"
    ):
        unify(rows, {"mask": "mask"}, {"mask": ["road", "car", "road "]}, merge=True)


@pytest.mark.parametrize("raw", ["", " ", "\ufeff"])
def test_a_class_without_a_name_is_refused(raw: str) -> None:
    with pytest.raises(DataError, match=r"^1\.jpg: label '.*': a class without a name; accepted: some text$"):
        unify(table("label", ["cat", raw]), {"label": "class"}, {}, merge=False)


NAMES = st.sampled_from(["cat", "Cat", "cat ", "dog", "1", "1.0", "01", CAFE, CAFE_DECOMPOSED, "\uff43at"])


@settings(deadline=None)
@given(st.lists(st.lists(NAMES, max_size=4, unique=True), max_size=8), st.booleans(), st.randoms())
def test_merging_is_the_same_in_any_order(values: list[list[str]], merge: bool, random: Any) -> None:
    made, _, _ = unify(table("labels", values, pa.list_(pa.string())), {"labels": "classes"}, {}, merge)
    order = list(range(len(values)))
    random.shuffle(order)
    shuffled = table("labels", [values[i] for i in order], pa.list_(pa.string()))
    other, _, _ = unify(shuffled, {"labels": "classes"}, {}, merge)
    rows = made["labels"].to_pylist()
    assert other["labels"].to_pylist() == [rows[i] for i in order]
    for row, before in zip(rows, values, strict=True):
        assert len(row) == len(set(row))
        assert {likeness(name) for name in row} == {likeness(clean(name)) for name in before}
    if merge:
        there = {name for row in rows for name in row}
        assert len({likeness(name) for name in there}) == len(there)
