"""Lists beside class folders that say the splits, as meta/train.txt and meta/test.txt."""

from __future__ import annotations

from pathlib import Path

import pytest

from tlray.errors import DataError
from tlray.ingestion.formats import folder
from tlray.ingestion.formats.base import Index
from tlray.ingestion.formats.listing import Listing


def lay(root: Path, lists: dict[str, str], base: str = "images/") -> Path:
    """Pictures 1 to 4 of two classes, and lists."""
    for name in ("pie", "soup"):
        for number in range(1, 5):
            place = root / f"{base}{name}/{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"x")
    for name, text in lists.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


def index(root: Path) -> Index:
    listing = Listing.open(str(root))
    seen = folder.look(listing)
    assert seen is not None and seen.lacks == ""
    return folder.index(listing, "label")


def splits(made: Index) -> dict[str, str]:
    return {"/".join(row["path"].split("/")[-2:]): row["split"] for row in made.table.to_pylist()}


@pytest.mark.parametrize("ending", ["", ".jpg", ".JPG"])
@pytest.mark.parametrize("base", ["images/", ""])
def test_lists_say_the_splits_with_and_without_endings(tmp_path: Path, ending: str, base: str) -> None:
    train = "".join(f"{name}/{number}{ending}\n" for name in ("pie", "soup") for number in (1, 2, 3))
    texts = {"meta/train.txt": train, "meta/test.txt": f"pie/4{ending}\nsoup/4{ending}\n"}
    made = index(lay(tmp_path, texts, base))
    found = splits(made)
    assert {name for name, split in found.items() if split == "test"} == {"pie/4.jpg", "soup/4.jpg"}
    assert len(found) == 8 and set(found.values()) == {"train", "test"}
    assert set(made.lists) == set(texts)


def test_what_no_list_names_is_left_out_and_said(tmp_path: Path) -> None:
    made = index(lay(tmp_path, {"train.txt": "pie/1\npie/2\nsoup/1\n", "val.txt": "soup/2\n"}))
    assert splits(made) == {
        "pie/1.jpg": "train", "pie/2.jpg": "train", "soup/1.jpg": "train", "soup/2.jpg": "validation",
    }  # fmt: skip
    assert [f.message for f in made.findings] == ["4 pictures are in no list of a split (left out)"]


def test_all_others_are_train_where_no_list_is_of_train(tmp_path: Path) -> None:
    made = index(lay(tmp_path, {"testing_list.txt": "pie/1.jpg\n\nsoup/1.jpg\n"}))
    found = splits(made)
    assert sorted(found.values()) == ["test"] * 2 + ["train"] * 6 and found["pie/1.jpg"] == "test"


def test_a_picture_of_two_splits_is_refused(tmp_path: Path) -> None:
    root = lay(tmp_path, {"meta/train.txt": "pie/1\nsoup/1\n", "meta/test.txt": "pie/2\npie/1\n"})
    with pytest.raises(DataError, match=r"meta/train\.txt line 1: pie/1 stands in meta/test\.txt too"):
        index(root)


def test_few_missing_pictures_are_counted_and_many_refused(tmp_path: Path) -> None:
    some = index(lay(tmp_path / "a", {"train.txt": "pie/1\npie/2\npie/3\nsoup/1\n", "test.txt": "soup/2\n"}))
    assert not [f for f in some.findings if f.kind == "missing_picture"]
    lines = "".join(f"pie/{n}\n" for n in [1, 2, 3, 4] * 5)
    made = index(lay(tmp_path / "b", {"train.txt": f"{lines}pie/9\n", "test.txt": "soup/2\n"}))
    assert [f.message for f in made.findings if f.kind == "missing_picture"] == [
        "1 pictures that lists name are not there"
    ]
    lost = "".join(f"pie/{n}\n" for n in range(100, 300))
    with pytest.raises(DataError, match=r"200 of \d+ pictures that the label files name are not there"):
        index(lay(tmp_path / "c", {"train.txt": lines + lost, "test.txt": "soup/2\n"}))


def test_other_texts_are_no_lists(tmp_path: Path) -> None:
    listing = Listing.open(str(lay(tmp_path, {
        "train.txt": "1\n2\n3\n", "training_log.txt": "epoch 1/20 done\n", "test_notes.txt": "",
        "classes.txt": "pie\nsoup\n",
    })))  # fmt: skip
    from tlray.ingestion.formats import folder_lists

    assert folder_lists.lists(listing) == {}
