"""Which picture a path in a label file means.

People move data between machines, so paths in label files are often those of elsewhere: with backslashes,
a drive, a folder of somebody's home, URL-quoted, in another case, without ending. What names one picture
alone is taken, and `Places.findings` says so; what may be two pictures is refused.
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

_SAMPLE = 100  # paths of a label file that are tried to learn where its pictures lie
_SHARE_MISSING = 0.5  # of the pictures, beyond which the layout rather than a picture is amiss
_DRIVE = re.compile(r"[A-Za-z]:(?=[/\\]|$)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/{1,3}(?=.)")
_KINDS = {
    "path_backslash": "{n} paths with backslashes were taken for paths with /",
    "path_quoted": "{n} paths are URLs or URL-quoted (the file of that name was taken)",
    "path_other_case": "{n} paths differ from the file's name in case or in the form of letters",
    "path_ending": "{n} paths have another ending than the picture (the same name was taken)",
    "path_elsewhere": "{n} paths are of another place (the one picture that ends alike was taken)",
    "zeros_lost": "{n} numbers name pictures whose names begin with zeros",
}


def key(text: str) -> str:
    """What two spellings of one name have in common: composed letters, lower case."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text).lower()


def is_of_labels(folder: str) -> bool:
    """Whether a folder is called by a word for labels or masks."""
    return any(part.strip().lower() in LABEL_WORDS for part in folder.split("/"))


def plain(path: str) -> str:
    """A path with slashes, without ``file://``, a scheme or a drive."""
    path = path.strip().replace("\\", "/")
    return _DRIVE.sub("", _SCHEME.sub("/", path, count=1), count=1)


def parts_of(path: str) -> list[str]:
    """Folders and name of a path of any machine, without drive, scheme and a URL's query."""
    if "://" in path:
        path = re.split(r"[?#]", path)[0]
    return [part for part in unquote(plain(path)).split("/") if part not in ("", ".", "..")]


def is_absolute(path: str) -> bool:
    """Whether a path begins at a machine's root, a drive or a URL."""
    return path.startswith(("/", "\\", "~")) or bool(_DRIVE.match(path) or _SCHEME.match(path))


def accepted(listing: Listing, path: str) -> str:
    """What a path must look like, for the message about one that leads to no picture."""
    what = f"paths relative to the label file or to {storage.absolute(listing.root)}, with / between folders"
    if _DRIVE.match(path) or "\\" in path:
        return f"{what}; this one is a Windows path, and no one picture here has its name"
    if is_absolute(path):
        return f"{what}; this one begins at another machine's root, and no one picture here has its name"
    return what


class Pictures:
    """The pictures of a listing by what a path may have in common with theirs; see `pictures`."""

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

    def called(self, name: str) -> list[str]:
        """Pictures of that name in any folder: masks only where there is nothing else, endings that differ
        and lost zeros only where no name is the same."""
        name = key(name)
        bare = stem(name) if is_picture(name) else name
        same, alike = self.by_name.get(name, []), self.by_stem.get(bare, [])
        number = self.by_number.get(int(name), []) if name.isdecimal() else []
        for some in (same, alike):
            if photos := [path for path in some if not is_of_labels(posixpath.dirname(path))]:
                return photos
        return same or alike or number


@functools.lru_cache(maxsize=2)
def pictures(listing: Listing) -> Pictures:
    """The pictures of a listing, put in order once."""
    return Pictures(listing)


def near(listing: Listing, names: Iterable[str]) -> list[str]:
    """All pictures of the folders in which some are called as these paths end."""
    there, folders = pictures(listing), set()
    for name in names:
        if parts := parts_of(name):
            folders |= {posixpath.dirname(path) for path in there.called(parts[-1])}
    return [path for path in listing.pictures if posixpath.dirname(path) in folders]


