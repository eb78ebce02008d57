"""Forms of other tools that are known by their keys and not read: each is refused by name, with the export of
that tool which is read."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass

from tlray.data.schema import LABEL, LABELS, MASK, OBJECTS
from tlray.errors import DataError
from tlray.ingestion.formats.base import Index, Look
from tlray.ingestion.formats.listing import Listing

GIVES: tuple[str, ...] = (OBJECTS, LABEL, LABELS, MASK)
_LOOKED_INTO = 5  # files of one ending: one speaks for all


_Test = Callable[[str, str], bool]  # of a path and the beginning of the text


@dataclass(frozen=True)
class _Form:
    """A tool's own form: how its files begin, and what to export instead."""

    tool: str
    endings: tuple[str, ...]
    matches: _Test
    instead: str
    alone: bool = False  # only where pictures are fewer: beside many of them it may be anything


def _keys(*names: str) -> _Test:
    """All of these keys of JSON in the beginning of a file."""
    return lambda path, head: all(re.search(rf'"{name}"\s*:', head) for name in names)


def _columns(*names: str) -> _Test:
    """All of these columns in a table's first line."""
    return lambda path, head: all(name in head.split("\n")[0] for name in names)


def _rows(pattern: str) -> _Test:
    """Every one of the first lines, the last left out since it may be cut off, has this form."""

    def matches(path: str, head: str) -> bool:
        lines = [line.strip() for line in head.splitlines()[:20] if line.strip()]
        return bool(lines) and all(re.fullmatch(pattern, line) for line in lines[: max(1, len(lines) - 1)])

    return matches


def _called(pattern: str, *more: _Test) -> _Test:
    """Files of that name, for which the rest holds, too."""
    return lambda path, head: bool(
        re.search(pattern, posixpath.basename(path), re.IGNORECASE) and all(m(path, head) for m in more)
    )


def _below(folder: str, more: _Test) -> _Test:
    """Files in a folder of that name, for which the rest holds, too."""
    return lambda path, head: f"/{folder}/" in f"/{path}" and more(path, head)


def _is_wider(path: str, head: str) -> bool:
    """A picture, its number of faces, a row of ten numbers for each, and the next picture."""
    lines = [line.strip() for line in head.splitlines()[:3]]
    forms = (r".+\.(jpg|jpeg|png)", r"\d+", r"(-?\d+\s*){10}")
    return len(lines) == 3 and all(re.fullmatch(f, x, re.I) for f, x in zip(forms, lines, strict=True))


def _is_keras_yolo(path: str, head: str) -> bool:
    """Lines of a picture and its boxes as x1,y1,x2,y2,class; some pictures may have none."""
    boxes = r"(\s+(-?\d+,){4}\d+)"
    return bool(re.search(boxes, head)) and _rows(rf".*\.[A-Za-z]{{3,4}}{boxes}*")(path, head)


def _columns_of_runs(path: str, head: str) -> bool:
    """Kaggle's masks: start and length of each run of pixels in a cell."""
    header = [cell.strip().strip('"').lower() for cell in head.split("\n")[0].split(",")]
    return bool({"encodedpixels", "rle", "rle_mask", "rle_masks", "encoded_pixels"} & set(header))


def _columns_of_pixels(path: str, head: str) -> bool:
    """FER-2013's column pixels, or MNIST's with a column for each pixel."""
    header = [cell.strip().strip('"').lower() for cell in head.split("\n")[0].split(",")]
    of_pixels = [cell for cell in header if re.fullmatch(r"pixel_?\d+|\d+x\d+", cell)]
    return "pixels" in header or len(of_pixels) > len(header) / 2


