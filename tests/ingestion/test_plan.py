"""What an ingest decides from rows alone: which splits are cut off, and what is said of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tlray.ingestion import plan, preflight
from tlray.ingestion.report import examine

BOXES = pa.struct([("bbox", pa.list_(pa.list_(pa.float64()))), ("category", pa.list_(pa.string()))])


def table(
    column: str, values: list[Any], split: list[str | None] | None = None, kind: Any = None
) -> pa.Table:
    number = len(values)
    return pa.table(
        {
            "path": [f"{n}.jpg" for n in range(number)],
            "kind": pa.nulls(number, pa.string()),
            "reason": pa.nulls(number, pa.string()),
            "sha256": [f"{n:064d}" for n in range(number)],
            "split": pa.array(split or [None] * number, pa.string()),
            column: pa.array(values, kind),
        }
    )


def boxes(*names: str) -> dict[str, Any]:
    return {"bbox": [[0.0, 0.0, 9.0, 9.0]] * len(names), "category": list(names)}


def assign(rows: pa.Table, kind: Any, validation: float = 0.1, test: float = 0.1, seed: int = 0) -> Any:
    """(split of each row, finding kind -> message and examples)"""
    column = rows.column_names[-1]
    cut = plan.shares(set(rows["split"].to_pylist()) - {None}, validation, test)
    made, findings = plan.assign("src", rows, {column: kind}, np.arange(rows.num_rows), cut, seed)
    return made["split"].to_pylist(), {f.kind: (f.severity, f.message, f.examples) for f in findings}


@pytest.mark.parametrize(
    ("given_splits", "cut"),
    [
        (set(), {"test": 0.2, "validation": 0.1}),
        ({"train"}, {"validation": 0.1}),
        ({"train", "test"}, {"validation": 0.1}),
        ({"train", "validation"}, {}),
        ({"train", "validation", "test"}, {}),
    ],
)
def test_a_given_split_is_never_replaced(given_splits: set[str], cut: dict[str, float]) -> None:
    assert plan.shares(given_splits, 0.1, 0.2) == cut
    assert plan.shares(given_splits, 0.0, 0.0) == {}


def test_given_rows_stay_and_train_alone_is_cut() -> None:
    split = ["train"] * 30 + ["test"] * 5 + [None] * 5
    found, findings = assign(table("label", ["cat", "dog"] * 20, split), "class", validation=0.2)
    assert found[30:35] == ["test"] * 5
    assert Counter(found) == {"train": 28, "validation": 7, "test": 5}
    assert findings == {}


@pytest.mark.parametrize("seed", range(5))
def test_boxes_are_shared_out_by_class(seed: int) -> None:
    values = [boxes("cat", "cat", f"rare{n // 2}") if n < 20 else boxes("cat") for n in range(38)]
    rows = table("objects", [*values, boxes(), boxes()], kind=BOXES)
    found, findings = assign(rows, "objects", seed=seed)
    assert Counter(found) == {"train": 32, "validation": 4, "test": 4}
    assert set(found[:20]) == {"train"}
    severity, message, examples = findings["class_missing"]
    assert severity == "warning" and message.startswith("10 classes of train are not in ")
    assert examples[0] == "rare0: 2 in train"
    good = rows.set_column(4, "split", pa.array(found))
    assert plan.known_classes(good, rows.slice(0, 0), {"objects": "objects"})[0] is good


def test_masks_are_shared_out_by_the_ids_in_them() -> None:
    values = [[0, 1] if n % 2 else [0, 2, 255] for n in range(40)]
    rows = table("mask_values", [*values, [0, 7]], kind=pa.list_(pa.int32()))
    rows = rows.append_column("mask", pa.array([f"{n}.png" for n in range(41)]))
    found, findings = assign(rows, "mask")
    assert found[40] == "train"
    for split in ("validation", "test"):
        assert Counter(n % 2 for n in range(40) if found[n] == split) == {0: 2, 1: 2}
    assert findings["class_missing"][2] == ["7: 1 in train"]


def test_too_few_pictures_for_a_split_are_said() -> None:
    found, findings = assign(table("label", ["cat", "dog"]), "class")
    assert found == ["train", "train"]
    assert findings["no_validation"][:2] == (
        "warning",
        "no validation split: among 2 pictures are too few pictures of a class",
    )
    assert set(findings) == {"no_validation", "no_test"}
    assert assign(table("label", ["cat", "dog"]), "class", validation=0, test=0) == (["train"] * 2, {})


def test_people_of_one_picture_make_no_split() -> None:
    found, findings = assign(table("label", [f"p{n}" for n in range(12)]), "identity")
    assert found == ["train"] * 12
    assert "too few people with two pictures or more" in findings["no_validation"][1]
    people = [f"p{n // 2}" for n in range(8)] + ["single0", "single1"]
    found, findings = assign(table("label", people), "identity")
    assert Counter(found) == {"train": 6, "validation": 4}  # of two splits, training needs this one
    assert set(findings) == {"no_test"}


def test_a_class_that_only_a_given_split_has() -> None:
    split = ["train", "train", "test", "test"]
    rows = table("label", ["cat", "dog", "cat", "owl"], split)
    good, bad, kept = plan.known_classes(rows, rows.slice(0, 0), {"label": "class"})
    assert good["label"].to_pylist() == ["cat", "dog", "cat"] and kept.tolist() == [0, 1, 2]
    assert bad["reason"].to_pylist() == ["class 'owl' is not in train"]
    # Pictures of several classes stay, with all of them.
    for kind, values in (
        ("classes", [["cat"], ["dog"], ["cat"], ["owl", "cat"]]),
        ("objects", [boxes("cat"), boxes("dog"), boxes("cat"), boxes("owl", "cat")]),
    ):
        rows = table(kind, values, split)
        kinds: Any = {kind: kind}
        good, bad, kept = plan.known_classes(rows, rows.slice(0, 0), kinds)
        assert good.num_rows == 4 and bad.num_rows == 0 and len(kept) == 4
        assert plan.label_names(good, kinds, {}) == {kind: ["cat", "dog", "owl"]}


def test_the_report_names_a_class_that_train_has_not() -> None:
    seen = [{**dict.fromkeys(preflight.INSPECTED.names), "width": 64, "height": 64} for _ in range(2)]
    rows = pa.Table.from_pylist(seen, schema=preflight.INSPECTED)
    rows = rows.append_column("path", pa.array(["a", "b"])).append_column(
        "split", pa.array(["train", "test"])
    )
    groups = np.arange(2)
    for made in ([], ["test"]):
        report = examine(
            "src", rows, rows.slice(0, 0), groups, groups, {}, [["cat", "dog"], ["owl", "dog"]], cut=made
        )
        found = {f.kind: (f.severity, f.examples) for f in report.findings}
        assert found["class_not_in_train"] == ("error", ["owl"])
        assert ("class_missing" in found) == (not made)  # of those the cutting itself has told
