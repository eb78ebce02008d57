"""Finding the picture that a label file speaks of, however its path was written and on whichever machine."""

from __future__ import annotations

import functools
import re
from urllib.parse import unquote

from tlray import storage
from tlray.findings import Finding, finding
from tlray.formats.evidence import LABEL_WORDS
from tlray.formats.listing import Listing, below, is_picture, split_of, stem

_DRIVE = re.compile(r"[A-Za-z]:(?=[/\\])")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/{1,3}(?=.)")


class Paths:
    """The pictures of a listing, by what the label file in ``folder`` calls them.

    ``split``: where one name is in several split folders, that of this split is meant.
    """

    def __init__(self, listing: Listing, folder: str = "", split: str | None = None) -> None:
        self._listing, self._folder, self._split = listing, folder, split
        self._by_name = _by_name(listing)
        self._foreign: list[str] = []
        self._moved: list[str] = []
        self._padded: list[str] = []
        self.by_tail: set[str] = set()  # pictures that another path than their own led to

    def find(self, value: str) -> str | None:
        """The one picture that this value names: relative to the label file or to the root, with or without
        ending, with either slash, quoted as a URL, or by the longest part of a path of another machine.
        None where there is none, or several."""
        path, by_tail = self._find(value)
        if path is not None and value.strip().isdigit() and stem(path).rpartition("/")[2] != value.strip():
            self._padded.append(f"{value} -> {path}")
        elif path is not None and by_tail:
            self.by_tail.add(path)
            (self._foreign if is_absolute(value) else self._moved).append(f"{value} -> {path}")
        return path

    def _find(self, value: str) -> tuple[str | None, bool]:
        """The picture, and whether only the last parts of the path led to it."""
        value = value.strip()
        if not value:
            return None, False
        for text in dict.fromkeys((value, value.replace("\\", "/"), unquote(value).replace("\\", "/"))):
            here = self._exact(text)
            if here is not None:
                return here, False
        parts = parts_of(value)
        there = self._candidates(parts)
        return (there[0], _same_tail(parts, there[0]) < len(parts)) if len(there) == 1 else (None, False)

    def names(self, value: str) -> bool:
        """Whether this value names a picture, or several."""
        return bool(value) and (self._find(value)[0] is not None or bool(self.several(value)))

    def several(self, value: str) -> list[str]:
        """The pictures that this value may name, where it names more than one."""
        return self._candidates(parts_of(value))

    def findings(self) -> list[Finding]:
        """Which pictures were found by another path than their own; call it once all were looked for."""
        return [
            *finding(
                "info", "foreign_path", self._foreign,
                "{n} paths are those of another machine: their last parts led to the pictures",
            ),
            *finding(
                "info", "zeros_lost", self._padded,
                "{n} numbers name pictures whose names begin with zeros",
            ),
            *finding(
                "warning", "moved_picture", self._moved,
                "{n} pictures do not lie where the label file says: they were found by their names",
            ),
        ]  # fmt: skip

    def _exact(self, value: str) -> str | None:
        path = self._below_root(value)
        for start in dict.fromkeys((self._folder, "")):
            plain = below(f"{start}/{path}" if start and not path.startswith("/") else path)
            if plain is None:
                continue
            there = self._listing.match(plain)
            if there is not None and (is_picture(there) or "." not in there.rpartition("/")[2]):
                return there
            there = self._listing.picture(plain)
            if there is not None:
                return there
        return None

    def _below_root(self, value: str) -> str:
        """The path below the root, where a path or URI leads there."""
        root = self._listing.root.rstrip("/")
        for start in (root, f"file://{root}", f"file:{root}"):
            if value.startswith(f"{start}/"):
                return value[len(start) + 1 :]
        return value

    def _candidates(self, parts: list[str]) -> list[str]:
        if not parts:
            return []
        name = parts[-1].lower()
        there = self._by_name.get(name, [])
        if not there and name.isdigit():  # a spreadsheet makes 17 of 00017
            there = self._by_name.get(f"#{int(name)}", [])
        named = split_of("/".join(parts)) or self._split
        if len(parts) > 1 and split_of("/".join(parts)):  # train/a.jpg is not the picture val/a.jpg
            there = [path for path in there if split_of(path) in (None, named)]
        if len(there) < 2:
            return there
        most = max(_same_tail(parts, path) for path in there)
        there = [path for path in there if _same_tail(parts, path) == most]
        for some in (
            [path for path in there if named is not None and split_of(path) == named],
            [path for path in there if self._folder and path.startswith(f"{self._folder}/")],
            [path for path in there if not _in_label_folder(path)],
        ):
            there = [path for path in there if path in some] or there
        return there


@functools.lru_cache(maxsize=2)
def _by_name(listing: Listing) -> dict[str, list[str]]:
    """Pictures by the last part of their path, with and without ending, in lower case; #17 for 0017."""
    grouped: dict[str, list[str]] = {}
    for path in listing.pictures:
        name = path.rpartition("/")[2].lower()
        keys = {name, stem(name)}
        if stem(name).isdigit():
            keys.add(f"#{int(stem(name))}")
        for key in keys:
            grouped.setdefault(key, []).append(path)
    return grouped


def _in_label_folder(path: str) -> bool:
    return any(part.strip().lower() in LABEL_WORDS for part in path.split("/")[:-1])


def parts_of(value: str) -> list[str]:
    """Folders and name of a path of any machine, without drive or host's scheme."""
    plain = unquote(value.strip()) if "%" in value else value.strip()
    plain = _DRIVE.sub("", _SCHEME.sub("", plain)).replace("\\", "/")
    if "://" in value:
        plain = re.split(r"[?#]", plain)[0]
    return [part for part in plain.split("/") if part not in ("", ".", "..")]


def is_absolute(value: str) -> bool:
    """Whether a path begins at a machine's root, a drive or a URL."""
    return value.startswith(("/", "\\", "~")) or bool(_DRIVE.match(value) or _SCHEME.match(value))


def accepted(listing: Listing, value: str) -> str:
    """What a path must look like, for the message about one that leads to no picture."""
    what = f"paths relative to the label file or to {storage.absolute(listing.root)}, with / between folders"
    if _DRIVE.match(value) or "\\" in value:
        return f"{what}; this one is a Windows path, and no one picture here has its name"
    if is_absolute(value):
        return f"{what}; this one begins at another machine's root, and no one picture here has its name"
    return what


def _same_tail(parts: list[str], path: str) -> int:
    """How many last parts of both are the same, in any case; the name itself with or without ending."""
    number = 1
    for one, other in zip(reversed(parts[:-1]), reversed(path.split("/")[:-1]), strict=False):
        if one.lower() != other.lower():
            break
        number += 1
    return number
