"""YOLO: for every ``images/**/x.jpg`` a ``labels/**/x.txt`` with lines of class, centre x, y, width, height.

Also ``<split>/images`` beside ``<split>/labels``. The four numbers are shares of the picture's sides; longer
lines are outlines (x y x y ...), of which the box around is taken. A picture without a file shows nothing.
Names of classes come from data.yaml (``names``) or classes.txt, splits from the folders' names, or from
data.yaml where its folders are there.
"""

from __future__ import annotations

import math
import posixpath
from collections import Counter

import pyarrow as pa
import yaml
from pyarrow import fs as pafs

from tlray.errors import DataError
from tlray.formats import SPLITS, Boxes, is_picture, objects_table, read_all, split_in, text_of, walk

_PARTS = ("images", "labels")


def fits(fs: pafs.FileSystem, root: str) -> int:
    """3 (surer than folders and tables) where there is a folder of labels beside one of pictures."""
    files = walk(fs, root)
    return 3 * int(bool({_label(f) for f in files if is_picture(f)} & set(files)))


def index(fs: pafs.FileSystem, root: str) -> pa.Table:
    """Table of (path, split, objects), sorted by path; boxes are (x, y, width, height) in shares.

    Raises DataError for lines that are none of the two kinds, classes without a name, and no names at all.
    """
    files = walk(fs, root)
    there = set(files)
    pictures = [path for path in files if is_picture(path) and _label(path)]
    names, folders = _names(fs, root, there)
    labels = [_label(path) if _label(path) in there else "" for path in pictures]
    read = iter(read_all(fs, [posixpath.join(root, label) for label in labels if label]))
    rows = []
    for path, label in zip(pictures, labels, strict=True):
        boxes = _boxes(posixpath.join(root, label), next(read), names) if label else []
        rows.append((path, _split(path, folders), boxes))
    if not rows:
        raise DataError(f"{root}: no pictures in a folder images; accepted: images/*.jpg beside labels/*.txt")
    ignored = Counter({"labels without a picture": len({f for f in files if _is_label(f)} - set(labels))})
    return objects_table(rows, ignored, relative=True)


def _label(picture: str) -> str:
    """Path of a picture's labels: the last folder ``images`` becomes ``labels``; "" where there is none."""
    parts = posixpath.splitext(picture)[0].split("/")
    at = [i for i, part in enumerate(parts[:-1]) if part == _PARTS[0]]
    return "/".join([*parts[: at[-1]], _PARTS[1], *parts[at[-1] + 1 :]]) + ".txt" if at else ""


def _is_label(path: str) -> bool:
    return path.endswith(".txt") and _PARTS[1] in path.split("/")[:-1] and not path.endswith("/classes.txt")


def _split(picture: str, folders: dict[str, str]) -> str | None:
    """By data.yaml, else by the folder's name."""
    for folder, split in folders.items():
        if picture.startswith(f"{folder}/"):
            return split
    found = (split_in(part) for part in picture.split("/")[:-1])
    return next((split for split in found if split), None)


def _names(fs: pafs.FileSystem, root: str, there: set[str]) -> tuple[dict[int, str], dict[str, str]]:
    """Names of classes by number, and split by folder as far as data.yaml tells truly."""
    for file in sorted(f for f in there if "/" not in f and f.endswith((".yaml", ".yml"))):
        where = posixpath.join(root, file)
        try:
            tree = yaml.safe_load(next(read_all(fs, [where])))
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f" line {mark.line + 1}" if mark else ""
            raise DataError(f"{where}{line}: no valid YAML; accepted: a mapping with names") from None
        if not isinstance(tree, dict) or "names" not in tree:
            continue
        told = tree["names"]
        pairs = dict(enumerate(told)) if isinstance(told, list) else told
        if not isinstance(pairs, dict) or not all(isinstance(key, int) for key in pairs):
            raise DataError(f"{where}: names = {told!r}; accepted: a list, or names by number")
        return {key: str(name) for key, name in pairs.items()}, _folders(tree, there)
    for file in ("classes.txt", "labels/classes.txt"):
        if file in there:
            where = posixpath.join(root, file)
            text = text_of(where, next(read_all(fs, [where])))
            return dict(enumerate(line.strip() for line in text.splitlines() if line.strip())), {}
    raise DataError(f"{root}: no names of classes; accepted: data.yaml with names, or classes.txt")


def _folders(tree: dict[str, object], there: set[str]) -> dict[str, str]:
    """Folder -> split; the paths in such files often hold elsewhere only, and then the names decide."""
    found = {}
    for key, split in SPLITS.items():
        values = tree.get(key)
        for value in values if isinstance(values, list) else [values]:
            path = posixpath.normpath(str(value)) if value else ""
            for folder in (path, path.removeprefix("../"), posixpath.join("images", path)):
                if folder not in ("", ".") and any(file.startswith(f"{folder}/") for file in there):
                    found[folder] = split
                    break
    return found


def _boxes(where: str, data: bytes, names: dict[int, str]) -> Boxes:
    boxes = []
    for number, line in enumerate(text_of(where, data).splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        here = f"{where} line {number}"
        try:
            label, *values = [float(part) for part in parts]
        except ValueError:
            raise DataError(f"{here}: {line.strip()!r}; accepted: numbers, class x y width height") from None
        if label not in names:
            known = ", ".join(f"{k} ({n})" for k, n in [*names.items()][:20])
            raise DataError(f"{here}: class {parts[0]}; accepted: {known}")
        if len(values) == 4:
            x, y, w, h = values
            box = [x - w / 2, y - h / 2, w, h]
        elif len(values) >= 6 and len(values) % 2 == 0:
            xs, ys = values[::2], values[1::2]
            box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        else:
            raise DataError(f"{here}: {len(parts)} numbers; accepted: class x y width height, or an outline")
        if max((abs(v) for v in values if math.isfinite(v)), default=0) > 2:
            raise DataError(f"{here}: {line.strip()!r}; accepted: shares of the picture's sides, 0 to 1")
        boxes.append((names[int(label)], box))
    return boxes
