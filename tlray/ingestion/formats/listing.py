"""A source of labelled pictures, listed once for all formats."""

from __future__ import annotations

import functools
import io
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from tlray import storage
from tlray.data.image import EXTENSIONS
from tlray.data.schema import SPLITS
from tlray.errors import DataError, spelling_hint
from tlray.ingestion.findings import Finding, finding

# Pictures that tlray cannot open; they are listed, so that the report names each of them.
OTHER_PICTURES = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".dng", ".cr2")
LABEL_ENDINGS = (
    ".xml", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".yaml", ".yml", ".data", ".names",
    ".parquet", ".arrow", ".tar",
)  # fmt: skip
ARCHIVES = (".zip", ".tar.gz", ".tgz", ".7z", ".rar", ".tar.bz2", ".tar.xz", ".tar.zst")
_JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN")
HEAD = 64 * 1024  # bytes, enough to recognize a label file
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_READERS = 16  # threads; most of the time is waiting for object storage


class Listing:
    """The files below ``root`` (a URI), as sorted paths relative to it.

    ``named``: the label file that the user named as the source; formats read no other label file then.
    """

    def __init__(self, root: str, files: Sequence[str], folders: Sequence[str] = (), named: str = "") -> None:
        self.root, self.files, self.named = root, sorted(files), named
        above = {path[:n] for path in self.files for n, sign in enumerate(path) if sign == "/"}
        self.folders = sorted({*folders, *above})
        self.pictures = [path for path in self.files if is_picture(path)]
        self.findings: list[Finding] = []
        self.last = ""  # label file that was read last, for the message of an unexpected error
        self._there = set(self.files)
        self._heads: dict[str, bytes] = {}

    @classmethod
    def open(cls, source: str) -> Listing:
        """List a folder, or the folder with the pictures of a label file. Raises DataError, StorageError."""
        if not storage.exists(source):
            raise DataError(
                f"{source}: not found; accepted: a folder or table of labelled pictures"
                f"{spelling_hint(source)}"
            )
        if storage.is_dir(source):
            return cls._of(source)
        name = storage.name(source)
        if name.lower().endswith(ARCHIVES):
            raise DataError(f"{source}: is an archive; accepted: the folder that it unpacks to")
        if is_picture(name):
            raise DataError(f"{source}: is one picture; accepted: a folder or table of labelled pictures")
        if not name.lower().endswith(LABEL_ENDINGS):
            raise DataError(
                f"{source}: is no label file; accepted: a folder, or a file ending in "
                f"{', '.join(LABEL_ENDINGS)}"
            )
        storage.walk(source)  # raises for a pipe
        # The pictures of annotations/instances.json are beside that folder, not in it.
        root, named = storage.parent(source), name
        listing = cls._of(root, named)
        if not listing.pictures and not named.lower().endswith((".tar", ".parquet", ".arrow")):
            above = cls._of(storage.parent(root), f"{storage.name(root)}/{named}")
            return above if above.pictures else listing
        return listing

    @classmethod
    def _of(cls, root: str, named: str = "") -> Listing:
        tree = storage.tree(root)
        listing = cls(
            storage.absolute(root),
            [path for path in tree.files if not _hidden(path)],
            [path for path in tree.folders if not _hidden(path)],
            named,
        )
        listing.findings += [
            *finding("warning", "broken_link", tree.broken, "{n} links lead nowhere (passed over)"),
            *finding("warning", "link_loop", tree.loops, "{n} links lead to a folder above (passed over)"),
            *finding("warning", "no_file", tree.special, "{n} pipes, sockets or devices (passed over)"),
            *finding("warning", "name_not_utf8", tree.unnamed, "{n} names are no UTF-8 (passed over)"),
        ]  # fmt: skip
        return listing

    # ---- names

    def __contains__(self, path: str) -> bool:
        return path in self._there

    def labels(self, *endings: str) -> list[str]:
        """Label files with these endings, in any case; only that named as the source, if one was named."""
        if self.named:
            return [self.named] if self.named.lower().endswith(endings) else []
        return [path for path in self.files if path.lower().endswith(endings)]

    @functools.cached_property
    def _any_case(self) -> dict[str, str]:
        """Path in lower case -> path, without paths that differ from another by case alone."""
        count = Counter(path.lower() for path in self.files)
        return {path.lower(): path for path in self.files if count[path.lower()] == 1}

    def match(self, path: str) -> str | None:
        """The file of that path, else the one file whose path differs by case alone."""
        return path if path in self._there else self._any_case.get(path.lower())

    @functools.cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """Path without ending, in lower case -> pictures."""
        grouped: dict[str, list[str]] = {}
        for path in self.pictures:
            grouped.setdefault(stem(path).lower(), []).append(path)
        return grouped

    def picture(self, path_without_ending: str) -> str | None:
        """The picture of that path and any ending, in any case; None where there is none or several."""
        candidates = self.by_stem.get(path_without_ending.lower(), [])
        same_case = [path for path in candidates if stem(path) == path_without_ending]
        return (same_case or candidates)[0] if len(same_case or candidates) == 1 else None

    def where(self, path: str) -> str:
        """URI of a file, for messages."""
        return storage.join(self.root, path)

    # ---- contents

    def read(self, path: str) -> bytes:
        """A whole file. Raises StorageError."""
        return storage.read_bytes(self.where(path))

    def read_all(self, paths: Sequence[str]) -> Iterator[bytes]:
        """The contents of many small files, in order. Raises StorageError."""
        contents = storage.in_threads(self.read, paths, _READERS, 64 * _READERS)
        for path, data in zip(paths, contents, strict=True):
            self.last = path
            yield data

    def head(self, path: str) -> bytes:
        """The first 64 KiB of a file. Raises StorageError."""
        if path not in self._heads:
            self._heads[path] = storage.read_head(self.where(path), HEAD)
        return self._heads[path]

    def head_text(self, path: str) -> str:
        """The text in the first 64 KiB of a file, as far as it can be decoded. Raises StorageError."""
        self.last = path
        return start_of_text(self.head(path))

    def text(self, path: str) -> str:
        """The text of a file in UTF-8, or in UTF-16 with a byte order mark, without that mark.

        Raises DataError, StorageError.
        """
        self.last = path
        return text_of(self.where(path), self.read(path))


