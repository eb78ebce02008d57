"""Which picture a path in a label file means.

People move data between machines, so a path in a label file may be that of another machine: with backslashes,
a drive, somebody's home folder, URL quoting, another case or no ending. Where only one picture fits, it is
taken and `PicturePaths.findings` reports how; where two fit, the path is refused.
"""

from __future__ import annotations

import functools
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from tlray import storage
from tlray.errors import DataError
from tlray.ingestion.findings import Finding, finding
from tlray.ingestion.formats.heuristics import LABEL_WORDS, folder_split
from tlray.ingestion.formats.listing import Listing, below, is_picture, stem

_SAMPLE = 100  # paths of a label file that are tried to learn in which folder its pictures are
_MOST_MISSING = 0.5  # share of the pictures: if more are missing, the layout was not understood
_DRIVE = re.compile(r"[A-Za-z]:(?=[/\\]|$)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/{1,3}(?=.)")
_FINDINGS = {
    "path_backslash": "{n} paths with backslashes were taken for paths with /",
    "path_quoted": "{n} paths are URLs or URL-quoted (the file of that name was taken)",
    "path_other_case": "{n} paths differ from the file's name in case or in the form of letters",
    "path_ending": "{n} paths have another ending than the picture (the same name was taken)",
    "path_elsewhere": "{n} paths are of another place (the one picture whose path ends alike was taken)",
    "zeros_lost": "{n} numbers name pictures whose names begin with zeros",
}


def key(text: str) -> str:
    """A name in lower case and with composed letters (NFC): equal for two spellings of one name."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text).lower()


def is_label_folder(folder: str) -> bool:
    """Whether the name of a folder, or of one above it, is a word for labels or masks."""
    return any(part.strip().lower() in LABEL_WORDS for part in folder.split("/"))


def plain(path: str) -> str:
    """A path with forward slashes, without URL scheme and drive."""
    path = path.strip().replace("\\", "/")
    return _DRIVE.sub("", _SCHEME.sub("/", path, count=1), count=1)


def parts_of(path: str) -> list[str]:
    """Folders and name of a path of any machine, without drive, URL scheme and query."""
    if "://" in path:
        path = re.split(r"[?#]", path)[0]
    return [part for part in unquote(plain(path)).split("/") if part not in ("", ".", "..")]


def is_absolute(path: str) -> bool:
    """Whether a path begins at a machine's root, a drive or a URL."""
    return path.startswith(("/", "\\", "~")) or bool(_DRIVE.match(path) or _SCHEME.match(path))


def accepted(listing: Listing, path: str) -> str:
    """Which paths are accepted, for the error about one that leads to no picture."""
    relative = (
        f"paths relative to the label file or to {storage.absolute(listing.root)}, with / between folders"
    )
    if _DRIVE.match(path) or "\\" in path:
        return f"{relative}; this one is a Windows path, and no one picture here has its name"
    if is_absolute(path):
        return f"{relative}; this one begins at another machine's root, and no one picture here has its name"
    return relative


class Pictures:
    """The pictures of a listing by path, name, stem and number; made once for a listing by `pictures`."""

    def __init__(self, listing: Listing) -> None:
        self.by_path: dict[str, list[str]] = defaultdict(list)
        self.by_name: dict[str, list[str]] = defaultdict(list)  # without folder
        self.by_stem: dict[str, list[str]] = defaultdict(list)  # without folder and ending
        self.by_number: dict[int, list[str]] = defaultdict(list)  # 17 for 0017.jpg
        for path in listing.pictures:
            name = key(posixpath.basename(path))
            self.by_path[key(path)].append(path)
            self.by_name[name].append(path)
            self.by_stem[stem(name)].append(path)
            if stem(name).isdecimal():
                self.by_number[int(stem(name))].append(path)

    def named(self, name: str) -> list[str]:
        """Pictures of that name in any folder, the best kind of match only: the same name, the same stem with
        another ending, the same number with other leading zeros. Masks only where nothing else matches."""
        name = key(name)
        by_name = self.by_name.get(name, [])
        by_stem = self.by_stem.get(stem(name) if is_picture(name) else name, [])
        by_number = self.by_number.get(int(name), []) if name.isdecimal() else []
        for paths in (by_name, by_stem):
            if photos := [path for path in paths if not is_label_folder(posixpath.dirname(path))]:
                return photos
        return by_name or by_stem or by_number


