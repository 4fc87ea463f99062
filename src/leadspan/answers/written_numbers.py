"""Numbers that `spelling` rewrites: in words, with a multiple, repeating, mixed."""

import re
from decimal import Decimal
from fractions import Fraction

SMALL_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
CARDINALS = {
    **{word: number for number, word in enumerate(SMALL_NUMBERS)},
    "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19,
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
"""Numbers of one word."""
MULTIPLES = {"dozen": "12", "hundred": "1e2", "thousand": "1e3", "million": "1e6", "billion": "1e9", "trillion": "1e12"}
LETTERS = {"k": 1000, "K": 1000, "M": 10**6, "B": 10**9}
"""Multiples by the letters for them."""
BASES = {word: base for base, word in enumerate(SMALL_NUMBERS) if base > 1} | {"sixteen": 16}
"""Bases by the words for them."""
_PARTS = {
    "half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "hundredth": 100,
}  # fmt: skip
_SMALL = "|".join(SMALL_NUMBERS[1:])
# `third` alone is an ordinal, and not a part.
WORDS = (
    rf"^(?:\\text\{{ ?)?(?i:(?:(?P<tens>[a-z]+ty)[- ])?(?P<ones>{'|'.join(CARDINALS)})"
    rf"|(?P<half>half)|(?P<count>an?|{_SMALL})[- ](?P<part>{'|'.join(_PARTS)})s?)(?: ?\}})?$"
)
"""A text that is a number from zero to ninety-nine in words, or a part such as `two thirds`."""


def in_digits(match: re.Match[str]) -> str:
    """The number that a match of `WORDS` says; the text itself where it says none, as `twenty twelve`."""
    if match["half"]:
        return r"\frac{1}{2}"
    if match["part"]:
        return f"\\frac{{{CARDINALS.get(match['count'].lower(), 1)}}}{{{_PARTS[match['part'].lower()]}}}"
    tens, ones = CARDINALS.get((match["tens"] or "zero").lower(), 0), CARDINALS[match["ones"].lower()]
    return match[0] if match["tens"] and not (tens and 0 < ones < 10) else str(tens + ones)


def amount(match: re.Match[str]) -> str:
    """An amount of money with the letter of a multiple, such as 1.2M, in full."""
    number = Decimal(match[2]) * LETTERS[match[3]]
    return f"{number.normalize():f}\\text{{ {match[1]}}}"


def written_out(match: re.Match[str]) -> str:
    """Digits and a multiple behind them, such as `5 million`, as one number."""
    integer, decimals, text, word, text_ends = match.groups()
    number = Decimal(re.sub(r"[{},]", "", integer) + (decimals or "")) * Decimal(MULTIPLES[word.lower()])
    return f"{number:f}{'' if text_ends else text or ''}"


def _fraction(integer: str, fixed: str, period: str) -> str:
    value = Fraction(int(integer + fixed), 10 ** len(fixed))
    value += Fraction(int(period), 10 ** len(fixed) * (10 ** len(period) - 1))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def repeated(match: re.Match[str]) -> str:
    r"""The fraction of a repeating decimal: 0.1\overline{6} or 0.1(6) is 1/6."""
    period = match["period"] or match["bracketed"]
    if not period:  # 0.\dot{1}4285\dot{7}
        period = f"{match['first']}{match['between']}{match['last']}" if match["last"] else match["first"]
    return _fraction(match["whole"], match["fixed"], period)


def continued(match: re.Match[str]) -> str:
    """The fraction of a decimal that goes on: `0.333...` repeats the shortest period its last digits show twice."""
    decimals = match["decimals"]
    for length in range(1, len(decimals) // 2 + 1):
        period = decimals[-length:]
        if decimals.endswith(period * (3 if length == 1 else 2)):
            start = len(decimals) - length
            while start >= length and decimals[start - length : start] == period:
                start -= length
            return _fraction(match["whole"], decimals[:start], period)
    return match[0]


def mixed(match: re.Match[str]) -> str:
    """A whole number and a fraction behind it as their sum; the text itself where the fraction is not below 1."""
    integer, above, below = match["whole"], match["above"], match["below"]
    if int(above) >= int(below) and int(above):
        return match[0]
    return f"({integer}+\\frac{{{above}}}{{{below}}})"
