"""The label file of each picture: ``labels/x.txt`` of ``images/x.jpg``, or ``x.txt`` beside ``x.jpg``."""

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
class Pairs:
    """Pictures and their label files, by paths alone."""

    label_file_of: dict[str, str]  # picture -> label file
    pictures: list[str]  # all pictures in folders where label files are looked for
    texts: list[str]  # text files that may be label files by their path, of a picture or of none

    def orphans(self) -> list[str]:
        """Text files that belong to no picture."""
        used = set(self.label_file_of.values())
        return [path for path in self.texts if path not in used]


@functools.lru_cache(maxsize=2)
def find(listing: Listing) -> Pairs:
    """Pairs of pictures and label files, whatever the case of their paths."""
    texts = [f for f in listing.files if f.lower().endswith(".txt") and not _is_other(f)]
    exact = {stem(path): path for path in texts}
    by_stem: dict[str, list[str]] = defaultdict(list)
    in_labels: dict[str, list[str]] = defaultdict(list)  # by their path without the folder for labels
    for path in texts:
        by_stem[stem(path).lower()].append(path)
        key = _without(stem(path).lower(), _LABEL_FOLDERS)
        if key is not None:
            in_labels[key].append(path)
    label_file_of = {}
    for picture in listing.pictures:
        label = _label(picture, exact, by_stem, in_labels)
        if label:
            label_file_of[picture] = label
    folders = {posixpath.dirname(picture) for picture in label_file_of}
    label_folders = {posixpath.dirname(label) for label in label_file_of.values()}
    has_labels = any(folder.lower().split("/")[-1] in _LABEL_FOLDERS for folder in listing.folders)
    pictures = [
        p for p in listing.pictures
        if p in label_file_of or posixpath.dirname(p) in folders
        or (has_labels and _in_images(p)) or (label_file_of and _in_split_folder(p))
    ]  # fmt: skip
    texts = [
        text
        for text in texts
        if posixpath.dirname(text) in label_folders or _without(text.lower(), _LABEL_FOLDERS) is not None
    ]
    return Pairs(label_file_of, pictures, texts)


def expected(picture: str) -> str:
    """Where the label file of a picture is looked for first."""
    parts = stem(picture).split("/")
    position = _last_images(parts)
    if position is not None:
        parts[position] = _LABELS
    return "/".join(parts) + ".txt"


def _label(
    picture: str, exact: dict[str, str], by_stem: dict[str, list[str]], in_labels: dict[str, list[str]]
) -> str | None:
    beside, in_parallel_folder = stem(picture), stem(expected(picture))
    for text in (in_parallel_folder, beside):
        if text in exact:
            return exact[text]
        if len(candidates := by_stem.get(text.lower(), [])) == 1:
            return candidates[0]
    for key in (_without(beside.lower(), IMAGE_WORDS), beside.lower()):
        if key is not None and len(candidates := in_labels.get(key, [])) == 1:
            return candidates[0]
    for text in (f"{in_parallel_folder}{posixpath.splitext(picture)[1]}", picture):  # a.jpg.txt
        if len(candidates := by_stem.get(text.lower(), [])) == 1:
            return candidates[0]
    return None


def _without(path: str, words: tuple[str, ...] | frozenset[str]) -> str | None:
    """The path without the last folder that is one of the words; None where there is none."""
    parts = path.split("/")
    position = next((i for i in range(len(parts) - 2, -1, -1) if parts[i] in words), None)
    return None if position is None else "/".join([*parts[:position], *parts[position + 1 :]])


def _last_images(parts: list[str]) -> int | None:
    """Position of the last folder called images."""
    return next((i for i in range(len(parts) - 2, -1, -1) if parts[i].lower() == "images"), None)


def _in_images(picture: str) -> bool:
    return _last_images(picture.split("/")) is not None


def _in_split_folder(picture: str) -> bool:
    """Whether a picture lies in the folder of a split, which may hold no label file at all, as test/ may."""
    return any(part.lower() in SPLITS for part in picture.split("/")[:-1])


def _is_other(path: str) -> bool:
    """Whether a text file is a list of classes or pictures, or notes."""
    name = posixpath.basename(path).lower()
    if is_list_file(path) or name.startswith(_NOTES):
        return True
    return stem(name) in SPLITS and "/" not in path


def check(listing: Listing, pairs: Pairs) -> None:
    """Raises DataError where two pictures have one label file."""
    owner: dict[str, str] = {}
    for picture, label in pairs.label_file_of.items():
        if label in owner:
            raise DataError(
                f"{listing.where(label)}: is the label file of {owner[label]} and of {picture}; accepted: "
                "one picture for each label file"
            )
        owner[label] = picture
