r"""The first-answer position: where a chain of thought first states the right answer.

The gold comes from the record, else from the trace itself: its last `\boxed{}`, or an answer that is one number.
Numbers are compared as exact fractions and words as text. Other golds are compared by their literal form; candidates
that this does not decide go to Math-Verify, in processes that can be killed. Only candidates before the first literal
match are compared, since a later one cannot be the first.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from leadspan.answers.boxes import bare_gold, last_boxed
from leadspan.answers.equality import is_words
from leadspan.answers.expressions import Candidate, stated_expressions, stated_words
from leadspan.answers.grading import MathGrader
from leadspan.answers.numbers import as_number, literal, unassigned
from leadspan.answers.statements import Question, first_stated_number
from leadspan.traces.records import Trace

GoldSource = Literal["record", "own boxed answer", "own answer", "none"]
MOST_CANDIDATES = 40
"""Most distinct candidates of one trace that are compared by algebra: its first ones, in order."""
LONGEST_GOLD = 200
"""A longer reference answer without a box is a worked solution, not an answer."""
_LATEX = re.compile(r"\\[A-Za-z]+|[{}$]")
# The letter of a choice.
_CHOICE = re.compile(r"\(?[A-J]\)?")


@dataclass(frozen=True, slots=True)
class Gold:
    """The right answer of a trace, and where it was taken from."""

    text: str
    source: GoldSource


@dataclass(frozen=True, slots=True)
class Candidates:
    """Where a chain of thought states its gold, or may do so.

    Attributes:
        gold: The gold.
        candidates: In order; the last one is certain where any is.
    """

    gold: Gold
    candidates: tuple[Candidate, ...]


def gold_of(trace: Trace) -> Gold:
    r"""The right answer of a trace.

    >>> gold_of(Trace((), "", r"so \boxed{7}")), gold_of(Trace((), "", "It depends.")).source
    (Gold(text='7', source='own boxed answer'), 'none')
    """
    column = (trace.gold or "").rpartition("####")[2].strip()
    if column and (last_boxed(column) is not None or len(column) <= LONGEST_GOLD) and bare_gold(column):
        return Gold(bare_gold(column), "record")
    box = (last_boxed(trace.answer) or "").strip()
    if box:
        return Gold(bare_gold(box), "own boxed answer")
    if as_number(trace.answer) is not None:
        return Gold(bare_gold(trace.answer), "own answer")
    return Gold("", "none")


def find_candidates(cot: str, question: str, gold: Gold) -> Candidates:
    """Where a chain of thought states, or may state, its gold, up to the first certain statement; "" nowhere."""
    candidates: list[Candidate] = []
    forms: set[str] = set()
    for candidate in _statements(cot, question, gold.text) if gold.text else ():
        form = literal(candidate.text)
        if candidate.is_equal:
            candidates.append(candidate)
            break
        if form not in forms and len(forms) < MOST_CANDIDATES:
            forms.add(form)
            candidates.append(candidate)
    return Candidates(gold, tuple(candidates))


def resolve(all_candidates: Sequence[Candidates], grader: MathGrader) -> tuple[list[int | None], int]:
    """The first candidate of each trace that equals its gold.

    The grader is open, and starts a worker only where algebra must decide.

    Returns:
        Its index in `candidates`, or None, for each trace; and how many comparisons broke the limits.
    """
    unsure = [
        (c.text, candidates.gold.text) for candidates in all_candidates for c in candidates.candidates if not c.is_equal
    ]
    answers, golds = [text for text, _ in unsure], [gold for _, gold in unsure]
    verdicts = grader.grade_answers(answers, golds) if unsure else []
    remaining = iter(verdicts)
    first: list[int | None] = []
    for candidates in all_candidates:
        is_right = [candidate.is_equal or next(remaining) == "right" for candidate in candidates.candidates]
        first.append(is_right.index(True) if True in is_right else None)
    return first, verdicts.count("timeout")


def _statements(cot: str, question: str, gold: str) -> Iterator[Candidate]:
    if _CHOICE.fullmatch(words := _plain_words(gold)):
        # A choice may be stated by its letter or by its text; whichever comes first counts.
        match = re.search(rf"\({words.strip('()')}\)\W*(?:text\{{)?([^(\n\\}}]+)", question)
        option = match[1].strip() if match else ""
        letters = [Candidate(*span, gold, True) for span in stated_words(cot, words, question)]
        spelt = _statements(cot, question, option) if len(option) > 1 else ()
        yield from sorted([*letters, *spelt], key=lambda candidate: candidate.start)
        return
    value = as_number(gold)
    if value is not None:
        number = first_stated_number(cot, value, Question.of(question))
        if number is not None:
            yield Candidate(number.start, number.end, gold, True)
    elif is_words(gold):
        yield from (Candidate(*span, gold, True) for span in stated_words(cot, _plain_words(gold), question))
    else:
        yield from stated_expressions(cot, unassigned(gold), question)


def _plain_words(gold: str) -> str:
    """A gold made of words without its LaTeX commands and braces."""
    return " ".join(_LATEX.sub(" ", gold).split()).strip(".")
