"""YOLO: for every ``images/**/x.jpg`` a ``labels/**/x.txt``, or ``x.txt`` beside ``x.jpg``.

A line is class, centre x, y, width, height in shares of the picture's sides; a longer one is an outline
(class x y x y ...), or a box with keypoints where data.yaml has ``kpt_shape``. Class names and splits come
from data.yaml (Ultralytics, Roboflow), obj.data with obj.names (darknet, CVAT's YOLO 1.1), or classes.txt
(LabelImg, Label Studio) and the folders' names. A picture without a label file shows nothing, as one with
an empty file does; they are counted apart.
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
from tlray.ingestion.formats.yolo import places as placing
from tlray.ingestion.formats.yolo import rows as reading
from tlray.ingestion.formats.yolo import splits as splitting

GIVES: tuple[str, ...] = (OBJECTS, MASK)
_SAMPLE = 20  # label files whose first lines are looked at
_LOOKED_INTO = 200  # texts without a picture: on object storage each costs a request
_CONFIGS = (".yaml", ".yml", ".data", ".names", "notes.json")


def look(listing: Listing) -> Look | None:
    """Pictures with a text of numbers beside them or in the folder of labels."""
    named = listing.named
    if named and not (named.lower().endswith(_CONFIGS) or naming.is_list_file(named)):
        return None
    places = placing.find(listing)
    configs = naming.config_files(listing)
    labels = sorted(set(places.pairs.values()))
    if not labels:
        return _without_labels(listing, configs)
    sample = [listing.head_text(label) for label in labels[:: max(1, len(labels) // _SAMPLE)][:_SAMPLE]]
    full = [text for text in sample if text.strip()]
    lists = naming.list_files(listing) + listing.labels("notes.json")
    if not full and not (configs or lists):
        return None  # empty texts say nothing
    # One odd file is a mistake, which `index` names; most of them odd is another layout.
    if 2 * sum(map(reading.looks_like_rows, full)) < len(full):
        return None
    lacks = "" if configs or lists else f"there are no names of classes; accepted: {naming.PLACES}"
    summary = f"{len(labels)} .txt of YOLO for {len(places.pictures)} pictures"
    return Look(summary, places.pictures, [*labels, *configs, *lists], lacks)


def _without_labels(listing: Listing, configs: list[str]) -> Look | None:
    """A data.yaml without label files is YOLO's all the same."""
    heads = [listing.head_text(file) for file in configs]
    if not any("train" in head or "nc" in head or "val" in head for head in heads):
        return None
    where = placing.expected(listing.pictures[0]) if listing.pictures else "labels/x.txt"
    what = f"label files (looked for {where})" if listing.pictures else "pictures"
    return Look(f"{configs[0]} of YOLO", listing.pictures, configs, f"there are no {what}")


def index(listing: Listing, column: str) -> Index:
    """Table of (path, split, objects or mask), in shares of the sides.

    Raises DataError for lines that are no box, outline or pose of the kind that the set has, for classes
    without a name and no names at all, for splits and lists that are not there, and for two pictures of
    one label file.
    """
    places = placing.find(listing)
    if not places.pairs:
        first = (
            f" (for {listing.pictures[0]}: {placing.expected(listing.pictures[0])})"
            if listing.pictures
            else ""
        )
        raise DataError(
            f"{listing.root}: no label files of YOLO{first}; accepted: images/x.jpg with labels/x.txt, or "
            "x.txt beside x.jpg"
        )
    placing.check(listing, places)
    configs = naming.configs(listing)
    names = naming.find(listing, configs)
    keypoints = next((c.keypoints for c in configs if c.keypoints), None)
    splits = splitting.find(listing, configs, places.pictures)

    pictures, findings = _with_split(places, splits)
    texts = [places.pairs[picture] for picture in pictures if picture in places.pairs]
    files = {
        text: reading.parse(listing.where(text), data)
        for text, data in zip(texts, listing.read_all(texts), strict=True)
    }
    reading.check(list(files.values()), names.by_id, names.empty, keypoints)
    classes = names.ordered()
    rows: list[dict[str, Any]] = []
    for picture in pictures:
        there = files[places.pairs[picture]].rows if picture in places.pairs else []
        boxes = [
            (names.by_id[id_], reading.box_of(values, keypoints is not None)) for id_, values, _ in there
        ]
        value = objects(boxes) if column == OBJECTS else {"paths": [], "shapes": ""}
        rows.append({"path": picture, "split": splits.of.get(picture), column: value})
    rows += [
        {
            "path": path,
            "split": split,
            column: objects([]) if column == OBJECTS else {"paths": [], "shapes": "[]"},
        }
        for path, split in splits.missing.items()
    ]
    if column == MASK:
        _add_outlines(rows, places, files, names, classes, keypoints)
        classes = ["background", *classes]

    findings += [*names.findings, *splits.findings, *_label_findings(listing, places, pictures, files, names)]
    if keypoints:
        findings.append(
            Finding("info", "keypoints", len(texts), "keypoints of the labels are not used: boxes alone")
        )
    outside = len(listing.pictures) - len(places.pictures)
    ignored = {"pictures outside the folders of YOLO": outside} if outside else {}
    return Index(table(rows, column), {column: classes}, relative=True, ignored=ignored, findings=findings)


