"""A search in Ray Tune's own terms: every trial with its settings, metrics and folder."""

from __future__ import annotations

from typing import Any

from ray.tune import ExperimentAnalysis, ResultGrid
from ray.tune.experiment import Trial
from ray.tune.experiment.trial import StorageContext  # type: ignore[attr-defined]

from tlray import storage
from tlray.training.rundir import TRIALS


def result_grid(run_uri: str) -> ResultGrid:
    """What ``Tuner.fit`` would have returned, read from the search's folder.

    ``get_best_result()`` has ``config`` (the trial's settings), ``metrics`` (of its last epoch, the best
    value so far as ``best``) and ``path`` (its folder); ``get_dataframe()`` is the whole table.
    Raises StorageError.
    """
    story = storage.read_json(storage.join(run_uri, TRIALS))
    filesystem, path = storage.open_fs(run_uri)
    parent, _, name = path.rstrip("/").rpartition("/")
    trials = []
    for row in story["trials"]:
        context = StorageContext(
            parent, name, storage_filesystem=filesystem, trial_dir_name=f"trials/{row['id']}"
        )
        trial = Trial("tlray", config=row["params"], trial_id=row["id"], storage=context, stub=True)
        for point in row["curve"]:
            trial.update_last_result(_result(row, point))
        trials.append(trial)
    goal = story["goal"]
    analysis = ExperimentAnalysis(
        f"{path}/{TRIALS}", storage_filesystem=filesystem, trials=trials,
        default_metric="best", default_mode=goal["direction"],
    )  # fmt: skip
    return ResultGrid(analysis)


def _result(row: dict[str, Any], point: dict[str, Any]) -> dict[str, Any]:
    """An epoch of a trial as a result of Tune."""
    return {
        "trial_id": row["id"], "training_iteration": point["epoch"], "time_total_s": point["seconds"],
        "done": point is row["curve"][-1], "config": row["params"],
        "status": row["status"], "bundle": row["bundle"], **point,
    }  # fmt: skip
