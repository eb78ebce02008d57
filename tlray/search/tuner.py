"""The search: Ray Tune runs trials of one configuration, and the best one's bundle becomes the run's.

A trial is a training run in RUN/trials/ID. A search that was killed is continued by running the same name
again: it reads RUN/trials.json (see trial_log.py), resumes the unfinished trials and proposes new ones.
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
from ray.tune.experimental.output import IS_NOTEBOOK
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
from tlray.search.reporter import NoDisplay, TrialReporter, TrialStopper
from tlray.search.resources import TrialResources, trial_resources
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

REUSE = True  # a trial of one worker trains in the process of the trial before it
BUILT = ("model.", "input.", "task.", "train.batch_size")  # keys whose values are checked by building a model
REFUSED = {  # schedulers that cannot work here, and why
    PopulationBasedTraining: "changes a trial's settings, but a trial is identified by its settings",
    PopulationBasedTrainingReplay: "changes a trial's settings, but a trial is identified by its settings",
    ResourceChangingScheduler: "changes a trial's resources, but trials share processes",
    HyperBandForBOHB: "needs Ray's TuneBOHB, the only searcher that is told when trials pause",
}
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # Tune writes no csv, json or tensorboard files
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the last result of a trial that failed has no metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own handler would end the search as if it were finished
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search; ``trials``, ``probes`` and ``averages`` as in trials.json."""

    run: str
    bundle: str
    best: str  # the id of the winner, which is a trial, a probe or an average
    params: dict[str, Any]
    goal: str
    value: float
    epochs: int  # of all trials together
    seconds: float  # of this call; earlier calls that were interrupted do not count
    trials: list[TrialRow] = field(default_factory=list)
    probes: list[TrialRow] = field(default_factory=list)
    averages: list[TrialRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TuneOptions:
    """Ray Tune objects of the user's own; see `run`."""

    scheduler: Any = None
    searcher: Any = None
    callbacks: Sequence[Any] = ()
    stop: Any = None

    def __post_init__(self) -> None:
        for kind, reason in REFUSED.items():
            if isinstance(self.scheduler, kind):
                raise ConfigError(
                    f"scheduler = {type(self.scheduler).__name__}: {reason}; accepted: schedulers that "
                    "continue, pause or stop trials, such as ASHAScheduler, HyperBandScheduler, "
                    "MedianStoppingRule"
                )


def run(
    config: Config, emit: Emit | None = None, fresh: bool = False, options: TuneOptions | None = None
) -> SearchResult:
    """Run the search of this name, or continue it: trials that have ended are never run again.

    ``fresh``: delete the earlier run of this name first, once everything else has been checked.

    ``options``: Ray Tune objects used in place of the configuration's: ``scheduler`` (a TrialScheduler),
    ``searcher`` (a Searcher, which proposes values for the keys of ``search.space``), ``callbacks``
    (tune.Callback) and ``stop`` (as in tune.RunConfig). Results have ``score`` (the best value of the goal so
    far), ``epoch``, ``training_iteration``, ``train_loss``, ``lr`` and the ``val_`` metrics.

    ``emit`` gets ``search_start``, ``trial_start``, ``trial_step``, ``trial_epoch``, ``trial_end``,
    ``search_more``, ``probe`` and ``note`` events. Writes trials.json, config.json, metrics.json and best
    (the winner's bundle) into the run's folder, and the metrics of each trial into trials/ID. Raises
    TlrayError; RunError where every trial failed.
    """
    began = time.perf_counter()
    emit, options = emit or _silent, options or TuneOptions()
    space_setting: Any = config.search.space
    lr_is_searched = space_setting != "auto" and "optim.lr" in space_setting
    config = fit.resolve_config(config, fresh, None if lr_is_searched else emit)
    space = spaces.build(config)
    model = fit.check(config)
    task = model.task
    _check_choices(config, space, model)
    if fresh or ray.is_initialized():  # before anything is written: is the cluster large enough?
        with runtime.session():
            trial_resources(config)
    if fresh:
        resume.clear(config)
    data = Dataset.open(config.data.uri)
    pictures = data.num_rows(config.data.validation_split)
    trial_log = TrialLog(config, space, task.goal, data.fingerprint, pictures)
    for note in trial_log.notes:
        log.warning("%s", note)
        emit({"kind": "note", "run": config.run_uri, "text": note})
    for note in model.notes:
        emit({"kind": "note", "run": config.run_uri, "text": note})
    if config.search.scheduler == "asha" and config.search.grace_epochs >= config.train.epochs:
        log.warning("search.grace_epochs = %d: no trial is stopped early", config.search.grace_epochs)
    searcher = TrialSearcher(config, space, trial_log, emit, options.searcher)
    if searcher.num_left or searcher.extend():
        with runtime.session(), runtime.events(emit) as worker_emit:
            _search(config, searcher, trial_log, head_of(model) is not None, emit, worker_emit, options)
    _average(config, trial_log, emit)
    best = trial_log.best
    if best is None or trial_log.best_of(trial_log.rows.values()) is None:
        reasons = [row["reason"] for row in trial_log.rows.values() if row["status"] == "failed"]
        if not reasons or len(reasons) < len(trial_log.rows):
            raise RunError(
                f"{config.run_uri}: no trial has a value of {task.goal.name}, and {len(reasons)} of "
                f"{len(trial_log.rows)} failed; does the validation split have labels?"
            )
        raise RunError(f"{config.run_uri}: all {len(reasons)} trials failed; the first: {reasons[0]}")
    bundle = trial_log.publish(best)
    return SearchResult(
        run=config.run_uri,
        bundle=bundle,
        best=best["id"],
        params=best["params"],
        goal=task.goal.name,
        value=best["best"],
        epochs=sum(row["epochs"] for row in trial_log.rows.values()),
        seconds=time.perf_counter() - began,
        trials=list(trial_log.rows.values()),
        probes=trial_log.probes,
        averages=trial_log.averages,
        notes=trial_log.notes,
    )


def explain(config: Config) -> list[dict[str, Any]]:
    """Cost plans of the first groups of trials, measured in this process; trains nothing and keeps no files.

    Raises TlrayError as `run` does.
    """
    if not side_by_side(config):
        settings = f"search.fuse = {config.search.fuse}, scale.num_workers = {config.scale.num_workers}"
        raise ConfigError(f"{settings}: trials train one by one, so there is no plan; accepted: true and 1")
    config = fit.resolve_config(config)
    space, model = spaces.build(config), fit.check(config)
    _check_choices(config, space, model)
    with tempfile.TemporaryDirectory(prefix="tlray-explain-") as folder:
        config = config.override({"runs": folder, "track.tensorboard": False, "track.mlflow": None})
        trial_log = TrialLog(config, space, model.task.goal, Dataset.open(config.data.uri).fingerprint)
        plans = []
        for step in TrialSearcher(config, space, trial_log).steps():
            trials = [trial_settings(config, params) for _, params in step]
            plans += [
                group.plan(members, LocalWorker(runtime.cores())).to_dict()
                for members in group.together(trials, config.search.side_by_side)
            ]
        return plans


def _search(
    config: Config,
    searcher: TrialSearcher,
    trial_log: TrialLog,
    linear_head: bool,
    emit: Emit,
    worker_emit: Emit,
    options: TuneOptions,
) -> None:
    """Measure probes (where there is a linear head) and scores, then run the trials.

    ``worker_emit``: the same as ``emit``, for other processes.
    """
    resources = trial_resources(config)
    searcher.config = config.override(
        {"scale.cpus_per_worker": resources.cpus, "scale.gpus_per_worker": resources.gpus}, "scale"
    )
    group_size = config.search.side_by_side if side_by_side(config) else 1
    reporter = TrialReporter(trial_log, emit, config.train.epochs, group_size)
    num_over = sum(map(trial_log.over, trial_log.rows))
    emit({
        "kind": "search_start", "run": config.run_uri, "trials": searcher.num_left + num_over,
        "over": num_over, "concurrent": resources.concurrent, "fused": side_by_side(config),
        "epochs": config.train.epochs,
    })  # fmt: skip
    searcher.rule_out = reporter.rule_out
    if config.search.probe and linear_head:
        _probe(config, trial_log, emit, resources)
    if config.search.scores:
        try:
            trial_log.scores += scores.measure(config, trial_log, resources.cpus, resources.gpus)
        except DataError as error:  # too few labels for a score; trials may train all the same
            trial_log.notes.append(f"search.scores: {error}")
    _run_trials(config, searcher, trial_log, reporter, worker_emit, resources, options)
    if trial_log.scores:
        probe_first = searcher.probe_first or ProbeFirst(config, trial_log)
        trial_log.scores = scores.with_results(trial_log, probe_first.place)
        trial_log.correlation = scores.correlation(trial_log.scores, trial_log.goal.direction)
    trial_log.write()


def _probe(config: Config, trial_log: TrialLog, emit: Emit, resources: TrialResources) -> None:
    """Probe, on the cluster, each backbone of the space whose probe is not in the log yet."""
    axis = next((axis for axis in trial_log.space.axes if axis.key == "model.backbone"), None)
    for name in [None] if axis is None else axis.values or ():
        params = {"model.freeze": "all", **({} if name is None else {"model.backbone": name})}
        id_ = "probe" if name is None else f"probe-{trial_id(params)}"
        if any(row["id"] == id_ for row in trial_log.probes):
            continue
        row = _on_cluster("search.probe", probe.measure, config, trial_log, resources, id_, params)
        if row is not None:
            trial_log.add_probe(row)
            emit({"kind": "probe", "run": config.run_uri, "goal_name": trial_log.goal.name, **row})


def _on_cluster(
    key: str,
    measure: Callable[..., TrialRow],
    config: Config,
    trial_log: TrialLog,
    resources: TrialResources,
    *args: Any,
) -> TrialRow | None:
    """The row that ``measure`` returns on a worker; None, and a note, where it failed.

    The search goes on without it. ``key``: the configuration's key that asks for the measurement.
    """
    task: Any = ray.remote(measure)
    task = task.options(num_cpus=resources.cpus, num_gpus=resources.gpus)
    try:
        row: TrialRow = ray.get(task.remote(config, *args, resources.cpus))
    except (TlrayError, ray.exceptions.RayError) as error:
        trial_log.notes.append(f"{key}: {one_line(getattr(error, 'cause', None) or error, config)}")
        return None
    return row


def _average(config: Config, trial_log: TrialLog, emit: Emit) -> None:
    """Average, on the cluster, the weights of the best trials, and those of the winner and its probe."""
    trials = [row for row in trial_log.with_bundles() if row["id"] in trial_log.rows]
    not_published = [row for row in trials if row["bundle"] != storage.join(config.run_uri, BEST)]
    head = probe.head_for(config, trial_log.probes, trials[0]["params"]) if not_published else None
    row = None
    if config.search.soup and not_published and (head is not None or len(trials) > 1):
        id_ = f"average-{len(trial_log.averages) + 1}"
        with runtime.session():
            resources = trial_resources(config)
            row = _on_cluster("search.soup", soup.measure, config, trial_log, resources, id_, trials, head)
    trial_log.end_averaging(row)
    for line in row["told"] if row else ():
        emit({"kind": "note", "run": config.run_uri, "text": line})


def _run_trials(
    config: Config,
    searcher: TrialSearcher,
    trial_log: TrialLog,
    reporter: TrialReporter,
    worker_emit: Emit,
    resources: TrialResources,
    options: TuneOptions,
) -> None:
    """Run the trials with Ray Tune, which prints nothing and keeps its own state in a temporary folder."""
    fused, workers = side_by_side(config), config.scale.num_workers
    # With several workers Ray Train asks for their resources; the trial itself needs next to none.
    bundle = {"CPU": resources.cpus, "GPU": resources.gpus} if workers == 1 else {"CPU": 0.01}
    trainable = tune.with_parameters(
        Trial, emit=worker_emit, threads=resources.cpus, direction=trial_log.goal.direction
    )
    if options.scheduler is not None:  # no effect where it was made with a metric and a mode
        options.scheduler.set_search_properties(SCORE, trial_log.goal.direction)
    stop = None if options.stop is None else TrialStopper(options.stop, searcher.stop)
    folder = tempfile.mkdtemp(prefix="tlray-search-")
    try:
        with _environment(pending=MANY if fused else 1), contextlib.ExitStack() as stack:
            if fused:
                actors = _group_actors(config, trial_log, worker_emit, resources)
                stack.callback(actors.cleanup)  # Tune does not do it on Ctrl-C
                stack.enter_context(placed(actors))
            tuner = tune.Tuner(
                tune.with_resources(
                    trainable, tune.PlacementGroupFactory([{k: v for k, v in bundle.items() if v}])
                ),
                tune_config=tune.TuneConfig(
                    # No metric and mode here: the searcher and the scheduler have them and refuse others.
                    search_alg=searcher,
                    scheduler=options.scheduler or halving(config, trial_log),
                    num_samples=-1,  # the searcher says when there are no more
                    max_concurrent_trials=None if fused else resources.concurrent,
                    reuse_actors=not fused and workers == 1 and REUSE,
                    trial_name_creator=lambda trial: trial.config["id"],
                    trial_dirname_creator=lambda trial: trial.config["id"],
                ),
                run_config=tune.RunConfig(
                    name=config.name,
                    storage_path=folder,
                    verbose=0,
                    progress_reporter=NoDisplay() if IS_NOTEBOOK else None,
                    stop=stop,
                    callbacks=[reporter, *options.callbacks],
                    # A process that dies is started again and resumes; an exception ends the trial.
                    failure_config=tune.FailureConfig(max_failures=config.scale.max_failures),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                ),
            )
            tuner.fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    unfinished = [row["id"] for row in trial_log.rows.values() if row["status"] == "running"]
    if unfinished:
        raise RunError(
            f"{config.run_uri}: trials {', '.join(unfinished)} did not end; run the same name again"
        )


def _group_actors(
    config: Config, trial_log: TrialLog, worker_emit: Emit, resources: TrialResources
) -> GroupActors:
    """Ray Tune's actors for trials that train side by side."""
    members: Any = ray.remote(Members)
    members = members.options(
        num_cpus=resources.cpus, num_gpus=resources.gpus, max_restarts=0,
        max_concurrency=config.search.side_by_side + 4,  # every member may block a thread
    )  # fmt: skip
    make_group = partial(group.Group, resources.cpus)
    start = partial(members.remote, make_group, worker_emit, trial_log.goal.direction)

    def keep_plan(plan: dict[str, Any]) -> None:
        if plan:
            trial_log.plans.append(plan)

    return GroupActors(start, resources.concurrent, config.search.side_by_side, keep_plan)


def halving(config: Config, trial_log: TrialLog) -> SuccessiveHalving:
    """The scheduler of a configuration; trials that ended before a restart are already on its rungs."""
    default = default_trial(config, trial_log.space)
    spared = None if default is None else trial_id(default)
    scheduler = SuccessiveHalving(config.search, trial_log.goal, _max_epochs(config), spared)
    for row in trial_log.rows.values():
        if trial_log.over(row["id"]):
            scheduler.restore_trial(row)
    return scheduler


def _max_epochs(config: Config) -> int:
    """Epochs of the longest trial."""
    epochs = config.search.space.get("train.epochs")
    if epochs is None:
        return config.train.epochs
    return int(max(epochs.choice) if isinstance(epochs, Choice) else epochs.high)


def _check_choices(config: Config, space: spaces.Space, model: Model) -> None:
    """Check each choice that changes how a model is built, one at a time, all else as in ``config``.

    ``model``: the model of ``config``. Raises ConfigError.
    """
    for axis in space.axes:
        if axis.values is None or not axis.key.startswith(BUILT):
            continue
        for value in axis.values:
            try:
                changed = config.override({axis.key: value})
                if start_key(changed) == start_key(config):
                    copy_model(model, changed)
                else:
                    fit.check(changed)
            except ConfigError as error:
                raise ConfigError(f"search.space.{axis.key}: {value!r}: {error}") from None


@contextmanager
def _environment(pending: int) -> Iterator[None]:
    """Set, for the length of the block, what Tune reads from the environment only.

    ``pending``: how many trials may wait for a process at once.
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
    """Takes events where no one listens."""
