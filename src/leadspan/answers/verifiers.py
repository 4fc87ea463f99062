"""Answers that are not compared as mathematics: Python literals, and those to problems of reasoning-gym.

reasoning-gym generates problems and has its own verifiers; it needs the extra of that name.
"""

import ast
import contextlib
import difflib
import json
import re
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

from leadspan.answers.equality import Outcome
from leadspan.errors import SettingsError

# Backticks, as of a block of code, or a text command around all of a literal, and the characters that LaTeX escapes.
_WRAPPED = re.compile(r"(?:`++(?:[a-z]++\n)?|\\text(?:tt)?\{)(.*?)\s*+(?:(?<!`)`++|\})", re.DOTALL)
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


def generated_problems(name: str, options: Mapping[str, Any], number: int, where: str) -> list[tuple[str, str, str]]:
    """Problems of a data set: question, reference answer, and which entry it is, for `verified`.

    Args:
        name: Of the data set.
        options: Its settings; `seed` is 0 when absent.
        number: How many; the same settings make the same problems, and more of them begin alike.
        where: The task, for messages.

    Raises:
        SettingsError: reasoning-gym is not installed, or has no such data set or setting.
    """
    values = {"seed": 0, **options, "size": number}
    try:
        entries = _data_set(name, json.dumps(values))
        used = [entries[index] for index in range(number)]
    except ImportError:
        remedy = "pip install 'leadspan[reasoning-gym]'"
        raise SettingsError(f"{where}: reasoning-gym:{name} needs a package that is not installed; {remedy}") from None
    except KeyError:
        from reasoning_gym.factory import DATASETS  # pyright: ignore[reportMissingImports]  # an extra

        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(DATASETS))}"
        raise SettingsError(f"{where}: reasoning-gym has no data set {name!r}; {hint}") from None
    except (TypeError, AssertionError, ValueError) as error:
        text = str(error).strip() or "they break one of its rules"
        raise SettingsError(f"{where}: options {dict(options)} do not fit reasoning-gym:{name}: {text}") from None
    return [
        (entry["question"].strip(), str(entry["answer"] or ""), json.dumps([name, json.dumps(values), index]))
        for index, entry in enumerate(used)
    ]


def verified(answer: str, entry: str) -> Outcome:
    """`right` where the data set's own `score_answer` gives an answer to one of its entries the full score, 1."""
    name, values, index = json.loads(entry)
    entries = _data_set(name, values)
    return "right" if entries.score_answer(answer, entries[index]) >= 1 else "wrong"


@cache
def _data_set(name: str, values: str) -> Any:  # Any: a package without types
    from reasoning_gym.factory import DATASETS  # pyright: ignore[reportMissingImports]  # an extra

    kind, config_kind = DATASETS[name]
    config = config_kind(**json.loads(values))
    config.validate()
    return kind(config=config)
