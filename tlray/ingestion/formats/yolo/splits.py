"""Splits of YOLO's pictures: by data.yaml or obj.data (folders, lists of files), lists, folders' names."""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tlray.data.schema import SPLITS
from tlray.errors import DataError
from tlray.ingestion.findings import Finding, finding
from tlray.ingestion.formats.heuristics import folder_split
from tlray.ingestion.formats.listing import Listing, is_picture, lines_of
from tlray.ingestion.formats.picture_paths import PicturePaths, plain
from tlray.ingestion.formats.yolo.names import Config, nearby


@dataclass
class Splits:
    """``of``: picture -> split, for those that have one; ``missing``: as `of`, pictures that are not there.
    ``given``: whether there are splits at all, so that a picture without one belongs to none."""

    of: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    given: bool = False
    findings: list[Finding] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # lists of pictures that were read


def find(listing: Listing, configs: Sequence[Config], pictures: Sequence[str]) -> Splits:
    """Split of each picture. Raises DataError where what a config states for train is not there, or a
    list's pictures are not."""
    splits, double = Splits(), []
    lost: list[tuple[Config, str, str]] = []
    for config, split, value in [(c, s, v) for c in configs for s, v in c.splits] or _lists(listing):
        inside = _pictures(listing, config, split, value, splits, pictures)
        if inside is None:
            lost.append((config, split, value))
            continue
        for picture in inside:
            if splits.of.setdefault(picture, split) != split:
                double.append(f"{picture}: {splits.of[picture]}, {split}")
    _report_lost(listing, lost, splits)
    splits.findings += finding(
        "warning", "two_splits", double, "{n} pictures stand in two splits: taken for the first of them"
    )
    by_folder = {p: s for p in pictures if (s := folder_split(p))}
    if splits.of:
        # What the config does not speak of at all: test/ beside a data.yaml of train and val.
        stated = {s for c in configs for s, v in c.splits} | set(splits.of.values())
        more = {p: s for p, s in by_folder.items() if p not in splits.of and s not in stated}
        splits.findings += finding(
            "info", "split_by_folder", [*more],
            "{n} pictures are in no split that is stated: split by their folder's name",
        )  # fmt: skip
        splits.of |= more
    else:
        splits.of = by_folder
    splits.given = bool(splits.of)
    return splits


def _report_lost(listing: Listing, lost: Sequence[tuple[Config, str, str]], splits: Splits) -> None:
    for config, split, value in lost:
        # Without this the split would be made of the other pictures.
        if split != "test" and splits.of and split not in splits.of.values():
            raise DataError(
                f"{listing.where(config.file)}: {split} = {value!r}: no such folder or list below "
                f"{listing.root}; accepted: a folder of pictures, a list of their paths, or no {split}"
            )
    # Roboflow states a test folder whether there is one or not.
    for severity, there in (("info", ("test",)), ("warning", ("train", "validation"))):
        splits.findings += finding(
            severity, "split_not_there", [f"{c.file}: {s}: {v}" for c, s, v in lost if s in there],  # type: ignore[arg-type]
            "{n} folders or lists of splits are not there"
            + ("" if splits.of else ": splits by names of folders"),
        )  # fmt: skip


def _lists(listing: Listing) -> list[tuple[Config, str, str]]:
    """train.txt, val.txt and test.txt of one folder, the nearest to the root (data/train.txt, say), where no
    config states the splits."""
    by_folder: dict[str, list[tuple[Config, str, str]]] = defaultdict(list)
    for file in listing.files:
        folder, _, name = file.rpartition("/")
        split = SPLITS.get(name.lower()[:-4]) if name.lower().endswith(".txt") else None
        if split is not None and _is_list(listing, file):
            by_folder[folder].append((Config(file), split, name))
    nearest = min(by_folder, key=lambda folder: (bool(folder), folder.count("/"), folder), default="")
    return by_folder.get(nearest, [])


def _is_list(listing: Listing, file: str) -> bool:
    lines = lines_of(listing.head_text(file))
    return any(is_picture(line.strip()) for line in lines[:5])


def _pictures(
    listing: Listing, config: Config, split: str, value: str, splits: Splits, pictures: Sequence[str]
) -> list[str] | None:
    """Pictures of a folder or list that a config names; None where neither is there."""
    bases = _bases(listing, config)
    if value.lower().endswith(".txt"):
        file = _list_file(listing, config, value, bases)
        return None if file is None else _listed(listing, file, split, bases, splits)
    folder = _folder(listing, value, bases)
    if folder is None:
        return None
    return [p for p in pictures if not folder or p.startswith(f"{folder}/")]


def _bases(listing: Listing, config: Config) -> list[str]:
    """Folders that paths of a config may start from: ``path``, as far as it is here, and its own folder."""
    own = posixpath.dirname(config.file)
    path = _folder(listing, config.path, [own], is_base=True) if config.path else None
    return list(dict.fromkeys([own if path is None else path, own, ""]))


def _list_file(listing: Listing, config: Config, value: str, bases: Sequence[str]) -> str | None:
    for base in bases:
        there = listing.match(posixpath.normpath(posixpath.join(base, plain(value))))
        if there:
            return there
    return nearby(listing, config.file, value)


def _folder(listing: Listing, value: str, bases: Sequence[str], is_base: bool = False) -> str | None:
    """The folder ("" for the root) of a path, or of the longest part of it that is here."""
    folders = _folders(listing)
    text = plain(value).rstrip("/") or "."
    for base in bases:
        joined = posixpath.normpath(posixpath.join(base, text))
        if joined == ".":
            return ""
        if joined.lower() in folders:
            return folders[joined.lower()]
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    for n in range(len(parts)):
        # images of /content/valid/images is not every other folder images: the split has to be kept.
        if any(part.lower() in SPLITS for part in parts[:n]) and not is_base:
            break
        for base in bases:
            for more in ("", "images"):
                there = posixpath.join(base, more, *parts[n:]).lower()
                if there in folders:
                    return folders[there]
    return None


def _folders(listing: Listing) -> dict[str, str]:
    """Folders by their path in lower case; none where two differ by case alone."""
    count = Counter(folder.lower() for folder in listing.folders)
    return {folder.lower(): folder for folder in listing.folders if count[folder.lower()] == 1}


def _listed(listing: Listing, file: str, split: str, bases: Sequence[str], splits: Splits) -> list[str]:
    lines = [line.strip().strip("\"'") for line in lines_of(listing.text(file))]
    named = [(number, name) for number, name in enumerate(lines, 1) if name and not name.startswith("#")]
    picture_paths, where = PicturePaths(listing), listing.where(file)
    names = [name for _, name in named]
    lookup = picture_paths.lookup(where, posixpath.dirname(file), names, split, bases)
    found = [(lookup(name, f"{where} line {number}"), name) for number, name in named]
    picture_paths.check(len(found))
    splits.findings += picture_paths.findings()
    splits.files.append(file)
    absent = {written for _, written in picture_paths.missing}
    splits.missing |= {picture: split for picture, name in found if name in absent}
    return [picture for picture, name in found if name not in absent]
