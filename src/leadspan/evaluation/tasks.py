"""Tasks: problems with reference answers, read from local files or the Hub; and multiple choice, read and graded."""

import hashlib
import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from leadspan.answers.boxes import bare_gold, last_boxed, text_after_thinking, thinks_to_the_end
from leadspan.answers.equality import Outcome, chosen_letter, compact
from leadspan.answers.grading import GradeItem, MathGrader, Verdict
from leadspan.answers.numbers import as_number
from leadspan.answers.spelling import respell
from leadspan.answers.verifiers import generated_problems
from leadspan.data.templates import TemplateRefusal
from leadspan.errors import DataError
from leadspan.evaluation.settings import NUM_GENERATED, Choices, TaskSettings
from leadspan.traces.read import read_records
from leadspan.traces.records import Refusal

if TYPE_CHECKING:
    from leadspan.data.prompts import PromptRenderer

logger = logging.getLogger(__name__)

# Usual column names, in order of preference.
_PROBLEM = ("problem", "question", "prompt", "Problem", "Question", "input")
_ANSWER = ("gold", "answer", "final_answer", "Answer", "target", "expected_answer")
_SOLUTION = "solution"
_CHOICES = ("choices", "options", "endings")
_TRUTHS = {"True": ("true", "yes"), "False": ("false", "no")}
_FIELD = re.compile(r"\{([^{}]+)\}")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Characters of a box, and at the end of a text, that are searched for an answer: patterns over a long text are slow.
_LONGEST = 2_000
# One letter. `A` and `I` before a word in lower case are an article and a pronoun ("the answer is a number"), unless
# that word gives a reason ("the answer is A because").
_ONE = (
    r"(?:[B-HJ-Z]|[AI](?! (?!(?:because|since|as|and|or|which|is|for|by|due|from|based)\b)[a-z]))"
    r"(?![A-Za-z]|'[a-z]|\.\d)"
)
_OPENING = r"(?:[\s*$`(\[\"'<>]|\\\(|\\(?:text|mathrm|mathbf|textbf)\{)*+"
# A further letter, which is no start of a sentence, and what takes a letter back.
_OTHER = (
    rf"[\s*)\]]*+(?:\b(?i:or|and)\b|[/&]){_OPENING}(?:(?i:option|choice)\s)?+{_OPENING}[A-Z](?![A-Za-z'])"
    r"(?! (?:is|was|are|does|would|can))"
)
_DENIED = (
    r"[\s*)\]\"]*+(?:(?:is|was|would be) (?:\w+ly |also )?(?:not|wrong|incorrect|false|invalid|too|out|excluded|ruled)"
    r"|isn't|cannot|can't|fails|does(?: not|n't))\b"
)
# One letter that is not called wrong, and whether it is one of several.
_LETTER = rf"({_ONE})(?!{_DENIED})({_OTHER})?"
# Words up to `is`, as in "the answer to this is".
_FILLING = (
    r"(?:,? (?!not|nor|neither|never|cannot|isn|whether|if)[a-z]++){0,6}?,? is"
    r"(?: (?:most |very )?[a-z]+ly| thus| therefore)?"
)
_IS = r"(?i:(?:is|(?:would|must|should|will|has to|seems to|appears to) be)\b)?+"
_SAYS = (
    rf"(?:{_FILLING}|\s*+{_IS})\s*+(?:not\s++[A-Z]\s*+,?\s*+but\b)?+(?i:\s*+(?:option|choice)\b)?+[\s*\"']*+"
    rf"[:\uff1a=-]?+{_OPENING}"
)
_STATED = re.compile(
    rf"(?<!wrong )(?<!incorrect )(?:\b(?i:answer|choose|chose|select|pick)|答案[是为]?|选(?!项)择?){_SAYS}{_LETTER}"
    rf"|(?<![\w'.-])({_ONE})[*)\]]*+ (?:is|would be) (?:\w+ly )?(?i:the )?(?:only |most )?(?:correct|right|best)\b()"
)
"""A letter behind what names the answer, or before words that call it right; `A` and `I` before a word are words."""
_MENTIONED = re.compile(
    rf"\b(?i:option|choice){_SAYS}{_LETTER}"
    rf"|(?::|\b(?i:so|thus|hence|therefore|it is|must be),?\s){_OPENING}([A-Z])()[\s*$`)\]\}}.]*+\Z"
)
"""Where nothing is stated: a letter behind the name of a choice, or at the end behind a colon or a conclusion."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a task."""

    problem_id: str  # hash of problem and reference answer; a repeated problem has its number appended
    text: str  # of the prompt, instruction included
    gold: str  # reference answer; the letter of the right choice where there are choices
    choices: tuple[str, ...] = ()  # what they say, `A` first
    entry: str = ""  # for a problem of reasoning-gym: the entry of its data set, for its verifier


