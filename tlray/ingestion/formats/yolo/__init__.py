"""YOLO: for every ``images/**/x.jpg`` a ``labels/**/x.txt``, or ``x.txt`` beside ``x.jpg``.

A line is class, centre x, centre y, width, height in shares of the picture's sides. A longer one is an
outline (class x y x y ...), or a box with keypoints where data.yaml has ``kpt_shape``. Class names and splits
come from data.yaml (Ultralytics, Roboflow), obj.data with obj.names (darknet, CVAT's YOLO 1.1), or
classes.txt (LabelImg, Label Studio) and the names of folders. A picture without a label file shows no object,
as one with an empty file does; the report counts the two apart.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from tlray.data.schema import MASK, OBJECTS
from tlray.errors import DataError
from tlray.ingestion.findings import Finding, finding
from tlray.ingestion.formats.base import Index, Look, objects, table
from tlray.ingestion.formats.listing import Listing
from tlray.ingestion.formats.yolo import names as naming
from tlray.ingestion.formats.yolo import pairs as pairing
from tlray.ingestion.formats.yolo import rows as reading
from tlray.ingestion.formats.yolo import splits as splitting

GIVES: tuple[str, ...] = (OBJECTS, MASK)
_SAMPLE = 20  # label files whose first lines are read to recognize the format
_LOOKED_INTO = 200  # text files without a picture that are read: on object storage each costs a request
_CONFIGS = (".yaml", ".yml", ".data", ".names", "notes.json")


def look(listing: Listing) -> Look | None:
    """Pictures with a text file of numbers beside them or in a folder for labels."""
    source_file = listing.named
    if source_file and not (source_file.lower().endswith(_CONFIGS) or naming.is_list_file(source_file)):
        return None
    pairs = pairing.find(listing)
    configs = naming.config_files(listing)
    labels = sorted(set(pairs.label_file_of.values()))
    if not labels:
        return _without_labels(listing, configs)
    sample = [listing.head_text(label) for label in labels[:: max(1, len(labels) // _SAMPLE)][:_SAMPLE]]
    filled = [text for text in sample if text.strip()]
    lists = naming.list_files(listing) + listing.labels("notes.json")
    if not filled and not (configs or lists):
        return None  # empty text files prove nothing
    # A few files of another form are mistakes, which `index` names; if most are, the layout is another one.
    if 2 * sum(map(reading.looks_like_rows, filled)) < len(filled):
        return None
    lacks = "" if configs or lists else f"there are no names of classes; accepted: {naming.PLACES}"
    summary = f"{len(labels)} .txt of YOLO for {len(pairs.pictures)} pictures"
    return Look(summary, pairs.pictures, [*labels, *configs, *lists], lacks)


def _without_labels(listing: Listing, configs: list[str]) -> Look | None:
    """What to say of a data.yaml whose pictures have no label files."""
    heads = [listing.head_text(file) for file in configs]
    if not any("train" in head or "nc" in head or "val" in head for head in heads):
        return None
    expected_place = pairing.expected(listing.pictures[0]) if listing.pictures else "labels/x.txt"
    missing = f"label files (looked for {expected_place})" if listing.pictures else "pictures"
    return Look(f"{configs[0]} of YOLO", listing.pictures, configs, f"there are no {missing}")


def index(listing: Listing, column: str) -> Index:
    """Table of (path, split, objects or mask); coordinates are in shares of the picture's sides.

    Raises DataError for a line that is no box, outline or pose, for a class without a name, where there are
    no class names, for missing splits and lists, and for two pictures of one label file.
    """
    pairs = pairing.find(listing)
    if not pairs.label_file_of:
        example = (
            f" (for {listing.pictures[0]}: {pairing.expected(listing.pictures[0])})"
            if listing.pictures
            else ""
        )
        raise DataError(
            f"{listing.root}: no label files of YOLO{example}; accepted: images/x.jpg with labels/x.txt, or "
            "x.txt beside x.jpg"
        )
    pairing.check(listing, pairs)
    configs = naming.configs(listing)
    names = naming.find(listing, configs)
    keypoints = next((c.keypoints for c in configs if c.keypoints), None)
    splits = splitting.find(listing, configs, pairs.pictures)

    pictures, findings = _with_split(pairs, splits)
    texts = [pairs.label_file_of[picture] for picture in pictures if picture in pairs.label_file_of]
    files = {
        text: reading.parse(listing.where(text), data)
        for text, data in zip(texts, listing.read_all(texts), strict=True)
    }
    reading.check(list(files.values()), names.by_id, names.empty, keypoints)
    classes = names.ordered()
    rows: list[dict[str, Any]] = []
    for picture in pictures:
        label_rows = files[pairs.label_file_of[picture]].rows if picture in pairs.label_file_of else []
        boxes = [
            (names.by_id[id_], reading.box_of(values, keypoints is not None)) for id_, values, _ in label_rows
        ]
        value = objects(boxes) if column == OBJECTS else {"paths": [], "shapes": ""}
        rows.append({"path": picture, "split": splits.split_of.get(picture), column: value})
    rows += [
        {
            "path": path,
            "split": split,
            column: objects([]) if column == OBJECTS else {"paths": [], "shapes": "[]"},
        }
        for path, split in splits.missing.items()
    ]
    if column == MASK:
        _add_outlines(rows, pairs, files, names, classes, keypoints)
        classes = ["background", *classes]

    findings += [*names.findings, *splits.findings, *_label_findings(listing, pairs, pictures, files, names)]
    if keypoints:
        findings.append(
            Finding("info", "keypoints", len(texts), "keypoints of the labels are not used: boxes alone")
        )
    outside = len(listing.pictures) - len(pairs.pictures)
    ignored = {"pictures outside the folders of YOLO": outside} if outside else {}
    return Index(table(rows, column), {column: classes}, relative=True, ignored=ignored, findings=findings)


def _with_split(pairs: pairing.Pairs, splits: splitting.Splits) -> tuple[list[str], list[Finding]]:
    """Pictures to take, and findings of those left out: pictures of no split where others have one, and
    pictures of a split without any label file."""
    if not splits.split_of:
        return pairs.pictures, []
    inside = [picture for picture in pairs.pictures if picture in splits.split_of]
    # A list may name pictures in folders without any label file.
    inside = sorted({*inside, *splits.split_of})
    without_split = [picture for picture in pairs.pictures if picture not in splits.split_of]
    labelled = Counter(splits.split_of[picture] for picture in inside if picture in pairs.label_file_of)
    unlabelled = [picture for picture in inside if not labelled[splits.split_of[picture]]]
    taken = [picture for picture in inside if labelled[splits.split_of[picture]]]
    return taken, [
        *finding("warning", "no_split", without_split, "{n} pictures are in no split: left out"),
        *finding("warning", "split_without_labels", unlabelled,
                 "{n} pictures are of a split that has no label file at all: left out"),
    ]  # fmt: skip


def _add_outlines(
    rows: list[dict[str, Any]],
    pairs: pairing.Pairs,
    files: dict[str, reading.LabelFile],
    names: naming.Names,
    classes: list[str],
    keypoints: tuple[int, int] | None,
) -> None:
    """Fill in the masks: outlines in shares of the sides, class ids from 1. Raises DataError for boxes."""
    if keypoints:
        raise DataError(
            f"{names.file}: kpt_shape: keypoints give no masks; accepted: outlines, or boxes as task"
        )
    ids = {name: number for number, name in enumerate(classes, 1)}
    for row in rows:
        label_file = files.get(pairs.label_file_of.get(row["path"], ""))
        shapes = []
        for id_, values, line in label_file.rows if label_file else ():
            if len(values) == 4:
                assert label_file is not None
                raise DataError(
                    f"{label_file.where} line {line}: a box gives no mask; accepted: outlines in every line"
                )
            shapes.append({"id": ids[names.by_id[id_]], "polygons": [list(values)], "relative": True})
        row[MASK] = {"paths": [], "shapes": json.dumps(shapes)}


def _label_findings(
    listing: Listing,
    pairs: pairing.Pairs,
    pictures: list[str],
    files: dict[str, reading.LabelFile],
    names: naming.Names,
) -> list[Finding]:
    """Findings from comparing the label files with the pictures and the class names."""
    orphans = pairs.orphans()
    without_picture = [
        text for n, text in enumerate(orphans) if n >= _LOOKED_INTO or _is_label(listing, text)
    ]
    without_file = [picture for picture in pictures if picture not in pairs.label_file_of]
    empty = [p for p in pictures if p in pairs.label_file_of and not files[pairs.label_file_of[p]].rows]
    doubles = [f"{text}: {file.num_double}" for text, file in files.items() if file.num_double]
    num_double = sum(file.num_double for file in files.values())
    used = {names.by_id[id_] for file in files.values() for id_, _, _ in file.rows}
    never = [f"{id_}: {name}" for id_, name in sorted(names.by_id.items()) if name not in used]
    gaps = sorted(set(range(max(names.by_id))) - set(names.by_id) - set(names.empty))
    example = pairing.expected(without_file[0]) if without_file else ""
    return [
        *finding("warning", "no_label_file", without_file,
                 f"{{n}} pictures have no label file (looked for {example}); they are taken as showing no "
                 "object"),
        *finding("info", "no_object", empty, "{n} pictures have an empty label file: they show no object"),
        *finding("warning", "label_without_picture", without_picture, "{n} label files belong to no picture"),
        *finding("info", "double_box", doubles,
                 f"{{n}} label files hold rows twice, {num_double} in all: each is taken once"),
        *finding("info", "class_never_occurs", never, f"{{n}} classes of {names.file} never occur"),
        *finding("info", "id_gap", [str(i) for i in gaps], f"{{n}} ids have no name in {names.file}"),
    ]  # fmt: skip


def _is_label(listing: Listing, text: str) -> bool:
    head = listing.head_text(text)
    return not head.strip() or reading.looks_like_rows(head)
