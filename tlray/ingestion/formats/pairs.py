"""Label files of one picture each, and the pictures that they are of: those of the same name."""

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
from tlray.ingestion.formats.places import Places, is_of_labels, key, pictures

_BY_STATED_NAME, _ABSENT = 3, 4  # ranks after those of `Pair`


@dataclass(frozen=True)
class Pair:
    """Pictures of a label file's name; ``rank``: 0 beside it, 1 in the folder parallel to it, 2 elsewhere."""

    pictures: list[str]
    rank: int


def paired(listing: Listing, files: Sequence[str]) -> dict[str, Pair]:
    """For each label file of one picture the pictures that have its name, the likeliest kind of place."""
    places = {picture: _place(picture) for picture in listing.pictures}
    return {file: _pair(listing, file, places) for file in files}


def _pair(listing: Listing, file: str, places: Mapping[str, tuple[str, ...]]) -> Pair:
    folder, _, name = stem(file).rpartition("/")
    there = pictures(listing)
    # "a.jpg.xml" is of a.jpg.
    same = there.by_name.get(key(name), []) if is_picture(name) else there.by_stem.get(key(name), [])
    beside = [p for p in same if posixpath.dirname(p) == folder]
    if beside:
        return Pair(beside, 0)
    no_masks = [p for p in same if not is_of_labels(posixpath.dirname(p))] or same
    place = _place(file)
    parallel = [p for p in no_masks if places[p][:-1] == place[:-1]]
    if parallel:
        return Pair(parallel, 1)
    split = folder_split(file)
    return Pair([p for p in no_masks if split is None or folder_split(p) in (None, split)], 2)


def _place(path: str) -> tuple[str, ...]:
    """A path's folders without the words of layouts (train/images, train/labels), and its name."""
    *folders, name = key(stem(path)).split("/")
    return (*(folder for folder in folders if not heuristics.is_layout_word(folder)), name)


def unlabelled(listing: Listing, labelled: Iterable[str], file: str) -> tuple[list[Finding], dict[str, int]]:
    """A finding of the pictures that no label file speaks of, and how many pictures in folders of masks were
    passed over; ``file`` says what they lack, as in ".xml"."""
    rest = sorted(set(listing.pictures) - set(labelled))
    masks = [path for path in rest if is_of_labels(posixpath.dirname(path))]
    without = sorted(set(rest) - set(masks))
    text = f"{{n}} pictures have no {file} (left out; they are not taken for pictures that show no object)"
    return finding("warning", "no_label_file", without, text), (
        {"pictures of masks": len(masks)} if masks else {}
    )


def pictures_of(
    listing: Listing, places: Places, stated: Mapping[str, str], kind: str
) -> tuple[dict[str, str], list[Finding]]:
    """(label file -> its picture, findings): by the label file's own name, else by the name it states.

    ``stated``: label file -> name of the picture in it, "" for none; ``kind`` is what label files are called,
    as in ".xml". A picture that is not there has a path all the same. Raises DataError where a label file may
    be of two pictures, or two of one.
    """
    near = paired(listing, list(stated))
    beside: dict[str, Counter[str]] = defaultdict(Counter)  # where the pictures of a folder's label files lie
    for file, pair in near.items():
        if pair.pictures:
            beside[posixpath.dirname(file)][posixpath.dirname(pair.pictures[0])] += 1
    homes = {folder: count.most_common(1)[0][0] for folder, count in beside.items()}
    chosen: dict[str, tuple[str, int]] = {}
    by_picture: dict[str, str] = {}
    differ: list[str] = []
    doubles: list[str] = []
    for file, pair in near.items():
        name = posixpath.basename(stated[file].strip().replace("\\", "/"))
        picture, rank = _picture(listing, places, file, pair, name, homes)
        other = by_picture.get(picture)
        if other is not None and chosen[other][1] == rank:
            raise DataError(
                f"{listing.where(file)}: speaks of {picture}, as {other} does; accepted: one {kind} a picture"
            )
        if other is not None:
            weaker = file if rank > chosen[other][1] else other
            doubles.append(f"{weaker} ({picture})")
            if weaker == file:
                continue
            del chosen[other]
        own = posixpath.basename(picture)
        same = name.lower() in ("", own.lower(), stem(own).lower())
        if rank == _BY_STATED_NAME or (rank != _ABSENT and not same):
            differ.append(f"{file}: states {name}, {own} was taken")
        chosen[file], by_picture[picture] = (picture, rank), file
    return {file: picture for file, (picture, _) in chosen.items()}, [
        *finding("info", "name_differs", differ, f"{{n}} {kind} have another name than they state"),
        *finding("warning", "label_file_double", doubles, f"{{n}} {kind} of a picture that has a nearer one"),
    ]


def _picture(
    listing: Listing, places: Places, file: str, pair: Pair, name: str, homes: Mapping[str, str]
) -> tuple[str, int]:
    """(picture, rank: 0 is surest)."""
    if len(pair.pictures) > 1:
        same = [path for path in pair.pictures if posixpath.basename(path).lower() == name.lower()]
        if len(same) != 1:
            raise DataError(
                f"{listing.where(file)}: may speak of {pair.pictures[0]} or {pair.pictures[1]}; accepted: "
                "one picture of its name, or a name in it that says which"
            )
        return same[0], pair.rank
    if pair.pictures:
        return pair.pictures[0], pair.rank
    home = homes.get(posixpath.dirname(file), posixpath.dirname(file))
    same = _named(listing, name) if name else []
    same = [path for path in same if posixpath.dirname(path) == home] or same
    if len(same) == 1:
        return same[0], _BY_STATED_NAME
    own = posixpath.basename(stem(file))
    ending = posixpath.splitext(name)[1] if is_picture(name) and stem(name) == own else ".jpg"
    path = posixpath.join(home, own if is_picture(own) else own + ending)
    places.absent(listing.where(file))
    return path, _ABSENT


def _named(listing: Listing, name: str) -> list[str]:
    """Pictures of that name, in any case and any folder but those of masks."""
    there = pictures(listing)
    same = there.by_name.get(key(name), []) or ([] if is_picture(name) else there.by_stem.get(key(name), []))
    return [path for path in same if not is_of_labels(posixpath.dirname(path))]
