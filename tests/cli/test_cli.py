import json
import subprocess
import sys
from pathlib import Path

import pytest

from leadspan.cli import main
from recipes import toy_recipe, write_recipe


def test_help_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, leadspan.cli as c, leadspan\n"
        "import leadspan.recipe, leadspan.results, leadspan.study.frontier, leadspan.study.report\n"
        "leadspan.Lead(p=0.5)\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_dry_run_prints_the_resolved_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(toy_recipe(tmp_path), tmp_path / "r.yaml")
    assert main(["distill", str(path), "--dry-run", "cut.p=0.3"]) == 0
    assert "p: 0.3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["distill", "none.yaml"], "leadspan distill: none.yaml: cannot be read", id="no recipe"),
        pytest.param(["preview", "{recipe}", "cut.q=1"], "cut.lead.q: unknown key", id="unknown key"),
        pytest.param(["preview", "{recipe}", "data.train.path=none.jsonl"], "none.jsonl", id="no traces"),
        pytest.param(["preview", "{recipe}", "tokenizer=none/at/all"], "tokenizer none/at/all", id="no tokenizer"),
        pytest.param(["report", "{folder}"], "run.json", id="no runs"),
        pytest.param(
            ["evaluate", "{folder}", "{folder}/traces.jsonl", "--output", "{folder}/e"],
            "model|tokenizer",
            id="no model",
        ),
        pytest.param(
            ["distill", "{recipe}", "cut={kind: lead, p: 0.05}", "supervision.answer=0"],
            "leaves no weighted position in any",
            id="nothing to learn",
        ),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    path = write_recipe(toy_recipe(tmp_path), tmp_path / "r.yaml")
    filled = [a.replace("{recipe}", str(path)).replace("{folder}", str(tmp_path)) for a in arguments]
    assert main(filled) == 2
    error = capsys.readouterr().err
    assert any(word in error for word in message.split("|"))
    assert "Traceback" not in error


def test_preview_shows_sections_cuts_and_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(toy_recipe(tmp_path), tmp_path / "r.yaml")
    assert main(["preview", str(path), "--records", "1", "--chars", "0"]) == 0
    shown = capsys.readouterr().out
    assert "traces.jsonl:" in shown and "tokens kept" in shown
    for name in (
        "lost question",
        "lost end of thinking",
        "lost answer",
        "lost stop",
        "cot tokens",
        "weighted positions",
    ):
        assert name in shown


def test_distill_evaluate_and_report_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = tmp_path / "task.jsonl"
    task.write_text(json.dumps({"problem": "add 1 to itself", "answer": "2"}) + "\n")
    runs = []
    for cut in ("{kind: full}", "{kind: lead, p: 0.5}"):
        output = tmp_path / f"run{len(runs)}"
        path = write_recipe(toy_recipe(tmp_path, steps=2), tmp_path / "r.yaml")
        tasks = f"evaluation={{tasks: [{{name: toy, path: {task}}}], sampling: {{max_new_tokens: 8, temperature: 0}}}}"
        assert main(["distill", str(path), f"output={output}", f"cut={cut}", tasks]) == 0
        runs.append(output)
    shown = capsys.readouterr().out
    assert "accuracy (strict)" in shown and "terminated" in shown and "peak memory" in shown
    sample = json.loads((runs[0] / "samples" / "toy.jsonl").read_text())
    assert {"prompt", "text", "num_tokens", "finish_reason", "strict", "flexible", "weights_hash"} <= set(sample)
    evaluated = tmp_path / "evaluated"
    options = ["--output", str(evaluated), "--set", "sampling.max_new_tokens=4", "--set", "sampling.temperature=0"]
    assert main(["evaluate", str(runs[0]), str(task), *options]) == 0
    assert main(["evaluate", str(runs[0]), str(task), *options]) == 2
    page = tmp_path / "report.html"
    assert main(["report", *map(str, runs), "--output", str(page)]) == 0
    assert "lead 0.5" in page.read_text()
