"""Which picture a label file means: by the path that it states, or by its own name.

People move data between machines, so paths in label files are often those of elsewhere: with backslashes,
a drive, a folder of somebody's home, URL-quoted, in another case. What names one picture alone is taken, and
`Places.findings` says so; what may be two pictures is refused.
"""

from __future__ import annotations

import json
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from tlray.errors import DataError
from tlray.findings import Finding, finding
from tlray.formats import evidence
from tlray.formats.listing import Listing, below, is_picture, stem
from tlray.formats.markup import text_of_head
from tlray.schema import SPLITS

_SAMPLE = 100  # paths of a label file that are tried to learn where its pictures lie
_SHARE_MISSING = 0.5  # of the pictures, beyond which the layout rather than a picture is amiss
_KINDS = {
    "path_backslash": "{n} paths with backslashes were taken for paths with /",
    "path_quoted": "{n} paths are URLs or URL-quoted (the file of that name was taken)",
    "path_other_case": "{n} paths differ from the file's name in case or in the form of letters",
    "path_ending": "{n} paths have another ending than the picture, or none (the same name was taken)",
    "path_elsewhere": "{n} paths are of another place (the one picture of that name was taken)",
}

Find = Callable[[str, str], str]
"""(path as a label file states it, where it stands) -> path of the picture below the root."""


