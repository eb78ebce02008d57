"""Which trial comes next, and what the log of trials remembers: without Ray running."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune import Stopper
from ray.tune.search import Searcher

from tlray import storage
from tlray.config import Config, parse
from tlray.errors import ConfigError
from tlray.search import space as spaces
from tlray.search.reporter import TrialStopper
from tlray.search.searcher import SCORE, TrialSearcher
from tlray.search.trial_log import TrialLog
from tlray.search.tuner import halving
from tlray.tasks.base import Goal

GOAL = Goal("accuracy", "max")
CHOICES = {"optim.lr": {"choice": [0.1, 0.01, 0.001]}, "model.freeze": {"choice": ["all", 0]}}


def settings(runs: Path, space: dict[str, Any] = CHOICES, **search: Any) -> Config:
    return parse(
        {
            "runs": str(runs),
            "train": {"epochs": 10},
            "search": {"space": space, "num_trials": 6, "extend": False, **search},
        },
        "test",
    )


def opened(config: Config, fingerprint: str = "f") -> tuple[TrialSearcher, TrialLog]:
    space = spaces.build(config)
    trial_log = TrialLog(config, space, GOAL, fingerprint)
    return TrialSearcher(config, space, trial_log), trial_log


def wave(sampler: TrialSearcher) -> list[dict[str, Any]]:
    """Settings of the trials that Tune gets at once, those before being over."""
    for tune_id, params in list(sampler.running.items()):
        best = sampler.trial_log.rows[spaces.trial_id(params)]["best"]
        sampler.on_trial_complete(tune_id, {SCORE: best}, error=best is None)
    suggested = (sampler.suggest(f"wave-{number}") for number in itertools.count())
    return list(itertools.takewhile(lambda one: isinstance(one, dict), suggested))


def run(
    sampler: TrialSearcher, trial_log: TrialLog, tune_id: str, value: float, epochs: int = 2
) -> dict[str, Any] | None:
    """What Tune and the callback do with one trial."""
    given = sampler.suggest(tune_id)
    if given == Searcher.FINISHED:
        return None
    trial_log.start(given["id"], given["params"])
    for epoch in range(1, epochs + 1):
        record = {"epoch": epoch, "goal": value, "val_accuracy": value, "lr": 0.1, "seconds": 1.0 * epoch}
        trial_log.epoch(given["id"], record)
    trial_log.end(given["id"], "finished")
    sampler.on_trial_complete(tune_id, {SCORE: value})
    found: dict[str, Any] = given["params"]
    return found


@pytest.mark.parametrize("kind", ["tpe", "random", "grid"])
def test_no_combination_comes_twice_and_all_come(tmp_path: Path, kind: str) -> None:
    sampler, trial_log = opened(settings(tmp_path, sampler=kind, num_trials=9))
    assert sampler.num_left == 6
    given = [run(sampler, trial_log, f"t{n}", 0.1 * n) for n in range(7)]
    assert given[6] is None and len({spaces.trial_id(p) for p in given[:6] if p}) == 6


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_the_same_seed_proposes_the_same(tmp_path: Path, kind: str) -> None:
    space = {"optim.lr": {"low": 1e-4, "high": 1e-1, "log": True}}

    def proposed(name: str, seed: int) -> list[Any]:
        config = settings(tmp_path / name, space, sampler=kind).override({"seed": seed})
        sampler, trial_log = opened(config)
        return [run(sampler, trial_log, f"t{n}", 0.1 * n) for n in range(6)]

    assert proposed("a", 1) == proposed("b", 1) != proposed("c", 2)


def test_an_interrupted_search_takes_up_what_was_under_way_and_repeats_nothing(tmp_path: Path) -> None:
    config = settings(tmp_path)
    sampler, trial_log = opened(config)
    done = [run(sampler, trial_log, f"t{n}", 0.5) for n in range(2)]
    cut = sampler.suggest("t2")
    trial_log.start(cut["id"], cut["params"])
    failed = sampler.suggest("t3")
    trial_log.start(failed["id"], failed["params"])
    trial_log.end(failed["id"], "failed", "died")

    sampler, trial_log = opened(config)
    assert sampler.num_left == 4
    given = [run(sampler, trial_log, f"u{n}", 0.6) for n in range(5)]
    assert given[0] == cut["params"] and given[1] == failed["params"] and given[4] is None
    assert not any(p in done for p in given)
    assert len(trial_log.rows) == 6 and all(trial_log.over(id_) for id_ in trial_log.rows)


def test_other_settings_under_the_same_name_are_refused(tmp_path: Path) -> None:
    config = settings(tmp_path)
    opened(config)
    opened(config.override({"optim.lr": 0.5, "serve.port": 1, "scale.max_failures": 0}))  # alters no trial
    with pytest.raises(ConfigError, match=r"optim\.weight_decay = 0\.5.*began with 0\.05.*another name"):
        opened(config.override({"optim.weight_decay": 0.5}))
    with pytest.raises(ConfigError, match=r"data\.uri.*not the data"):
        opened(config, "g")


def test_a_training_run_is_not_taken_for_a_search(tmp_path: Path) -> None:
    config = settings(tmp_path)
    storage.write_json(storage.join(config.run_uri, "metrics.json"), {})
    with pytest.raises(ConfigError, match="is a training"):
        opened(config)


def test_the_best_keep_their_bundles_until_they_were_averaged(tmp_path: Path) -> None:
    config = settings(tmp_path, sampler="grid").override({"search.soup": 2})
    sampler, trial_log = opened(config)
    for n, value in enumerate([0.5, 0.8, 0.9, 0.7]):
        for id_ in [spaces.trial_id(p) for p in list(sampler.space.product())[n : n + 1]]:
            storage.write_json(storage.join(trial_log.folder(id_), "best", "manifest.json"), {})
        run(sampler, trial_log, f"t{n}", value)
    best, second = trial_log.with_bundles()
    assert (best["best"], second["best"]) == (0.9, 0.8)
    assert [row["bundle"] is not None for row in trial_log.rows.values()] == [False, True, True, False]
    none = {"id": "average-1", "status": "finished", "best": None, "bundle": None}
    trial_log.end_averaging({**none, "params": {}, "of": [best["id"]], "seconds": 1.0})
    assert [row["bundle"] is not None for row in trial_log.rows.values()] == [False, False, True, False]
    assert opened(config)[1].averages == trial_log.averages


def test_only_the_best_keeps_its_bundle_and_no_nan_wins(tmp_path: Path) -> None:
    sampler, trial_log = opened(settings(tmp_path, sampler="grid").override({"search.soup": 0}))
    for n, value in enumerate([0.5, float("nan"), 0.9, 0.7]):
        for id_ in [spaces.trial_id(p) for p in list(sampler.space.product())[n : n + 1]]:
            for kept in ("best", "checkpoints/step-00000001"):
                storage.write_json(storage.join(trial_log.folder(id_), kept, "manifest.json"), {})
        run(sampler, trial_log, f"t{n}", value)
    assert trial_log.best is not None and trial_log.best["best"] == 0.9
    run_folder = Path(trial_log.run_uri)
    left = sorted(path.parent.relative_to(run_folder) for path in run_folder.rglob("manifest.json"))
    assert left == [Path("trials", trial_log.best["id"], "best")]
    assert [row["bundle"] is not None for row in trial_log.rows.values()] == [False, False, True, False]


def test_of_equal_results_one_bundle_is_left(tmp_path: Path) -> None:
    """The trial that was proposed first wins, even if it ends last; so it has to keep its bundle."""
    sampler, trial_log = opened(settings(tmp_path, sampler="grid").override({"search.soup": 0}))
    first, second, third = (sampler.suggest(name) for name in "abc")
    for one in (first, second, third):
        trial_log.start(one["id"], one["params"])
        trial_log.epoch(one["id"], {"epoch": 1, "goal": 0.1 if one is third else 0.9, "seconds": 1.0})
    for one, leaves in ((second, True), (first, True), (third, False)):
        assert (one["id"] in {row["id"] for row in trial_log.with_bundles([one["id"]])}) == leaves
        if leaves:
            storage.write_json(storage.join(trial_log.folder(one["id"]), "best", "manifest.json"), {})
        trial_log.end(one["id"], "finished", bundle=leaves)
        assert trial_log.best is not None
        assert storage.exists(storage.join(trial_log.best["bundle"], "manifest.json"))
    assert trial_log.best["id"] == first["id"]


def test_of_equal_results_the_lower_log_loss_wins(tmp_path: Path) -> None:
    """The log loss is that of the best epoch; a search that goes on knows it."""
    config = settings(tmp_path, sampler="grid")
    sampler, trial_log = opened(config)
    first, second, third = (sampler.suggest(name) for name in "abc")
    curves = {
        first["id"]: [(0.9, 0.5), (0.8, 0.1)],
        second["id"]: [(0.9, 0.6), (0.9, 0.4)],
        third["id"]: [(0.9, 0.4)],
    }
    for one in (first, second, third):
        trial_log.start(one["id"], one["params"])
        for epoch, (value, loss) in enumerate(curves[one["id"]], 1):
            trial_log.epoch(one["id"], {"epoch": epoch, "goal": value, "val_log_loss": loss, "seconds": 1.0})
        storage.write_json(storage.join(trial_log.folder(one["id"]), "best", "manifest.json"), {})
        trial_log.end(one["id"], "finished")
    assert [row["tie"] for row in trial_log.rows.values()] == [0.5, 0.4, 0.4]
    # Of accuracies that so few pictures do not tell apart the lowest log loss wins; of many the highest.
    near = [
        {"id": "a", "best": 0.90, "tie": 0.6},
        {"id": "b", "best": 0.895, "tie": 0.3},
        {"id": "c", "best": 0.5},
    ]
    winners = []
    for trial_log.pictures in (400, 4000, None):
        won = trial_log.best_of(near)
        winners.append(won["id"] if won else "")
    assert winners == ["b", "a", "a"]
    assert trial_log.best is not None and trial_log.best["id"] == second["id"]
    assert opened(config)[1].best == trial_log.best


def test_the_rungs_of_a_search_that_goes_on_are_filled(tmp_path: Path) -> None:
    config = settings(tmp_path, grace_epochs=1, reduction_factor=2, sampler="grid")
    sampler, trial_log = opened(config)
    for n in range(3):
        run(sampler, trial_log, f"t{n}", 0.9)
    scheduler = halving(config, trial_log)

    new = SimpleNamespace(config={"id": "new"})
    assert scheduler.on_trial_result(None, new, {"epoch": 1, "record/best": 0.1}) == "STOP"


def test_ray_tune_users_find_what_they_know(tmp_path: Path) -> None:
    from tlray.search.result_grid import result_grid

    sampler, trial_log = opened(settings(tmp_path, sampler="grid"))
    for n in range(6):
        run(sampler, trial_log, f"t{n}", 0.1 * n)
    trial_log.rule_out("t0", {"optim.lr": 0.5, "model.freeze": 0}, "not worth it")  # has no metrics
    grid = result_grid(trial_log.run_uri)
    best = grid.get_best_result()
    assert len(grid) == 7 and best.metrics["best"] == 0.5
    assert best.config == {"optim.lr": 0.001, "model.freeze": 0}
    assert best.path.endswith(f"trials/{best.metrics['trial_id']}")
    told = grid.get_dataframe()
    assert sorted(told["best"].dropna()) == pytest.approx([0.1 * n for n in range(6)])
    assert list(grid.get_best_result().metrics_dataframe["val_accuracy"]) == [0.5, 0.5]


class Proposals(Searcher):
    """A user's searcher that gives these values of optim.lr, None where it waits."""

    def __init__(self, *rates: float | None) -> None:
        super().__init__()
        self.rates = list(rates)

    def suggest(self, trial_id: str) -> Any:
        rate = self.rates.pop(0) if self.rates else Searcher.FINISHED
        return {"optim.lr": rate} if isinstance(rate, float) else rate

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Learns nothing."""


@pytest.mark.parametrize("fuse", [True, False])
def test_a_searcher_of_the_users_may_wait_and_may_end(tmp_path: Path, fuse: bool) -> None:
    space = {"optim.lr": {"choice": [0.1, 0.2]}}
    config = settings(tmp_path, space, fuse=fuse, extend=True)
    trial_log = TrialLog(config, spaces.build(config), GOAL, "f")
    sampler = TrialSearcher(config, trial_log.space, trial_log, inner=Proposals(0.1, None, 0.2))
    tried, waits = [], 0
    while (one := sampler.suggest(f"t{len(tried)}")) != Searcher.FINISHED:
        if one is None:
            waits += 1
            continue
        rate = one["params"]["optim.lr"]
        trial_log.start(one["id"], one["params"])
        trial_log.epoch(one["id"], {"epoch": 1, "goal": rate, "seconds": 1.0})
        trial_log.end(one["id"], "finished")
        sampler.on_trial_complete(f"t{len(tried)}", {SCORE: rate})
        tried.append(rate)
    # Once the searcher has ended, the axis that the winner ends is extended.
    assert waits == 1 and tried == [0.1, 0.2, 0.4, 0.8]
    again = TrialSearcher(config, trial_log.space, trial_log, inner=Proposals(0.1))
    assert again.suggest("again") == Searcher.FINISHED


def test_criteria_that_end_a_search_stop_each_trial_in_order(tmp_path: Path) -> None:
    class Enough(Stopper):
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return True

    sampler, _ = opened(settings(tmp_path, sampler="grid"))
    stopper = TrialStopper(Enough(), sampler.stop)
    assert isinstance(sampler.suggest("a"), dict)
    assert not stopper("a", {"failed": "no memory"}) and not stopper.stop_all()
    assert stopper("a", {"epoch": 1}) and sampler.suggest("b") is None
    sampler.on_trial_complete("a", {SCORE: 0.5})
    assert sampler.suggest("b") == Searcher.FINISHED
    lowest = TrialStopper({"epoch": 2}, sampler.stop)
    assert [lowest("a", {"epoch": n}) for n in (1, 2, 3)] == [False, True, True]
    assert not lowest("a", {"score": 1.0})
