"""Writers of layouts of boxes: Pascal VOC, COCO, csv, CreateML, LabelMe, CVAT."""

from __future__ import annotations

import posixpath
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from tests.roundtrip.habits import COMMON, TEXT, Out
from tests.roundtrip.layout import Layout
from tests.roundtrip.truth import Box, Picture, Point, Thing
from tests.roundtrip.writers.labels import _by_split

XML = COMMON | {"bom", "crlf", "as_stored", "missing"}
JSON = COMMON | {"bom", "crlf", "as_stored", "gaps", "shuffled", "paths"}
BOXES = ("auto", "auto", "detection")


def size_of(out: Out, picture: Picture) -> tuple[int, int]:
    """The size that a label file states."""
    return picture.stored_size if _is_turned(out) else (picture.width, picture.height)


def outline_of(out: Out, picture: Picture, thing: Thing) -> list[Point]:
    """An outline as a label file states it."""
    if not _is_turned(out):
        return thing.outline
    return [picture.stored_point(point) for point in thing.outline]


def box_of(out: Out, picture: Picture, thing: Thing) -> Box:
    """A box as a label file states it: x, y, width, height."""
    x, y, w, h = thing.box
    if not _is_turned(out):
        return thing.box
    (x0, y0), (x1, y1) = (picture.stored_point(point) for point in ((x, y), (x + w, y + h)))
    return int(min(x0, x1)), int(min(y0, y1)), int(abs(x1 - x0)), int(abs(y1 - y0))


def _is_turned(out: Out) -> bool:
    """Whether size and labels are those of the file before EXIF, by habit: a tool that looks at no EXIF does
    so for all pictures, whichever way they are turned. Only where the size of one with labels can show it."""
    labelled = out.truth.pictures[:-1] if out.habits.missing else out.truth.pictures
    return out.habits.as_stored and any(
        other.things and other.turn >= 5 and abs(other.width - other.height) > 3 for other in labelled
    )


# ---- Pascal VOC


def _voc_xml(out: Out, path: str, picture: Picture, folder: str) -> None:
    w, h = size_of(out, picture)
    name = posixpath.basename(out.paths[picture.number])
    parts = [
        f"<folder>{escape(folder)}</folder>", f"<filename>{escape(name)}</filename>",
        f"<path>C:\\Users\\ann\\{escape(name)}</path>", "<source><database>Unknown</database></source>",
        f"<size><width>{w}</width><height>{h}</height><depth>3</depth></size>", "<segmented>0</segmented>",
    ]  # fmt: skip
    for thing in picture.things:
        x, y, bw, bh = box_of(out, picture, thing)
        parts.append(
            f"<object><name>{escape(out.spelt(thing.name, picture.split))}</name><pose>Unspecified</pose>"
            f"<truncated>0</truncated><difficult>0</difficult><bndbox><xmin>{x}</xmin><ymin>{y}</ymin>"
            f"<xmax>{x + bw}</xmax><ymax>{y + bh}</ymax></bndbox></object>"
        )
    out.write(path, out.bytes("<annotation>\n\t" + "\n\t".join(parts) + "\n</annotation>\n"))


def voc(out: Out) -> None:
    """Annotations/ and JPEGImages/, lists in ImageSets/Main."""
    for split, pictures in _by_split(out).items():
        for picture in pictures:
            out.picture("JPEGImages", picture)
            if not out.lacks_label(picture):
                name = "Annotations/" + out.stem(picture) + out.ending(".xml")
                _voc_xml(out, name, picture, "JPEGImages")
        if split:
            name = {"validation": "val"}.get(split, split)
            out.text(f"ImageSets/Main/{name}.txt", [out.stem(p) for p in pictures])
    if not out.truth.splits or out.truth.pictures[0].number % 2:
        out.stray("JPEGImages")


def voc_images(out: Out) -> None:
    """images/ and annotations/, by any of the names in use."""
    style = out.truth.pictures[0].number
    folder = out.folder(["annotations", "annots", "xmls", "labels", "Annotations"][style % 5])
    for picture in out.truth.pictures:
        out.picture(posixpath.join(out.folder("images"), out.split(picture)), picture)
        if not out.lacks_label(picture):
            path = posixpath.join(folder, out.split(picture), out.stem(picture) + out.ending(".xml"))
            _voc_xml(out, path, picture, "images")
    out.stray(posixpath.join(out.folder("images"), out.split(out.truth.pictures[0])))


