"""The benchmark's own parts: its sums, and that its quickest measurement is one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import bench_start

FILE = Path(bench_start.__file__)


def test_a_measurement_stands_beside_the_import_of_torch() -> None:
    found = bench_start.summary({"predict": [(6.0, 3.0), (9.0, 5.0), (7.0, 4.0)]})
    assert found == {
        "predict_s": 7.0, "predict_min_s": 6.0, "predict_max_s": 9.0, "predict_torch_s": 4.0,
    }  # fmt: skip


@pytest.mark.slow
def test_one_line_of_json_comes_last() -> None:
    command = [sys.executable, str(FILE), "--repeats", "1", "--only", "predict", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"predict_s", "predict_min_s", "predict_max_s", "predict_torch_s"}
    # A prediction imports torch, and more.
    assert found["predict_s"] > 0.8 * found["predict_torch_s"] > 0.1


def test_a_command_that_fails_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        bench_start.seconds([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)
