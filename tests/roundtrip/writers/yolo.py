"""Writers of YOLO's layouts: Ultralytics' folders, lists of files, labels beside pictures, obj.data."""

from __future__ import annotations

import posixpath
from typing import Any

import yaml

from tests.roundtrip.habits import COMMON, TEXT, Out
from tests.roundtrip.layout import Layout
from tests.roundtrip.truth import Picture
from tests.roundtrip.writers.boxes import BOXES
from tests.roundtrip.writers.labels import _by_split

HABITS = COMMON | TEXT | {"missing", "gaps"}
FAULTS = ("unknown_class", "label_without_picture", "wrong_nc")


def _numbers(out: Out) -> list[str | None]:
    """Names by number; by habit one number in the middle is of a class that never occurs."""
    names: list[str | None] = list(out.truth.classes)
    return [*names[:1], "unused thing", *names[1:]] if out.habits.gaps else names


def _label(out: Out, path: str, picture: Picture, outlines: bool = False) -> None:
    if out.lacks_label(picture):
        return
    names = _numbers(out)
    lines = []
    for thing in picture.things:
        x, y, w, h = thing.box
        values = [
            (x + w / 2) / picture.width,
            (y + h / 2) / picture.height,
            w / picture.width,
            h / picture.height,
        ]
        if outlines:
            values = [v for px, py in thing.outline for v in (px / picture.width, py / picture.height)]
        lines.append(" ".join([str(names.index(thing.name)), *(f"{v:.6f}" for v in values)]))
    if out.habits.fault == "unknown_class" and picture is out.truth.pictures[0]:
        lines.append(f"{len(names) + 3} 0.5 0.5 0.2 0.2")
        out.refuse = "a class beyond the names"
    out.text(path, lines)


def _yaml(out: Out, paths: dict[str, str]) -> None:
    """data.yaml: names as a list or by number, a path for each split."""
    names = [out.spelt(str(name)) for name in _numbers(out)]
    style = out.truth.pictures[0].number
    tree: dict[str, Any] = {"path": "../datasets/mine"} if style % 3 == 0 else {}
    tree |= paths
    if style % 2 or out.habits.fault == "wrong_nc":
        tree["nc"] = len(names) + 2 * (out.habits.fault == "wrong_nc")
    if out.habits.fault == "wrong_nc":
        out.must_report.append(r"\bnc\b")
    tree["names"] = names if style % 2 else dict(enumerate(names))
    text = yaml.safe_dump(tree, allow_unicode=True, sort_keys=False)
    out.write("data.yaml", out.bytes(text))


def _extra(out: Out, folder: str) -> None:
    """By habit, a label file whose picture is gone."""
    if out.habits.fault == "label_without_picture":
        out.text(posixpath.join(folder, "gone_9.txt"), ["0 0.5 0.5 0.2 0.2"])
        out.must_report.append(r"label|without|no picture|gone_9")


def yolo(out: Out) -> None:
    """images/<split> and labels/<split>."""
    images, labels = out.folder("images"), out.folder("labels")
    for picture in out.truth.pictures:
        out.picture(posixpath.join(images, out.split(picture)), picture)
        path = posixpath.join(labels, out.split(picture), out.stem(picture) + out.ending(".txt"))
        _label(out, path, picture)
    split = out.split(out.truth.pictures[0])
    _yaml(out, {_key(s): f"{images}/{out.folder(out.words[s])}" for s in out.truth.splits})
    _extra(out, posixpath.join(labels, split))
    out.stray(posixpath.join(images, split))


def _key(split: str) -> str:
    return {"validation": "val"}.get(split, split)


def _in_splits(out: Out, outlines: bool) -> None:
    for picture in out.truth.pictures:
        out.picture(posixpath.join(out.split(picture), "images"), picture)
        path = posixpath.join(out.split(picture), "labels", out.stem(picture) + out.ending(".txt"))
        _label(out, path, picture, outlines)
    _yaml(out, {_key(s): f"../{out.folder(out.words[s])}/images" for s in out.truth.splits})
    split = out.split(out.truth.pictures[0])
    _extra(out, posixpath.join(split, "labels"))
    out.stray(posixpath.join(split, "images"))


def yolo_splits(out: Out) -> None:
    """<split>/images and <split>/labels, as Roboflow exports it."""
    _in_splits(out, outlines=False)


def yolo_outlines(out: Out) -> None:
    """The same with outlines instead of boxes."""
    _in_splits(out, outlines=True)


def yolo_lists(out: Out) -> None:
    """data.yaml that names lists of pictures."""
    for split, pictures in _by_split(out).items():
        lines = []
        for picture in pictures:
            path = out.picture("images", picture)
            _label(out, f"labels/{out.stem(picture)}{out.ending('.txt')}", picture)
            lines.append(out.written_path(path))
        out.text(f"{out.words[split]}.txt", lines)
    _yaml(out, {_key(s): f"{out.words[s]}.txt" for s in out.truth.splits})


def yolo_beside(out: Out) -> None:
    """x.txt beside x.jpg, names in classes.txt (LabelImg) or in data.yaml."""
    for picture in out.truth.pictures:
        folder = out.split(picture) or "images"
        path = out.picture(folder, picture)
        _label(out, posixpath.splitext(path)[0] + out.ending(".txt"), picture)
    folder = out.split(out.truth.pictures[0]) or "images"
    if out.truth.pictures[0].number % 2:
        names = [out.spelt(str(name)) for name in _numbers(out)]
        out.text(posixpath.join("" if out.truth.splits else folder, "classes.txt"), names, positional=True)
    else:
        _yaml(out, {_key(s): out.folder(out.words[s]) for s in out.truth.splits})
    out.stray(folder)


def yolo_cvat(out: Out) -> None:
    """CVAT's YOLO 1.1: obj.data, obj.names, train.txt, obj_train_data/."""
    data = [f"classes = {len(_numbers(out))}"]
    for split, pictures in _by_split(out).items():
        word = {"": "train", "train": "train", "validation": "valid", "test": "test"}[split]
        lines = []
        for picture in pictures:
            path = out.picture(f"obj_{word}_data", picture)
            _label(out, posixpath.splitext(path)[0] + ".txt", picture)
            lines.append(f"data/{path}")
        out.text(f"{word}.txt", lines)
        data.append(f"{word} = data/{word}.txt")
    out.text("obj.names", [out.spelt(str(name)) for name in _numbers(out)], positional=True)
    out.text("obj.data", [*data, "names = data/obj.names", "backup = backup/"])


LAYOUTS = [
    Layout("yolo", "objects", yolo, HABITS, FAULTS, tasks=BOXES),
    Layout(
        "yolo_splits", "objects", yolo_splits, HABITS, FAULTS, tasks=BOXES, splits="given", same_stems=True
    ),
    Layout(
        "yolo_outlines", "objects", yolo_outlines, HABITS, FAULTS[:2], tasks=BOXES, splits="given",
        diamonds=True,
    ),
    Layout(
        "yolo_lists", "objects", yolo_lists, HABITS - {"stray", "upper_folders", "nfd"} | {"paths"},
        ("unknown_class",), tasks=BOXES, splits="given",
    ),
    Layout("yolo_beside", "objects", yolo_beside, HABITS, ("unknown_class",), tasks=BOXES, same_stems=True),
    Layout(
        "yolo_cvat", "objects", yolo_cvat, HABITS - {"stray", "upper_folders"}, ("unknown_class",),
        tasks=BOXES,
    ),
]  # fmt: skip
