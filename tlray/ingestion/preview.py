"""One HTML file that shows whether labels were understood: labelled pictures, counts and findings."""

from __future__ import annotations

import base64
import functools
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from tlray.data import image, schema, shards
from tlray.ingestion.report import Report

NUM_PICTURES = 24  # of each split
MOST_BYTES = 2_000_000  # of the whole file
# Side in px and JPEG quality of the pictures; the first with which the page is small enough is taken.
_SIZES = ((288, 80), (224, 75), (160, 70), (112, 60), (80, 50))
_MOST_CLASSES = 200  # rows of the table of counts
_LONGEST_NAME = 40  # characters of a class name in a caption


def render(
    files: Mapping[str, str],
    task: Any,
    kinds: Mapping[str, schema.Kind],
    names: Mapping[str, list[str]],
    report: Report,
    about: str,
) -> bytes:
    """The page as UTF-8, at most `MOST_BYTES`.

    ``files``: split -> URI of its first Parquet file, whose rows are in random order; ``kinds`` and
    ``names`` are the label columns and their classes, ``about`` a line on layout and task.
    Raises StorageError.
    """
    import jinja2

    rows = {split: _rows(uri, kinds) for split, uri in files.items()}
    source = resources.files("tlray.ingestion").joinpath("preview.html.j2").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    page = b""
    for side, quality in _SIZES:
        pages = {
            split: [shot(row, task, kinds, names, side, quality) for row in rows_of_split]
            for split, rows_of_split in rows.items()
        }
        page = template.render(
            source=report.source,
            about=about,
            shown=pages,
            taken=report.taken,
            counts=_counts(report),
            num_classes=len({name for split in report.counts.values() for name in split}),
            most_classes=_MOST_CLASSES,
            findings=report.findings,
            num_left_out=len(report.quarantined),
            left_out=report.quarantined[:20],
        ).encode()
        if len(page) <= MOST_BYTES:
            break
    return page


def _rows(uri: str, kinds: Mapping[str, schema.Kind]) -> list[dict[str, Any]]:
    """Some rows of a split: as many classes as possible, then the first rows."""
    shard = shards.Parquet(uri)
    table = shards.Handles().read(shard, 0, [schema.IMAGE, *kinds])
    labels = table.select(list(kinds)).to_pylist()
    shown_classes: set[int] = set()
    with_new_class: list[int] = []
    others: list[int] = []
    for row_number, row in enumerate(labels):
        classes = _classes(row, kinds)
        (with_new_class if classes - shown_classes else others).append(row_number)
        shown_classes |= classes
    return [
        table.slice(row_number, 1).to_pylist()[0]
        for row_number in sorted([*with_new_class, *others][:NUM_PICTURES])
    ]


def _classes(row: Mapping[str, Any], kinds: Mapping[str, schema.Kind]) -> set[int]:
    for column, kind in kinds.items():
        value = row[column]
        if kind in ("class", "identity"):
            return {value}
        if kind == "classes":
            return set(value)
        if kind == "objects":
            return set(value["category"])
    return set()


def shot(
    row: dict[str, Any],
    task: Any,
    kinds: Mapping[str, schema.Kind],
    names: Mapping[str, list[str]],
    side: int,
    quality: int,
) -> dict[str, str]:
    """A picture with its labels drawn: ``src`` (data URI), ``caption``, ``path``."""
    picture = image.decode(row[schema.IMAGE]["bytes"])
    width, height = picture.size
    scale = min(1.0, side / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    row = dict(row)
    for column, kind in kinds.items():
        if kind == "objects":
            sides = (size[0] / width, size[1] / height) * 2
            boxes = [[v * s for v, s in zip(box, sides, strict=True)] for box in row[column]["bbox"]]
            row[column] = {**row[column], "bbox": boxes}
        elif kind == "mask":
            row[column] = {**row[column], "bytes": image.shrink_mask(row[column]["bytes"], size)}
    column = next(iter(kinds))
    drawn = task.draw_truth(picture.resize(size), row, list(names[column]))
    out = io.BytesIO()
    drawn.save(out, "JPEG", quality=quality)
    return {
        "src": "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode(),
        "caption": _caption(row, kinds, names),
        "path": str(row[schema.IMAGE]["path"]),
        "size": f"{width} x {height}",
    }


def _caption(row: Mapping[str, Any], kinds: Mapping[str, schema.Kind], names: Mapping[str, list[str]]) -> str:
    for column, kind in kinds.items():
        name_of = functools.partial(_name, names[column])
        value = row[column]
        if kind in ("class", "identity"):
            return name_of(value)
        if kind == "classes":
            return ", ".join(map(name_of, value)) or "no class"
        if kind == "objects":
            counts = Counter(map(name_of, value["category"]))
            return ", ".join(f"{number} {name}" for name, number in counts.most_common()) or "no object"
    return ""


def _name(names: Sequence[str], number: int) -> str:
    return names[number][:_LONGEST_NAME]


def _counts(report: Report) -> list[tuple[str, list[int]]]:
    """Class and how often each split shows it, most frequent first."""
    total = Counter[str]()
    for by_class in report.counts.values():
        total.update(by_class)
    return [
        (name, [by_class.get(name, 0) for by_class in report.counts.values()])
        for name, _ in total.most_common(_MOST_CLASSES)
    ]
