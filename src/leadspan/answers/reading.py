r"""Reads an answer as lists, equations, sets of numbers, inequalities and quantities, as a whole or not at all.

A part of an answer is never taken for the whole: where text is left over, the answer cannot be read. The value of an
answer is what stands before a condition, such as `where x > 0`.
"""

import contextlib
import functools
import itertools
import re
from operator import and_
from typing import Any

import sympy

from leadspan.answers.formulas import (
    EQUALS,
    RATIOS,
    RELATIONS,
    SEPARATORS,
    Equation,
    Inequality,
    Listing,
    Quantity,
    Region,
    UnreadableError,
    Value,
    enclosed,
    read_formula,
    split,
)
from leadspan.answers.quantities import read_quantity
from leadspan.answers.spelling import respell

MOST_ITEMS = 200
"""Items of one list, and numbers that an ellipsis may stand for."""
# Groups of three digits, which are thousands or items of a list; alone in brackets they are items.
_GROUPED = re.compile(
    r"(?<![\d.,])(?!(?:(?<=[(\[])(?<![\w)}][(\[])|(?<=\\\{))[\d,]++\s*+\\?[)\]}])\d{1,3}(?:,\d{3})++(?![\d])"
)
# A whole number and a fraction, which are a mixed number or a list.
_AND_FRACTION = re.compile(
    r"(?<![\d.,])(\d++)\s*+(?:\\text\s*+\{\s*+and\s*+\}|and)\s*+(\\frac\{\d++\}\{\d++\}|\d++/\d++)(?!\d)"
)
# A decimal with a unit or words.
_ROUNDED = re.compile(r"\s*+-?\d++\.\d++(?:\s*+(?:\\text\{[^{}]*+\}|\\%))?")
# Groups of two digits before the last three, as in India.
_INDIAN = re.compile(r"^-?\d{1,2}(?:,\d{2})+,\d{3}$")
# The left side of an equation that only names what is computed.
_NAME = re.compile(
    r"(?:\\text\s*+\{[^{}]*+\}|\\(?!sin|cos|tan|cot|sec|csc|log|ln|exp|frac|sqrt|pi\b)[A-Za-z]++(?:\{\s*+\w++\s*+\})?|[A-Za-z]"
    r"|m?\s*+\\(?:measured)?angle\s*+[A-Z\s]++)(?:\s*+[A-Z])*+(?:\s*+_\s*+(?:\{[^{}]*+(?:\{[^{}]*+\}[^{}]*+)?\}|\\?\w++))?"
    r"(?:\s*+(?:'|\^\s*+\{?(?:\\prime|\*|-1)\}?))*+(?:\s*+(?:\((?:[^()=<>]|\([^()=<>]*+\))*+\)|\[[A-Z][^\[\]=<>]*+\]))?"
    r"|(?:\\Pr|\\mathbb\{P\}|P)\s*+\([^()]*+\)|\(\s*+[A-Za-z]\s*+\\circ\s*+[A-Za-z]\s*+\)\s*+\([A-Za-z]\)"
    r"|\|\s*+[A-Z]{1,2}\s*+\||\[[A-Z]{3,}\]"
    r"|[A-Za-z]{1,2}(?:\s*+:\s*+[A-Za-z]{1,2})++"
    r"|\(\s*+[A-Za-z]\s*+(?:,\s*+[A-Za-z]\s*+)++\)|\\overline\{\s*+[A-Z]{1,3}\s*+\}|[A-Za-z]{3,}(?: [A-Za-z]++)*+"
    r"|\\frac\s*+\{\s*+(?:\\partial|[A-Za-z])\s*+\w*+\s*+\}\s*+\{\s*+(?:\\partial|[A-Za-z])\s*+\w*+\s*+\}"
)
# A set by its condition, such as the x with x > 2.
_RADIX = re.compile(r"\\?\{(?P<name>[^:|,]*?)(?::|\|)(?P<condition>.+?)\\?\}", re.DOTALL)
# A variable among all real numbers.
_REAL = re.compile(r"[A-Za-z]\s*+\\in\s*+\\mathbb\{R\}")
# Letters that stand for a number, and so name nothing.
_VALUE_NAMES = re.compile(r"\\(?:pi|infty|emptyset|hbar)\b|e\b|i\b")
_MATRIX = re.compile(r"\\begin\{[pbvB]?(?:matrix|array)\}")
# Where a condition begins: a word for one, a congruence, a wide space, or a variable in a set of numbers.
_CONDITION = re.compile(
    r"\s*+,?\s*+(?:\\text\s*+\{[\s,(]*+(?:for|where|if|when|whenever|provided|with|such that|as long as)\b|"
    r"(?<![A-Za-z\\])(?:for|where|if|when|provided|with)\s|\(?\s*\\pmod|\\quad|"
    r"(?<![A-Za-z\\])(?<!\\\{)(?<!\\\{ )[A-Za-z]\s*+\\in\s*+\\mathbb)"
)
# A number that a variable must not be, behind a formula without a relation of its own.
_EXCLUDED = re.compile(
    r"(?:(?!\\(?:neq|[lg]e|in|mathbb|cup|infty|text)(?![a-z])|[<>]).)+?(?P<condition>\s*+[,(]\s*+\(?\s*+[A-Za-z]\s*+\\neq[^<>=\\]++)",
    re.DOTALL,
)
# A further case behind the first condition.
_CASES = re.compile(
    r"(?:[,;]|\band\b|\\quad).*?\b(?:if|for|when|whenever)\b|\b(?:otherwise|else)\b"
    r"|(?:[,;]\s*+|\\text\s*+\{\s*+)or\b(?!.*(?:[=<>]|\\(?:in|neq|[lg]e|equiv)(?![a-z])))",
    re.DOTALL,
)
# Conditions that leave out most values of a variable: what holds under them is one case of several.
_ONE_CASE = re.compile(
    r"\b(?:even|odd|divisible|multiples?|only|non-?integers?)\b|\\equiv|\\mid\b|^(?!.*\bwhere\b).*\b(?:prime|composite|perfect)\b"
)
_ANY_INTEGER = re.compile(r"\bintegers?\b|\\mathbb\s*+\{?\s*+Z")
_SOME_INTEGERS = re.compile(
    r"positive|negative|non-?zero|odd|even|prime|divisible|multiple|between|from|[<>=+^*-]|\\(?:le|ge|neq|setminus)\b"
)