_NUMBER = r"-?\d+(\.\d+)?"
_EXPORT = "export as COCO or Pascal VOC"
_FORMS = (
    _Form("Label Studio (JSON)", (".json",), _keys("annotations", "result", "from_name"), _EXPORT),
    _Form("Label Studio (JSON-MIN)", (".json",), _keys("annotator", "lead_time"), _EXPORT),
    _Form(
        "Label Studio (JSON-MIN)", (".json",),
        lambda path, head: bool(re.search(r'"(rectangle|polygon|brush|keypoint)labels"', head)), _EXPORT,
    ),
    _Form("Label Studio (CSV)", (".csv", ".tsv"), _columns("annotator", "annotation_id"), _EXPORT),
    _Form("Supervisely", (".json",), _keys("classTitle", "points"), _EXPORT),
    _Form("Supervisely", (".json",), _called(r"^meta\.json$", _keys("classes", "projectType")), _EXPORT),
    _Form("Datumaro", (".json",), _keys("info", "categories", "items"), _EXPORT),
    _Form("BDD100K", (".json",), _keys("name", "labels", "box2d"), "convert to COCO"),
    _Form("SageMaker Ground Truth", (".manifest", ".jsonl"), _keys("source-ref"), "convert to COCO"),
    _Form("Darwin (V7)", (".json",), _keys("item", "slots", "annotations"), _EXPORT),
    _Form("Labelbox", (".ndjson", ".json", ".jsonl"), _keys("data_row", "projects"), _EXPORT),
    _Form("SuperAnnotate", (".json",), _keys("metadata", "instances", "className"), "export as COCO"),
    _Form("Scale", (".json",), _keys("task_id", "response", "annotations"), "export as COCO"),
    _Form("VGG Image Annotator", (".json",), _keys("regions", "shape_attributes"), "export as COCO"),
    _Form("VGG Image Annotator", (".csv",), _columns("region_shape_attributes"), "export as COCO"),
    _Form("VoTT (JSON)", (".json",), _keys("asset", "regions"), "export as csv or Pascal VOC"),
    _Form("COCO panoptic", (".json",), _keys("segments_info"), "use instances_*.json"),
    _Form(
        "COCO results", (".json",), _keys("image_id", "score", "bbox"), "use the annotations, not detections"
    ),
    _Form("COCO captions", (".json",), _keys("caption", "image_id"), "use instances_*.json"),
    _Form(
        "KITTI", (".txt",),
        _rows(r"[A-Za-z]\S*(\s+" + _NUMBER + r"){14,15}"), "convert to COCO",
    ),
    _Form(
        "DOTA", (".txt",),
        _rows(r"(imagesource:.*|gsd:.*|(" + _NUMBER + r"\s+){8}\S+\s+[01])"), "convert to COCO or YOLO",
    ),
    _Form(
        "MOT", (".txt",),
        _called(r"^(gt|det)\.txt$", _rows(r"(" + _NUMBER + r",?\s*){6,10}")), "convert to COCO",
    ),
    _Form("ICDAR", (".txt",), _rows(r"(-?\d+\s*,\s*){8}.*"), "convert to COCO"),
    _Form("VisDrone", (".txt",), _rows(r"(\d+,){4}[01],\d+,-?\d+,-?\d+,?"), "convert to COCO"),
    _Form("WIDER FACE", (".txt",), _is_wider, "convert to COCO"),
    _Form(
        "OIDv4 (OID toolkit)", (".txt",),
        _below("Label", _rows(r"[^\d\s].*" + rf"(\s+{_NUMBER}){{4}}")),
        "convert to Pascal VOC",
    ),
    _Form("keras-yolo3", (".txt",), _is_keras_yolo, "convert to COCO"),
    _Form(
        "pictures as cells of a table", (".csv",), _columns_of_pixels, "write each picture to a file",
    ),
    _Form("masks as run lengths in a table", (".csv",), _columns_of_runs, "write each mask to a PNG file"),
    _Form(
        "arrays of numbers", (".npz", ".npy", ".h5", ".hdf5", ".pkl", ".pickle", "-ubyte", "-ubyte.gz",
                             "data_batch_1", "batches.meta"),
        lambda path, head: True, "write each picture and each mask to a file", alone=True,
    ),
    _Form("MATLAB", (".mat",), lambda path, head: True, "convert to COCO"),
    _Form(
        "TFRecord", (".tfrecord", ".record", ".tfrec"), lambda path, head: True,
        "export the pictures and COCO",
    ),
    _Form(
        "a spreadsheet", (".xlsx", ".xls", ".xlsm", ".ods", ".numbers"), lambda path, head: True,
        "save it as CSV beside it",
    ),
    _Form(
        "a packed table", (".csv.gz", ".tsv.gz", ".json.gz", ".jsonl.gz", ".csv.zip"),
        lambda path, head: True, "unpack it",
    ),
    _Form("LMDB", (".mdb",), lambda path, head: True, "export the pictures and their labels"),
)  # fmt: skip


def form_of(path: str, head: str) -> str | None:
    """The tool whose form a file has, by its name and the beginning of its text."""
    low = path.lower()
    return next((f.tool for f in _FORMS if low.endswith(f.endings) and f.matches(path, head)), None)


def look(listing: Listing) -> Look | None:
    """Files of a form that is known and not read."""
    for form in _FORMS:
        files = listing.labels(*form.endings)
        if form.alone and len(listing.pictures) > 2 * len(files):
            continue
        for path in files[:_LOOKED_INTO]:
            if form.matches(path, listing.head_text(path)):
                return Look(
                    f"{path} of {form.tool}",
                    listing.pictures,
                    files,
                    f"the form of {form.tool} is not read; accepted: {form.instead}",
                )
    return None


def index(listing: Listing, column: str) -> Index:
    """Raises DataError with the export that is read."""
    seen = look(listing)
    why = seen.lacks if seen is not None else "no form of another tool is there"
    raise DataError(f"{listing.root}: {why}")
