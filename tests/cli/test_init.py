import json
import shlex
from pathlib import Path

import pytest
from benchmarks.hold_process import run
from transformers import AutoConfig

from leadspan.cli import main
from leadspan.cli.first_look import _quoted
from leadspan.cli.starting import RECIPES
from leadspan.recipe import Recipe, load_recipe
from leadspan.settings import load_settings
from leadspan.study.settings import Study
from leadspan.worlds.files import WorldFiles
from leadspan.yaml_text import parse_yaml
from toys import DROPS_COT, TEMPLATE, character_tokenizer, tiny, write_traces


def write_model(directory: Path, template: str | None = TEMPLATE) -> Path:
    """Config and tokenizer of a model; its weights are not looked at."""
    values = dict(tiny().config)
    AutoConfig.for_model(values.pop("model_type"), **values).save_pretrained(directory)
    character_tokenizer(template).save_pretrained(directory)
    return directory


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    write_traces(tmp_path / "traces.jsonl", 40)
    (tmp_path / "task.jsonl").write_text(json.dumps({"problem": "add 1 to itself", "answer": "2"}) + "\n")
    return ["init", "traces.jsonl", "--student", str(write_model(tmp_path / "student")), "--task", "task.jsonl"]


def test_a_recipe_is_written_for_what_traces_and_models_hold(words: list[str], tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher")
    assert main([*words, "--teacher", str(teacher), "--output", "new/mine.yaml"]) == 0
    recipe = load_recipe("new/mine.yaml")
    assert (recipe.name, recipe.output) == ("mine", Path("runs/mine"))
    assert recipe.data.train.model_dump(exclude_unset=True) == {"path": "traces.jsonl", "format": "columns"}
    assert recipe.data.rendering.assistant_turn == "template" and recipe.tokenizer is None
    # the longest trace has 163 characters; lengths go up to a power of two
    assert recipe.data.max_tokens == recipe.evaluation.sampling.max_new_tokens == 256
    assert recipe.loss.kl_weight == 0.5 and recipe.cut.label == "mix 0.75 lead 0.5"
    assert [(task.name, task.path, task.limit) for task in recipe.evaluation.tasks] == [("task", "task.jsonl", 100)]
    schema = (tmp_path / "new" / "mine.yaml").read_text().splitlines()[0].partition("$schema=")[2]
    assert json.loads((tmp_path / "new" / schema).read_text())["properties"].keys() == Recipe.model_fields.keys()


def test_columns_of_other_names_are_named_to_the_command(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (tmp_path / "traces.jsonl").read_text().splitlines()]
    limo = [{"puzzle": row["prompt"], "solution": row["cot"], "answer": row["answer"]} for row in rows]
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in limo))
    assert main(words) == 2
    assert "`init` takes them as --set columns.cot=NAME" in capsys.readouterr().err
    assert main([*words, "--set", "columns.prompt=puzzle", "columns.cot=solution", "limit=30"]) == 0
    assert load_recipe("recipe.yaml").data.train.model_dump(exclude_unset=True) == {
        "path": "traces.jsonl",
        "format": "columns",
        "columns": {"prompt": "puzzle", "cot": "solution"},
        "limit": 30,
    }
    assert "# 30 records looked at: prompt in 'puzzle', cot in 'solution'" in (tmp_path / "recipe.yaml").read_text()


@pytest.mark.parametrize("name", [".5", "null", "NO", "._5", "a: b", "-", "1e3", "half"])
def test_a_name_that_yaml_reads_as_something_else_is_quoted(name: str) -> None:
    assert parse_yaml(f"{{name: {_quoted(name)}}}", "") == {"name": name}


def test_the_next_commands_can_be_copied_into_a_shell(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--output", "my runs/my first.yaml"]) == 0
    steps = [shlex.split(line.partition("  # ")[0]) for line in capsys.readouterr().out.splitlines()[1:]]
    assert steps[0] == ["leadspan", "audit", "my runs/my first.yaml"]
    assert steps[-1] == ["leadspan", "report", "runs/my first", "runs/my first-full"]


@pytest.mark.slow
def test_the_command_goes_on_where_the_disk_was_full(words: list[str], tmp_path: Path) -> None:
    ended = run(tmp_path, words, max_bytes=20_000)  # room for the recipe, not for the schema
    assert ended.code == 2 and "cannot be written" in ended.said and not (tmp_path / "recipe.yaml").exists()
    assert main(words) == 0


def test_a_template_that_drops_thinking_renders_the_prompt_alone(words: list[str], tmp_path: Path) -> None:
    write_model(tmp_path / "student", DROPS_COT)
    assert main(words) == 0
    recipe = load_recipe("recipe.yaml")
    assert recipe.data.rendering.assistant_turn == "append" and recipe.loss.kl_weight == 0


def test_the_teacher_s_tokenizer_is_taken_where_the_student_s_has_no_template(words: list[str], tmp_path: Path) -> None:
    write_model(tmp_path / "student", None)
    (tmp_path / "student" / "chat_template.jinja").unlink(missing_ok=True)
    assert main([*words, "--teacher", str(write_model(tmp_path / "teacher"))]) == 0
    assert load_recipe("recipe.yaml").tokenizer == str(tmp_path / "teacher")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({1: "trace.jsonl"}, "did you mean 'traces.jsonl'?"),
        ({3: "none/at/all"}, "--student = 'none/at/all'"),
        ({5: "task.json"}, "did you mean 'task.jsonl'?"),
        ({2: "--name"}, "student missing"),
    ],
    ids=["traces", "student", "task", "no student"],
)
def test_what_is_not_there_is_refused_and_nothing_written(
    words: list[str], changed: dict[int, str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([changed.get(i, word) for i, word in enumerate(words)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "recipe.yaml").exists()


def test_a_recipe_that_is_there_stays(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: mine\n")
    assert main(words) == 2
    assert (tmp_path / "recipe.yaml").read_text() == "name: mine\n"


def test_recipes_are_listed_printed_and_copied_with_those_they_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipes"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == sorted(path.stem for path in RECIPES.glob("*.yaml")) and len(names) >= 14
    assert main(["recipes", "study_multiplication_cpu", "--output", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "study_multiplication_cpu.yaml",
        "world_multiplication_cpu.yaml",
        "from_scratch_student.yaml",
        "from_scratch_teacher.yaml",
        "from_scratch_base.yaml",
    }
    load_settings(Study, tmp_path / "study_multiplication_cpu.yaml")
    load_settings(WorldFiles, tmp_path / "world_multiplication_cpu.yaml")
    assert main(["recipes", "paper_bespoke"]) == 2
    assert "did you mean 'paper_bespoke_stratos'?" in capsys.readouterr().err