def load_task(settings: TaskSettings) -> list[Problem]:
    """All problems of a task, in file order.

    Raises:
        SettingsError: Its problems cannot be generated with these options.
        DataError: The source cannot be read, or a record is broken or lacks a column.
    """
    drawn: list[Problem] = []
    unshown: str | None = None
    if settings.generated is None:
        for record in read_records(settings.source, "test"):
            where = f"task {settings.name}: {record.place}"
            if isinstance(record, Refusal):
                raise DataError(f"{where}: {record.detail}; correct the record")
            drawn.append(_read(record.row, where, settings))
            is_shown = settings.choices is not None or any(name in (settings.problem or "") for name in _CHOICES)
            unshown = unshown or next((name for name in _CHOICES if record.row.get(name) and not is_shown), None)
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
    if unshown is not None:
        logger.warning(
            "task %s: the column %s is not shown to the model; if it holds the choices, set grader: choice and "
            "choices: {columns: [%s]}", settings.name, unshown, unshown,
        )  # fmt: skip
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
            "task %s: %d reference answers cannot be read as maths or words; only identical text is right: %s",
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
        if not any(texts.values()):
            raise _missing(row, where, "problem", " or ".join(columns))
    column, gold = _answer(row, where, settings)
    choices: tuple[str, ...] = ()
    if settings.choices is not None:
        choices, gold = _choices(row, problem, gold, column, settings.choices, where)
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False))
    statement = f"{problem}\n\n{listed}" if choices else problem
    try:
        key = hashlib.sha256(f"{statement}\0{gold}".encode()).hexdigest()[:16]
    except UnicodeEncodeError as error:
        half = f"U+{ord(error.object[error.start]):04X}"
        raise DataError(f"{where}: {half} is half of a surrogate pair, which is not text; correct the record") from None
    return Problem(key, "\n\n".join(filter(None, (problem, listed, settings.instruction))), gold, choices)


def _answer(row: dict[str, Any], where: str, settings: TaskSettings) -> tuple[str, str]:
    """Column and reference answer."""
    usual = [name for name in _ANSWER if row.get(name) not in (None, "")]
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
    for name in names:
        if text := _text(row.get(name), name, where):
            return name, text
    raise _missing(row, where, role, " or ".join(names))


def _missing(row: dict[str, Any], where: str, role: str, columns: str) -> DataError:
    remedy = f"name the right one with `{role}: COLUMN`, or leave an empty record out"
    return DataError(f"{where}: no {role} in column {columns} (columns: {', '.join(row)}); {remedy}")


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


def _choices(
    row: dict[str, Any], problem: str, answer: str, answer_column: str, settings: Choices, where: str
) -> tuple[tuple[str, ...], str]:
    """The choices of a record in the order of the prompt, and the letter of the right one.

    The answer may be a choice's label or letter, its number (from `settings.first`), the text of a choice, a truth
    value, or, where its column is one of the choices' own, that one.
    """
    # Labels may differ from letters: ARC has both `A` and `1`.
    texts, labels = _texts(row, settings, where)
    if not 2 <= len(texts) <= len(LETTERS):
        raise DataError(f"{where}: {len(texts)} choices; multiple choice needs 2 to {len(LETTERS)}")
    # A text of a larger number is that of no choice, and can be what one says.
    is_text = isinstance(row.get(answer_column), str)
    is_number = re.fullmatch(r"\d{1,9}", answer) is not None and (int(answer) <= len(texts) or not is_text)
    # From the surest reading to the least: a column, a label, a number, a text, a truth value.
    right: int | None = None
    if len(settings.columns) > 1 and answer_column in settings.columns:
        right = settings.columns.index(answer_column)
    elif answer in labels:
        right = labels.index(answer)
    elif is_number:
        right = int(answer) - settings.first
    elif answer in texts:
        right = texts.index(answer)
    elif words := _TRUTHS.get(answer):
        # The one choice that says so; where none does, false comes before true.
        said = [position for position, text in enumerate(texts) if text.casefold() in words]
        right = said[0] if len(said) == 1 else int(answer == "True")
    # A digit may be both the number of one choice and the text of another.
    is_index = right is not None and is_number and answer not in labels
    if is_index and is_text and answer in texts and texts.index(answer) != right:
        raise DataError(
            f"{where}: the answer {answer!r} is the text of one choice and the number of another; give its letter, or "
            "make its column one of numbers"
        )
    if right is None or not 0 <= right < len(texts):
        raise DataError(
            f"{where}: the answer {answer[:60]!r} is not one of the {len(texts)} choices "
            f"({', '.join(labels)}; numbers from {settings.first}); correct the record, or set choices.first"
        )
    if not settings.shuffle:
        return tuple(texts), LETTERS[right]
    # By a hash and not by a seed: every model and every run sees the same order.
    order = sorted(range(len(texts)), key=lambda i: hashlib.sha256(f"{problem}\0{texts[i]}".encode()).digest())
    return tuple(texts[i] for i in order), LETTERS[order.index(right)]


