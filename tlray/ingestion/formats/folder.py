"""Class folders: ``<class>/**/picture`` or ``<split>/<class>/**/picture``; for faces a folder is a person.

Folders below a class folder belong to the class. Folders that only wrap the others, as in unpacked archives
(``chest_xray/train``, ``images/cat``, ``seg_train/seg_train/sea``), mean nothing. ``<class>/<split>/picture``
is read, too, and so are lists of the splits (folder_lists.py). No label files prove that folders are classes,
so this format is chosen only where nothing speaks against it: label files, words of layouts or splits as
class names, folders of masks, a single class, or a class for nearly every picture.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tlray.data.schema import LABEL
from tlray.errors import DataError
from tlray.ingestion.findings import finding
from tlray.ingestion.formats import folder_lists, heuristics
from tlray.ingestion.formats.base import Index, Look, table
from tlray.ingestion.formats.listing import HEAD, Listing, counts_by_ending, lines_of

GIVES: tuple[str, ...] = (LABEL,)
_NO_CLASS = "in no class folder"
_MANY = 0.8  # with more classes per picture, a folder seems to be one record rather than a class
_FEW = 12  # with fewer pictures than this that proves nothing
_LOOSE = 0.5  # share of the pictures that may be in no class folder; more mean another layout

Parts = tuple[str, ...]


def look(listing: Listing) -> Look | None:
    """Pictures in folders below the root."""
    if listing.named:
        return None
    read = _read(_candidates(listing))
    if not read.rows:
        return None
    classes = Counter(row.label for row in read.rows)
    summary = f"{len(read.rows)} pictures in {len(classes)} folders"
    return Look(summary, ["/".join(row.parts) for row in read.rows], [], _against(listing, read, classes))


@dataclass(frozen=True)
class _Row:
    """A picture in a class folder."""

    parts: Parts
    split: str | None
    label: str
    depth: int  # number of folders down to that of the class (and of the split below it)


@dataclass(frozen=True)
class _Read:
    """Pictures and the meaning of the folders above them."""

    rows: list[_Row]
    loose: list[Parts]  # in no class folder
    beside: list[str]  # folders beside those of the splits
    splits: Mapping[str, str]  # folder of a split -> split; empty where splits are below the class folders
    classes_in: Collection[Parts]  # folders that contain the class folders
    depth: int  # number of folders above the splits or classes

    @property
    def has_splits(self) -> bool:
        """Whether folders state splits."""
        return any(row.split for row in self.rows)


def _read(files: list[Parts]) -> _Read:
    base = _below_wrappers(files)
    inside = [parts for parts in files if parts[: len(base)] == base]
    loose = [parts for parts in files if parts[: len(base)] != base]
    splits = _split_folders(inside, len(base))
    if not splits:
        rows = [_Row(p, None, p[len(base)], len(base) + 1) for p in inside if len(p) > len(base) + 1]
        loose += [parts for parts in inside if len(parts) <= len(base) + 1]
        return _Read(_with_splits_below(rows), loose, [], {}, [base], len(base))
    rows_of_splits: list[_Row] = []
    starts: dict[str, Parts] = {}
    for top in splits:
        starts[top] = _start(top, [parts for parts in inside if parts[len(base)] == top], len(base) + 1)
    beside_splits: list[str] = []
    for parts in inside:
        top = parts[len(base)] if len(parts) > len(base) + 1 else ""
        start = starts.get(top, ())
        if top in splits and len(parts) > len(start) + 1 and parts[: len(start)] == start:
            rows_of_splits.append(_Row(parts, splits[top], parts[len(start)], len(start) + 1))
        elif top in splits or not top:
            loose.append(parts)
        else:
            beside_splits.append("/".join((*base, top)))
    split_folders = {"/".join((*base, top)): split for top, split in splits.items()}
    return _Read(rows_of_splits, loose, beside_splits, split_folders, starts.values(), len(base))


def _below_wrappers(files: list[Parts]) -> Parts:
    """The last of the folders that only wrap others: a chain of folders that contain a single folder each.

    They contain splits or several classes, or their names are words of layouts. Any other single folder is a
    class.
    """
    deep = [parts for parts in files if len(parts) > 1]
    chain: Parts = ()
    while deep and len({parts[: len(chain) + 1] for parts in deep}) == 1:
        top = deep[0][len(chain)]
        if heuristics.split_word(top) or any(len(parts) == len(chain) + 2 for parts in deep):
            break
        chain += (top,)
    below_chain = {parts[len(chain)] for parts in deep if len(parts) > len(chain) + 1}
    if len(below_chain) > 1 or "train" in heuristics.splits_among(below_chain).values():
        return chain
    num_words = 0
    while num_words < len(chain) and heuristics.is_layout_word(chain[num_words]):
        num_words += 1
    return chain[:num_words]


def _split_folders(files: list[Parts], depth: int) -> dict[str, str]:
    """Name of a folder at that depth -> split; empty where the folders there are classes."""
    tops = {parts[depth] for parts in files if len(parts) > depth + 1}
    # A class may be called "train", too; but a split contains class folders and no pictures.
    deep = {parts[depth] for parts in files if len(parts) > depth + 2}
    split_of = heuristics.splits_among(tops)
    if {split_of[top] for top in deep if top in split_of} & {"train"}:
        return split_of
    return split_of if split_of and set(split_of) == tops and set(split_of) <= deep else {}


def _start(top: str, files: list[Parts], depth: int) -> Parts:
    """The folder that contains the class folders of a split: below folders that only repeat its name or whose
    names are words of layouts."""
    start = files[0][:depth]
    while len({parts[: len(start) + 1] for parts in files if len(parts) > len(start) + 1}) == 1:
        name = next(parts[len(start)] for parts in files if len(parts) > len(start) + 1)
        deeper = all(len(parts) > len(start) + 2 for parts in files)
        repeats_split = name == top or heuristics.split_word(name) == heuristics.split_word(top) is not None
        if not (repeats_split or (deeper and heuristics.is_layout_word(name))):
            break
        start += (name,)
    return start


def _with_splits_below(rows: list[_Row]) -> list[_Row]:
    """The rows with splits of ``<class>/<split>/picture``, where all pictures have such paths."""
    below = {row.parts[row.depth] if len(row.parts) > row.depth + 1 else "" for row in rows}
    splits = heuristics.splits_among(below)
    if set(splits) != below or "train" not in splits.values() or len(set(splits.values())) < 2:
        return rows
    return [_Row(row.parts, splits[row.parts[row.depth]], row.label, row.depth + 1) for row in rows]


def _against(listing: Listing, read: _Read, classes: Counter[str]) -> str:
    """Why the folders seem not to be classes; "" where nothing says so."""
    layout_words = [name for name in classes if heuristics.is_layout_word(name)]
    if layout_words:
        return f"{_listed(layout_words)} {_is(layout_words)} a name of layouts, not of a class"
    split_words = sorted(heuristics.splits_among(classes))
    # One of these names may be a class (a train is a vehicle, too); two of them are splits.
    if split_words and (len(split_words) == len(classes) or len(split_words) > 1):
        return f"{_listed(split_words)} {_is(split_words)} a name of splits, not of a class"
    lists = {} if read.has_splits else folder_lists.lists(listing)
    labels = [path for path in heuristics.label_files(listing) if path not in lists]
    labels = [path for path in labels if not _lists_classes(listing, path, classes)]
    if labels:
        return (
            f"{counts_by_ending(labels)} ({labels[0]}) may hold the labels, which no format could read; "
            "if they are none, take them away"
        )
    masks = heuristics.parallel_folders(listing)
    if masks:
        return f"pictures in {masks[1]} look like masks of those in {masks[0]}"
    repeated = [name for start in read.classes_in for name in start[-1:] if name in classes]
    if repeated:
        return f"the folder {repeated[0]!r} lies in one of the same name, as a second copy may"
    number = len(read.rows)
    if len(classes) >= _MANY * number and number >= _FEW:
        return f"{len(classes)} classes for {number} pictures is one for nearly every picture"
    loose = [parts for parts in read.loose if "/".join(parts[: read.depth + 1]) not in read.splits]
    if len(loose) > _LOOSE * (number + len(loose)):
        return f"{len(loose)} pictures are {_NO_CLASS}, as {'/'.join(loose[0])}"
    return ""


def _lists_classes(listing: Listing, path: str, classes: Counter[str]) -> bool:
    """Whether a text file is only a list of the classes, as classes.txt beside class folders may be."""
    if not path.lower().endswith((".txt", ".names", ".json", ".csv")) or len(listing.head(path)) >= HEAD:
        return False
    text = listing.head_text(path)
    return all(name in text for name in classes) and len(lines_of(text)) <= 4 * len(classes) + 4


def _listed(names: list[str]) -> str:
    return " and ".join(repr(name) for name in sorted(names)[:3])


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are each"


def index(listing: Listing, column: str) -> Index:
    """Table of (path, split, label).

    Raises DataError for a folder without pictures, an empty class folder, and folders beside the splits.
    """
    files = _candidates(listing)
    read = _read(files)
    _check_splits(listing, read)
    if not read.rows:
        raise DataError(
            f"{listing.root}: no pictures in class folders; accepted: <class>/*.jpg or <split>/<class>/*.jpg"
        )
    rows = {"/".join(row.parts): row for row in read.rows}
    listed_splits = (
        folder_lists.ListedSplits({}, [], []) if read.has_splits else folder_lists.read(listing, rows)
    )
    rows_of_index = [
        {"path": path, "split": listed_splits.splits.get(path, row.split), LABEL: row.label}
        for path, row in rows.items()
        if path in listed_splits.splits or not listed_splits.files
    ]
    folders_with_pictures = {row.parts[:depth] for row in read.rows for depth in range(1, row.depth + 1)}
    for folder in listing.folders:
        parts = tuple(folder.split("/"))
        holds_lists = any(path.startswith(f"{folder}/") for path in listed_splits.files)
        if parts[:-1] in read.classes_in and parts not in folders_with_pictures and not holds_lists:
            raise DataError(
                f"{listing.where(folder)}: class folder without pictures; accepted: at least one "
                "picture, or no such folder"
            )
    loose = ["/".join(parts) for parts in read.loose]
    nested = sorted({"/".join(r.parts[:-1]) for r in read.rows if len(r.parts) > r.depth + 1})
    wrapping = [
        "/".join(start)
        for start in read.classes_in
        if not read.splits and not all(heuristics.is_layout_word(name) for name in start)
    ]
    read_files = {*files, *(tuple(path.split("/")) for path in listed_splits.files)}
    endings = Counter(
        posixpath.splitext(path)[1].lower()
        for path in listing.files
        if tuple(path.split("/")) not in read_files
    )
    return Index(
        table(rows_of_index, LABEL),
        ignored=endings,
        findings=[
            *listed_splits.findings,
            *finding("warning", "no_class_folder", loose, f"{{n}} pictures are {_NO_CLASS} (left out)"),
            *finding(
                "info", "wrapping_folder", wrapping,
                "{n} folder holds all others: the folders in it are the classes",
            ),
            *finding(
                "warning", "nested_folder", nested,
                "{n} folders lie in class folders: the upper one is the class of their pictures",
            ),
        ],
        lists=listed_splits.files,
    )  # fmt: skip


def _candidates(listing: Listing) -> list[Parts]:
    """Files with the ending of a picture or without any ending, as parts of their paths."""
    bare = [path for path in listing.files if not posixpath.splitext(path)[1] and "/" in path]
    return [tuple(path.split("/")) for path in sorted({*listing.pictures, *bare})]


def _check_splits(listing: Listing, read: _Read) -> None:
    names = ", ".join(read.splits)
    if read.beside:
        raise DataError(
            f"{listing.where(read.beside[0])}: a folder of pictures beside the splits {names}; accepted "
            "there: train, validation (val, valid), test"
        )
    if len(set(read.splits.values())) < len(read.splits):
        raise DataError(f"{listing.root}: two folders for one split among {names}; accepted: one each")
