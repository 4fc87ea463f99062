"""Whether two texts are the same Python literal; nothing is run."""

import ast
import contextlib
import re
import warnings

from leadspan.answers.equality import Outcome

# Backticks, as of a block of code, or a text command around all of a literal, and the characters that LaTeX escapes.
_WRAPPED = re.compile(r"(?:`+(?:[a-z]+\n)?|\\text(?:tt)?\{)(.*?)\s*(?:`+|\})", re.DOTALL)
_ESCAPED = re.compile(r"\\([{}_%#$&])")


def compare_literals(answer: str, gold: str) -> Outcome:
    """Compare the values of two literals, types included: 1, 1.0 and True differ, wherever they stand.

    An answer counts as written, without what is wrapped around it, and without LaTeX's escapes.

    Returns:
        `unparsed` where the gold or each spelling of the answer is no literal.
    """
    # Parsing is recursive, and a loop may have written megabytes.
    answer = answer[:10_000]
    wrapped = _WRAPPED.fullmatch(answer)
    bare = answer if wrapped is None else wrapped[1]
    outcome: Outcome = "unparsed"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that Python does not know, each version by another name
        for spelling in dict.fromkeys((answer, bare, _ESCAPED.sub(r"\1", bare))):
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
                if _with_types(ast.literal_eval(spelling)) == _with_types(ast.literal_eval(gold)):
                    return "right"
                outcome = "wrong"
    return outcome


def _with_types(value: object) -> tuple[type, object]:
    """A value with the type of each of its parts, which `==` leaves out."""
    if isinstance(value, dict):
        return dict, frozenset((_with_types(key), _with_types(part)) for key, part in value.items())
    if isinstance(value, set):
        return set, frozenset(map(_with_types, value))
    return type(value), tuple(map(_with_types, value)) if isinstance(value, list | tuple) else value