def readings(answer: str) -> list[Value]:
    """Possible meanings of an answer, the likeliest first; empty where it cannot be read.

    Commas between groups of three digits separate thousands or items; `2 and 1/2` is a mixed number or a list.
    """
    text = respell(answer)
    joined = _GROUPED.sub(lambda match: match[0].replace(",", ""), text)
    if _INDIAN.match(text):
        joined = text.replace(",", "")
    values: list[Value] = []
    # `\frac{1}{6} \approx 0.167` is the exact number too.
    exact, _, rounded = joined.rpartition("\\approx")
    exact = exact if _ROUNDED.fullmatch(rounded) else ""
    for spelling in filter(None, dict.fromkeys((joined, text, exact, _AND_FRACTION.sub(r"(\1+\2)", joined)))):
        try:
            values.append(_read(spelling))
        except UnreadableError:
            continue
    return values


def condition_of(answer: str) -> tuple[str, bool]:
    r"""The condition after `where`, `for`, `if` and the like, without white space; whether it leaves one case only.

    >>> condition_of(r"n^2 \text{ for even } n"), condition_of(r"10 \text{ when } x = 5")
    (('forevenn', True), ('whenx=5', False))
    """
    text = respell(answer)
    start = _condition_start(text)
    if start is None:
        return "", False
    before, condition = text[:start], text[start:]
    bare = re.sub(r"\s|\\text|[{}]", "", condition)
    value = re.search(r"(?:for|if|when)\b[\s{}]*+([A-Za-z])[\s{}]*+=", condition)
    is_one_value = value is not None and re.search(rf"(?<![A-Za-z\\]){value[1]}(?![A-Za-z])", before) is not None
    if is_one_value or _ONE_CASE.search(condition):
        return bare, True
    any_integer = _ANY_INTEGER.search(condition) and not _SOME_INTEGERS.search(condition)
    return "integer" if any_integer else bare, False


def _condition_start(text: str) -> int | None:
    """Where a condition begins, None where there is none."""
    if match := _CONDITION.search(text):
        return match.start()
    excluded = _EXCLUDED.fullmatch(text)
    return None if excluded is None else excluded.start("condition")


