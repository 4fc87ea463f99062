import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from leadspan.cli import is_out_of_memory, main, parse
from leadspan.cli.students import read_evaluation
from leadspan.errors import SettingsError
from leadspan.evaluation.result import EvalResult
from leadspan.models.settings import Pretrained, RandomInit
from leadspan.results import RunResult, save_run
from leadspan.settings import dump_yaml
from leadspan.statistics.intervals import bootstrap_mean
from made_runs import made_recipe
from recipes import toy_recipe, write_recipe
from studies import toy_study


def write_model_config(directory: Path) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return directory


def test_help_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, leadspan.cli as c, leadspan\n"
        "import leadspan.recipe, leadspan.results, leadspan.report.frontier, leadspan.report\n"
        "leadspan.Lead(p=0.5)\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_commands_without_ranks_read_no_variables_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    assert main(["recipes"]) == 0


def test_what_reads_data_alone_or_plans_controls_loads_no_model_classes(tmp_path: Path) -> None:
    path = write_recipe(toy_recipe(tmp_path), tmp_path / "r.yaml")
    code = (
        "import sys, leadspan.cli as c\n"
        f"assert [c.main([command, {str(path)!r}]) for command in ('preview', 'audit')] == [0, 0]\n"
        "import leadspan.inputs, leadspan.training.steps\n"
        "print([m for m in ('transformers.modeling_utils', 'transformers.trainer', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_dry_run_prints_the_resolved_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(toy_recipe(tmp_path), tmp_path / "r.yaml")
    assert main(["distill", str(path), "--dry-run", "cut.p=0.3"]) == 0
    printed = capsys.readouterr().out
    assert "p: 0.3" in printed and printed.splitlines()[-1].startswith("# Disk: up to ")


@pytest.mark.parametrize("command", [["distill", "--dry-run"], ["plan"], ["study", "--dry-run"]], ids=" ".join)
def test_a_template_variable_that_is_not_read_is_refused_before_training(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variables = "data.rendering.template_variables={enable_thinkin: true}"
    if command[0] == "study":
        study, place = toy_study(tmp_path, settings=[variables])
        place.write_text(dump_yaml(study))
        arguments = [str(place)]
    else:
        arguments = [str(write_recipe(toy_recipe(tmp_path), tmp_path / "r.yaml")), variables]
    assert main([command[0], *arguments, *command[1:]]) == 2
    assert "the template does not read 'enable_thinkin'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["distill", "none.yaml"], "leadspan distill: none.yaml: cannot be read", id="no recipe"),
        pytest.param(["preview", "{recipe}", "cut.q=1"], "cut.q: unknown key", id="unknown key"),
        pytest.param(["preview", "{recipe}", "data.train.path=none.jsonl"], "none.jsonl", id="no traces"),
        pytest.param(["preview", "{recipe}", "tokenizer=none/at/all"], "tokenizer = 'none/at/all'", id="no tokenizer"),
        pytest.param(["report", "{folder}"], "run.json", id="no runs"),
        pytest.param(
            ["evaluate", "{folder}", "{folder}/traces.jsonl", "--output", "{folder}/e"],
            "model|tokenizer",
            id="no model",
        ),
        pytest.param(
            ["evaluate", "{folder}/model", "no/such", "--output", "{folder}/e"],
            "TASK = 'no/such': no such local path",
            id="no task",
        ),
        pytest.param(["power", "--claim", "0.97"], "is not above the claim 0.97", id="claim above the truth"),
        pytest.param(["distill", "{recipe}", "--dry-run", "training.report_to=[trackio]"], "report_to", id="tracker"),
        pytest.param(["distill", "{recipe}", "cut=kind:lead", "cut=p:0.3"], "quote a mapping", id="split by the shell"),
        pytest.param(["report", "{folder}", "--output", "-", "--format", "png"], "figures are files", id="png to -"),
        pytest.param(["preview", "{folder}/traces.jsonl"], "holds data, not a recipe; `leadspan init ", id="traces"),
        pytest.param(["preview", "{recipe}", "--records", "-1"], "give numbers from 0 upwards", id="no records"),
        pytest.param(["study", "{recipe}"], "is a recipe, not a study; run it with", id="recipe as a study"),
        pytest.param(["power", "--claim", "91"], "the claim 91 (a share: 0.91 is 91 %)", id="per cent"),
        pytest.param(["power", "--samples", "0"], "are numbers from 1 upwards", id="no samples"),
        pytest.param(["power", "--full", "{folder}"], "--full and --policy go together", id="one side only"),
        pytest.param(["power", "--full", "{folder}", "--policy", "{folder}"], "run.json", id="no run"),
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
    write_model_config(tmp_path / "model")
    filled = [a.replace("{recipe}", str(path)).replace("{folder}", str(tmp_path)) for a in arguments]
    assert main(filled) == 2
    error = capsys.readouterr().err
    assert any(word in error for word in message.split("|"))
    assert "Traceback" not in error


def test_a_study_is_no_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("name: s\noutput: o\nrecipe: r.yaml\n")
    assert main(["plan", str(study)]) == 2
    assert f"is a study, not a recipe; run it with `leadspan study {study}`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--learning_rate", "1e-5"], "settings have no dashes: training.learning_rate=1e-5"),
        (["--training.steps=3"], "settings have no dashes: training.steps=3"),
        (["--num-train-epochs=3"], "settings have no dashes: training.epochs=3"),
        (["--dryrun"], "did you mean --dry-run?"),
    ],
)
def test_an_option_that_there_is_not_is_told_what_is_meant(
    capsys: pytest.CaptureFixture[str], words: list[str], hint: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["distill", "r.yaml", *words])
    assert hint in capsys.readouterr().err


