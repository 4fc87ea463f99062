import json
import re
from pathlib import Path

import pytest

from leadspan.data.prompts import PromptRenderer
from leadspan.data.settings import Rendering
from leadspan.errors import DataError, EvaluationError, SettingsError
from leadspan.evaluation.evaluate import check_evaluation
from leadspan.evaluation.settings import BENCHMARKS, BOXED, EvaluationSettings, TaskSettings, task_values
from leadspan.evaluation.tasks import load_task, task_prompts, warn_of_golds
from leadspan.settings import validate
from toys import character_tokenizer


def task(tmp_path: Path, *rows: object, **settings: object) -> TaskSettings:
    path = tmp_path / "t.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return TaskSettings.model_validate({"name": "t", "path": str(path), **settings})


def test_problem_answer_and_instruction(tmp_path: Path) -> None:
    settings = task(tmp_path, {"question": "1+1?", "answer": "so\n#### 2"}, instruction="Box it.")
    (problem,) = load_task(settings)
    assert (problem.text, problem.gold) == ("1+1?\n\nBox it.", "2")


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        pytest.param(
            [{"text": "x"}], {}, r"t.jsonl:1: no problem in column .*columns: text.*`problem: COLUMN`", id="no problem"
        ),
        pytest.param(
            [{"problem": "x", "answer": " "}], {}, "no answer in column .* leave an empty record out", id="blank"
        ),
        pytest.param([{"problem": " ", "answer": "2"}], {}, "t.jsonl:1: no problem in column", id="empty problem"),
        pytest.param(
            [{"a": "", "b": None, "answer": "2"}],
            {"problem": "{a}: {b}"},
            "no problem in column a or b",
            id="all empty",
        ),
        pytest.param([{"problem": "x"}], {"answer": "key"}, "no answer in column key", id="named column missing"),
        pytest.param([{"problem": "x", "answer": [1, 2]}], {}, "column answer is list", id="list"),
        pytest.param([{"problem": "x", "answer": float("nan")}], {}, "column answer is nan", id="NaN"),
        pytest.param([{"problem": "x", "answer": float("-inf")}], {}, "column answer is -inf", id="infinite"),
        pytest.param([{"problem": "\ud800", "answer": "2"}], {}, r"t.jsonl:1: U\+D800", id="half a character asked"),
        pytest.param(
            [{"problem": "x", "answer": "\udfff"}], {}, r"t.jsonl:1: U\+DFFF", id="half a character as answer"
        ),
        pytest.param([{"problem": "x", "answer": "\\boxed{}"}], {}, "reference answer is empty", id="empty box"),
        pytest.param(['{"problem'], {}, "t.jsonl:1", id="broken line"),
        pytest.param([], {}, "holds no problem", id="empty"),
    ],
)
def test_broken_tasks(tmp_path: Path, rows: list[object], settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_task(task(tmp_path, *rows, **settings))


def test_a_repeated_problem_is_kept_apart(tmp_path: Path) -> None:
    first, second = load_task(task(tmp_path, *[{"problem": "x", "answer": 1}] * 2))
    assert second.problem_id == f"{first.problem_id}-2" and second.text == first.text


def test_the_box_of_a_solution_is_the_answer_where_there_is_no_other(tmp_path: Path) -> None:
    (problem,) = load_task(task(tmp_path, {"problem": "x", "solution": "so \\boxed{1}, no: \\boxed{\\frac{1}{2}}."}))
    assert problem.gold == "\\frac{1}{2}"
    with pytest.raises(DataError, match="no box in column solution"):
        load_task(task(tmp_path, {"problem": "x", "solution": "so 1."}))


def test_an_empty_column_gives_way_to_the_next(tmp_path: Path) -> None:
    rows = (
        {"problem": "", "question": "x", "gold": "", "answer": "2"},
        {"problem": "x", "answer": "", "solution": "\\boxed{3}"},
    )
    assert [(problem.text, problem.gold) for problem in load_task(task(tmp_path, *rows))] == [("x", "2"), ("x", "3")]


def test_a_problem_of_several_columns(tmp_path: Path) -> None:
    row = {"Body": "Two {red} hats.", "Question": "How many?", "Answer": 2.0, "context": None}
    (problem,) = load_task(task(tmp_path, row, problem="{context}\n{Body}\n{Question}"))
    assert (problem.text, problem.gold) == ("Two {red} hats.\nHow many?", "2")
    with pytest.raises(DataError, match="no problem in column Text"):
        load_task(task(tmp_path, row, problem="{Body} {Text}"))


GPQA = {
    "Question": "Which?",
    "Correct Answer": "gold\n",
    "Incorrect Answer 1": "lead",
    "Incorrect Answer 2": "tin",
    "Incorrect Answer 3": "iron",
}


@pytest.mark.parametrize(
    ("benchmark", "row", "letter", "choices"),
    [
        pytest.param(
            "arc_challenge",
            {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
            "B",
            ("x", "y"),
            id="text and label",
        ),
        pytest.param(
            "mmlu", {"question": "q", "choices": ["x", "2", "z"], "answer": 2}, "C", ("x", "2", "z"), id="list"
        ),
        pytest.param("mmlu_pro", {"question": "q", "options": ["x", "y"], "answer": "B"}, "B", ("x", "y"), id="letter"),
        pytest.param("mmlu", {"question": "q", "choices": ["9", "7"], "answer": "7"}, "B", ("9", "7"), id="a number"),
        pytest.param("mmlu", {"question": "q", "choices": ["x", "²"], "answer": "²"}, "B", ("x", "²"), id="no number"),
        pytest.param("hellaswag", {"ctx": "c", "endings": ["x", "y"], "label": "0"}, "A", ("x", "y"), id="from zero"),
        pytest.param(
            "winogrande",
            {"sentence": "a _", "option1": "x", "option2": "y", "answer": "1"},
            "A",
            ("x", "y"),
            id="from one",
        ),
        pytest.param("piqa", {"goal": "g", "sol1": "x", "sol2": "y", "label": 1}, "B", ("x", "y"), id="columns"),
        pytest.param("boolq", {"question": "q", "passage": "p", "answer": True}, "B", ("no", "yes"), id="yes or no"),
        pytest.param("gpqa", GPQA, None, None, id="shuffled"),
        pytest.param(
            "mmlu",
            {"question": "q", "choices": ["True", "False"], "answer": "True"},
            "A",
            ("True", "False"),
            id="truth",
        ),
        pytest.param("mmlu", {"question": "q", "choices": ["yes", "no"], "answer": True}, "A", ("yes", "no"), id="yes"),
        pytest.param("mmlu", {"question": "q", "choices": ["x", "y"], "answer": False}, "A", ("x", "y"), id="false"),
    ],
)
def test_multiple_choice(
    tmp_path: Path, benchmark: str, row: dict[str, object], letter: str | None, choices: tuple[str, ...] | None
) -> None:
    settings = task(tmp_path, row, benchmark=benchmark, name=benchmark)
    (problem,) = load_task(settings)
    assert all(f"{name}. {text}" in problem.text for name, text in zip("ABCD", problem.choices, strict=False))
    assert problem.text.endswith("within \\boxed{}.")
    if letter is None:
        assert problem.choices["ABCD".index(problem.gold)] == "gold"
        assert sorted(problem.choices) == ["gold", "iron", "lead", "tin"]
        (again,) = load_task(settings)
        assert again == problem
    else:
        assert (problem.gold, problem.choices) == (letter, choices)


def test_shuffled_choices_put_the_right_one_everywhere(tmp_path: Path) -> None:
    problems = load_task(
        task(tmp_path, *[{**GPQA, "Question": f"q{i}"} for i in range(80)], benchmark="gpqa", name="g")
    )
    assert {p.gold for p in problems} == set("ABCD")
    assert max([p.gold for p in problems].count(letter) for letter in "ABCD") < 40


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param({"question": "q", "answer": 1}, "no choice in column choices", id="no choices"),
        pytest.param({"question": "q", "choices": ["x"], "answer": 0}, "1 choices; multiple choice needs", id="one"),
        pytest.param(
            {"question": "q", "choices": ["x", "y"], "answer": 2}, "'2' is not one of the 2 choices", id="beyond"
        ),
        pytest.param({"question": "q", "choices": "xy", "answer": 1}, "is not a list of choices", id="text"),
        pytest.param(
            {"question": "q", "choices": ["2", "1", "7"], "answer": "2"}, "text of one choice and the number", id="both"
        ),
    ],
)
def test_broken_choices(tmp_path: Path, row: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_task(task(tmp_path, row, benchmark="mmlu", name="m"))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/short_test.jsonl", "short_test"),
        ("my tasks (v2)+é.jsonl", "my tasks -v2--é"),
        ("org/set", "set"),
        ("..", ".."),
        ("x².jsonl", "x²"),
        ("问" * 80 + ".jsonl", "问" * 66),
        ("reasoning-gym:../legs", "legs"),
    ],
)
def test_a_task_is_named_after_its_file(path: str, name: str) -> None:
    assert TaskSettings.model_validate({"path": path}).name == name
    assert validate(EvaluationSettings, {"tasks": [task_values(path)]}, "settings").tasks[0].name == name


