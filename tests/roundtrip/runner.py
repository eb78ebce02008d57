"""One round trip: a set is written, ingested in this process, read back, and compared with the truth."""

from __future__ import annotations

import hashlib
import re
import tempfile
import traceback
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tests.roundtrip.habits import Habits, Out
from tests.roundtrip.layout import Layout
from tests.roundtrip.truth import Picture, Truth
from tlray.data import image, schema
from tlray.data.dataset import Dataset
from tlray.errors import TlrayError
from tlray.ingestion import ingest

COLUMNS = {
    "label": schema.LABEL,
    "identity": schema.LABEL,
    "labels": schema.LABELS,
    "objects": schema.OBJECTS,
    "mask": schema.MASK,
}
BOX_PX = 1.1  # a corner may be off by this much, since VOC counts from 1 and csv files round


def map_here(blocks: list[pa.Table], work: Callable[..., pa.Table], **settings: Any) -> Iterator[pa.Table]:
    """Do in this process what Ray's tasks do, and return the results in reverse order."""
    yield from [work(block, **settings) for block in blocks][::-1]


@dataclass
class Outcome:
    """How one round trip ended (right, refused, wrong or unexpected), and why."""

    kind: str
    why: str = ""


@dataclass
class Tally:
    """Round trips of one layout."""

    layout: str
    sets: int = 0
    right: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one."""
        self.sets += 1
        if outcome.kind == "right":
            self.right += 1
        elif outcome.kind == "refused":
            self.refused[reason(outcome.why)] += 1
        else:
            {"wrong": self.wrong, "unexpected": self.unexpected}[outcome.kind].append(outcome.why)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "layout": self.layout, "sets": self.sets, "right": self.right,
            "refused": dict(self.refused.most_common()), "wrong": len(self.wrong),
            "unexpected": len(self.unexpected),
        }  # fmt: skip


def reason(line: str) -> str:
    """A refusal without the paths, names and numbers of its set."""
    line = re.sub(r"/\S*/(in|out)\b\S*", "PATH", line)
    line = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", line)
    return re.sub(r"\d+", "N", line)[:160]


def trip(layout: Layout, truth: Truth, habits: Habits, words: dict[str, str], task: str) -> Outcome:
    """Write, ingest, read back, compare."""
    with tempfile.TemporaryDirectory(prefix="trip-") as folder:
        root, target = Path(folder, "in"), Path(folder, "out")
        root.mkdir()
        out = Out(root, habits, truth, words)
        layout.write(out)
        out.junk()
        try:
            result = ingest.ingest(str(root / out.source), str(target), task=task, seed=len(truth.pictures))
            wrong = compare(layout, out, result, Dataset.open(str(target)))
        except TlrayError as error:
            line = str(error)
            left = sorted(p.name for p in target.iterdir()) if target.exists() else []
            if "\n" in line or set(left) - {"preflight.json", "preflight.txt"}:
                return Outcome(
                    "wrong", _failure(layout, out, task, [f"refused with {line!r}, but left {left}"])
                )
            return Outcome("refused", line)
        except Exception:
            return Outcome("unexpected", _failure(layout, out, task, [traceback.format_exc(limit=-6)]))
        if out.refuse:
            wrong = [f"read, though it has to be refused: {out.refuse}"]
        if wrong:
            return Outcome("wrong", _failure(layout, out, task, [*wrong, result.report.to_text()]))
        return Outcome("right")


def _failure(layout: Layout, out: Out, task: str, lines: list[str]) -> str:
    """Everything that helps to understand a failure."""
    files = sorted(str(p.relative_to(out.root)) for p in out.root.rglob("*") if p.is_file())
    details = [
        f"{layout.name}, --task {task}, source {out.source or '.'}", f"habits: {out.habits}",
        f"words: {out.words}", f"classes: {out.truth.classes}", *lines[:-1][:8],
        *(f"  {p.split} {p.stem}{p.ending} {p.width}x{p.height} turn {p.turn}: "
          f"{p.label or p.labels or [(t.name, t.box) for t in p.things]}" for p in out.truth.pictures),
        "files: " + ", ".join(files), lines[-1],
    ]  # fmt: skip
    return "\n".join(details)


# ---- comparison


def compare(layout: Layout, out: Out, result: ingest.IngestResult, data: Dataset) -> list[str]:
    """Lines about all differences from the truth."""
    truth, column = out.truth, COLUMNS[layout.kind]
    known = {picture.sha256: picture for picture in truth.pictures}
    names = [plain(name) for name in data.labels(column)]
    wrong = [f"class {name!r} stands twice" for name, n in Counter(names).items() if n > 1]
    rows: dict[str, tuple[str, dict[str, Any]]] = {}
    for split in data.splits:
        for row in data.rows(split, range(data.num_rows(split))).to_pylist():
            key = image_key(row)
            if key in rows:
                wrong.append(f"{row['image']['path']} is in the data set twice")
            rows[key] = (split, row)
    for key, picture in known.items():
        if key not in rows and key not in out.may_lack | out.unlabelled:
            wrong.append(f"{picture.stem} is not in the data set")
    for key, (split, row) in rows.items():
        picture, where = known.get(key), row["image"]["path"]
        if picture is None:
            if key not in out.unlabelled:
                wrong.append(f"{where} is none of the pictures")
            elif layout.kind != "objects" or row[column]["category"]:
                wrong.append(f"{where} has labels, though nothing speaks of it")
            continue
        wrong += [
            f"{where}: {line}" for line in _row(layout, truth, picture, row, names, key in out.unlabelled)
        ]
        wrong += _split(truth, picture, split, where)
    wrong += _free_names(layout, truth, known, rows, names)
    wrong += _classes_in_train(layout, truth, rows, names)
    report = " ".join(
        [*(f"{f.kind} {f.message} {f.examples}" for f in result.report.findings),
         *(f"{q['path']} {q['kind']} {q['reason']}" for q in result.report.quarantined)]
    )  # fmt: skip
    wrong += [f"no finding like {p}" for p in out.must_report if not re.search(p, report, re.IGNORECASE)]
    return wrong


def image_key(row: dict[str, Any]) -> str:
    """SHA-256 of a picture, by which it is recognized."""
    return hashlib.sha256(row["image"]["bytes"]).hexdigest()


def plain(name: str) -> str:
    """A class name in the form in which names are compared."""
    return unicodedata.normalize("NFC", name).strip()


def _split(truth: Truth, picture: Picture, split: str, where: str) -> list[str]:
    """Differences in the split: a stated split stays, validation may be cut from train where none is
    stated."""
    if not truth.splits or split == picture.split:
        return []
    if picture.split == "train" and split == "validation" and "validation" not in truth.splits:
        return []
    return [f"{where}: in {split}, given was {picture.split}"]


def _row(
    layout: Layout, truth: Truth, picture: Picture, row: dict[str, Any], names: list[str], unlabelled: bool
) -> list[str]:
    """Differences in the labels and the size of one picture."""
    wrong = []
    if (row["width"], row["height"]) != (picture.width, picture.height):
        wrong.append(f"size {row['width']} x {row['height']}, not {picture.width} x {picture.height}")
    value = row[COLUMNS[layout.kind]]
    if layout.kind in ("label", "identity"):
        if unlabelled or names[value] != plain(picture.label):
            wrong.append(f"{names[value]!r}, not {picture.label!r}")
    elif layout.kind == "labels":
        read, right = {names[n] for n in value}, set(map(plain, picture.labels))
        if not (read <= right if unlabelled else read == right):
            wrong.append(f"{sorted(read)}, not {sorted(right)}")
    elif layout.kind == "objects":
        crowds = schema.flagged(value, schema.CROWD)
        read = zip(value["bbox"], value["category"], crowds, strict=True)
        read_boxes = [(names[n], box) for box, n, crowd in read if not crowd]
        things = [(plain(t.name), t.box) for t in picture.things]
        if read_boxes if unlabelled else not _same_boxes(read_boxes, things):
            wrong.append(f"boxes {read_boxes}, not {'none' if unlabelled else things}")
    elif layout.names != "free":
        wrong += _pixels(layout, truth, picture, image.decode_mask(value["bytes"]), names, unlabelled)
    return wrong


def _same_boxes(read: list[tuple[str, Any]], right: list[tuple[str, Any]]) -> bool:
    """Whether the boxes can be paired with equal ones: of the same class, each edge within `BOX_PX`."""
    unpaired = list(right)
    for name, (x, y, w, h) in read:
        for candidate in unpaired:
            x2, y2, w2, h2 = candidate[1]
            edges = (x - x2, y - y2, x + w - x2 - w2, y + h - y2 - h2)
            if name == candidate[0] and max(map(abs, edges)) <= BOX_PX:
                unpaired.remove(candidate)
                break
        else:
            return False
    return not unpaired


def _pixels(
    layout: Layout, truth: Truth, picture: Picture, read: npt.NDArray[Any], names: list[str], unlabelled: bool
) -> list[str]:
    right = picture.mask_HW(truth.classes)
    if read.shape != right.shape:
        return [f"mask of {read.shape}, not {right.shape}"]
    if unlabelled:
        return [] if (read == 255).all() else ["a mask, though it has none"]
    certain = np.ones(right.shape, bool)
    from_outlines = (
        layout.name == "coco_masks"
    )  # from outlines: edges may be off by one, and 0 has a name of its own
    if from_outlines:
        padded = np.pad(right, 1, mode="edge")
        h, w = right.shape
        certain = np.all([padded[y : y + h, x : x + w] == right for y in range(3) for x in range(3)], axis=0)
    class_names = [plain(name) for name in truth.classes]
    pairs = {(int(a), int(b)) for a, b in zip(read[certain], right[certain], strict=True)}
    differences = [
        f"pixels of {class_names[b]!r} are {names[a] if a < len(names) else a!r}"
        for a, b in sorted(pairs)
        if not (a < len(names) and names[a] == class_names[b]) and not (from_outlines and a == b == 0)
    ]
    return differences[:3]


def _free_names(
    layout: Layout,
    truth: Truth,
    known: dict[str, Picture],
    rows: dict[str, tuple[str, dict[str, Any]]],
    names: list[str],
) -> list[str]:
    """Differences where the layout has no class names: each class of the truth must be one of the data
    set."""
    if layout.names != "free":
        return []
    pairs: set[tuple[int, int]] = set()
    for key, (_, row) in rows.items():
        if key in known:
            read, right = image.decode_mask(row[schema.MASK]["bytes"]), known[key].mask_HW(truth.classes)
            if read.shape != right.shape:
                return [f"{row['image']['path']}: mask of {read.shape}, not {right.shape}"]
            pairs |= {(int(a), int(b)) for a, b in zip(read.ravel(), right.ravel(), strict=True)}
    one_to_one = len({a for a, _ in pairs}) == len(pairs) == len({b for _, b in pairs})
    if one_to_one and all(a < len(names) for a, _ in pairs):
        return []
    return [f"pixels {sorted(pairs)} (read, right), names {names}"]


def _classes_in_train(
    layout: Layout, truth: Truth, rows: dict[str, tuple[str, dict[str, Any]]], names: list[str]
) -> list[str]:
    """Classes of the truth that are not in train."""
    if layout.kind in ("identity", "mask"):
        return []
    in_train: set[str] = set()
    for split, row in rows.values():
        if split == "train":
            value = row[COLUMNS[layout.kind]]
            value = value["category"] if layout.kind == "objects" else value
            in_train |= {names[n] for n in (value if isinstance(value, list) else [value])}
    class_names = {plain(t.name) for p in truth.pictures for t in p.things} or set(map(plain, truth.classes))
    missing = sorted(class_names - in_train)
    return [f"not in train: {missing}"] if missing else []
