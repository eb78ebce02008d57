"""One trial as Ray Tune runs it: one step is one epoch.

A trial of one worker trains in this process, which then takes the next trial, so that torch is imported once
for all of them. A trial of several workers runs Ray Train; its epochs come back through a queue as soon as
they end, so that the scheduler sees every one of them.
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
WORST = 1e30  # with the goal's sign, the score of a trial without a value: schedulers cannot compare NaN


class Trial(tune.Trainable):
    """See the module's docstring. ``threads``: for this process; ``emit`` gets ``trial_step`` events."""

    def setup(  # type: ignore[override]  # as with_parameters calls it
        self, config: dict[str, Any], emit: Emit, threads: int, direction: str
    ) -> None:
        """Begin the first trial of this process."""
        self._emit, self._threads = emit, threads
        self._worst = -WORST if direction == "max" else WORST
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End the trial and begin the next one in the same process."""
        self._end()
        self._begin(new_config)
        return True

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """Called before Tune pauses the trial. Saves nothing: checkpoints are in the trial's own folder."""
        return SimpleNamespace(checkpoint=None)

    def cleanup(self) -> None:
        """Called when the trial is over and this process is not needed any more."""
        self._end()

    def _begin(self, settings: dict[str, Any]) -> None:
        self._id = settings["id"]
        self._config: Config = parse(_tree(settings["tree"]), f"trial {self._id}")
        # Epochs from before an interruption of the search are reported again: schedulers judge the whole
        # curve; not those that Tune has seen in this search, before it paused the trial or its process died.
        history = story(self._config.run_uri)
        last_epoch = settings.get("epochs_told", 0)
        self._to_repeat = deque(record for record in history if record["epoch"] > last_epoch)
        reported = (record for record in history if record["epoch"] == last_epoch)
        self._last: Record | None = next(reported, None)
        self._num_reported = last_epoch
        self._ray_train: RayTrainThread | None = None
        self._records: Iterator[Record] | None = None

    def _end(self) -> None:
        records, self._records = self._records, None
        ray_train, self._ray_train = self._ray_train, None
        if ray_train is not None:
            ray_train.stop()
        close = getattr(records, "close", None)
        if close is not None:
            close()
        del records, close
        free_memory()

    def _emit_step(self, event: dict[str, Any]) -> None:
        """Pass on progress within an epoch; Tune itself reports epochs."""
        if event.get("kind") == "step":
            self._emit({**event, "kind": "trial_step", "id": self._id})

    def _train(self) -> Iterator[Record]:
        config = self._config
        storage.write_json(storage.join(config.run_uri, rundir.CONFIG), config.model_dump(mode="json"))
        if config.scale.num_workers > 1:
            self._ray_train = RayTrainThread(config, self._emit_step)
            return self._ray_train.records()
        return loop.epochs(config, LocalWorker(self._threads), self._emit_step)

    def step(self) -> dict[str, Any]:
        """Train one epoch. An error ends the trial, but neither this process nor the search."""
        try:
            return self._step()
        except Exception as error:  # whatever it is: the search goes on with other trials
            reason = one_line(error, self._config)
            if not isinstance(error, TlrayError):  # for a TlrayError its line is enough
                with contextlib.suppress(StorageError):
                    text = "".join(traceback.format_exception(error))
                    storage.write_bytes(storage.join(self._config.run_uri, rundir.ERROR), text.encode())
            error.__traceback__ = None  # it would keep the loop's tensors in memory
            self._end()
            return {"epoch": 0, SCORE: self._worst, "failed": reason, "done": True}

    def _step(self) -> dict[str, Any]:
        if self._to_repeat:
            return self._result(self._to_repeat.popleft(), again=True)
        if self._records is None:
            self._records = self._train()
        for record in self._records:
            if record["epoch"] > self._num_reported:
                return self._result(record)
            self._last = record
        # No more epochs: the trial has stopped itself early, or had ended before the search was interrupted.
        assert self._last is not None, "a training without an epoch"
        return {**self._result(self._last, again=True), "ended": True, "done": True}

    def _result(self, record: Record, again: bool = False) -> dict[str, Any]:
        self._last, self._num_reported = record, record["epoch"]
        ended = record["epoch"] >= self._config.train.epochs
        if ended and self._records is not None:
            deque(self._records, maxlen=0)  # let the training finish and close its files
        # Trials are compared by their best value so far: the bundle is that of the best epoch.
        best = record["best"]
        score = self._worst if best is None or not math.isfinite(best) else best
        metrics = {k: v for k, v in record.items() if k.startswith("val_") or k in ("train_loss", "lr")}
        return {
            **metrics, "epoch": record["epoch"], "training_iteration": record["epoch"], SCORE: score,
            "record": record, "again": again, "ended": ended, "done": ended,
        }  # fmt: skip


class RayTrainThread:
    """Runs Ray Train in a thread: `records` gives its epochs, `stop` ends it and frees its resources."""

    def __init__(self, config: Config, emit: Emit) -> None:
        self._config, self._emit = config, emit
        self._inbox: queue.Queue[Record | BaseException | None] = queue.Queue()
        self._controller: queue.Queue[Any] = queue.Queue()
        self._thread = threading.Thread(target=self._fit, name="tlray-team", daemon=True)
        self._thread.start()

    def _fit(self) -> None:
        end: BaseException | None = None
        try:
            with runtime.events(self._receive) as emit:
                fit.fit(self._config, emit, [ControllerHandle(emit)])
        except BaseException as error:
            end = error
        self._inbox.put(end)

    def _receive(self, event: dict[str, Any]) -> None:
        if event["kind"] == "epoch":
            added = ("kind", "run", "goal_name", "epochs")
            self._inbox.put({k: v for k, v in event.items() if k not in added})
        elif event["kind"] == "leader":
            self._controller.put(event["actor"])
        else:
            self._emit(event)

    def records(self) -> Iterator[Record]:
        """The record of each epoch, as soon as it ends. Raises the error that ended the training."""
        while (item := self._inbox.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def stop(self) -> None:
        """End the workers now and free their resources.

        Ray Train's controller would end with its owner, this process, which Tune ends next. But its placement
        group would then be freed late, by another actor, and never where the dashboard is off
        (github.com/ray-project/ray/issues/54305); and if it were removed here, the controller would start the
        workers again. So the controller itself is asked to abort, as Ray does on Ctrl-C.
        """
        if not self._thread.is_alive():
            return
        try:
            # There is at least one epoch before a stop, and after each epoch the controller sends its handle.
            ray.get(self._controller.get(timeout=STOP_TIMEOUT_S).abort.remote(), timeout=STOP_TIMEOUT_S)
        except ray.exceptions.RayActorError:
            pass  # it has ended already
        except (queue.Empty, ray.exceptions.GetTimeoutError):
            log.warning("%s: its workers could not be ended now; Ray will end them", self._config.run_uri)
            return
        self._thread.join(STOP_TIMEOUT_S)


def story(run_uri: str) -> list[Record]:
    """Records of the epochs before a run's newest readable checkpoint."""
    for name in reversed(checkpoint.listing(run_uri)):
        try:
            state = storage.read_json(storage.join(run_uri, rundir.CHECKPOINTS, name, checkpoint.STATE))
            return list(state["history"] or [])
        except (StorageError, ValueError, KeyError):
            continue  # damaged: training skips it, too
    return []


def free_memory() -> None:
    """Free the memory of a training that has ended.

    An exception and its frames refer to each other, so that only the garbage collector frees their tensors.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def one_line(error: BaseException, config: Config) -> str:
    """The reason why a trial failed, in one line."""
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
