"""YOLO: a .txt for every picture with lines of class, centre x, y, width, height in shares of the sides.

The .txt lies in a folder ``labels`` where the picture's is called ``images``, or beside the picture. Longer
lines are outlines (x y x y ...), of which the box around is taken; with ``kpt_shape`` in data.yaml they are a
box and keypoints. Names of classes come from data.yaml (``names``), obj.names or classes.txt; splits from
data.yaml or obj.data (folders or lists of pictures), else from the names of folders.
"""

from __future__ import annotations

import math
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from tlray.errors import DataError
from tlray.findings import finding
from tlray.formats.base import Index, Look, objects, table
from tlray.formats.listing import Listing, below, lines_of, split_in, stem, text_of
from tlray.schema import OBJECTS, SPLITS

GIVES: tuple[str, ...] = (OBJECTS,)
_NAME_FILES = ("obj.names", "classes.txt", "labels/classes.txt", "predefined_classes.txt", "data/obj.names")
_PLAIN = 5  # numbers of a line that is a box: class, centre x, y, width, height
_SAMPLE = 20  # label files whose first bytes are looked at


@dataclass
class _Settings:
    """What data.yaml, obj.data and lists of names say of a data set."""

    names: dict[int, str] = field(default_factory=dict)
    where: str = ""  # the file that names the classes, for messages
    keypoints: int = 0  # numbers of keypoints after a box
    folders: dict[str, str] = field(default_factory=dict)  # folder -> split
    pictures: dict[str, str] = field(default_factory=dict)  # picture in a list of a split -> split
    files: list[str] = field(default_factory=list)  # that were read for all this


