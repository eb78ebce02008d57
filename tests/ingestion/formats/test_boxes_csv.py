"""Tables of boxes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tlray.errors import DataError
from tlray.ingestion import formats
from tlray.ingestion.formats import boxes_csv
from tlray.ingestion.formats.listing import Listing

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


def spelled(root: Path, header: str, row: str) -> Listing:
    """One table with one row a picture: corners 10, 20, 40, 60 of 100 x 80 px."""
    (root / "images").mkdir()
    for name in "ab":
        (root / "images" / f"{name}.jpg").write_bytes(b"")
    lines = [header, *(row.replace("PIC", name).replace("N", n) for name, n in (("a", "0"), ("b", "1")))]
    (root / "boxes.csv").write_text("\n".join(line for line in lines if line) + "\n")
    return Listing.open(str(root))


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("name,x0,y0,x1,y1,label", "PIC.jpg,10,20,40,60,cN"),
        ("filename,bbox_x1,bbox_y1,bbox_x2,bbox_y2,label", "PIC.jpg,10,20,40,60,cN"),
        ("file_name,bounding_box_xmin,bounding_box_ymin,bounding_box_xmax,bounding_box_ymax,category",
         "PIC.jpg,10,20,40,60,cN"),
        ("filename,startX,startY,endX,endY,label", "PIC.jpg,10,20,40,60,cN"),
        ("frame,xmin,xmax,ymin,ymax,class_name", "PIC.jpg,10,40,20,60,cN"),
        ("Image,Label,Left,Top,Width,Height", "PIC.jpg,cN,10,20,30,40"),
        ("img,x2,y2,x1,y1,cls", "PIC.jpg,40,60,10,20,cN"),
        ("label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height",
         "cN,10,20,30,40,PIC.jpg,100,80"),
        (",shot,xmin,ymin,xmax,ymax,label", "N,PIC.jpg,10,20,40,60,cN"),  # known by its cells
        ("filename,xmin,ymin,xmax,ymax,confidence,class,name", "PIC.jpg,10,20,40,60,0.9,N,cN"),
        ("", "images/PIC.jpg,10,20,40,60,cN"),  # RetinaNet's
    ],
)  # fmt: skip
def test_spellings_of_boxes(tmp_path: Path, header: str, row: str) -> None:
    listing = spelled(tmp_path, header, row)
    assert formats.find(listing)[0] == "boxes_csv"
    assert [(r["path"], r["objects"]) for r in boxes_csv.index(listing, "objects").table.to_pylist()] == [
        ("images/a.jpg", {"bbox": [[10, 20, 30, 40]], "category": ["c0"]}),
        ("images/b.jpg", {"bbox": [[10, 20, 30, 40]], "category": ["c1"]}),
    ]


def test_centres_in_shares(tmp_path: Path) -> None:
    listing = spelled(tmp_path, "filename,class,x_center,y_center,width,height", "PIC.jpg,cN,.25,.5,.25,.5")
    index = boxes_csv.index(listing, "objects")
    assert index.relative
    assert index.table.to_pylist()[0]["objects"]["bbox"] == [[0.125, 0.25, 0.25, 0.5]]


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("filename,xmin,ymin,xmax,ymax", "PIC.jpg,10,20,40,60", r"boxes\.csv: no column names the class"),
        ("filename,x1,y1,x2,y2,x3,y3,x4,y4,label", "PIC.jpg,1,1,9,1,9,9,1,9,cN", "are outlines; accepted: "),
        ("filename,x,y,w,h,label", "PIC.jpg,.9,.5,.2,.2,cN", "all fit as centres; accepted: .*x_center"),
    ],
)
def test_boxes_that_cannot_be_read(tmp_path: Path, header: str, row: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        boxes_csv.index(spelled(tmp_path, header, row), "objects")


def test_columns_that_are_not_read_are_said(tmp_path: Path) -> None:
    listing = spelled(tmp_path, "image_id,width,height,bbox,source", 'PIC,100,80,"[10, 20, 30, 40]",farm')
    index = boxes_csv.index(listing, "objects")
    assert {row["objects"]["category"][0] for row in index.table.to_pylist()} == {"object"}
    assert [(f.kind, f.examples) for f in index.findings] == [
        ("unused_column", ["boxes.csv: source"]), ("no_class_column", ["boxes.csv"]),
    ]  # fmt: skip


def test_a_region_of_interest_may_be_of_either_task(tmp_path: Path) -> None:
    listing = spelled(tmp_path, "Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId;Path", "10;20;40;60;N;PIC.jpg")
    with pytest.raises(DataError, match=r"may be boxes_csv .* or table"):
        formats.find(listing)
