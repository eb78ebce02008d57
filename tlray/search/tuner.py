"""The search: Ray Tune over trials of one configuration, and what is left when it is over.

A trial is a training run in RUN/trials/ID. A search that was killed and is run again by the same name
reads RUN/trials.json (see trial_log.py), goes on with trials that were under way and proposes new ones.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import (
    HyperBandForBOHB,
    PopulationBasedTraining,
    PopulationBasedTrainingReplay,
    ResourceChangingScheduler,
)

from tlray import runtime, storage
from tlray.bundle.bundle import Model
from tlray.config import Choice, Config
from tlray.data.dataset import Dataset
from tlray.errors import ConfigError, DataError, RunError, TlrayError
from tlray.observer import Emit
from tlray.search import group, probe, scores, soup
from tlray.search import space as spaces
from tlray.search.halving import SuccessiveHalving
from tlray.search.members import Members
from tlray.search.placement import GroupActors, placed
from tlray.search.probe import head_of
from tlray.search.probe_first import ProbeFirst
from tlray.search.reporter import TrialReporter
from tlray.search.searcher import (
    MANY,
    SCORE,
    TrialSearcher,
    default_trial,
    side_by_side,
    trial_settings,
)
from tlray.search.space import trial_id
from tlray.search.trial import Trial, one_line
from tlray.search.trial_log import TrialLog, TrialRow
from tlray.training import fit, resume
from tlray.training.build import copy_model, start_key
from tlray.training.rundir import BEST
from tlray.training.worker import LocalWorker

log = logging.getLogger(__name__)

REUSE = True  # a trial of one worker begins in the process of the one before
THREADS = 4  # of a CPU trial where scale.cpus_per_worker is auto: many small trials use cores better
BUILT = ("model.", "input.", "task.", "train.batch_size")  # choices that show only when a model is built
REFUSED = {  # schedulers that need what a trial has not here
    PopulationBasedTraining: "changes the settings of a trial, which here are what a trial is",
    PopulationBasedTrainingReplay: "changes the settings of a trial, which here are what a trial is",
    ResourceChangingScheduler: "gives trials other resources, and trials here share processes",
    HyperBandForBOHB: "needs a searcher that is told when trials pause, which Ray's TuneBOHB alone is",
}
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no csv, json and tensorboard of Tune's own
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search and not as if it were finished
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@dataclass(frozen=True)
class SearchResult:
    """What a search came to; ``trials``, ``probes`` and ``averages`` as in trials.json."""

    run: str
    bundle: str
    best: str  # the winner's id: of a trial, a probe or an average
    params: dict[str, Any]
    goal: str
    value: float
    epochs: int  # over all trials
    seconds: float  # of this start
    trials: list[TrialRow] = field(default_factory=list)
    probes: list[TrialRow] = field(default_factory=list)
    averages: list[TrialRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TuneOptions:
    """What a user of Ray Tune brings along, see `run`."""

    scheduler: Any = None
    searcher: Any = None
    callbacks: Sequence[Any] = ()
    stop: Any = None

    def __post_init__(self) -> None:
        for kind, reason in REFUSED.items():
            if isinstance(self.scheduler, kind):
                raise ConfigError(
                    f"scheduler = {type(self.scheduler).__name__}: {reason}; accepted: schedulers that "
                    "continue, pause or stop trials, as ASHAScheduler, HyperBandScheduler, MedianStoppingRule"
                )


def run(
    config: Config, emit: Emit | None = None, fresh: bool = False, options: TuneOptions | None = None
) -> SearchResult:
    """Run the search of this name, or go on with it: trials that are over are never run again.

    ``fresh``: what the run of this name left is deleted first, once everything else was checked.

    ``options``: of Ray Tune's, in place of what the configuration says: ``scheduler`` (a TrialScheduler),
    ``searcher`` (a Searcher, which proposes values for the keys of ``search.space``), ``callbacks``
    (tune.Callback) and ``stop`` (as of tune.RunConfig). Results have ``score`` (the best value of the goal so
    far), ``epoch``, ``training_iteration``, ``train_loss``, ``lr`` and the ``val_`` metrics.

    ``emit`` gets ``search_start``, ``trial_start``, ``trial_step``, ``trial_epoch``, ``trial_end``,
    ``search_more`` and ``note`` events. Leaves trials.json, config.json, metrics.json and best (the winner's
    bundle) in the run's folder, and each trial's story in trials/ID. Raises TlrayError; RunError where every
    trial failed.
    """
    began = time.perf_counter()
    tell, options = emit or _silent, options or TuneOptions()
    given: Any = config.search.space
    each_its_own = given != "auto" and "optim.lr" in given
    config = fit.resolve_config(config, fresh, None if each_its_own else tell)
    space = spaces.build(config)
    model = fit.check(config)
    task = model.task
    _check_choices(config, space, model)
    if fresh or ray.is_initialized():  # whether the cluster has room, before anything is written
        with runtime.session():
            fit_in(config)
    if fresh:
        resume.clear(config)
    data = Dataset.open(config.data.uri)
    table = TrialLog(config, space, task.goal, data.fingerprint, data.num_rows(config.data.validation_split))
    for note in table.notes:
        log.warning("%s", note)
        tell({"kind": "note", "run": config.run_uri, "text": note})
    for note in model.notes:
        tell({"kind": "note", "run": config.run_uri, "text": note})
    if config.search.scheduler == "asha" and config.search.grace_epochs >= config.train.epochs:
        log.warning("search.grace_epochs = %d has no trial stopped early", config.search.grace_epochs)
    sampler = TrialSearcher(config, space, table, tell, options.searcher)
    if sampler.num_left or sampler.extend():
        with runtime.session(), runtime.events(tell) as from_workers:
            _search(config, sampler, table, head_of(model) is not None, tell, from_workers, options)
    _average(config, table, tell)
    best = table.best
    if best is None or table.best_of(table.rows.values()) is None:
        reasons = [row["reason"] for row in table.rows.values() if row["status"] == "failed"]
        if not reasons or len(reasons) < len(table.rows):
            raise RunError(
                f"{config.run_uri}: no trial came to a value of {task.goal.name}, and {len(reasons)} of "
                f"{len(table.rows)} failed; does the validation split hold labels to compare?"
            )
        raise RunError(f"{config.run_uri}: all {len(reasons)} trials failed; the first: {reasons[0]}")
    bundle = table.publish(best)
    return SearchResult(
        run=config.run_uri,
        bundle=bundle,
        best=best["id"],
        params=best["params"],
        goal=task.goal.name,
        value=best["best"],
        epochs=sum(row["epochs"] for row in table.rows.values()),
        seconds=time.perf_counter() - began,
        trials=list(table.rows.values()),
        probes=table.probes,
        averages=table.averages,
        notes=table.notes,
    )


def explain(config: Config) -> list[dict[str, Any]]:
    """Plans of the first groups of trials, measured in this process; trains nothing and leaves nothing.

    Raises TlrayError as `run` does.
    """
    if not side_by_side(config):
        given = f"search.fuse = {config.search.fuse}, scale.num_workers = {config.scale.num_workers}"
        raise ConfigError(f"{given}: trials train one by one, and nothing is planned; accepted: true and 1")
    config = fit.resolve_config(config)
    space, model = spaces.build(config), fit.check(config)
    _check_choices(config, space, model)
    with tempfile.TemporaryDirectory(prefix="tlray-explain-") as folder:
        config = config.override({"runs": folder, "track.tensorboard": False, "track.mlflow": None})
        table = TrialLog(config, space, model.task.goal, Dataset.open(config.data.uri).fingerprint)
        plans = []
        for step in TrialSearcher(config, space, table).steps():
            trials = [trial_settings(config, params) for _, params in step]
            plans += [
                group.plan(settings, LocalWorker(runtime.cores())).to_dict()
                for settings in group.together(trials, config.search.side_by_side)
            ]
        return plans


def _search(
    config: Config,
    sampler: TrialSearcher,
    table: TrialLog,
    linear: bool,
    tell: Emit,
    from_workers: Emit,
    options: TuneOptions,
) -> None:
    """Probes where heads are ``linear``; then trials, side by side in groups or one by one through Tune."""
    room = fit_in(config)
    sampler.config = config.override(
        {"scale.cpus_per_worker": room.cpus, "scale.gpus_per_worker": room.gpus}, "scale"
    )
    most = config.search.side_by_side if side_by_side(config) else 1
    reporter = TrialReporter(table, tell, config.train.epochs, most)
    over = sum(map(table.over, table.rows))
    tell({
        "kind": "search_start", "run": config.run_uri, "trials": sampler.num_left + over, "over": over,
        "concurrent": room.concurrent, "fused": side_by_side(config), "epochs": config.train.epochs,
    })  # fmt: skip
    sampler.rule_out = reporter.rule_out
    if config.search.probe and linear:
        _probe(config, table, tell, room)
    if config.search.scores:
        try:
            table.scores += scores.measure(config, table, room.cpus, room.gpus)
        except DataError as error:  # labels tell no picture from another; trials may learn all the same
            table.notes.append(f"search.scores: {error}")
    _by_tune(config, sampler, table, reporter, from_workers, room, options)
    if table.scores:
        deepening = sampler.deepening or ProbeFirst(config, table)
        table.scores = scores.beside(table, deepening.place)
        table.correlation = scores.correlation(table.scores, table.goal.direction)
    table.write()


def _probe(config: Config, table: TrialLog, tell: Emit, room: Room) -> None:
    """Probes of the space's backbones that the table lacks, on the cluster."""
    axis = next((axis for axis in table.space.axes if axis.key == "model.backbone"), None)
    for name in [None] if axis is None else axis.values or ():
        params = {"model.freeze": "all", **({} if name is None else {"model.backbone": name})}
        id_ = "probe" if name is None else f"probe-{trial_id(params)}"
        if any(row["id"] == id_ for row in table.probes):
            continue
        row = _on_cluster("search.probe", probe.measure, config, table, room, id_, params)
        if row is not None:
            table.probed(row)
            tell({"kind": "probe", "run": config.run_uri, "goal_name": table.goal.name, **row})


