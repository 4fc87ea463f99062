"""Whether two values are equal: exactly, except for decimals that approximate numbers without a finite decimal."""

import itertools
import random
from collections.abc import Sequence
from typing import Any

import sympy
from math_verify import verify

from leadspan.answers.formulas import Equation, Inequality, Listing, Quantity, Region, Value, with_same_letters
from leadspan.answers.quantities import ratio_of

FRACTION_TOLERANCE = 1.0001e-6
"""Share by which a decimal may miss a fraction that has no finite decimal: 0.333333 is 1/3."""
IRRATIONAL_TOLERANCE = 1e-9
"""Share by which a decimal may miss an irrational number: 3.14159265 is not pi, 3.1415926536 is."""
# Decimal digits to which numbers are evaluated, and the share of the larger one up to which two of them are the same.
_DIGITS, _SAME = 60, 1e-40
# Natural logarithm of the largest power or factorial that is computed in full.
_MAX_LOG = 50_000
# Points at which formulas are compared, and points with a value on both sides that are enough.
_POINTS, _ENOUGH = 12, 4


def equal(answer: Value, gold: Value) -> bool:
    """Whether an answer has the same meaning as the gold.

    A name before an equals sign counts only where both have one. A list without brackets has no order, and neither has
    a set; pairs and vectors are ordered.
    """
    match answer, gold:
        case Equation(), Equation():
            return _equal_equations(answer, gold)
        case Equation(), _:
            return _gives_its_right_side(answer) and equal(answer.right, gold)
        case _, Equation():
            return _gives_its_right_side(gold) and equal(answer, gold.right)
        case (Region(), _) | (_, Region()):
            return _equal_regions(answer, gold)
        case Inequality(), Inequality():
            return _match(
                answer.relations,
                gold.relations,
                lambda first, second: first[1] == second[1] and _proportional(first[0], second[0], first[1] == "!="),
            )
        case Listing(), Listing():
            return _equal_listings(answer, gold)
        # A list of one item is that item.
        case Listing(items=(item,)), Quantity():
            return equal(item, gold)
        case Quantity(), Listing(items=(item,)):
            return equal(answer, item)
        case Quantity(), Quantity():
            return _equal_quantities(answer, gold)
    return False


def _gives_its_right_side(equation: Equation) -> bool:
    """Whether it names what its right side is, or its left side is a number that equals it, as in `2 + 3 = 5`."""
    left, right = equation.left, equation.right
    if equation.name or not isinstance(left, Quantity):
        return bool(equation.name)
    if getattr(left.value, "free_symbols", True):
        return False
    # Or the right side is a decimal to which the number rounds.
    rational = _rational(right.value) if isinstance(right, Quantity) and right.has_decimal else None
    if equal(left, right):
        return True
    if rational is None or not left.value.is_number:
        return False
    num_digits = next((n for n in range(1, 20) if 10**n % int(rational.q) == 0), None)
    return num_digits is not None and bool(abs((rational - left.value).evalf(_DIGITS)) <= 0.5 / 10**num_digits)


def _equal_equations(answer: Equation, gold: Equation) -> bool:
    if answer.name and answer.name == gold.name:
        return equal(answer.right, gold.right)
    if answer.left is None or gold.left is None:
        return False
    sides = [answer.left, answer.right, gold.left, gold.right]
    if not all(isinstance(side, Quantity) and not side.units for side in sides):
        return equal(answer.left, gold.left) and equal(answer.right, gold.right)
    values = [side.value for side in sides if isinstance(side, Quantity)]
    first, second = values[0] - values[1], values[2] - values[3]
    # `2x = y` and `4x - 2y = 0` are the same line: both differences vanish at the same points.
    if _proportional(first, second, may_change_sign=True):
        return True
    # A differential equation may be multiplied by any factor: both are solved for each derivative that they have in
    # common, where it occurs to the first power.
    for derivative in first.atoms(sympy.Derivative) & second.atoms(sympy.Derivative):
        symbol = sympy.Dummy()
        solved = []
        for difference in (first, second):
            terms = sympy.expand(difference).xreplace({derivative: symbol})
            factor = terms.coeff(symbol, 1)
            solved.append(None if factor == 0 or factor.has(symbol) else symbol - terms / factor)
        if None not in solved and _equal_values(sympy.expand(solved[0]), sympy.expand(solved[1])):
            return True
    return False


