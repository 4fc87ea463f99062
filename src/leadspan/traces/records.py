"""One record: its values, checked where they are used, and the trace that it becomes or the refusal of it."""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from unicodedata import normalize

from leadspan.text import shortened

Row = Mapping[str, Any]  # Any: whatever JSON or Arrow holds
Columns = Mapping[str, str]  # role -> column

BYTE_ORDER_MARK = "\ufeff"
MISTYPED = "missing or mistyped column"
_EXACT_WHOLE = 2.0**53  # above it a float is no whole number that anybody wrote
# Values in messages are cut short: a row may hold megabytes.
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60


@dataclass(frozen=True, slots=True)
class Trace:
    """One training example as text.

    Attributes:
        messages: The conversation up to the assistant turn that is learnt: `{"role": ..., "content": ...}` each, with
            `name` and `reasoning_content` where a turn has them.
        cot: Chain of thought, without its tags.
        answer: Final answer text, without tags.
        gold: Reference answer, when the source has one.
        place: Where the record stands, e.g. `traces.jsonl:17`, for messages.
        teacher: Name of the teacher to learn it from, where the source says one.
        gold_fault: Why there is no reference answer although the source has a column for it, in a small set of phrases.
    """

    messages: tuple[dict[str, str], ...]
    cot: str
    answer: str
    gold: str | None = None
    place: str = ""
    teacher: str = ""
    gold_fault: str = field(default="", compare=False)

    @property
    def question(self) -> str:
        """The user's turns, for splits by question; system prompt and line breaks do not matter."""
        turns = (message["content"] for message in self.messages if message["role"] == "user")
        return "\0".join(" ".join(normalize("NFC", turn).split()) for turn in turns)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that cannot be used.

    Attributes:
        reason: One of a small set of phrases, so that refusals can be counted.
        detail: What is wrong with this record.
        place: Where the record stands.
    """

    reason: str
    detail: str
    place: str = ""


class Unusable(Exception):
    """A record that cannot become a trace, with the reason and the detail of its `Refusal`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def value_of(row: Row, names: str) -> Any:
    """The first value that is there among columns separated by `|`, or None; null and NaN are missing values."""
    there = (row[name] for name in names.split("|") if name in row)
    return next((value for value in there if not is_missing(value)), None)


def is_missing(value: Any) -> bool:
    """Whether a value is null, or NaN, as pandas writes null."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def says_something(value: Any) -> bool:
    """Whether a value has content: neither missing, false, empty, nor the JSON text of an empty value."""
    return not is_missing(value) and bool(value) and value not in ("[]", "{}", "null")


def text_of(value: Any, column: str) -> str:
    """The value, which has to be text; a byte order mark before it is dropped.

    Raises:
        Unusable: It is not.
    """
    if not isinstance(value, str):
        raise Unusable(MISTYPED, f"{column!r} is {kind_of_value(value)}, text is needed")
    return value.removeprefix(BYTE_ORDER_MARK)


def text_or_number(value: Any, column: str) -> str:
    """The value as text: text, or a finite number; `27.0` is 27, as where a column mixes whole numbers and fractions.

    Raises:
        Unusable: It is something else, true or false included.
    """
    if isinstance(value, float) and math.isfinite(value):
        is_whole = value.is_integer() and abs(value) < _EXACT_WHOLE
        return str(int(value) if is_whole else value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_of(value, column)


def list_of(row: Row, column: str) -> list[Any]:
    """The list in a column; turns stored as one list per key, as `datasets` does, become dictionaries.

    Raises:
        Unusable: It is no list.
    """
    value = row.get(column)
    # One list per key, of equal lengths: turns stored column by column.
    if isinstance(value, dict) and value and all(isinstance(part, list) for part in value.values()):
        lengths = {len(part) for part in value.values()}
        if len(lengths) == 1:
            return [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise Unusable(MISTYPED, f"{column!r} is {kind_of_value(value)}, a list is needed")
    return value


def gold_of_value(value: Any, column: str) -> tuple[str | None, str]:
    """The reference answer that a value gives, or why it gives none. A reference answer never refuses a record.

    Returns:
        The answer and "", or None and one of a small set of phrases.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not says_something(value) and value not in (0, False):
        return None, "missing"
    if isinstance(value, list | dict | bool):
        return None, {list: "a list of several", dict: "an object", bool: "true or false"}[type(value)]
    try:
        text = text_or_number(value, column).strip()
        text.encode()
    except Unusable:
        return None, "neither text nor a number"
    except UnicodeEncodeError:
        return None, "not valid UTF-8"
    return (text, "") if text else (None, "missing")


def kind_of_value(value: Any) -> str:
    """Type and beginning of a value, for messages."""
    if value is None:
        return "missing or null"
    return f"{type(value).__name__} ({shown(value) if isinstance(value, str) else _REPR.repr(value)})"


def shown(text: str) -> str:
    """The beginning of a text, for messages."""
    return repr(shortened(text.strip(), 60))
