"""WebDataset: ``*.tar`` files in which members of one name are one sample: ``000017.jpg`` and ``000017.cls``.

The label is in ``.cls`` (a class, usually its number), ``.json`` or ``.txt``. The split is in the name of the
tar (``train-000003.tar``) or of its folder. Only the headers of the tars and the labels are read here;
pictures are read later from their places in the tar.
"""

from __future__ import annotations

import io
import json
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tlray import storage
from tlray.data.image import EXTENSIONS
from tlray.data.schema import LABEL, LABELS
from tlray.errors import DataError, StorageError
from tlray.ingestion.findings import Finding, finding
from tlray.ingestion.formats.base import Index, Look, table
from tlray.ingestion.formats.heuristics import folder_split
from tlray.ingestion.formats.listing import Listing, is_picture, split_in
from tlray.ingestion.formats.tabular import labels, roles
from tlray.ingestion.formats.tabular.rows import Row, index_rows, unique, with_class_names, without_missing

GIVES: tuple[str, ...] = (LABEL, LABELS)
_LABELS = ("cls", "json", "txt")
_LONGEST = 4 * 2**20  # bytes of a label; a longer file is no label
_AHEAD = 128 * 1024  # bytes of a tar that are read at once
_TRIED = 40  # members that are read to recognize the content of a tar


@dataclass
class _Sample:
    key: str  # folder and name up to its first dot
    tar: str
    picture: tuple[str, int, int] | None  # member, offset and bytes
    labels: dict[str, bytes]


def look(listing: Listing) -> Look | None:
    """Tars with pictures and labels among their first members."""
    tars = listing.labels(".tar")
    if not tars:
        return None
    endings: Counter[str] = Counter()
    try:
        for n, member in enumerate(_members(listing.where(tars[0]))):
            endings[_ending(member.name)] += 1
            if n >= _TRIED:
                break
    except (DataError, StorageError):
        return None
    pictures = sum(number for ending, number in endings.items() if f".{ending}" in EXTENSIONS)
    if not pictures:
        return None
    summary = f"{len(tars)} .tar with pictures inside"
    lacks = "" if set(endings) & set(_LABELS) else "no member is a label (.cls, .json, .txt); unpack it"
    return Look(summary, tars, tars, lacks)


def index(listing: Listing, column: str) -> Index:
    """Table of (path, split, source, label or labels). Raises DataError, StorageError."""
    tars = listing.labels(".tar")
    notes: list[Finding] = []
    samples: list[_Sample] = []
    for tar in tars:
        samples += _samples(listing, tar)
    with_picture = [sample for sample in samples if sample.picture is not None]
    if not with_picture:
        raise DataError(f"{listing.root}: no pictures in {len(tars)} .tar; accepted: key.jpg with key.cls")
    no_picture = [f"{s.tar}/{s.key}" for s in samples if s.picture is None]
    notes += finding("warning", "no_picture", no_picture, "{n} samples have no picture (left out)")
    kind = next((kind for kind in _LABELS if any(kind in s.labels for s in with_picture)), None)
    if kind is None:
        raise DataError(f"{listing.where(tars[0])}: no labels; accepted: key.cls, key.json or key.txt")
    unlabelled = [f"{s.tar}/{s.key}" for s in with_picture if kind not in s.labels]
    notes += finding(
        "warning", "no_label", unlabelled, f"{{n}} samples have a picture and no .{kind} (left out)"
    )
    labelled = [s for s in with_picture if kind in s.labels]
    columns = _columns(listing, labelled, kind)
    places = [(f"{s.tar}/{s.key}.{kind}", 1) for s in labelled]
    try:
        chosen = roles.labels(columns)
    except roles.UnclearColumns as reason:
        raise DataError(f"{listing.where(places[0][0])}: {reason}") from None
    unused = [name for name in columns if name not in chosen.columns]
    notes += finding("info", "unused_column", unused, "{n} keys of the labels are not used")
    read = labels.read(listing, chosen, columns, places, notes)
    rows = [
        Row(f"{s.tar}/{_picture(s)[0]}", _split(s.tar), label, s.tar, n)
        for n, (s, label) in enumerate(zip(labelled, read, strict=True), 1)
    ]
    sources = {row.path: source(s.tar, *_picture(s)[1:]) for row, s in zip(rows, labelled, strict=True)}
    rows = unique(listing, without_missing(listing, rows, notes), column, notes)
    names, rows = with_class_names(listing, rows, tars, notes)
    rows_of_index, label_columns = index_rows(listing, rows, column)
    for row in rows_of_index:
        row["source"] = sources[row["path"]]
    names = {name: value for name, value in names.items() if name in label_columns}
    return Index(table(rows_of_index, *label_columns), names=names, findings=notes)


