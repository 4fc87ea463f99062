"""Turns of a conversation, and the readers of the five forms in which data sets store a trace.

A reader takes a row, the columns of its roles and the think tags of its source, and gives the trace without its
reference answer. What no chat template could render as text is refused and counted, by an `Unusable` of every function
that checks or reads: a prompt that lost a tool or an image is another prompt. Whether an answer is right matters only
where a data set offers several generations with its own verdicts.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from leadspan.traces import records
from leadspan.traces.records import MISTYPED, Columns, Row, Trace, Unusable, says_something, shown, text_of, value_of

Tags = Sequence[tuple[str, str]]

THINK_TAGS: Tags = (("<think>", "</think>"), ("<|begin_of_thought|>", "<|end_of_thought|>"))
SOLUTION_TAGS = ("<|begin_of_solution|>", "<|end_of_solution|>")
TAGS_TWICE = "think tags more than once"
TEXT_BEFORE = "text before the chain of thought"

# Roles of OpenAI's chat format, and other programs' names for them.
_ROLES = {name: name for name in ("system", "developer", "user", "assistant", "tool")}
_ROLES |= dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant") | {"human": "user"}  # ShareGPT, Gemini
# Keys of a turn that hold its chain of thought, as servers call them.
_REASONING = "reasoning_content|reasoning|thinking"
_NOT_TEXT_OF_TURN = ("tool_calls", "function_call", "tools", "functions", *records.MEDIA)
# Types of the parts of a content, as servers call them; None for a part without a type.
_TEXT_PARTS = (None, "text", "input_text", "output_text")
_THOUGHT_PARTS = ("thinking", "reasoning")
# Flags that say whether a turn is learnt: OpenAI's and Mistral's, Axolotl's.
_TRAINED = ("weight", "train", "training")
# GSM8K's annotations, such as `<<2*3=6>>`.
_CALCULATOR = re.compile(r"<<[^<>]*>>")


def texts_of(value: Any) -> Iterator[str]:
    """The texts in a value, keys aside."""
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts_of(inner)


def read_prompt_turns(turns: Sequence[Any], column: str) -> list[dict[str, str]]:
    """The turns before a reply; the chain of thought of an earlier reply goes to the chat template with it."""
    messages: list[dict[str, str]] = []
    for turn in turns:
        message, reasoning = _read_turn(turn, column)
        if reasoning is not None and reasoning.strip():
            if message["role"] != "assistant":
                raise Unusable(MISTYPED, f"a turn of {column!r} by the {message['role']} has a chain of thought")
            message["reasoning_content"] = reasoning
        messages.append(message)
    return messages


def read_reply(turn: Any, column: str, tags: Tags) -> tuple[str, str]:
    """Chain of thought and answer of an assistant turn: in tags, in a part or under a key of its own.

    Raises:
        Unusable: It is no assistant turn, is cut off or not to be learnt, or lacks one of the two.
    """
    message, reasoning = _read_turn(turn, column)
    if message["role"] != "assistant":
        raise Unusable("no assistant turn last", f"the last turn of {column!r} is {message['role']!r}")
    records.check_finished(turn)
    # Learnt as a whole or not at all: what a token weighs is set by section, for all records.
    for name in _TRAINED:
        value = turn.get(name)
        if not records.is_missing(value) and (flag := records.flag_of(value)) is not True:
            reason = "turn that is not to be learnt" if flag is False else "weight that is neither 0 nor 1"
            raise Unusable(reason, f"the last turn of {column!r} has {name!r} {value!r}")
    # An empty reasoning key beside think tags in the text is a server's default.
    text = message["content"]
    if reasoning is None or (reasoning == "" and tags_in(text, tags)):
        return split_reasoning(text, tags)
    return separate(reasoning, text, ("reasoning", "content"), tags)


def holds_reply(value: Any, tags: Tags) -> bool:
    """Whether a value has a chain of thought in it: text with think tags, or turns of which the last one has one."""
    if isinstance(value, str):
        return bool(tags_in(value, tags))
    if not isinstance(value, list) or not value or not isinstance(value[-1], dict):
        return False
    try:
        message, reasoning = _read_turn(value[-1], "")
    except Unusable:
        return False
    return bool(reasoning or tags_in(message["content"], tags))


def split_reasoning(text: str, tags: Tags = THINK_TAGS) -> tuple[str, str]:
    """Split an assistant text into chain of thought and answer, without tags and surrounding white space.

    The opening tag may be absent, since some chat templates put it into the prompt.

    Raises:
        Unusable: The tags are absent, unclosed, repeated or out of order, or one of the two parts is empty.

    >>> split_reasoning("<think>2 + 2 is 4.</think>4")
    ('2 + 2 is 4.', '4')
    """
    counts = {tag: text.count(tag) for tag in tags_in(text, (*tags, *THINK_TAGS))}
    families = [pair for pair in dict.fromkeys((*tags, *THINK_TAGS)) if not counts.keys().isdisjoint(pair)]
    if not families or not set(families) & set(tags):
        tag_names = ", ".join(tag for pair in tags for tag in pair)
        raise Unusable("no think tags", f"none of {tag_names} in {shown(text)}")
    # A second pair of tags makes it unclear which text is the chain of thought.
    if len(families) > 1 or max(counts.values()) > 1:
        raise Unusable(TAGS_TWICE, ", ".join(f"{count} x {tag}" for tag, count in counts.items()))
    opening, closing = families[0]
    if closing not in counts:
        raise Unusable(records.UNCLOSED, f"{opening} without {closing}")
    head, _, answer = text.partition(closing)
    if opening in answer:
        raise Unusable("think tags out of order", f"{closing} comes before {opening}")
    before, _, cot = head.rpartition(opening)
    if before.strip():
        raise Unusable(TEXT_BEFORE, f"{shown(before)} comes before {opening}")
    cot = _filled(cot, "chain of thought")
    opening, closing = SOLUTION_TAGS
    if opening in answer and closing not in answer:
        raise Unusable("answer never closed", f"{opening} without {closing}")
    answer = answer.strip().removeprefix(opening).removesuffix(closing)
    if opening in answer or closing in answer:
        raise Unusable("solution tags out of place", f"text outside {opening} ... {closing}, or one of them twice")
    return cot, _filled(answer, "answer")


def separate(cot: str, answer: str, names: tuple[str, str], tags: Tags) -> tuple[str, str]:
    """Chain of thought and answer that stand apart, and so have no think tags."""
    for name, text in zip(names, (cot, answer), strict=True):
        if inside := tags_in(text, (*tags, *THINK_TAGS)):
            raise Unusable(TAGS_TWICE, f"{inside[0]} in {name!r}, although the two parts are given separately")
    return _filled(cot, "chain of thought"), _filled(answer, "answer")


def tags_in(text: str, tags: Tags) -> list[str]:
    """The tags that stand in a text."""
    return list(dict.fromkeys(tag for pair in tags for tag in pair if tag in text))


def _filled(text: str, part: str) -> str:
    """Text without surrounding white space; a record is refused where nothing is left."""
    if records.is_blank(text):
        raise Unusable(f"empty {part}", f"the {part} is blank")
    return text.strip()


def _read_turn(turn: Any, column: str) -> tuple[dict[str, str], str | None]:
    """Role and text of a turn, and its chain of thought where that stands in a part or under a key of its own."""
    if not isinstance(turn, dict):
        raise Unusable(MISTYPED, f"a turn of {column!r} is {type(turn).__name__}, role and content are needed")
    records.check_text_only(turn, _NOT_TEXT_OF_TURN, f"a turn of {column!r}")
    role = value_of(turn, "role|from")
    if not isinstance(role, str) or role not in _ROLES:
        raise Unusable("unknown role", f"{role!r} in {column!r}; known are {', '.join(_ROLES)}")
    content, content_name = value_of(turn, "content|value|text|parts"), f"{column}[].content"
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, dict) and part.get("thought") is True:  # Gemini's
            kind = "thinking"
        if kind in _THOUGHT_PARTS:
            if "".join(texts).strip():
                raise Unusable(TEXT_BEFORE, f"{shown(texts[0])} comes before a part of the type {kind!r}")
            thoughts.append(_joined(value_of(part, f"{kind}|text|content"), content_name))
        elif kind in _TEXT_PARTS:
            texts.append(_joined(part, content_name))
        else:
            raise Unusable("content that is no text", f"{content_name!r} has a part of the type {kind!r}")
    text = "\n".join(texts) if isinstance(content, list) else _joined(content, content_name)
    message = {"role": _ROLES[role], "content": text}
    name = turn.get("name")
    if isinstance(name, str) and name.strip():
        message["name"] = name  # whether the chat template writes it is seen when the prompt is rendered
    under_key = value_of(turn, _REASONING)
    if under_key is None:
        return message, "\n".join(thoughts) if thoughts else None
    if thoughts:
        raise Unusable(TAGS_TWICE, "a thinking part and a key of its own in one turn")
    return message, _joined(under_key, f"{column}[] reasoning")


def _joined(value: Any, column: str) -> str:
    """Text, or the text of parts, each on lines of its own."""
    if isinstance(value, str):
        return text_of(value, column)
    if isinstance(value, dict) and value.get("type") in _TEXT_PARTS:
        return _joined(value_of(value, "text|content"), column)
    if isinstance(value, list):
        return "\n".join(_joined(part, column) for part in value)
    raise Unusable(MISTYPED, f"{column!r} is {records.kind_of_value(value)}, text is needed")


def read_columns(row: Row, columns: Columns, tags: Tags) -> Trace:
    """Prompt, chain of thought and answer in columns of their own, without tags."""
    cot = value_of(row, columns["cot"])
    if isinstance(cot, list):  # s1K keeps its trajectory in a list, and joins it so
        cot = "\n".join(text_of(part, columns["cot"]) for part in cot)
    answer = records.text_or_number(value_of(row, columns["answer"]), columns["answer"])
    names = (columns["cot"], columns["answer"])
    prompt = _prompt(row, columns)
    return Trace(prompt, *separate(text_of(cot, columns["cot"]), answer, names, tags))


def read_response(row: Row, columns: Columns, tags: Tags) -> Trace:
    """A prompt, and a response with chain of thought and answer in it: one text, or turns that end with the reply."""
    switch = columns.get("switch")
    if switch is not None and row.get(switch) == "off":
        raise Unusable("reasoning switched off", f"the column {switch!r} is 'off'")
    name = columns["response"]
    response = value_of(row, name)
    if not isinstance(response, list):
        return Trace(_prompt(row, columns), *split_reasoning(text_of(response, name), tags))
    # An empty list has no reply either; `read_reply` says so.
    *before, reply = response or [None]
    prompt = (*_prompt(row, columns), *read_prompt_turns(before, name))
    return Trace(prompt, *read_reply(reply, name, tags))


def read_generations(row: Row, columns: Columns, tags: Tags) -> Trace:
    """The first complete generation that was verified: by rule, or if there is none, by a judging model."""
    texts = records.list_of(row, columns["generations"])
    complete = _flags(row, columns.get("complete"), len(texts), absent=True)
    reasons = value_of(row, columns["finish"]) if "finish" in columns else None
    if isinstance(reasons, list) and len(reasons) == len(texts):
        complete = [
            is_complete and not records.is_cut_off(why) for is_complete, why in zip(complete, reasons, strict=True)
        ]
    records.list_of(row, columns["verified"])
    # A rule's verdict is surer than that of a judging model.
    for verdict in (columns["verified"], columns.get("judged")):
        right = _flags(row, verdict, len(texts), absent=False)
        text = next((text for text, *flags in zip(texts, right, complete, strict=True) if all(flags)), None)
        if text is not None:
            parts = split_reasoning(text_of(text, columns["generations"]), tags)
            return Trace(_prompt(row, columns), *parts)
    raise Unusable("no generation verified correct", f"none of {len(texts)} is both right and complete")


def read_conversation(row: Row, columns: Columns, tags: Tags) -> Trace:
    """Turns, the last one by the assistant; its chain of thought in tags, in a part, or under a key of its own."""
    name = columns["conversation"]
    conversation = records.list_of(row, name)
    if not conversation:
        raise Unusable("no assistant turn last", f"the last turn of {name!r} is missing")
    prompt = _with_system(read_prompt_turns(conversation[:-1], name), row, columns)
    return Trace(prompt, *read_reply(conversation[-1], name, tags))


def read_worked_solution(row: Row, columns: Columns, tags: Tags) -> Trace:
    """GSM8K: a worked solution, without its `<<...>>` calculator annotations, and its result after `####`."""
    name = columns["response"]
    cot, marker, answer = text_of(value_of(row, name), name).rpartition("####")
    if not marker:
        raise Unusable("no result after ####", f"{name!r} is {shown(answer)}")
    cot, answer = separate(_CALCULATOR.sub("", cot), answer, ("solution", "result"), tags)
    return Trace(_prompt(row, columns), cot, answer, gold=answer)


def read_gold(row: Row, column: str) -> tuple[str | None, str]:
    """The reference answer, or None and why there is none: it never refuses a record."""
    value = value_of(row, column)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list | dict | bool) and (value is False or says_something(value)):
        return None, {list: "a list of several", dict: "an object", bool: "true or false"}[type(value)]
    if not says_something(value) and value != 0:
        return None, "missing"
    try:
        gold = records.text_or_number(value, column).strip()
        gold.encode()
    except Unusable:
        return None, "neither text nor a number"
    except UnicodeEncodeError:
        return None, "not valid UTF-8"
    return (gold, "") if gold else (None, "missing")


def _prompt(row: Row, columns: Columns) -> tuple[dict[str, str], ...]:
    name = columns["prompt"]
    value = value_of(row, name)
    if isinstance(value, list):
        return _with_system(read_prompt_turns(value, name), row, columns)
    text = text_of(value, name)
    if name == "instruction" and says_something(row.get("input")):
        text = f"{text}\n\n{text_of(row['input'], 'input')}"  # Alpaca's second column: what to apply it to
    return _with_system([{"role": "user", "content": text}], row, columns)


def _with_system(messages: list[dict[str, str]], row: Row, columns: Columns) -> tuple[dict[str, str], ...]:
    """Messages behind the system prompt of a column; those that begin with one keep it."""
    text = value_of(row, columns["system"]) if "system" in columns else None
    if text is not None and (not messages or messages[0]["role"] != "system"):
        text = text_of(text, columns["system"])
        messages = [{"role": "system", "content": text}, *messages] if text.strip() else messages
    return tuple(messages)


def _flags(row: Row, column: str | None, number: int, absent: bool) -> list[bool]:
    """Verdicts on generations; those of an optional column that is no list of as many are absent."""
    values: Any = None if column is None else row.get(column)
    if not isinstance(values, list) or len(values) != number:
        return [absent] * number
    return [isinstance(value, int | float) and value == 1 for value in values]  # a text "False" is no verdict
