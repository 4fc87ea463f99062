import json
from pathlib import Path

import pytest

from leadspan.cli import main
from recipes import toy_recipe, write_recipe


def test_a_recipe_is_audited_with_its_own_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(toy_recipe(tmp_path), tmp_path / "r.yaml")
    task = tmp_path / "task.jsonl"
    task.write_text(json.dumps({"problem": "add 3 to itself, please do it now", "answer": "6"}) + "\n")
    figures = tmp_path / "audit.json"
    options = ["--workers", "1", "--task", str(task), "--json", str(figures), "cut.p=0.6"]
    assert main(["audit", str(path), *options]) == 0
    shown = capsys.readouterr().out
    assert "lead 0.6 *" in shown and "LSP*" in shown and "task task" in shown
    stored = json.loads(figures.read_text())
    assert stored["num_traces"] == 40 and stored["policies"][0]["is_own"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["{folder}/traces.jsonl"], "add --tokenizer", id="no tokenizer"),
        pytest.param(["{folder}/none.jsonl", "--tokenizer", "{folder}/tokenizer"], "no such file", id="no traces"),
        pytest.param(["none.yaml"], "cannot be read", id="no recipe"),
        pytest.param(["{folder}/study.yaml"], "is a study, not a recipe; run it with `leadspan study", id="a study"),
        pytest.param(["{recipe}", "--workers", "0"], "at least 1", id="no workers"),
        pytest.param(["{recipe}", "--limit", "0"], "data.train.limit", id="no records"),
        pytest.param(["{recipe}", "--set", "near=1"], "near: unknown key", id="unknown threshold"),
        pytest.param(["{recipe}", "--task", "{folder}/none.jsonl"], "none.jsonl", id="no task"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    path = write_recipe(toy_recipe(tmp_path), tmp_path / "r.yaml")
    (tmp_path / "study.yaml").write_text("{name: toy, recipe: r.yaml}")
    filled = [a.replace("{recipe}", str(path)).replace("{folder}", str(tmp_path)) for a in arguments]
    assert main(["audit", *filled]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