def start_of_text(head: bytes) -> str:
    """The beginning of a text as far as it can be decoded, for searching words in it."""
    if head.startswith(_UTF_16):
        return head[: len(head) // 2 * 2].decode("utf-16", errors="replace")
    return head.decode("utf-8-sig", errors="replace")


def text_of(where: str, data: bytes) -> str:
    """The text of a small file, without a byte order mark. Raises DataError where it is not UTF-8 or
    UTF-16."""
    if data.startswith(_UTF_16):  # Windows PowerShell's `>`
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError:
            raise DataError(f"{where}: no valid UTF-16 text; accepted: UTF-8") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{where} line {line}: no text in UTF-8; accepted: UTF-8") from None


def lines_of(text: str) -> list[str]:
    """Lines as editors count them: they end in LF, CRLF or CR (`str.splitlines` takes other signs, too)."""
    return [line.rstrip("\n") for line in io.StringIO(text, newline=None)]


def is_picture(path: str) -> bool:
    """Whether a path has the ending of a picture, in any case."""
    return path.lower().endswith(EXTENSIONS + OTHER_PICTURES)


def stem(path: str) -> str:
    """A path without its ending."""
    return posixpath.splitext(path)[0]


def split_in(name: str) -> str | None:
    """The split named by a word in the name of a file or folder (instances_train2017, valid), if any."""
    words = re.findall("[a-z]+", name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def below(path: str) -> str | None:
    """A normalized relative path; None where it leads out of its folder."""
    plain = posixpath.normpath(path)
    return None if plain in (".", "..") or plain.startswith(("../", "/")) else plain


def counts_by_ending(paths: Iterable[str]) -> str:
    """As in ``12 .jpg, 3 .xml``, the most frequent first."""
    counts = Counter(posixpath.splitext(path)[1].lower() or "without ending" for path in paths)
    return ", ".join(f"{number} {ending}" for ending, number in counts.most_common(6)) or "no files"


def _hidden(path: str) -> bool:
    return any(part.startswith(".") or part in _JUNK for part in path.split("/"))
