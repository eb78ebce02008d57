"""What is shown of long work, as lines of a stream that is no terminal."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from tlray.observer.display import Bar, Display, duration


def shown(act: Callable[[Display], None], **settings: Any) -> list[str]:
    stream = io.StringIO()
    with Display(Console(file=stream, width=100), **settings) as show:
        act(show)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_plain_lines_tell_steps_epochs_and_trials() -> None:
    def act(show: Display) -> None:
        with show.step("Ingest"):
            show.progress("inspect", 5, 10)
            show.progress("inspect", 10, 10)
        with show.step("Search"):
            show.event({"kind": "search_start", "trials": 2})
            params = {"model.freeze": "all", "optim.lr": 0.003}
            show.event({"kind": "trial_start", "id": "a", "params": params, "epochs": 4})
            show.event({"kind": "trial_epoch", "id": "a", "epoch": 4, "goal": 0.5})
            end = {"status": "finished", "best": 0.5, "epochs": 4, "seconds": 65, "params": params}
            show.event({"kind": "trial_end", "id": "a", "goal_name": "accuracy", **end})
            show.event({"kind": "search_more", "trials": 1})
            end = {**end, "id": "b", "goal_name": "accuracy"}
            show.event({"kind": "trial_end", **end})
            show.event({"kind": "nothing known"})
        show.event({"kind": "range_test", "done": 60, "of": 60})
        show.event({"kind": "start", "run": "r", "step": 30, "steps": 60})
        record = {"epoch": 3, "epochs": 6, "train_loss": 0.25, "goal": 0.75, "goal_name": "accuracy"}
        show.event({"kind": "epoch", "run": "r", **record, "seconds": 9})

    lines = shown(act, num_steps=2)
    assert lines[0] == "[1/2] Ingest" and lines[3] == "[2/2] Search"
    assert lines[1].startswith("      inspect: 10 in")
    assert lines[4] == "      2 trials, 1 at a time"
    assert " ".join(lines[5].split()).startswith(
        "1/2 freeze=all lr=0.003 accuracy 0.5000 4 epochs 1:05 min finished"
    )
    assert " ".join(lines[6].split()).startswith("2/3 freeze=all")
    assert lines[-3].startswith("      range test: 60 in")
    assert lines[-2:] == [
        "      goes on at step 30 of 60",
        "      epoch 3/6  loss 0.2500  accuracy 0.7500  9 s",
    ]


def test_a_bar_knows_how_long_still() -> None:
    bar = Bar("train", done=60, total=100, first=20)
    bar.began -= 20
    left = bar.left_s()
    assert left == pytest.approx(20, abs=1)  # 40 in 20 s, 40 to go
    assert Bar("train", done=20, total=100, first=20).left_s() is None
    assert [duration(s) for s in (7.6, 125, 4200)] == ["8 s", "2:05 min", "1:10 h"]
