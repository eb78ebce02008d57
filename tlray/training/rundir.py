"""Names of the files in a run's folder, and the module that writes each."""

from __future__ import annotations

from tlray import storage
from tlray.bundle.files import BEST as BEST
from tlray.bundle.files import MANIFEST

CONFIG = "config.json"  # the resolved configuration, without an "auto"; fit.py, search/
BEST_MANIFEST = f"{BEST}/{MANIFEST}"  # of the bundle of the best epoch, or of a search's winner
CHECKPOINTS = "checkpoints"  # a folder for each checkpoint; checkpoint.py
METRICS = "metrics.json"  # the epochs so far, and the time of each stage; run.py
HEAD = "head.safetensors"  # of the best epoch, for deeper trials of a search to start from; run.py
ERROR = "error.txt"  # the traceback of an error that was shown in one line; fit.py, run.py
REFUSED = "refused.json"  # a user's mistake found in a worker, which Ray must not start again; fit.py
TRIALS = "trials.json"  # all trials of a search; search/trial_log.py
TRIAL_FOLDERS = "trials"  # a run's folder for each of them
EVALUATION = "evaluation.json"  # the winner on the validation split; api/
REPORT = "report.html"  # report/
TENSORBOARD = "tensorboard"  # a folder of event files; tracking.py
MLFLOW = "mlflow.json"  # the id of the run's twin in MLflow, which a run that goes on continues; tracking.py
RAY = "ray"  # Ray Train's own state, deleted when training ends; fit.py
RANGE_TEST = "range_test.json"  # the measured rate, which a run begun anew uses again: never deleted; fit.py

# What a run leaves, in the order in which it is deleted: first all that a run could go on from.
ALL = (
    CHECKPOINTS, TRIALS, TRIAL_FOLDERS, BEST, METRICS, EVALUATION, REPORT, HEAD, TENSORBOARD, MLFLOW,
    REFUSED, ERROR, RAY, CONFIG,
)  # fmt: skip


def trial_folder(run_uri: str, id_: str) -> str:
    """The folder of a trial below its search's."""
    return storage.join(run_uri, TRIAL_FOLDERS, id_)
