r"""The first-answer position: where a chain of thought first states the right answer.

The gold comes from the record, else from the trace itself: its last `\boxed{}`, or an answer that is one number.
Numbers are compared as exact fractions (`statements`) and words as text. Other golds are compared by their literal
form; candidates that this does not decide go to Math-Verify, in processes that can be killed. Only candidates before
the first literal match are compared, since a later one cannot be the first.

Expressions are read where a result follows (after a relation such as `=`, after `is`, in a `\boxed{}`, after a word
that concludes), up to the end of the formula or the clause. Words count where the answer is named as such: in a box, at
the end of a clause after `is` and the like, or with a superlative, and without another candidate of the question before
it in its sentence.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from leadspan.answers.boxes import bare_gold, last_boxed
from leadspan.answers.equality import is_words
from leadspan.answers.grading import MathGrader
from leadspan.answers.latex import as_latex, literal, names
from leadspan.answers.numbers import Question, as_number, first_stated_number, unassigned
from leadspan.traces.records import Trace

GoldSource = Literal["record", "own boxed answer", "own answer", "none"]
MOST_CANDIDATES = 40
"""Most distinct candidates of one trace that are compared by algebra: its first ones, in order."""
LONGEST_GOLD = 200
"""A longer reference answer without a box is a worked solution, not an answer."""
_LATEX = re.compile(r"\\[A-Za-z]+|[{}$]")
# The letter of a choice.
_CHOICE = re.compile(r"\(?[A-J]\)?")

# Relations and words that a result may follow.
_RELATION = re.compile(
    r"=|≈|≡|\\approx(?![a-z])|\\equiv(?![a-z])|\\implies(?![a-z])|\\Rightarrow(?![a-z])|=>|⇒|→|∈|"
    r"\\in(?![a-z])|\\boxed\s*\{|"
    r"\b(?:is|are|be|becomes?|equals?|gives?|get|got|yields?|obtain|have|as|to|by|answer|so|therefore|thus|hence|"
    r"interval|set|pair|vector|matrix|expression|form|function|point|coordinates)\b:?",
    re.IGNORECASE,
)
# Delimiters and filling words between a relation and its result.
_OPENERS = re.compile(
    r"(?:\s++|\\\(|\\\[|\$|\*\*|:|&|\\boxed\s*\{|\\text\s*\{|\\displaystyle|simply |just |indeed |exactly )*"
)
# Where an expression ends: another relation, the end of a formula or a clause, a word that is no function.
_END = re.compile(
    r"[=≈⇒→\n$?!;]|\\\)|\\\]|\\(?:approx|implies|Rightarrow|quad|qquad|text\s*\{\s*(?:[a-z]{2,}))(?![a-z])|"
    r"[.:](?=\s|$)|(?:,|\*\*)(?=\s|$)|\.\*\*|(?<![\\A-Za-z])(?!(?:sqrt|sin|cos|tan|log|ln|exp|and|pi|cm|"
    r"or)\b)[A-Za-z]{2,}"
)
_OPEN, _CLOSE = "([{", ")]}"
_MATRIX = re.compile(r"\\begin\{\w+\}.*?\\end\{\w+\}", re.DOTALL)
_NUMERAL = re.compile(r"\d+(?:\.\d+)?")
# A formula between delimiters, or a short line without any.
_FORMULA = re.compile(
    r"\\\[(.{1,2000}?)\\\]|\\\((.{1,2000}?)\\\)|(?<!\$)\$++([^$\n]++)\$++|^([^$\n]{3,80})$", re.DOTALL | re.MULTILINE
)
# Characters of an expression at most; and of the end of a chain of thought, where naming a word is concluding.
_LONGEST = 240
_CLOSING = 200
# Words that make a repetition of what the question says a result.
_INFERS = re.compile(r"\b(?:therefore|thus|hence|conclude|conclusion|answer|simplifies|simplify)\b", re.IGNORECASE)
_SUPERLATIVE = re.compile(
    r"\b(?:\w{3,}est|most|least|best|worst|more|less|correct|right|only one|wins?|first|last|fits|matches|works)\b",
    re.IGNORECASE,
)
# What stands right before a word that is named as the answer.
_NAMING = re.compile(
    r"(?:\b(?:is|be|are|was|facing|faces|face|point(?:s|ing)?|describes?|represents?|reminds me of|forms?|"
    r"looks like|shape of|equation of|to(?:wards?)?|option|choice|answer|called|equals?)\b|[:=→])"
    r"(?:\s|\.\.\.|…|\*\*|[\"'“(:$]|\\boxed\s*\{|\\text(?:bf)?\s*\{|\\\(|\bthe\b|\bdue\b|\ban?\b|\bindeed\b)*$",
    re.IGNORECASE,
)  # fmt: skip
# Behind the end of a sentence or a line.
_SENTENCE_START = re.compile(r"(?<=[.!?])\s|\n")
_DOUBTS = re.compile(r"\b(?:if|suppose|whether|not|isn't)\b", re.IGNORECASE)
_LETTER = re.compile(
    r"(?:answer|boxed\s*\{|correct|select|choose)(?:\W|is|be|text|would|should|the|option|choice)*$", re.IGNORECASE
)
# The name of a choice, which is also named to weigh it; and that name where it is concluded.
_OPTION = re.compile(r"\b(?:option|choice)\W*$", re.IGNORECASE)
_CONCLUDED_OPTION = re.compile(
    r"\b(?:is|be|so|therefore|thus|hence|it's|that's)\W+(?:the\W+)?(?:option|choice)\W*$", re.IGNORECASE
)
_CLAUSE_END = re.compile(r"\W*(?:[.,;!\n)}*\"']|$)")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An expression that a chain of thought states."""

    start: int
    end: int  # behind its last character
    text: str  # as written
    is_equal: bool  # whether it has the literal form of the gold; if not, algebra must decide