def test_tasks_of_one_name_are_refused_where_both_have_a_path() -> None:
    with pytest.raises(SettingsError, match="two tasks are called 'x'"):
        validate(EvaluationSettings, {"tasks": [{"path": "a/x.jsonl"}, {"path": "b/x.jsonl"}]}, "settings")
    with pytest.raises(SettingsError, match="two tasks are called 'AMC'"):  # of one file where case does not count
        validate(EvaluationSettings, {"tasks": [{"path": "a/AMC.jsonl"}, {"path": "b/amc.jsonl"}]}, "settings")
    with pytest.raises(SettingsError, match=r"2 invalid settings\n  tasks.0.path: missing.*\n  tasks.1.path = 5"):
        validate(EvaluationSettings, {"tasks": [{"grader": "exact"}, {"path": 5}]}, "settings")


def test_every_known_benchmark_is_a_task() -> None:
    for name in BENCHMARKS:
        settings = TaskSettings.model_validate({"benchmark": name})
        assert settings.name == name and settings.instruction
        assert TaskSettings.model_validate(settings.model_dump()) == settings


def test_settings_of_a_task_stand_before_the_benchmarks() -> None:
    settings = TaskSettings.model_validate({"benchmark": "aime24", "path": "x.jsonl", "samples_per_problem": 8})
    assert (settings.path, settings.samples_per_problem, settings.instruction) == ("x.jsonl", 8, BOXED)


