"""Runs several of Ray Tune's trials in one process, where they train side by side.

For Ray Tune each trial is an actor of its own. `GroupActors` starts one process (`tlray.search.members`) for
trials that can share batches and a frozen prefix, and gives Tune a `TrialHandle` for each of them. Tune does
everything else: it decides which trial starts, and handles results, schedulers, searchers, callbacks and
stopping criteria.

Tune has no public interface for this: its `TuneController` makes a ``RayActorManager`` for itself. So that
name is replaced there while a search runs (`placed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import ray
from ray.air.execution._internal import RayActorManager, TrackedActor
from ray.air.execution.resources import AcquiredResources, ResourceManager, ResourceRequest
from ray.tune.execution import tune_controller

from tlray.search.group import spread, together

Settings = dict[str, Any]  # the arguments of a Tune Trainable


@dataclass(eq=False)
class GroupProcess:
    """A process that trains one group of trials after another."""

    actor: Any
    ids: set[str] = field(default_factory=set)  # trials of its group that have not ended
    up: bool = False  # whether the process has answered yet


class TrialHandle:
    """One trial of a group, with the methods that Tune calls on an actor."""

    METHODS = (
        "__ray_ready__", "get_auto_filled_metrics", "train", "save", "restore", "export_model", "stop",
    )  # fmt: skip

    def __init__(self, process: GroupProcess, id_: str) -> None:
        self.process, self.id = process, id_

    def __getattr__(self, name: str) -> Any:
        if name not in self.METHODS:
            raise AttributeError(name)
        return _Method(self.process.actor.call, (self.id, name))

    def end(self, bundle: bool) -> Any:
        """End the trial; ``bundle``: it writes its bundle. A reference to why that failed, or to None."""
        return self.process.actor.end.remote(self.id, bundle)


@dataclass
class _Method:
    call: Any
    leading: tuple[str, ...]

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        return self.call.remote(*self.leading, *args, **kwargs)


@dataclass
class _Place(AcquiredResources):
    """A trial's place in a process."""

    process: GroupProcess

    def annotate_remote_entities(self, entities: Any) -> Any:
        return [self]

    def _annotate_remote_entity(self, entity: Any, bundle: Any, bundle_index: int) -> Any:
        raise NotImplementedError  # places are not bundles of resources

    def remote(self, config: Settings, **_: Any) -> TrialHandle:
        """Start the trial, as the method of an actor class of this name does."""
        return TrialHandle(self.process, config["id"])


class _Places(ResourceManager):
    """Places in the group that is about to start."""

    def __init__(self) -> None:
        self.clear()

    def request_resources(self, resource_request: ResourceRequest) -> None:
        """Places are made when a group starts."""

    def cancel_resource_request(self, resource_request: ResourceRequest) -> None:
        """Nothing to cancel: see `request_resources`."""

    def has_resources_ready(self, resource_request: ResourceRequest) -> bool:
        return bool(self.ids)

    def acquire_resources(self, resource_request: ResourceRequest) -> AcquiredResources:
        assert self.process is not None
        self.process.ids.add(self.ids.pop(0))
        return _Place(resource_request, self.process)

    def free_resources(self, acquired_resource: AcquiredResources) -> None:
        """See `GroupActors._cleanup_actor`, which knows the trial."""

    def clear(self) -> None:
        self.process: GroupProcess | None = None
        self.ids: list[str] = []  # trials that have no place yet


