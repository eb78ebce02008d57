"""The gallery: embeddings of enrolled people at a URI, shared by all replicas that serve the same weights.

    GALLERY/<model>-<first 12 of the weights' sha256>/<sha256 of the person>/<sha256 of the picture>.json

Each enrolment is one object, named by its content and written whole, so several processes can enrol at the
same time without a lock, and the same picture twice is one enrolment. Embeddings of other weights lie in
another folder and are never compared. Each search first lists the folder and reads new objects, so an
enrolment is visible to all replicas as soon as the call that made it has returned. No picture is kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import threading
import time
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tlray import storage
from tlray.errors import DataError, StorageError

logger = logging.getLogger(__name__)

MAX_NAME = 200  # characters of a person's name
_TRIES = 30  # where another process removes the same folder at the same time
_PAUSE_S = 0.02  # longest random pause before the next try, so that two processes do not collide again
_READERS = 16  # objects read at the same time

Floats = npt.NDArray[np.float32]


class Match(NamedTuple):
    """A person, and the cosine similarity of their most similar picture."""

    person: str
    similarity: float


class Gallery:
    """The people enrolled for one model. Methods may be called from several threads.

    ``weights_sha256``: checksum of the bundle's weights. Raises StorageError for an invalid URI.
    """

    def __init__(self, uri: str, model: str, weights_sha256: str) -> None:
        self.uri = storage.join(storage.absolute(uri), f"{model}-{weights_sha256[:12]}")
        self._lock = threading.Lock()
        # Person and unit vector by path below the URI; None for an object that cannot be used.
        self._entries: dict[str, tuple[str, Floats] | None] = {}
        self._people: list[str] = []
        self._starts: list[int] = []  # first row of each person in _x_ND
        self._x_ND = np.zeros((0, 0), np.float32)

    def enrol(self, person: str, picture: bytes, embedding: npt.ArrayLike) -> None:
        """Keep the embedding (D,) of an encoded picture for a person; a second time changes nothing.

        Raises DataError for a name that `check_name` refuses, or an embedding that is all zero.
        """
        person = check_name(person)
        x_D = _unit(np.asarray(embedding, np.float32))
        sha = hashlib.sha256(picture).hexdigest()
        enrolment = {"person": person, "picture": sha, "embedding": [float(value) for value in x_D]}
        uri = storage.join(self._folder(person), f"{sha}.json")
        for tries_left in reversed(range(_TRIES)):
            try:
                storage.write_json(uri, enrolment)
                return
            except StorageError:  # on local disks `remove` may delete the folder while we write into it
                if not tries_left or not storage.is_local(uri):
                    raise
                time.sleep(random.uniform(0, _PAUSE_S))

    def remove(self, person: str) -> int:
        """Forget a person -> the number of enrolments that there were, 0 for an unknown name."""
        person = _composed(person)
        for tries_left in reversed(range(_TRIES)):
            try:
                number = self.count(person)
                storage.delete(self._folder(person))
                return number
            except StorageError:  # another process enrols or removes this person at the same time
                if not tries_left or not storage.is_local(self.uri):
                    raise
                time.sleep(random.uniform(0, _PAUSE_S))
        raise AssertionError("unreachable")

    def people(self) -> dict[str, int]:
        """Number of enrolments of each person, sorted by name."""
        with self._lock:
            self._refresh()
            return dict(sorted(Counter(entry[0] for entry in self._entries.values() if entry).items()))

    def count(self, person: str) -> int:
        """Number of enrolments of a person."""
        return self.people().get(_composed(person), 0)

    def search(self, x_BD: npt.ArrayLike, top: int | None = None) -> list[list[Match]]:
        """Embeddings (B, D) -> for each the ``top`` most similar people (None: all), most similar first."""
        with self._lock:
            self._refresh()
            people, starts, x_ND = self._people, self._starts, self._x_ND
        if not people:
            return [[] for _ in np.asarray(x_BD)]
        matches = []
        for x_D in np.asarray(x_BD, np.float32):
            best_P = np.maximum.reduceat(x_ND @ _unit(x_D), starts)
            order = np.argsort(-best_P, kind="stable")[:top]
            matches.append([Match(people[p], float(best_P[p])) for p in order])
        return matches

    def best(self, x_D: npt.ArrayLike, person: str) -> float | None:
        """Cosine similarity to the most similar picture of a person; None for an unknown name."""
        person = _composed(person)
        ranked = self.search(np.asarray(x_D)[None])[0]
        return next((match.similarity for match in ranked if match.person == person), None)

    def _folder(self, person: str) -> str:
        return storage.join(self.uri, _key(person))

    def _refresh(self) -> None:
        """Read the enrolments that are new, forget those that were removed."""
        try:
            paths = {file.path for file in storage.walk(self.uri)}
        except StorageError:
            # No folder: nobody is enrolled. If the first enrolment has just made it, walk once more.
            paths = {file.path for file in storage.walk(self.uri)} if storage.exists(self.uri) else set()
        new = sorted(path for path in paths - set(self._entries) if path.endswith(".json"))
        gone = set(self._entries) - paths
        if not new and not gone:
            return
        for path in gone:
            del self._entries[path]
        with ThreadPoolExecutor(min(_READERS, len(new) or 1)) as pool:
            for path, entry in zip(new, pool.map(self._read, new), strict=True):
                if entry is not _REMOVED:
                    self._entries[path] = entry
        by_person: dict[str, list[Floats]] = {}
        for _, entry in sorted(self._entries.items()):
            if entry is not None:
                by_person.setdefault(entry[0], []).append(entry[1])
        self._people = sorted(by_person)
        rows = [by_person[person] for person in self._people]
        self._starts = [0, *np.cumsum([len(r) for r in rows])[:-1].tolist()] if rows else []
        self._x_ND = np.stack([x for r in rows for x in r]) if rows else np.zeros((0, 0), np.float32)

    def _read(self, path: str) -> Any:
        """(person, unit vector) of an object; None, with a warning, where it is no enrolment.

        `_REMOVED` where it was removed after it was listed.
        """
        uri = storage.join(self.uri, path)
        try:
            enrolment = json.loads(storage.read_bytes(uri))
            person, x_D = str(enrolment["person"]), _unit(np.asarray(enrolment["embedding"], np.float32))
            if path.split("/")[0] == _key(person):  # in the person's folder, where `remove` finds it
                return person, x_D
        except StorageError:
            if storage.exists(uri):
                raise
            return _REMOVED
        except (KeyError, TypeError, ValueError, DataError):
            pass
        logger.warning("%s: no enrolment; left out", uri)
        return None


_REMOVED = object()


def cosine(a_D: npt.ArrayLike, b_D: npt.ArrayLike) -> float:
    """Cosine similarity of two embeddings, -1..1."""
    return float(_unit(np.asarray(a_D, np.float32)) @ _unit(np.asarray(b_D, np.float32)))


def _unit(x_D: Floats) -> Floats:
    length = float(np.linalg.norm(x_D))
    if x_D.ndim != 1 or not 0 < length < float("inf"):
        raise DataError(f"embedding of shape {x_D.shape} and length {length}: accepted: (D,), not all zero")
    return np.asarray(x_D / length, np.float32)


def check_name(person: str) -> str:
    """A person's name as it is kept: composed to Unicode NFC.

    Raises DataError for a name that could not be deleted later, when it is the last part of a URL: a slash
    would split it, clients remove "." and "..", and nobody can type a character that is not visible.
    """
    name = _composed(person)
    unseen = [c for c in name if c not in _JOINERS and unicodedata.category(c) in _UNSEEN]
    if not name:
        why = "is empty"
    elif len(name) > MAX_NAME:
        why = f"has {len(name)} characters"
    elif unseen:
        why = f"holds U+{ord(unseen[0]):04X}, a line break or another character that cannot be seen"
    elif "\N{REPLACEMENT CHARACTER}" in name:
        why = "holds U+FFFD, which stands for bytes that are no UTF-8"
    elif "/" in name or "\\" in name:
        why = "holds a slash"
    elif name != name.strip():
        why = "begins or ends with a blank"
    elif not name.strip("."):
        why = "is dots alone"
    else:
        return name
    raise DataError(
        f"person = {person[:40]!r}: {why}; accepted: 1 to {MAX_NAME} characters that can be seen, and blanks "
        "between them"
    )


_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format, half of a pair, line and paragraph separators
_JOINERS = ("\N{ZERO WIDTH NON-JOINER}", "\N{ZERO WIDTH JOINER}")  # Persian and Indic names hold them


def _composed(person: str) -> str:
    """The name in Unicode NFC, so that names that look the same are the same."""
    return unicodedata.normalize("NFC", person)


def _key(person: str) -> str:
    """Name of a person's folder."""
    return hashlib.sha256(_composed(person).encode("utf-8", "surrogatepass")).hexdigest()
