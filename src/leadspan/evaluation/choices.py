"""Multiple choice: reading the choices of a record, putting them into the prompt, and grading letters."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leadspan.answers.boxes import bare_gold, last_boxed, text_after_thinking, thinks_to_the_end
from leadspan.answers.equality import Outcome, chosen_letter, compact
from leadspan.answers.grading import GradeItem, Verdict
from leadspan.answers.spelling import respell
from leadspan.errors import DataError
from leadspan.evaluation.settings import Choices

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Characters of a box, and at the end of a text, that are searched for an answer: patterns over a long text are slow.
_LONGEST = 2_000
# One letter. `A` and `I` before a word in lower case are an article and a pronoun ("the answer is a number"), unless
# that word gives a reason ("the answer is A because").
_ONE = r"(?:[B-HJ-Z]|[AI](?! (?!(?:because|since|as|and|which|is|for|by|due|from|based)\b)[a-z]))(?![A-Za-z']|\.\d)"
_OPENING = r"(?:[\s*$`(\[]|\\\(|\\(?:text|mathrm|mathbf|textbf)\{)*+"
_STATED = re.compile(
    rf"\b(?i:answer|choice|option|choose|chose|select|pick)\s*+(?i:is\b|would be\b|must be\b|should be\b)?+\s*+"
    rf"(?:not\s++[A-Z]\s*+,?\s*+but\b)?+(?i:\s*+(?:option|choice)\b)?+\s*+:?+{_OPENING}({_ONE})"
    rf"|:{_OPENING}([A-Z])[\s*$`)\]\}}.]*+\Z"
)
"""A letter behind what names the answer, or at the end behind a colon; `A` and `I` before a word are words."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The choices of one problem in the order of the prompt.

    Attributes:
        texts: What the choices say, `A` first.
        right: Index of the right one.
    """

    texts: tuple[str, ...]
    right: int

    @property
    def letter(self) -> str:
        """Letter of the right choice."""
        return LETTERS[self.right]

    def prompt(self) -> str:
        """The choices, one a line, behind their letters."""
        return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, self.texts, strict=False))


def read_choice(
    row: dict[str, Any], problem: str, answer: str, answer_column: str, settings: Choices, where: str
) -> Choice:
    """The choices of a record and which is right.

    The answer may be a choice's label or letter, its number (from `settings.first`), the text of a choice, or, where
    its column is one of the choices' own, that one.

    Raises:
        DataError: A column is missing or holds no choices, or the answer names none of them, or two.
    """
    # Labels may differ from letters: ARC has both `A` and `1`.
    texts, labels = _texts(row, settings, where)
    if not 2 <= len(texts) <= len(LETTERS):
        raise DataError(f"{where}: {len(texts)} choices; multiple choice needs 2 to {len(LETTERS)}")
    # From the surest reading to the least: a column, a label, a truth value, a number, a text.
    right: int | None = None
    if len(settings.columns) > 1 and answer_column in settings.columns:
        right = settings.columns.index(answer_column)
    elif answer in labels:
        right = labels.index(answer)
    elif answer in ("True", "False"):
        right = int(answer == "True")
    elif answer.isdigit():
        right = int(answer) - settings.first
    elif answer in texts:
        right = texts.index(answer)
    # A digit may be both the number of one choice and the text of another.
    is_index = right is not None and answer.isdigit() and answer not in labels
    if is_index and isinstance(row.get(answer_column), str) and answer in texts and texts.index(answer) != right:
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
        return Choice(tuple(texts), right)
    # By a hash and not by a seed: every model and every run sees the same order.
    order = sorted(range(len(texts)), key=lambda i: hashlib.sha256(f"{problem}\0{texts[i]}".encode()).digest())
    return Choice(tuple(texts[i] for i in order), order.index(right))


def choice_grade(item: GradeItem) -> Verdict:
    r"""Grade the letter a text chooses.

    Strict: the last box of a finished answer holds the letter (`B`, `(B)`, `Option B`, `B. text`, `B - text`) or the
    text of one choice. Flexible: that box, finished or not; where it holds neither, the last "answer is B" of the
    answer; else an answer that is nothing but the letter or the text of a choice.

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
    strict = "no_answer" if committed is None else _judge(letter, item.gold)
    if letter is None:
        # The last statement counts: a text may weigh several choices first.
        stated = [named or final for named, final in _STATED.findall(text[-_LONGEST:])]
        letter = stated[-1] if stated else _letter_of(text, item.choices) if box is None else None
    flexible = "no_answer" if letter is None and box is None else _judge(letter, item.gold)
    return Verdict(strict, flexible, committed)


def _judge(letter: str | None, gold: str) -> Outcome:
    return "unparsed" if letter is None else "right" if letter == gold else "wrong"


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