@functools.lru_cache(maxsize=2)
def pictures(listing: Listing) -> Pictures:
    """The pictures of a listing; the last listings are kept."""
    return Pictures(listing)


def in_same_folders(listing: Listing, names: Iterable[str]) -> list[str]:
    """All pictures of the folders that hold a picture with the name of one of these paths."""
    known, folders = pictures(listing), set()
    for name in names:
        if parts := parts_of(name):
            folders |= {posixpath.dirname(path) for path in known.named(parts[-1])}
    return [path for path in listing.pictures if posixpath.dirname(path) in folders]


class PicturePaths:
    """Finds the pictures that label files name, and notes the paths that do not lead straight to one."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.notes: dict[str, list[str]] = defaultdict(list)
        self.missing: list[tuple[str, str]] = []  # place in a label file, and the path there or ""
        self.tried: list[str] = []  # folders that paths were taken to start from

    def lookup(
        self,
        where: str,
        folder: str,
        names: Sequence[str] = (),
        split: str | None = None,
        folders: Sequence[str] = (),
    ) -> Lookup:
        """How to find the pictures of a label file that lies in ``folder`` and states the paths ``names``.

        Its paths may also start from one of ``folders``. Where several pictures have one name, that of
        ``split`` is meant. Raises DataError where the pictures may lie in either of two folders.
        """
        best, holds_all = _best_folder(self.listing, where, [folder, *folders], names, split)
        starts = list(dict.fromkeys([best, folder, *folders, ""]))
        self.tried = list(dict.fromkeys([*self.tried, *starts]))
        return Lookup(self, starts, holds_all, split)

    def absent(self, where: str, written: str = "") -> None:
        """Note that a picture is missing."""
        self.missing.append((where, written))

    def check(self, total: int, looked: Iterable[str] = ()) -> None:
        """Raises DataError where most of ``total`` pictures are missing."""
        if not self.missing or len(self.missing) <= _MOST_MISSING * total:
            return
        folders = [folder or "." for folder in dict.fromkeys((*self.tried, *looked))]
        where, written = self.missing[0]
        raise DataError(
            f"{self.listing.root}: {len(self.missing)} of {total} pictures that the label files name are not "
            f"there, first: {where}{f': {written!r}' if written else ''}; looked for in "
            f"{', '.join(folders[:5])}; accepted: {accepted(self.listing, written)}"
        )

    def findings(self) -> list[Finding]:
        """How the paths were read that did not lead straight to a picture."""
        return [f for kind, text in _FINDINGS.items() for f in finding("info", kind, self.notes[kind], text)]


@dataclass
class Lookup:
    """Finds the pictures that one label file names; made by `PicturePaths.lookup`."""

    picture_paths: PicturePaths
    folders: list[str]  # that paths may start from, the likeliest first
    holds_all: bool  # whether the first of them holds every picture
    split: str | None
    by_tail: set[str] = field(default_factory=set)  # pictures found by the last parts of a path alone

    def __call__(self, written: str, here: str) -> str:
        """The picture that a path means. A missing one gets the path that it should have, and is noted.

        ``here`` is the place in the label file, for messages. Raises DataError where two pictures fit.
        """
        candidates, kind, by_tail = self._resolve(written)
        if len(candidates) > 1:
            raise DataError(
                f"{here}: {written!r} may be {candidates[0]} or {candidates[1]}; accepted: a path below "
                f"{self.picture_paths.listing.root} that names one picture"
            )
        if not candidates:
            self.picture_paths.absent(here, written)
            return self.absent(written)
        return self._noted(written, candidates[0], kind, by_tail)

    def find(self, written: str) -> str | None:
        """The one picture that a text names; None where there is none, or several."""
        candidates, kind, by_tail = self._resolve(written)
        return self._noted(written, candidates[0], kind, by_tail) if len(candidates) == 1 else None

    def several(self, written: str) -> list[str]:
        """The pictures that a text may name."""
        return self._resolve(written)[0]

    def absent(self, written: str) -> str:
        """The path that a missing picture should have, relative to the root."""
        path = None if is_absolute(written) else below(posixpath.join(self.folders[0], plain(written)))
        return path or "/".join(parts_of(written)) or "?"

    def _noted(self, written: str, path: str, kind: str, by_tail: bool) -> str:
        if kind:
            self.picture_paths.notes[kind].append(f"{written} -> {path}")
        if by_tail:
            self.by_tail.add(path)
        return path

    def _resolve(self, written: str) -> tuple[list[str], str, bool]:
        """(pictures that a path may mean, kind of finding, whether its last parts alone led there)."""
        listing, known = self.picture_paths.listing, pictures(self.picture_paths.listing)
        if not written.strip():
            return [], "", False
        spelled = [
            (path, joined, kind)
            for path, kind in _spellings(listing.root, written)
            for folder in self.folders
            if (joined := below(posixpath.join(folder, path))) is not None
        ]
        for path, joined, kind in spelled:
            # A file without any ending may be a picture, too.
            if joined in listing and (is_picture(joined) or "." not in posixpath.basename(joined)):
                return [joined, *(() if self.holds_all else self._twins(joined, path))], kind, False
        for _, joined, kind in spelled:
            if other_case := known.by_path.get(key(joined)):
                return other_case, kind or "path_other_case", False
        for _, joined, kind in spelled:
            bare = stem(joined) if is_picture(joined) else joined
            other_ending = [
                path
                for path in known.by_stem.get(key(posixpath.basename(bare)), ())
                if key(stem(path)) == key(bare)
            ]
            if other_ending and not is_label_folder(posixpath.dirname(other_ending[0])):
                return other_ending, kind or ("path_ending" if bare != joined else ""), False
        return self._by_tail(written)

    def _by_tail(self, written: str) -> tuple[list[str], str, bool]:
        """The pictures that share the most last parts with a path: the name, and perhaps folders."""
        parts = parts_of(written)
        if not parts:
            return [], "", False
        candidates = pictures(self.picture_paths.listing).named(parts[-1])
        stated_split = folder_split("/".join(parts))
        if stated_split is not None:  # train/a.jpg is not the picture val/a.jpg
            candidates = [path for path in candidates if folder_split(path) in (None, stated_split)]
        if not candidates:
            return [], "", False
        num_shared = [_num_shared_parts(parts, path) for path in candidates]
        most = max(num_shared)
        candidates = [path for path, num in zip(candidates, num_shared, strict=True) if num == most]
        split = stated_split or self.split
        for preferred in (
            [path for path in candidates if split is not None and folder_split(path) == split],
            [path for path in candidates if self.folders[0] and path.startswith(f"{self.folders[0]}/")],
        ):
            candidates = preferred or candidates
        name, stated_name = key(posixpath.basename(candidates[0])), key(parts[-1])
        elsewhere = most < len(parts) or is_absolute(written)
        kind = "path_elsewhere" if elsewhere else "path_backslash" if "\\" in written else ""
        if stated_name.isdecimal() and stem(name) != stated_name:
            kind = "zeros_lost"
        elif stated_name not in (name, stem(name)):
            kind = kind or "path_ending"
        return candidates, kind, most < len(parts)

    def _twins(self, joined: str, path: str) -> list[str]:
        """Pictures in other folders that the path may mean as well."""
        starts = _starts(self.picture_paths.listing, path, ())
        folders = [f for f in starts if not is_label_folder(f) and _split_rank(f, self.split) > 0]
        pictures_there = [posixpath.join(folder, posixpath.normpath(path)) for folder in folders]
        return [picture for picture in pictures_there if picture != joined]


# ---- the folder that the paths of a label file start from


def _best_folder(
    listing: Listing, where: str, likely: Sequence[str], names: Sequence[str], split: str | None
) -> tuple[str, bool]:
    """The folder that paths start from, and whether it holds the pictures of all that were tried.

    ``likely`` folders are preferred.
    """
    sample = names[:: max(1, len(names) // _SAMPLE)]
    votes: Counter[str] = Counter()
    starts: list[set[str]] = []  # for each path
    for name in sample:
        spelled = [path for path, _ in _spellings(listing.root, name)]
        starts.append({folder for path in spelled for folder in _starts(listing, path, (*likely, ""))})
        votes.update(starts[-1])
    if not votes:
        return likely[0], True
    most = max(votes.values())

    def rank(folder: str) -> tuple[bool, bool, int, bool, int]:
        return (
            2 * votes[folder] >= most, not is_label_folder(folder), _split_rank(folder, split),
            folder in likely, votes[folder],
        )  # fmt: skip

    ranked = sorted(votes, key=lambda folder: (rank(folder), folder), reverse=True)
    doubtful = len(ranked) > 1 and rank(ranked[0]) == rank(ranked[1]) and ranked[0] not in likely
    if doubtful and any(set(ranked[:2]) <= folders for folders in starts):
        first, second = (folder or "the folder itself" for folder in sorted(ranked[:2]))
        raise DataError(
            f"{where}: pictures of these names lie in {first} and in {second}; accepted: paths with their "
            f"folder, or one of the two"
        )
    return ranked[0], votes[ranked[0]] == len(sample) or ranked[0] in likely


def _split_rank(folder: str, split: str | None) -> int:
    """2 for a folder of that split, 1 for one of no split, 0 for one of another split."""
    own_split = folder_split(f"{folder}/x")
    return 1 if own_split is None or split is None else 2 * int(own_split == split)


def _starts(listing: Listing, path: str, likely: Sequence[str]) -> set[str]:
    """Folders from which a path leads to a picture."""
    tail, starts = key(posixpath.normpath(path)), set()
    for picture in pictures(listing).named(posixpath.basename(tail)):
        candidate = key(picture)
        if posixpath.basename(candidate) != posixpath.basename(tail):  # they differ in their ending
            candidate = stem(candidate)
            tail = stem(tail) if is_picture(tail) else tail
        if candidate == tail:
            starts.add("")
        elif candidate.endswith("/" + tail):
            starts.add("/".join(picture.split("/")[: -1 - tail.count("/")]))
    for folder in likely:
        joined = below(posixpath.join(folder, path))
        if joined is not None and joined in listing and is_picture(joined):
            starts.add(folder)
    return starts


def _spellings(root: str, written: str) -> Iterator[tuple[str, str]]:
    """(path, kind of finding or "") for each way to read a stated path, the plainest first."""
    yield written, ""
    path = written.strip()
    for start in (root.rstrip("/"), f"file://{root}", f"file:{root}"):
        if path.startswith(f"{start}/"):
            yield path[len(start) + 1 :], ""
    if path != written:
        yield path, ""
    if "://" in path:
        path = urlsplit(path).path.lstrip("/")
        yield path, "path_quoted"
    if "\\" in path:
        path = path.replace("\\", "/")
        yield path, "path_backslash"
    if "%" in path:
        yield unquote(path), "path_quoted"


def _num_shared_parts(parts: Sequence[str], path: str) -> int:
    """How many last parts of two paths are the same, in any case; the name is taken to be one of them."""
    number = 1
    for folder, other_folder in zip(reversed(parts[:-1]), reversed(path.split("/")[:-1]), strict=False):
        if key(folder) != key(other_folder):
            break
        number += 1
    return number