@dataclass(frozen=True, slots=True)
class Gold:
    """The right answer of a trace, and where it was taken from."""

    text: str
    source: GoldSource


@dataclass(frozen=True, slots=True)
class Candidates:
    """Where a chain of thought states its gold, or may do so."""

    gold: Gold
    candidates: tuple[Candidate, ...]  # in order; the last one is certain where any is


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
    outcomes = grader.decide_all(
        [
            ("answer", candidate.text, candidates.gold.text)
            for candidates in all_candidates
            for candidate in candidates.candidates
            if not candidate.is_equal
        ]
    )
    remaining = iter(outcomes)
    first: list[int | None] = []
    for candidates in all_candidates:
        is_right = [candidate.is_equal or next(remaining) == "right" for candidate in candidates.candidates]
        first.append(is_right.index(True) if True in is_right else None)
    return first, outcomes.count("timeout")


def _statements(cot: str, question: str, gold: str) -> Iterator[Candidate]:
    words = _without_latex(gold)
    if _CHOICE.fullmatch(words):
        # A choice may be stated by its letter or by its text; whichever comes first counts. Where the question only
        # names the choice, as in `(A) or (B)`, and where its text is a letter, there is no other text.
        behind = rf"\({words.strip('()')}\)(?:(?!\([A-J]\))\W)*(?:text\{{)?([^(\n\\}}]+)"
        options = (match[1].strip() for match in re.finditer(behind, question))
        texts = (text for text in options if len(text) > 1 and text not in ("or", "and"))
        option = next((text for text in texts if not _CHOICE.fullmatch(_without_latex(text))), None)
        letters = [Candidate(*span, gold, True) for span in stated_words(cot, words, question)]
        spelt = () if option is None else _statements(cot, question, option)
        yield from sorted([*letters, *spelt], key=lambda candidate: candidate.start)
        return
    value = as_number(gold)
    if value is not None:
        number = first_stated_number(cot, value, Question.of(question))
        if number is not None:
            yield Candidate(number.start, number.end, gold, True)
    elif is_words(gold):
        yield from (Candidate(*span, gold, True) for span in stated_words(cot, words, question))
    else:
        yield from stated_expressions(cot, unassigned(gold), question)


def _without_latex(text: str) -> str:
    return " ".join(_LATEX.sub(" ", text).split()).strip(".")


def stated_expressions(cot: str, gold: str, question: str) -> Iterator[Candidate]:
    """The expressions that are or may be the gold, in order.

    What has other letters or commands than the gold (given without delimiters), more numerals, or far more characters
    is left out. An expression that the question contains is restated, not stated.
    """
    target, in_question = literal(gold), literal(question)
    symbols = names(target)
    start = 0
    whole = _whole_formulas(cot, gold, target, symbols)
    pending = next(whole, None)
    for relation in _RELATION.finditer(cot):
        if relation.end() <= start:  # what opens behind the relation before holds this one: the same expression
            continue
        opened = _OPENERS.match(cot, relation.end())
        start = opened.end() if opened else relation.end()
        text = _expression_at(cot, start, gold)
        if not text:
            continue
        form = literal(text)
        if form in in_question and not relation[0].startswith("\\boxed"):
            # What the question says too is a result only in a box or in a sentence that infers.
            sentence = _SENTENCE_START.split(cot[max(0, relation.start() - 160) : relation.start()])[-1]
            if not _INFERS.search(sentence):
                continue
        # Algebra may equate forms of the same names, no longer and with no more numerals: more are not worked out yet.
        is_likely = 0 < len(form) <= 3 * len(target) + 20
        is_likely = is_likely and len(_NUMERAL.findall(form)) <= len(_NUMERAL.findall(target))
        is_likely = is_likely and names(form) == symbols and (symbols or form[0] in "([{-\\" or "," in form)
        if form == target or is_likely:
            while pending is not None and pending.start <= start:
                yield pending
                pending = next(whole, None)
            yield Candidate(start, start + len(text), as_latex(text), form == target)
    if pending is not None:
        yield pending
    yield from whole