def _texts(row: dict[str, Any], settings: Choices, where: str) -> tuple[list[str], list[str]]:
    """Choices and their labels."""
    if settings.texts:
        return list(settings.texts), list(LETTERS[: len(settings.texts)])
    missing = [name for name in settings.columns if row.get(name) is None]
    if missing:
        raise DataError(f"{where}: no choice in column {missing[0]} (columns: {', '.join(row)}); set choices.columns")
    if len(settings.columns) > 1:
        return [str(row[name]).strip() for name in settings.columns], list(LETTERS[: len(settings.columns)])
    value = row[settings.columns[0]]
    if isinstance(value, dict) and isinstance(value.get("text"), list) and isinstance(value.get("label"), list):
        return [str(text).strip() for text in value["text"]], [str(label).strip() for label in value["label"]]
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return [text.strip() for text in value], list(LETTERS[: len(value)])
    raise DataError(f"{where}: column {settings.columns[0]} is not a list of choices; set choices.columns")


def choice_grade(item: GradeItem) -> Verdict:
    r"""Grade the letter a text chooses.

    Strict: the last box of a finished answer holds the letter (`B`, `(B)`, `Option B`, `B. text`, `B - text`) or the
    text of one choice. Flexible: that box, finished or not; where it holds neither, the last "answer is B" or "B is
    correct" of the answer, without one its last "option B"; else an answer that is nothing but the letter or the text
    of a choice. "B or C" is no letter.

    Raises:
        DataError: The gold is empty.
    """
    # An empty gold would equal an empty answer.
    if not bare_gold(item.gold):
        raise DataError(f"choice: gold is {item.gold!r}; grading needs the letter of the right choice")
    text = text_after_thinking(item.text)
    box = (last_boxed(text) or "").strip() or None
    committed = box if item.finished and not thinks_to_the_end(item.text) else None
    letter = None if box is None else _letter_of(box, item.choices)
    judged: dict[str | None, Outcome] = {None: "unparsed", item.gold: "right"}
    strict = "no_answer" if committed is None else judged.get(letter, "wrong")
    if letter is None:
        # The last statement counts, since a text may weigh several choices first; what explains it is none.
        end = text[-_LONGEST:]
        if stated := _STATED.findall(end) or _MENTIONED.findall(end):
            first, others, second, _ = stated[-1]
            letter = None if others else first or second
        elif box is None:
            letter = _letter_of(text, item.choices)
    flexible = "no_answer" if letter is None and box is None else judged.get(letter, "wrong")
    return Verdict(strict, flexible, committed)


def _letter_of(answer: str, choices: Sequence[str]) -> str | None:
    """The letter an answer stands for, by itself or as the text of exactly one choice."""
    if len(answer) > _LONGEST:
        return None
    # The text may be that of several choices, and then names none.
    letter, spelled = chosen_letter(answer), _spelled(answer)
    same = [i for i, text in enumerate(choices) if _spelled(text) == spelled]
    # A lone letter is a letter, even where it is the text of a choice; a longer answer is the choice with that text.
    is_alone = len(re.sub(r"\W", "", spelled)) == 1
    if letter is not None and letter in LETTERS[: len(choices)] and (is_alone or len(same) != 1):
        return letter
    return LETTERS[same[0]] if len(same) == 1 else None


def _spelled(text: str) -> str:
    return re.sub(r"\\text\{([^{}]*)\}|[{}]", r"\1", compact(respell(text))).casefold()
