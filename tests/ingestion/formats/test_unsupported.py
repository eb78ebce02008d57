"""Forms of other tools: refused by name, with the export that is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import toys
from tlray.errors import DataError
from tlray.ingestion import formats
from tlray.ingestion.formats import unsupported
from tlray.ingestion.formats.listing import Listing

STUDIO = [
    {
        "id": 1,
        "annotations": [
            {"result": [{"from_name": "label", "type": "rectanglelabels", "value": {"x": 1, "y": 2}}]}
        ],
        "data": {"image": "/data/upload/1/a.jpg"},
    }
]
KITTI = "Car 0.00 0 -1.58 587.01 173.33 614.12 200.12 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n"


def lay(folder: Path, name: str, content: Any) -> Listing:
    """Two pictures in folders and one file of labels."""
    for number, place in enumerate(("one/a.jpg", "two/b.jpg")):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(toys.picture(0, number))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return Listing.open(str(folder))


@pytest.mark.parametrize(
    ("name", "content", "tool"),
    [
        ("project-1.json", STUDIO, "Label Studio"),
        ("min.json", [{"image": "a.jpg", "id": 1, "annotator": 1, "lead_time": 3.2}], "Label Studio"),
        (
            "ds/ann/a.jpg.json",
            {"objects": [{"classTitle": "cat", "points": {"exterior": []}}]},
            "Supervisely",
        ),
        ("a.json", {"version": "2.0", "item": {"name": "a.jpg", "slots": []}, "annotations": []}, "Darwin"),
        ("out.ndjson", {"data_row": {"id": "x"}, "projects": {}}, "Labelbox"),
        ("via.json", {"a.jpg1": {"filename": "a.jpg", "regions": [{"shape_attributes": {}}]}}, "VGG"),
        ("x-asset.json", {"asset": {"name": "a.jpg"}, "regions": []}, "VoTT"),
        ("label_2/000001.txt", KITTI, "KITTI"),
        (
            "annotations/default.json",
            {"info": {}, "categories": {"label": {}}, "items": [{"id": "a", "annotations": []}]},
            "Datumaro",
        ),
        ("min.json", [{"image": "a.jpg", "label": [{"x": 1, "rectanglelabels": ["cat"]}]}], "Label Studio"),
        ("bdd.json", [{"name": "a.jpg", "labels": [{"category": "car", "box2d": {"x1": 1}}]}], "BDD100K"),
        ("output.manifest", '{"source-ref": "s3://b/a.jpg", "boxes": {}}\n', "SageMaker"),
        ("gt/gt_a.txt", "1,2,30,2,30,9,1,9,word\n3,4,5,6,7,8,9,9,###\n", "ICDAR"),
        ("annotations/a.txt", "684,8,273,116,0,0,0,0\n406,119,265,70,1,4,0,0\n", "VisDrone"),
        ("wider_face_train_bbx_gt.txt", "0--Parade/a.jpg\n1\n1 2 30 40 0 0 0 0 0 0 \n", "WIDER FACE"),
        ("train/Cat/Label/a.txt", "Polar bear 1.0 2.5 30.0 40.0\nCat 3 4 50 60\n", "OIDv4"),
        ("train.txt", "one/a.jpg 1,2,30,40,0 5,6,7,8,1\ntwo/b.jpg 1,2,3,4,0\n", "keras-yolo3"),
        ("fer2013.csv", "emotion,pixels,Usage\n0,1 2 3,Training\n", "pictures as cells of a table"),
        ("train.csv", "ImageId,ClassId,EncodedPixels\na.jpg,1,3 9 20 4\n", "masks as run lengths"),
        ("mnist.csv", "label,1x1,1x2,1x3\n0,1,2,3\n", "pictures as cells of a table"),
        ("labelTxt/P0.txt", "imagesource:GoogleEarth\ngsd:0.1\n1 2 3 4 5 6 7 8 plane 0\n1 2", "DOTA"),
        ("train.tfrecord", "x", "TFRecord"),
        ("Labels.XLSX", "x", "a spreadsheet"),
        ("labels.csv.gz", "x", "a packed table"),
    ],
)
def test_each_is_refused_by_name_with_what_is_read(
    tmp_path: Path, name: str, content: Any, tool: str
) -> None:
    listing = lay(tmp_path, name, content)
    with pytest.raises(DataError, match=f"{tool}.* is not read; accepted: ") as error:
        formats.find(listing)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=f"{tool}.* is not read"):
        unsupported.index(listing, "objects")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.json", {"author": "Ann"}),
        ("readme.txt", "Some words about the pictures\n"),
        ("more.csv", "a,b\n1,2\n"),
    ],
)
def test_other_files_are_of_no_tool(tmp_path: Path, name: str, content: Any) -> None:
    assert unsupported.look(lay(tmp_path, name, content)) is None


@pytest.mark.parametrize("name", ["data.npz", "X.npy", "set.h5", "train-images-idx3-ubyte", "data_batch_1"])
def test_arrays_are_refused_where_pictures_are_fewer(tmp_path: Path, name: str) -> None:
    listing = lay(tmp_path, name, "x")
    (tmp_path / "one" / "c.jpg").write_bytes(toys.picture(0, 3))
    assert unsupported.look(Listing.open(listing.root)) is None  # weights, features
    (tmp_path / "alone").mkdir()  # of pictures
    (tmp_path / "alone" / name).write_bytes(b"x")
    with pytest.raises(DataError, match="arrays of numbers is not read; accepted: write each picture and"):
        formats.find(Listing.open(str(tmp_path / "alone")))


def test_a_table_of_another_tool_is_no_table_of_labels(tmp_path: Path) -> None:
    text = "annotation_id,annotator,image,label\n1,1,one/a.jpg,cat\n2,1,two/b.jpg,dog\n"
    with pytest.raises(DataError, match=r"Label Studio \(CSV\) is not read; accepted: export as"):
        formats.find(lay(tmp_path, "project.csv", text))


def test_what_to_do_where_nothing_is_a_label(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "photos.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"accepted: the folder that photos\.zip unpacks to"):
        formats.find(Listing.open(str(tmp_path / "in")))
    lay(tmp_path / "data", "labels/a.txt", "0 .5 .5 .1 .1\n")
    with pytest.raises(DataError, match="where one is a part of a data set, the folder above"):
        formats.find(Listing.open(str(tmp_path / "data" / "one")))
