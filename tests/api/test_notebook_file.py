"""The notebook of tests/notebook.ipynb, run whole in a kernel of its own as Jupyter runs it."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebook.ipynb"


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_the_notebook_runs_and_shows_what_it_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    work = tmp_path / "work"
    work.mkdir()
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(work)}}
    )
    client.execute()  # raises CellExecutionError with the traceback of the first cell that fails
    shown, printed = {}, ""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "execute_result":
                shown[cell.source.splitlines()[-1]] = output.data
            elif output.output_type == "display_data":
                printed += output.data.get("text/plain", "")
            else:
                printed += output.text
    assert shown["data"]["text/html"].count("<img") == 12
    assert "<table" in shown["run"]["text/html"] and "optim.lr" in shown["run"]["text/html"]
    assert shown["run.metrics"]["text/plain"].startswith("validation: accuracy ")
    assert "winner" in shown["run.trials"]["text/html"]
    assert "<img" in shown["model(picture)"]["text/html"]
    assert shown['tlray.promote(run, "mine")']["text/plain"] == "'mine@1'"
    answer = shown['answer.json()["predictions"][0]["labels"][0]']["text/plain"]
    assert "probability" in answer
    assert "inspect: " in printed and "2 trials, " in printed  # the progress of ingest and of the search
    assert "Traceback" not in printed and "Warning" not in printed