def _equal_regions(answer: Value, gold: Value) -> bool:
    regions = _as_region(answer), _as_region(gold)
    if regions[0] is None or regions[1] is None:
        return False
    if regions[0].name and regions[1].name and regions[0].name != regions[1].name:
        return False
    first, second = regions[0].numbers.doit(), regions[1].numbers.doit()
    if first == second:
        return True
    members = [list(s.args) if isinstance(s, sympy.Union) else [s] for s in (first, second)]
    if len(members[0]) == len(members[1]):
        # Part by part: bounds may be written differently, and `_equal_values` decides whether they are the same.
        return _match(members[0], members[1], _is_same_part)
    return bool(first.symmetric_difference(second).is_empty)


def _as_region(value: Value) -> Region | None:
    if isinstance(value, Region):
        return value
    if isinstance(value, Quantity):
        return Region(sympy.FiniteSet(value.value))
    if not isinstance(value, Listing) or not all(isinstance(item, Quantity) for item in value.items):
        return None
    numbers = [item.value for item in value.items if isinstance(item, Quantity)]
    if value.brackets in ("()", "[]", "(]", "[)") and len(numbers) == 2:
        return Region(sympy.Interval(numbers[0], numbers[1], value.brackets[0] == "(", value.brackets[1] == ")"))
    return Region(sympy.FiniteSet(*numbers)) if value.brackets in ("", "{}") else None


def _is_same_part(first: Any, second: Any) -> bool:
    if isinstance(first, sympy.Interval) and isinstance(second, sympy.Interval):
        is_alike = (first.left_open, first.right_open) == (second.left_open, second.right_open)
        return is_alike and _equal_values(first.start, second.start) and _equal_values(first.end, second.end)
    if isinstance(first, sympy.FiniteSet) and isinstance(second, sympy.FiniteSet):
        return _match(first.args, second.args, _equal_values)
    return str(first) == str(second)


def _equal_listings(answer: Listing, gold: Listing) -> bool:
    items, gold_items = _items(answer), _items(gold)
    # Against a tuple, x, y and z have their order by name.
    items, gold_items = (
        _by_name(mine) if other.brackets in ("()", "<>", "[]") else mine
        for mine, other in ((items, gold), (gold_items, answer))
    )
    if len(items) != len(gold_items):
        return False
    if gold.brackets == "" or (gold.brackets == "{}" and answer.brackets in ("", "{}")):
        words = [[item.words if isinstance(item, Quantity) else "" for item in side] for side in (items, gold_items)]
        # Where both sides have the same words, a value for each, these belong to the values.
        is_same = equal
        if all(words[0]) and sorted(words[0]) == sorted(words[1]):
            is_same = lambda item, other: item.words == other.words and equal(item, other)  # noqa: E731
        return answer.brackets in ("", "{}", "()", "[]") and _match(items, gold_items, is_same)
    if "{}" in (answer.brackets, gold.brackets):
        return False
    # Brackets of vectors are alike from three items on; two items in `[]` may be an interval.
    vectors = {"<>", "()", "[]"}
    same = answer.brackets in ("", gold.brackets) or (len(items) > 2 and {answer.brackets, gold.brackets} <= vectors)
    return (same or {answer.brackets, gold.brackets} == {"<>", "()"}) and all(map(equal, items, gold_items))


def _by_name(items: list[Value]) -> list[Value]:
    """Values of neighbouring letters of the alphabet in their order; the items as they are where they are none."""
    names = [item.name if isinstance(item, Equation) else "" for item in items]
    first = min(names)
    letters = [chr(ord(first) + i) for i in range(len(names))] if len(first) == 1 else []
    return [items[names.index(letter)] for letter in letters] if sorted(names) == letters else items