def _on_cluster(
    key: str, measure: Callable[..., TrialRow], config: Config, table: TrialLog, room: Room, *args: Any
) -> TrialRow | None:
    """What a worker measures; None where it failed. The trials stand all the same, and a note has the reason.

    ``key``: of the configuration, that asks for it.
    """
    work: Any = ray.remote(measure)
    work = work.options(num_cpus=room.cpus, num_gpus=room.gpus)
    try:
        row: TrialRow = ray.get(work.remote(config, *args, room.cpus))
    except (TlrayError, ray.exceptions.RayError) as error:
        table.notes.append(f"{key}: {one_line(getattr(error, 'cause', None) or error, config)}")
        return None
    return row


def _average(config: Config, table: TrialLog, tell: Emit) -> None:
    """Averages of the best trials' weights, and of the winner's and the probe's, on the cluster."""
    trials = [row for row in table.with_bundles() if row["id"] in table.rows]
    new = [row for row in trials if row["bundle"] != storage.join(config.run_uri, BEST)]
    head = probe.head_beside(config, table.probes, trials[0]["params"]) if new else None
    row = None
    if config.search.soup and new and (head is not None or len(trials) > 1):
        id_ = f"average-{len(table.averages) + 1}"
        with runtime.session():
            row = _on_cluster("search.soup", soup.measure, config, table, fit_in(config), id_, trials, head)
    table.averaged(row)
    for line in row["told"] if row else ():
        tell({"kind": "note", "run": config.run_uri, "text": line})