def _whole_formulas(cot: str, gold: str, target: str, symbols: frozenset[str]) -> Iterator[Candidate]:
    """Of a gold that is an equation: formulas and lines with its letters. Of a plain list of numbers: the first one."""
    items = [item.strip() for item in gold.split(",")]
    if "=" in target:
        for formula in _FORMULA.finditer(cot):
            text = next(part for part in formula.groups() if part is not None).strip()
            form = literal(text)
            if text.count("=") == 1 and (form == target or names(form) == symbols):
                yield Candidate(formula.start(), formula.end(), as_latex(text), form == target)
    elif len(items) > 1 and all(item.lstrip("-").isdigit() for item in items):
        # Also written as `x = 3, x = 5 and x = 7`: delimiters, and a name before each item.
        between = r"(?:\s|,|\band\b|\$|\\[()]|\w\s*=)*"
        listing = re.search(r"(?<![\d,-])" + between.join(map(re.escape, items)) + r"(?![\d,])", cot)
        if listing:
            yield Candidate(*listing.span(), gold, True)


def stated_words(cot: str, gold: str, question: str) -> Iterator[tuple[int, int]]:
    """Where the chain of thought names a text answer as the answer: first character, and the one behind the last.

    What the question capitalises or lists beside the gold counts as another candidate.
    """
    word = gold.strip("() ")
    if not word:
        return
    pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE if len(word) > 1 else 0)
    # Capitalised like the word, or listed with it in brackets or by `or`.
    others: set[str] = set()
    if word[0].isupper():
        others |= set(re.findall(r"(?<![.?!]\s)(?<!^)\b[A-Z][a-z]{2,}\b", question))
    for listing in re.findall(r"\b(?:\w++, ){1,30}\w++,? or \w++|\b\w++ or \w++", question):
        if re.search(rf"\b{re.escape(word)}\b", listing, re.IGNORECASE):
            others |= set(re.findall(r"\w+", listing)) - {"or"}
    names_of_others = [rf"\b{re.escape(name)}\b" for name in sorted(others) if name.casefold() != word.casefold()]
    competing = re.compile("|".join(names_of_others), re.IGNORECASE) if names_of_others else None
    for match in pattern.finditer(cot):
        before = cot[max(0, match.start() - 160) : match.start()]
        if len(word) == 1:
            if _states_letter(before, cot[match.end() : match.end() + 80]):
                yield match.span()
        elif match.start() > len(cot) - min(_CLOSING, len(cot) // 5) or _names(cot, match, before, competing):
            yield match.span()


def _states_letter(before: str, after: str) -> bool:
    """Whether the letter between two texts is named as the answer, and not as a choice that is weighed."""
    clause = re.split(r"[.!?\n,]", after)[0]
    if _DOUBTS.search(_SENTENCE_START.split(before)[-1]) or _DOUBTS.search(clause):
        return False
    if _LETTER.search(before):
        return True
    is_concluded = _CONCLUDED_OPTION.search(before) and _CLAUSE_END.match(after)
    return bool(_OPTION.search(before) and (is_concluded or _SUPERLATIVE.search(clause)))


def _names(cot: str, match: re.Match[str], before: str, competing: re.Pattern[str] | None) -> bool:
    sentence = _SENTENCE_START.split(before)[-1]
    after = cot[match.end() : match.end() + 80]
    if after.startswith(("'s", "\u2019s")) or _DOUBTS.search(sentence) or (competing and competing.search(sentence)):
        return False
    if _NAMING.search(before):
        return bool(re.match(r"\W*(?:[.,;?!\n)}*\"']|$)", after))
    return bool(_SUPERLATIVE.search(re.split(r"[.!?\n,]", after)[0]))


def _expression_at(cot: str, start: int, gold: str) -> str:
    """The expression that starts here, up to a relation, a delimiter, a word, or the end of a clause."""
    if matrix := _MATRIX.match(cot, start, start + _LONGEST):
        return matrix[0]
    # A gold that is a list without brackets allows as many commas in the expression.
    commas = 0 if gold[:1] in _OPEN or gold.startswith("\\") else gold.count(",")
    depth, at, last = 0, start, min(len(cot), start + _LONGEST)
    while at < last:
        char = cot[at]
        if char in _OPEN:
            depth += 1
        elif char in _CLOSE and not cot.startswith(("\\)", "\\]"), at - 1):
            depth -= 1
            if depth < 0:
                break
        elif end := _END.match(cot, at):
            if char == "," and commas > 0:
                commas -= 1
            elif depth <= 0 or char in "\n$" or end[0] in ("\\)", "\\]"):
                break
        at += 1
    return cot[start:at].strip()
