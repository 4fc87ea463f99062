"""Problems that reasoning-gym makes, and what its verifiers say of answers; its package is the extra of that name."""

import difflib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from leadspan.answers.equality import Outcome
from leadspan.errors import SettingsError


def made_problems(name: str, options: Mapping[str, Any], number: int, place: str) -> list[tuple[str, str, str]]:
    """Problems of a data set: question, reference answer, and which entry it is, for `verified`.

    Args:
        name: Of the data set.
        options: Its settings; `seed` is 0 when absent.
        number: How many; the same settings make the same problems, and more of them begin alike.
        place: What asks, for messages.

    Raises:
        SettingsError: reasoning-gym is not installed, or has no such data set or setting.
    """
    values = {"seed": 0, **options, "size": number}
    try:
        entries = _data_set(name, json.dumps(values))
        made = [entries[index] for index in range(number)]
    except ImportError:
        remedy = "pip install 'leadspan[reasoning-gym]'"
        raise SettingsError(f"{place}: reasoning-gym:{name} needs a package that is not installed; {remedy}") from None
    except KeyError:
        near = difflib.get_close_matches(name, _names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_names())}"
        raise SettingsError(f"{place}: reasoning-gym has no data set {name!r}; {hint}") from None
    except (TypeError, AssertionError, ValueError) as error:
        text = str(error).strip() or "they break one of its rules"
        raise SettingsError(f"{place}: options {dict(options)} do not fit reasoning-gym:{name}: {text}") from None
    return [
        (entry["question"].strip(), str(entry["answer"] or ""), json.dumps([name, json.dumps(values), index]))
        for index, entry in enumerate(made)
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


def _names() -> list[str]:
    from reasoning_gym.factory import DATASETS  # pyright: ignore[reportMissingImports]  # an extra

    return sorted(DATASETS)
