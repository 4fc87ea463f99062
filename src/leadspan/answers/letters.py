"""Letters that mean the same in two formulas: rates, the imaginary unit, constants of integration."""

import re
from typing import Any

import sympy

# Letters for a constant of integration by that of the gold; two lower letters may be different parameters.
_CONSTANTS = {"C": "cKk", "c": "C", "K": "C"}


def with_same_letters(answer: Any, gold: Any) -> tuple[Any, Any]:
    """An answer and a gold in which letters that mean the same are the same.

    >>> x, c, constant = sympy.symbols("x c C")
    >>> with_same_letters(x**2 + c, x**2 + constant), with_same_letters(c * x, constant * x)
    ((C + x**2, C + x**2), (c*x, C*x))
    """
    answer, gold = _with_rates(answer), _with_rates(gold)
    answer, gold = _with_one_imaginary_unit(answer, gold), _with_one_imaginary_unit(gold, answer)
    return _with_constants_of(gold, answer), gold


def _with_rates(value: Any) -> Any:
    """The value with a symbol for each dy/dx, which sympy would evaluate to 0, as if y were a constant."""
    rates = (part for part in value.atoms(sympy.Derivative) if part.expr.is_Symbol and part.expr not in part.variables)
    return value.xreplace({rate: sympy.Symbol(str(rate)) for rate in rates})


def _with_one_imaginary_unit(value: Any, other: Any) -> Any:
    """The value with the engineers' `j` as the imaginary unit, where the other one has that unit and it has not."""
    is_given = value.has(sympy.I) or not other.has(sympy.I) or any(symbol.name == "j" for symbol in other.free_symbols)
    return value if is_given else value.xreplace({name: sympy.I for name in value.free_symbols if name.name == "j"})


def _with_constants_of(gold: Any, answer: Any) -> Any:
    """The answer with the gold's letters for constants of integration: `+ c` or `+ K` for `+ C`, `c_1` for `C_1`."""
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
    return answer.xreplace(renamed)