def test_no_command_at_all_is_told_where_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "name a command; `leadspan init` writes a recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["sampling.temperature=0", "tasks.0.limit=3"],
        ["--set", "sampling.temperature=0", "tasks.0.limit=3"],
        ["--set", "sampling.temperature=0", "--set", "tasks.0.limit=3"],
    ],
)
def test_settings_of_an_evaluation_need_no_option_each(tmp_path: Path, words: list[str]) -> None:
    model, tasks = write_model_config(tmp_path / "model"), tmp_path / "tasks.jsonl"
    tasks.touch()
    _, settings = read_evaluation(parse(["evaluate", str(model), str(tasks), "--output", "e", *words]))
    (task,) = settings.tasks
    assert (settings.sampling.temperature, task.path, task.limit) == (0, str(tasks), 3)


def test_words_that_are_no_settings_are_no_tasks_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(["evaluate", "m", "t", "--output", "e", "--set", "a=1", "b"])
    assert "unrecognized arguments: b" in capsys.readouterr().err
    with pytest.raises(SettingsError, match=r"only settings are given \(tasks"):
        read_evaluation(parse(["evaluate", str(tmp_path), "tasks.0.limit=3", "--output", "e"]))


@pytest.mark.parametrize(
    ("word", "meant"),
    [("train", "distill"), ("trein", "distill"), ("Evaluat", "evaluate"), ("generate", "sample"), ("help", "--help")],
)
def test_commands_of_other_programs_are_told_what_they_are_here(
    word: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([word, "r.yaml"])
    assert f"did you mean leadspan {meant}?" in capsys.readouterr().err


def test_figures_go_to_standard_output_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power", "--samples", "4", "--seeds", "20", "--problems", "500", "--json", "-"]) == 0
    shown = capsys.readouterr()
    figures = json.loads(shown.out)
    [plan], [needed] = figures["plans"], figures["needed"]
    assert (plan["problems"], plan["samples"], plan["seeds"]) == (500, 4, 20) and 0 < plan["chance"] < 1
    assert f"{needed['problems']:,}" in shown.err and figures["claim"]["claim"] == 0.91
    path = write_recipe(toy_recipe(tmp_path), tmp_path / "r.yaml")
    assert main(["plan", str(path), "--cut", "{kind: full}", "--json", "-"]) == 0
    labels = [row["label"] for row in json.loads(capsys.readouterr().out)["rows"]]
    assert labels == ["lead 0.7", "full", "mix 0.75 lead 0.7", "lead_answer 0.7"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_their_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    lines = capsys.readouterr().out.splitlines()
    [distill] = [line for line in lines if "distill" in line and "resume" in line]
    assert "dry-run" in distill or any("distill" in line and "dry-run" in line for line in lines)
    if shell == "bash":
        code = "source /dev/stdin; COMP_WORDS=(leadspan store v); COMP_CWORD=2; _leadspan; echo ${COMPREPLY[@]}"
        done = subprocess.run(["bash", "-c", code], input="\n".join(lines), capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "verify"


@pytest.mark.parametrize("kind", ["recipe", "study", "world"])
def test_the_schema_is_printed(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", kind]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["type"] == "object" and "output" in schema["properties"]


def test_preview_shows_sections_cuts_and_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(toy_recipe(tmp_path), tmp_path / "r.yaml")
    assert main(["preview", str(path), "--records", "1", "--chars", "0"]) == 0
    shown = capsys.readouterr().out
    assert "traces.jsonl:" in shown and "tokens kept" in shown and "[cut: " in shown.partition("tokens kept")[2]
    for name in (
        "lost question",
        "lost end of thinking",
        "lost answer",
        "lost stop",
        "cot tokens",
        "weighted positions",
    ):
        assert name in shown
    assert main(["preview", str(path), "--records", "1", "--chars", "1"]) == 0
    assert "step 0" in shown and "step 0" not in (one := capsys.readouterr().out) and "appended" not in one
    assert main(["preview", str(path), "--records", "0", "cut={kind: lead, stop: append_eos}"]) == 0
    [appended] = (line.split() for line in capsys.readouterr().out.splitlines() if "appended" in line)
    assert appended == ["appended", "tokens", "0", "32"]  # one for each example: sections add up to all tokens


@pytest.mark.slow
def test_distill_evaluate_and_report_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = tmp_path / "task.jsonl"
    task.write_text(json.dumps({"problem": "add 1 to itself", "answer": "2"}) + "\n")
    runs = []
    for cut in ("{kind: full}", "{kind: lead, p: 0.5}"):
        output = tmp_path / f"run{len(runs)}"
        path = write_recipe(toy_recipe(tmp_path, steps=2), tmp_path / "r.yaml")
        (output / "samples").mkdir(parents=True)
        (output / "samples" / "toy.jsonl").write_text("of an earlier run that did not finish\n")
        sampling = "{max_new_tokens: 8, temperature: 0}"
        tasks = f"evaluation={{system: Brief., tasks: [{{name: toy, path: {task}}}], sampling: {sampling}}}"
        assert main(["distill", str(path), f"output={output}", f"cut={cut}", tasks]) == 0
        runs.append(output)
    shown = capsys.readouterr().out
    assert "accuracy (strict)" in shown and "terminated" in shown and "peak memory" in shown
    sample = json.loads((runs[0] / "samples" / "toy.jsonl").read_text())
    assert {"prompt", "text", "num_tokens", "finish_reason", "strict", "flexible", "weights_hash"} <= set(sample)
    assert (runs[0] / "samples.old-1" / "toy.jsonl").read_text().startswith("of an earlier run")
    evaluated = tmp_path / "evaluated"
    options = ["--output", str(evaluated), "--set", "sampling.max_new_tokens=4", "--set", "sampling.temperature=0"]
    assert main(["evaluate", str(runs[0]), str(task), *options, "--json", str(tmp_path / "figures.json")]) == 0
    assert json.loads((tmp_path / "figures.json").read_text()) == json.loads((evaluated / "run.json").read_text())
    assert main(["evaluate", str(runs[0]), str(task), *options]) == 2
    again = json.loads((evaluated / "samples" / "task.jsonl").read_text())
    assert again["prompt"] == sample["prompt"] and "Brief." in again["prompt"]
    page = tmp_path / "report.html"
    assert main(["report", *map(str, runs), "--output", str(page)]) == 0
    assert "lead 0.5" in page.read_text()
    assert main(["report", *map(str, runs), "--output", str(tmp_path / "tables.MD")]) == 0
    assert (tmp_path / "tables.MD").read_text().startswith("#")
    capsys.readouterr()
    assert main(["report", *map(str, runs), "--output", "-", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() >= {"tasks", "runs"}


def test_power_tells_what_a_claim_needs(capsys: pytest.CaptureFixture[str]) -> None:
    plan = ["--samples", "1", "4", "--seeds", "1", "3", "--problems", "30", "500"]
    assert main(["power", "--claim", "0.8", "--retention", "0.95", "--seed-sd", "0.02", *plan]) == 0
    shown = capsys.readouterr().out
    assert "retention of at least 80 %" in shown and "Problems needed" in shown and "What a plan can show" in shown
    rows = [re.split(r"\s{2,}", line.strip()) for line in shown.splitlines() if re.match(r"\s*\d+ ", line)]
    needed = {row[0]: int(row[1].replace(",", "")) for row in rows if len(row) == 3}
    assert needed["1"] > needed["4"] > 30
    assert [row[0] for row in rows if len(row) == 5] == ["30"] * 4 + ["500"] * 4


def evaluated_run(name: str, correct: dict[str, list[int]]) -> RunResult:
    sure = bootstrap_mean(list(correct.values()))
    result = EvalResult(
        task="toy",
        model=name,
        weights_hash="abc",
        num_problems=len(correct),
        samples_per_problem=4,
        sampling={},
        accuracy_strict=sure,
        accuracy_flexible=sure,
        termination_rate=sure,
        cap_hit_rate=0,
        thinking_closed_rate=1,
        tokens_mean=1,
        tokens_p50=1,
        tokens_p95=1,
        correct=correct,
    )
    return RunResult(name=name, label=name, seed=0, recipe=None, environment={}, evaluations=[result])


def test_power_from_finished_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = random.Random(1)
    chances = [generator.random() for _ in range(200)]
    for name, factor in (("full", 1.0), ("lead", 0.9)):
        for seed in range(3):
            scores = {
                str(i): [int(generator.random() < factor * chance) for _ in range(4)]
                for i, chance in enumerate(chances)
            }
            save_run(evaluated_run(name, scores), tmp_path / f"{name}-{seed}")
    sides = [
        [flag, *(str(tmp_path / f"{name}-{seed}") for seed in range(3))]
        for flag, name in (("--full", "full"), ("--policy", "lead"))
    ]
    assert main(["power", *sides[0], *sides[1], "--claim", "0.8"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Expected: retention 8" in shown or "Expected: retention 9" in shown
    assert main(["power", *sides[0], *sides[1], "--claim", "0.99"]) == 2
    assert "is not above the claim 0.99" in capsys.readouterr().err


def test_what_a_run_evaluated_as_it_was_is_evaluated_again() -> None:
    from leadspan.cli.options import student_of

    student = {"kind": "pretrained", "path": "org/base", "revision": "v2"}
    recipe = made_recipe({"student": student}, name="base", role="base")
    run = RunResult(name="base", label="base", role="base", seed=0, recipe=recipe, environment={})
    assert student_of(run, Path("runs/base")) == Pretrained(path="org/base", revision="v2")
    drawn = run.model_copy(update={"recipe": recipe.model_copy(update={"student": RandomInit(config={})})})
    assert student_of(drawn, Path("runs/base")) == Pretrained(path="runs/base/student")


@pytest.mark.parametrize(
    ("overrides", "warning"),
    [
        ([], ""),
        (
            ["data.train.think_open=<r>", "data.train.think_close=</r>"],
            "warning: data.train.think_open: neither '<r>' nor '</r>' is in the first records of ",
        ),
    ],
)
def test_preview_warns_of_tags_that_no_record_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], warning: str
) -> None:
    path = write_recipe(toy_recipe(tmp_path), tmp_path / "r.yaml")
    assert main(["preview", str(path), "--records", "1", *overrides]) == 0
    error = capsys.readouterr().err
    assert warning in error if warning else "warning" not in error


def test_refusals_are_told_after_a_preview_as_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A module of the package has the name of what shows text."""
    import leadspan.cli.first_look  # noqa: F401  # what the command preview imports

    assert main(["preview", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err


def test_memory_that_runs_out_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as on_a_cpu:
        torch.empty(2**60)
    assert is_out_of_memory(on_a_cpu.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
