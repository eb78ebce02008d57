"""Label files of one picture each, and the pictures that they are of."""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Mapping

from tlray.errors import DataError
from tlray.findings import Finding, finding
from tlray.formats.listing import Listing, is_picture, stem
from tlray.formats.places import Pair, Places

_BY_STATED_NAME, _ABSENT = 3, 4  # ranks after those of `places.Pair`


def pictures_of(
    listing: Listing, places: Places, stated: Mapping[str, str], kind: str
) -> tuple[dict[str, str], list[Finding]]:
    """(label file -> its picture, findings): by the label file's own name, else by the name it states.

    ``stated``: label file -> name of the picture in it, "" for none; ``kind`` is what label files are called,
    as in ".xml". A picture that is not there has a path all the same. Raises DataError where a label file may
    be of two pictures, or two of one.
    """
    near = places.paired(list(stated))
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
    same = places.named(name) if name else []
    same = [path for path in same if posixpath.dirname(path) == home] or same
    if len(same) == 1:
        return same[0], _BY_STATED_NAME
    own = posixpath.basename(stem(file))
    ending = posixpath.splitext(name)[1] if is_picture(name) and stem(name) == own else ".jpg"
    path = posixpath.join(home, own if is_picture(own) else own + ending)
    return places.absent(path, listing.where(file)), _ABSENT
