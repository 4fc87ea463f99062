"""Wrong inputs are answered in one message before anything large is imported."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from leadspan.cli import main
from leadspan.errors import SettingsError
from leadspan.results import RunResult, save_run
from leadspan.sources import check_figures, output_fault
from recipes import toy_recipe, write_recipe

CASES = {
    "a file for a run": (
        ["distill", "{recipe}", "--dry-run", "output={file}"],
        "output = '{file}': is a file, and a directory is to be written; give another path",
    ),
    "a run below a file": (
        ["distill", "{recipe}", "output={file}/run"],
        "output = '{file}/run': {file} is a file, so nothing can lie below it",
    ),
    "a run in the home of nobody": (
        ["distill", "{recipe}", "--dry-run", "output=~no_such_user/run"],
        "output = '~no_such_user/run': is not a path (Could not determine home directory.); give another path",
    ),
    "a file for a study": (["study", "{study}", "--dry-run", "output={file}"], "output = '{file}': is a file"),
    "a study without a recipe": (["study", "{study}", "recipe=none.yaml"], "none.yaml: cannot be read"),
    "a file for an export": (["export", "{recipe}", "--output", "{file}"], "--output = '{file}': is a file"),
    "a file for an evaluation": (["evaluate", "{empty}", "gsm8k", "--output", "{file}"], "--output = '{file}'"),
    "a directory for a page": (
        ["report", "{empty}", "--output", "{empty}"],
        "--output = '{empty}': is a directory, and a file is to be written",
    ),
    "a directory for figures": (["plan", "{recipe}", "--json", "{empty}"], "--json = '{empty}': is a directory"),
    "a recipe below a file": (["init", "--output", "{file}/r.yaml"], "--output = '{file}/r.yaml': {file} is a file"),
    "no columns": (["doctor", "{recipe}", "data.train.path={columns}"], "the columns foo, bar are not those of any"),
    "traces of another format": (
        ["distill", "{recipe}", "data.train.path={columns}", "data.train.format=messages"],
        "are not those of the format 'messages'",
    ),
    "an empty file": (["distill", "{recipe}", "data.train.path={nothing}"], "data.train: {nothing}: holds no records"),
    "new recipe of no columns": (["init", "{columns}", "--student", "{empty}", "--task", "{columns}"], "foo, bar"),
    "model and task swapped": (
        ["evaluate", "{columns}", "{empty}", "--output", "{folder}/e"],
        "MODEL = '{columns}': is a file; the model comes first",
    ),
    "an audit of a number": (
        ["audit", "{columns}", "--tokenizer", "{empty}", "data.train=3", "--limit", "2"],
        "data.train is 3, which has no keys to set",
    ),
    "a bare rendering": (
        ["evaluate", "{empty}", "{columns}", "--output", "{folder}/e", "--set", "rendering=3"],
        "rendering = 3: settings are a mapping; write rendering.KEY=VALUE",
    ),
    "a directory without a model": (["chat", "{empty}"], "MODEL = '{empty}': holds no run.json of a finished run"),
    "a capture without a teacher": (["capture", "{recipe}", "loss.kl_weight=0", "teacher=null"], "teacher: missing;"),
    "a bare cut to compare": (
        ["plan", "{recipe}", "--cut", "lead"],
        "--cut lead: 1 invalid setting",
    ),
    "a bare task": (
        ["distill", "{recipe}", "evaluation.tasks=gsm8k"],
        "evaluation.tasks = 'gsm8k': Input should be a valid list; write [{{benchmark: gsm8k}}]",
    ),
    "no trackers": (["distill", "{recipe}", "training.report_to=none"], "should be a valid list; write []"),
    "a cut of the paper's code": (["plan", "{recipe}", "--cut", "{{kind: left}}"], "did you mean 'lead'? one of"),
    "a divergence of MiniLLM": (["distill", "{recipe}", "loss.divergence.kind=rkl"], "did you mean 'reverse_kl'?"),
    "more than a share": (["distill", "{recipe}", "loss.kl_weight=1.5"], "than or equal to 1\n"),
    "a page of no format": (["report", "{empty}", "--output", "page.pdf"], "no report ends in .pdf; write .html, .md"),
    "a run that is not there": (["report", "{folder}/none"], "{folder}/none: no such directory; give a run directory"),
    "bare tasks": (["distill", "{recipe}", "evaluation.tasks=[gsm8k]"], "tasks.0 = 'gsm8k': settings are a mapping"),
    "a bare teacher": (["distill", "{recipe}", "teacher=none"], "write {{kind: pretrained, ...}}"),
    "a bare seed": (["study", "{study}", "seeds=3"], "seeds = 3: Input should be a valid list; write [3]"),
    "a format of LLaMA-Factory": (
        ["distill", "{recipe}", "data.train.format=sharegpt"],
        "or 'gsm8k'; did you mean 'messages'?",
    ),
    "a precision of TRL": (["distill", "{recipe}", "training.precision=fp16"], "did you mean 'bfloat16'?"),
    "a key of verl": (["distill", "{recipe}", "data.train_files=x"], "in a recipe it is data.train.path"),
    "a key of ms-swift": (["distill", "{recipe}", "rlhf_type=gkd"], "in a recipe it is rollout: what the student"),
    "steps and epochs": (
        ["distill", "{recipe}", "training.epochs=2"],
        "exactly one of epochs and steps, and set",
    ),
    "a recipe for a world": (["world", "{recipe}"], "is a recipe, not a world; run it with `leadspan distill "),
    "a study before its world": (
        ["study", "{study}", "needs={{none.jsonl: leadspan world w.yaml}}"],
        "study s: none.jsonl: missing; run `leadspan world w.yaml` first",
    ),
    "a world for a recipe": (["distill", "{world}"], "is a world, not a recipe; run it with `leadspan world "),
    "a capture into a file": (["capture", "{recipe}", "capture.path={file}"], "capture.path = '{file}': is a file"),
    "a capture into other files": (["capture", "{recipe}", "capture.path={folder}"], "{folder}: it is not empty and"),
    "a capture into nothing": (["capture", "{recipe}"], "capture.path: missing; give the directory"),
    "a directory for a store": (
        ["distill", "{recipe}", "targets={{kind: store, path: {empty}}}"],
        "targets: {empty}/manifest.json: not found; give the directory of a store",
    ),
    "a store without an output": (["store", "merge", "{empty}"], "leadspan store: merge: --output goes with merge"),
    "a card of no run": (["card", "{empty}"], "run.json: not found"),
}


def test_wrong_inputs_are_answered_before_torch_is_imported(tmp_path: Path) -> None:
    names = {
        "recipe": str(write_recipe(toy_recipe(tmp_path), tmp_path / "r.yaml")),
        "file": str(tmp_path / "file"),
        "empty": str(tmp_path / "empty"),
        "nothing": str(tmp_path / "nothing.jsonl"),
        "columns": str(tmp_path / "columns.jsonl"),
        "study": str(tmp_path / "study.yaml"),
        "world": str(tmp_path / "world.yaml"),
        "folder": str(tmp_path),
    }
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "nothing.jsonl").write_text("")
    (tmp_path / "columns.jsonl").write_text('{"foo": "a", "bar": "b"}\n')
    (tmp_path / "world.yaml").write_text("sets: {}\n")
    (tmp_path / "study.yaml").write_text(
        "name: s\noutput: s\nrecipe: r.yaml\naxes: {cut: [{kind: full}]}\nseeds: [0]\n"
    )
    commands = [[word.format(**names) for word in words] for words, _ in CASES.values()]
    code = (
        "import contextlib, io, json, sys\n"
        "from leadspan.cli import main\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    error = io.StringIO()\n"
        "    with contextlib.redirect_stderr(error): code = main(command)\n"
        "    print(json.dumps([code, 'torch' in sys.modules, error.getvalue()]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], capture_output=True, text=True, check=True
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for (name, (_, message)), (code, has_torch, error) in zip(CASES.items(), answers, strict=True):
        assert message.format(**names) in error, name
        assert (code, has_torch) == (2, False), name


def test_an_output_that_is_there_or_can_be_made_is_accepted(tmp_path: Path) -> None:
    assert output_fault("output", tmp_path) is None
    assert output_fault("output", tmp_path / "a" / "b") is None
    assert output_fault("--json", tmp_path / "a.json", is_directory=False) is None


@pytest.mark.parametrize("name", ["recipe.yaml", "traces.JSONL", "run.json"])
def test_figures_replace_figures_and_nothing_else(tmp_path: Path, name: str) -> None:
    for path in (tmp_path / name, tmp_path / "report.txt", tmp_path / "figures.json"):
        path.write_text("{}")
    for path in (tmp_path / "report.txt", tmp_path / "figures.json"):
        check_figures("--json", path)
    with pytest.raises(SettingsError, match=f"--json = '.*{name}': is data, a recipe, .* give another path"):
        check_figures("--json", tmp_path / name)
    (tmp_path / name).unlink()
    check_figures("--json", tmp_path / name)


@pytest.mark.slow
def test_standard_output_is_for_figures_alone_whatever_transformers_prints() -> None:
    code = "from leadspan.cli.options import load_libraries; load_libraries()"
    environment = {**os.environ, "WANDB_MODE": "offline"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == ""
    assert done.stderr.splitlines() == ["loading libraries", "[INFO] Running in WANDB offline mode"]


@pytest.mark.slow
def test_a_student_that_is_not_there_costs_a_dry_run_no_second_question_and_one_line(tmp_path: Path) -> None:
    path = write_recipe(toy_recipe(tmp_path), tmp_path / "r.yaml")
    code = (
        "import logging, sys\n"
        "from leadspan.cli import main\n"
        "code = main(['distill', sys.argv[1], '--dry-run', 'student={kind: pretrained, path: lab/none}'])\n"
        "logging.getLogger('huggingface_hub.utils._http').warning('a line of the Hub')\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "# Disk: not known without the student")
    assert [line for line in done.stderr.splitlines() if "lab/none" in line or "the Hub" in line] == [
        "warning: not checked: student.path = 'lab/none': no such local path, and not in the Hub's cache, with "
        "HF_HUB_OFFLINE set; give a local path, or make the Hub reachable",
        "a line of the Hub",
    ]


def test_a_model_may_be_a_directory_of_one_packed_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.gguf").write_text("no model")
    assert main(["sample", str(tmp_path), "hello"]) == 2
    assert "gguf_file small.gguf is not a GGUF file" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["power", "--json", ""], ["export", "r.yaml", "--output", ""], ["report", ""]])
def test_an_empty_text_is_no_path(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "a path must not be empty" in capsys.readouterr().err


@pytest.mark.slow
def test_a_terminal_of_another_encoding_gets_what_it_can_show(
    make_run: Callable[..., RunResult], tmp_path: Path
) -> None:
    save_run(make_run("full", 30, {"kind": "full"}), tmp_path / "run")
    command = [
        sys.executable,
        "-m",
        "leadspan",
        "report",
        str(tmp_path / "run"),
        "--output",
        str(tmp_path / "rün.html"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "") and "r\\xfcn.html" in done.stdout


def test_a_path_that_a_text_cannot_hold_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(toy_recipe(tmp_path), tmp_path / "r.yaml")
    assert main(["export", str(path), "--what", "data", "--output", str(tmp_path / "\udcff")]) == 2
    assert "leadspan export: a path or a text holds U+DCFF, which utf-8 has not; rename it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        (
            ">/dev/full",
            2,
            "leadspan schema: standard output: cannot be written (No space left on device)",
        ),
        (">&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
    ],
)
def test_a_standard_output_that_is_full_or_closed(redirection: str, code: int, said: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = f"{shlex.quote(sys.executable)} -m leadspan schema {redirection}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr.partition(";")[0]) == (code, said)


def test_a_current_directory_that_was_removed_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(toy_recipe(tmp_path), tmp_path / "r.yaml")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["distill", str(path), "output=runs/x"]) == 2
    assert capsys.readouterr().err == ("leadspan distill: the current directory has been removed; change to another\n")


@pytest.mark.slow
def test_python_without_docstrings_is_refused_before_transformers_fails(tmp_path: Path) -> None:
    path = write_recipe(toy_recipe(tmp_path), tmp_path / "r.yaml")
    command = [sys.executable, "-OO", "-m", "leadspan", "plan", str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr.startswith("leadspan plan: python -OO, or PYTHONOPTIMIZE=2: "), done
