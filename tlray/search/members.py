"""The process of a group of trials, in which each trial is a member with an epoch of its own at a time.

Ray Tune asks every trial for its next epoch, and the group trains an epoch of all of them once all have been
asked: a trial that Tune stops, or pauses, is out of the group by then.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tlray.errors import RunError
from tlray.observer import Emit
from tlray.search.trial import Record, Trial

T = TypeVar("T")


class Members:
    """A Ray actor whose methods run in threads; see the module's docstring."""

    def __init__(self, group: Any, emit: Emit, direction: str) -> None:
        """``group`` makes a `tlray.search.group.Group`."""
        os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # Tune would go to each trial's folder, for all of them
        self.emit, self.direction = emit, direction
        self._make_group = group
        # torch has numbers of threads, and how it rounds to 0, for each thread.
        self._trainer = ThreadPoolExecutor(1)
        self._changed = threading.Condition()
        self._settings: dict[str, dict[str, Any]] = {}
        self._members: dict[str, Member] = {}
        self._group: Any = None

    def begin(self, settings: Sequence[dict[str, Any]]) -> None:
        """Take these trials; ``settings``: what Ray Tune makes each Trainable with."""
        with self._changed:
            self._settings = {one["config"]["id"]: one for one in settings}
            self._members = {}
            self._begun = self._training = False
            self._best: dict[int, dict[str, float | None]] = {}
            self._waiting: set[str] = set()  # members that ask for their next epoch
            self._records: dict[str, deque[Record | Exception | None]] = {
                id_: deque() for id_ in self._settings
            }
            self._changed.notify_all()

    def call(self, id_: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """What Ray Tune calls of a trial."""
        with self._changed:
            self._changed.wait_for(lambda: id_ in self._settings)
            if id_ not in self._members:
                self._members[id_] = Member(self, **self._settings[id_])
        return None if method == "__ray_ready__" else getattr(self._members[id_], method)(*args, **kwargs)

    def end(self, id_: str, bundle: bool) -> str | None:
        """End a trial, which leaves its ``bundle`` or not; why that failed."""

        def work() -> str | None:
            self._build()
            reason: str | None = self._group.end([id_], [id_] if bundle else []).get(id_)
            return reason

        return self._train(work)

    def over(self) -> dict[str, Any]:
        """The group is over: its plan, with what was measured beside."""
        return self._train(lambda: self._group.over() if self._begun else {})

    # ---- what members ask for

    def records(self, id_: str) -> Iterator[Record]:
        """Epochs of a trial, each trained when all members have asked for theirs."""
        while (record := self._next(id_)) is not None:
            yield record

    def beside(self, epoch: int) -> dict[str, float | None]:
        """Best values so far, by id, of the trials whose newest epoch this is."""
        return self._best.get(epoch, {})

    def save(self, id_: str) -> None:
        """A checkpoint of a trial."""
        self._train(lambda: self._group.save(id_) if self._begun else None)

    def leave(self, id_: str) -> None:
        """A trial is no member any more."""
        with self._changed:
            if self._settings.pop(id_, None) is None:
                return
            if self._begun:
                self._group.leave(id_)
            self._waiting.discard(id_)
            self._train_if_all_ask()

    def _train(self, work: Callable[[], T]) -> T:
        return self._trainer.submit(work).result()

    def _next(self, id_: str) -> Record | None:
        with self._changed:
            if not self._records[id_]:
                self._waiting.add(id_)
                self._train_if_all_ask()
                self._changed.wait_for(lambda: bool(self._records[id_]))
            told = self._records[id_].popleft()
        if isinstance(told, Exception):
            raise told
        return told

    def _train_if_all_ask(self) -> None:
        if self._settings and not self._training and self._waiting == self._settings.keys():
            self._training = True
            self._trainer.submit(self._epoch)

    def _build(self) -> None:
        """The models of the group, once."""
        if self._begun:
            return
        if self._group is None:
            self._group = self._make_group(self.emit)
        self._group.begin([one["config"]["tree"] for one in self._settings.values()])
        self._begun = True

    def _epoch(self) -> None:
        """Train until a member has an epoch. Those that began behind the others catch up meanwhile."""
        told: dict[str, Record | Exception] = {}
        over: Sequence[str] = ()
        try:
            self._build()
            epoch = self._group.epoch()
            told = epoch["records"] | {id_: RunError(reason) for id_, reason in epoch["failed"].items()}
            over = epoch["over"]
            for id_, record in epoch["records"].items():
                self._best.setdefault(record["epoch"], {})[id_] = record["best"]
        except Exception as error:  # what ends the group ends each of its trials, with the reason
            told = dict.fromkeys(self._settings, error)
        with self._changed:
            self._training = False
            for id_ in self._settings:
                if id_ in told:
                    self._records[id_].append(told[id_])
                if id_ in over:
                    self._records[id_].append(None)
                if self._records[id_]:
                    self._waiting.discard(id_)
            self._changed.notify_all()
            self._train_if_all_ask()


class Member(Trial):
    """A trial of a group."""

    def __init__(self, members: Members, **settings: Any) -> None:
        self._group = members
        super().__init__(**settings)

    def setup(self, config: dict[str, Any]) -> None:  # type: ignore[override]
        super().setup(config, self._group.emit, 0, self._group.direction)

    def save(self, checkpoint_dir: str | None = None) -> Any:
        self._group.save(self._id)
        return super().save(checkpoint_dir)

    def _train(self) -> Iterator[Record]:
        return self._group.records(self._id)

    def _result(self, record: Record, again: bool = False) -> dict[str, Any]:
        result = super()._result(record, again)
        return result if again else {**result, "beside": self._group.beside(record["epoch"])}

    def _end(self) -> None:
        self._records = None
        self._group.leave(self._id)
