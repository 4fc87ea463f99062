"""One row to one trace: the five shapes in which data sets keep a prompt, a chain of thought and an answer.

A reader takes a row and the columns of its roles, and raises `Unusable` where the row cannot become a trace.
Whether an answer is right matters only where a data set offers several generations with its own verdicts.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from leadspan.data.records import Trace

Row = Mapping[str, Any]  # Any: whatever JSON or Arrow holds; every value is checked where it is used
Columns = Mapping[str, str]  # role -> column; several columns, in order of preference, are separated by |

THINK_TAGS = (("<think>", "</think>"), ("<|begin_of_thought|>", "<|end_of_thought|>"))
SOLUTION_TAGS = ("<|begin_of_solution|>", "<|end_of_solution|>")
MISTYPED = "missing or mistyped column"
UNCLOSED = "chain of thought never closed"
TAGS_TWICE = "think tags more than once"

_ROLES = {name: name for name in ("system", "developer", "user", "assistant", "tool")}
_ROLES |= {"human": "user", "gpt": "assistant"}  # ShareGPT
_CALCULATOR = re.compile(r"<<[^<>]*>>")


class Unusable(Exception):
    """A record that cannot become a trace.

    Attributes:
        reason: One of a small set of phrases, so that refusals can be counted.
        detail: What is wrong with this record.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def split_reasoning(text: str) -> tuple[str, str]:
    """Split an assistant text into chain of thought and answer, without tags and surrounding white space.

    The opening tag may be absent, since some chat templates put it into the prompt.

    Raises:
        Unusable: The tags are absent, unclosed, repeated or out of order, or one of the two parts is empty.

    >>> split_reasoning("<think>2 + 2 is 4.</think>4")
    ('2 + 2 is 4.', '4')
    """
    counts = {tag: text.count(tag) for tags in THINK_TAGS for tag in tags if tag in text}
    families = [tags for tags in THINK_TAGS if not counts.keys().isdisjoint(tags)]
    if not families:
        raise Unusable("no think tags", f"none of {', '.join(sum(THINK_TAGS, ()))} in {_shown(text)}")
    if len(families) > 1 or max(counts.values()) > 1:
        raise Unusable(TAGS_TWICE, ", ".join(f"{count} x {tag}" for tag, count in counts.items()))
    opening, closing = families[0]
    if closing not in counts:
        raise Unusable(UNCLOSED, f"{opening} without {closing}")
    head, _, answer = text.partition(closing)
    if opening in answer:
        raise Unusable("think tags out of order", f"{closing} stands before {opening}")
    before, _, cot = head.rpartition(opening)
    if before.strip():
        raise Unusable("text before the chain of thought", f"{_shown(before)} stands before {opening}")
    return _filled(cot, "chain of thought"), _filled(_without_solution_tags(answer), "answer")


def read_columns(row: Row, columns: Columns) -> Trace:
    """Prompt, chain of thought and answer in columns of their own, without tags."""
    if row.get("finished") is False:
        raise Unusable(UNCLOSED, "'finished' is false")
    cot = row.get(columns["cot"])
    if isinstance(cot, list):  # s1K keeps its trajectory in a list, and joins it so
        cot = "\n".join(_text(part, columns["cot"]) for part in cot)
    answer = _text_or_number(row.get(columns["answer"]), columns["answer"])
    cot, answer = _separate(_text(cot, columns["cot"]), answer, (columns["cot"], columns["answer"]))
    return Trace(_prompt(row, columns), cot, answer, _gold(row, columns))


def read_response(row: Row, columns: Columns) -> Trace:
    """A prompt, and one text that holds chain of thought and answer."""
    switch = columns.get("switch", "")
    if row.get(switch) == "off":
        raise Unusable("reasoning switched off", f"the column {switch!r} is 'off'")
    cot, answer = split_reasoning(_text(row.get(columns["response"]), columns["response"]))
    return Trace(_prompt(row, columns), cot, answer, _gold(row, columns))


def read_generations(row: Row, columns: Columns) -> Trace:
    """The first complete generation that was verified: by rule, or if there is none, by a judging model."""
    texts = _list(row, columns["generations"])
    complete = _list(row, columns["complete"], absent=[True] * len(texts))
    for verdict in (columns["verified"], columns["judged"]):
        flags = zip(texts, _list(row, verdict, absent=[]), complete, strict=False)
        text = next((text for text, is_right, is_complete in flags if is_right and is_complete), None)
        if text is not None:
            cot, answer = split_reasoning(_text(text, columns["generations"]))
            return Trace(_prompt(row, columns), cot, answer, _gold(row, columns))
    raise Unusable("no generation verified correct", f"none of {len(texts)} is both right and complete")


