r"""Formulas: the types that answers are read as, how a text is split, a LaTeX formula in sympy, and its letters.

The grammar is that of latex2sympy2_extended, which Math-Verify uses. Notation that this grammar misreads or cannot read
is rewritten first: decimals (as exact fractions), indices, primes, the letters `E` and `I`, degrees.
"""

import re
from dataclasses import dataclass
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig


class UnreadableError(Exception):
    """A text that cannot be read as maths as a whole."""


@dataclass(frozen=True)
class Quantity:
    """An expression, alone or in a unit."""

    value: Any  # a sympy expression or matrix; decimals are exact fractions
    has_decimal: bool = False  # whether a decimal was written in it, which may be rounded
    # Units it may be in, as `quantities.unit_of` returns them: several for a compound such as 5 feet 6 inches, whose
    # value is in the first; empty without a unit, or where only words follow it.
    units: tuple[Any, ...] = ()
    is_percent: bool = False  # whether a percent sign follows it
    words: str = ""  # the words behind it that are no unit


@dataclass(frozen=True)
class Listing:
    """Several values, in order."""

    items: "tuple[Value, ...]"
    # What encloses them: `()`, `[]`, `(]`, `[)`, `{}`, `<>` for vectors, `:` for a ratio, or nothing.
    brackets: str = ""


@dataclass(frozen=True)
class Equation:
    """The two sides of an equals sign; of a chain, the first and the last."""

    name: str  # the left side as text where it names what is computed (`x`, `f(x)`, `m_{max}`), else empty
    left: "Value | None"  # None where it is a name of more than one letter
    right: "Value"


@dataclass(frozen=True)
class Region:
    """A set of numbers."""

    numbers: Any  # a sympy set
    name: str = ""  # the variable of the inequality it comes from, if any


@dataclass(frozen=True)
class Inequality:
    """Relations between more than one variable."""

    relations: tuple[tuple[Any, str], ...]  # the difference of both sides, and `<`, `<=` or `!=` between it and zero


Value = Quantity | Listing | Equation | Region | Inequality

_OPEN = r"\\\{|\\langle(?![A-Za-z])|\\begin\{\w+\*?\}|\\lfloor|\\lceil|[(\[{]"
_CLOSE = r"\\\}|\\rangle(?![A-Za-z])|\\end\{\w+\*?\}|\\rfloor|\\rceil|[)\]}]"
# What a text is split at, outside brackets. Other commands and escaped characters are passed over whole.
SEPARATORS, RELATIONS, EQUALS, RATIOS = (
    re.compile(rf"(?P<cut>{cut})|(?P<open>{_OPEN})|(?P<close>{_CLOSE})|\\[A-Za-z]+|\\.", re.DOTALL)
    for cut in (
        r"\\text\s*+\{[\s,;]*+(?:and|or|,|;)?[\s,]*+\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|[,;]|\\ldots(?![A-Za-z])",
        r"\\(?:le|ge|neq)(?![A-Za-z])|[<>]",
        r":?=|\\(?:equiv|approx)(?![A-Za-z])|\\in(?![A-Za-z])",
        ":",
    )
)


def split(text: str, scanner: re.Pattern[str]) -> tuple[list[str], list[str]]:
    r"""The parts of a text and the separators between them; separators within brackets do not count.

    >>> split(r"(1,2), x \text{ and } 3", SEPARATORS)
    (['(1,2)', 'x', '3'], [',', '\\text{ and }'])
    """
    pieces, cuts, depth, start = [], [], 0, 0
    for mark in scanner.finditer(text):
        if mark["open"]:
            depth += 1
        elif mark["close"]:
            depth -= 1
        elif mark["cut"] and depth == 0:
            pieces.append(text[start : mark.start()].strip())
            cuts.append(mark[0])
            start = mark.end()
    return [*pieces, text[start:].strip()], cuts


def enclosed(text: str) -> tuple[str, str, str] | None:
    """The opening bracket, the inside and the closing bracket where one pair encloses all of a text."""
    first = re.match(_OPEN, text)
    if first is None or first[0].startswith(("\\begin", "\\lfloor", "\\lceil")):
        return None
    depth = 0
    for mark in SEPARATORS.finditer(text):
        if mark["open"]:
            depth += 1
        elif mark["close"]:
            depth -= 1
            if depth == 0:
                is_whole = mark.end() == len(text)
                return (first[0], text[first.end() : mark.start()].strip(), mark[0]) if is_whole else None
    return None


