"""Tasks: problems with reference answers, read from local files or the Hub."""

import hashlib
import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from leadspan.answers.boxes import bare_gold, last_boxed
from leadspan.answers.grading import MathGrader
from leadspan.answers.numbers import as_number
from leadspan.answers.verifiers import generated_problems
from leadspan.data.templates import TemplateRefusal
from leadspan.errors import DataError
from leadspan.evaluation.benchmarks import NUM_GENERATED
from leadspan.evaluation.choices import read_choice
from leadspan.evaluation.settings import TaskSettings
from leadspan.traces.read import read_records
from leadspan.traces.records import Refusal

if TYPE_CHECKING:
    from leadspan.data.prompts import PromptRenderer

logger = logging.getLogger(__name__)

# Usual column names, in order of preference.
_PROBLEM = ("problem", "question", "prompt", "Problem", "Question", "input")
_ANSWER = ("gold", "answer", "final_answer", "Answer", "target", "expected_answer")
_SOLUTION = "solution"
_FIELD = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a task.

    Attributes:
        problem_id: Hash of problem and reference answer; a repeated problem has its number appended.
        text: The prompt text, instruction included.
        gold: Reference answer; the letter of the right choice where there are choices.
        choices: What the choices say, `A` first.
        entry: For a problem of reasoning-gym: the entry of its data set, for its verifier.
    """

    problem_id: str
    text: str
    gold: str
    choices: tuple[str, ...] = ()
    entry: str = ""


def load_task(settings: TaskSettings) -> list[Problem]:
    """All problems of a task, in file order.

    Raises:
        SettingsError: Its problems cannot be generated with these options.
        DataError: The source cannot be read, or a record is broken or lacks a column.
    """
    drawn: list[Problem] = []
    if settings.generated is None:
        for record in read_records(settings.source, "test"):
            where = f"task {settings.name}: {record.place}"
            if isinstance(record, Refusal):
                raise DataError(f"{where}: {record.detail}; correct the record")
            drawn.append(_read(record.row, where, settings))
    else:
        number, where = settings.limit or NUM_GENERATED, f"task {settings.name}"
        for question, gold, entry in generated_problems(settings.generated, settings.options, number, where):
            key = hashlib.sha256(f"{question}\0{gold}".encode()).hexdigest()[:16]
            text = "\n\n".join(filter(None, (question, settings.instruction)))
            drawn.append(Problem(key, text, gold, entry=entry))
    problems: dict[str, Problem] = {}
    counts: Counter[str] = Counter()
    for problem in drawn:
        counts[problem.problem_id] += 1
        if counts[problem.problem_id] > 1:  # some benchmarks repeat a problem
            problem = replace(problem, problem_id=f"{problem.problem_id}-{counts[problem.problem_id]}")
        problems[problem.problem_id] = problem
    if not problems:
        raise DataError(f"task {settings.name}: {settings.path} holds no problem")
    return list(problems.values())


def task_prompts(task: str, problems: Sequence[Problem], renderer: "PromptRenderer", system: str) -> list[str]:
    """The prompt of every problem, with the system message where there is one.

    Raises:
        DataError: A problem cannot be rendered as it stands; names it.
    """
    before = [{"role": "system", "content": system}] if system else []
    prompts: list[str] = []
    for number, problem in enumerate(problems, 1):
        try:
            prompts.append(renderer.prompt_text([*before, {"role": "user", "content": problem.text}]))
        except TemplateRefusal as error:
            raise DataError(f"task {task}, problem {number}: {error}") from None
    return prompts


def warn_of_golds(settings: TaskSettings, problems: Sequence[Problem]) -> None:
    """Warn of reference answers of a math task that cannot be read, and so are compared as text alone."""
    # Plain numbers can always be read; the others go to the parser in worker processes.
    golds = dict.fromkeys(problem.gold for problem in problems if as_number(problem.gold) is None)
    if settings.grader != "math" or not golds:
        return
    with MathGrader() as grader:
        unreadable = [list(golds)[i] for i in grader.unreadable(list(golds))]
    if unreadable:
        shown = ", ".join(repr(gold[:60]) for gold in unreadable[:3])
        logger.warning(
            "task %s: %d reference answers cannot be read as maths or words, so that only the same text is right: %s",
            settings.name, len(unreadable), shown,
        )  # fmt: skip


def _read(row: dict[str, Any], where: str, settings: TaskSettings) -> Problem:
    columns = _FIELD.findall(settings.problem or "")
    if settings.problem is None or not columns:
        problem = _value(row, settings.problem, _PROBLEM, where, "problem")[1]
    else:  # a text with columns in braces
        for column in columns:
            if column not in row:
                raise _missing(row, where, "problem", column)
        texts = {column: _text(row[column], column, where) for column in columns}
        problem = _FIELD.sub(lambda match: texts[match[1]], settings.problem).strip()
    column, gold = _answer(row, where, settings)
    choice = None
    if settings.choices is not None:
        choice = read_choice(row, problem, gold, column, settings.choices, where)
        gold = choice.letter
    paragraphs = [problem, choice.prompt() if choice else "", settings.instruction]
    statement = problem if choice is None else f"{problem}\n\n{choice.prompt()}"
    try:
        key = hashlib.sha256(f"{statement}\0{gold}".encode()).hexdigest()[:16]
    except UnicodeEncodeError as error:
        half = f"U+{ord(error.object[error.start]):04X}"
        raise DataError(f"{where}: {half} is half of a character, which is not text; correct the record") from None
    return Problem(key, "\n\n".join(part for part in paragraphs if part), gold, choice.texts if choice else ())


def _answer(row: dict[str, Any], where: str, settings: TaskSettings) -> tuple[str, str]:
    """Column and reference answer."""
    usual = [name for name in _ANSWER if row.get(name) is not None]
    if settings.answer is None and not usual and row.get(_SOLUTION) is not None:
        box = last_boxed(str(row[_SOLUTION]))
        if box is None:
            raise DataError(
                f"{where}: no answer column, and no box in column {_SOLUTION}; name the column of the answer with "
                "`answer: COLUMN`"
            )
        column, gold = _SOLUTION, box
    else:
        column, gold = _value(row, settings.answer, _ANSWER, where, "answer")
    # GSM8K ends its solutions in `#### answer`.
    gold = gold.rpartition("####")[2].strip()
    if not bare_gold(gold):
        raise DataError(f"{where}: the reference answer is empty; leave the record out")
    return column, gold


def _value(row: dict[str, Any], named: str | None, usual: tuple[str, ...], where: str, role: str) -> tuple[str, str]:
    """The first of the columns that holds something, and its text."""
    names = (named,) if named is not None else usual
    column = next((name for name in names if row.get(name) is not None), None)
    if column is None:
        raise _missing(row, where, role, " or ".join(names))
    return column, _text(row[column], column, where)


def _missing(row: dict[str, Any], where: str, role: str, columns: str) -> DataError:
    return DataError(
        f"{where}: no {role} in column {columns} (columns: {', '.join(row)}); name the right one with `{role}: COLUMN`"
    )


def _text(value: Any, column: str, where: str) -> str:
    # OlympiadBench has lists of one answer.
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise DataError(f"{where}: column {column} is {type(value).__name__}, not text or a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where}: column {column} is {value}, which no answer equals; correct the record")
    # A column of floats holds 3 as 3.0, which a text would not equal.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
