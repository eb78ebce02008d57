"""What the names of files and folders suggest: words of layouts and splits, label files, folders of masks."""

from __future__ import annotations

import functools
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

from tlray.data import image
from tlray.data.schema import SPLITS
from tlray.errors import PictureError, StorageError
from tlray.ingestion.formats.listing import LABEL_ENDINGS, Listing, lines_of, stem

IMAGE_WORDS = frozenset({
    "image", "images", "img", "imgs", "pic", "pics", "picture", "pictures", "photo", "photos",
    "jpegimages", "jpegs", "jpgs", "input", "inputs", "original", "originals", "raw", "rgb", "data",
    "obj_train_data", "obj_valid_data", "obj_test_data",
})  # fmt: skip
LABEL_WORDS = frozenset({
    "label", "labels", "mask", "masks", "annotation", "annotations", "annot", "annots", "ann",
    "anns", "anno", "annos", "xml", "xmls", "json", "jsons", "gt", "gts", "groundtruth",
    "ground_truth", "ground-truth", "segmentation", "segmentations", "segmentationclass",
    "segmentationobject", "seg", "segs", "labelled", "bbox", "bboxes", "boxes", "target", "targets",
    "labeltxt", "imagesets", "matte", "mattes", "class_mask", "pixel_labels",
    "labels_my-project-name", "trimap", "trimaps",
})  # fmt: skip
_FILLERS = IMAGE_WORDS | LABEL_WORDS | {"obj", "set", "dataset", "split", "yolo", "coco"}
_WORDS_ALONE = IMAGE_WORDS | LABEL_WORDS
_LOOKED_INTO = 50  # files of each ending that are read: on object storage each costs a request
_SAMPLE = 6  # pictures whose headers are read to tell a mask from a photograph


def is_layout_word(name: str) -> bool:
    """Whether the name of a folder is a word of layouts (images, masks, JPEGImages) and not a class."""
    return name.strip().lower() in _WORDS_ALONE


def _split_and_rest(name: str) -> tuple[str | None, tuple[str, ...]]:
    """(the split that one word of a name means, None for no or several such words; the other words)."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.findall(r"[^\W\d_]+", spaced.lower())
    split_words = [word for word in words if word in SPLITS]
    other_words = tuple(word for word in words if word not in SPLITS)
    return (SPLITS[split_words[0]] if len(split_words) == 1 else None), other_words


def split_word(name: str) -> str | None:
    """The split that the whole name of a folder means, if any: train, val2017, Test_images,
    obj_train_data."""
    split, other_words = _split_and_rest(name)
    return split if set(other_words) <= _FILLERS else None


def folder_split(path: str) -> str | None:
    """The split that the nearest folder above a path with the name of a split means; None without any."""
    return next((split for part in reversed(path.split("/")[:-1]) if (split := split_word(part))), None)


def splits_among(names: Collection[str]) -> dict[str, str]:
    """Name -> split, for those names of folders or files side by side that mean splits.

    These are the words for splits, and names that differ by them alone: asl_train, asl_test.
    """
    families: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for name in sorted(names):
        split, other_words = _split_and_rest(name)
        if split is not None:
            families[() if set(other_words) <= _FILLERS else other_words][name] = split
    return {
        name: split
        for other_words, family in families.items()
        if not other_words or ("train" in family.values() and len(set(family.values())) > 1)
        for name, split in family.items()
    }


def label_files(listing: Listing) -> list[str]:
    """Files that seem to be labels: XML, JSON, tables that name pictures, texts of numbers.

    Of each ending only the first files are read.
    """
    num_of_ending = Counter[str]()
    files = []
    for path in listing.labels(*LABEL_ENDINGS):
        ending = posixpath.splitext(path)[1].lower()
        num_of_ending[ending] += 1
        if num_of_ending[ending] <= _LOOKED_INTO and _is_label_file(listing, path):
            files.append(path)
    return files


def _is_label_file(listing: Listing, path: str) -> bool:
    ending = posixpath.splitext(path)[1].lower()
    if ending in (".xml", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".data", ".names"):
        return True
    if ending in (".yaml", ".yml"):
        return "names" in listing.head_text(path)
    if ending in (".csv", ".tsv"):
        return names_pictures(listing, path)
    return ending == ".txt" and (names_pictures(listing, path) or _is_numbers(listing, path))


def names_pictures(listing: Listing, path: str) -> bool:
    """Whether the first lines of a text hold names of pictures that exist, with or without ending."""
    stems = _stems(listing)
    for line in _first_lines(listing, path)[:20]:
        for cell in line.replace("\t", ",").replace(";", ",").replace(" ", ",").split(","):
            name = cell.strip().strip("\"'").replace("\\", "/").rpartition("/")[2].lower()
            if name and (name in stems or (stem(name) in stems and "." in name)):
                return True
    return False


def _is_numbers(listing: Listing, path: str) -> bool:
    """Whether a text has rows of four numbers or more, as label files of boxes have."""
    lines = [line.split() for line in _first_lines(listing, path)[:20] if line.strip()]
    return bool(lines) and all(len(line) >= 4 and all(map(_is_number, line[1:5])) for line in lines)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _first_lines(listing: Listing, path: str) -> list[str]:
    try:
        return lines_of(listing.head_text(path))
    except StorageError:
        return []


@functools.lru_cache(maxsize=2)
def _stems(listing: Listing) -> frozenset[str]:
    """Stems of all pictures in lower case, without numbers of up to three digits: a column of counts would
    seem to name 7.jpg."""
    stems = (stem(path).rpartition("/")[2].lower() for path in listing.pictures)
    return frozenset(s for s in stems if not (s.isdigit() and len(s) < 4))


def parallel_folders(listing: Listing) -> tuple[str, str] | None:
    """(folder of pictures, folder of their masks), or None.

    Both hold pictures of the same names and sizes, in colour in the first folder, with a single channel or a
    palette in the second.
    """
    by_folder: dict[str, dict[str, str]] = defaultdict(dict)
    for path in listing.pictures:
        folder, _, name = path.rpartition("/")
        by_folder[folder][stem(name).lower()] = path
    folders = [folder for folder in sorted(by_folder) if folder]
    for i, this_folder in enumerate(folders):
        for other_folder in folders[i + 1 : i + 200]:
            pictures, other_pictures = by_folder[this_folder], by_folder[other_folder]
            shared = sorted(pictures.keys() & other_pictures.keys())
            if len(shared) < 2 or len(shared) < 0.9 * min(len(pictures), len(other_pictures)):
                continue
            sample = shared[:: max(1, len(shared) // _SAMPLE)][:_SAMPLE]
            if _masks(listing, [pictures[s] for s in sample], [other_pictures[s] for s in sample]):
                return this_folder, other_folder
            if _masks(listing, [other_pictures[s] for s in sample], [pictures[s] for s in sample]):
                return other_folder, this_folder
    return None


def _masks(listing: Listing, pictures: Sequence[str], candidates: Sequence[str]) -> bool:
    """Whether ``candidates`` look like masks of ``pictures``; only headers are read."""
    for picture, candidate in zip(pictures, candidates, strict=True):
        try:
            a, b = (image.header(listing.head(path)) for path in (picture, candidate))
        except (PictureError, StorageError):
            return False
        if (a.width, a.height) != (b.width, b.height) or a.mode in _FLAT or b.mode not in _FLAT:
            return False
    return True


_FLAT = ("1", "L", "P", "I", "I;16", "LA")  # modes of masks