def voc_beside(out: Out) -> None:
    """An .xml beside each picture, with or without split folders (LabelImg, Roboflow)."""
    for picture in out.truth.pictures:
        folder = out.split(picture)
        path = out.picture(folder, picture)
        if not out.lacks_label(picture):
            _voc_xml(out, posixpath.splitext(path)[0] + out.ending(".xml"), picture, folder)
    out.stray(out.split(out.truth.pictures[0]))


# ---- COCO


def _coco_tree(out: Out, pictures: list[Picture], folder: str, form: str, first_id: int) -> dict[str, Any]:
    """``form``: boxes, polygons or rle."""
    h = out.habits
    step = 3 if h.gaps else 1
    offset = out.truth.pictures[0].number % 2  # categories from 0 or from 1
    # In masks the first class is what no outline covers: COCO has no category for it.
    names = out.truth.classes[1:] if out.truth.kind == "mask" else out.truth.classes
    number = {name: offset + n * step for n, name in enumerate(names)}
    split = pictures[0].split
    categories = [
        {"id": n, "name": out.spelt(name, split), "supercategory": ""} for name, n in number.items()
    ]
    images, annotations = [], []
    for n, picture in enumerate(pictures):
        w, h_px = size_of(out, picture)
        path = out.paths[picture.number]
        name = path.removeprefix(folder).lstrip("/") if folder else path
        id_ = first_id + n * step
        images.append({"id": id_, "file_name": out.written_path(name), "width": w, "height": h_px})
        for thing in picture.things:
            x, y, bw, bh = box_of(out, picture, thing)
            item: dict[str, Any] = {
                "id": len(annotations) + 1, "image_id": id_, "category_id": number[thing.name],
                "area": bw * bh, "iscrowd": 0,
            }  # fmt: skip
            corners = outline_of(out, picture, thing)
            polygon = [[float(v) for point in corners for v in point]]
            if form == "boxes":
                item |= {"bbox": [x, y, bw, bh], "segmentation": polygon if picture.number % 2 else []}
            elif form == "polygons":
                item["segmentation"] = polygon
            else:
                item["segmentation"] = _rle((x, y, bw, bh), w, h_px, compressed=bool(picture.number % 2))
            annotations.append(item)
    if h.fault == "double_id" and len(images) > 1:
        images[1]["id"] = images[0]["id"]
        out.refuse = "two pictures of one id"
    if h.fault == "unknown_id" and annotations:
        annotations[0]["category_id"] = 77
        out.refuse = "a category that the file does not hold"
    if h.fault == "crowd" and form == "boxes":
        crowd = {"id": 9000, "image_id": images[0]["id"], "category_id": categories[0]["id"], "iscrowd": 1}
        annotations.append(
            {**crowd, "bbox": [0, 0, 20, 20], "area": 400, "segmentation": {"counts": [0, 400]}}
        )
        out.must_report.append("crowd")
    if h.shuffled:
        images.reverse()
        if out.truth.kind == "mask":  # the order of one picture's outlines says which lies on top
            annotations.sort(key=lambda item: -item["image_id"])
        else:
            annotations.reverse()
    return {
        "info": {},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _rle(box: Box, width: int, height: int, compressed: bool) -> dict[str, Any]:
    """A rectangle as COCO's run lengths, down the columns."""
    mask = np.zeros((height, width), np.uint8)
    x, y, w, h = box
    mask[y : y + h, x : x + w] = 1
    if compressed:
        from faster_coco_eval.core import mask as coco

        packed = coco.encode(np.asfortranarray(mask))
        return {"size": [height, width], "counts": packed["counts"].decode()}
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges.tolist(), len(flat)]).tolist()
    return {"size": [height, width], "counts": [0, *runs] if flat[0] else runs}


def _coco(out: Out, form: str) -> None:
    style = out.truth.pictures[0].number % 4
    first_id = 1
    for pictures in _by_split(out).values():
        word = out.split(pictures[0])
        folder = {0: f"{word}2017" if word else "images", 1: posixpath.join("images", word)}.get(
            style, "images"
        )
        for picture in pictures:
            out.picture(folder, picture)
        # file_name is below the folder of the pictures; in some files it holds that folder, too.
        tree = _coco_tree(out, pictures, "" if style == 3 else folder, form, first_id)
        first_id += 100
        tail = f"{word}2017" if style == 0 and word else word or "default"
        out.json(f"annotations/instances_{tail}.json", tree)
    out.stray(folder)