def _items(listing: Listing) -> list[Value]:
    """The items; of a set each once."""
    if listing.brackets != "{}":
        return list(listing.items)
    different: list[Value] = []
    for item in listing.items:
        if not any(equal(item, earlier) for earlier in different):
            different.append(item)
    return different


def _match(first_items: Sequence[Any], second_items: Sequence[Any], is_same: Any) -> bool:
    """Whether the items of both sides can be paired, each with an equal one, in any order."""
    unmatched = list(second_items)
    for item in first_items:
        at = next((i for i, candidate in enumerate(unmatched) if is_same(item, candidate)), None)
        if at is None:
            return False
        unmatched.pop(at)
    return not unmatched


def _equal_quantities(answer: Quantity, gold: Quantity) -> bool:
    has_decimal = answer.has_decimal or gold.has_decimal
    values = [answer.value]
    if (answer.is_percent and gold.units) or (gold.is_percent and answer.units):
        return False
    if answer.is_percent and not gold.is_percent:
        # A gold beyond 1 may be what was asked for in percent; one below it is a share.
        values = [answer.value / 100, *(values if gold.value.is_number and abs(gold.value) > 1 else ())]
    elif gold.is_percent and not answer.is_percent:
        values += [answer.value * 100]
    elif answer.units and gold.units:
        ratio = ratio_of(answer.units[0], gold.units[0])
        values = [] if ratio is None else [answer.value * ratio]
    else:
        values += [answer.value * ratio for ratio in _ratios(answer)]
        if any(_equal_values(answer.value, gold.value * ratio, has_decimal) for ratio in _ratios(gold)):
            return True
    return any(_equal_values(value, gold.value, has_decimal) for value in values)


def _ratios(quantity: Quantity) -> list[Any]:
    """Factors by which a number without a unit may be meant: another unit of a compound, radians."""
    ratios = [ratio_of(quantity.units[0], unit) for unit in quantity.units[1:]]
    if len(quantity.units) == 1 and str(quantity.units[0]) == "degree":
        ratios.append(sympy.pi / 180)
    return [ratio for ratio in ratios if ratio is not None]


def _equal_values(answer: Any, gold: Any, has_decimal: bool = False) -> bool:
    """Whether two sympy objects are equal; formulas are compared at points, and by algebra where they have no value."""
    if answer == gold:
        return True
    if isinstance(answer, sympy.MatrixBase) or isinstance(gold, sympy.MatrixBase):
        if not (isinstance(answer, sympy.MatrixBase) and isinstance(gold, sympy.MatrixBase)):
            return False
        return answer.shape == gold.shape and all(
            _equal_values(first, second, has_decimal) for first, second in zip(answer.flat(), gold.flat(), strict=True)
        )
    if not (isinstance(answer, sympy.Expr) and isinstance(gold, sympy.Expr)):
        return False
    answer, gold = with_same_letters(answer, gold)
    if not answer.free_symbols and not gold.free_symbols:
        return _equal_numbers(answer, gold, has_decimal)
    has_steps, counts = _steps(answer, gold)
    samples = [] if counts else [_at_points(answer, gold)]
    samples += [_at_points(answer, gold, at_integers=True)] if has_steps or counts else []
    if None in samples:
        return _equal_by_algebra(answer, gold)
    return all(abs(a - b) <= 1e-20 * max(abs(a), abs(b), 1e-10) for pairs in samples for a, b in pairs or ())


def _steps(answer: Any, gold: Any) -> tuple[bool, bool]:
    """Whether formulas round, so that integers are points of their own; whether their variables count something.

    They do where a rounded value is no integer at integers, as n / 2, and in the exponent of a negative number.
    """
    formulas = (answer, gold)
    rounded = [part.args[0] for formula in formulas for part in formula.atoms(sympy.floor, sympy.ceiling)]
    is_rounded = any(sympy.denom(sympy.together(value)) != 1 for value in rounded)
    powers = [power for formula in formulas for power in formula.atoms(sympy.Pow)]
    alternates = any(power.base.is_number and power.base.is_negative and power.exp.free_symbols for power in powers)
    return bool(rounded), is_rounded or alternates


