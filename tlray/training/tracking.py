"""Metrics of a run for TensorBoard and, by a setting, for MLflow: one `Tracker`, on rank 0."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from typing import Any

from tlray import storage
from tlray.config import Config
from tlray.config.tree import flatten
from tlray.errors import ConfigError, TlrayError
from tlray.storage.json_values import finite
from tlray.training import rundir

log = logging.getLogger(__name__)

_MAX_PARAM = 500  # characters that MLflow keeps of a value


def check(config: Config) -> None:
    """Raise ConfigError where the settings ask for a tracker that is not installed. Starts nothing."""
    if config.track.mlflow is not None:
        _mlflow(config.track.mlflow)


class Tracker:
    """Writes one record after another. Raises ConfigError where MLflow is asked for and does not answer.

    A tracker that fails later does not stop the run: one warning is logged, and the tracker is left out.
    """

    def __init__(self, run_uri: str, config: Config) -> None:
        self._run_uri, self._config = run_uri, config
        self._board: Any = None
        # Object storage takes whole files only: events are written to this folder and uploaded each time.
        self._stage: str | None = None
        self._mlflow: Any = None
        self._mlflow_run = ""
        if config.track.mlflow is not None:
            self._start_mlflow(config.track.mlflow)

    def log(self, record: dict[str, Any], step: int) -> None:
        """Add the finite numbers of a record at an optimiser step."""
        numbers = {key: number for key, value in record.items() if (number := finite(value)) is not None}
        if self._config.track.tensorboard:
            self._to_board(numbers, step)
        if self._mlflow is not None:
            self._to_mlflow(numbers, step)

    def close(self) -> None:
        """Write what is left, and end; a second call does nothing."""
        if self._board is not None:
            self._board.close()
            self._put()
            self._board = None
        if self._stage is not None:
            shutil.rmtree(self._stage, ignore_errors=True)
            self._stage = None
        if self._mlflow is not None:
            try:
                self._mlflow.set_terminated(self._mlflow_run)
            except Exception as error:
                log.warning("MLflow did not take the end of %s: %s", self._run_uri, error)
            self._mlflow = None

    def _to_board(self, numbers: dict[str, float], step: int) -> None:
        if self._board is None:
            from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

            target = storage.join(self._run_uri, rundir.TENSORBOARD)
            if storage.is_local(target):
                folder = storage.open_fs(target)[1]
            else:
                folder = self._stage = tempfile.mkdtemp(prefix="tlray-tensorboard-")
            # A run that continues from a checkpoint repeats some steps: their old events are purged.
            # The suffix gives two starts within one second files of their own.
            self._board = SummaryWriter(folder, purge_step=step, filename_suffix=f".{time.time_ns()}")
        for key, value in numbers.items():
            self._board.add_scalar(key.replace("val_", "validation/", 1), value, step)
        self._board.flush()
        self._put()

    def _put(self) -> None:
        if self._stage is None:
            return
        try:
            storage.upload(self._stage, storage.join(self._run_uri, rundir.TENSORBOARD))
        except TlrayError as error:
            log.warning("TensorBoard events were not stored: %s", error)

    def _start_mlflow(self, uri: str) -> None:
        client = _mlflow(uri).MlflowClient(tracking_uri=uri)
        id_file = storage.join(self._run_uri, rundir.MLFLOW)
        try:
            if storage.exists(id_file):
                self._mlflow_run = storage.read_json(id_file)["run_id"]
                client.update_run(self._mlflow_run, status="RUNNING")
            else:
                experiment = client.get_experiment_by_name("tlray")
                id_ = experiment.experiment_id if experiment else client.create_experiment("tlray")
                run = client.create_run(id_, run_name=self._config.name)
                self._mlflow_run = run.info.run_id
                for key, value in flatten(self._config.model_dump(mode="json")).items():
                    client.log_param(self._mlflow_run, key, str(value)[:_MAX_PARAM])
                storage.write_json(id_file, {"run_id": self._mlflow_run})
        except TlrayError:
            raise
        except Exception as error:
            first = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ConfigError(
                f"track.mlflow = {uri!r}: {first}; accepted: a tracking URI that answers"
            ) from error
        self._mlflow = client

    def _to_mlflow(self, numbers: dict[str, float], step: int) -> None:
        try:
            for key, value in numbers.items():
                self._mlflow.log_metric(self._mlflow_run, key, value, step=step)
        except Exception as error:
            log.warning("MLflow does not answer any more, the run goes on without: %s", error)
            self._mlflow = None


def _mlflow(uri: str) -> Any:
    try:
        import mlflow
    except ImportError:
        raise ConfigError(
            f"track.mlflow = {uri!r}: the package mlflow is not installed; "
            "accepted: `pip install tlray[mlflow]`, or track.mlflow=null"
        ) from None
    return mlflow
