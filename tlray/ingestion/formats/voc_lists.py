"""Lists of Pascal VOC that say which pictures are of which split: ``ImageSets/Main/train.txt`` and others."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Sequence

from tlray.data.schema import SPLITS
from tlray.errors import DataError
from tlray.ingestion.findings import Finding, finding
from tlray.ingestion.formats.listing import Listing, is_picture, lines_of, split_in, stem

_SAMPLE = 24  # lines that are read to recognize a list
_MISSING = 0.5  # share of the names in lists: if more are missing, the lists belong to other files


def splits(listing: Listing, files: Sequence[str]) -> tuple[dict[str, str], list[str], list[Finding]]:
    """(label file -> split, by lists; folders below which lists decide; findings about the lists)."""
    if listing.named:
        return {}, [], []
    by_base: dict[str, list[str]] = defaultdict(list)
    other_lists: dict[str, list[str]] = defaultdict(list)
    for path in listing.labels(".txt"):
        parts = path.split("/")
        position = next((n for n, part in enumerate(parts[:-1]) if part.lower() == "imagesets"), None)
        if position is not None and [part.lower() for part in parts[position + 1 : -1]] in (["main"], []):
            by_base["/".join(parts[:position])].append(path)
        elif position is None:
            other_lists[posixpath.dirname(path)].append(path)
    split_of: dict[str, str] = {}
    findings: list[Finding] = []
    bases: list[str] = []
    chosen = [(base, lists) for base, paths in sorted(by_base.items()) if (lists := _chosen(paths))]
    for base, lists in chosen or _outside(listing, other_lists, files):
        bases.append(base)
        listed_splits, notes = _read_lists(listing, base, lists, files)
        split_of |= listed_splits
        findings += notes
    return split_of, bases, findings


def _outside(
    listing: Listing, folders: dict[str, list[str]], files: Sequence[str]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Lists outside of ImageSets: train.txt and val.txt at the root, in splits/ or beside the .xml.

    Those in the folder nearest to the root whose first lines name .xml files, with the folder of these files.
    """
    for folder, paths in sorted(folders.items(), key=lambda item: (item[0].count("/"), item[0])):
        base = folder
        while base and not any(is_below(file, [base]) for file in files):
            base = posixpath.dirname(base)
        by_end, by_end_lower = _by_ends(base, files)
        lists = []
        for path, kind in _chosen(paths, plainly=False):
            first_lines = [line for line in lines_of(listing.head_text(path)) if line.strip()][:_SAMPLE]
            if (
                sum(_listed_file(line, by_end, by_end_lower) is not None for line in first_lines)
                > len(first_lines) / 2
            ):
                lists.append((path, kind))
        if lists:
            return [(base, lists)]
    return []


def is_below(path: str, folders: Iterable[str]) -> bool:
    return any(not folder or path.startswith(f"{folder}/") for folder in folders)


def _chosen(paths: Sequence[str], plainly: bool = True) -> list[tuple[str, str]]:
    """(list, split or "trainval"), for lists of splits: train.txt, else those of single classes
    (cat_train.txt).

    Not ``plainly``: for splits without such a list, any with the word in its name (train_list.txt).
    """
    plain: list[tuple[str, str]] = []
    of_classes: list[tuple[str, str]] = []
    for path in paths:
        name = posixpath.basename(stem(path)).lower()
        kind = "trainval" if name.endswith("trainval") else SPLITS.get(name.rpartition("_")[2])
        if kind is None and not plainly:
            kind = split_in(name)
        if kind is not None:
            is_plain = name in SPLITS or name == "trainval"
            (plain if is_plain else of_classes).append((path, kind))
    if not plainly:
        plain_kinds = {kind for _, kind in plain}
        return plain + [(path, kind) for path, kind in of_classes if kind not in plain_kinds]
    return plain or of_classes


def _by_ends(base: str, files: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Label files below a folder by every tail of their paths, as written and in lower case, since lists may
    name frames/0001 in Annotations."""
    by_end: dict[str, str] = {}
    for file in files:
        if is_below(file, [base]):
            parts = stem(file).split("/")
            for n in range(len(parts)):
                by_end.setdefault("/".join(parts[n:]), file)
    return by_end, {name.lower(): file for name, file in by_end.items()}


def _read_lists(
    listing: Listing, base: str, lists: Sequence[tuple[str, str]], files: Sequence[str]
) -> tuple[dict[str, str], list[Finding]]:
    by_end, by_end_lower = _by_ends(base, files)
    split_and_place: dict[str, tuple[str, str]] = {}
    absent: list[str] = []
    repeated: list[str] = []
    total = 0
    order = {"train": 0, "validation": 1, "test": 2, "trainval": 3}
    kinds = {kind for _, kind in lists}
    for path, kind in sorted(lists, key=lambda item: order[item[1]]):
        if kind == "trainval" and {"train", "validation"} <= kinds:
            continue
        split = kind if kind != "trainval" else "validation" if "train" in kinds else "train"
        of_list: set[str] = set()
        for number, line in enumerate(lines_of(listing.text(path)), 1):
            if not line.strip():
                continue
            total += 1
            place = f"{listing.where(path)} line {number}"
            label_file = _listed_file(line, by_end, by_end_lower)
            if label_file is None:
                absent.append(f"{place}: {line.strip()!r}")
            elif label_file in of_list:
                repeated.append(f"{place}: {line.strip()!r}")
            elif label_file in split_and_place and split_and_place[label_file][0] != split:
                if kind == "trainval":
                    continue  # trainval lists train and val; the other names in it are the missing list
                raise DataError(
                    f"{place}: {line.strip()!r} stands in {split_and_place[label_file][1]}, too; accepted: "
                    "one split"
                )
            else:
                of_list.add(label_file)
                split_and_place.setdefault(label_file, (split, f"{posixpath.basename(path)} line {number}"))
    if len(absent) > _MISSING * total:
        raise DataError(
            f"{absent[0]} has no .xml, as {len(absent)} of {total} names in lists have none; accepted: "
            "lists of the pictures that have one"
        )
    return {file: split for file, (split, _) in split_and_place.items()}, [
        *finding("warning", "listed_without_labels", absent, "{n} names in lists have no .xml (left out)"),
        *finding("info", "listed_twice", repeated, "{n} names stand twice in a list"),
    ]


def _listed_file(line: str, by_end: dict[str, str], by_end_lower: dict[str, str]) -> str | None:
    """The label file that a line of a list means; the line may have a second column and endings."""
    text = line.strip().lstrip("./").replace("\\", "/")
    first_column, _, last_column = text.rpartition(" ") if " " in text else text.rpartition("\t")
    names = [text]
    if first_column.strip() and last_column.strip() in ("-1", "0", "1"):
        names.append(first_column.strip())
    elif last_column.lower().endswith(".xml"):  # PaddleDetection's lines: the picture and its .xml
        names.append(last_column.strip().removeprefix("./"))
    for name in list(names):
        if is_picture(name) or name.lower().endswith(".xml"):
            names += [stem(name), posixpath.basename(stem(name))]
    return next((f for name in names if (f := by_end.get(name) or by_end_lower.get(name.lower()))), None)
