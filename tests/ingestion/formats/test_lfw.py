"""Flat names of faces."""

from __future__ import annotations

from pathlib import Path

import pytest

from tlray.errors import DataError
from tlray.ingestion.formats import lfw
from tlray.ingestion.formats.listing import Listing

PEOPLE = [
    *(f"Aaron_Eckhart_{n:04}.jpg" for n in (1,)),
    *(f"Abdullah_Gul_{n:04}.jpg" for n in range(1, 5)),
    *(f"Juan_Carlos_Ferrero_{n:04}.jpg" for n in range(1, 4)),
    "Madonna_0001.jpg",
    "Jean-Claude_Juncker_0001.jpg",
]


def lay(root: Path, *names: str) -> Listing:
    for name in names:
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"x")
    return Listing.open(str(root))


def test_people_by_the_names_of_their_pictures(tmp_path: Path) -> None:
    listing = lay(tmp_path, *(f"lfw/{name}" for name in PEOPLE))
    look = lfw.look(listing)
    assert look is not None and not look.lacks
    assert sorted(look.pictures) == sorted(f"lfw/{name}" for name in PEOPLE)
    index = lfw.index(listing, "label")
    assert dict(index.kinds) == {"label": "identity"}
    rows = index.table.to_pylist()
    assert rows[0] == {"path": "lfw/Aaron_Eckhart_0001.jpg", "split": None, "label": "Aaron_Eckhart"}
    assert {row["label"] for row in rows} == {
        "Aaron_Eckhart", "Abdullah_Gul", "Juan_Carlos_Ferrero", "Madonna", "Jean-Claude_Juncker",
    }  # fmt: skip


def test_split_folders(tmp_path: Path) -> None:
    listing = lay(tmp_path, *(f"{split}/{name}" for split in ("Train", "val") for name in PEOPLE))
    splits = {row["path"]: row["split"] for row in lfw.index(listing, "label").table.to_pylist()}
    assert splits["Train/Madonna_0001.jpg"] == "train"
    assert splits["val/Madonna_0001.jpg"] == "validation"


@pytest.mark.parametrize(
    "names",
    [
        [f"IMG_{n:04}.jpg" for n in range(20)],  # a camera
        [f"DSC_{n:04}.JPG" for n in range(20)] + [f"IMG_{n:04}.jpg" for n in range(20)],  # two of them
        [f"frame_{n:05}.png" for n in range(20)],  # a film
        [f"video_{which}_{n:04}.png" for which in ("one", "two") for n in range(9)],  # two films
        [f"cam1_left_{n:04}.png" for n in range(9)] + [f"cam2_right_{n:04}.png" for n in range(9)],
        [f"cat_{n:04}.jpg" for n in range(9)] + [f"dog_{n:04}.jpg" for n in range(9)],  # words, no names
        ["Aaron_Eckhart_0001.jpg", "Abdullah_Gul_0001.jpg", "Abdullah_Gul_0002.jpg"],  # one with several
        [*PEOPLE, *(f"other{n}.jpg" for n in range(9))],
        [f"{folder}/{name}" for folder in ("a", "b") for name in PEOPLE],  # folders that may be classes
    ],
)
def test_other_names_are_no_people(tmp_path: Path, names: list[str]) -> None:
    listing = lay(tmp_path, *names)
    assert lfw.look(listing) is None
    with pytest.raises(DataError, match=r"accepted: such names, or a folder for each person"):
        lfw.index(listing, "label")


def test_label_files_speak_against_it(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,mood\nMadonna_0001.jpg,glad\n")
    look = lfw.look(lay(tmp_path, *PEOPLE))
    assert look is not None and "labels.csv may hold the labels" in look.lacks


def test_pictures_with_another_name_are_counted(tmp_path: Path) -> None:
    many = [f"Abdullah_Gul_{n:04}.jpg" for n in range(1, 20)]
    index = lfw.index(lay(tmp_path, *PEOPLE, *many, "group.jpg"), "label")
    assert index.ignored == {"names without a number": 1}
    assert [f.examples for f in index.findings] == [["group.jpg"]]
