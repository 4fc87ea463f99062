"""Tasks: problems with reference answers, read from local files or the Hub."""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from leadspan.data.config import TraceSource
from leadspan.data.records import Refusal
from leadspan.data.traces import read_records
from leadspan.errors import DataError
from leadspan.evaluation.answers import bare_gold
from leadspan.evaluation.config import TaskSettings

_PROBLEM = ("problem", "question", "prompt", "Problem", "Question", "input")
_ANSWER = ("gold", "answer", "final_answer", "Answer", "target", "expected_answer")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a task.

    Attributes:
        problem_id: Hash of problem and reference answer; a repeated problem has its number behind it.
        text: What the model is asked, instruction included.
        gold: Reference answer.
    """

    problem_id: str
    text: str
    gold: str


def load_task(settings: TaskSettings) -> list[Problem]:
    """All problems of a task, in file order.

    Raises:
        DataError: The source cannot be read, or a record is broken or lacks a column.
    """
    source = TraceSource(path=settings.path, split=settings.split, subset=settings.subset, limit=settings.limit)
    problems: dict[str, Problem] = {}
    counts: Counter[str] = Counter()
    for record in read_records(source):
        if isinstance(record, Refusal):
            raise DataError(f"task {settings.name}: {record.place}: {record.detail}; mend the record")
        problem = _read(record.row, record.place, settings)
        counts[problem.problem_id] += 1
        if counts[problem.problem_id] > 1:  # some benchmarks repeat a problem
            problem = replace(problem, problem_id=f"{problem.problem_id}-{counts[problem.problem_id]}")
        problems[problem.problem_id] = problem
    if not problems:
        raise DataError(f"task {settings.name}: {settings.path} holds no problem")
    return list(problems.values())


def _read(row: dict[str, Any], place: str, settings: TaskSettings) -> Problem:
    problem = _value(row, settings.problem, _PROBLEM, place, "problem", settings.name)
    gold = _value(row, settings.answer, _ANSWER, place, "answer", settings.name)
    gold = gold.rpartition("####")[2].strip()
    if not bare_gold(gold):
        raise DataError(f"task {settings.name}: {place}: the reference answer is empty; leave the record out")
    text = f"{problem}\n\n{settings.instruction}" if settings.instruction else problem
    key = hashlib.sha256(f"{problem}\0{gold}".encode()).hexdigest()[:16]
    return Problem(key, text, gold)


def _value(row: dict[str, Any], named: str | None, usual: tuple[str, ...], place: str, role: str, task: str) -> str:
    names = (named,) if named is not None else usual
    found = next((name for name in names if row.get(name) is not None), None)
    if found is None:
        raise DataError(
            f"task {task}: {place}: no {role} in column {' or '.join(names)} (columns: {', '.join(row)}); "
            f"name the right one with `{role}: COLUMN`"
        )
    value = row[found]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"task {task}: {place}: column {found} is {type(value).__name__}, not text or a number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