def _with_split(places: placing.Places, splits: splitting.Splits) -> tuple[list[str], list[Finding]]:
    """Pictures to take, and what is said of the others: those of no split where there are splits, and those
    of a split that has no label file at all."""
    if not splits.given:
        return places.pictures, []
    inside = [picture for picture in places.pictures if picture in splits.of]
    # A list may name pictures in folders where nothing has a label file.
    inside = sorted({*inside, *splits.of})
    without = [picture for picture in places.pictures if picture not in splits.of]
    labelled = Counter(splits.of[picture] for picture in inside if picture in places.pairs)
    bare = [picture for picture in inside if not labelled[splits.of[picture]]]
    kept = [picture for picture in inside if labelled[splits.of[picture]]]
    return kept, [
        *finding("warning", "no_split", without, "{n} pictures are in no split: left out"),
        *finding("warning", "split_without_labels", bare,
                 "{n} pictures are of a split that has no label file at all: left out"),
    ]  # fmt: skip


def _add_outlines(
    rows: list[dict[str, Any]],
    places: placing.Places,
    files: dict[str, reading.LabelFile],
    names: naming.Names,
    classes: list[str],
    keypoints: tuple[int, int] | None,
) -> None:
    """Fill in the masks: outlines in shares, ids from 1 on. Raises DataError for boxes."""
    if keypoints:
        raise DataError(
            f"{names.file}: kpt_shape: keypoints give no masks; accepted: outlines, or boxes as task"
        )
    ids = {name: number for number, name in enumerate(classes, 1)}
    for row in rows:
        file = files.get(places.pairs.get(row["path"], ""))
        shapes = []
        for id_, values, line in file.rows if file else ():
            if len(values) == 4:
                assert file is not None
                raise DataError(
                    f"{file.where} line {line}: a box gives no mask; accepted: outlines in every line"
                )
            shapes.append({"id": ids[names.by_id[id_]], "polygons": [list(values)], "relative": True})
        row[MASK] = {"paths": [], "shapes": json.dumps(shapes)}


def _label_findings(
    listing: Listing,
    places: placing.Places,
    pictures: list[str],
    files: dict[str, reading.LabelFile],
    names: naming.Names,
) -> list[Finding]:
    """What the label files say, compared with the pictures and the class list."""
    orphans = places.orphans()
    lost = [text for n, text in enumerate(orphans) if n >= _LOOKED_INTO or _is_label(listing, text)]
    no_file = [picture for picture in pictures if picture not in places.pairs]
    empty = [p for p in pictures if p in places.pairs and not files[places.pairs[p]].rows]
    double = [f"{text}: {file.num_double}" for text, file in files.items() if file.num_double]
    num_double = sum(file.num_double for file in files.values())
    used = {names.by_id[id_] for file in files.values() for id_, _, _ in file.rows}
    never = [f"{id_}: {name}" for id_, name in sorted(names.by_id.items()) if name not in used]
    gaps = sorted(set(range(max(names.by_id))) - set(names.by_id) - set(names.empty))
    example = placing.expected(no_file[0]) if no_file else ""
    return [
        *finding("warning", "no_label_file", no_file,
                 f"{{n}} pictures have no label file (looked for {example}); they are taken as showing no "
                 "object"),
        *finding("info", "no_object", empty, "{n} pictures have an empty label file: they show no object"),
        *finding("warning", "label_without_picture", lost, "{n} label files belong to no picture"),
        *finding("info", "double_box", double,
                 f"{{n}} label files hold rows twice, {num_double} in all: each is taken once"),
        *finding("info", "class_never_occurs", never, f"{{n}} classes of {names.file} never occur"),
        *finding("info", "id_gap", [str(i) for i in gaps], f"{{n}} ids have no name in {names.file}"),
    ]  # fmt: skip


def _is_label(listing: Listing, text: str) -> bool:
    head = listing.head_text(text)
    return not head.strip() or reading.looks_like_rows(head)
