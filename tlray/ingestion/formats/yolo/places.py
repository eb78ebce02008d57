"""Which text file is a picture's: ``labels/x.txt`` for ``images/x.jpg``, or ``x.txt`` beside ``x.jpg``."""

from __future__ import annotations

import functools
import posixpath
from collections import defaultdict
from dataclasses import dataclass

from tlray.data.schema import SPLITS
from tlray.errors import DataError
from tlray.ingestion.formats.heuristics import IMAGE_WORDS
from tlray.ingestion.formats.listing import Listing, stem
from tlray.ingestion.formats.yolo.names import is_list_file

_LABELS = "labels"
_LABEL_FOLDERS = ("labels", "label", "labels_txt", "annotations", "annotation", "txt", "yolo", "yolo_labels")
_NOTES = ("readme", "license", "licence", "changelog", "requirements")


@dataclass(frozen=True)
class Places:
    """``pairs``: picture -> label file. ``pictures``: all in whose folders label files are looked for.
    ``texts``: files that may be labels by their names and places, paired or not."""

    pairs: dict[str, str]
    pictures: list[str]
    texts: list[str]

    def orphans(self) -> list[str]:
        """Texts that are no picture's."""
        used = set(self.pairs.values())
        return [path for path in self.texts if path not in used]


@functools.lru_cache(maxsize=2)
def find(listing: Listing) -> Places:
    """Pairs of pictures and label files by their paths alone, upper and lower case being the same."""
    texts = [f for f in listing.files if f.lower().endswith(".txt") and not _is_other(f)]
    exact = {stem(path): path for path in texts}
    by_place: dict[str, list[str]] = defaultdict(list)
    in_labels: dict[str, list[str]] = defaultdict(list)  # without the folder of labels: place of the picture
    for path in texts:
        by_place[stem(path).lower()].append(path)
        key = _without(stem(path).lower(), _LABEL_FOLDERS)
        if key is not None:
            in_labels[key].append(path)
    pairs = {}
    for picture in listing.pictures:
        label = _label(picture, exact, by_place, in_labels)
        if label:
            pairs[picture] = label
    folders = {posixpath.dirname(picture) for picture in pairs}
    beside = {posixpath.dirname(label) for label in pairs.values()}
    has_labels = any(folder.lower().split("/")[-1] in _LABEL_FOLDERS for folder in listing.folders)
    pictures = [
        p for p in listing.pictures
        if p in pairs or posixpath.dirname(p) in folders
        or (has_labels and _in_images(p)) or _split_beside(p, pairs)
    ]  # fmt: skip
    kept = [
        t for t in texts if posixpath.dirname(t) in beside or _without(t.lower(), _LABEL_FOLDERS) is not None
    ]
    return Places(pairs, pictures, kept)


def expected(picture: str) -> str:
    """Where a picture's label file is looked for first."""
    parts = stem(picture).split("/")
    at = _last_images(parts)
    return "/".join(parts if at is None else [*parts[:at], _LABELS, *parts[at + 1 :]]) + ".txt"


def _label(
    picture: str, exact: dict[str, str], by_place: dict[str, list[str]], in_labels: dict[str, list[str]]
) -> str | None:
    place = stem(picture)
    wanted = stem(expected(picture))
    for text in (wanted, place):  # Ultralytics' place before the one beside the picture
        if text in exact:
            return exact[text]
        if len(same := by_place.get(text.lower(), [])) == 1:
            return same[0]
    keys = [_without(place.lower(), IMAGE_WORDS), place.lower()]
    for key in keys:
        if key is not None and len(same := in_labels.get(key, [])) == 1:
            return same[0]
    for text in (f"{wanted}{posixpath.splitext(picture)[1]}", picture):  # a.jpg.txt
        if len(same := by_place.get(text.lower(), [])) == 1:
            return same[0]
    return None


def _without(path: str, words: tuple[str, ...] | frozenset[str]) -> str | None:
    """The path without the last folder that is one of the words; None where there is none."""
    parts = path.split("/")
    at = next((i for i in range(len(parts) - 2, -1, -1) if parts[i] in words), None)
    return None if at is None else "/".join([*parts[:at], *parts[at + 1 :]])


def _last_images(parts: list[str]) -> int | None:
    return next((i for i in range(len(parts) - 2, -1, -1) if parts[i].lower() == "images"), None)


def _in_images(picture: str) -> bool:
    return _last_images(picture.split("/")) is not None


def _split_beside(picture: str, pairs: dict[str, str]) -> bool:
    """Whether a picture lies in the folder of a split: test/ may be there without any label file."""
    return bool(pairs) and any(part.lower() in SPLITS for part in picture.split("/")[:-1])


def _is_other(path: str) -> bool:
    """Lists of names and pictures, and notes."""
    name = posixpath.basename(path).lower()
    if is_list_file(path) or name.startswith(_NOTES):
        return True
    return stem(name) in SPLITS and "/" not in path


def check(listing: Listing, places: Places) -> None:
    """Raises DataError where two pictures have one label file."""
    owner: dict[str, str] = {}
    for picture, label in places.pairs.items():
        if label in owner:
            raise DataError(
                f"{listing.where(label)}: is the label file of {owner[label]} and of {picture}; accepted: "
                "one picture for each label file"
            )
        owner[label] = picture
