"""One trial as Ray Tune runs it: one step is one epoch, whoever trains it.

A trial of one worker trains in this process, which then takes the next trial: torch is imported once
for all of them. A trial of several workers runs Ray Train; its epochs come back through a queue, each
as it happens, so that the scheduler sees every one of them.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import queue
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import ray
import torch
from ray import tune

from tlray import runtime, storage
from tlray.config import Config, parse
from tlray.errors import StorageError, TlrayError
from tlray.observer import Emit
from tlray.search.controller import ControllerHandle
from tlray.search.searcher import SCORE
from tlray.training import checkpoint, fit, loop, rundir
from tlray.training.worker import LocalWorker

log = logging.getLogger(__name__)

Record = dict[str, Any]
STOP_TIMEOUT_S = 30.0
WORST = 1e30  # stands for "no value yet": a scheduler cannot compare NaN


class Trial(tune.Trainable):
    """See the module's docstring. ``threads``: what this process may use; ``emit``: where progress goes."""

    def setup(  # type: ignore[override]  # as with_parameters calls it
        self, config: dict[str, Any], emit: Emit, threads: int, direction: str
    ) -> None:
        """Begin the first trial of this process."""
        self._emit, self._threads = emit, threads
        self._worst = -WORST if direction == "max" else WORST
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End a trial and begin the next one in the same process."""
        self._end()
        self._begin(new_config)
        return True

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """Before Tune pauses a trial. Tune keeps nothing: the trial's own folder has its checkpoints."""
        return SimpleNamespace(checkpoint=None)

    def cleanup(self) -> None:
        """Called when the trial is over and this process is not needed any more."""
        self._end()

    def _begin(self, settings: dict[str, Any]) -> None:
        self._id = settings["id"]
        self._config: Config = parse(_tree(settings["tree"]), f"trial {self._id}")
        # What happened before the search was interrupted is told again, so that schedulers judge the whole
        # curve; not what this search was told already, before Tune paused the trial or its process died.
        past = story(self._config.run_uri)
        told = settings.get("epochs_told", 0)
        self._past = deque(record for record in past if record["epoch"] > told)
        self._last: Record | None = next((record for record in past if record["epoch"] == told), None)
        self._epochs_told = told
        self._team: RayTrainThread | None = None
        self._records: Iterator[Record] | None = None

    def _end(self) -> None:
        records, self._records = self._records, None
        team, self._team = self._team, None
        if team is not None:
            team.stop()
        close = getattr(records, "close", None)
        if close is not None:
            close()
        del records, close
        free_memory()

    def _tell(self, event: dict[str, Any]) -> None:
        """Progress inside an epoch; epochs themselves go through Tune."""
        if event.get("kind") == "step":
            self._emit({**event, "kind": "trial_step", "id": self._id})

    def _train(self) -> Iterator[Record]:
        config = self._config
        storage.write_json(storage.join(config.run_uri, rundir.CONFIG), config.model_dump(mode="json"))
        if config.scale.num_workers > 1:
            self._team = RayTrainThread(config, self._tell)
            return self._team.records()
        return loop.epochs(config, LocalWorker(self._threads), self._tell)

    def step(self) -> dict[str, Any]:
        """One epoch. What goes wrong in the trial ends the trial, and neither this process nor the search."""
        try:
            return self._step()
        except Exception as error:
            # The boundary of a trial: whatever it is, it is written down, and the search goes on.
            reason = one_line(error, self._config)
            if not isinstance(error, TlrayError):  # whose line says all
                with contextlib.suppress(StorageError):
                    text = "".join(traceback.format_exception(error))
                    storage.write_bytes(storage.join(self._config.run_uri, rundir.ERROR), text.encode())
            error.__traceback__ = None  # holds the loop's tensors
            self._end()
            return {"epoch": 0, SCORE: self._worst, "failed": reason, "done": True}

    def _step(self) -> dict[str, Any]:
        if self._past:
            return self._result(self._past.popleft(), again=True)
        if self._records is None:
            self._records = self._train()
        for record in self._records:
            if record["epoch"] > self._epochs_told:
                return self._result(record)
        # No more: it stopped itself early, or had ended before an interruption.
        assert self._last is not None, "a training without an epoch"
        return {**self._result(self._last, again=True), "ended": True, "done": True}

    def _result(self, record: Record, again: bool = False) -> dict[str, Any]:
        self._last, self._epochs_told = record, record["epoch"]
        ended = record["epoch"] >= self._config.train.epochs
        if ended and self._records is not None:
            deque(self._records, maxlen=0)  # let it close what it has open
        # The best so far is what the trial would deliver, so that is what trials are compared by.
        best = record["best"]
        score = self._worst if best is None or not math.isfinite(best) else best
        shown = {k: v for k, v in record.items() if k.startswith("val_") or k in ("train_loss", "lr")}
        return {
            **shown, "epoch": record["epoch"], "training_iteration": record["epoch"], SCORE: score,
            "record": record, "again": again, "ended": ended, "done": ended,
        }  # fmt: skip


