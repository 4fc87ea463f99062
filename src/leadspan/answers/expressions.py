r"""Where a chain of thought states an answer that is no number: an expression, an interval, a set, a tuple, words.

Expressions are read where a result follows (after a relation such as `=`, after `is`, in a `\boxed{}`, after a word
that concludes), up to the end of the formula or the clause. Words count where the answer is named as such: in a box, at
the end of a clause after `is` and the like, after a word that concludes, or with a superlative, and without another
candidate of the question in between.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from leadspan.answers.numbers import as_latex, literal, names, num_numerals

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
# A formula between delimiters, or a short line without any.
_FORMULA = re.compile(
    r"\\\[(.{1,2000}?)\\\]|\\\((.{1,2000}?)\\\)|(?<!\$)\$++([^$\n]++)\$++|^([^$\n]{3,80})$", re.DOTALL | re.MULTILINE
)
# Characters of an expression at most; and of the end of a chain of thought, where naming a word is concluding.
_LONGEST = 240
_CLOSING = 200
_CONCLUDES = re.compile(
    r"\b(?:so|therefore|thus|hence|conclude|conclusion|answer|correct|means that|indeed|finally)\b", re.IGNORECASE
)
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
# A separator: what follows it is an item of the same list.
_LISTED = re.compile(r"^\s*(?:,|\band\b|\bor\b)\s*(?:and |or )?")
_LETTER = re.compile(
    r"(?:answer|option|choice|boxed\s*\{|correct|select|choose)(?:\W|is|be|text|would|should|the)*$", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An expression that a chain of thought states.

    Attributes:
        start: Its first character.
        end: Behind its last character.
        text: The expression as written.
        is_equal: Whether it has the literal form of the gold; if not, algebra must decide.
    """

    start: int
    end: int
    text: str
    is_equal: bool


def stated_expressions(cot: str, gold: str, question: str) -> Iterator[Candidate]:
    """The expressions that are or may be the gold, in order.

    What has other letters or commands than the gold (given without delimiters), more numerals, or far more characters
    is left out. An expression that the question contains is restated, not stated.
    """
    target, in_question = literal(gold), literal(question)
    symbols = names(target)
    start = 0
    yield from _equations(cot, target, symbols) if "=" in target else _listings(cot, gold)
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
        is_likely = 0 < len(form) <= 3 * len(target) + 20 and num_numerals(form) <= num_numerals(target)
        is_likely = is_likely and names(form) == symbols and (symbols or form[0] in "([{-\\" or "," in form)
        if form == target or is_likely:
            yield Candidate(start, start + len(text), as_latex(text), form == target)


def stated_words(cot: str, gold: str, question: str) -> Iterator[tuple[int, int]]:
    """Where the chain of thought names a text answer as the answer: first character, and the one behind the last.

    What the question capitalises or lists beside the gold counts as another candidate.
    """
    word = gold.strip("() ")
    if not word:
        return
    pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE if len(word) > 1 else 0)
    competing = _other_candidates(question, word)
    for match in pattern.finditer(cot):
        before = cot[max(0, match.start() - 160) : match.start()]
        if len(word) == 1:
            if _LETTER.search(before):
                yield match.span()
        elif match.start() > len(cot) - min(_CLOSING, len(cot) // 5) or _names(cot, match, before, competing):
            yield match.span()


def _equations(cot: str, target: str, symbols: frozenset[str]) -> Iterator[Candidate]:
    """Formulas and lines with one equals sign and the letters of the gold, where that is an equation itself."""
    for formula in _FORMULA.finditer(cot):
        text = next(part for part in formula.groups() if part is not None).strip()
        form = literal(text)
        if text.count("=") == 1 and (form == target or names(form) == symbols):
            yield Candidate(formula.start(), formula.end(), as_latex(text), form == target)


def _listings(cot: str, gold: str) -> Iterator[Candidate]:
    """Plain lists of numbers, which are also written as `x = 3, x = 5 and x = 7`."""
    items = [item.strip() for item in gold.split(",")]
    if len(items) > 1 and all(item.lstrip("-").isdigit() for item in items):
        # Delimiters, and a name before each item.
        between = r"(?:\s|,|\band\b|\$|\\[()]|\w\s*=)*"
        for match in re.finditer(r"(?<![\d,-])" + between.join(map(re.escape, items)) + r"(?![\d,])", cot):
            yield Candidate(match.start(), match.end(), gold, True)
            return


def _names(cot: str, match: re.Match[str], before: str, competing: re.Pattern[str] | None) -> bool:
    sentence = _SENTENCE_START.split(before)[-1]
    after = cot[match.end() : match.end() + 80]
    if (
        after.startswith(("'s", "\u2019s"))
        or _DOUBTS.search(sentence)
        or (competing and (competing.search(sentence) or competing.match(_LISTED.sub("", after))))
    ):
        return False
    if _NAMING.search(before):
        return bool(re.match(r"\W*(?:[.,;?!\n)}*\"']|$)", after))
    if competing is None and _CONCLUDES.search(sentence):
        return True
    return bool(_SUPERLATIVE.search(re.split(r"[.!?\n,]", after)[0]))


def _other_candidates(question: str, word: str) -> re.Pattern[str] | None:
    """Names the question offers besides the gold: capitalised like it, or listed with it in brackets or by `or`."""
    candidates: set[str] = set()
    if word[0].isupper():
        candidates |= set(re.findall(r"(?<![.?!]\s)(?<!^)\b[A-Z][a-z]{2,}\b", question))
    for listing in re.findall(r"\b(?:\w++, ){1,30}\w++,? or \w++|\b\w++ or \w++", question):
        if re.search(rf"\b{re.escape(word)}\b", listing, re.IGNORECASE):
            candidates |= set(re.findall(r"\w+", listing)) - {"or"}
    candidates = {name for name in candidates if name.casefold() != word.casefold()}
    if not candidates:
        return None
    return re.compile("|".join(rf"\b{re.escape(name)}\b" for name in sorted(candidates)), re.IGNORECASE)


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
