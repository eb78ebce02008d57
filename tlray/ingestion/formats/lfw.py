"""Names of people as names of files, as in Labeled Faces in the Wild: ``Aaron_Eckhart_0001.jpg``.

All pictures are in one folder, or in one for each split. Read only where nearly all names end in ``_`` and a
number, at least two people have several pictures, and no other file can be a label file: cameras and films
number their pictures in the same way (``IMG_0001.jpg``, ``frame_0001.jpg``).
"""

from __future__ import annotations

import re
from collections import defaultdict

from tlray.data.schema import LABEL
from tlray.errors import DataError
from tlray.ingestion.findings import finding
from tlray.ingestion.formats import heuristics
from tlray.ingestion.formats.base import Index, Look, table
from tlray.ingestion.formats.listing import Listing, stem

GIVES: tuple[str, ...] = (LABEL,)
_NAME = re.compile(r"([^\d]+)_(\d{3,5})", re.DOTALL)
_SHARE = 0.9  # share of the pictures whose names must have that form
# Names that cameras, phones, scanners and video tools give to their files.
_WORDS = """
img image images dsc dscn dscf dji gopr gopro pict pic picture photo mvi mov vid video clip frame frames scan
screenshot capture file untitled p pxl sam cimg imag hpim kif wp whatsapp snapshot thumb tile patch crop slice
train val test sample page doc document out output render mask label fig cam camera scene view shot still
"""
_COUNTERS = frozenset(_WORDS.split())


def look(listing: Listing) -> Look | None:
    """Pictures named after people with numbers, where no other file can be a label file."""
    if listing.named:
        return None
    people = _people(listing)
    if not people:
        return None
    pictures = [path for paths in people.values() for path in paths]
    labels = heuristics.label_files(listing)
    summary = f"{len(pictures)} pictures of {len(people)} names with numbers"
    lacks = f"{labels[0]} may hold the labels" if labels else ""
    return Look(summary, pictures, [], lacks)


def index(listing: Listing, column: str) -> Index:
    """Table of (path, split, label): the label is the person. Raises DataError for other names."""
    people = _people(listing)
    if not people:
        raise DataError(
            f"{listing.root}: no pictures called as in Aaron_Eckhart_0001.jpg, two people or more with "
            "several each; accepted: such names, or a folder for each person"
        )
    rows = [
        {"path": path, "split": heuristics.folder_split(path), LABEL: name}
        for name, paths in people.items()
        for path in paths
    ]
    labelled = {row["path"] for row in rows}
    without_number = [path for path in listing.pictures if path not in labelled]
    return Index(
        table(rows, LABEL),
        kinds={LABEL: "identity"},
        ignored={"names without a number": len(without_number)} if without_number else {},
        findings=finding(
            "warning", "no_label", without_number, "{n} pictures have names without a number (left out)"
        ),
    )


def _people(listing: Listing) -> dict[str, list[str]]:
    """Name of a person -> pictures; empty where file names have another form."""
    folders = {path.rpartition("/")[0] for path in listing.pictures}
    # One folder, or one for each split; otherwise the folders may be the people.
    if len(folders) > 1 and not all(heuristics.folder_split(f"{folder}/x") for folder in folders):
        return {}
    people: dict[str, list[str]] = defaultdict(list)
    for path in listing.pictures:
        match = _NAME.fullmatch(stem(path).rpartition("/")[2])
        if match is not None and re.split("[-_ ]", match[1].lower())[0] not in _COUNTERS:
            people[match[1]].append(path)
    num_matching = sum(map(len, people.values()))
    with_several = [name for name, paths in people.items() if len(paths) > 1]
    # People have a given name and a family name; one word and a number seems to be a series of pictures.
    with_two_names = [name for name in people if re.search(r"[^\W\d_]_[^\W\d_]", name)]
    if (
        num_matching < _SHARE * len(listing.pictures)
        or len(with_several) < 2
        or len(with_two_names) < len(people) / 2
    ):
        return {}
    return dict(people)
