"""One record: its values, checked where they are used, and the trace that it becomes or the refusal of it."""

import math
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from unicodedata import normalize

from leadspan.errors import DataError
from leadspan.tables import percent
from leadspan.text import shortened

Row = Mapping[str, Any]  # Any: whatever JSON or Arrow holds
Columns = Mapping[str, str]  # role -> column

BYTE_ORDER_MARK = "\ufeff"
MISTYPED = "missing or mistyped column"
UNCLOSED = "chain of thought never closed"
_SHOWS = re.compile(r"[^\s\u200b-\u200d\u2060\ufeff]")  # neither white space nor without width
_EXACT_WHOLE = 2.0**53  # above it a float is no whole number that anybody wrote
# Values in messages are cut short: a row may hold megabytes.
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60

# Keys whose content no text can replace.
MEDIA = ("image", "images", "audio", "audios", "video", "videos", "documents")
NOT_TEXT_OF_RECORD = ("tools", "functions", *MEDIA)
# How servers and logs say that a generation did not end by itself.
_FINISH = "finish_reason|stop_reason|finish_reasons"
_CUT_OFF = re.compile(
    "length|max|limit|trunc|incomplete|abort|cancel|error|fail|timeout|filter|safety|recitation|refus|pause|tool|function"
)
# Flags, each with what it says of a generation that was cut off.
_WHEN_CUT = dict.fromkeys(("finished", "is_finished", "completed", "is_complete"), False)
_WHEN_CUT |= dict.fromkeys(("truncated", "is_truncated"), True)


@dataclass(frozen=True, slots=True)
class Trace:
    """One training example as text.

    Its messages are the conversation up to the assistant turn that is learnt: `{"role": ..., "content": ...}` each,
    with `name` and `reasoning_content` where a turn has them.
    """

    messages: tuple[dict[str, str], ...]
    cot: str  # without its tags
    answer: str  # without tags
    gold: str | None = None  # reference answer, when the source has one
    place: str = ""  # where the record stands, e.g. `traces.jsonl:17`, for messages
    teacher: str = ""  # to learn it from, where the source names one
    # Why there is no reference answer although the source has a column for it, in a small set of phrases.
    gold_fault: str = field(default="", compare=False)

    @property
    def question(self) -> str:
        """The user's turns, for splits by question; system prompt and line breaks do not matter."""
        turns = (message["content"] for message in self.messages if message["role"] == "user")
        return "\0".join(" ".join(normalize("NFC", turn).split()) for turn in turns)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that cannot be used."""

    reason: str  # of a small set of phrases, so that refusals can be counted
    detail: str  # what is wrong with this record
    place: str = ""


@dataclass(slots=True)
class RefusalCounter:
    """How many records were read, how many were refused for which reason, and the first refusal of each reason."""

    num_read: int = 0  # refused ones included
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Refusal] = field(default_factory=dict)

    def add(self, item: object) -> None:
        """Count one record: refused if it is a `Refusal`, else usable."""
        self.num_read += 1
        if isinstance(item, Refusal):
            self.counts[item.reason] += 1
            self.examples.setdefault(item.reason, item)

    def usable(self, items: Iterable[Trace | Refusal]) -> Iterator[Trace]:
        """Count every item, and pass on the traces."""
        for item in items:
            self.add(item)
            if isinstance(item, Trace):
                yield item

    def check(self, max_refused_share: float, name: str) -> None:
        """Refuse a source with too few usable records.

        Args:
            max_refused_share: Largest accepted share of refused records, from 0 to 1.
            name: Name of the source in messages.

        Raises:
            DataError: More than that share was refused, or nothing usable was read; names every reason.
        """
        if self.num_read == 0:
            raise DataError(f"{name}: holds no records; give a file or data set with at least one")
        num_refused = self.counts.total()
        share = num_refused / self.num_read
        if num_refused == self.num_read:
            rule, remedy = "so nothing is left", "."
        elif share > max_refused_share:
            rule = f"more than data.max_refused_share = {max_refused_share:g}"
            remedy = ", or raise data.max_refused_share to leave that many out."
        else:
            return
        lines = [f"{name}: {num_refused} of {self.num_read} records ({percent(share, 2)}) cannot be used, {rule}:"]
        examples = ((count, self.examples[reason]) for reason, count in self.counts.most_common())
        lines += [f"  {count} x {first.reason}, e.g. {first.place}: {first.detail}" for count, first in examples]
        layout = "their layout with `format` or `columns`, their tags with `think_open` and `think_close`"
        raise DataError("\n".join([*lines, f"Correct these records, or name {layout}{remedy}"]))


class Unusable(Exception):
    """A record that cannot become a trace; its arguments are the reason and the detail of its `Refusal`."""


def value_of(row: Row, names: str) -> Any:
    """The first value that is there among columns separated by `|`, or None; null and NaN are missing values."""
    there = (row[name] for name in names.split("|") if name in row)
    return next((value for value in there if not is_missing(value)), None)


def is_missing(value: Any) -> bool:
    """Whether a value is null, or NaN, as pandas writes null."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_blank(text: str) -> bool:
    """Whether a text shows nothing."""
    return _SHOWS.search(text) is None