def look(listing: Listing) -> Look | None:
    """Pictures with a .txt of numbers where YOLO looks for it."""
    label_of = {path: label for path in listing.pictures if (label := _label(listing, path))}
    some = sorted(set(label_of.values()))
    some = some[:: max(1, len(some) // _SAMPLE)][:_SAMPLE]
    heads = [_rows(listing.head(label)) for label in some]
    filled = [rows for rows in heads if rows]
    # Texts of words beside pictures (captions, notes) are somebody else's.
    if not filled or not all(_is_yolo(rows) for rows in filled):
        return None
    settings_files = [f for f in listing.labels(".yaml", ".yml", ".data", ".names") if "/" not in f]
    names = [f for f in _NAME_FILES if listing.match(f)]
    lacks = "" if settings_files or names else "no names of classes (data.yaml with names, obj.names, classes.txt)"
    # Pictures without a label file belong to the layout, too: they may show nothing.
    folders = {posixpath.dirname(path) for path in label_of}
    inside = [path for path in listing.pictures if posixpath.dirname(path) in folders]
    summary = f"{len(set(label_of.values()))} .txt of boxes"
    return Look(summary, inside, [*label_of.values(), *settings_files, *names], lacks)


def _rows(head: bytes) -> list[list[str]]:
    return [line.split() for line in head.decode("utf-8-sig", errors="replace").splitlines()[:20] if line.split()]


def _is_yolo(rows: Sequence[Sequence[str]]) -> bool:
    """Whether lines are a whole number and four or more numbers; the last may be cut off."""
    for row in rows[: max(1, len(rows) - 1)]:
        try:
            values = [float(cell) for cell in row]
        except ValueError:
            return False
        if len(values) < _PLAIN or values[0] != int(values[0]):
            return False
    return True


def index(listing: Listing, column: str) -> Index:
    """Table of (path, split, objects); boxes are (x, y, width, height) in shares of the sides.

    Raises DataError for lines that are no box or outline, classes without a name, and no names at all.
    """
    settings = _settings(listing)
    label_of = {path: _label(listing, path) for path in listing.pictures}
    folders = {posixpath.dirname(path) for path, label in label_of.items() if label}
    listed = settings.pictures
    pictures = [path for path in listing.pictures if path in listed or posixpath.dirname(path) in folders]
    if not pictures:
        raise DataError(
            f"{listing.root}: no picture has a label file; accepted: images/a.jpg with labels/a.txt, or "
            "a.jpg with a.txt beside it"
        )
    outside = [path for path in pictures if listed and path not in listed]
    pictures = [path for path in pictures if not listed or path in listed]
    labels = [label_of[path] for path in pictures]
    contents = iter(listing.read_all([label for label in labels if label]))
    rows, unlabelled, counts = [], [], Counter[str]()
    notes: dict[str, list[str]] = {"double": [], "keypoints": []}
    for path, label in zip(pictures, labels, strict=True):
        boxes: list[tuple[str, list[float]]] = []
        if label:
            boxes = _boxes(listing.where(label), next(contents), settings, notes)
            counts.update(name for name, _ in boxes)
        else:
            unlabelled.append(path)
        split = listed.get(path) or _split(path, settings.folders)
        rows.append({"path": path, "split": split, OBJECTS: objects(boxes)})
    if not any(labels):
        raise DataError(f"{listing.root}: none of the {len(pictures)} pictures has a label file")
    used = {label for label in label_of.values() if label}
    lost = [f for f in listing.labels(".txt") if f not in used and f not in settings.files and _lost(f, listing)]
    never = [name for name in settings.names.values() if name and not counts[name]]
    findings = [
        *finding("warning", "no_label_file", unlabelled, "{n} pictures have no label file (taken as without objects)"),
        *finding("warning", "label_without_picture", lost, "{n} label files have no picture (passed over)"),
        *finding("warning", "in_no_list", outside, f"{{n}} pictures stand in no list of {settings.where} (left out)"),
        *finding("warning", "class_nowhere", never, "{n} classes have no box"),
        *finding("warning", "double_box", notes["double"], "{n} boxes stand twice in their file (taken once)"),
        *finding("info", "keypoints", notes["keypoints"], "{n} files hold keypoints (their boxes are taken)"),
    ]  # fmt: skip
    return Index(table(rows, OBJECTS), relative=True, findings=findings)


def _lost(path: str, listing: Listing) -> bool:
    return _is_yolo(rows) if (rows := _rows(listing.head(path))) else False


def _label(listing: Listing, picture: str) -> str:
    """Path of a picture's label file: in ``labels`` beside the last folder ``images``, or beside the picture;
    "" where there is none. Names in any case."""
    parts = stem(picture).split("/")
    at = [i for i, part in enumerate(parts[:-1]) if part.lower() == "images"]
    likely = ["/".join([*parts[: at[-1]], "labels", *parts[at[-1] + 1 :]])] if at else []
    likely.append("/".join(parts))
    return next((file for name in likely if (file := listing.match(f"{name}.txt"))), "")


def _split(picture: str, folders: Mapping[str, str]) -> str | None:
    """By data.yaml, else by the name of a folder."""
    for folder in sorted(folders, key=len, reverse=True):
        if picture.startswith(f"{folder}/"):
            return folders[folder]
    splits = (split_in(part.removeprefix("obj_")) for part in picture.split("/")[:-1])
    return next((split for split in splits if split), None)


# ---- names and splits


def _settings(listing: Listing) -> _Settings:
    files = [f for f in listing.labels(".yaml", ".yml") if "/" not in f or f == listing.named]
    for file in files:
        tree = _yaml(listing, file)
        if isinstance(tree, dict) and "names" in tree:
            return _from_yaml(listing, file, tree)
    settings = _Settings()
    data = next((f for f in listing.labels(".data") if "/" not in f or f == listing.named), None)
    if data is not None:
        settings.where = listing.where(data)
        settings.files.append(data)
        pairs = (line.partition("=") for line in lines_of(listing.text(data)))
        for key, _, value in pairs:
            if key.strip().lower() in SPLITS:
                _add_split(listing, settings, SPLITS[key.strip().lower()], [value.strip()], "")
    for name in ([f for f in listing.labels(".names")], *([m] for n in _NAME_FILES if (m := listing.match(n)))):
        if name:
            lines = [line.strip() for line in lines_of(listing.text(name[0]))]
            while lines and not lines[-1]:
                lines.pop()
            settings.names = dict(enumerate(lines))  # a blank line keeps its number
            settings.where = listing.where(name[0])
            settings.files.append(name[0])
            return settings
    raise DataError(
        f"{listing.root}: no names of classes; accepted: data.yaml with names, obj.names, or classes.txt"
    )


def _yaml(listing: Listing, file: str) -> Any:
    try:
        return yaml.safe_load(listing.text(file))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise DataError(f"{listing.where(file)}{line}: no valid YAML; accepted: a mapping with names") from None


def _from_yaml(listing: Listing, file: str, tree: Mapping[str, Any]) -> _Settings:
    where = listing.where(file)
    names = tree["names"]
    pairs = dict(enumerate(names)) if isinstance(names, list) else names
    try:
        by_number = {int(key): str(name).strip() for key, name in pairs.items()}
    except (AttributeError, TypeError, ValueError):
        raise DataError(f"{where}: names = {names!r}; accepted: a list, or names by number") from None
    count = tree.get("nc")
    if count is not None and count != len(by_number):
        raise DataError(f"{where}: nc = {count!r}, but {len(by_number)} names; accepted: as many names as nc")
    settings = _Settings(by_number, where, files=[file])
    shape = tree.get("kpt_shape")
    if shape is not None:
        if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(n, int) for n in shape)):
            raise DataError(f"{where}: kpt_shape = {shape!r}; accepted: [points, 2 or 3]")
        settings.keypoints = shape[0] * shape[1]
    base = str(tree.get("path") or "").replace("\\", "/")
    for key, split in SPLITS.items():
        value = tree.get(key)
        if value:
            _add_split(listing, settings, split, value if isinstance(value, list) else [value], base)
    return settings


