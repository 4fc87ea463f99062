"""Multiple choice: reading the choices of a record, putting them into the prompt, and grading letters."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leadspan.errors import DataError
from leadspan.evaluation.answers import Outcome, bare_gold, last_boxed, plain_text, text_after_thinking
from leadspan.evaluation.config import Choices
from leadspan.evaluation.grading import GradeItem, Verdict, committed_answer

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTER = re.compile(r"\(?([A-Z])\)?[.:]?")
_LETTER_AND_TEXT = re.compile(r"\(?([A-Z])[.):].+", re.DOTALL)
_STATED = re.compile(r"(?i:answer|choice|option)(?:\s+(?i:is))?\s*:?\s*(?:\*\*|\$)?\s*\(?([A-Z])\b(?!')")


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
    row: dict[str, Any], problem: str, answer: str, answer_column: str, settings: Choices, place: str
) -> Choice:
    """The choices of a record and which is right.

    The answer may be a choice's label or letter, its number (from `settings.first`), the text of a choice, or, where
    its column is one of the choices' own, that one.

    Raises:
        DataError: A column is missing or holds no choices, the answer is none of them, or it is text that could be two.
    """
    texts, labels = _texts(row, settings, place)
    if not 2 <= len(texts) <= len(LETTERS):
        raise DataError(f"{place}: {len(texts)} choices; multiple choice needs 2 to {len(LETTERS)}")
    right = _right_index(answer, texts, labels, settings, answer_column)
    is_index = right is not None and answer.isdigit() and answer not in labels
    if is_index and isinstance(row.get(answer_column), str) and answer in texts and texts.index(answer) != right:
        raise DataError(
            f"{place}: the answer {answer!r} is the text of one choice and the number of another; give its letter, or "
            "make its column one of numbers"
        )
    if right is None or not 0 <= right < len(texts):
        raise DataError(
            f"{place}: the answer {answer[:60]!r} is none of the {len(texts)} choices "
            f"({', '.join(labels)}; numbers from {settings.first}); mend the record, or set choices.first"
        )
    if not settings.shuffle:
        return Choice(tuple(texts), right)
    order = sorted(range(len(texts)), key=lambda i: hashlib.sha256(f"{problem}\0{texts[i]}".encode()).digest())
    return Choice(tuple(texts[i] for i in order), order.index(right))


def choice_grade(item: GradeItem) -> Verdict:
    r"""Grade the letter a text chooses.

    Strict: the last box of a finished answer says the letter (`B`, `(B)`, `B. text`) or the text of one choice.
    Flexible: that box, finished or not, else the last "answer is B" of the answer, else an answer that is nothing but
    the letter or a choice's text.

    Raises:
        DataError: The gold is empty.
    """
    if not bare_gold(item.gold):
        raise DataError(f"choice: gold is {item.gold!r}; grading needs the letter of the right choice")
    box = committed_answer(item)
    strict = "no_answer" if box is None else _judge(_letter_of(box, item.choices), item.gold)
    if strict == "right":
        return Verdict("right", "right", box)
    text = text_after_thinking(item.text)
    found = last_boxed(text)
    stated = _STATED.findall(text)
    letter = _letter_of(found if found is not None else text, item.choices)
    if found is None and letter is None and stated:
        letter = stated[-1]
    flexible = "no_answer" if letter is None and found is None else _judge(letter, item.gold)
    return Verdict(strict, flexible, box)


def _judge(letter: str | None, gold: str) -> Outcome:
    return "unparsed" if letter is None else "right" if letter == gold else "wrong"


def _letter_of(answer: str, choices: Sequence[str]) -> str | None:
    """The letter an answer stands for, by itself or as the text of exactly one choice."""
    plain, letters = plain_text(answer), LETTERS[: len(choices)]
    same = [i for i, text in enumerate(choices) if plain_text(text).casefold() == plain.casefold()]
    for pattern in (_LETTER, _LETTER_AND_TEXT):
        found = pattern.fullmatch(plain)
        if found and found[1] in letters:
            return found[1]
        if len(same) == 1:
            return LETTERS[same[0]]
    return None


def _texts(row: dict[str, Any], settings: Choices, place: str) -> tuple[list[str], list[str]]:
    """Choices and their labels."""
    if settings.texts:
        return list(settings.texts), list(LETTERS[: len(settings.texts)])
    missing = [name for name in settings.columns if row.get(name) is None]
    if missing:
        raise DataError(f"{place}: no choice in column {missing[0]} (columns: {', '.join(row)}); set choices.columns")
    if len(settings.columns) > 1:
        return [str(row[name]).strip() for name in settings.columns], list(LETTERS[: len(settings.columns)])
    value = row[settings.columns[0]]
    if isinstance(value, dict) and isinstance(value.get("text"), list) and isinstance(value.get("label"), list):
        return [str(text).strip() for text in value["text"]], [str(label).strip() for label in value["label"]]
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return [text.strip() for text in value], list(LETTERS[: len(value)])
    raise DataError(f"{place}: column {settings.columns[0]} is no list of choices; set choices.columns")


def _right_index(
    answer: str, texts: Sequence[str], labels: Sequence[str], settings: Choices, answer_column: str
) -> int | None:
    if len(settings.columns) > 1 and answer_column in settings.columns:
        return settings.columns.index(answer_column)
    if answer in labels:
        return labels.index(answer)
    if answer in ("True", "False"):
        return int(answer == "True")
    if answer.isdigit():
        return int(answer) - settings.first
    return texts.index(answer) if answer in texts else None