def _read(text: str, depth: int = 0) -> Value:
    if depth == 0 and (start := _condition_start(text)):
        # Where another one follows, the text before the first is one case of several, and no answer.
        text = "" if _CASES.search(text[start:]) else text[:start].strip(" ,.;")
    # Eight levels of brackets are more than any answer has; beyond, recursion would be the only outcome.
    if depth > 8 or not text:
        raise UnreadableError(text)
    pieces, cuts = split(text, SEPARATORS)
    if any(split(part, RELATIONS)[1] for part in pieces):
        return read_inequality(pieces, cuts)
    if len(pieces) == 1:
        return _item(text, depth)
    # A quantity in two units may contain a separator: 2 hours and 30 minutes.
    if re.search(r"(?:and\b|,).*\d.*[A-Za-z]", text):
        with contextlib.suppress(UnreadableError):
            quantity = read_quantity(text)
            if len(quantity.units) > 1:
                return quantity
    return Listing(_items(pieces, cuts, depth), "")


def _items(pieces: list[str], cuts: list[str], depth: int) -> tuple[Value, ...]:
    """The items of a list; an ellipsis stands for the numbers that continue those before it."""
    if len(pieces) > MOST_ITEMS:
        raise UnreadableError(", ".join(pieces[:3]))
    items: list[Value] = []
    ellipsis_at = None
    for i, part in enumerate(pieces):
        if i and cuts[i - 1].startswith("\\ldots"):
            ellipsis_at = len(items)
        if part:
            item = _read(part, depth + 1)
            items += item.items if isinstance(item, Listing) and "\\pm" in part and not item.brackets else [item]
        # Only between two separators: `3, and 4` has two, and commas may surround an ellipsis.
        elif not 0 < i < len(cuts) or all(cut[0] in ",;" for cut in cuts[i - 1 : i + 1]):
            raise UnreadableError(", ".join(pieces))
    if ellipsis_at is None:
        return tuple(items)
    at = ellipsis_at
    numbers = [item.value for item in items if isinstance(item, Quantity) and not item.units and item.value.is_Integer]
    if len(numbers) != len(items) or at < 2 or at >= len(items):
        raise UnreadableError("...")
    step = numbers[1] - numbers[0]
    gap = numbers[at] - numbers[at - 1]
    is_even = all(after - before == step for before, after in itertools.pairwise(numbers[:at]))
    if step == 0 or gap % step or not is_even or not 0 < gap / step <= MOST_ITEMS:
        raise UnreadableError("...")
    between = [numbers[at - 1] + step * k for k in range(1, int(gap / step))]
    return tuple(Quantity(number) for number in [*numbers[:at], *between, *numbers[at:]])


def _item(text: str, depth: int) -> Value:
    sides, _ = split(text, EQUALS)
    if len(sides) > 1:
        if re.fullmatch("(?![eiEI])[A-Za-z]", sides[-1]) and not _NAME.fullmatch(sides[0]):  # `12 = n`
            sides = sides[::-1]
        right, name = _read(sides[-1], depth + 1), sides[0].strip()
        if not _NAME.fullmatch(name) or _VALUE_NAMES.fullmatch(name):
            return Equation("", _read(sides[0], depth + 1), right)
        left = _read(name, depth + 1) if len(name) == 1 else None
        return Equation(re.sub(r"[\s{}]|\\text|\\mathrm", "", name), left, right)
    brackets = enclosed(text)
    builder = _RADIX.fullmatch(text) if brackets else None
    if builder and split(builder["condition"], RELATIONS)[1]:
        return _read(builder["condition"], depth + 1)
    if any(command in text for command in ("\\cup", "\\cap", "\\setminus", "\\mathbb", "\\emptyset")):
        return read_set(text)
    if brackets:
        return _bracketed(text, *brackets, depth)
    if _MATRIX.match(text):
        return _as_value(Quantity(*read_formula(text)))  # a determinant is a number
    terms, _ = split(text, RATIOS)
    if len(terms) > 2:
        # Each over the first, so that `1:2:3` is `2:4:6`.
        ratio = [_read(term, depth + 1) for term in terms]
        values = [term.value for term in ratio if isinstance(term, Quantity) and not term.units]
        if len(values) != len(terms) or values[0] == 0:
            raise UnreadableError(text)
        return Listing(tuple(Quantity(value / values[0]) for value in values), ":")
    signs = re.findall(r"\\pm|\\mp", text)
    if len(signs) > 2:
        raise UnreadableError(text)
    if signs:
        upper, lower = text.replace("\\pm", "+").replace("\\mp", "-"), text.replace("\\pm", "-").replace("\\mp", "+")
        return Listing((_read(upper.lstrip("+ "), depth + 1), _read(lower, depth + 1)), "")
    return _as_value(read_quantity(text))