class Places:
    """The pictures of a listing, found by paths of label files; collects what is to be said of these."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.notes: dict[str, list[str]] = defaultdict(list)
        self.missing: list[tuple[str, str]] = []  # where a picture is named, and its path there or ""
        self.tried: list[str] = []

    def lookup(
        self,
        where: str,
        own: str,
        names: Sequence[str] = (),
        split: str | None = None,
        folders: Sequence[str] = (),
    ) -> Lookup:
        """How to find the pictures of one label file, which lies in folder ``own`` and states ``names``.

        ``folders`` are others that its paths may start from; of pictures of one name those of ``split`` are
        meant. Raises DataError where they may lie in either of two folders.
        """
        best, sure = _best_folder(self.listing, where, [own, *folders], names, split)
        starts = list(dict.fromkeys([best, own, *folders, ""]))
        self.tried = list(dict.fromkeys([*self.tried, *starts]))
        return Lookup(self, starts, sure, split)

    def absent(self, where: str, written: str = "") -> None:
        """Note that a picture is not there."""
        self.missing.append((where, written))

    def check(self, total: int, looked: Iterable[str] = ()) -> None:
        """Raises DataError where most of ``total`` pictures are not there."""
        if not self.missing or len(self.missing) <= _SHARE_MISSING * total:
            return
        folders = [folder or "." for folder in dict.fromkeys((*self.tried, *looked))]
        where, written = self.missing[0]
        raise DataError(
            f"{self.listing.root}: {len(self.missing)} of {total} pictures that the label files name are not "
            f"there, first: {where}{f': {written!r}' if written else ''}; looked for in "
            f"{', '.join(folders[:5])}; accepted: {accepted(self.listing, written)}"
        )

    def findings(self) -> list[Finding]:
        """How paths were read that did not lead straight to a picture."""
        return [f for kind, text in _KINDS.items() for f in finding("info", kind, self.notes[kind], text)]


@dataclass
class Lookup:
    """Finds the pictures that one label file names; made by `Places.lookup`."""

    places: Places
    folders: list[str]  # that paths start from, the likeliest first
    sure: bool  # the first of them holds every picture
    split: str | None
    by_tail: set[str] = field(default_factory=set)  # pictures that the last parts of another path led to

    def __call__(self, written: str, here: str) -> str:
        """The picture; of one that is not there the path that it would have, which `Places.check` counts.

        Raises DataError where it may be either of two; ``here`` is for the message.
        """
        found, kind, by_tail = self._resolve(written)
        if len(found) > 1:
            raise DataError(
                f"{here}: {written!r} may be {found[0]} or {found[1]}; accepted: a path below "
                f"{self.places.listing.root} that names one picture"
            )
        if not found:
            self.places.absent(here, written)
            return self.absent(written)
        return self._noted(written, found[0], kind, by_tail)

    def find(self, written: str) -> str | None:
        """The one picture that a text names; None where there is none, or several."""
        found, kind, by_tail = self._resolve(written)
        return self._noted(written, found[0], kind, by_tail) if len(found) == 1 else None

    def several(self, written: str) -> list[str]:
        """The pictures that a text may name."""
        return self._resolve(written)[0]

    def absent(self, written: str) -> str:
        """The path that a picture which is not there would have, as far as one below the root says it."""
        own = None if is_absolute(written) else below(posixpath.join(self.folders[0], plain(written)))
        return own or "/".join(parts_of(written)) or "?"

    def _noted(self, written: str, path: str, kind: str, by_tail: bool) -> str:
        if kind:
            self.places.notes[kind].append(f"{written} -> {path}")
        if by_tail:
            self.by_tail.add(path)
        return path

    def _resolve(self, written: str) -> tuple[list[str], str, bool]:
        """(pictures that a path may mean, kind of finding, whether only its last parts led there)."""
        listing, there = self.places.listing, pictures(self.places.listing)
        if not written.strip():
            return [], "", False
        spelled = [
            (path, joined, kind)
            for path, kind in _spellings(listing.root, written)
            for folder in self.folders
            if (joined := below(posixpath.join(folder, path))) is not None
        ]
        for path, joined, kind in spelled:
            # What has no ending at all may be a picture, too.
            if joined in listing and (is_picture(joined) or "." not in posixpath.basename(joined)):
                return [joined, *(() if self.sure else self._twins(joined, path))], kind, False
        for _, joined, kind in spelled:
            if same := there.by_path.get(key(joined)):
                return same, kind or "path_other_case", False
        for _, joined, kind in spelled:
            bare = stem(joined) if is_picture(joined) else joined
            alike = [
                path
                for path in there.by_stem.get(key(posixpath.basename(bare)), ())
                if key(stem(path)) == key(bare)
            ]
            if alike and not is_of_labels(posixpath.dirname(alike[0])):
                return alike, kind or ("path_ending" if bare != joined else ""), False
        return self._by_tail(written)

    def _by_tail(self, written: str) -> tuple[list[str], str, bool]:
        """Pictures that have the longest end of a path in common with it, the name at least."""
        parts = parts_of(written)
        if not parts:
            return [], "", False
        found = pictures(self.places.listing).called(parts[-1])
        stated = folder_split("/".join(parts))
        if stated is not None:  # train/a.jpg is not the picture val/a.jpg
            found = [path for path in found if folder_split(path) in (None, stated)]
        if not found:
            return [], "", False
        tails = [_same_tail(parts, path) for path in found]
        found = [path for path, tail in zip(found, tails, strict=True) if tail == max(tails)]
        split = stated or self.split
        for some in (
            [path for path in found if split is not None and folder_split(path) == split],
            [path for path in found if self.folders[0] and path.startswith(f"{self.folders[0]}/")],
        ):
            found = some or found
        name, own = key(posixpath.basename(found[0])), key(parts[-1])
        elsewhere = max(tails) < len(parts) or is_absolute(written)
        kind = "path_elsewhere" if elsewhere else "path_backslash" if "\\" in written else ""
        if own.isdecimal() and stem(name) != own:
            kind = "zeros_lost"
        elif own not in (name, stem(name)):
            kind = kind or "path_ending"
        return found, kind, max(tails) < len(parts)

    def _twins(self, joined: str, path: str) -> list[str]:
        """Other pictures that the path may mean as well."""
        starts = _starts(self.places.listing, path, ())
        fit = [f for f in starts if not is_of_labels(f) and _agrees(f, self.split) > 0]
        return [other for f in fit if (other := posixpath.join(f, posixpath.normpath(path))) != joined]


# ---- where the pictures of a label file lie


def _best_folder(
    listing: Listing, where: str, likely: Sequence[str], names: Sequence[str], split: str | None
) -> tuple[str, bool]:
    """The folder that stated paths start from, and whether it holds every picture of the sample."""
    sample = names[:: max(1, len(names) // _SAMPLE)]
    votes: Counter[str] = Counter()
    starts: list[set[str]] = []  # of each name
    for name in sample:
        spelled = [path for path, _ in _spellings(listing.root, name)]
        starts.append({folder for path in spelled for folder in _starts(listing, path, (*likely, ""))})
        votes.update(starts[-1])
    if not votes:
        return likely[0], True
    most = max(votes.values())

    def rank(folder: str) -> tuple[bool, bool, int, bool, int]:
        agrees = _agrees(folder, split)
        return 2 * votes[folder] >= most, not is_of_labels(folder), agrees, folder in likely, votes[folder]

    ranked = sorted(votes, key=lambda folder: (rank(folder), folder), reverse=True)
    doubtful = len(ranked) > 1 and rank(ranked[0]) == rank(ranked[1]) and ranked[0] not in likely
    if doubtful and any(set(ranked[:2]) <= folders for folders in starts):
        one, other = (folder or "the folder itself" for folder in sorted(ranked[:2]))
        raise DataError(
            f"{where}: pictures of these names lie in {one} and in {other}; accepted: paths with their "
            f"folder, or one of the two"
        )
    return ranked[0], votes[ranked[0]] == len(sample) or ranked[0] in likely


def _agrees(folder: str, split: str | None) -> int:
    """2: the folder is of that split, 1: of none, 0: of another."""
    of = folder_split(f"{folder}/x")
    return 1 if of is None or split is None else 2 * int(of == split)


def _starts(listing: Listing, path: str, likely: Sequence[str]) -> set[str]:
    """Folders from which a path leads to a picture."""
    tail, starts = key(posixpath.normpath(path)), set()
    for picture in pictures(listing).called(posixpath.basename(tail)):
        whole = key(picture)
        if posixpath.basename(whole) != posixpath.basename(tail):  # of another ending
            whole = stem(whole)
            tail = stem(tail) if is_picture(tail) else tail
        if whole == tail:
            starts.add("")
        elif whole.endswith("/" + tail):
            starts.add("/".join(picture.split("/")[: -1 - tail.count("/")]))
    for folder in likely:
        joined = below(posixpath.join(folder, path))
        if joined is not None and joined in listing and is_picture(joined):
            starts.add(folder)
    return starts


def _spellings(root: str, written: str) -> Iterator[tuple[str, str]]:
    """Ways to read a stated path, the plainest first, each with the kind of finding that it needs."""
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


def _same_tail(parts: Sequence[str], path: str) -> int:
    """How many last parts of both are the same, in any case; the name itself counts as one."""
    number = 1
    for one, other in zip(reversed(parts[:-1]), reversed(path.split("/")[:-1]), strict=False):
        if key(one) != key(other):
            break
        number += 1
    return number