class GroupActors(RayActorManager):
    """A ``RayActorManager`` for trials that share processes."""

    def __init__(
        self,
        start: Callable[[], Any],
        concurrent: int,
        side_by_side: int,
        over: Callable[[dict[str, Any]], None],
    ) -> None:
        """``start`` starts a process; there are at most ``concurrent``, with ``side_by_side`` trials each.

        ``over`` gets the plan of each group that has ended, with the measured times.
        """
        self._places = _Places()
        super().__init__(self._places)
        self._start, self._concurrent, self._side_by_side, self._over = start, concurrent, side_by_side, over
        self._processes: list[GroupProcess] = []
        self._asked: set[Any] = set()
        self._all_asked = False

    def next(self, timeout: float | None = None) -> bool:
        # Tune asks for trials one by one. Once a round brings no new one, those asked for begin together.
        asked = set(self._pending_actors_to_attrs)
        self._all_asked, self._asked = asked == self._asked, asked
        if not all(process.up for process in self._processes if process.ids):
            # A process that does not answer yet may be waiting for resources that idle processes hold.
            self._end(process for process in self._processes if not process.ids)
        return bool(super().next(timeout))

    def _try_start_actors(self, max_actors: int | None = None) -> int:
        started = 0
        while self._all_asked and self._pending_actors_to_attrs:
            free = self._concurrent - sum(bool(process.ids) for process in self._processes)
            if free < 1:
                break
            waiting = {
                settings["config"]["id"]: (tracked, settings)
                for tracked, (_, settings, _) in self._pending_actors_to_attrs.items()
            }
            configs = [settings["config"] for _, settings in waiting.values()]
            ids = [config["id"] for config in spread(list(together(configs, self._side_by_side)), free)[0]]
            leading = [waiting[id_][0] for id_ in ids]
            for line in self._resource_request_to_pending_actors.values():
                line.sort(key=lambda tracked: leading.index(tracked) if tracked in leading else len(leading))
            self._places.process, self._places.ids = self._idle(), list(ids)
            self._places.process.actor.begin.remote([waiting[id_][1] for id_ in ids])
            started += super()._try_start_actors()
        return started

    def _idle(self) -> GroupProcess:
        process = next((process for process in self._processes if not process.ids), None)
        if process is None:
            process = GroupProcess(self._start())
            self._processes.append(process)
        return process

    def _process(self, tracked: TrackedActor) -> GroupProcess:
        process: GroupProcess = self._live_actors_to_ray_actors_resources[tracked][0].process
        return process

    def _actor_start_resolved(self, tracked_actor: TrackedActor, future: Any) -> None:
        self._process(tracked_actor).up = True
        super()._actor_start_resolved(tracked_actor, future)

    def _actor_start_failed(self, tracked_actor: TrackedActor, exception: Exception) -> None:
        self._end([self._process(tracked_actor)])
        super()._actor_start_failed(tracked_actor, exception)

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, ray.exceptions.RayActorError):
            self._end([self._process(tracked_actor_task._tracked_actor)])
        super()._actor_task_failed(tracked_actor_task, exception)

    def _cleanup_actor(self, tracked_actor: TrackedActor) -> None:
        handle = self._live_actors_to_ray_actors_resources[tracked_actor][0]
        super()._cleanup_actor(tracked_actor)
        handle.process.ids.discard(handle.id)
        if not handle.process.ids and handle.process in self._processes:
            try:
                self._over(ray.get(handle.process.actor.over.remote()))
            except ray.exceptions.RayError:  # its trials are over; the next group needs a sound process
                self._end([handle.process])

    def _try_kill_actor(self) -> bool:
        if not self._live_actors_to_kill:
            return False
        tracked = self._live_actors_to_kill.pop()  # this trial did not stop when asked to
        self._end([self._process(tracked)])  # and so its whole group ends
        self._cleanup_actor_futures(tracked)
        self._actor_stop_resolved(tracked)
        return True

    def cleanup(self) -> None:
        self._end(self._processes)
        self._live_actors_to_ray_actors_resources.clear()

    def _end(self, processes: Iterable[GroupProcess]) -> None:
        for process in list(processes):
            if process in self._processes:
                self._processes.remove(process)
                ray.kill(process.actor)


@contextmanager
def placed(actors: GroupActors) -> Iterator[None]:
    """Have Ray Tune run trials in groups while the block runs."""
    with mock.patch.object(tune_controller, "RayActorManager", lambda resource_manager: actors):
        yield
