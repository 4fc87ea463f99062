"""Conditions behind an answer: `where`, `for`, `if` and the like, and whether they leave one case of several."""

import re

from leadspan.answers.formulas import UnreadableError
from leadspan.answers.spelling import respell

# Where a condition begins: a word for one, a congruence, a wide space, or a variable in a set of numbers.
_CONDITION = re.compile(
    r"\s*+,?\s*+(?:\\text\s*+\{[\s,(]*+(?:for|where|if|when|whenever|provided|with|such that|as long as)\b|"
    r"(?<![A-Za-z\\])(?:for|where|if|when|provided|with)\s|\(?\s*\\pmod|\\quad|(?<![A-Za-z\\])[A-Za-z]\s*+\\in\s*+\\mathbb)"
)
# A further case behind the first condition.
_CASES = re.compile(r"(?:[,;]|\band\b|\\quad).*?\b(?:if|for|when|whenever)\b|\b(?:otherwise|else)\b", re.DOTALL)
# Conditions that leave out most values of a variable: what holds under them is one case of several.
_ONE_CASE = re.compile(
    r"\b(?:even|odd|divisible|multiples?|only|non-?integers?)\b|\\equiv|\\mid\b|^(?!.*\bwhere\b).*\b(?:prime|composite|perfect)\b"
)
_ANY_INTEGER = re.compile(r"\bintegers?\b|\\mathbb\s*+\{?\s*+Z")
_SOME_INTEGERS = re.compile(
    r"positive|negative|non-?zero|odd|even|prime|divisible|multiple|between|from|[<>=+^*-]|\\(?:le|ge|neq|setminus)\b"
)

_SPACING = r"\s|\\text|[{}]"


def condition_of(answer: str) -> tuple[str, bool]:
    r"""The condition after `where`, `for`, `if` and the like, without white space; whether it leaves one case only.

    >>> condition_of(r"n^2 \text{ for even } n"), condition_of(r"10 \text{ when } x = 5")
    (('forevenn', True), ('whenx=5', False))
    """
    text = respell(answer)
    match = _CONDITION.search(text)
    if match is None:
        return "", False
    before, condition = text[: match.start()], text[match.start() :]
    value = re.search(r"(?:for|if|when)\b[\s{}]*+([A-Za-z])[\s{}]*+=", condition)
    is_one_value = value is not None and re.search(rf"(?<![A-Za-z\\]){value[1]}(?![A-Za-z])", before) is not None
    if is_one_value or _ONE_CASE.search(condition):
        return re.sub(_SPACING, "", condition), True
    any_integer = _ANY_INTEGER.search(condition) and not _SOME_INTEGERS.search(condition)
    return "integer" if any_integer else re.sub(_SPACING, "", condition), False


def without_condition(text: str) -> str:
    """The text before a condition.

    Raises:
        UnreadableError: Another condition follows, so that the text before the first one is one case of several.
    """
    match = _CONDITION.search(text)
    if match is None or match.start() == 0:
        return text
    if _CASES.search(text[match.start() :]):
        raise UnreadableError(text)
    return text[: match.start()].strip(" ,.;")
