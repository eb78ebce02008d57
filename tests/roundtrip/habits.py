"""Oddities of real data sets ("habits"), and the folder that is written with them.

Where the right outcome of a habit is not simply the truth, its writer says so: `Out.unlabelled` (the picture
may stay without labels or be left out, but the report has to mention it), `Out.refuse` (the set has to be
refused), `Out.must_report` (the report has to mention it).
"""

from __future__ import annotations

import io
import json
import posixpath
import unicodedata
from collections.abc import Collection, Sequence
from csv import QUOTE_ALL, QUOTE_MINIMAL, writer
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.roundtrip.truth import Picture, Truth

JUNK = {
    "README.txt": b"Collected in May.\nAsk Ann before you use 2 or more of them.\n",
    ".DS_Store": b"\0\0\0\1Bud1",
    "Thumbs.db": b"\xd0\xcf\x11\xe0",
    "desktop.ini": b"[.ShellClassInfo]\r\n",
    "__MACOSX/._p1.jpg": b"\0\5\26\7",
    "notes.json": b'{"author": "Ann", "pictures": 12}',
    "LICENSE": b"CC BY 4.0\n",
    "README.roboflow.txt": b"\nexport - v1\n==============================\n\nThe data has 9 images.\n",
    ".git/HEAD": b"ref: refs/heads/main\n",
    "script.py": b"print(1)\n",
}
NAMES = (
    "bom", "utf16", "crlf", "empty_lines", "trailing_blanks", "quotes", "upper_endings", "upper_folders",
    "nfd", "junk", "paths", "as_stored", "missing", "gaps", "shuffled", "stray", "same_stems", "fault",
)  # fmt: skip
TEXT = frozenset({"bom", "crlf", "empty_lines", "trailing_blanks"})
COMMON = frozenset({"upper_endings", "upper_folders", "nfd", "junk", "stray"})
PATHS = ("dot", "backslash", "drive", "home")


@dataclass(frozen=True)
class Habits:
    """Which habits a set has; all are off unless drawn."""

    bom: bool = False  # label files begin with a byte order mark
    utf16: bool = False  # csv and txt files are UTF-16, as PowerShell writes them
    crlf: bool = False
    empty_lines: bool = False  # at the end, and between lines where their numbers mean nothing
    trailing_blanks: bool = False
    quotes: bool = False  # every cell of a csv is quoted
    upper_endings: bool = False  # P0.JPG, P0.TXT
    upper_folders: bool = False  # Train, Images
    nfd: bool = False  # label files spell names in decomposed letters, the disk in composed ones
    junk: tuple[str, ...] = ()
    paths: str = "plain"  # how label files write paths: one of PATHS
    as_stored: bool = False  # boxes and sizes are those of the file before EXIF turns it
    missing: bool = False  # the last picture has no label file
    gaps: bool = False  # numbers of classes and pictures have gaps, or a class never occurs
    shuffled: bool = False  # rows and ids are in reverse order
    stray: bool = False  # beside the others is a picture without any label
    same_stems: bool = False  # pictures of different splits share names
    fault: str = ""  # a mistake, one of the layout's ``faults``, that has to be refused or reported

    def __str__(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in asdict(self).items() if v and v != "plain") or "none"


def habits(names: Collection[str], faults: Sequence[str] = ()) -> st.SearchStrategy[Habits]:
    """Each of these habits in one of six sets, a fault in one of ten."""
    rare = st.sampled_from([False] * 5 + [True])
    drawn: dict[str, st.SearchStrategy[Any]] = {n: rare for n in NAMES if n in names}
    if "junk" in names:
        some = st.lists(st.sampled_from(sorted(JUNK)), min_size=1, max_size=4, unique=True).map(tuple)
        drawn["junk"] = st.one_of(st.just(()), st.just(()), some)
    if "paths" in names:
        drawn["paths"] = st.sampled_from(["plain"] * 8 + list(PATHS))
    if faults:
        drawn["fault"] = st.sampled_from([""] * 9 * len(faults) + list(faults))
    return st.builds(Habits, **drawn)


