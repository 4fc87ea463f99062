r"""Answers in plain text and LaTeX, in forms by which most equal ones are recognised without algebra.

Two forms. A *number* is an exact fraction: `64,800`, `\frac{13}{15}`, `137\frac{1}{2}`, `$12.50`, `1e-3`, `10\%`
(which is 10 here) and `90^\circ`. Anything else has a *literal* form: LaTeX without spacing, wrappers, products and
delimiters, with the characters of Unicode spelt as commands. Numbers decide by themselves; literal forms that differ
may still be equal.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from leadspan.answers.boxes import bare_gold
from leadspan.answers.spelling import COMMANDS, in_latex
from leadspan.answers.written_numbers import SMALL_NUMBERS

# Digits with separators of thousands in any LaTeX spelling, or without, and a decimal part.
_DIGITS = r"\d{1,3}(?:(?:,|\{,\}|,\\! ?|\\,|\\!)\d{3}){1,100}(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_POWER_OF_TEN = (
    r"\s*+(?:\\times|\\cdot|×|·|\*|x)\s*+10\s*+\^\s*+\{?+\s*+(?P<power>[-−]?\d+)\s*+\}?"
    r"|[eE](?P<exponent>[-+−]?\d+)(?!\w|\.\d)"
)
_NUMBER = re.compile(
    rf"(?<![\w.\\^_])(?P<sign>[-−–])?(?:\\?\$|[£€]|\\text\{{\s*\\?\$\s*\}})?\s?"
    rf"(?:(?:(?P<whole>{_DIGITS})\s*+)?\\[dt]?frac\s*(?:\{{\s*(?P<above>-?\d+)\s*\}}\s*\{{\s*(?P<below>\d+)\s*\}}|"
    rf"(?P<one>\d)(?P<other>\d))"
    rf"|(?P<digits>{_DIGITS})(?:{_POWER_OF_TEN}|\s?/\s?(?P<divisor>\d+)(?!\d|\.\d)| and a (?P<part>half|quarter)\b)?)"
)
_WORD = re.compile(rf"\b(?:{'|'.join(SMALL_NUMBERS)})\b", re.IGNORECASE)
_SEPARATORS = re.compile(r"[{},\\!]")

# Possessive (`++`): with backtracking, a word could be split into words in exponentially many ways.
_UNITS = re.compile(
    r"(?:\s|\\[ ,;])*+(?:\\(?:text|mbox|textrm|mathrm|operatorname)\s*\{[^{}]*\}|[^\W\d_]{2,}+[. ]*+|\\?%|"
    r"°)++(?:\s*\^\s*\{?\d\}?)?\s*"
)
# Degrees directly behind a number.
_DEGREES = re.compile(r"(?<!\s)\s*+(?:\^\s*\{?\s*\\circ\s*\}?|°|\\degree|\bdegrees?\b)")
# A variable with its sign of equality or membership; something must follow.
_ASSIGNED = re.compile(r"\s*(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\(\w+\))?)\s*(?:=|\\in\b|∈)\s*(?=\S)")

# Marks that change neither value nor structure of an expression.
_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|limits|quad|qquad|times|cdot|big|Big|bigg|Bigg)(?![A-Za-z])|"
    r"\\[,;:! ()\[\]]|[$~*]|(?<!\\)\s"
)
_WRAPPER = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|vec|operatorname|boldsymbol|bm)\s*\{([^{}]*)\}")
# What `as_latex` respells, and what `literal` respells besides.
_RESPELT = (
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\\frac(\d)(\d)"), r"\\frac{\1}{\2}"),
    (
        re.compile(r"(?<!\\)\bsqrt\(([^()]*)\)|√\s*(\w+)|\\sqrt\s*(\d)"),
        lambda m: f"\\sqrt{{{m[1] or m[2] or m[3] or ''}}}",
    ),
)  # fmt: skip
_RESPELT_IN_LITERALS = (
    (re.compile(r"\\(?:le|ge)q(?![a-z])"), lambda m: m[0][:-1]),
    (re.compile(r"((?<![\w}\\])\w+|\\[a-z]+)/(\w+)(?![\w{])"), r"\\frac{\1}{\2}"),
)  # fmt: skip
# Characters of a numeral that is converted, and the largest power of ten: more would take seconds.
_LONGEST = 400
_SINGLE = re.compile(r"(?<=[\^_])\{(\w)\}")
_MATRIX = re.compile(r"\\(?:begin|end)\{\w+\}")
# Commands that need no space before a letter, longest first; then any command; then single letters.
_NAMES = re.compile(
    r"\\(?:sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|arctan|arcsin|arccos|infty|"
    + "|".join(map(re.escape, sorted(set(COMMANDS.values()), key=len, reverse=True)))
    + r")|\\[A-Za-z]+|[A-Za-z]"
)
# Commands by which two spellings of one expression may differ.
_SHAPE_ONLY = frozenset((r"\frac", r"\le", r"\ge", r"\in", r"\cup", r"\pm", r"\times", r"\cdot"))


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a text: its value, and the range of characters it takes."""

    value: Fraction
    start: int
    end: int
    is_quotient: bool
    """Written `a/b`: a fraction, or a division that is still to be done."""