LONGEST = 2_000
"""Characters of a formula that is read at all."""
_DECIMAL = re.compile(r"(\d++)\.(\d++)")
# A numeral with its base as an index.
_BASED = re.compile(r"(?<![\w\\}.^])(\d++|\d[0-9A-F]++(?=\s*+_\s*+\{?\s*+16))\s*+_\s*+\{?\s*+(\w*+)\s*+\}?")
# A letter or a command with an index, which together are one name.
_INDEX = re.compile(
    r"(?<!\\)(?P<base>\\[A-Za-z]++|[A-Za-z])\s*+_\s*+(?P<index>\{(?:[^{}]|\{[^{}]*+\})*+\}|\\[A-Za-z]++|\w)"
)
# Commands whose index is a base or a bound, and no part of a name.
_WITH_INDEX = re.compile(r"\\(?:log|sum|prod|int|oint|lim|max|min|binom|bigcup|bigcap|inf|sup)\b")
# The inverse of a function, which is no quotient.
_INVERSE = re.compile(r"(?<![A-Za-z\\])([fghFGH])\s*+\^\s*+\{\s*+-1\s*+\}(?=\s*+\()")
# A letter with primes, which is a name of its own.
_PRIME = re.compile(r"([A-Za-z]|\\[A-Za-z]++)\s*+((?:')++|\^\s*+\{?\s*+(?:\\prime\s*+)++\}?)")
# A transpose to the grammar, which drops it from a letter.
_POWER_OF_T = re.compile(r"\^\s*+(?:T(?![A-Za-z])|\{\s*+T\s*+\})")
_LETTER = re.compile(r"\\[A-Za-z]++(?:\{[^{}]*+\})?|(?P<letter>[EI])|(?P<differential>d)")
# An angle in degrees, which the grammar would take for radians.
_DEGREES = re.compile(r"(\d++(?:\.\d++)?|(?<![\\A-Za-z])[A-Za-z]|\\[A-Za-z]++|\([^()]*+\))\s*+\\deg(?![A-Za-z])")
_CIS = re.compile(
    r"\\cis\s*+(?:\(((?:[^()]|\([^()]*+\))*+)\)|\{([^{}]*+)\}|((?:\\frac\{[^{}]*+\}\{[^{}]*+\}|[\w.]++|\\pi)(?:\s*+\\deg)?))"
)
# Letters before a bracket that are factors; f, g, h and the like are functions.
_FACTOR = re.compile(r"(?<![A-Za-z\\])([abcikmnrstxyz])\s*+(?=\()")
# The grammar adds: `(2)(3)` is 5 to it.
_JUXTAPOSED = re.compile(r"(\)|(?<![\^_\d.{])\d++)\s*+(?=\()|(\))\s*+(?=\\(?:sin|cos|tan|log|ln|exp)\b)")
# A name of several upright letters.
_UPRIGHT = re.compile(r"\\text\{\s*+([^{}]*?)\s*+\}")
# Unit vectors.
_HATS = re.compile(r"\\hat\{([ijk])\}")
# Notation that the grammar would read as something else.
_UNREADABLE = re.compile(
    r"!!|\d\s*+'|\d\s++\d|\.\d++\.|\\[pb]?mod(?![a-z])|\\ldots|\\(?:text|mathit)\{\s*\}|\\text\{[^{}]*\b(?:or|and|not|otherwise|if)\b|[?@#`\"]"
    r"|\\(?:vec|overrightarrow)\s*+\{[^{}]*\}\s*+\\times"  # a cross product, which the grammar multiplies
)
# Derivatives, integrals, sums, products and limits.
_CALCULUS = re.compile(
    r"\\frac\s*+\{\s*+(?:d|\\partial)[^{}]*+\}\s*+\{\s*+(?:d|\\partial)|\\int(?![a-z])|\\sum|\\prod|\\lim"
)


def read_formula(text: str) -> tuple[Any, bool]:
    r"""The sympy object of a formula, as `respell` writes it, and whether it contains a decimal.

    Raises:
        UnreadableError: It is no formula, or too long to be one.

    >>> read_formula("0.5x"), read_formula("i^{2}")
    ((x/2, True), (-1, False))
    """
    if len(text) > LONGEST or _UNREADABLE.search(text) or not text.strip():
        raise UnreadableError(text)
    reading: dict[str, Any] = {"is_real": True, "convert_degrees": False, "normalization_config": None}
    reading["conversion_config"] = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)
    try:
        # In this order: a numeral with a base looks like an index, and a symbol's name must not be rewritten again.
        # A number whose index is no base is refused; base 0 would be a Python literal to `int`, which refuses 1.
        respelt = _BASED.sub(lambda m: str(int(m[1], int(m[2]) or 1)), text)
        respelt = _CIS.sub(lambda m: f"(\\cos({m[m.lastindex or 0]})+i\\cdot \\sin({m[m.lastindex or 0]}))", respelt)
        respelt = _DEGREES.sub(r"(\1\\cdot\\frac{\\pi}{180})", respelt)
        respelt = _INDEX.sub(
            lambda m: m[0] if _WITH_INDEX.match(m["base"]) else _symbol(f"{m['base']}sub{m['index']}"), respelt
        )
        respelt = _INVERSE.sub(lambda m: _symbol(m[1] + "inverse"), respelt)
        respelt = _PRIME.sub(lambda m: _symbol(m[1] + "prime" * (m[2].count("'") + m[2].count("prime"))), respelt)
        respelt = _UPRIGHT.sub(lambda m: m[1] if len(m[1]) == 1 else _symbol(m[1]), respelt)
        respelt = _POWER_OF_T.sub(r"^{1\\cdot T}", respelt)
        is_calculus = bool(_CALCULUS.search(respelt))  # elsewhere `d` is a letter, a differential to the grammar
        respelt = _LETTER.sub(
            lambda m: _symbol(m[0]) if m["letter"] or (m["differential"] and not is_calculus) else m[0], respelt
        )
        respelt = _JUXTAPOSED.sub(lambda m: f"{m[1] or m[2]}\\cdot ", respelt)
        respelt = _FACTOR.sub(r"\1\\cdot ", respelt)
        respelt = _DECIMAL.sub(lambda m: f"(\\frac{{{int(m[1] + m[2])}}}{{1{'0' * len(m[2])}}})", respelt)
        formula = _settled(latex2sympy(respelt.strip(), **reading), text)
    except (MemoryError, RecursionError, UnreadableError):
        raise
    except Exception as error:  # the grammar raises bare exceptions, sympy all kinds
        raise UnreadableError(text) from error
    return formula, bool(_DECIMAL.search(text))