def _by_tune(
    config: Config,
    sampler: TrialSearcher,
    table: TrialLog,
    reporter: TrialReporter,
    from_workers: Emit,
    room: Room,
    options: TuneOptions,
) -> None:
    """Ray Tune runs the trials. It is kept quiet, and its own state is in a folder that goes with it."""
    fused, workers = side_by_side(config), config.scale.num_workers
    bundle = {"CPU": room.cpus, "GPU": room.gpus} if workers == 1 else {"CPU": 0.01}
    trainable = tune.with_parameters(
        Trial, emit=from_workers, threads=room.cpus, direction=table.goal.direction
    )
    if options.scheduler is not None:  # what it is asked to go by, where it has none of its own
        options.scheduler.set_search_properties(SCORE, table.goal.direction)
    folder = tempfile.mkdtemp(prefix="tlray-search-")
    try:
        with _environment(pending=MANY if fused else 1), contextlib.ExitStack() as stack:
            if fused:
                stack.enter_context(placed(_groups(config, table, from_workers, room)))
            tuner = tune.Tuner(
                tune.with_resources(
                    trainable, tune.PlacementGroupFactory([{k: v for k, v in bundle.items() if v}])
                ),
                tune_config=tune.TuneConfig(
                    # Metric and mode stand in the sampler and the scheduler, which refuse them twice.
                    search_alg=sampler,
                    scheduler=options.scheduler or halving(config, table),
                    num_samples=-1,  # the sampler says when it is over
                    max_concurrent_trials=None if fused else room.concurrent,
                    reuse_actors=not fused and workers == 1 and REUSE,
                    trial_name_creator=lambda trial: trial.config["id"],
                    trial_dirname_creator=lambda trial: trial.config["id"],
                ),
                run_config=tune.RunConfig(
                    name=config.name,
                    storage_path=folder,
                    verbose=0,
                    stop=options.stop,
                    callbacks=[reporter, *options.callbacks],
                    # A process that dies is started again and resumes; a mistake inside it ends the trial.
                    failure_config=tune.FailureConfig(max_failures=config.scale.max_failures),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                ),
            )
            tuner.fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    left = [row["id"] for row in table.rows.values() if row["status"] == "running"]
    if left:
        raise RunError(f"{config.run_uri}: trials {', '.join(left)} did not end; run the same name again")