def _equal_numbers(first: Any, second: Any, has_decimal: bool) -> bool:
    rationals = _rational(first), _rational(second)
    # Two finite decimals are compared exactly: their denominators divide a power of ten.
    if None not in rationals and (
        rationals[0] == rationals[1] or all(pow(10, int(r.q).bit_length(), int(r.q)) == 0 for r in rationals)
    ):
        return bool(rationals[0] == rationals[1])
    if not (first.is_number and second.is_number):
        return _equal_by_algebra(first, second)
    values = [value.evalf(_DIGITS) for value in (first, second)]
    if not all(value.is_number and value.is_finite for value in values):
        return bool(values[0] == values[1])
    tolerance = _SAME
    if has_decimal:
        tolerance = IRRATIONAL_TOLERANCE if None in rationals else FRACTION_TOLERANCE
    # Without a decimal, rationals that differ are different.
    elif None not in rationals:
        return False
    size = max(abs(value) for value in values)
    return bool(size == 0 or abs((first - second).evalf(_DIGITS)) <= tolerance * size)


def _rational(value: Any) -> Any:
    """The value as a sympy.Rational, None where it is none or too large to compute."""
    if isinstance(value, sympy.Rational):
        return value
    # The size of powers is estimated before anything is computed: a tower of powers would never end.
    for part in sympy.preorder_traversal(value):
        if isinstance(part, sympy.Pow | sympy.factorial):
            size = sympy.log(abs(part.evalf(5)))
            if not size.is_finite or abs(size) > _MAX_LOG:
                return None
    computed = value.doit()
    return computed if isinstance(computed, sympy.Rational) else None


def _at_points(first: Any, second: Any, at_integers: bool = False) -> list[tuple[Any, Any]] | None:
    """The values of two formulas at points drawn from a fixed seed; None where too few points have one."""
    names = sorted(first.free_symbols | second.free_symbols, key=lambda symbol: symbol.name)
    may_be_complex = first.has(sympy.I) or second.has(sympy.I)
    generator, pairs = random.Random(0), list[tuple[Any, Any]]()
    for i in range(_POINTS):
        # Positive numbers at every second point: roots and logarithms have a value there. Fractions over a prime avoid
        # points at which formulas agree by accident, such as 0 and 1. As decimals: powers of fractions would be worked
        # out exactly, for minutes.
        point = {
            name: sympy.Integer(generator.randint(2, 25))
            if at_integers
            else sympy.Rational(generator.randint(100, 3000), 997).evalf(_DIGITS)
            * (1 if i % 2 == 0 else generator.choice((1, -1)))
            for name in names
        }
        values = [formula.subs(point).evalf(30) for formula in (first, second)]
        if not all(value.is_number and value.is_finite for value in values):
            if i == 0 and not all(value.is_number for value in values):
                return None
            continue
        if may_be_complex or all(abs(sympy.im(value)) < 1e-25 for value in values):
            pairs.append((values[0], values[1]))
    return pairs if len(pairs) >= _ENOUGH else None


def _proportional(first: Any, second: Any, may_change_sign: bool) -> bool:
    """Whether one formula is a constant times the other."""
    pairs = _at_points(first, second)
    if pairs is None or any(b == 0 for _, b in pairs):
        return _equal_values(first, second) or (may_change_sign and _equal_values(first, -second))
    ratios = [a / b for a, b in pairs]
    # Values have 30 digits, of which cancellation may take some.
    if any(abs(after - before) > 1e-18 * abs(before) for before, after in itertools.pairwise(ratios)):
        return False
    return bool(ratios[0] != 0 and (may_change_sign or ratios[0] > 0))


def _equal_by_algebra(answer: Any, gold: Any) -> bool:
    """Math-Verify's comparison, for formulas without a value at a point: sums, derivatives, undefined functions."""
    try:
        return verify([gold], [answer], timeout_seconds=0, raise_on_error=True)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # sympy raises all kinds where two things cannot be compared
        return False