def _add_split(listing: Listing, settings: _Settings, split: str, values: Sequence[Any], base: str) -> None:
    """Folders and lists of pictures of a split. Paths of another machine are taken by their ends."""
    for value in values:
        text = posixpath.normpath(str(value).replace("\\", "/"))
        full = posixpath.normpath(posixpath.join(base, text)) if base else text
        tails = [full, text]
        for path in (full, text):
            parts = [part for part in path.split("/") if part not in ("..", ".", "")]
            tails += ["/".join(parts[n:]) for n in range(len(parts))]
        for path in tails:
            if path.lower().endswith(".txt") and (file := listing.match(path)):
                settings.files.append(file)
                _add_list(listing, settings, split, file)
                break
            if not path.lower().endswith(".txt") and (folder := _folder(listing, path)):
                settings.folders.setdefault(folder, split)
                break


def _folder(listing: Listing, path: str) -> str | None:
    for folder in (path, f"images/{path}"):
        if folder in listing.folders:
            return folder
    same = [folder for folder in listing.folders if folder.lower() == path.lower()]
    return same[0] if len(same) == 1 else None


def _add_list(listing: Listing, settings: _Settings, split: str, file: str) -> None:
    """Pictures of a list, one a line; their paths start at the list, at the root, or on another machine."""
    for number, line in enumerate(lines_of(listing.text(file)), 1):
        text = line.strip().replace("\\", "/")
        if not text:
            continue
        parts = [part for part in text.split("/") if part not in ("..", ".", "")]
        likely = [posixpath.join(posixpath.dirname(file), text), text]
        likely += ["/".join(parts[n:]) for n in range(len(parts))]
        match = next((p for t in likely if (plain := below(t)) and (p := listing.match(plain))), None)
        if match is None:
            raise DataError(
                f"{listing.where(file)} line {number}: {line.strip()!r} is not there; accepted: pictures "
                f"below {listing.root}"
            )
        if settings.pictures.setdefault(match, split) != split:
            raise DataError(
                f"{listing.where(file)} line {number}: {match!r} is in {settings.pictures[match]}, too; "
                "accepted: one split for each picture"
            )


# ---- boxes


def _boxes(
    where: str, data: bytes, settings: _Settings, notes: Mapping[str, list[str]]
) -> list[tuple[str, list[float]]]:
    boxes: list[tuple[str, list[float]]] = []
    seen: set[tuple[float, ...]] = set()
    for number, line in enumerate(lines_of(text_of(where, data)), 1):
        parts = line.split()
        if not parts:
            continue
        here = f"{where} line {number}"
        try:
            label, *values = [float(part) for part in parts]
        except ValueError:
            raise DataError(f"{here}: {line.strip()!r}; accepted: numbers, class x y width height") from None
        if not settings.names.get(int(label) if math.isfinite(label) and label == int(label) else -1):
            known = ", ".join(f"{k} ({n})" for k, n in [*settings.names.items()][:20] if n)
            raise DataError(f"{here}: class {parts[0]}; accepted by {settings.where}: {known}")
        if not all(map(math.isfinite, values)) or max(map(abs, values), default=0) > 2:
            raise DataError(f"{here}: {line.strip()!r}; accepted: shares of the picture's sides, 0 to 1")
        if (label, *values) in seen:
            notes["double"].append(f"{where} line {number}")
            continue
        seen.add((label, *values))
        boxes.append((settings.names[int(label)], _box(here, values, settings.keypoints)))
        if settings.keypoints and (not notes["keypoints"] or notes["keypoints"][-1] != where):
            notes["keypoints"].append(where)
    return boxes


def _box(here: str, values: Sequence[float], keypoints: int) -> list[float]:
    """x, y, width, height of a line's numbers after the class."""
    if len(values) == 4 or (keypoints and len(values) == 4 + keypoints):
        x, y, w, h = values[:4]
        return [x - w / 2, y - h / 2, w, h]
    if keypoints:
        raise DataError(
            f"{here}: {len(values) + 1} numbers; accepted: class, box and {keypoints} of keypoints (kpt_shape)"
        )
    if len(values) == 5:
        raise DataError(f"{here}: 6 numbers, as predictions with a score have; accepted: class x y width height")
    # A box and points of (x, y, visible) has 4 + 3n numbers, the third of each 0, 1 or 2.
    if len(values) % 2 or len(values) < 6:
        raise DataError(
            f"{here}: {len(values) + 1} numbers; accepted: class x y width height, an outline (x y pairs), or "
            "keypoints with kpt_shape in data.yaml"
        )
    if (len(values) - 4) % 3 == 0 and len(values) > 9 and all(v in (0, 1, 2) for v in values[6::3]):
        raise DataError(f"{here}: keypoints, it seems; accepted: kpt_shape in data.yaml")
    xs, ys = values[::2], values[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]

