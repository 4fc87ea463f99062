"""Numbers in words: small numbers, multiples, bases and parts."""

import re
from decimal import Decimal

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


def written_out(match: re.Match[str]) -> str:
    """Digits and a multiple behind them, such as `5 million`, as one number."""
    integer, decimals, text, word, text_ends = match.groups()
    number = Decimal(re.sub(r"[{},]", "", integer) + (decimals or "")) * Decimal(MULTIPLES[word.lower()])
    return f"{number:f}{'' if text_ends else text or ''}"
