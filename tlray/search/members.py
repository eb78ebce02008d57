"""The process of a group of trials: Ray Tune asks each member for its epochs, and all train together.

The group trains an epoch once Tune has asked all its members for their next one. By then trials that Tune has
stopped or paused have left the group.
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
    """A Ray actor whose methods run in threads; see the module's docstring.

    The driver calls `begin` for a group, then `call` for each method that Ray Tune calls of a trial, `end`
    for each trial, and `over`. Trials of the group call the methods below.
    """

    def __init__(self, group: Any, emit: Emit, direction: str) -> None:
        """``group`` makes a `tlray.search.group.Group`."""
        # Otherwise Tune would change the working directory of the process, and so of all trials in it.
        os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
        self.emit, self.direction = emit, direction
        self._make_group = group
        # All training runs in one thread: torch's number of threads and flushing to 0 are set by thread.
        self._trainer = ThreadPoolExecutor(1)
        self._changed = threading.Condition()
        self._settings: dict[str, dict[str, Any]] = {}
        self._members: dict[str, Member] = {}
        self._group: Any = None

    def begin(self, settings: Sequence[dict[str, Any]]) -> None:
        """Begin a group of these trials; ``settings``: the arguments of each Tune Trainable."""
        with self._changed:
            self._settings = {trial["config"]["id"]: trial for trial in settings}
            self._members = {}
            self._built = self._training = False
            self._best: dict[int, dict[str, float | None]] = {}
            self._waiting: set[str] = set()  # members that were asked for their next epoch
            self._records: dict[str, deque[Record | Exception | None]] = {
                id_: deque() for id_ in self._settings
            }
            self._changed.notify_all()

    def call(self, id_: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of a trial, for Ray Tune."""
        with self._changed:
            self._changed.wait_for(lambda: id_ in self._settings or id_ in self._members)
            if id_ not in self._members:
                self._members[id_] = Member(self, **self._settings[id_])
        return None if method == "__ray_ready__" else getattr(self._members[id_], method)(*args, **kwargs)

    def end(self, id_: str, bundle: bool) -> str | None:
        """End a trial; ``bundle``: it writes its bundle. Returns why that failed, None where it did not."""

        def work() -> str | None:
            self._build()
            reason: str | None = self._group.end([id_], [id_] if bundle else []).get(id_)
            return reason

        return self._train(work)

    def over(self) -> dict[str, Any]:
        """End the group; returns its plan with the measured times, empty where it never began."""
        return self._train(lambda: self._group.over() if self._built else {})

    # ---- called by members

    def records(self, id_: str) -> Iterator[Record]:
        """Epochs of a trial, each trained once all members were asked for theirs."""
        while (record := self._next(id_)) is not None:
            yield record

    def beside(self, epoch: int) -> dict[str, float | None]:
        """The best values so far, by id, of the trials that have trained this epoch together."""
        return self._best.get(epoch, {})

    def save(self, id_: str) -> None:
        """Write a checkpoint of a trial."""
        self._train(lambda: self._group.save(id_) if self._built else None)

    def leave(self, id_: str) -> None:
        """Take a trial out of the group."""
        with self._changed:
            if self._settings.pop(id_, None) is None:
                return
            if self._built:
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
            record = self._records[id_].popleft()
        if isinstance(record, Exception):
            raise record
        return record

    def _train_if_all_ask(self) -> None:
        if self._settings and not self._training and self._waiting == self._settings.keys():
            self._training = True
            self._trainer.submit(self._epoch)

    def _build(self) -> None:
        """Build the models of the group, the first time it is called."""
        if self._built:
            return
        if self._group is None:
            self._group = self._make_group(self.emit)
        with self._changed:
            settings = dict(self._settings)
        self._group.begin([trial["config"]["tree"] for trial in settings.values()])
        with self._changed:
            self._built = True
            for id_ in settings.keys() - self._settings.keys():  # those that left meanwhile
                self._group.leave(id_)

    def _epoch(self) -> None:
        """Train an epoch of the trials that have the fewest, so that those that are behind catch up."""
        results: dict[str, Record | Exception] = {}
        over: Sequence[str] = ()
        failure: Exception | None = None
        try:
            self._build()
            epoch = self._group.epoch()
            results = epoch["records"] | {id_: RunError(reason) for id_, reason in epoch["failed"].items()}
            over = epoch["over"]
            for id_, record in epoch["records"].items():
                self._best.setdefault(record["epoch"], {})[id_] = record["best"]
        except Exception as error:
            failure = error
        with self._changed:
            self._training = False
            if failure is not None:  # an error of the whole group ends each of its trials
                results = dict.fromkeys(self._settings, failure)
            for id_ in self._settings:
                if id_ in results:
                    self._records[id_].append(results[id_])
                if id_ in over:
                    self._records[id_].append(None)
                if self._records[id_]:
                    self._waiting.discard(id_)
            self._changed.notify_all()
            self._train_if_all_ask()


class Member(Trial):
    """A trial of a group."""

    def __init__(self, members: Members, **settings: Any) -> None:
        self._members = members
        super().__init__(**settings)

    def setup(self, config: dict[str, Any]) -> None:  # type: ignore[override]
        super().setup(config, self._members.emit, 0, self._members.direction)

    def save(self, checkpoint_dir: str | None = None) -> Any:
        self._members.save(self._id)
        return super().save(checkpoint_dir)

    def _train(self) -> Iterator[Record]:
        return self._members.records(self._id)

    def _result(self, record: Record, again: bool = False) -> dict[str, Any]:
        result = super()._result(record, again)
        return result if again else {**result, "beside": self._members.beside(record["epoch"])}

    def _end(self) -> None:
        self._records = None
        self._members.leave(self._id)
