"""What users of Ray Tune bring along works where trials train side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import tune as ray_tune
from ray.tune.schedulers import HyperBandScheduler, MedianStoppingRule, PopulationBasedTraining
from ray.tune.search import Searcher

from tests.search.test_tuner import check_epochs, draw, settings, stored
from tlray import search
from tlray.errors import ConfigError
from tlray.search.result_grid import result_grid
from tlray.search.tuner import TuneOptions


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return draw(tmp_path_factory.mktemp("data"))


class Seen(ray_tune.Callback):
    """Notes what Tune tells of trials."""

    def __init__(self) -> None:
        self.epochs: dict[str, list[int]] = {}
        self.paused: list[str] = []

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        assert result["score"] == result["record"]["best"] and "val_accuracy" in result
        self.epochs.setdefault(trial.config["id"], []).append(result["training_iteration"])

    def on_trial_save(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.paused.append(trial.config["id"])


class Rates(Searcher):
    """Proposes three learning rates, the last of them twice, and is told what they come to."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.came = [0.02, 1e-7, 0.03, 0.03], dict[str, float]()

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        self.asked = metric, mode, config
        return True

    def suggest(self, trial_id: str) -> Any:
        return {"optim.lr": self.left.pop(0)} if self.left else Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if result is not None:
            self.came[trial_id] = result["score"]


def test_hyperband_pauses_and_stops_trials_and_callbacks_see_every_epoch(
    ray_local: Any, data: str, tmp_path: Path
) -> None:
    space = {"optim.lr": {"choice": [0.03, 0.02, 0.01, 1e-7, 2e-7, 3e-7]}}  # three to each bracket
    config, events, seen = settings(data, tmp_path, space=space), [], Seen()
    config = config.override({"train.epochs": 4})
    scheduler = HyperBandScheduler(max_t=4, reduction_factor=2)
    result = search.tune(config, events.append, options=TuneOptions(scheduler=scheduler, callbacks=[seen]))
    rows = stored(config)["trials"]
    states = [row["status"] for row in rows]
    assert len(rows) == 6 and states.count("finished") >= 4 and "stopped" in states
    # The second bracket paused at 2 epochs, where one trial is stopped without more.
    assert seen.paused and {row["epochs"] for row in rows if row["status"] == "stopped"} == {2}
    check_epochs(config, events, rows)
    assert seen.epochs == {row["id"]: list(range(1, row["epochs"] + 1)) for row in rows}
    assert len(stored(config)["plans"]) >= 2  # trials that went on made a group of their own
    best = result_grid(config.run_uri).get_best_result()
    assert best.metrics["best"] == result.value == max(row["best"] for row in rows)


def test_a_searcher_proposes_and_a_criterion_stops(ray_local: Any, data: str, tmp_path: Path) -> None:
    config, seen, rates = settings(data, tmp_path), Seen(), Rates()
    config = config.override({"search.sampler": "tpe", "search.num_trials": 6})
    options = TuneOptions(MedianStoppingRule(time_attr="epoch"), rates, [seen], {"training_iteration": 2})
    result = search.tune(config, options=options)
    rows = stored(config)["trials"]
    assert {row["params"]["optim.lr"] for row in rows} == {0.02, 1e-7, 0.03}
    assert {row["status"] for row in rows} == {"stopped"} and {row["epochs"] for row in rows} <= {1, 2}
    assert seen.epochs[result.best] == [1, 2]
    metric, mode, space = rates.asked
    assert (metric, mode) == ("score", "max") and space["optim.lr"].categories == [0.03, 1e-7, 2e-7, 3e-7]
    assert sorted(rates.came.values()) == sorted(row["best"] for row in rows)


def test_what_cannot_work_is_refused(data: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"PopulationBasedTraining: changes a trial's.*accepted: .*ASHA"):
        TuneOptions(PopulationBasedTraining(hyperparam_mutations={"optim.lr": [0.1, 0.2]}))