def numbers(text: str) -> Iterator[Number]:
    """The numerals of a text, in order; exponents, indices and parts of names do not count.

    >>> [str(n.value) for n in numbers("from 1,200 to -3.5, and x^2 of 16/27")]
    ['1200', '-7/2', '16/27']
    """
    for match in _NUMBER.finditer(text):
        value = _value_of(match)
        if value is not None:
            start, before = match.start(), text[max(0, match.start() - 12) : match.start()].rstrip()
            # A minus sign belongs to its number where no operand, hence no digit, bracket or lone letter, is before it.
            is_unary = not before or before[-1] in "=([{,:<>+*/$"
            is_unary = is_unary or bool(re.search(r"[^\W\d_]{2,}$", before) and text[start - 1].isspace())
            is_negative = match["sign"] is not None and is_unary
            if not is_negative:
                # Behind signs, white space and currency: its first digit, or the backslash of its fraction.
                digits = [match.start(group) for group in ("whole", "digits") if match[group] is not None]
                start = digits[0] if digits else text.index("\\", match.end() - len(match[0].lstrip("-−–$ \t\n£€")))
            yield Number(-value if is_negative else value, start, match.end(), match["divisor"] is not None)


def small_number_words(text: str) -> Iterator[Number]:
    """The numbers from zero to twelve that are written as words."""
    for match in _WORD.finditer(text):
        yield Number(Fraction(SMALL_NUMBERS.index(match[0].lower())), match.start(), match.end(), False)


def as_number(answer: str) -> Fraction | None:
    r"""The value of an answer that is one number with or without a unit, else nothing.

    >>> as_number(r"15\mbox{ cm}^2"), as_number("x = 0.5"), as_number("$1,200"), as_number("3 or 4")
    (Fraction(15, 1), Fraction(1, 2), Fraction(1200, 1), None)
    """
    text = _DEGREES.sub("", unassigned(answer)).strip().rstrip(".")
    match = _NUMBER.match(text.strip("+ "))
    if match is None:
        return None
    rest = text.strip("+ ")[match.end() :]
    if rest.strip() and not _UNITS.fullmatch(rest):
        return None
    value = _value_of(match)
    return -value if value is not None and match["sign"] else value


def unassigned(answer: str) -> str:
    """An answer without the variable that it is assigned to: `x = 5` becomes `5`."""
    bare = bare_gold(answer)
    match = _ASSIGNED.match(bare)
    return bare[match.end() :] if match and "=" not in bare[match.end() :] else bare


def literal(text: str) -> str:
    r"""The literal form of an expression.

    >>> literal(r"\left( \dfrac{3}{2}, -13 \right)."), literal("√5"), literal("4 π G")
    ('(\\frac{3}{2},-13)', '\\sqrt{5}', '4\\piG')
    """
    text = _DROPPED.sub("", _DEGREES.sub("", _WRAPPER.sub(r"\1", as_latex(text))))
    for pattern, spelling in _RESPELT_IN_LITERALS:
        text = pattern.sub(spelling, text)
    text = text.replace(r"\{", "{").replace(r"\}", "}")
    return _SINGLE.sub(r"\1", text).rstrip(".,;:?!")


def as_latex(text: str) -> str:
    r"""A text with its Unicode letters, operators and roots spelt as commands.

    >>> as_latex("√(5) π")
    '\\sqrt{5} \\pi '
    """
    text = in_latex(text)
    for pattern, spelling in _RESPELT:
        text = pattern.sub(spelling, text)
    return text


def names(text: str) -> frozenset[str]:
    """The letters and commands of a literal form that carry meaning: equal expressions mostly share them."""
    return frozenset(_NAMES.findall(_MATRIX.sub("", text))) - _SHAPE_ONLY


def num_numerals(text: str) -> int:
    """How many runs of digits an expression has: of two equal expressions, the simpler one has fewer."""
    return len(re.findall(r"\d+(?:\.\d+)?", text))


def _value_of(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > _LONGEST:
        return None
    if match["digits"] is not None:
        value = Fraction(_SEPARATORS.sub("", match["digits"]))
        power = match["power"] or match["exponent"]
        if power is not None:
            size = int(power.replace("−", "-"))
            return value * Fraction(10) ** size if abs(size) <= 400 else None
        if match["part"] is not None:
            return value + Fraction(1, 2 if match["part"] == "half" else 4)
        if match["divisor"] is None:
            return value
        return value / int(match["divisor"]) if int(match["divisor"]) else None
    above, below = match["above"] or match["one"], match["below"] or match["other"]
    if not int(below):
        return None
    whole = Fraction(_SEPARATORS.sub("", match["whole"] or "0"))
    return whole + Fraction(int(above), int(below))
