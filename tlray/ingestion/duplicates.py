"""Groups of pictures that are the same or look the same.

Groups are arrays (N,) of int64: for each picture the smallest row among the pictures of its group.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

HASH_DISTANCE = 6  # of 64 bits
LIKENESS = 0.98  # correlation of 8 x 8 colour thumbnails
LEAST_CONTRAST = 20  # norm of a thumbnail without its mean; below, its correlation is noise
_PAIRS_AT_ONCE = 1_000_000  # compared in one go

Groups = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


def exact_groups(values: Sequence[str]) -> Groups:
    """Pictures with equal values, such as the SHA-256 of their bytes."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(value, row) for row, value in enumerate(values)], dtype=np.int64)


def merged(groups: Groups, others: Groups) -> Groups:
    """Groups that join what either of two join."""
    return joined(groups, np.arange(len(groups)), others)


def renumbered(groups: Groups) -> Groups:
    """Groups named by their smallest row again, after rows were dropped."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def joined(groups: Groups, rows: Rows, others: Rows) -> Groups:
    """Groups after each picture of ``rows`` was joined with that at the same place in ``others``."""
    from scipy import sparse  # here, because Ray's workers import this package and need no duplicates
    from scipy.sparse import csgraph

    size = len(groups)
    ends = np.concatenate([np.arange(size), rows]), np.concatenate([groups, others])
    graph = sparse.coo_array((np.ones(len(ends[0]), bool), ends), shape=(size, size))
    labels = csgraph.connected_components(graph, directed=False)[1]
    return renumbered(labels)


def near_groups(phash: Hashes, thumbs: Sequence[bytes]) -> Groups:
    """Pictures that look the same: pHash within `HASH_DISTANCE` bits, and thumbnails that correlate.

    pHash alone takes two dark trousers on a wall for one picture; thumbnails tell them apart.
    """
    pixels = np.frombuffer(b"".join(thumbs), dtype=np.uint8).reshape(-1, 192).astype(np.float32)
    pixels -= pixels.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(pixels, axis=1)
    pixels /= np.maximum(norm, 1e-6)[:, None]
    groups = np.arange(len(phash), dtype=np.int64)
    for rows, others in _batches(_close_pairs(phash)):
        undecided = groups[rows] != groups[others]
        undecided &= np.minimum(norm[rows], norm[others]) > LEAST_CONTRAST
        rows, others = rows[undecided], others[undecided]
        alike = np.einsum("ij,ij->i", pixels[rows], pixels[others]) >= LIKENESS
        if alike.any():
            groups = joined(groups, rows[alike], others[alike])
    return groups


def _close_pairs(phash: Hashes) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of rows whose hashes are within `HASH_DISTANCE` bits; of equal hashes each with the first row.

    Not quadratic: of d + 1 bands of bits, two hashes within d bits have one band in common.
    """
    values, first, inverse = np.unique(phash, return_index=True, return_inverse=True)
    first = first.astype(np.int64)
    repeated = np.flatnonzero(first[inverse] != np.arange(len(phash)))
    yield first[inverse][repeated], repeated
    edges = np.linspace(0, 64, HASH_DISTANCE + 2).astype(int)
    for low, high in itertools.pairwise(edges.tolist()):
        band = (values >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")
        band, hashes, rows = band[order], values[order], first[order]
        shift = 1
        places = np.flatnonzero(band[shift:] == band[:-shift])
        while len(places):  # each pass compares every hash with the one `shift` places on in its bucket
            close = places[np.bitwise_count(hashes[places] ^ hashes[places + shift]) <= HASH_DISTANCE]
            yield rows[close], rows[close + shift]
            shift += 1
            places = places[places + shift < len(band)]
            places = places[band[places + shift] == band[places]]


def _batches(pairs: Iterator[tuple[Rows, Rows]]) -> Iterator[tuple[Rows, Rows]]:
    """The same pairs, many at once: the many small arrays of rare buckets take long one by one."""
    batch: list[tuple[Rows, Rows]] = []
    size = 0
    for rows, others in pairs:
        batch.append((rows, others))
        size += len(rows)
        if size >= _PAIRS_AT_ONCE:
            yield _concatenated(batch)
            batch, size = [], 0
    if batch:
        yield _concatenated(batch)


def _concatenated(batch: Sequence[tuple[Rows, Rows]]) -> tuple[Rows, Rows]:
    return np.concatenate([rows for rows, _ in batch]), np.concatenate([others for _, others in batch])