def _symbol(name: str) -> str:
    """A command that the grammar reads as one symbol of this name; signs are spelt as letters."""
    plain = re.sub(r"[{}\s\\]|text", "", name)
    return "\\mathit{" + "".join(char if char.isalnum() and char.isascii() else f"u{ord(char)}" for char in plain) + "}"


def _settled(parsed: Any, text: str) -> Any:
    """The parsed object with `i` as the imaginary unit, unless it counts something or is a unit vector."""
    if isinstance(parsed, sympy.MatrixBase):
        return sympy.ImmutableMatrix(parsed.applyfunc(lambda entry: _settled(entry, text)))
    if not isinstance(parsed, sympy.Basic) or parsed.has(sympy.nan, sympy.zoo):
        raise UnreadableError(text)
    letter = next((symbol for symbol in parsed.free_symbols if str(symbol) == "i"), None)
    if letter is not None and not re.search(r"\\(?:sum|prod)\s*+_\s*+\{?\s*+i\b", text) and not _HATS.search(text):
        parsed = parsed.xreplace({letter: sympy.I})
    if not _CALCULUS.search(text):
        parsed = parsed.doit()
    if not _HATS.search(text):
        return parsed
    # The components of a sum of unit vectors.
    vector: Any = parsed
    units = [next((s for s in vector.free_symbols if s.name == f"hat{{{name}}}"), None) for name in "ijk"]
    components = [sympy.Integer(0) if unit is None else vector.expand().coeff(unit) for unit in units]
    rest = vector - sum(c * u for c, u in zip(components, units, strict=True) if u is not None)
    if sympy.expand(rest) != 0:
        return vector
    return sympy.ImmutableMatrix(components if units[2] is not None else components[:2])


# Letters for a constant of integration by that of the gold; two lower letters may be different parameters.
_CONSTANTS = {"C": "cKk", "c": "C", "K": "C"}


def with_same_letters(answer: Any, gold: Any) -> tuple[Any, Any]:
    """An answer and a gold in which letters that mean the same are the same.

    >>> x, c, constant = sympy.symbols("x c C")
    >>> with_same_letters(x**2 + c, x**2 + constant), with_same_letters(c * x, constant * x)
    ((C + x**2, C + x**2), (c*x, C*x))
    """
    values = []
    for value in (answer, gold):
        # A symbol for each dy/dx, which sympy would evaluate to 0, as if y were a constant.
        derivatives = value.atoms(sympy.Derivative)
        rates = [part for part in derivatives if part.expr.is_Symbol and part.expr not in part.variables]
        values.append(value.xreplace({rate: sympy.Symbol(str(rate)) for rate in rates}))
    # The engineers' `j` is the imaginary unit where only the other side has that unit, and no `j`.
    has_unit = [value.has(sympy.I) for value in values]
    if has_unit[0] != has_unit[1]:
        side = has_unit.index(False)
        named = [[symbol for symbol in value.free_symbols if symbol.name == "j"] for value in values]
        if not named[1 - side]:
            values[side] = values[side].xreplace(dict.fromkeys(named[side], sympy.I))
    answer, gold = values
    # The gold's letters for constants of integration: `+ c` or `+ K` for `+ C`, `c_1` for `C_1`.
    names = {symbol: symbol.name for symbol in answer.free_symbols - gold.free_symbols}
    renamed = {}
    for constant in gold.free_symbols - answer.free_symbols:
        if indexed := re.search(r"\b([Cc])(sub\d)", constant.name):
            other = constant.name.replace(indexed[0], indexed[1].swapcase() + indexed[2])
            others = [symbol for symbol, name in names.items() if name == other]
        elif (letters := _CONSTANTS.get(constant.name)) and constant in sympy.Add.make_args(gold):
            terms = sympy.Add.make_args(answer)
            others = [symbol for symbol, name in names.items() if name in letters and symbol in terms]
        else:
            continue
        renamed |= dict.fromkeys(others[:1], constant)
    return answer.xreplace(renamed), gold
