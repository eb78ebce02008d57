"""Pascal VOC: the .xml of its own kit, of LabelImg, Roboflow, CVAT and others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tlray.data import schema
from tlray.data.dataset import Dataset
from tlray.errors import DataError
from tlray.ingestion import ingest as ingestion
from tlray.ingestion.formats import voc
from tlray.ingestion.formats.base import OBJECTS_TYPE, Index
from tlray.ingestion.formats.listing import Listing

CAT = ("cat", 1, 1, 40, 30)  # the corner pixel to pixel (40, 30), both included
DOG = ("dog", 5, 6, 7, 8)
Box = tuple[str, float, float, float, float]

LABELIMG = """<annotation>
	<folder>train</folder>
	<filename>{name}</filename>
	<path>C:\\Users\\ann\\pictures\\{name}</path>
	<source><database>Unknown</database></source>
	<size><width>48</width><height>36</height><depth>3</depth></size>
	<segmented>0</segmented>
	<object><name>cat</name><pose>Unspecified</pose><truncated>0</truncated><difficult>1</difficult>
	<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object>
</annotation>
"""


def annotation(*objects: Box, filename: str = "", size: str = "", extra: str = "") -> str:
    boxes = [
        f"<object><name>{name}</name><part><bndbox><xmin>0</xmin></bndbox></part><bndbox><xmin>{x0}</xmin>"
        f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1 in objects
    ]
    return f"<annotation><filename>{filename}</filename>{size}{''.join(boxes)}{extra}</annotation>"


def put(folder: Path, **files: str | bytes) -> Path:
    """Files by path. Pictures are never opened."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def made(folder: Path, **files: str) -> Path:
    """VOC folders with a picture for each annotation; lists are named as their files."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        if name in ("train", "val", "test", "trainval", "cat_train", "cat_val"):
            (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(text, errors="surrogateescape")
        else:
            put(folder, **{f"Annotations/{name}.xml": text, f"JPEGImages/{name}.png": ""})
    return folder


def index(root: Path) -> Index:
    return voc.index(Listing.open(str(root)), "objects")


def rows(root: Path) -> list[tuple[str, str | None, list[str], list[list[float]]]]:
    found = index(root).table.to_pylist()
    return [(r["path"], r["split"], r["objects"]["category"], r["objects"]["bbox"]) for r in found]


def splits(root: Path) -> dict[str, str | None]:
    return {path.rpartition("/")[2]: split for path, split, *_ in rows(root)}


def kinds(root: Path) -> dict[str, int]:
    return {f.kind: f.count for f in index(root).findings}


def test_boxes_splits_and_empty_pictures(tmp_path: Path) -> None:
    root = made(
        tmp_path, a=annotation(), b=annotation(CAT, DOG), c=annotation(CAT), d=annotation(CAT),
        train="b 1\n\n", val="a\n", trainval="b\nc\n", cat_train="d\n",
    )  # fmt: skip
    look = voc.look(Listing.open(str(root)))
    assert look is not None and (len(look.pictures), len(look.labels), look.lacks) == (4, 4, "")
    assert rows(root) == [
        ("JPEGImages/a.png", "validation", [], []),
        ("JPEGImages/b.png", "train", ["cat", "dog"], [[0, 0, 40, 30], [4, 5, 3, 3]]),
    ]
    put(tmp_path, **{"JPEGImages/bare.jpg": ""})
    assert dict(index(root).ignored) == {"in no list of a split": 2}
    assert kinds(root) == {"no_label_file": 1}


def test_without_lists_and_with_trainval_alone(tmp_path: Path) -> None:
    root = made(tmp_path, b=annotation(CAT), a=annotation(CAT), c=annotation(CAT))
    assert splits(root) == {"a.png": None, "b.png": None, "c.png": None}
    made(tmp_path, trainval="a\nc\n", test="b\n")
    assert splits(root) == {"a.png": "train", "b.png": "test", "c.png": "train"}
    made(tmp_path, train="c\n")  # what train.txt has not is val
    assert splits(root) == {"a.png": "validation", "b.png": "test", "c.png": "train"}
    (tmp_path / "JPEGImages" / "a.png").unlink()  # ingest will say that it cannot be read
    assert rows(root)[0][0] == "JPEGImages/a.jpg"


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("", "{}"),
        ("", "JPEGImages/{}.png"),
        ("", "./JPEGImages/{0}.png ./Annotations/{0}.xml"),  # PaddleDetection's
        ("splits/", "{}.xml"),
        ("Annotations/", "{}"),
        ("voc/data/", "{}"),
    ],
)
def test_lists_outside_of_imagesets(tmp_path: Path, folder: str, line: str) -> None:
    root = made(tmp_path, a=annotation(CAT), b=annotation(CAT), c=annotation(CAT), d=annotation(CAT))
    put(root, **{f"{folder}train.txt": f"{line.format('a')}\n{line.format('c')}\n",
                 f"{folder}val_list.txt": line.format("b"),
                 f"{folder}train_log.txt": "epoch 1\nepoch 2\n", "test.txt.md": "d"})  # fmt: skip
    assert splits(root) == {"a.png": "train", "b.png": "validation", "c.png": "train"}
    assert dict(index(root).ignored) == {"in no list of a split": 1}


def test_lists_of_single_classes_and_names_with_blanks(tmp_path: Path) -> None:
    root = made(tmp_path, **{"my pic 1": annotation(CAT), "b": annotation(CAT), "c": annotation(CAT)})
    made(tmp_path, cat_train="my pic 1  1\r\nb -1\r\n", cat_val="c  0\n")
    assert splits(root) == {"my pic 1.png": "train", "b.png": "train", "c.png": "validation"}
    made(tmp_path, train="﻿my pic 1\nJPEGImages/b.png\n", val="C.xml\n")
    assert splits(root) == {"my pic 1.png": "train", "b.png": "train", "c.png": "validation"}


def test_names_in_lists_that_are_not_there(tmp_path: Path) -> None:
    root = made(tmp_path, a=annotation(CAT), b=annotation(CAT), train="a\nb\nb\n", test="x\n")
    assert splits(root) == {"a.png": "train", "b.png": "train"}
    assert kinds(root) == {"listed_without_labels": 1, "listed_twice": 1}


@pytest.mark.parametrize(
    ("labels", "pictures", "split"),
    [
        ("Annotations", "JPEGImages", None),
        ("annots", "images", None),
        ("ANNOTATIONS", "Images", None),
        ("xml", "img", None),
        ("labels/train", "images/train", "train"),
        ("valid/annotations", "valid/images", "validation"),
        ("Test", "Test", "test"),
        ("", "", None),
        ("my_labels", "my_pictures", None),
    ],
)
def test_where_xml_and_pictures_lie(tmp_path: Path, labels: str, pictures: str, split: str | None) -> None:
    for n in (1, 2):
        text = LABELIMG.format(name=f"p{n}.JPG")
        put(tmp_path, **{str(Path(labels) / f"p{n}.xml"): text, str(Path(pictures) / f"p{n}.JPG"): ""})
    look = voc.look(Listing.open(str(tmp_path)))
    assert look is not None and len(look.pictures) == 2
    at = f"{pictures}/" if pictures else ""
    assert rows(tmp_path) == [(f"{at}p{n}.JPG", split, ["cat"], [[0, 0, 40, 30]]) for n in (1, 2)]
    assert index(tmp_path).table["stated_width"].to_pylist() == [48, 48]
    assert kinds(tmp_path) == {}


def test_roboflow_has_the_same_names_in_every_split(tmp_path: Path) -> None:
    name = "a_jpg.rf.0a1b2c3d4e5f"
    for split in ("train", "valid"):
        text = annotation(CAT, filename=f"{name}.jpg", size="<size><width>0</width></size>")
        put(tmp_path, **{f"{split}/{name}.xml": text, f"{split}/{name}.jpg": ""})
    put(tmp_path, **{"README.roboflow.txt": "text"})
    assert [(path, split) for path, split, *_ in rows(tmp_path)] == [
        (f"train/{name}.jpg", "train"),
        (f"valid/{name}.jpg", "validation"),
    ]
    assert index(tmp_path).table["stated_width"].to_pylist() == [None, None]


def test_pictures_found_by_filename(tmp_path: Path) -> None:
    put(tmp_path, **{"Annotations/0.xml": annotation(CAT, filename="p.jpg"), "Images/p.jpg": ""})
    assert rows(tmp_path)[0][0] == "Images/p.jpg"
    look = voc.look(Listing.open(str(tmp_path)))
    assert look is not None and set(look.pictures) == {"Images/p.jpg"}
    assert kinds(tmp_path) == {"name_differs": 1}


def test_two_pictures_of_a_name_are_told_apart_by_filename(tmp_path: Path) -> None:
    put(tmp_path, **{"a.xml": annotation(CAT, filename="a.png"), "a.png": "", "a.jpg": ""})
    assert rows(tmp_path)[0][0] == "a.png"
    put(tmp_path, **{"a.xml": annotation(CAT)})
    with pytest.raises(DataError, match=r"a\.xml: may speak of a\.jpg or a\.png; accepted: one picture"):
        index(tmp_path)


def test_an_xml_of_another_split_is_not_taken_for_a_missing_picture_s(tmp_path: Path) -> None:
    for split, number in (("train", 1), ("train", 2), ("val", 1)):
        put(tmp_path, **{f"{split}/{number}.xml": annotation(CAT)})
        put(tmp_path, **{f"train/{number}.jpg": ""})
    assert [path for path, *_ in rows(tmp_path)] == ["train/1.jpg", "train/2.jpg", "val/1.jpg"]


def test_two_xml_of_one_picture(tmp_path: Path) -> None:
    put(tmp_path, **{"Annotations/a.xml": annotation(CAT), "JPEGImages/a.jpg": ""})
    put(tmp_path, **{"backup/a.xml": annotation(DOG)})
    assert rows(tmp_path) == [("JPEGImages/a.jpg", None, ["cat"], [[0, 0, 40, 30]])]
    assert kinds(tmp_path) == {"label_file_double": 1}
    put(tmp_path, **{"Annotations/A.xml": annotation(DOG)})
    with pytest.raises(DataError, match=r"speaks of JPEGImages/a\.jpg, as Annotations/A\.xml does"):
        index(tmp_path)


def test_pictures_that_are_mostly_missing_are_an_error_of_the_layout(tmp_path: Path) -> None:
    put(tmp_path, **{"xml/a.xml": annotation(CAT), "xml/b.xml": annotation(CAT), "pics/c.jpg": ""})
    look = voc.look(Listing.open(str(tmp_path)))
    assert look is not None and look.lacks == "no picture is there of its name, as xml/a.jpg"
    with pytest.raises(
        DataError, match=r"2 of 2 pictures that the label files name are not there, first: .*xml/a"
    ):
        index(tmp_path)


def test_numbering_from_zero_holds_for_all_files(tmp_path: Path) -> None:
    root = made(tmp_path, a=annotation(("cat", 0, 3, 10, 20)), b=annotation(CAT))
    assert [boxes for *_, boxes in rows(root)] == [[[0, 3, 10, 17]], [[1, 1, 39, 29]]]
    assert kinds(root) == {"pixels_from_zero": 1}


def test_fractions_are_edges(tmp_path: Path) -> None:
    root = made(tmp_path, a=annotation(("cat", 1.5, 3, 10.25, 20)))
    assert rows(root)[0][3] == [[1.5, 3, 8.75, 17]] and kinds(root) == {"pixels_from_zero": 1}


def test_exchanged_corners_are_put_right(tmp_path: Path) -> None:
    root = made(tmp_path, a=annotation(("cat", 40, 30, 1, 1)))
    assert rows(root)[0][3] == [[0, 0, 40, 30]] and kinds(root) == {"box_swapped": 1}


@pytest.mark.parametrize(
    ("outline", "box"),
    [
        # Roboflow's segmentation, LabelMe's old XML, roLabelImg
        ("<polygon><x1>5</x1><y1>6</y1><x2>15</x2><y2>6</y2><x3>9</x3><y3>26</y3></polygon>", [5, 6, 10, 20]),
        ("<polygon><pt><x>5</x><y>6</y></pt><pt><x>15</x><y>26</y></pt></polygon>", [5, 6, 10, 20]),
        (
            "<robndbox><cx>10</cx><cy>16</cy><w>20</w><h>10</h><angle>1.57079632679</angle></robndbox>",
            [5, 6, 10, 20],
        ),
    ],
)  # fmt: skip
def test_outlines_without_a_box(tmp_path: Path, outline: str, box: list[float]) -> None:
    deleted = "<object><name>x</name><deleted>1</deleted></object>"
    root = made(tmp_path, a=annotation(extra=f"<object><name> cat </name>{outline}</object>{deleted}"))
    assert rows(root)[0][2:] == (["cat"], [pytest.approx(box)])
    assert dict(index(root).ignored) == {"deleted objects": 1}


def test_other_xml_are_no_annotations(tmp_path: Path) -> None:
    put(tmp_path, **{"a/1.jpg": "", "a/pom.xml": "<project><object/></project>"})
    assert voc.look(Listing.open(str(tmp_path))) is None
    put(tmp_path, **{"a/1.xml": annotation(CAT)})
    assert dict(index(tmp_path).ignored) == {".xml of another kind": 1}


def test_masks_beside_are_no_pictures_without_xml(tmp_path: Path) -> None:
    root = made(tmp_path, a=annotation(CAT))
    put(root, **{"SegmentationClass/a.png": "", "SegmentationObject/a.png": ""})
    assert rows(root)[0][0] == "JPEGImages/a.png"
    assert kinds(root) == {} and dict(index(root).ignored) == {"pictures of masks": 2}


def test_other_encodings(tmp_path: Path) -> None:
    text = annotation(("café", 1, 1, 4, 3))
    root = put(tmp_path, **{
        "a.xml": b"\xef\xbb\xbf" + text.encode(), "a.jpg": "",
        "b.xml": text.encode("utf-16"), "b.jpg": "",
        "c.xml": b"\n <?xml version='1.0' encoding='latin-1'?>" + text.encode("latin-1"), "c.jpg": "",
    })  # fmt: skip
    assert [names for _, _, names, _ in rows(root)] == [["café"]] * 3
    look = voc.look(Listing.open(str(root)))
    assert look is not None and len(look.labels) == 3


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a": annotation(CAT)[:60]}, r"a\.xml line 1, column \d+: no valid XML; accepted"),
        ({"a": "<?xml version='1.0' encoding='nonsense'?>" + annotation()}, r"a\.xml: no valid XML"),
        ({"a": "<!DOCTYPE a [<!ENTITY b 'c'>]>" + annotation()}, r"a\.xml: has a DOCTYPE; accepted"),
        ({"a": annotation(), "train": "a\nb\udce9\n"}, r"train\.txt line 2: no text in UTF-8; accepted"),
        ({"a": annotation(extra="<object/>")}, r"a\.xml: object 1: no <name>"),
        ({"a": annotation(CAT).replace("xmax", "xmux")}, r"a\.xml: object 1 \(cat\): no <xmax>; accepted"),
        ({"a": annotation(CAT).replace(">40<", ">x<")}, r"object 1 \(cat\): <xmax> = 'x'"),
        ({"a": annotation(extra="<object><name>x</name></object>")}, r"object 1 \(x\): no <bndbox>"),
        ({"a": annotation(), "train": "\nb\n"}, r"train\.txt line 2: 'b' has no \.xml, as 1 of 1 names"),
        (
            {"a": annotation(), "train": "a\n", "test": "a\n"},
            r"test\.txt line 1: 'a' stands in train\.txt line 1",
        ),
        ({}, r"no \.xml file"),
    ],
)  # fmt: skip
def test_mistakes_name_their_place(tmp_path: Path, files: dict[str, str], says: str) -> None:
    with pytest.raises(DataError, match=says) as error:
        index(made(tmp_path, **files))
    assert "\n" not in str(error.value)


@pytest.mark.realdata
def test_blood_cells(realdata: Path) -> None:
    result = index(realdata / "bccd")
    found = result.table["split"].to_pylist()
    assert {s: found.count(s) for s in found} == {"train": 205, "validation": 87, "test": 72}
    names = [name for row in result.table["objects"].to_pylist() for name in row["category"]]
    assert {n: names.count(n) for n in names} == {"RBC": 4155, "WBC": 372, "Platelets": 361}
    assert result.findings == [] and dict(result.ignored) == {}


@pytest.mark.realdata
@pytest.mark.slow
def test_blood_cells_become_a_data_set(
    realdata: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ingestion, "_map", lambda blocks, work, **settings: [work(block, **settings) for block in blocks]
    )
    result = ingestion.ingest(str(realdata / "bccd"), str(tmp_path / "data"), max_side=160)
    assert result.splits == {"train": 205, "validation": 87, "test": 72}
    assert result.labels == {"objects": ["Platelets", "RBC", "WBC"]}
    assert result.report.counts["test"] == {"Platelets": 69, "RBC": 805, "WBC": 71}
    assert {f.kind: f.count for f in result.report.findings}["box_dropped"] == 2  # of 1 px
    row = Dataset.open(str(tmp_path / "data")).read("test", ["objects", "width", "height"]).to_pylist()[0]
    boxes = np.array(row["objects"]["bbox"])
    assert (row["width"], row["height"]) == (160, 120)  # and the boxes have shrunk with the picture
    assert (boxes[:, :2] + boxes[:, 2:] <= [160.01, 120.01]).all() and boxes.max() > 40


def test_difficult_objects_are_told_where_there_are_any(tmp_path: Path) -> None:
    plain, hard = (
        annotation(CAT, DOG),
        annotation(CAT, DOG).replace("</name><part>", "</name><difficult>1</difficult><part>", 1),
    )
    root = made(tmp_path / "some", a=plain, b=hard, c=annotation())
    table = index(root).table
    assert [schema.flagged(row["objects"], "difficult") for row in table.to_pylist()] == [
        [False, False], [True, False], [],
    ]  # fmt: skip
    none = made(tmp_path / "none", a=plain, b=hard.replace("<difficult>1", "<difficult>0"))
    assert index(none).table.schema.field("objects").type == OBJECTS_TYPE
