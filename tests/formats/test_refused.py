"""Forms of other tools: refused by name, with the export that is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import toys
from tlray import formats
from tlray.errors import DataError
from tlray.formats import refused
from tlray.formats.listing import Listing

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
        refused.index(listing, "objects")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.json", {"author": "Ann"}),
        ("readme.txt", "Some words about the pictures\n"),
        ("more.csv", "a,b\n1,2\n"),
    ],
)
def test_other_files_are_of_no_tool(tmp_path: Path, name: str, content: Any) -> None:
    assert refused.look(lay(tmp_path, name, content)) is None
