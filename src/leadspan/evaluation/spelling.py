r"""Other spellings of answers, rewritten before anything is compared.

- Ordinals lose their ending, scientific notation becomes a power of ten.
- `5 million` and `3 dozen` become digits; `12 percent` at the end becomes `12\%`.
- A number followed by bare words up to the end loses them, unless one of them belongs to its value: `9 boys` is 9, but
  `3 hundredths`, `2 plus four`, `5 squared` and `3 sqrt` stay what they are.
"""

import re
from decimal import Decimal

_TEXT_COMMAND = r"\\(?:text|textrm|mathrm|mbox)\s*"
_ORDINAL_END = r"\s*(?:st|nd|rd|th)"
_ORDINAL = re.compile(
    rf"(\d)\s*\^?\s*(?:\{{\s*{_TEXT_COMMAND}\{{{_ORDINAL_END}\s*\}}\s*\}}"
    rf"|{_TEXT_COMMAND}\{{{_ORDINAL_END}\s*\}}|\{{{_ORDINAL_END}\s*\}}|{_ORDINAL_END}\b)"
)
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?![\w.])")
_MULTIPLES = {
    "dozen": Decimal(12),
    "hundred": Decimal("1e2"),
    "thousand": Decimal("1e3"),
    "million": Decimal("1e6"),
    "billion": Decimal("1e9"),
    "trillion": Decimal("1e12"),
}
_CARDINALS = (
    "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen"
    "|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
)
_FRACTIONS = (
    "half|halves|third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|(?:hundred|thousand|million|billion)th"
)
_OPERATORS = (
    "percent|sqrt|root|sin|cos|tan|cot|csc|log|exp|plus|minus|mod|divided|multiplied|factorial|infinity"
    "|alpha|beta|gamma|delta|epsilon|theta|lambda|sigma|phi|omega"
)
_VALUE_WORD = rf"(?i:(?:{'|'.join(_MULTIPLES)}|{_CARDINALS}|{_FRACTIONS})s?|{_OPERATORS}|pi)\b"
_POWER_WORD = r"(?i:squared|cubed)\b"  # "5 squared" is 25, "5 units squared" is 5
_WRAPPED_VALUE_WORD = re.compile(rf"(\d)\s*{_TEXT_COMMAND}\{{[\s~]*((?:{_VALUE_WORD}|{_POWER_WORD})[^{{}}]*)\}}")
_MULTIPLE = re.compile(
    r"(?<![\w.,/^}])(\d{1,3}(?:(?:,|\{,\})\d{3}){1,4}|\d{1,15}|(?=\.\d))(\.\d{1,9})?"
    rf"(?:\s|~|\\[ ,;:])*((?i:{'|'.join(_MULTIPLES)}))(?i:s?)\b"
)
_PERCENT = re.compile(r"(\d)\s+(?i:per ?cent)\s*\.?\s*$")
_TRAILING_WORDS = re.compile(
    rf"(\d)(?!(?:\s+[^\W\d_]{{3,}})*?\s+{_VALUE_WORD})(?!\s+{_POWER_WORD})(?:\s+[^\W\d_]{{3,}})+\s*\.?\s*$"
)


def respell(text: str) -> str:
    r"""The text with the spellings of this module rewritten.

    >>> respell("12th grade"), respell("2.5 million dollars"), respell("9 boys."), respell("3 hundredths")
    ('12', '2500000', '9', '3 hundredths')
    """
    text = _ORDINAL.sub(r"\1 ", text)
    text = _SCIENTIFIC.sub(r"\1\\times10^{\2}", text)
    text = _WRAPPED_VALUE_WORD.sub(r"\1 \2 ", text)
    text = in_digits(text)
    text = _PERCENT.sub(r"\1\\%", text)
    return _TRAILING_WORDS.sub(r"\1", text).rstrip()


def in_digits(text: str) -> str:
    """The text with number words behind digits written out.

    >>> in_digits("5 million km")
    '5000000 km'
    """
    return _MULTIPLE.sub(_digits, text)


def _digits(match: re.Match[str]) -> str:
    whole, decimals, word = match.groups()
    return f"{Decimal(re.sub(r'[{},]', '', whole) + (decimals or '')) * _MULTIPLES[word.lower()]:f}"
