"""Splits of pictures with masks: by names of folders, else by lists of pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from tlray.data.schema import SPLITS
from tlray.errors import DataError
from tlray.ingestion.formats.listing import Listing, lines_of, stem
from tlray.ingestion.formats.masks.pairs import Pairs


def lists(listing: Listing) -> list[str]:
    """Text files named after splits; only those in a folder for segmentation, if there are any."""
    files = [
        path for path in listing.labels(".txt")
        if stem(path.rpartition("/")[2]).lower() in (*SPLITS, "trainval")
    ]  # fmt: skip
    of_segmentation = [path for path in files if "segmentation/" in path.lower()]
    return of_segmentation or [path for path in files if "imagesets/" not in path.lower()] or files


def find(listing: Listing, pairs: Pairs) -> tuple[dict[str, str], set[str]]:
    """(picture -> split, by folders, else by lists; pictures that are in none of the lists)."""
    folder_splits = {
        path: split for path, split in pairs.split_of.items() if split and path in pairs.masks_of
    }
    files = {stem(path.rpartition("/")[2]).lower(): path for path in lists(listing)}
    if folder_splits or not files:
        return folder_splits, set()
    if "train" in files:
        files.pop("trainval", None)
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in pairs.masks_of:
        by_name[stem(path.rpartition("/")[2]).lower()].append(path)
    listed_splits: dict[str, str] = {}
    for name, file in files.items():
        split = SPLITS.get(name, "train")
        for number, line in enumerate(lines_of(listing.text(file)), 1):
            path = _picture_in(line, by_name)
            if not path:
                continue
            if listed_splits.setdefault(path, split) != split:
                raise DataError(
                    f"{listing.where(file)} line {number}: {path} is in the list of {listed_splits[path]}, "
                    "too; accepted: one"
                )
    if not listed_splits:
        return {}, set()
    return listed_splits, set(pairs.masks_of) - listed_splits.keys()


def check_validation(listing: Listing, pairs: Pairs, splits: Mapping[str, str]) -> None:
    """Raises DataError for a validation split without any mask: another would be cut from train."""
    if not splits or "validation" in splits.values():
        return
    without_mask = sorted(path for path in pairs.pictures_alone if pairs.split_of.get(path) == "validation")
    if not any(pairs.split_of.get(path) for path in pairs.masks_of):  # splits of lists
        by_name: dict[str, list[str]] = defaultdict(list)
        for path in pairs.pictures_alone:
            by_name[stem(path.rpartition("/")[2]).lower()].append(path)
        files = [f for f in lists(listing) if SPLITS.get(stem(f.rpartition("/")[2]).lower()) == "validation"]
        lines = [line for file in files for line in lines_of(listing.text(file))]
        without_mask = sorted(filter(None, (_picture_in(line, by_name) for line in lines)))
    if without_mask:
        raise DataError(
            f"{listing.root}: {len(without_mask)} pictures of validation, as {without_mask[0]}, and none has "
            "a mask; accepted: masks for some of them, or no validation split (one is cut from train then)"
        )


def _picture_in(line: str, by_name: dict[str, list[str]]) -> str:
    """The picture that a line of a list names, as a path or a stem, perhaps followed by its mask; "" =
    none."""
    for text in (line.strip(), line.split(" ")[0], line.split("\t")[0]):
        parts = text.strip("\"' ").replace("\\", "/").lower().split("/")
        candidates = by_name.get(parts[-1], []) or by_name.get(stem(parts[-1]), [])
        # Of several pictures of that name, the one whose folders are in the line, too.
        same_folder = [path for path in candidates if stem("/".join(parts)).endswith(stem(path).lower())]
        if len(same_folder or candidates) == 1:
            return (same_folder or candidates)[0]
    return ""