def test_another_path_has_splits_and_subsets_of_its_own() -> None:
    def parts(**values: object) -> tuple[str | None, str | None]:
        settings = TaskSettings.model_validate({"benchmark": "gpqa", **values})
        return settings.split, settings.subset

    assert parts() == parts(path="Idavidrein/gpqa") == ("train", "gpqa_diamond")
    assert parts(path="x.jsonl") == (None, None)
    assert parts(path="directory", split="validation") == ("validation", None)


def test_a_directory_with_splits_is_a_task_by_its_test_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"problem": split, "answer": "1"}))
    (problem,) = load_task(TaskSettings(name="t", path=str(tmp_path)))
    assert problem.text == "test"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"benchmark": "aime42"}, "'aime42': no known benchmark; did you mean 'aime2", id="unknown"),
        pytest.param({"name": "x", "path": "y", "grader": "choice"}, "go together", id="no choices"),
        pytest.param({"name": "x", "path": "y", "grader": "choice", "choices": {}}, "name either", id="empty choices"),
        pytest.param({"name": "x"}, "path: missing", id="no path"),
        pytest.param({"name": "问" * 80, "path": "y"}, "at most 200 bytes", id="long name"),
        pytest.param({"name": "x\n", "path": "y"}, "give one line", id="line end"),
        pytest.param(
            {"path": "reasoning-gym:legs", "split": "train", "benchmark": "gsm8k"},
            "leave out benchmark, split",
            id="made",
        ),
    ],
)
def test_task_settings_that_do_not_fit(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        validate(TaskSettings, values, "task")


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "file", "count", "first"),
    [
        ("aime24", "aime24", 30, "204"),
        ("aime25", "aime25", 30, "70"),
        ("amc23", "amc23", 40, "27"),
        ("math500", "math500", 500, "\\left( 3, \\frac{\\pi}{2} \\right)"),
        ("gsm8k", "gsm8k_test", 1319, "18"),
        ("olympiadbench", "olympiadbench", 675, "2"),
        ("minerva", "minerva_math", 272, "1.6"),
        ("svamp", "svamp", 1000, "145"),
    ],
)
def test_real_benchmarks(shared: Path, name: str, file: str, count: int, first: str) -> None:
    path = shared / "benchmarks" / f"{file}.jsonl"
    problems = load_task(TaskSettings.model_validate({"benchmark": name, "path": str(path)}))
    assert len(problems) == count == len({p.problem_id for p in problems})
    assert all(p.text.endswith(f"\n\n{BOXED}") and p.gold for p in problems)
    assert problems[0].gold == first


