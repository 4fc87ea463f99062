r"""What Math-Verify leaves out when it calls two answers equal: units, and digits beyond its precision.

It drops units, and it takes numbers for equal whose difference vanishes at 15 digits behind the point (6 where one is
written as a decimal): 1/2003! for 1/2004!, $10^{-30}$ for $10^{-31}$.
"""

import re
from typing import Any

_QUANTITY = re.compile(r".*?(?:[\d})!]|\\pi) ?(?P<unit>(?:\^\{?\\circ\}?|[^\W\d_])[^=,]*)", re.DOTALL)
_FACTOR = re.compile(
    r"(?P<over>/)|(?:(?P<before>square|sq|cubic|cu)\.? )?(?P<name>[^\W\d_]+)"
    r"(?:\^\{?(?P<power>-?\d)\}?| (?P<after>squared|cubed)\b)?"
)
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_MORE_NAMES = {
    "metre": "meter", "metres": "meter", "centimetre": "centimeter", "centimetres": "centimeter",
    "kilometre": "kilometer", "kilometres": "kilometer", "millimetre": "millimeter", "millimetres": "millimeter",
    "litre": "liter", "litres": "liter", "in": "inch", "lb": "pound", "lbs": "pound",
    "sec": "second", "secs": "second", "min": "minute", "mins": "minute", "hr": "hour", "hrs": "hour",
}  # fmt: skip
"""Names that sympy does not know, or reads otherwise."""
_MORE_UNITS = (
    ("dollar", "dollars"), ("cent", "cents"), ("euro", "euros"), ("week", "weeks"), ("month", "months"),
)  # fmt: skip

_MAX_LOG = 50_000
"""Natural logarithm of the largest power or factorial that is computed in full."""


def units_differ(answer: str, gold: str) -> bool:
    r"""Whether both are a number with a unit, and the units are known and differ; 60 min and hours do.

    Args:
        answer: As `plain_text` writes it.
        gold: Likewise.

    >>> units_differ("5 km", "5 cm"), units_differ("5 km", "5 kilometers"), units_differ("5 km", "5")
    (True, False, False)
    """
    spelled = [_QUANTITY.fullmatch(text) for text in (answer, gold)]
    if not (spelled[0] and spelled[1]):
        return False
    unit, gold_unit = (_unit(match["unit"]) for match in spelled if match)
    return unit is not None and gold_unit is not None and unit != gold_unit


def _unit(spelled: str) -> Any:
    """A product of powers of SI base units and others (sympy), None where a name is unknown."""
    import sympy
    from sympy.physics.units import convert_to
    from sympy.physics.units.definitions import ampere, candela, kelvin, kilogram, meter, mole, second

    text = re.sub(r"\^\{?\\circ\}?", " degree ", re.sub(r"\bper\b", "/", re.sub(r"\\cdot|[·*]", " ", spelled)))
    if re.sub(r"[\s.]", "", _FACTOR.sub("", text)):
        return None
    product, sign = sympy.Integer(1), 1
    for factor in _FACTOR.finditer(text):
        if factor["over"]:
            sign = -1
            continue
        quantity = _named(factor["name"])
        if quantity is None:
            return None
        power = factor["power"] or _POWERS.get(factor["before"] or factor["after"], 1)
        product *= quantity ** (sign * int(power))
    return convert_to(product, [meter, kilogram, second, ampere, mole, candela, kelvin])


def _named(name: str) -> Any:
    """The sympy quantity of a name or symbol, None where there is none."""
    import sympy.physics.units as known

    for names in _MORE_UNITS:
        if name in names:
            return known.Quantity(names[0])
    found = None if name == "percent" else getattr(known, _MORE_NAMES.get(name, name), None)
    return found if isinstance(found, known.Quantity) else None


def contradict(one: Any, other: Any) -> bool:
    r"""Whether two values that Math-Verify calls equal are numbers that differ, or finite sets or intervals of such.

    Rational numbers must be the same. Other numbers without decimals may differ by $10^{-40}$ of the larger one,
    numbers with decimals by a hundredth (which concerns those below $10^{-4}$: Math-Verify rounds to six places).
    Percentages are left to Math-Verify. Powers and factorials too large to compute are compared to 50 digits.

    Args:
        one: A sympy object.
        other: Another.
    """
    import sympy

    one, other = (_right_hand_side(value) for value in (one, other))
    if isinstance(one, sympy.FiniteSet | sympy.Tuple) and isinstance(other, sympy.FiniteSet | sympy.Tuple):
        return any(all(contradict(a, b) for b in other.args) for a in one.args)
    if isinstance(one, sympy.Interval) and isinstance(other, sympy.Interval):
        return contradict(one.start, other.start) or contradict(one.end, other.end)
    if not all(isinstance(value, sympy.Expr) and value.is_number for value in (one, other)):
        return False
    if one == other or one.has(sympy.UnevaluatedExpr) or other.has(sympy.UnevaluatedExpr):
        return False
    rationals = _rational(one), _rational(other)
    if None not in rationals:
        return rationals[0] != rationals[1]
    return _far_apart(one, other, 1e-2 if one.has(sympy.Float) or other.has(sympy.Float) else 1e-40)


def _right_hand_side(value: Any) -> Any:
    import sympy

    return value.rhs if isinstance(value, sympy.Eq) and isinstance(value.lhs, sympy.Symbol) else value


def _rational(value: Any) -> Any:
    """The value as a sympy.Rational, None where it is none or too large to compute."""
    import sympy

    for part in sympy.preorder_traversal(value):
        if isinstance(part, sympy.Pow | sympy.factorial):
            size = sympy.log(abs(part.evalf(5)))
            if not size.is_finite or abs(size) > _MAX_LOG:
                return None
    computed = value.doit()
    return computed if isinstance(computed, sympy.Rational) else None


def _far_apart(one: Any, other: Any, tolerance: float) -> bool:
    """Whether the difference is more than a share of the larger one; what may be zero to rounding is not far apart."""
    import sympy

    size = max(abs(one.evalf(50)), abs(other.evalf(50)))
    return bool(size > sympy.Float("1e-60") and abs((one - other).evalf(50)) > tolerance * size)