def coco(out: Out) -> None:
    """annotations/instances_<split>.json."""
    _coco(out, "boxes")


def coco_polygons(out: Out) -> None:
    """COCO without bbox: outlines."""
    _coco(out, "polygons")


def coco_rle(out: Out) -> None:
    """COCO without bbox: run lengths."""
    _coco(out, "rle")


def coco_roboflow(out: Out) -> None:
    """train/_annotations.coco.json beside the pictures."""
    for pictures in _by_split(out).values():
        folder = out.split(pictures[0])
        for picture in pictures:
            out.picture(folder, picture)
        out.json(
            posixpath.join(folder, "_annotations.coco.json"), _coco_tree(out, pictures, folder, "boxes", 0)
        )
    out.stray(folder)


# ---- csv


def csv_tf(out: Out) -> None:
    """train_labels.csv of TensorFlow's tools: filename,width,height,class,xmin,ymin,xmax,ymax."""
    header = ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]
    for pictures in _by_split(out).values():
        folder, word = posixpath.join(out.folder("images"), out.split(pictures[0])), out.split(pictures[0])
        rows: list[list[Any]] = [header]
        for picture in pictures:
            name = posixpath.basename(out.picture(folder, picture))
            _rows_of(out, rows, picture, name)
        out.csv(f"{word}_labels.csv" if word else "labels.csv", rows)
    out.stray(folder)


def _rows_of(out: Out, rows: list[list[Any]], picture: Picture, name: str) -> None:
    """Rows of TensorFlow's csv; a picture without boxes has none, and is reported or left out."""
    w, h = size_of(out, picture)
    for thing in picture.things:
        x, y, bw, bh = box_of(out, picture, thing)
        spelt = out.spelt(thing.name, picture.split)
        rows.append([out.written_path(name), w, h, spelt, x, y, x + bw, y + bh])
    if not picture.things:
        _has_no_row(out, picture)


def _has_no_row(out: Out, picture: Picture) -> None:
    out.unlabelled.add(picture.sha256)
    out.must_report.append(r"label|annotation|in no|not listed|pictures? |\.jpg|without|row")


def csv_roboflow(out: Out) -> None:
    """train/_annotations.csv beside the pictures."""
    header = ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]
    for pictures in _by_split(out).values():
        folder = out.split(pictures[0])
        rows: list[list[Any]] = [header]
        for picture in pictures:
            _rows_of(out, rows, picture, posixpath.basename(out.picture(folder, picture)))
        out.csv(posixpath.join(folder, "_annotations.csv"), rows)
    out.stray(folder)


def csv_vott(out: Out) -> None:
    """vott-csv-export: the pictures and one table, "image","xmin","ymin","xmax","ymax","label"."""
    rows: list[list[Any]] = [["image", "xmin", "ymin", "xmax", "ymax", "label"]]
    for picture in out.truth.pictures:
        name = posixpath.basename(out.picture("vott-csv-export", picture))
        for thing in picture.things:
            x, y, w, h = thing.box
            corners = [f"{v + 0.123:.6f}" for v in (x, y, x + w, y + h)]
            rows.append([out.written_path(name), *corners, out.spelt(thing.name)])
        if not picture.things:
            _has_no_row(out, picture)
    out.csv("vott-csv-export/mine-export.csv", rows)
    out.stray("vott-csv-export")


# ---- CreateML, LabelMe, CVAT


def createml(out: Out) -> None:
    """_annotations.createml.json: coordinates name the box's centre."""
    for pictures in _by_split(out).values():
        folder = out.split(pictures[0])
        tree = []
        for picture in pictures:
            name = posixpath.basename(out.picture(folder, picture))
            marks = []
            for thing in picture.things:
                x, y, w, h = thing.box
                centre = {"x": x + w / 2, "y": y + h / 2, "width": w, "height": h}
                marks.append({"label": out.spelt(thing.name, picture.split), "coordinates": centre})
            tree.append({"image": out.written_path(name), "annotations": marks})
        out.json(posixpath.join(folder, "_annotations.createml.json"), tree)
    out.stray(folder)


