"""Which pictures become validation and test, where the source does not say it.

Pure functions of class names, groups and keys. Pictures of one group stay in one split, and every class keeps
a picture in train. The choice depends on the keys of the pictures (hashes of content and seed) and not on
their positions, so a new picture moves few others.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

ENOUGH = 3  # a class with so many pictures or more gets one into each split
LEAST_PEOPLE = 2  # in each split: one person alone cannot be confused with anybody
TRAIN = "train"

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


def stratified(
    classes: Sequence[Sequence[str]], groups: Ints, keys: Keys, shares: Mapping[str, float]
) -> list[str]:
    """Split of each picture: every class in the same shares, as far as it has enough pictures.

    Iterative stratification (Sechidis et al. 2011, https://doi.org/10.1007/978-3-642-23808-6_10): the class
    with the fewest remaining pictures comes first, since the others have more to choose from. The pictures of
    a class are taken in the order of their keys: the first for the first split of ``shares`` (split ->
    share), and so on; the rest is train. Pictures without any class are treated as a class of their own.
    ``groups``, ``keys`` (N,): group and key of each picture; the key of a group is that of its first one.
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
        if done[c] or number != waiting[c]:  # an outdated entry
            continue
        done[c] = True
        members = [unit for unit in units.of_class[c] if units.split[unit] is None]
        for split in shares:
            units.fill(split, c, members)
        touched = set()
        for unit in members:
            units.split[unit] = units.split[unit] or TRAIN
            for other_class in units.classes_of(unit):
                waiting[other_class] -= 1
                touched.add(other_class)
        for other_class in touched:
            if not done[other_class]:
                heapq.heappush(heap, (waiting[other_class], other_class))
    # Many small classes, of which each has no picture in a split, would leave it too small.
    for split, share in shares.items():
        units.top_up(split, share, len(classes))
    return [units.split[unit] or TRAIN for unit in units.of_row.tolist()]


def by_person(groups: Ints, keys: Keys, shares: Mapping[str, float]) -> list[str]:
    """Split of each picture, all pictures of a person (group) in one.

    Validation and test compare pictures of the same person, so people with a single picture stay in train,
    and shares are those of the other pictures. Each split gets at least two people, train among them; where
    there are too few people for all splits, only the last ones of ``shares`` are made.
    """
    units = _Units([()] * len(groups), groups, keys)
    pool = [unit for unit, size in enumerate(units.size) if size > 1]
    needed = [split for split, share in shares.items() if share > 0]
    needed = needed[max(0, len(needed) + 1 - len(pool) // LEAST_PEOPLE) :]
    total = sum(units.size[unit] for unit in pool)
    for later, split in zip(range(len(needed), 0, -1), needed, strict=True):
        most = len(pool) - later * LEAST_PEOPLE  # the splits that follow need people, too
        room = math.floor(total * shares[split] + 0.5)
        chosen: list[int] = []
        for unit in pool:
            if units.size[unit] <= room and len(chosen) < most:
                chosen.append(unit)
                room -= units.size[unit]
        others = sorted(set(pool) - set(chosen), key=lambda unit: (units.size[unit], unit))
        chosen += others[: max(0, LEAST_PEOPLE - len(chosen))]
        for unit in chosen:
            units.split[unit] = split
        pool = [unit for unit in pool if units.split[unit] is None]
    return [units.split[unit] or TRAIN for unit in units.of_row.tolist()]


class _Units:
    """Groups of pictures, numbered in the order of their keys, and the number of pictures of each class in
    each.

    Plain lists, since they are read one value at a time. The last class is that of pictures without a class.
    """

    def __init__(self, classes: Sequence[Sequence[str]], groups: Ints, keys: Keys) -> None:
        unit_N = np.unique(groups, return_inverse=True)[1].astype(np.int64)
        unit_keys = keys[np.unique(unit_N, return_index=True)[1]]
        rank = np.empty(len(unit_keys), np.int64)
        rank[np.argsort(unit_keys, kind="stable")] = np.arange(len(unit_keys))
        self.of_row = rank[unit_N]
        self.size: list[int] = np.bincount(self.of_row, minlength=len(unit_keys)).tolist()
        self.split: list[str | None] = [None] * len(unit_keys)
        code = {name: i for i, name in enumerate(sorted({name for row in classes for name in row}))}
        none = len(code)
        lengths: list[int] = []
        codes: list[int] = []
        for row in classes:
            row_codes = {code[name] for name in row} if row else (none,)
            lengths.append(len(row_codes))
            codes.extend(row_codes)
        pair = np.repeat(self.of_row, lengths) * (none + 1) + np.array(codes, np.int64)
        pair, number = np.unique(pair, return_counts=True)
        unit, label = np.divmod(pair, none + 1)
        self.total: list[int] = np.bincount(label, weights=number, minlength=none + 1).astype(int).tolist()
        self._start: list[int] = np.searchsorted(unit, np.arange(len(unit_keys) + 1)).tolist()
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
        """(class, number of pictures of the unit that show it)."""
        span = slice(self._start[unit], self._start[unit + 1])
        return zip(self._label[span], self._number[span], strict=True)

    def fill(self, split: str, c: int, members: Sequence[int]) -> None:
        """Move units to a split until it has enough pictures of a class."""
        wanted, got = self.wanted[split][c], self.got[split]
        for unit in members:
            if got[c] >= wanted:
                return
            if self.split[unit] is None and got[c] + self._number_of(unit, c) <= wanted:
                self._move(unit, split)

    def top_up(self, split: str, share: float, num_rows: int) -> None:
        """Move units from train to a split until it has its share of all pictures, rounded down.

        No class gets more than its own share, rounded up.
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
        """Move a unit, unless that would leave a class without a picture in train; whether it was moved."""
        pairs = list(self._pairs(unit))
        if any(self.left[c] <= n for c, n in pairs):
            return False
        for c, n in pairs:
            self.left[c] -= n
            self.got[split][c] += n
        self.taken[split] += self.size[unit]
        self.split[unit] = split
        return True
