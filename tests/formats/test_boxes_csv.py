"""Tables of boxes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tlray.errors import DataError
from tlray.formats import boxes_csv
from tlray.formats.listing import Listing

HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"


def lay(root: Path, **tables: str) -> Listing:
    for folder, name in (("train", "a.jpg"), ("train", "b.jpg"), ("valid", "c.jpg")):
        (root / "images" / folder).mkdir(parents=True, exist_ok=True)
        (root / "images" / folder / name).write_bytes(b"")
    for name, rows in tables.items():
        (root / f"{name}.csv").write_text(HEADER + rows)
    return Listing.open(str(root))


def test_a_table_for_each_split(tmp_path: Path) -> None:
    listing = lay(
        tmp_path, train_labels="a.jpg,48,36,cat,1,2,11,22\n", valid_labels="c.jpg,48,36,dog,0,0,5,5\n"
    )
    index = boxes_csv.index(listing, "objects")
    assert [(r["path"], r["split"], r["objects"]) for r in index.table.to_pylist()] == [
        ("images/train/a.jpg", "train", {"bbox": [[1, 2, 10, 20]], "category": ["cat"]}),
        ("images/valid/c.jpg", "validation", {"bbox": [[0, 0, 5, 5]], "category": ["dog"]}),
    ]
    assert [(f.kind, f.examples) for f in index.findings] == [("no_row", ["images/train/b.jpg"])]


def test_an_empty_table_of_a_split_is_refused(tmp_path: Path) -> None:
    listing = lay(tmp_path, train_labels="a.jpg,48,36,cat,1,2,11,22\n", valid_labels="")
    with pytest.raises(DataError, match=r"valid_labels\.csv: no row below the header, so no picture"):
        boxes_csv.index(listing, "objects")
