"""The order of training rows: a pure function of seed, epoch and row index, never of timing or workers.

The idea is that of MosaicML Streaming's canonical nodes. The rows of an epoch form one sequence: row groups
in random order, rows shuffled within each. The sequence is cut into equal *lanes*, and each lane is shuffled
again within a window. A global batch takes equally many rows from each lane, so it mixes rows of as many
places of the data set as there are lanes, while each lane reads its row groups one after another.

A rank owns whole lanes. The number of lanes depends on the batch size alone, so global batch g is the same
set of rows on 1 rank as on 64. No row of an epoch is lost or doubled. Where the batch size does not divide
the number of rows, all batches are a little smaller: a last batch of a few rows would be an optimiser step
in a direction that is mostly noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tlray.errors import ConfigError

MAX_LANES = 64
Indices = npt.NDArray[np.int64]


class Together(NamedTuple):
    """Place ``number`` rows of one label side by side; labels (num_rows,) by global row index."""

    labels: Indices
    number: int


def num_lanes(batch_size: int) -> int:
    """The largest divisor of the batch size up to `MAX_LANES`."""
    return max(n for n in range(1, min(MAX_LANES, batch_size) + 1) if batch_size % n == 0)


class Order:
    """The order of one split; ``group_rows``: number of rows of each row group, in global order.

    Raises ConfigError where ``world`` ranks cannot share a global batch of ``batch_size`` equally.
    """

    def __init__(
        self,
        group_rows: Sequence[int],
        batch_size: int,
        seed: int,
        world: int = 1,
        window: int = 8192,
        together: Together | None = None,
    ) -> None:
        self.starts = np.concatenate([[0], np.cumsum(group_rows)]).astype(np.int64)
        self.num_rows = int(self.starts[-1])
        self.batch_size, self.seed, self.world = batch_size, seed, world
        self.lanes, self.together = num_lanes(batch_size), together
        self.window = max(1, window // self.lanes)
        if self.lanes % world:
            fits = [n for n in range(1, self.lanes + 1) if self.lanes % n == 0]
            raise ConfigError(
                f"scale.num_workers = {world} with train.batch_size = {batch_size}: a global batch is shared "
                f"equally; accepted: {', '.join(map(str, fits))} workers (or another batch size)"
            )
        self._epoch: tuple[int, Indices] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch, the same on every rank; their sizes differ by one row at most."""
        return -(-self.num_rows // self.batch_size)

    def epoch(self, epoch: int) -> Indices:
        """Global row indices of a whole epoch (num_rows,), in the order of the batches."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._sequence(epoch))
        return self._epoch[1]

    def _sequence(self, epoch: int) -> Indices:
        """Global row indices of an epoch, computed."""
        rng = np.random.default_rng((self.seed, epoch))
        groups = rng.permutation(len(self.starts) - 1)
        sequence = np.concatenate(
            [self.starts[g] + rng.permutation(self.starts[g + 1] - self.starts[g]) for g in groups]
            or [np.empty(0, np.int64)]
        )
        # Lanes are contiguous parts of the sequence; the first (num_rows mod lanes) are one row longer.
        lanes = np.array_split(sequence, self.lanes)
        for lane in lanes:
            for start in range(0, len(lane), self.window):
                rng.shuffle(lane[start : start + self.window])
        # In each round one row of every lane that has one left.
        depth = len(lanes[0])
        table = np.full((depth, self.lanes), -1, dtype=np.int64)
        for k, lane in enumerate(lanes):
            table[: len(lane), k] = lane
        flat = table.ravel()
        flat = flat[flat >= 0]
        if self.together is None:
            return flat
        # Rows are grouped within as many as all lanes' windows hold, so row groups are still read in order.
        size = self.window * self.lanes
        parts = [flat[start : start + size] for start in range(0, len(flat), size)]
        return np.concatenate([_regrouped(part, self.together, rng) for part in parts] or [flat])

    def global_batch(self, step: int) -> Indices:
        """Row indices of the step-th batch of the run, over all ranks."""
        epoch, first, last = self._span(step)
        return self.epoch(epoch)[first:last]

    def local_batch(self, step: int, rank: int) -> Indices:
        """Row indices of a rank in the step-th batch: those of its lanes; may be empty."""
        _, first, last = self._span(step)
        lane = np.arange(first, last) % self.lanes  # rows come from the lanes in turn
        per_rank = self.lanes // self.world
        ours: Indices = self.global_batch(step)[lane // per_rank == rank]
        return ours

    def _span(self, step: int) -> tuple[int, int, int]:
        """The epoch of the step-th batch, and the batch's start and end in it."""
        epoch, g = divmod(step, self.steps_per_epoch)
        first, last = (n * self.num_rows // self.steps_per_epoch for n in (g, g + 1))
        return epoch, first, last


def _regrouped(rows_N: Indices, together: Together, rng: np.random.Generator) -> Indices:
    """Put rows into groups of one label, and the groups in random order; a label's last group may be smaller.

    Metric learning needs batches that show the same person more than once.
    """
    labels = together.labels[rows_N]
    by_label = np.argsort(labels, kind="stable")  # stable: keeps the order of a label's rows
    ends = np.flatnonzero(np.diff(labels[by_label])) + 1
    groups = [
        rows[start : start + together.number]
        for rows in np.split(rows_N[by_label], ends)
        for start in range(0, len(rows), together.number)
    ]
    return np.concatenate([groups[i] for i in rng.permutation(len(groups))])


def share(num_rows: int, rank: int, world: int) -> Indices:
    """A rank's contiguous part of a split for evaluation; each row is in exactly one part."""
    return np.array_split(np.arange(num_rows, dtype=np.int64), world)[rank]


def row_rng(seed: int, epoch: int, row: int, stream: int = 0) -> np.random.Generator:
    """The random generator of a row in an epoch, the same on any rank; each ``stream`` is independent."""
    return np.random.default_rng((seed, epoch, row, stream) if stream else (seed, epoch, row))
