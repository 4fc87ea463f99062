import json
from pathlib import Path

import pytest

from leadspan.errors import DataError
from leadspan.evaluation.config import TaskSettings
from leadspan.evaluation.tasks import load_task


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
        pytest.param([{"problem": "x", "answer": " "}], {}, "reference answer is empty", id="empty answer"),
        pytest.param([{"problem": "x"}], {"answer": "key"}, "no answer in column key", id="named column missing"),
        pytest.param([{"problem": "x", "answer": [1, 2]}], {}, "column answer is list", id="list"),
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


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "count"),
    [("aime24", 30), ("aime25", 30), ("amc23", 40), ("math500", 500), ("gsm8k_test", 1319), ("olympiadbench", 675)],
)
def test_real_benchmarks(shared: Path, name: str, count: int) -> None:
    problems = load_task(TaskSettings(name=name, path=str(shared / "benchmarks" / f"{name}.jsonl")))
    assert len(problems) == count and all(p.text and p.gold for p in problems)


@pytest.mark.shared
def test_a_benchmark_without_answers_says_so(shared: Path) -> None:
    with pytest.raises(DataError, match=r"no answer in column .*columns: problem, solution, type, idx"):
        load_task(TaskSettings(name="minerva", path=str(shared / "benchmarks" / "minerva_math.jsonl")))