def _groups(config: Config, table: TrialLog, from_workers: Emit, room: Room) -> GroupActors:
    """Processes for trials that train side by side."""
    members: Any = ray.remote(Members)
    members = members.options(
        num_cpus=room.cpus, num_gpus=room.gpus, max_restarts=0,
        max_concurrency=config.search.side_by_side + 4,  # every member may wait in a thread
    )  # fmt: skip
    start = partial(members.remote, partial(group.Group, room.cpus), from_workers, table.goal.direction)

    def over(plan: dict[str, Any]) -> None:
        if plan:
            table.plans.append(plan)

    return GroupActors(start, room.concurrent, config.search.side_by_side, over)


def halving(config: Config, table: TrialLog) -> SuccessiveHalving:
    """The scheduler of a configuration, with the trials from before a restart on its rungs."""
    default = default_trial(config, table.space)
    spared = None if default is None else trial_id(default)
    scheduler = SuccessiveHalving(config.search, table.goal, _longest(config), spared)
    for row in table.rows.values():
        if table.over(row["id"]):
            scheduler.recall(row)
    return scheduler


def _longest(config: Config) -> int:
    """The most epochs that any trial has."""
    found = config.search.space.get("train.epochs")
    if found is None:
        return config.train.epochs
    return int(max(found.choice) if isinstance(found, Choice) else found.high)


@dataclass(frozen=True)
class Room:
    """How the cluster is shared out among trials: what a worker gets, and how many trials at once."""

    cpus: int
    gpus: float
    concurrent: int


def fit_in(config: Config) -> Room:
    """Trials at once: as many as the cluster's GPUs, or half of its CPUs, allow; the other half renders.

    Raises ConfigError where not even one trial finds room.
    """
    scale, workers = config.scale, config.scale.num_workers
    need = runtime.resources(scale)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = sum(int(node.get("CPU", 0)) for node in nodes)
    largest = max(int(node.get("CPU", 0)) for node in nodes)
    per_gpu = need.gpus_per_worker
    by_gpu = (
        max(1, sum(_places(node.get("GPU", 0), per_gpu) for node in nodes) // workers) if per_gpu else None
    )
    if scale.cpus_per_worker != "auto":
        per_cpu = need.cpus_per_worker
    elif by_gpu:
        per_cpu = max(1, min(largest, cpus // 2) // max(1, by_gpu * workers // len(nodes)))
        per_cpu = min(per_cpu, need.cpus_per_worker)
    else:
        per_cpu = max(1, min(THREADS, largest // 2, need.cpus_per_worker))
    by_cpu = max(1, cpus // 2 // (per_cpu * workers))
    auto = min(by_gpu, by_cpu) if by_gpu else by_cpu
    wanted = config.search.max_concurrent
    return Room(per_cpu, per_gpu, auto if wanted == "auto" else min(auto, wanted))


def _places(gpus: float, each: float) -> int:
    """Workers that a node has GPUs for; parts of a GPU are parts of one."""
    return int(gpus) * int(1 / each) if each < 1 else int(gpus // each)


def _check_choices(config: Config, space: spaces.Space, model: Model) -> None:
    """Each choice that decides how the model is built, tried once, the rest as it stands: as in ``model``."""
    for axis in space.axes:
        if axis.values is None or not axis.key.startswith(BUILT):
            continue
        for value in axis.values:
            try:
                tried = config.override({axis.key: value})
                if start_key(tried) == start_key(config):
                    copy_model(model, tried)
                else:
                    fit.check(tried)
            except ConfigError as error:
                raise ConfigError(f"search.space.{axis.key}: {value!r}: {error}") from None


@contextmanager
def _environment(pending: int) -> Iterator[None]:
    """Settings that Tune takes from the environment only, for as long as it runs.

    ``pending``: trials that Tune may hold before they have a process.
    """
    settings = {**ENVIRONMENT, "TUNE_MAX_PENDING_TRIALS_PG": str(pending)}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _silent(event: dict[str, Any]) -> None:
    """Nobody listens."""
