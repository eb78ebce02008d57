"""The pictures that a label file names: found as written, or by what of the path still holds here.

Label files travel: they hold ``images\\a.jpg`` of Windows, ``/home/ann/data/a.jpg`` of somebody else's
machine, ``my%20pic.jpg`` of a web tool, or a name without ending.
"""

from __future__ import annotations

import functools
import posixpath
import re
from collections.abc import Sequence
from urllib.parse import unquote

from tlray.errors import DataError
from tlray.findings import Finding, finding
from tlray.formats.listing import Listing, below, is_picture, split_of, stem

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DRIVE = re.compile(r"[A-Za-z]:(?=[/\\]|$)")
_ACCEPTED = "accepted: paths relative to the label file or to the folder, with / and no drive"


class References:
    """Finds pictures by the names that the label file ``source`` gives them.

    ``folders`` (relative to the listing's root) are where a name may start from, the likeliest first;
    ``bare``: names may lack their ending; ``split``: of several pictures of one name, that of this split.
    """

    def __init__(
        self, listing: Listing, source: str, folders: Sequence[str], *, bare: bool = False, split: str = ""
    ) -> None:
        self.listing, self.source, self.bare, self.split = listing, source, bare, split
        self.folders = list(dict.fromkeys(folders))
        self.moved: list[str] = []  # names that hold only in part, with the picture that was taken
        self.missing: list[str] = []
        self.num_names = 0
        self._cache: dict[str, str | None] = {}

    def find(self, name: str, place: str = "") -> str | None:
        """The picture of that name; None where there is none. ``place`` (line 3) is for the message.

        Raises DataError where a name holds only in part and several pictures end like it.
        """
        if name not in self._cache:
            self.num_names += 1
            self._cache[name] = self._find(name, place)
            if self._cache[name] is None:
                self.missing.append(name)
        return self._cache[name]

    def path(self, name: str, place: str = "") -> str:
        """As `find`; of a picture that is not there, the path where it would lie."""
        return self.find(name, place) or below(plain(name).lstrip("/")) or posixpath.basename(plain(name))

    def _find(self, name: str, place: str) -> str | None:
        for text in dict.fromkeys((name, plain(name), unquote(plain(name)))):
            for folder in self.folders:
                here = below(posixpath.join(folder, text)) if text else None
                there = self._at(here) if here else None
                if there:
                    return there
        ends = self._by_tail(unquote(plain(name))) or self._by_tail(plain(name))
        if len(ends) > 1 and self.split:
            ends = [path for path in ends if split_of(path) == self.split] or ends
        if len(ends) > 1:
            at = f" {place}" if place else ""
            raise DataError(
                f"{self.listing.where(self.source)}{at}: {name!r} may be {ends[0]} or {ends[1]}; {_ACCEPTED}"
            )
        if ends:
            self.moved.append(f"{name} -> {ends[0]}")
            return ends[0]
        return None

    def _at(self, path: str) -> str | None:
        there = self.listing.match(path)
        if there and is_picture(there):
            return there
        return self.listing.picture(path) if self.bare else None

    def _by_tail(self, name: str) -> list[str]:
        """Pictures that end in the longest part of a path that any picture ends in."""
        parts = [part for part in name.lower().split("/") if part not in ("", ".", "..")]
        if not parts:
            return []
        index, tail = self._names
        same = index.get(parts[-1], []) or (tail.get(parts[-1], []) if self.bare else [])
        best, most = [], 0
        for path in same:
            mine = path.lower().split("/")
            common = 1
            while common < min(len(parts), len(mine)) and parts[-1 - common] == mine[-1 - common]:
                common += 1
            if common > most:
                best, most = [path], common
            elif common == most:
                best.append(path)
        return best

    @functools.cached_property
    def _names(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Pictures by their name in lower case, and by their name without ending."""
        names: dict[str, list[str]] = {}
        stems: dict[str, list[str]] = {}
        for path in self.listing.pictures:
            name = posixpath.basename(path).lower()
            names.setdefault(name, []).append(path)
            stems.setdefault(stem(name), []).append(path)
        return names, stems

    def check(self) -> None:
        """Raises DataError where most of the pictures named are not there."""
        if 2 * len(self.missing) <= self.num_names:
            return
        first = self.missing[0]
        hint = " (a backslash is taken as / where the name has none)" if "\\" in first else ""
        hint = hint or (" (an absolute path)" if first.startswith("/") or _DRIVE.match(first) else "")
        places = ", ".join(folder or "." for folder in self.folders[:4])
        raise DataError(
            f"{self.listing.where(self.source)}: {len(self.missing)} of {self.num_names} pictures that it "
            f"names are not there, first {first!r}{hint}; looked for in {places} of {self.listing.root}, and "
            f"by name below it; {_ACCEPTED}"
        )

    def findings(self) -> list[Finding]:
        """What to say of names that hold only in part, and of those that hold not at all."""
        name = posixpath.basename(self.source)
        return [
            *finding("info", "moved_path", self.moved, f"{{n}} paths of {name} lead elsewhere (another "
                     "machine, Windows, or another folder): the one picture of that name was taken"),
            *finding("warning", "missing_picture", self.missing,
                     f"{{n}} pictures that {name} names are not there"),
        ]  # fmt: skip


def plain(name: str) -> str:
    """A path with slashes, without ``file://`` or ``s3://bucket``'s scheme, and without a drive."""
    name = name.strip().replace("\\", "/")
    return _DRIVE.sub("", _SCHEME.sub("/", name, count=1), count=1)