class RayTrainThread:
    """Ray Train in a thread of this process; its epochs as an iterator; an end that frees what it holds."""

    def __init__(self, config: Config, emit: Emit) -> None:
        self._config, self._emit = config, emit
        self._inbox: queue.Queue[Record | BaseException | None] = queue.Queue()
        self._leader: queue.Queue[Any] = queue.Queue()
        self._thread = threading.Thread(target=self._fit, name="tlray-team", daemon=True)
        self._thread.start()

    def _fit(self) -> None:
        end: BaseException | None = None
        try:
            with runtime.events(self._hear) as tell:
                fit.fit(self._config, tell, [ControllerHandle(tell)])
        except BaseException as error:
            end = error
        self._inbox.put(end)

    def _hear(self, event: dict[str, Any]) -> None:
        if event["kind"] == "epoch":
            added = ("kind", "run", "goal_name", "epochs")
            self._inbox.put({k: v for k, v in event.items() if k not in added})
        elif event["kind"] == "leader":
            self._leader.put(event["actor"])
        else:
            self._emit(event)

    def records(self) -> Iterator[Record]:
        """One a epoch, as it ends."""
        while (item := self._inbox.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def stop(self) -> None:
        """End the workers now and free their resources.

        Ray Train's controller ends with its owner, this process, which Tune ends next; but then its
        placement group is freed by another actor, late, and never where the dashboard is off
        (github.com/ray-project/ray/issues/54305). And where the placement group is removed behind the
        controller's back, it starts the workers anew. So the controller is told, as Ray does on Ctrl-C.
        """
        if not self._thread.is_alive():
            return
        try:
            # A stop follows an epoch; every epoch is reported to the controller, which then says who it is.
            ray.get(self._leader.get(timeout=STOP_TIMEOUT_S).abort.remote(), timeout=STOP_TIMEOUT_S)
        except ray.exceptions.RayActorError:
            pass  # gone: that is what was wanted
        except (queue.Empty, ray.exceptions.GetTimeoutError):
            log.warning("%s: its workers could not be ended; Ray will", self._config.run_uri)
            return
        self._thread.join(STOP_TIMEOUT_S)


def story(run_uri: str) -> list[Record]:
    """Records of the epochs that a run's newest readable checkpoint has behind it."""
    for name in reversed(checkpoint.listing(run_uri)):
        try:
            state = storage.read_json(storage.join(run_uri, rundir.CHECKPOINTS, name, checkpoint.STATE))
            return list(state["history"] or [])
        except (StorageError, ValueError, KeyError):
            continue  # damaged: training passes it over, too
    return []


def free_memory() -> None:
    """Free what a training that has ended still holds: an exception and its frames refer to each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def one_line(error: BaseException, config: Config) -> str:
    """Why a trial failed."""
    if isinstance(error, TlrayError):
        return str(error)
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return (
            f"train.batch_size = {config.train.batch_size} with {config.model.backbone} and freeze = "
            f"{config.model.freeze!r}: does not fit into GPU memory; accepted: a smaller batch"
        )
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1][:300] if lines else 'no reason given'}"


def _tree(text: str) -> dict[str, Any]:
    import json

    tree: dict[str, Any] = json.loads(text)
    return tree