@dataclass
class Out:
    """The folder that a writer fills, and what the right outcome is."""

    root: Path
    habits: Habits
    truth: Truth
    words: dict[str, str]  # split -> its name in this set
    source: str = ""  # path below the root that ingest gets
    refuse: str = ""  # why it has to be refused
    may_lack: set[str] = field(default_factory=set)  # sha256 of pictures that may be left out
    unlabelled: set[str] = field(default_factory=set)  # sha256 of pictures without labels, to be reported
    must_report: list[str] = field(default_factory=list)  # patterns that the report's findings have to match
    paths: dict[int, str] = field(default_factory=dict)  # picture's number -> path below the root

    # ---- names

    def folder(self, name: str) -> str:
        """A folder's name by habit."""
        return name.capitalize() if self.habits.upper_folders else name

    def ending(self, name: str) -> str:
        """A file's ending by habit."""
        return name.upper() if self.habits.upper_endings else name

    def split(self, picture: Picture) -> str:
        """Folder of a picture's split, "" for none."""
        return self.folder(self.words[picture.split]) if picture.split else ""

    def stem(self, picture: Picture) -> str:
        """A picture's name without ending; by habit the names begin anew in each split."""
        if not self.habits.same_stems or not picture.split:
            return picture.stem
        of_split = [p for p in self.truth.pictures if p.split == picture.split]
        return self.truth.pictures[of_split.index(picture)].stem

    def spelt(self, name: str, split: str | None = "validation") -> str:
        """A class name as label files spell it; by habit decomposed, except in train."""
        return unicodedata.normalize("NFD", name) if self.habits.nfd and split != "train" else name

    def written_path(self, path: str) -> str:
        """A path as a label file writes it."""
        path = unicodedata.normalize("NFD", path) if self.habits.nfd else path
        windows = path.replace("/", "\\")
        return {
            "plain": path,
            "dot": f"./{path}",
            "backslash": windows,
            "drive": f"C:\\Users\\ann\\data\\{windows}",
            "home": f"/home/ann/my data/{path}",
        }[self.habits.paths]

    # ---- files

    def write(self, path: str, data: bytes) -> str:
        """A file below the root."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        assert not file.exists(), f"the writer writes {path} twice"
        file.write_bytes(data)
        return path

    def text(self, path: str, lines: Sequence[str], positional: bool = False, wide: bool = False) -> str:
        """A text by habit. ``positional``: empty lines only at the end; ``wide``: may be UTF-16."""
        h = self.habits
        rows = [line + ("  " if h.trailing_blanks and n % 2 else "") for n, line in enumerate(lines)]
        if h.empty_lines:
            rows = [*rows, "", ""] if positional or len(rows) < 2 else [rows[0], "", *rows[1:], "", ""]
        return self.write(path, self.bytes("\n".join(rows) + "\n" * bool(rows), wide))

    def bytes(self, text: str, wide: bool = False) -> bytes:
        """A text's bytes: line ends and byte order mark by habit."""
        h = self.habits
        if h.crlf:
            text = text.replace("\n", "\r\n")
        if wide and h.utf16:
            return text.encode("utf-16")
        return (b"\xef\xbb\xbf" if h.bom else b"") + text.encode()

    def json(self, path: str, tree: Any) -> str:
        """A JSON file, its lines and mark by habit."""
        indent = 1 if self.habits.crlf else None
        return self.write(
            path, self.bytes(json.dumps(tree, ensure_ascii=self.habits.shuffled, indent=indent))
        )

    def csv(self, path: str, rows: Sequence[Sequence[object]], sign: str = ",") -> str:
        """A table by habit; the first row is the header."""
        h = self.habits
        text = io.StringIO()
        quoting = QUOTE_ALL if h.quotes else QUOTE_MINIMAL
        table = writer(text, delimiter=sign, quoting=quoting, lineterminator="\n")
        body = list(rows[1:])
        for n, row in enumerate([rows[0], *(reversed(body) if h.shuffled else body)]):
            cells = list(row)
            if h.trailing_blanks and n % 2 and isinstance(cells[-1], str):
                cells[-1] += " "
            table.writerow(cells)
        end = "\n" if h.empty_lines else ""
        return self.write(path, self.bytes(text.getvalue() + end, wide=True))

    def picture(self, folder: str, picture: Picture) -> str:
        """Write a picture; its path below the root."""
        path = posixpath.join(folder, self.stem(picture) + self.ending(picture.ending))
        self.paths[picture.number] = path
        return self.write(path, picture.encoded())

    def junk(self) -> None:
        """Write files that are neither pictures nor labels."""
        for name in self.habits.junk:
            if not (self.root / name).exists():
                self.write(name, JUNK[name])

    def lacks_label(self, picture: Picture) -> bool:
        """Whether by habit the label file of this picture is missing, which has to be reported."""
        if not self.habits.missing or picture is not self.truth.pictures[-1]:
            return False
        self.unlabelled.add(picture.sha256)
        self.must_report.append(r"label|annotation|without mask|in no file|not listed|no row")
        return True

    def stray(self, folder: str) -> None:
        """By habit write a picture without any label into this folder, which has to be reported."""
        if not self.habits.stray:
            return
        picture = Picture(90_000, "overview", ".jpg", 40, 40, 1, None)
        self.write(posixpath.join(folder, "overview.jpg"), picture.encoded())
        self.unlabelled.add(picture.sha256)
        self.must_report.append(r"label|annotation|in no|not listed|pictures? |\.jpg|without")
