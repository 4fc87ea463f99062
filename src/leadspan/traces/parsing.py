"""Readers of one row into one trace: the five forms in which data sets store prompt, chain of thought and answer.

A reader takes a row, the columns of its roles and the think tags of its source, and raises `Unusable` where the row
cannot become a trace. Whether an answer is right matters only where a data set offers several generations with its own
verdicts.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from leadspan.traces.records import (
    Columns,
    Row,
    Trace,
    Unusable,
    gold_of_value,
    list_of,
    says_something,
    shown,
    text_of,
    text_or_number,
    value_of,
)
from leadspan.traces.turns import Tags, is_cut_off, read_prompt_turns, read_reply, separate, split_reasoning

Reader = Callable[[Row, Columns, Tags], Trace]

# GSM8K's annotations, such as `<<2*3=6>>`.
_CALCULATOR = re.compile(r"<<[^<>]*>>")


def read_columns(row: Row, columns: Columns, tags: Tags) -> Trace:
    """Prompt, chain of thought and answer in columns of their own, without tags."""
    cot = value_of(row, columns["cot"])
    if isinstance(cot, list):  # s1K keeps its trajectory in a list, and joins it so
        cot = "\n".join(text_of(part, columns["cot"]) for part in cot)
    answer = text_or_number(value_of(row, columns["answer"]), columns["answer"])
    names = (columns["cot"], columns["answer"])
    return _trace(_prompt(row, columns), *separate(text_of(cot, columns["cot"]), answer, names, tags), row, columns)


def read_response(row: Row, columns: Columns, tags: Tags) -> Trace:
    """A prompt, and a response with chain of thought and answer in it: one text, or turns that end with the reply."""
    switch = columns.get("switch")
    if switch is not None and row.get(switch) == "off":
        raise Unusable("reasoning switched off", f"the column {switch!r} is 'off'")
    name = columns["response"]
    response = value_of(row, name)
    if not isinstance(response, list):
        return _trace(_prompt(row, columns), *split_reasoning(text_of(response, name), tags), row, columns)
    # An empty list has no reply either; `read_reply` says so.
    *before, reply = response or [None]
    prompt = [*_prompt(row, columns), *read_prompt_turns(before, name)]
    return _trace(prompt, *read_reply(reply, name, tags), row, columns)


def read_generations(row: Row, columns: Columns, tags: Tags) -> Trace:
    """The first complete generation that was verified: by rule, or if there is none, by a judging model."""
    texts = list_of(row, columns["generations"])
    complete = _flags(row, columns.get("complete"), len(texts), absent=True)
    reasons = value_of(row, columns["finish"]) if "finish" in columns else None
    if isinstance(reasons, list) and len(reasons) == len(texts):
        complete = [is_complete and not is_cut_off(why) for is_complete, why in zip(complete, reasons, strict=True)]
    list_of(row, columns["verified"])
    # A rule's verdict is surer than that of a judging model.
    for verdict in (columns["verified"], columns.get("judged")):
        right = _flags(row, verdict, len(texts), absent=False)
        both = (text for text, *flags in zip(texts, right, complete, strict=True) if all(flags))
        text = next(both, None)
        if text is not None:
            cot, answer = split_reasoning(text_of(text, columns["generations"]), tags)
            return _trace(_prompt(row, columns), cot, answer, row, columns)
    raise Unusable("no generation verified correct", f"none of {len(texts)} is both right and complete")


def read_conversation(row: Row, columns: Columns, tags: Tags) -> Trace:
    """Turns, the last one by the assistant; its chain of thought in tags, in a part, or under a key of its own."""
    name = columns["conversation"]
    turns = list_of(row, name)
    if not turns:
        raise Unusable("no assistant turn last", f"the last turn of {name!r} is missing")
    prompt = read_prompt_turns(turns[:-1], name)
    return _trace(_with_system(prompt, row, columns), *read_reply(turns[-1], name, tags), row, columns)


def read_worked_solution(row: Row, columns: Columns, tags: Tags) -> Trace:
    """GSM8K: a worked solution, without its `<<...>>` calculator annotations, and its result after `####`."""
    name = columns["response"]
    cot, marker, answer = text_of(value_of(row, name), name).rpartition("####")
    if not marker:
        raise Unusable("no result after ####", f"{name!r} is {shown(answer)}")
    cot, answer = separate(_CALCULATOR.sub("", cot), answer, ("solution", "result"), tags)
    return Trace(tuple(_prompt(row, columns)), cot, answer, gold=answer)


def _trace(prompt: Sequence[dict[str, str]], cot: str, answer: str, row: Row, columns: Columns) -> Trace:
    if "gold" not in columns:
        return Trace(tuple(prompt), cot, answer)
    gold, fault = gold_of_value(value_of(row, columns["gold"]), columns["gold"])
    return Trace(tuple(prompt), cot, answer, gold, gold_fault=fault)


def _prompt(row: Row, columns: Columns) -> list[dict[str, str]]:
    name = columns["prompt"]
    value = value_of(row, name)
    if isinstance(value, list):
        return _with_system(read_prompt_turns(value, name), row, columns)
    text = text_of(value, name)
    if name == "instruction" and says_something(row.get("input")):  # Alpaca's second column: what to apply it to
        text = f"{text}\n\n{text_of(row['input'], 'input')}"
    return _with_system([{"role": "user", "content": text}], row, columns)


def _with_system(messages: list[dict[str, str]], row: Row, columns: Columns) -> list[dict[str, str]]:
    name = columns.get("system")
    text = None if name is None else value_of(row, name)
    if name is None or text is None or (messages and messages[0]["role"] == "system"):
        return messages
    text = text_of(text, name)
    return [{"role": "system", "content": text}, *messages] if text.strip() else messages


def _flags(row: Row, column: str | None, number: int, absent: bool) -> list[bool]:
    """Verdicts on generations; those of an optional column that is no list of as many are absent."""
    values: Any = None if column is None else row.get(column)
    if not isinstance(values, list) or len(values) != number:
        return [absent] * number
    return [isinstance(value, int | float) and value == 1 for value in values]  # a text "False" is no verdict
