"""Label files of one picture each, and which picture each is of: the one with its name."""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tlray.errors import DataError
from tlray.ingestion.findings import Finding, finding
from tlray.ingestion.formats import heuristics
from tlray.ingestion.formats.heuristics import folder_split
from tlray.ingestion.formats.listing import Listing, is_picture, stem
from tlray.ingestion.formats.picture_paths import PicturePaths, is_label_folder, key, pictures

_BY_STATED_NAME, _ABSENT = 3, 4  # ranks after those of `Pair`


@dataclass(frozen=True)
class Pair:
    """Pictures named as a label file; ``rank``: 0 beside it, 1 in the folder parallel to its, 2 elsewhere."""

    pictures: list[str]
    rank: int


def paired(listing: Listing, label_files: Sequence[str]) -> dict[str, Pair]:
    """Label file -> the pictures with its name that lie nearest to it."""
    locations = {picture: _location(picture) for picture in listing.pictures}
    return {file: _pair(listing, file, locations) for file in label_files}


def _pair(listing: Listing, label_file: str, locations: Mapping[str, tuple[str, ...]]) -> Pair:
    folder, _, name = stem(label_file).rpartition("/")
    known = pictures(listing)
    # a.jpg.xml is the label file of a.jpg.
    same_name = (known.by_name if is_picture(name) else known.by_stem).get(key(name), [])
    beside = [path for path in same_name if posixpath.dirname(path) == folder]
    if beside:
        return Pair(beside, 0)
    no_masks = [path for path in same_name if not is_label_folder(posixpath.dirname(path))] or same_name
    location = _location(label_file)
    parallel = [path for path in no_masks if locations[path][:-1] == location[:-1]]
    if parallel:
        return Pair(parallel, 1)
    split = folder_split(label_file)
    return Pair([path for path in no_masks if split is None or folder_split(path) in (None, split)], 2)


def _location(path: str) -> tuple[str, ...]:
    """Folders and stem of a path without words of layouts: equal for train/images/a and train/labels/a."""
    *folders, name = key(stem(path)).split("/")
    return (*(folder for folder in folders if not heuristics.is_layout_word(folder)), name)


def unlabelled(
    listing: Listing, labelled: Iterable[str], lacking: str
) -> tuple[list[Finding], dict[str, int]]:
    """A finding of the pictures without labels, and the number of pictures in folders of masks.

    ``lacking`` is what the pictures do not have, as in ".xml".
    """
    others = sorted(set(listing.pictures) - set(labelled))
    masks = [path for path in others if is_label_folder(posixpath.dirname(path))]
    without_labels = sorted(set(others) - set(masks))
    text = f"{{n}} pictures have no {lacking} (left out; they are not taken for pictures that show no object)"
    return finding("warning", "no_label_file", without_labels, text), (
        {"pictures of masks": len(masks)} if masks else {}
    )


def pictures_of(
    listing: Listing, picture_paths: PicturePaths, stated_names: Mapping[str, str], kind: str
) -> tuple[dict[str, str], list[Finding]]:
    """(label file -> its picture, findings): by the name of the label file, else by the name stated in it.

    ``stated_names``: label file -> name of the picture in it, "" for none. ``kind`` is what the label files
    are called, as in ".xml". A missing picture gets the path that it should have. Raises DataError where a
    label file may be of two pictures, or two label files are of one picture.
    """
    pairs = paired(listing, list(stated_names))
    picture_folders: dict[str, Counter[str]] = defaultdict(Counter)  # of the label files of each folder
    for file, pair in pairs.items():
        if pair.pictures:
            picture_folders[posixpath.dirname(file)][posixpath.dirname(pair.pictures[0])] += 1
    homes = {folder: count.most_common(1)[0][0] for folder, count in picture_folders.items()}
    chosen: dict[str, tuple[str, int]] = {}  # label file -> picture, rank
    file_of: dict[str, str] = {}
    other_names: list[str] = []
    doubles: list[str] = []
    for file, pair in pairs.items():
        stated = posixpath.basename(stated_names[file].strip().replace("\\", "/"))
        picture, rank = _picture(listing, picture_paths, file, pair, stated, homes)
        earlier = file_of.get(picture)
        if earlier is not None and chosen[earlier][1] == rank:
            raise DataError(
                f"{listing.where(file)}: speaks of {picture}, as {earlier} does; accepted: one {kind} a "
                "picture"
            )
        if earlier is not None:
            weaker = file if rank > chosen[earlier][1] else earlier
            doubles.append(f"{weaker} ({picture})")
            if weaker == file:
                continue
            del chosen[earlier]
        name = posixpath.basename(picture)
        agrees = stated.lower() in ("", name.lower(), stem(name).lower())
        if rank == _BY_STATED_NAME or (rank != _ABSENT and not agrees):
            other_names.append(f"{file}: states {stated}, {name} was taken")
        chosen[file], file_of[picture] = (picture, rank), file
    return {file: picture for file, (picture, _) in chosen.items()}, [
        *finding("info", "name_differs", other_names, f"{{n}} {kind} have another name than they state"),
        *finding("warning", "label_file_double", doubles, f"{{n}} {kind} of a picture that has a nearer one"),
    ]


def _picture(
    listing: Listing,
    picture_paths: PicturePaths,
    label_file: str,
    pair: Pair,
    stated: str,
    homes: Mapping[str, str],
) -> tuple[str, int]:
    """(picture, rank: the lower, the surer). ``homes``: folder of label files -> folder of their pictures."""
    if len(pair.pictures) > 1:
        named = [path for path in pair.pictures if posixpath.basename(path).lower() == stated.lower()]
        if len(named) != 1:
            raise DataError(
                f"{listing.where(label_file)}: may speak of {pair.pictures[0]} or {pair.pictures[1]}; "
                "accepted: one picture of its name, or a name in it that says which"
            )
        return named[0], pair.rank
    if pair.pictures:
        return pair.pictures[0], pair.rank
    home = homes.get(posixpath.dirname(label_file), posixpath.dirname(label_file))
    named = _named(listing, stated) if stated else []
    named = [path for path in named if posixpath.dirname(path) == home] or named
    if len(named) == 1:
        return named[0], _BY_STATED_NAME
    name = posixpath.basename(stem(label_file))
    ending = posixpath.splitext(stated)[1] if is_picture(stated) and stem(stated) == name else ".jpg"
    path = posixpath.join(home, name if is_picture(name) else name + ending)
    picture_paths.absent(listing.where(label_file))
    return path, _ABSENT


def _named(listing: Listing, name: str) -> list[str]:
    """Pictures of that name, in any case and in any folder but those of masks."""
    known = pictures(listing)
    same_name = known.by_name.get(key(name), []) or (
        [] if is_picture(name) else known.by_stem.get(key(name), [])
    )
    return [path for path in same_name if not is_label_folder(posixpath.dirname(path))]