def _bracketed(text: str, opening: str, inside: str, closing: str, depth: int) -> Value:
    pieces, cuts = split(inside, SEPARATORS)
    kind = {"\\{": "{", "\\langle": "<"}.get(opening, opening) + {"\\}": "}", "\\rangle": ">"}.get(closing, closing)
    if len(pieces) > 1:
        return Listing(_items(pieces, cuts, depth), kind)
    if kind not in ("{}", "[]", "()"):
        raise UnreadableError(text)
    return _read(inside, depth + 1) if inside or kind != "{}" else read_set("\\emptyset")


def _as_value(quantity: Quantity) -> Value:
    if isinstance(quantity.value, sympy.FiniteSet | sympy.Tuple):  # `(1,2)\text{ cm}`
        return Listing(tuple(Quantity(value, quantity.has_decimal) for value in quantity.value.args), "")
    if isinstance(quantity.value, sympy.MatrixBase):
        if 1 in quantity.value.shape:  # a row or a column is a list
            return Listing(tuple(Quantity(entry, quantity.has_decimal) for entry in quantity.value), "<>")
        return Quantity(quantity.value, quantity.has_decimal)
    if not isinstance(quantity.value, sympy.Expr):
        raise UnreadableError(str(type(quantity.value)))
    return quantity


_OPERATORS = {"<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "\\neq": "!="}


def read_set(text: str) -> Region:
    r"""A union, intersection or difference of intervals and finite sets, or a named set.

    Raises:
        UnreadableError: It is none.

    >>> read_set(r"(-\infty,2) \cup (2,\infty)").numbers == read_set(r"\mathbb{R} \setminus \{2\}").numbers
    True
    """
    numbers, _ = read_formula(text.replace("\\backslash", "\\setminus"))
    if not isinstance(numbers, sympy.Set):
        raise UnreadableError(text)
    return Region(numbers)


def read_inequality(pieces: list[str], cuts: list[str]) -> Value:
    r"""Inequalities that hold together, or of which one holds, from what stands between the cuts.

    Pieces are also chains such as `1 < x < 2`, equations, and further values: `x \neq 1, 2` is two inequalities. Behind
    a comma they hold together, unless no number meets all of them: then one of them is meant.

    Raises:
        UnreadableError: One of them is none.
    """
    # Of each inequality its relations: left side, operator, right side.
    chains: list[list[tuple[Any, str, Any]]] = []
    between, left = list[str](), ""
    for part, cut in zip(pieces, ["", *cuts], strict=True):
        if _REAL.fullmatch(part):  # that a variable is real says nothing
            continue
        between += [cut] if chains else []
        sides, operators = split(part, RELATIONS)
        equal_sides, equals = split(part, EQUALS)
        if left and part and not operators and not equals:
            sides, operators = [left, part], ["\\neq"]
        left = sides[0] if operators == ["\\neq"] else ""
        if not operators and all(operator == "=" for operator in equals):
            sides, operators = equal_sides, ["=="] * len(equals)
        values = [read_formula(side)[0] for side in sides] if operators and all(sides) else []
        if not values or not all(isinstance(value, sympy.Expr) for value in values):
            raise UnreadableError(part)
        kinds = [_OPERATORS.get(operator, operator) for operator in operators]
        chains.append(list(zip(values, kinds, values[1:], strict=False)))
    names = {symbol for chain in chains for left, _, right in chain for symbol in (left - right).free_symbols}
    if len(names) != 1:
        if len(chains) > 1 and any("or" in cut for cut in between):
            raise UnreadableError(", ".join(pieces))
        # One direction for all: `a > b` as `b - a < 0`.
        return Inequality(
            tuple(
                (right - left if operator.startswith(">") else left - right, operator.replace(">", "<"))
                for chain in chains
                for left, operator, right in chain
            )
        )
    symbol, regions = names.pop(), list[Any]()
    kinds = {"<": sympy.Lt, "<=": sympy.Le, "!=": sympy.Ne, ">": sympy.Gt, ">=": sympy.Ge, "==": sympy.Eq}
    for chain in chains:
        solved = (_solution(kinds[operator](left, right)) for left, operator, right in chain)
        regions.append(functools.reduce(and_, solved, sympy.S.Reals))
    solutions = regions[0]
    for region, cut in zip(regions[1:], between, strict=True):
        both = solutions & region
        solutions = solutions | region if "or" in cut or ("and" not in cut and both.is_empty) else both
    return Region(solutions, symbol.name)


def _solution(relation: Any) -> Any:
    """The numbers that satisfy a relation."""
    try:
        return relation.as_set()
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # sympy raises all kinds where it cannot solve
        raise UnreadableError(str(re.sub(r"\s+", " ", str(relation)))) from error
