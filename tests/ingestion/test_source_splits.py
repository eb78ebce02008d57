"""A split that is given and cannot be used is refused or reported, and never made anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import toys
from tlray.errors import DataError
from tlray.ingestion import ingest as module

CSV = "file,label\n"


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray."""
    monkeypatch.setattr(module, "_map", lambda blocks, work, **kw: iter([work(b, **kw) for b in blocks]))


def lay(root: Path, names: dict[str, int | bytes | str]) -> None:
    """Files: a number is the label of a picture, anything else what is in the file."""
    for n, (name, what) in enumerate(names.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (root / name).mkdir()
        elif isinstance(what, int):
            (root / name).write_bytes(toys.picture(what, n))
        else:
            (root / name).write_bytes(what if isinstance(what, bytes) else what.encode())


def folders(split: str) -> dict[str, Any]:
    return {f"{split}/{toys.LABELS[n % 2]}/{split}{n}.jpg": n % 2 for n in range(8)}


def pictures(*folder: str) -> dict[str, Any]:
    return {f"{f}/{f}{n}.jpg".lstrip("/"): n % 2 for f in folder for n in range(8)}


def rows(split: str, label: str = "") -> str:
    return CSV + "".join(f"{split}{n}.jpg,{label or 'ab'[n % 2]}\n" for n in range(8))


def coco(folder: str, boxes: bool = True) -> str:
    images = [{"id": n, "file_name": f"{folder}{n}.jpg", "width": 72, "height": 56} for n in range(8)]
    one = {"category_id": 1, "bbox": [4, 4, 20, 20]}
    marks = [one | {"id": n, "image_id": n} for n in range(8 * boxes)]
    categories = [{"id": 1, "name": "a"}]
    return json.dumps({"images": images if boxes else [], "annotations": marks, "categories": categories})


def voc(label: str = "a") -> str:
    box = "<bndbox><xmin>4</xmin><ymin>4</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
    return f"<annotation><object><name>{label}</name>{box}</object></annotation>" if label else ""


def yolo(**rows: str) -> dict[str, Any]:
    """Pictures and labels of the splits, each with the same text in its label files."""
    made: dict[str, Any] = {"data.yaml": "names: [a, b]\ntrain: images/train\nval: images/val\n"}
    for split, text in rows.items():
        made |= {f"images/{split}/{split}{n}.jpg": n % 2 for n in range(8)}
        made |= {f"labels/{split}/{split}{n}.txt": text for n in range(8) if text}
    return made


def masks(train: bool, val: bool) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for split, there in (("train", train), ("val", val)):
        made |= {f"images/{split}/{split}{n}.jpg": toys.scene(n % 2, n)[0] for n in range(8)}
        made |= {f"masks/{split}/{split}{n}.png": toys.scene(n % 2, n)[2] for n in range(8) if there}
    return made


BROKEN = {f"val/{label}/{n}.jpg": b"no picture" for label in toys.LABELS[:2] for n in range(2)}
COLUMN = "file,label,split\n" + "".join(f"{n}.jpg,{'ab'[n % 2]},train\n" for n in range(8))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (folders("train") | {"val/": ""}, "val: is the validation split and gives no labelled picture"),
        (folders("train") | {"valid/blob/": ""}, "valid"),
        (folders("train") | {"val/blob/notes.md": "nothing"}, "val"),
        (folders("train") | folders("test") | {"dev/": ""}, "dev: is the validation split"),
        (folders("asl_train") | {"asl_val/": ""}, "asl_val: is the validation split"),
        (
            folders("train") | BROKEN,
            "none of the 4 pictures of the validation split can be used, first: val/blob/0.jpg: ",
        ),
        (pictures("") | {"train.csv": rows(""), "val.csv": ""}, "val.csv"),
        (pictures("") | {"train.csv": rows(""), "val.csv": CSV}, "val.csv: is the validation split"),
        (pictures("") | {"train.csv": rows(""), "val.csv": CSV + "gone.jpg,a\n"}, "val.csv"),
        (
            pictures("train", "val") | {"train.csv": rows("train"), "val.csv": rows("val", " ")},
            "none of the 8 rows of the validation split has a label",
        ),
        (pictures("") | {"labels.csv": COLUMN.replace("7.jpg,b,train", "7.jpg,,val")}, "labels.csv row 9"),
        (pictures("") | {"labels.csv": COLUMN.replace("7.jpg,b,train", "7.jpg,b,vla")}, "split = 'vla'"),
        (
            pictures("train") | {"train/_annotations.coco.json": coco("train"), "valid/": ""},
            "valid: is the validation split",
        ),
        (
            pictures("train", "valid")
            | {f"{s}/_annotations.coco.json": coco(s, s == "train") for s in ("train", "valid")},
            "valid",
        ),
        (yolo(train="0 .5 .5 .2 .2\n") | {"images/val/": ""}, "images/val: is the validation split"),
        (yolo(train="0 .5 .5 .2 .2\n"), "data.yaml: validation = 'images/val': no such folder"),
        (yolo(train="0 .5 .5 .2 .2\n", val=""), "validation"),
        (pictures("train") | {f"train/train{n}.xml": voc() for n in range(8)} | {"val/": ""}, "val"),
        (pictures("train", "val") | {f"train/train{n}.xml": voc() for n in range(8)}, "val"),
        (masks(True, False), "validation"),
        (masks(True, False) | {"masks/val/": ""}, "validation"),
    ],
)
def test_a_validation_that_cannot_be_used_is_refused(
    tmp_path: Path, files: dict[str, Any], says: str
) -> None:
    lay(tmp_path / "src", files)
    with pytest.raises(DataError) as caught:
        module.ingest(str(tmp_path / "src"), str(tmp_path / "out"), max_bad_share=0.5)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (folders("train") | folders("val") | {"test/": ""}, "split_without_labels"),
        (folders("train") | folders("val") | pictures("test"), "no_class_folder"),
        (folders("train") | folders("val") | {k.replace("val", "test"): v for k, v in BROKEN.items()},
         "split_unusable"),
        (pictures("train", "test") | {"train.csv": rows("train"), "test.csv": rows("test", " ")},
         "split_without_labels"),
    ],
)  # fmt: skip
def test_a_test_that_cannot_be_used_is_reported(tmp_path: Path, files: dict[str, Any], kind: str) -> None:
    lay(tmp_path / "src", files)
    made = module.ingest(str(tmp_path / "src"), str(tmp_path / "out"), max_bad_share=0.5)
    assert made.splits.get("test", 0) == 0 and made.splits["validation"] > 0
    assert kind in {finding.kind for finding in made.report.findings}