def says_something(value: Any) -> bool:
    """Whether a value has content: neither missing, false, empty, nor the JSON text of an empty value."""
    return not is_missing(value) and bool(value) and value not in ("[]", "{}", "null")


def flag_of(value: Any) -> bool | None:
    """What a flag says, also as a number or as text, as tables store it; None where it says neither yes nor no.

    >>> flag_of("False"), flag_of(1.0), flag_of("0.0"), flag_of("yes"), flag_of(0.5)
    (False, True, False, True, None)
    """
    text = str(value).strip().lower()
    return True if text in ("true", "1", "1.0", "yes") else False if text in ("false", "0", "0.0", "no") else None


def text_of(value: Any, column: str) -> str:
    """The value, which has to be text, else `Unusable`; a byte order mark before it is dropped."""
    if not isinstance(value, str):
        raise Unusable(MISTYPED, f"{column!r} is {kind_of_value(value)}, text is needed")
    return value.removeprefix(BYTE_ORDER_MARK)


def text_or_number(value: Any, column: str) -> str:
    """Text, or a finite number as text, else `Unusable`; `27.0` is 27: columns mix whole numbers and fractions."""
    if isinstance(value, Decimal) and value.is_finite():
        digits = f"{value:f}"
        return digits.rstrip("0").rstrip(".") if "." in digits else digits
    if isinstance(value, float) and math.isfinite(value):
        is_whole = value.is_integer() and abs(value) < _EXACT_WHOLE
        return str(int(value) if is_whole else value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_of(value, column)


def list_of(row: Row, column: str) -> list[Any]:
    """The list in a column, else `Unusable`."""
    value = row.get(column)
    # One list per key, of equal lengths: turns stored column by column, as `datasets` does.
    if isinstance(value, dict) and value and all(isinstance(part, list) for part in value.values()):
        lengths = {len(part) for part in value.values()}
        if len(lengths) == 1:
            return [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise Unusable(MISTYPED, f"{column!r} is {kind_of_value(value)}, a list is needed")
    return value


def kind_of_value(value: Any) -> str:
    """Type and beginning of a value, for messages."""
    if value is None:
        return "missing or null"
    return f"{type(value).__name__} ({shown(value) if isinstance(value, str) else _REPR.repr(value)})"


def shown(text: str) -> str:
    """The beginning of a text, for messages."""
    return repr(shortened(text.strip(), 60))


def check_text_only(row: Row, keys: Sequence[str], name: str) -> None:
    """Refuse a record or a turn with something under one of the keys of tools and media."""
    lost = next((key for key in keys if says_something(row.get(key))), None)
    if lost is not None:
        raise Unusable("tools or media, which no trace can carry", f"{name} has {lost!r}")


def check_finished(row: Row) -> None:
    """Refuse a record or a turn that says its generation was cut off."""
    reason = value_of(row, _FINISH)
    if isinstance(reason, list) and len(reason) == 1:
        reason = reason[0]
    if is_cut_off(reason):
        raise Unusable(UNCLOSED, f"the finish reason is {reason!r}")
    if row.get("status") == "incomplete":
        raise Unusable(UNCLOSED, "'status' is 'incomplete'")
    for name, when_cut in _WHEN_CUT.items():
        if flag_of(row.get(name)) is when_cut:
            raise Unusable(UNCLOSED, f"{name!r} is {str(when_cut).lower()}")


def is_cut_off(reason: Any) -> bool:
    """Whether a finish reason says that the generation did not end by itself: at a limit, by a filter, for a tool."""
    return isinstance(reason, str) and _CUT_OFF.search(reason.lower()) is not None
