"""Names of the files in a run's folder, with who writes each."""

from __future__ import annotations

from tlray import storage
from tlray.bundle.files import BEST as BEST
from tlray.bundle.files import MANIFEST

CONFIG = "config.json"  # the configuration as training takes it, without an "auto"; by whoever begins the run
BEST_MANIFEST = f"{BEST}/{MANIFEST}"  # of the bundle of the best epoch, or of a search's winner
CHECKPOINTS = "checkpoints"  # a folder for each checkpoint; checkpoint.py
METRICS = "metrics.json"  # the epochs so far, and where the time went; run.py
HEAD = "head.safetensors"  # of the best epoch, where a search trains deeper from it; run.py
ERROR = "error.txt"  # the traceback behind the one line that was shown; fit.py, loop.py
REFUSED = "refused.json"  # a mistake of the user that a worker met, no reason to try again; fit.py
TRIALS = "trials.json"  # all trials of a search; search/trial_log.py
TRIAL_FOLDERS = "trials"  # a run's folder for each of them
EVALUATION = "evaluation.json"  # the winner on the validation split; api.py
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