def read_conversation(row: Row, columns: Columns) -> Trace:
    """Turns, the last one by the assistant; its chain of thought in tags or under a key of its own."""
    name = columns["conversation"]
    turns = _list(row, name)
    messages = [_message(turn, name) for turn in turns]
    if not messages or messages[-1]["role"] != "assistant":
        last = repr(messages[-1]["role"]) if messages else "missing"
        raise Unusable("no assistant turn last", f"the last turn of {name!r} is {last}")
    text = messages.pop()["content"]
    reasoning = _first_present(turns[-1], "reasoning_content|reasoning|thinking")
    if reasoning is None or (reasoning == "" and _tags_in(text)):
        cot, answer = split_reasoning(text)
    else:
        cot, answer = _separate(_text(reasoning, name), text, ("reasoning", "content"))
    return Trace(_with_system(messages, row, columns), cot, answer, _gold(row, columns))


def read_worked_solution(row: Row, columns: Columns) -> Trace:
    """GSM8K: a worked solution, without its `<<...>>` calculator annotations, and its result after `####`."""
    cot, marker, answer = _text(row.get(columns["response"]), columns["response"]).rpartition("####")
    if not marker:
        raise Unusable("no result after ####", f"{columns['response']!r} is {_shown(answer)}")
    cot, answer = _filled(_CALCULATOR.sub("", cot), "chain of thought"), _filled(answer, "answer")
    return Trace(_prompt(row, columns), cot, answer, gold=answer)


def _prompt(row: Row, columns: Columns) -> tuple[dict[str, str], ...]:
    name = columns["prompt"]
    value = row.get(name)
    if isinstance(value, list):
        return _with_system([_message(turn, name) for turn in value], row, columns)
    text = _text(value, name)
    if name == "instruction" and row.get("input"):  # Alpaca's second column: what to apply it to
        text = f"{text}\n\n{_text(row['input'], 'input')}"
    return _with_system([{"role": "user", "content": text}], row, columns)


def _with_system(messages: list[dict[str, str]], row: Row, columns: Columns) -> tuple[dict[str, str], ...]:
    names = columns.get("system", "")
    text = _first_present(row, names)
    if text is None or not _text(text, names).strip() or (messages and messages[0]["role"] == "system"):
        return tuple(messages)
    return ({"role": "system", "content": text}, *messages)


def _message(turn: Any, column: str) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise Unusable(MISTYPED, f"a turn of {column!r} is {type(turn).__name__}, role and content are needed")
    role = _first_present(turn, "role|from")
    if not isinstance(role, str) or role not in _ROLES:
        raise Unusable("unknown role", f"{role!r} in {column!r}; known are {', '.join(_ROLES)}")
    return {
        "role": _ROLES[role],
        "content": _text(_first_present(turn, "content|value"), f"{column}[].content"),
    }


def _gold(row: Row, columns: Columns) -> str | None:
    names = columns.get("gold", "")
    value = _first_present(row, names)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return _text_or_number(value, names).strip() or None


def _without_solution_tags(answer: str) -> str:
    opening, closing = SOLUTION_TAGS
    if opening in answer and closing not in answer:
        raise Unusable("answer never closed", f"{opening} without {closing}")
    answer = answer.strip().removeprefix(opening).removesuffix(closing)
    if opening in answer or closing in answer:
        raise Unusable("solution tags out of place", f"text outside {opening} ... {closing}, or one of them twice")
    return answer


def _separate(cot: str, answer: str, names: tuple[str, str]) -> tuple[str, str]:
    for name, text in zip(names, (cot, answer), strict=True):
        if tags := _tags_in(text):
            raise Unusable(TAGS_TWICE, f"{tags[0]} in {name!r}, although the two parts stand apart")
    return _filled(cot, "chain of thought"), _filled(answer, "answer")


def _tags_in(text: str) -> list[str]:
    return [tag for tags in THINK_TAGS for tag in tags if tag in text]


def _filled(text: str, part: str) -> str:
    text = text.strip()
    if not text:
        raise Unusable(f"empty {part}", f"the {part} is blank")
    return text


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise Unusable(MISTYPED, f"{column!r} is {_kind(value)}, text is needed")
    return value


def _text_or_number(value: Any, column: str) -> str:
    if isinstance(value, float) and value.is_integer():  # 27.0, where a column mixes whole numbers and fractions
        value = int(value)
    return str(value) if isinstance(value, int | float) else _text(value, column)


def _list(row: Row, column: str, absent: list[Any] | None = None) -> list[Any]:
    value = row.get(column)
    if value is None and absent is not None:
        return absent
    if not isinstance(value, list):
        raise Unusable(MISTYPED, f"{column!r} is {_kind(value)}, a list is needed")
    return value


def _first_present(row: Row, names: str) -> Any:
    """The first value that is not null among columns separated by `|`, or None."""
    return next((row[name] for name in names.split("|") if row.get(name) is not None), None)


def _kind(value: Any) -> str:
    return "missing or null" if value is None else f"{type(value).__name__} ({_shown(str(value))})"


def _shown(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 60 else text[:57] + "...")