def key(text: str) -> str:
    """What two spellings of one name have in common: composed letters, lower case."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text).lower()


def folder_split(path: str) -> str | None:
    """The split that a folder above a file is called by, the nearest first; train2017 and val_01, too."""
    for part in reversed(path.split("/")[:-1]):
        if (name := re.sub(r"[\d_.\- ]+$", "", part.lower())) in SPLITS:
            return SPLITS[name]
    return None


def names_in_head(listing: Listing, file: str, keys: str) -> list[str]:
    """Texts that stand behind a key (a regular expression) in the first bytes of a JSON file."""
    head = text_of_head(listing.head(file))
    texts = re.findall(
        rf'"(?:{keys})"\s*:\s*("(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{{4}})*")', head
    )
    return [str(json.loads(text)) for text in texts]


class Places:
    """The pictures of a listing, found by whatever a label file calls them."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._by_name: dict[str, list[str]] = defaultdict(list)  # without folder
        self._by_stem: dict[str, list[str]] = defaultdict(list)  # without folder and ending
        for path in listing.pictures:
            name = key(posixpath.basename(path))
            self._by_name[name].append(path)
            self._by_stem[stem(name)].append(path)
        self._notes: dict[str, list[str]] = defaultdict(list)
        self._missing: list[str] = []
        self._tried: list[str] = []

    # ---- by a stated path

    def lookup(self, where: str, own: str, names: Sequence[str], split: str | None = None) -> Find:
        """How to find the pictures of one label file, which lies in folder ``own`` and states ``names``.

        Raises DataError where they may lie in either of two folders; the function that it gives raises
        DataError for a path that may be two pictures, and for one of another machine that is none.
        """
        best, sure = self._best_folder(where, own, names, split)
        folders = list(dict.fromkeys([best, own, ""]))
        self._tried = list(dict.fromkeys([*self._tried, *folders]))

        def find(written: str, here: str) -> str:
            path, kind = self._resolve(written, folders, sure, split, here)
            if path is None:
                path = self._absent(written, best, here)
            elif kind:
                self._notes[kind].append(f"{written} -> {path}")
            return path

        return find

    def _best_folder(self, where: str, own: str, names: Sequence[str], split: str | None) -> tuple[str, bool]:
        """The folder that stated paths start from, and whether it holds every picture of the sample."""
        sample = names[:: max(1, len(names) // _SAMPLE)]
        votes: Counter[str] = Counter()
        starts: list[set[str]] = []  # of each name
        for name in sample:
            spelled = [path for path, _ in self._spellings(name)]
            starts.append({folder for path in spelled for folder in self._starts(path, (own, ""))})
            votes.update(starts[-1])
        if not votes:
            return own, True
        most = max(votes.values())

        def rank(folder: str) -> tuple[bool, bool, int, bool, int]:
            agrees = self._agrees(folder, split)
            return 2 * votes[folder] >= most, not _is_of_labels(folder), agrees, folder == own, votes[folder]

        ranked = sorted(votes, key=lambda folder: (rank(folder), folder), reverse=True)
        doubtful = len(ranked) > 1 and rank(ranked[0]) == rank(ranked[1])
        if doubtful and any(set(ranked[:2]) <= folders for folders in starts):
            one, other = (folder or "the folder itself" for folder in sorted(ranked[:2]))
            raise DataError(
                f"{where}: pictures of these names lie in {one} and in {other}; accepted: paths with their "
                f"folder, or one of the two"
            )
        return ranked[0], votes[ranked[0]] == len(sample) or ranked[0] == own

    def _agrees(self, folder: str, split: str | None) -> int:
        """2: the folder is of that split, 1: of none, 0: of another."""
        of = folder_split(f"{folder}/x")
        return 1 if of is None or split is None else 2 * int(of == split)

    def _starts(self, path: str, likely: Sequence[str]) -> set[str]:
        """Folders from which a path leads to a picture."""
        plain = posixpath.normpath(path)
        tail, starts = key(plain), set()
        for picture in self._by_name.get(key(posixpath.basename(plain)), ()):
            if key(picture) == tail:
                starts.add("")
            elif key(picture).endswith("/" + tail):
                starts.add(picture[: -len(plain) - 1])
        for folder in likely:
            joined = below(posixpath.join(folder, path))
            if joined is not None and joined in self._listing and is_picture(joined):
                starts.add(folder)
        return starts

    def _spellings(self, written: str) -> Iterator[tuple[str, str]]:
        """Ways to read a stated path, the plainest first, each with the kind of finding that it needs."""
        yield written, ""
        inside = f"{self._listing.root}/"
        if written.startswith(inside):
            yield written[len(inside) :], ""
        if written != written.strip():
            yield written.strip(), ""
        path = written.strip()
        if "://" in path:
            path = urlsplit(path).path.lstrip("/")
            yield path, "path_quoted"
        if "\\" in path:
            path = path.replace("\\", "/")
            yield path, "path_backslash"
        if "%" in path:
            yield unquote(path), "path_quoted"

    def _resolve(
        self, written: str, folders: Sequence[str], sure: bool, split: str | None, here: str
    ) -> tuple[str | None, str]:
        """(picture, kind of finding); None where there is none."""
        spelled = list(self._spellings(written))
        for path, kind in spelled:
            for folder in folders:
                joined = below(posixpath.join(folder, path))
                if joined is not None and joined in self._listing:
                    if not sure:
                        self._only(written, [joined, *self._twins(joined, path, split)], here)
                    return joined, kind
        for path, kind in spelled:
            for folder in folders:
                joined = below(posixpath.join(folder, path)) or ""
                same = [
                    p for p in self._by_name.get(key(posixpath.basename(path)), ()) if key(p) == key(joined)
                ]
                if same:
                    return self._only(written, same, here), kind or "path_other_case"
        for path, kind in reversed(spelled):
            tails = self._longest_tails(path)
            if tails:
                plain = "/" in posixpath.normpath(path).strip("./") or path.startswith("/")
                return self._only(written, tails, here), "path_elsewhere" if plain else kind
        for path, _ in spelled:
            for folder in folders:
                joined = below(posixpath.join(folder, path)) or ""
                name = key(posixpath.basename(joined))
                bare = stem(name) if is_picture(name) else name
                same = [
                    p
                    for p in self._by_stem.get(bare, ())
                    if posixpath.dirname(p) == posixpath.dirname(joined)
                ]
                if same:
                    return self._only(written, same, here), "path_ending"
        return None, ""

    def _twins(self, joined: str, path: str, split: str | None) -> list[str]:
        """Other pictures that the path may mean as well."""
        starts = self._starts(path, ())
        fit = [f for f in starts if not _is_of_labels(f) and self._agrees(f, split) > 0]
        return [other for f in fit if (other := posixpath.join(f, posixpath.normpath(path))) != joined]

    def _longest_tails(self, path: str) -> list[str]:
        """Pictures that have the longest end of a path in common with it, the name at least."""
        parts = key(path).strip("/").split("/")
        longest, best = 0, list[str]()
        for picture in self._by_name.get(parts[-1], ()):
            theirs = key(picture).split("/")
            same = 0
            while same < min(len(parts), len(theirs)) and parts[-1 - same] == theirs[-1 - same]:
                same += 1
            if same > longest:
                longest, best = same, []
            if same == longest:
                best.append(picture)
        pictures = [p for p in best if not _is_of_labels(posixpath.dirname(p))]
        return pictures or best

    def _only(self, written: str, pictures: Sequence[str], here: str) -> str:
        if len(set(pictures)) > 1:
            raise DataError(
                f"{here}: {written!r} may be {pictures[0]} or {pictures[1]}; accepted: a path below "
                f"{self._listing.root} that names one picture"
            )
        return pictures[0]

    def _absent(self, written: str, folder: str, here: str) -> str:
        """The path that a picture would have; it is reported as missing later."""
        path = below(posixpath.join(folder, written.strip()))
        windows = "\\" in written or re.match("[A-Za-z]:", written.strip())
        if path is None or windows or "://" in written:
            what = "a Windows path (backslash or drive)" if windows else "a path of another place"
            raise DataError(
                f"{here}: {written!r}: {what}, and no picture of that name is below {self._listing.root}; "
                f"accepted: a path below it or from the label file's folder, with / between folders"
            )
        self._missing.append(f"{here}: {written!r}")
        return path

    # ---- by the label file's own name

    def paired(self, files: Sequence[str]) -> dict[str, Pair]:
        """For each label file of one picture the pictures that have its name, the likeliest kind of place."""
        places = {picture: _place(picture) for picture in self._listing.pictures}
        return {file: self._pair(file, places) for file in files}

    def _pair(self, file: str, places: dict[str, tuple[str, ...]]) -> Pair:
        folder, _, name = stem(file).rpartition("/")
        # "a.jpg.xml" is of a.jpg.
        same = self._by_name.get(key(name), []) if is_picture(name) else self._by_stem.get(key(name), [])
        beside = [p for p in same if posixpath.dirname(p) == folder]
        if beside:
            return Pair(beside, 0)
        no_masks = [p for p in same if not _is_of_labels(posixpath.dirname(p))] or same
        place = _place(file)
        parallel = [p for p in no_masks if places[p][:-1] == place[:-1]]
        if parallel:
            return Pair(parallel, 1)
        split = folder_split(file)
        return Pair([p for p in no_masks if self._agrees(posixpath.dirname(p), split) != 0], 2)

    def named(self, name: str) -> list[str]:
        """Pictures of that name, in any case and any folder but those of masks."""
        same = self._by_name.get(key(name), []) or (
            [] if is_picture(name) else self._by_stem.get(key(name), [])
        )
        return [path for path in same if not _is_of_labels(posixpath.dirname(path))]

    def absent(self, path: str, where: str) -> str:
        """Note that the picture of a label file is not there, and give its path back."""
        self._missing.append(where)
        return path

    # ---- at the end

    def check(self, total: int, looked: Iterable[str] = ()) -> None:
        """Raises DataError where most of ``total`` pictures are not there."""
        if self._missing and len(self._missing) > _SHARE_MISSING * total:
            folders = [folder or "." for folder in (*self._tried, *looked)]
            raise DataError(
                f"{self._listing.root}: {len(self._missing)} of {total} pictures that the label files name "
                f"are not there, first: {self._missing[0]}; looked for in {', '.join(folders[:5])}; "
                f"accepted: pictures below {self._listing.root}"
            )

    def findings(self) -> list[Finding]:
        """How paths were read that did not lead straight to a picture."""
        return [f for kind, text in _KINDS.items() for f in finding("info", kind, self._notes[kind], text)]


@dataclass(frozen=True)
class Pair:
    """Pictures of a label file's name; ``rank``: 0 beside it, 1 in the folder parallel to it, 2 elsewhere."""

    pictures: list[str]
    rank: int


def _place(path: str) -> tuple[str, ...]:
    """A path's folders without the words of layouts (train/images, train/labels), and its name."""
    *folders, name = key(stem(path)).split("/")
    return (*(folder for folder in folders if not evidence.is_layout_word(folder)), name)


def _is_of_labels(folder: str) -> bool:
    """Whether a folder is called by a word for labels or masks."""
    return any(part.lower() in evidence.LABEL_WORDS for part in folder.split("/"))


def unlabelled(listing: Listing, labelled: Iterable[str], file: str) -> tuple[list[Finding], dict[str, int]]:
    """A finding of the pictures that no label file speaks of, and how many pictures in folders of masks were
    passed over; ``file`` says what they lack, as in ".xml"."""
    rest = sorted(set(listing.pictures) - set(labelled))
    masks = [path for path in rest if _is_of_labels(posixpath.dirname(path))]
    without = sorted(set(rest) - set(masks))
    text = f"{{n}} pictures have no {file} (left out; they are not taken for pictures that show no object)"
    return finding("warning", "no_label_file", without, text), (
        {"pictures of masks": len(masks)} if masks else {}
    )
