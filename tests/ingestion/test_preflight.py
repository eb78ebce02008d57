"""What pre-flight sees in pictures, and how it says so."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageEnhance

from tlray.data import synthetic
from tlray.errors import DataError
from tlray.ingestion import duplicates, preflight
from tlray.ingestion.report import Report, examine


def photo(n: int, size: int = 96) -> Image.Image:
    return Image.open(io.BytesIO(synthetic.picture(n % 10, size, np.random.default_rng(n))))


def encoded(picture: Image.Image, kind: str = "JPEG", **settings: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **settings)
    return out.getvalue()


def groups(pictures: list[bytes]) -> list[int]:
    seen = [preflight.inspect(data) for data in pictures]
    found = duplicates.near_groups(
        np.array([s["phash"] for s in seen], dtype=np.uint64), [s["thumb"] for s in seen]
    )
    return found.tolist()


def report(
    rows: list[dict[str, Any]], ignored: dict[str, int] | None = None, open_set: bool = False
) -> Report:
    """Rows: path, split, label, and data or fields of INSPECTED."""
    full = []
    for row in rows:
        seen = (
            preflight.inspect(row.pop("data"))
            if "data" in row
            else preflight.inspect(encoded(photo(len(full))))
        )
        full.append({**seen, **row})
    names = ("path", "split", "label")
    kinds = pa.schema([*preflight.INSPECTED, *((name, pa.string()) for name in names)])
    good = pa.Table.from_pylist([r for r in full if r["kind"] is None], schema=kinds)
    bad = pa.Table.from_pylist([r for r in full if r["kind"] is not None], schema=kinds)
    exact = duplicates.exact_groups(good["sha256"].to_pylist())
    near = duplicates.near_groups(good["phash"].to_numpy(), good["thumb"].to_pylist())
    classes = [[name] for name in good["label"].to_pylist()]
    return examine("pictures", good, bad, exact, near, ignored or {}, classes, open_set=open_set)


def many(split: str, label: str, count: int, start: int) -> list[dict[str, Any]]:
    return [
        {
            "path": f"{split}/{label}/{n}.jpg",
            "split": split,
            "label": label,
            "data": encoded(photo(start + n, 48)),
        }
        for n in range(count)
    ]


def found(what: Report) -> dict[str, tuple[str, int]]:
    return {f.kind: (f.severity, f.count) for f in what.findings}


def test_inspect_a_picture() -> None:
    data = encoded(photo(0).resize((60, 40)), exif=Image.Exif())
    row = preflight.inspect(data)
    assert set(row) == set(preflight.INSPECTED.names)
    assert (row["kind"], row["format"], row["mode"], row["width"], row["height"]) == (
        None,
        "JPEG",
        "RGB",
        60,
        40,
    )
    assert row["num_bytes"] == len(data)
    pa.Table.from_pylist([row], schema=preflight.INSPECTED)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty"),
        (b"<html>no picture</html>", "not_a_picture"),
        (encoded(photo(1))[:700], "truncated"),
        (encoded(photo(1), "PNG")[:3000], "truncated"),
        (encoded(Image.new("1", (8000, 7000)), "PNG"), "too_many_pixels"),
    ],
)
def test_inspect_what_is_unusable(data: bytes, kind: str) -> None:
    row = preflight.inspect(data)
    assert row["kind"] == kind
    assert row["reason"]
    assert row["num_bytes"] == len(data)
    pa.Table.from_pylist([row], schema=preflight.INSPECTED)


def test_near_duplicates_of_one_photo() -> None:
    one, other = photo(3, 200), photo(4, 200)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise, stored turned back: the same picture
    same = [
        encoded(one, quality=95),
        encoded(one, quality=40),
        encoded(one.resize((120, 120)), quality=85),
        encoded(one, "PNG"),
        encoded(ImageEnhance.Brightness(one).enhance(1.15)),
        encoded(one.transpose(Image.Transpose.ROTATE_90), exif=exif, quality=95),
    ]
    assert groups([encoded(other), *same]) == [0, 1, 1, 1, 1, 1, 1]


def test_different_photos_and_flat_pictures_are_not_near() -> None:
    assert groups([encoded(photo(n, 64)) for n in range(60)]) == list(range(60))
    assert groups([encoded(Image.new("RGB", (64, 64), c)) for c in ("white", "black", "#fefefe", "red")]) == [
        0,
        1,
        2,
        3,
    ]


def test_duplicates_across_splits_and_labels() -> None:
    twin = encoded(photo(50, 128), quality=95)
    again = encoded(photo(50, 128), quality=50)
    inside = encoded(photo(51))
    what = report(
        [
            {"path": "train/cat/a.jpg", "split": "train", "label": "cat", "data": twin},
            {"path": "test/cat/a.jpg", "split": "test", "label": "cat", "data": twin},
            {"path": "validation/dog/a.jpg", "split": "validation", "label": "dog", "data": again},
            {"path": "train/dog/b.jpg", "split": "train", "label": "dog", "data": inside},
            {"path": "train/dog/c.jpg", "split": "train", "label": "dog", "data": inside},
            {"path": "train/cat/d.jpg", "split": "train", "label": "cat", "data": inside},
        ]
    )
    kinds = found(what)
    assert kinds["exact_across_splits"] == ("error", 1)
    assert kinds["exact_label_conflict"] == ("error", 1)
    assert kinds["near_across_splits"] == ("warning", 1)
    assert kinds["near_label_conflict"] == ("warning", 1)
    assert kinds["exact_duplicates"] == ("info", 3)
    assert "near_duplicates" not in kinds  # the exact ones have said that
    assert [f.severity for f in what.findings] == sorted(
        (f.severity for f in what.findings), key=["error", "warning", "info"].index
    )
    first = next(f for f in what.findings if f.kind == "exact_across_splits")
    assert first.examples == ["train: train/cat/a.jpg = test: test/cat/a.jpg"]


def test_classes() -> None:
    rows = [*many("train", "cat", 12, 0), *many("train", "{dog}", 1, 100), *many("test", "cat", 2, 200)]
    what = report(rows)
    kinds = found(what)
    assert kinds["imbalance"] == ("warning", 1)
    assert kinds["few_rows"] == ("warning", 1)
    assert kinds["class_missing"] == ("warning", 1)
    assert what.counts == {"train": {"cat": 12, "{dog}": 1}, "test": {"cat": 2}}
    assert "12.0 (cat 12, {dog} 1)" in what.to_text()


def test_people_in_two_splits_are_an_error_and_people_in_one_are_none() -> None:
    rows = [
        *many("train", "ann", 3, 0), *many("train", "ben", 2, 10), *many("validation", "cem", 2, 20),
        *many("validation", "ann", 1, 30), *many("test", "cem", 1, 40), *many("test", "dan", 2, 50),
    ]  # fmt: skip
    what = report([dict(row) for row in rows], open_set=True)
    across = [f for f in what.findings if f.kind == "identity_across_splits"]
    assert [(f.severity, f.examples, f.message) for f in across] == [
        ("error", ["ann"], "1 identities of train are in validation, too"),
        ("error", ["cem"], "1 identities of validation are in test, too"),
    ]
    assert "class_missing" not in found(what)
    sound = report(
        [dict(row) for row in rows if row["split"] == "train" or row["label"] == "dan"], open_set=True
    )
    assert "identity_across_splits" not in found(sound)
    assert "identity_across_splits" not in found(report(rows))


def test_sizes_and_kinds_of_pictures() -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    moving = io.BytesIO()
    photo(5).convert("P").save(moving, "GIF", save_all=True, append_images=[photo(6).convert("P")])
    rows = [
        {"path": "tiny.jpg", "split": "train", "label": "a", "data": encoded(photo(1).resize((31, 80)))},
        {"path": "turned.jpg", "split": "train", "label": "a", "data": encoded(photo(2), exif=exif)},
        {"path": "moving.gif", "split": "train", "label": "a", "data": moving.getvalue()},
        {"path": "grey.jpg", "split": "train", "label": "a", "data": encoded(photo(3).convert("L"))},
        {
            "path": "huge.png",
            "split": "train",
            "label": "a",
            "data": encoded(Image.new("1", (8000, 7000)), "PNG"),
        },
        {"path": "empty.jpg", "split": "train", "label": "a", "data": b""},
    ]
    what = report(rows, {".txt": 3})
    kinds = found(what)
    assert kinds["tiny"] == ("warning", 1)
    assert kinds["exif_orientation"] == ("info", 1)
    assert kinds["frames"] == ("info", 1)
    assert kinds["mode"] == ("info", 2)
    assert kinds["ignored"] == ("info", 3)
    assert kinds["too_many_pixels"] == ("warning", 1)
    assert kinds["empty"] == ("warning", 1)
    assert [(q["path"], q["kind"]) for q in what.quarantined] == [
        ("huge.png", "too_many_pixels"),
        ("empty.jpg", "empty"),
    ]
    assert "tiny.jpg (31 x 80)" in what.to_text()
    assert "empty.jpg: 0 bytes" in what.to_text()


def test_strict_names_the_number_and_the_first() -> None:
    rows = [
        *many("train", "cat", 11, 0),
        {"path": "broken.jpg", "split": "train", "label": "cat", "data": b""},
    ]
    what = report(rows)
    what.check(strict=False)
    with pytest.raises(
        DataError, match=r"^pictures: 1 findings are fatal \(strict\), first: 1 left out: empty.*broken\.jpg"
    ):
        what.check(strict=True)
    report(many("train", "cat", 11, 0)).check(strict=True)


def test_pictures_of_several_objects_and_of_none_are_counted_as_pictures() -> None:
    rows = pa.Table.from_pylist(
        [
            {**preflight.inspect(encoded(photo(n))), "path": f"{n}.jpg", "split": split}
            for n, split in enumerate(["train", "train", "train", "test"])
        ],
        schema=pa.schema([*preflight.INSPECTED, ("path", pa.string()), ("split", pa.string())]),
    )
    alone, none = np.arange(4), rows.slice(0, 0)
    cells = [["red", "red", "white"], ["red"], [], ["red"]]
    what = examine("cells", rows, none, alone, alone, {}, cells)
    assert what.counts == {"train": {"red": 3, "white": 1}, "test": {"red": 1}}
    assert what.taken == {"train": 3, "test": 1}
    lines = what.to_text().splitlines()
    assert lines[1] == "4 pictures listed, 4 taken"
    assert [line.split() for line in lines[6:8]] == [["all", "4", "1"], ["pictures", "3", "1"]]
    masks = examine("streets", rows, none, alone, alone, {}, None)  # labels are pixels
    assert masks.to_text().splitlines()[1:5] == [
        "4 pictures listed, 4 taken", "", "train: 3 pictures", "test: 1 pictures",
    ]  # fmt: skip


def test_json_and_text() -> None:
    what = report([*many("train", "cat", 11, 0), *many("train", "dog", 11, 50)])
    text = what.to_text()
    assert json.loads(json.dumps(what.to_dict()))["counts"] == {"train": {"cat": 11, "dog": 11}}
    assert "22 pictures listed, 22 taken" in text
    assert max(len(line) for line in text.splitlines()) <= 110
