from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tlray.cli import quickstart
from tlray.config import Choice
from tlray.data import synthetic


def test_its_recipe_is_a_search_below_its_work_folder() -> None:
    made = quickstart.recipe("work", "work/data", "run-1")
    assert made.run_uri == "work/runs/run-1" and made.models == "work/models"
    for key, values in made.search.space.items():
        assert isinstance(values, Choice)
        for value in values.choice:
            made.override({key: value})


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(420)
def test_the_whole_road_and_nothing_left_running(tmp_path: Path) -> None:
    synthetic.draw(str(tmp_path / "pictures"), 24, 64)  # the user's own folder, as far as it can tell
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    code = "from tlray.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "quickstart", "pictures", "--json"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1, lines
    found = json.loads(lines[0])
    work = tmp_path / "tlray-quickstart"
    assert found["model"] == "quickstart@1" and (work / "models" / "quickstart" / "1").is_dir()
    assert len(found["trials"]) == 6
    assert found["metrics"]["accuracy"] > 0.2  # ten kinds: chance is 0.1
    assert found["answer"]["predictions"][0]["label"]
    assert Path(tmp_path, found["report"]).stat().st_size > 10_000
    steps = quickstart.STEPS[1:]  # nothing is drawn
    for number, title in enumerate(steps, 1):
        assert f"[{number}/{len(steps)}] {title}" in done.stderr
    noise = ("Traceback", "Warning", "WARNING", "INFO", "ray::")
    assert [line for line in done.stderr.splitlines() if any(word in line for word in noise)] == []