def labelme(out: Out) -> None:
    """LabelMe's x.json beside x.jpg: rectangles and polygons."""
    for picture in out.truth.pictures:
        path = out.picture(out.split(picture), picture)
        if out.lacks_label(picture):
            continue
        w, h = size_of(out, picture)
        shapes = []
        for thing in picture.things:
            corners = outline_of(out, picture, thing)
            shape = "polygon" if thing.diamond else "rectangle"
            points = corners if thing.diamond else [corners[0], corners[2]]
            shapes.append({
                "label": out.spelt(thing.name, picture.split), "points": points, "group_id": None,
                "shape_type": shape, "flags": {},
            })  # fmt: skip
        tree = {
            "version": "5.4.1", "flags": {}, "shapes": shapes,
            "imagePath": out.written_path(posixpath.basename(path)),
            "imageData": None, "imageHeight": h, "imageWidth": w,
        }  # fmt: skip
        out.json(posixpath.splitext(path)[0] + out.ending(".json"), tree)
    out.stray(out.split(out.truth.pictures[0]))


def cvat(out: Out) -> None:
    """CVAT for images 1.1: annotations.xml and images/."""
    labels = "".join(f"<label><name>{escape(out.spelt(n))}</name></label>" for n in out.truth.classes)
    parts = [f"<version>1.1</version>\n<meta><task><labels>{labels}</labels></task></meta>"]
    for n, picture in enumerate(out.truth.pictures):
        path = out.picture("images", picture)
        w, h = size_of(out, picture)
        name = quoteattr(out.written_path(posixpath.basename(path)))
        boxes = []
        for thing in picture.things:
            label = quoteattr(out.spelt(thing.name, picture.split))
            x, y, bw, bh = box_of(out, picture, thing)
            if thing.diamond:
                points = ";".join(f"{a:.2f},{b:.2f}" for a, b in outline_of(out, picture, thing))
                boxes.append(
                    f'<polygon label={label} source="manual" occluded="0" points="{points}" z_order="0">'
                    "</polygon>"
                )
            else:
                boxes.append(
                    f'<box label={label} source="manual" occluded="0" xtl="{x:.2f}" ytl="{y:.2f}" '
                    f'xbr="{x + bw:.2f}" ybr="{y + bh:.2f}" z_order="0"></box>'
                )
        subset = f' subset="{out.words[picture.split]}"' if picture.split else ""
        parts.append(f'<image id="{n}" name={name}{subset} width="{w}" height="{h}">{"".join(boxes)}</image>')
    text = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n' + "\n".join(parts) + "\n</annotations>\n"
    out.write("annotations.xml", out.bytes(text))
    out.stray("images")


COCO_FAULTS = ("double_id", "unknown_id", "crowd")
TABLE = COMMON | TEXT | {"quotes", "shuffled", "paths"}
LAYOUTS = [
    Layout("voc", "objects", voc, XML | {"empty_lines", "trailing_blanks"}, tasks=BOXES),
    Layout("voc_images", "objects", voc_images, XML, tasks=BOXES),
    Layout("voc_beside", "objects", voc_beside, XML, tasks=BOXES, same_stems=True),
    Layout("coco", "objects", coco, JSON, COCO_FAULTS, tasks=BOXES),
    Layout("coco_polygons", "objects", coco_polygons, JSON, COCO_FAULTS[:2], tasks=BOXES, diamonds=True),
    Layout("coco_rle", "objects", coco_rle, JSON, tasks=BOXES),
    Layout(
        "coco_roboflow", "objects", coco_roboflow, JSON, COCO_FAULTS, tasks=BOXES, same_stems=True,
        words=("valid",), diamonds=True,
    ),
    Layout("csv_tf", "objects", csv_tf, TABLE | {"as_stored"}, tasks=BOXES),
    Layout(
        "csv_roboflow", "objects", csv_roboflow, TABLE | {"as_stored"}, tasks=BOXES, same_stems=True,
        words=("valid",),
    ),
    Layout("csv_vott", "objects", csv_vott, TABLE, tasks=BOXES, splits="none"),
    Layout(
        "createml", "objects", createml, JSON - {"as_stored", "gaps"}, tasks=BOXES, same_stems=True,
        words=("valid",),
    ),
    Layout(
        "labelme", "objects", labelme, JSON - {"gaps"} | {"missing"}, tasks=BOXES, diamonds=True,
        same_stems=True,
    ),
    Layout("cvat", "objects", cvat, XML - {"missing"} | {"paths"}, tasks=BOXES, diamonds=True),
]  # fmt: skip
