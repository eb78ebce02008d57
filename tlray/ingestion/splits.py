"""Which pictures are cut off for validation and test, where the layout does not say.

Pure functions of class names, groups and keys. Pictures of one group are never torn apart, and every class
keeps a picture in train. What is cut off depends on the pictures' keys (hashes of content and seed) and
not on their positions, so a new picture moves few others.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

ENOUGH = 3  # pictures of a class from which each split gets one
LEAST_PEOPLE = 2  # in each split: with one there is nobody to take them for
TRAIN = "train"

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


def stratified(
    classes: Sequence[Sequence[str]], groups: Ints, keys: Keys, shares: Mapping[str, float]
) -> list[str]:
    """Split of each picture: every class in the same shares, as far as it has enough pictures.

    Iterative stratification (Sechidis et al. 2011, https://doi.org/10.1007/978-3-642-23808-6_10): the
    class with the fewest pictures not yet dealt with comes first, as the others have more to choose from.
    One class a picture is the simple case. Of a class, pictures are taken in the order of their keys: the
    first for the first split of ``shares`` (split -> share), and so on, the rest is train. Pictures of no
    class are shared out like a class. ``groups``, ``keys`` (N,): group and key of each picture; a group's
    key is that of its first picture.
    """
    units = _Units(classes, groups, keys)
    for split, share in shares.items():
        units.wanted[split] = [
            max(math.floor(n * share + 0.5), int(share > 0 and n >= ENOUGH)) for n in units.total
        ]
        units.got[split] = [0] * len(units.total)
        units.taken[split] = 0
    waiting = [len(members) for members in units.of_class]
    heap = [(number, c) for c, number in enumerate(waiting)]
    heapq.heapify(heap)
    done = [False] * len(waiting)
    while heap:
        number, c = heapq.heappop(heap)
        if done[c] or number != waiting[c]:  # an entry that has been replaced
            continue
        done[c] = True
        members = [unit for unit in units.of_class[c] if units.split[unit] is None]
        for split in shares:
            units.fill(split, c, members)
        touched = set()
        for unit in members:
            units.split[unit] = units.split[unit] or TRAIN
            for other in units.classes_of(unit):
                waiting[other] -= 1
                touched.add(other)
        for other in touched:
            if not done[other]:
                heapq.heappush(heap, (waiting[other], other))
    # Many small classes that each round to nothing must not add up to a split without pictures.
    for split, share in shares.items():
        units.top_up(split, share, len(classes))
    return [units.split[unit] or TRAIN for unit in units.of_row.tolist()]


def by_person(groups: Ints, keys: Keys, shares: Mapping[str, float]) -> list[str]:
    """Split of each picture, a whole person (group) on one side.

    Validation and test compare pictures of one person, so people with a single picture stay in train, and
    the shares are of the others' pictures. A split gets two people or more, and train keeps two; where
    there are too few for all, the last of ``shares`` are served.
    """
    units = _Units([()] * len(groups), groups, keys)
    pool = [unit for unit, size in enumerate(units.size) if size > 1]
    wanted = [split for split, share in shares.items() if share > 0]
    wanted = wanted[max(0, len(wanted) + 1 - len(pool) // LEAST_PEOPLE) :]
    total = sum(units.size[unit] for unit in pool)
    for later, split in zip(range(len(wanted), 0, -1), wanted, strict=True):
        most = len(pool) - later * LEAST_PEOPLE  # the others need some, too
        room = math.floor(total * shares[split] + 0.5)
        taken: list[int] = []
        for unit in pool:
            if units.size[unit] <= room and len(taken) < most:
                taken.append(unit)
                room -= units.size[unit]
        rest = sorted(set(pool) - set(taken), key=lambda unit: (units.size[unit], unit))
        taken += rest[: max(0, LEAST_PEOPLE - len(taken))]
        for unit in taken:
            units.split[unit] = split
        pool = [unit for unit in pool if units.split[unit] is None]
    return [units.split[unit] or TRAIN for unit in units.of_row.tolist()]


class _Units:
    """Groups of pictures, numbered in the order of their keys, and how often each shows each class.

    As plain lists, because they are looked at one by one. The last class stands for pictures of none.
    """

    def __init__(self, classes: Sequence[Sequence[str]], groups: Ints, keys: Keys) -> None:
        unit_N = np.unique(groups, return_inverse=True)[1].astype(np.int64)
        first = keys[np.unique(unit_N, return_index=True)[1]]
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first, kind="stable")] = np.arange(len(first))
        self.of_row = rank[unit_N]
        self.size: list[int] = np.bincount(self.of_row, minlength=len(first)).tolist()
        self.split: list[str | None] = [None] * len(first)
        code = {name: i for i, name in enumerate(sorted({name for row in classes for name in row}))}
        none = len(code)
        lengths: list[int] = []
        codes: list[int] = []
        for row in classes:
            there = {code[name] for name in row} if row else (none,)
            lengths.append(len(there))
            codes.extend(there)
        pair = np.repeat(self.of_row, lengths) * (none + 1) + np.array(codes, np.int64)
        pair, number = np.unique(pair, return_counts=True)
        unit, label = np.divmod(pair, none + 1)
        self.total: list[int] = np.bincount(label, weights=number, minlength=none + 1).astype(int).tolist()
        self._start: list[int] = np.searchsorted(unit, np.arange(len(first) + 1)).tolist()
        self._label: list[int] = label.tolist()
        self._number: list[int] = number.tolist()
        by_label = np.argsort(label, kind="stable")  # within a class in the order of keys still
        ends = np.searchsorted(label[by_label], np.arange(1, none + 1))
        self.of_class: list[list[int]] = [part.tolist() for part in np.split(unit[by_label], ends)]
        self.left = list(self.total)  # pictures of each class that are, or may still be, in train
        self.wanted: dict[str, list[int]] = {}
        self.got: dict[str, list[int]] = {}
        self.taken: dict[str, int] = {}

    def classes_of(self, unit: int) -> list[int]:
        return self._label[self._start[unit] : self._start[unit + 1]]

    def _pairs(self, unit: int) -> Iterator[tuple[int, int]]:
        """(class, pictures of the unit that show it)."""
        span = slice(self._start[unit], self._start[unit + 1])
        return zip(self._label[span], self._number[span], strict=True)

    def fill(self, split: str, c: int, members: Sequence[int]) -> None:
        """Move units to a split until it has what it wants of a class."""
        wanted, got = self.wanted[split][c], self.got[split]
        for unit in members:
            if got[c] >= wanted:
                return
            if self.split[unit] is None and got[c] + self._number_of(unit, c) <= wanted:
                self._move(unit, split)

    def top_up(self, split: str, share: float, num_rows: int) -> None:
        """Move units of train to a split until it has its share of all pictures, rounded down.

        No class gets beyond its own share, rounded up.
        """
        most, got = [math.ceil(n * share - 1e-9) for n in self.total], self.got[split]
        lacking = math.floor(num_rows * share + 1e-9) - self.taken[split]
        for unit, size in enumerate(self.size):
            if lacking <= 0:
                return
            fits = self.split[unit] == TRAIN and size <= lacking
            if fits and all(got[c] + n <= most[c] for c, n in self._pairs(unit)) and self._move(unit, split):
                lacking -= size

    def _number_of(self, unit: int, c: int) -> int:
        return next(n for label, n in self._pairs(unit) if label == c)

    def _move(self, unit: int, split: str) -> bool:
        """Move a unit, unless a class would have no picture in train any more."""
        pairs = list(self._pairs(unit))
        if any(self.left[c] <= n for c, n in pairs):
            return False
        for c, n in pairs:
            self.left[c] -= n
            self.got[split][c] += n
        self.taken[split] += self.size[unit]
        self.split[unit] = split
        return True