@pytest.mark.shared
def test_a_benchmark_without_the_named_column_says_so(shared: Path) -> None:
    with pytest.raises(DataError, match=r"no answer in column answer \(columns: problem, solution, type, idx\)"):
        load_task(TaskSettings(name="minerva", path=str(shared / "benchmarks" / "minerva_math.jsonl"), answer="answer"))


@pytest.mark.slow
def test_choices_that_the_model_is_not_shown_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = {"question": "Which?", "options": ["one", "two"], "answer": 1}
    (problem,) = load_task(task(tmp_path, row))
    assert problem.text == "Which?" and "the column options is not shown to the model" in caplog.text
    caplog.clear()
    load_task(task(tmp_path, {**row, "options": []}))
    load_task(task(tmp_path, row, choices={"columns": ["options"]}, grader="choice"))
    assert not caplog.text


def test_golds_that_cannot_be_read_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    golds = ["12", "-1./3", "np.arcsin(10/13)", "$(1,2)$.", "Evelyn", r"\left( \frac{", "t(0,4]"]
    settings = task(tmp_path, *({"problem": f"q{i}", "answer": gold} for i, gold in enumerate(golds)))
    warn_of_golds(settings, load_task(settings))
    assert "task t: 2 reference answers" in caplog.text
    assert r"\\left( \\frac{" in caplog.text and "t(0,4]" in caplog.text


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_a_problem_with_a_control_token_is_refused_by_its_number(tmp_path: Path, token: str) -> None:
    path = tmp_path / "t.jsonl"
    texts = ["add 1", f"add 2{token}\nsay 3"]
    path.write_text("".join(json.dumps({"problem": text, "answer": "3"}) + "\n" for text in texts))
    problems = load_task(TaskSettings(name="toy", path=str(path)))
    renderer = PromptRenderer(character_tokenizer(), Rendering())
    with pytest.raises(DataError, match=rf"task toy, problem 2: the text contains {re.escape(repr(token))}"):
        task_prompts("toy", problems, renderer, "")
    with pytest.raises(DataError, match="task toy, problem 1: the text contains"):
        task_prompts("toy", problems[:1], renderer, f"Be brief.{token}")
    [prompt] = task_prompts("toy", problems[:1], renderer, "Be brief.")
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nadd 1<|im_end|>")


def test_a_problem_too_long_for_the_window_is_refused_before_training(tmp_path: Path) -> None:
    settings = task(tmp_path, {"problem": "add 1", "answer": "3"})
    renderer = PromptRenderer(character_tokenizer(), Rendering())
    problems, evaluation = load_task(settings), EvaluationSettings(tasks=[settings])
    [prompt] = task_prompts("t", problems, renderer, "")
    num_tokens = len(renderer.tokenizer(prompt, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]
    check_evaluation(evaluation, {settings.name: problems}, renderer, num_tokens + 1)
    with pytest.raises(
        EvaluationError, match=rf"its prompt has {num_tokens} tokens and the model's window {num_tokens};"
    ):
        check_evaluation(evaluation, {settings.name: problems}, renderer, num_tokens)
