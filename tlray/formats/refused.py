"""Forms of other tools that are known by their keys and not read: each is refused by name, with the export of
that tool which is read."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass

from tlray.errors import DataError
from tlray.formats.base import Index, Look
from tlray.formats.listing import Listing
from tlray.schema import LABEL, LABELS, MASK, OBJECTS

GIVES: tuple[str, ...] = (OBJECTS, LABEL, LABELS, MASK)
_LOOKED_INTO = 5  # files of one ending: one speaks for all


@dataclass(frozen=True)
class _Form:
    """A tool's own form: how its files begin, and what to export instead."""

    tool: str
    endings: tuple[str, ...]
    matches: Callable[[str, str], bool]  # (path, beginning of the text)
    instead: str


def _keys(*names: str) -> Callable[[str, str], bool]:
    """All of these keys of JSON in the beginning of a file."""
    return lambda path, head: all(re.search(rf'"{name}"\s*:', head) for name in names)


def _columns(*names: str) -> Callable[[str, str], bool]:
    """All of these columns in a table's first line."""
    return lambda path, head: all(name in head.split("\n")[0] for name in names)


def _rows(pattern: str) -> Callable[[str, str], bool]:
    """Every one of the first lines, the last left out since it may be cut off, has this form."""

    def matches(path: str, head: str) -> bool:
        lines = [line.strip() for line in head.splitlines()[:20] if line.strip()]
        return bool(lines) and all(re.fullmatch(pattern, line) for line in lines[: max(1, len(lines) - 1)])

    return matches


def _called(pattern: str, *more: Callable[[str, str], bool]) -> Callable[[str, str], bool]:
    """Files of that name, for which the rest holds, too."""
    return lambda path, head: bool(
        re.search(pattern, posixpath.basename(path), re.IGNORECASE) and all(m(path, head) for m in more)
    )


_NUMBER = r"-?\d+(\.\d+)?"
_EXPORT = "export as COCO or Pascal VOC"
_FORMS = (
    _Form("Label Studio (JSON)", (".json",), _keys("annotations", "result", "from_name"), _EXPORT),
    _Form("Label Studio (JSON-MIN)", (".json",), _keys("annotator", "lead_time"), _EXPORT),
    _Form("Label Studio (CSV)", (".csv", ".tsv"), _columns("annotator", "annotation_id"), _EXPORT),
    _Form("Supervisely", (".json",), _keys("classTitle", "points"), _EXPORT),
    _Form("Supervisely", (".json",), _called(r"^meta\.json$", _keys("classes", "projectType")), _EXPORT),
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


def look(listing: Listing) -> Look | None:
    """Files of a form that is known and not read."""
    for form in _FORMS:
        files = listing.labels(*form.endings)
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