def source(tar: str, offset: int, length: int) -> str:
    """Where the bytes of a picture are: in the tar at that path below the root."""
    return f"tar:{tar}:{offset}:{length}"


def _picture(sample: _Sample) -> tuple[str, int, int]:
    assert sample.picture is not None
    return sample.picture


def _split(tar: str) -> str | None:
    return folder_split(tar) or split_in(posixpath.splitext(tar)[0].rpartition("/")[2])


def _ending(member: str) -> str:
    return member.rpartition("/")[2].partition(".")[2].lower()


def _samples(listing: Listing, tar: str) -> Iterator[_Sample]:
    """The samples of a tar: members of one name, wherever in the tar they are."""
    place = listing.where(tar)
    samples: dict[str, _Sample] = {}
    data = _Ranges(place)
    for member in _members(place, data):
        folder, _, name = member.name.rpartition("/")
        stem, _, ending = name.partition(".")
        if not stem or name.startswith("."):
            continue
        key = f"{folder}/{stem}" if folder else stem
        sample = samples.setdefault(key, _Sample(key, tar, None, {}))
        ending = ending.lower()
        if is_picture(f"x.{ending}") and "." not in ending:
            if sample.picture is not None:
                raise DataError(
                    f"{place}: {key} has two pictures ({sample.picture[0]}, {member.name}); accepted: one"
                )
            sample.picture = (member.name, member.offset_data, member.size)
        elif ending in _LABELS and member.size <= _LONGEST:
            with storage.faults(place):
                sample.labels[ending] = data.at(member.offset_data, member.size)
    yield from samples.values()


def _columns(listing: Listing, samples: list[_Sample], kind: str) -> dict[str, list[Any]]:
    """The labels as columns: ``label`` of a .cls, the text of a .txt, the keys of a .json."""
    values: list[Any] = []
    for sample in samples:
        place = f"{listing.where(sample.tar)}/{sample.key}.{kind}"
        try:
            text = sample.labels[kind].decode("utf-8-sig").strip()
            values.append(json.loads(text) if kind == "json" else text)
        except (ValueError, RecursionError):
            raise DataError(f"{place}: no {'JSON' if kind == 'json' else 'text'} in UTF-8") from None
    if kind == "cls":
        return {LABEL: values}
    if kind == "txt":
        return {"txt": values}
    if all(isinstance(value, dict) for value in values):
        return labels_of(values)
    return {LABEL: values}


def labels_of(values: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The keys of JSON objects as columns; null where an object lacks a key."""
    keys = list(dict.fromkeys(key for value in values for key in value))
    label_keys = [key for key in keys if not re.fullmatch(r"__\w+__|key|id|width|height|md5|sha256", key)]
    return {key: [value.get(key) for value in values] for key in label_keys}


class _Ranges(io.RawIOBase):
    """A file on storage for `tarfile`, read by ranges."""

    def __init__(self, uri: str) -> None:
        self._uri, self._at = uri, 0
        self._held, self._from = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 2:
            raise io.UnsupportedOperation("the end is not known")
        self._at = offset + (self._at if whence == 1 else 0)
        return self._at

    def at(self, offset: int, length: int) -> bytes:
        """Bytes from an offset on; those that follow are kept for the next read."""
        end = offset + length
        if offset < self._from or end > self._from + len(self._held):
            self._held = storage.read_range(self._uri, offset, max(length, _AHEAD))
            self._from = offset
        return self._held[offset - self._from : end - self._from]

    def read(self, size: int = -1) -> bytes:
        data = self.at(self._at, max(0, size))
        self._at += len(data)
        return data


def _members(uri: str, data: _Ranges | None = None) -> Iterator[tarfile.TarInfo]:
    """The plain files of a tar in order, without links and sparse files. Raises DataError for a damaged
    tar."""
    try:
        with tarfile.open(fileobj=data or _Ranges(uri), mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                if member.isreg() and not member.issparse():
                    yield member
    except tarfile.TarError as error:
        raise DataError(f"{uri}: damaged or no tar ({error}); accepted: a whole .tar") from None
