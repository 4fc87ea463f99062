"""docs/notebook.ipynb runs from top to bottom on files that it makes itself, and shows what it says."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from leadspan.results import load_run

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def test_the_notebook_is_stored_without_outputs() -> None:
    code = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert len(code) >= 10
    assert not [cell for cell in code if cell.outputs or cell.execution_count is not None]


@pytest.mark.slow
def test_the_notebook_trains_three_students_and_compares_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()

    runs = [load_run(tmp_path / "runs" / "notebook" / name) for name in ("full", "lead", "mix")]
    assert [run.label for run in runs] == ["full", "lead 0.5", "mix 0.8 lead 0.5"]
    trained = [run.train for run in runs if run.train is not None]
    assert [train.num_steps for train in trained] == [100, 100, 100]
    assert all(train.final_loss < train.first_loss / 4 for train in trained)
    tokens = [train.num_tokens for train in trained]
    assert tokens[1] < tokens[2] < tokens[0]
    assert 0.45 < tokens[1] / tokens[0] <= 0.5
    ended = [run.evaluations[0].termination_rate.value for run in runs]
    assert ended[1] == 0 and ended[0] > 0.5

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    data = [output["data"] for output in outputs if "data" in output]
    assert sum("image/png" in shown for shown in data) == 2
    (table,) = (shown["text/plain"] for shown in data if "text/html" in shown)
    assert all(f"{number:,}" in table for number in tokens)
    assert "TqdmWarning" not in "".join(output["text"] for output in outputs if output.get("name") == "stderr")
    printed = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    with (tmp_path / "runs" / "notebook" / "world" / "sums.jsonl").open() as traces:
        assert f"prompt: {json.loads(next(traces))['prompt']!r}" in printed
    assert "320 of 320 examples lose their end of turn" in printed
