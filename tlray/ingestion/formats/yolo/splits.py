"""Splits of YOLO's pictures: from data.yaml or obj.data, from lists of pictures, else from names of
folders."""

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
    """The split of each picture that has one."""

    split_of: dict[str, str] = field(default_factory=dict)  # picture -> split
    missing: dict[str, str] = field(default_factory=dict)  # the same for pictures that are not there
    findings: list[Finding] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # lists of pictures that were read


def find(listing: Listing, configs: Sequence[Config], pictures: Sequence[str]) -> Splits:
    """The split of each picture. Raises DataError where the folder or list of a split, or the pictures of a
    list, are not there."""
    splits, doubles = Splits(), []
    missing: list[tuple[Config, str, str]] = []
    for config, split, value in [(c, s, v) for c in configs for s, v in c.splits] or _lists(listing):
        members = _pictures(listing, config, split, value, splits, pictures)
        if members is None:
            missing.append((config, split, value))
            continue
        for picture in members:
            if splits.split_of.setdefault(picture, split) != split:
                doubles.append(f"{picture}: {splits.split_of[picture]}, {split}")
    _report_lost(listing, missing, splits)
    splits.findings += finding(
        "warning", "two_splits", doubles, "{n} pictures stand in two splits: taken for the first of them"
    )
    by_folder = {p: s for p in pictures if (s := folder_split(p))}
    if splits.split_of:
        # Splits that no config states: test/ beside a data.yaml of train and val.
        stated_splits = {s for c in configs for s, v in c.splits} | set(splits.split_of.values())
        by_folder_only = {
            p: s for p, s in by_folder.items() if p not in splits.split_of and s not in stated_splits
        }
        splits.findings += finding(
            "info", "split_by_folder", [*by_folder_only],
            "{n} pictures are in no split that is stated: split by their folder's name",
        )  # fmt: skip
        splits.split_of |= by_folder_only
    else:
        splits.split_of = by_folder
    return splits


def _report_lost(listing: Listing, missing: Sequence[tuple[Config, str, str]], splits: Splits) -> None:
    for config, split, value in missing:
        # Otherwise a new split would be cut from the other pictures.
        if split != "test" and splits.split_of and split not in splits.split_of.values():
            raise DataError(
                f"{listing.where(config.file)}: {split} = {value!r}: no such folder or list below "
                f"{listing.root}; accepted: a folder of pictures, a list of their paths, or no {split}"
            )
    # Roboflow's data.yaml states a test folder even where there is none.
    for severity, names in (("info", ("test",)), ("warning", ("train", "validation"))):
        splits.findings += finding(
            severity, "split_not_there", [f"{c.file}: {s}: {v}" for c, s, v in missing if s in names],  # type: ignore[arg-type]
            "{n} folders or lists of splits are not there"
            + ("" if splits.split_of else ": splits by names of folders"),
        )  # fmt: skip


def _lists(listing: Listing) -> list[tuple[Config, str, str]]:
    """train.txt, val.txt and test.txt in one folder, that nearest to the root, with an empty config; for
    sources whose configs state no splits."""
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
    """Pictures of the folder or list that a config names; None where it is not there."""
    bases = _bases(listing, config)
    if value.lower().endswith(".txt"):
        file = _list_file(listing, config, value, bases)
        return None if file is None else _listed(listing, file, split, bases, splits)
    folder = _folder(listing, value, bases)
    if folder is None:
        return None
    return [p for p in pictures if not folder or p.startswith(f"{folder}/")]


def _bases(listing: Listing, config: Config) -> list[str]:
    """Folders that paths of a config may start from: its ``path``, its own folder, and the root."""
    config_folder = posixpath.dirname(config.file)
    path = _folder(listing, config.path, [config_folder], is_base=True) if config.path else None
    return list(dict.fromkeys([config_folder if path is None else path, config_folder, ""]))


def _list_file(listing: Listing, config: Config, value: str, bases: Sequence[str]) -> str | None:
    for base in bases:
        match = listing.match(posixpath.normpath(posixpath.join(base, plain(value))))
        if match:
            return match
    return nearby(listing, config.file, value)


def _folder(listing: Listing, value: str, bases: Sequence[str], is_base: bool = False) -> str | None:
    """The folder ("" for the root) that a path means, by as many of its last parts as lead to a folder."""
    folders = _folders(listing)
    text = plain(value).rstrip("/") or "."
    for base in bases:
        joined = posixpath.normpath(posixpath.join(base, text))
        if joined == ".":
            return ""
        if joined.lower() in folders:
            return folders[joined.lower()]
    names = [part for part in text.split("/") if part not in ("", ".", "..")]
    for n in range(len(names)):
        # /content/valid/images is not any folder called images: the part that says the split has to match.
        if any(part.lower() in SPLITS for part in names[:n]) and not is_base:
            break
        for base in bases:
            for subfolder in ("", "images"):
                joined_lower = posixpath.join(base, subfolder, *names[n:]).lower()
                if joined_lower in folders:
                    return folders[joined_lower]
    return None


def _folders(listing: Listing) -> dict[str, str]:
    """Folders by their path in lower case, without those that differ from another by case alone."""
    count = Counter(folder.lower() for folder in listing.folders)
    return {folder.lower(): folder for folder in listing.folders if count[folder.lower()] == 1}


def _listed(listing: Listing, file: str, split: str, bases: Sequence[str], splits: Splits) -> list[str]:
    lines = [line.strip().strip("\"'") for line in lines_of(listing.text(file))]
    stated = [(number, name) for number, name in enumerate(lines, 1) if name and not name.startswith("#")]
    picture_paths, where = PicturePaths(listing), listing.where(file)
    paths = [name for _, name in stated]
    lookup = picture_paths.lookup(where, posixpath.dirname(file), paths, split, bases)
    pictures = [(lookup(name, f"{where} line {number}"), name) for number, name in stated]
    picture_paths.check(len(pictures))
    splits.findings += picture_paths.findings()
    splits.files.append(file)
    absent = {written for _, written in picture_paths.missing}
    splits.missing |= {picture: split for picture, name in pictures if name in absent}
    return [picture for picture, name in pictures if name not in absent]
