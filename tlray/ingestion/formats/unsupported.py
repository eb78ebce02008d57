"""Label files of other tools that are recognized and not read.

Each is refused with the tool's name and with the export of that tool which is read.
"""

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
_LOOKED_INTO = 5  # files of each ending: the others are assumed to be alike

_Test = Callable[[str, str], bool]  # of a path and the first characters of the file


@dataclass(frozen=True)
class _Form:
    """A file format of a tool: how to recognize it, and what to export instead."""

    tool: str
    endings: tuple[str, ...]
    matches: _Test
    instead: str
    instead_of_pictures: bool = False  # only where pictures are few: beside many it may be anything


def _keys(*names: str) -> _Test:
    """JSON that has all of these keys in its first characters."""
    return lambda path, head: all(re.search(rf'"{name}"\s*:', head) for name in names)


def _columns(*names: str) -> _Test:
    """A table with all of these columns in its first line."""
    return lambda path, head: all(name in head.split("\n")[0] for name in names)


def _rows(pattern: str) -> _Test:
    """The first lines all match; the last one may be cut off and is not looked at."""

    def matches(path: str, head: str) -> bool:
        lines = [line.strip() for line in head.splitlines()[:20] if line.strip()]
        return bool(lines) and all(re.fullmatch(pattern, line) for line in lines[: max(1, len(lines) - 1)])

    return matches


def _named(pattern: str, *tests: _Test) -> _Test:
    """A file whose name matches and that passes the other tests."""
    return lambda path, head: bool(
        re.search(pattern, posixpath.basename(path), re.IGNORECASE)
        and all(test(path, head) for test in tests)
    )


def _below(folder: str, test: _Test) -> _Test:
    """A file below a folder of that name that passes the test."""
    return lambda path, head: f"/{folder}/" in f"/{path}" and test(path, head)


def _is_wider(path: str, head: str) -> bool:
    """WIDER FACE: a path, its number of faces, and ten numbers for each of them."""
    lines = [line.strip() for line in head.splitlines()[:3]]
    patterns = (r".+\.(jpg|jpeg|png)", r"\d+", r"(-?\d+\s*){10}")
    return len(lines) == 3 and all(
        re.fullmatch(pattern, line, re.I) for pattern, line in zip(patterns, lines, strict=True)
    )


def _is_keras_yolo(path: str, head: str) -> bool:
    """keras-yolo3: a path and its boxes as x1,y1,x2,y2,class; some pictures may have none."""
    boxes = r"(\s+(-?\d+,){4}\d+)"
    return bool(re.search(boxes, head)) and _rows(rf".*\.[A-Za-z]{{3,4}}{boxes}*")(path, head)


def _has_run_lengths(path: str, head: str) -> bool:
    """Masks of Kaggle: start and length of each run of pixels in one cell."""
    header = [cell.strip().strip('"').lower() for cell in head.split("\n")[0].split(",")]
    return bool({"encodedpixels", "rle", "rle_mask", "rle_masks", "encoded_pixels"} & set(header))


def _has_pixels(path: str, head: str) -> bool:
    """A column ``pixels`` as in FER-2013, or a column for each pixel as in MNIST."""
    header = [cell.strip().strip('"').lower() for cell in head.split("\n")[0].split(",")]
    pixel_columns = [cell for cell in header if re.fullmatch(r"pixel_?\d+|\d+x\d+", cell)]
    return "pixels" in header or len(pixel_columns) > len(header) / 2


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
    _Form("Supervisely", (".json",), _named(r"^meta\.json$", _keys("classes", "projectType")), _EXPORT),
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
        _named(r"^(gt|det)\.txt$", _rows(r"(" + _NUMBER + r",?\s*){6,10}")), "convert to COCO",
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
        "pictures as cells of a table", (".csv",), _has_pixels, "write each picture to a file",
    ),
    _Form("masks as run lengths in a table", (".csv",), _has_run_lengths, "write each mask to a PNG file"),
    _Form(
        "arrays of numbers", (".npz", ".npy", ".h5", ".hdf5", ".pkl", ".pickle", "-ubyte", "-ubyte.gz",
                             "data_batch_1", "batches.meta"),
        lambda path, head: True, "write each picture and each mask to a file", instead_of_pictures=True,
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


def tool_of(path: str, head: str) -> str | None:
    """The tool that wrote a file, known by its path and its first characters; None for any other file."""
    return next(
        (form.tool for form in _FORMS if path.lower().endswith(form.endings) and form.matches(path, head)),
        None,
    )


def look(listing: Listing) -> Look | None:
    """The first file of a tool whose format is not read."""
    for form in _FORMS:
        files = listing.labels(*form.endings)
        if form.instead_of_pictures and len(listing.pictures) > 2 * len(files):
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
    """Raises DataError, which names the export that is read."""
    recognized = look(listing)
    reason = recognized.lacks if recognized is not None else "no form of another tool is there"
    raise DataError(f"{listing.root}: {reason}")
