"""Record layouts of reasoning data sets, as one table, and the readers of the five forms in which they store a trace.

The table is tried from top to bottom, so a layout that contains another one comes before it: OpenR1-Math has
`messages` too, and s1K an empty `cot`. A new data set is a new row here, and needs a new reader only if none of the
five fits.

A reader takes a row, the columns of its roles and the think tags of its source, and raises `Unusable` where the row
cannot become a trace. Whether an answer is right matters only where a data set offers several generations with its own
verdicts.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leadspan.traces import records, turns
from leadspan.traces.records import Columns, Refusal, Row, Trace, Unusable, text_of, value_of
from leadspan.traces.settings import FormatName
from leadspan.traces.turns import THINK_TAGS, Tags, holds_reply, read_prompt_turns

Reader = Callable[[Row, Columns, Tags], Trace]
Holds = Callable[[Any, Tags], bool]  # Any: whatever a row holds

# Columns that belong to the question, and that only some data sets repeat in it.
_OF_PROMPT = ("history", "context", "passage", "choices", "options", "starter_code")
# GSM8K's annotations, such as `<<2*3=6>>`.
_CALCULATOR = re.compile(r"<<[^<>]*>>")
# Values of a column called `reasoning` or `thinking` that only turn it on or off.
_SWITCHES = {"on", "off", "true", "false", "yes", "no"}


def read_columns(row: Row, columns: Columns, tags: Tags) -> Trace:
    """Prompt, chain of thought and answer in columns of their own, without tags."""
    cot = value_of(row, columns["cot"])
    if isinstance(cot, list):  # s1K keeps its trajectory in a list, and joins it so
        cot = "\n".join(text_of(part, columns["cot"]) for part in cot)
    answer = records.text_or_number(value_of(row, columns["answer"]), columns["answer"])
    names = (columns["cot"], columns["answer"])
    return _trace(
        _prompt(row, columns), *turns.separate(text_of(cot, columns["cot"]), answer, names, tags), row, columns
    )


def read_response(row: Row, columns: Columns, tags: Tags) -> Trace:
    """A prompt, and a response with chain of thought and answer in it: one text, or turns that end with the reply."""
    switch = columns.get("switch")
    if switch is not None and row.get(switch) == "off":
        raise Unusable("reasoning switched off", f"the column {switch!r} is 'off'")
    name = columns["response"]
    response = value_of(row, name)
    if not isinstance(response, list):
        return _trace(_prompt(row, columns), *turns.split_reasoning(text_of(response, name), tags), row, columns)
    # An empty list has no reply either; `read_reply` says so.
    *before, reply = response or [None]
    prompt = [*_prompt(row, columns), *read_prompt_turns(before, name)]
    return _trace(prompt, *turns.read_reply(reply, name, tags), row, columns)


def read_generations(row: Row, columns: Columns, tags: Tags) -> Trace:
    """The first complete generation that was verified: by rule, or if there is none, by a judging model."""
    texts = records.list_of(row, columns["generations"])
    complete = _flags(row, columns.get("complete"), len(texts), absent=True)
    reasons = value_of(row, columns["finish"]) if "finish" in columns else None
    if isinstance(reasons, list) and len(reasons) == len(texts):
        complete = [
            is_complete and not turns.is_cut_off(why) for is_complete, why in zip(complete, reasons, strict=True)
        ]
    records.list_of(row, columns["verified"])
    # A rule's verdict is surer than that of a judging model.
    for verdict in (columns["verified"], columns.get("judged")):
        right = _flags(row, verdict, len(texts), absent=False)
        text = next((text for text, *flags in zip(texts, right, complete, strict=True) if all(flags)), None)
        if text is not None:
            parts = turns.split_reasoning(text_of(text, columns["generations"]), tags)
            return _trace(_prompt(row, columns), *parts, row, columns)
    raise Unusable("no generation verified correct", f"none of {len(texts)} is both right and complete")


def read_conversation(row: Row, columns: Columns, tags: Tags) -> Trace:
    """Turns, the last one by the assistant; its chain of thought in tags, in a part, or under a key of its own."""
    name = columns["conversation"]
    conversation = records.list_of(row, name)
    if not conversation:
        raise Unusable("no assistant turn last", f"the last turn of {name!r} is missing")
    prompt = _with_system(read_prompt_turns(conversation[:-1], name), row, columns)
    return _trace(prompt, *turns.read_reply(conversation[-1], name, tags), row, columns)


def read_worked_solution(row: Row, columns: Columns, tags: Tags) -> Trace:
    """GSM8K: a worked solution, without its `<<...>>` calculator annotations, and its result after `####`."""
    name = columns["response"]
    cot, marker, answer = text_of(value_of(row, name), name).rpartition("####")
    if not marker:
        raise Unusable("no result after ####", f"{name!r} is {records.shown(answer)}")
    cot, answer = turns.separate(_CALCULATOR.sub("", cot), answer, ("solution", "result"), tags)
    return Trace(tuple(_prompt(row, columns)), cot, answer, gold=answer)


def _trace(prompt: Sequence[dict[str, str]], cot: str, answer: str, row: Row, columns: Columns) -> Trace:
    """A trace with its reference answer, or why it has none: a reference answer never refuses a record."""
    if "gold" not in columns:
        return Trace(tuple(prompt), cot, answer)
    value = value_of(row, columns["gold"])
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    gold, fault = "", "missing"
    if isinstance(value, list | dict | bool) and (value is False or records.says_something(value)):
        fault = {list: "a list of several", dict: "an object", bool: "true or false"}[type(value)]
    elif records.says_something(value) or value == 0:
        try:
            gold = records.text_or_number(value, columns["gold"]).strip()
            gold.encode()
        except Unusable:
            fault = "neither text nor a number"
        except UnicodeEncodeError:
            gold, fault = "", "not valid UTF-8"
    return Trace(tuple(prompt), cot, answer, gold or None, gold_fault="" if gold else fault)


def _prompt(row: Row, columns: Columns) -> list[dict[str, str]]:
    name = columns["prompt"]
    value = value_of(row, name)
    if isinstance(value, list):
        return _with_system(read_prompt_turns(value, name), row, columns)
    text = text_of(value, name)
    if name == "instruction" and records.says_something(row.get("input")):
        text = f"{text}\n\n{text_of(row['input'], 'input')}"  # Alpaca's second column: what to apply it to
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


def _is_turns(value: Any, _tags: Tags) -> bool:
    """Whether a value is turns, or one list per key of turns."""
    if isinstance(value, dict):
        return bool(value) and all(isinstance(part, list) for part in value.values())
    return isinstance(value, list)


def _ends_with_question(value: Any, _tags: Tags) -> bool:
    """Whether a value is turns without a reply."""
    last = value[-1] if isinstance(value, list) and value else None
    return isinstance(last, dict) and value_of(last, "role|from") in ("user", "human")


def _is_no_switch(value: Any, _tags: Tags) -> bool:
    """Whether a value may be a chain of thought, and does not just say whether there is one."""
    return not isinstance(value, bool) and (not isinstance(value, str) or value.strip().lower() not in _SWITCHES)


@dataclass(frozen=True, slots=True)
class Format:
    """One record layout; of its columns, names in order of preference are separated by `|`."""

    name: FormatName
    needs: Columns  # column of each role that every row must have
    read: Reader
    uses: Columns = field(default_factory=dict)  # columns that are read from the rows that have them
    also: tuple[FormatName, ...] = ()  # other names of the same layout
    # Tests that the format needs to be detected: of the content of a role's column, and of a whole row; and in words.
    holds: Mapping[str, Holds] = field(default_factory=dict)
    fits: Callable[[Row], bool] = lambda _row: True
    note: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """A format with the column of each role in a source, and the think tags of the source."""

    form: Format
    columns: Columns
    tags: Tags

    def claims(self, row: Row) -> bool:
        """Whether a row has any of the columns that the layout needs."""
        return any(self.columns[role] in row for role in self.form.needs)


# Columns beside the turns of a conversation.
_CONVERSATION_USES = {
    "system": "system|system_prompt",
    "gold": "gold|ground_truth|ground_truth_solution|reference_answer|expected_answer|answer",
}
# Names of the chain of thought in a column of its own, the clearest first.
_COT = "cot|reasoning|thinking|reasoning_content|chain_of_thought|think|thought|rationale|reasoning_trace|Complex_CoT"
_COLUMNS_USES = {"gold": "gold|ground_truth|reference_answer|expected_answer", "system": "system|system_prompt"}

FORMATS = (
    Format(
        "openr1_math",
        {"prompt": "problem", "generations": "generations", "verified": "correctness_math_verify"},
        read_generations,
        uses={
            "gold": "answer",
            "judged": "correctness_llama",
            "complete": "is_reasoning_complete",
            "finish": "finish_reasons",
        },
    ),
    Format(
        "s1k",
        {"prompt": "question", "cot": "deepseek_thinking_trajectory", "answer": "deepseek_attempt"},
        read_columns,
        uses={"gold": "solution|answer"},
    ),
    Format(
        "s1k",
        {"prompt": "question", "cot": "thinking_trajectories", "answer": "attempt"},
        read_columns,
        uses={"gold": "solution|answer"},
    ),
    Format(
        "synthetic_1",
        {"prompt": "prompt", "response": "llm_response"},
        read_response,
        uses={"gold": "gold_standard_solution"},
    ),
    Format(
        "llama_nemotron",
        {"prompt": "input", "response": "output"},
        read_response,
        uses={"system": "system_prompt", "switch": "reasoning"},
        # `input` is the whole prompt, where Alpaca has an `instruction` too, and `reasoning` is a mere switch.
        fits=lambda row: "instruction" not in row and row.get("reasoning") in (None, "on", "off"),
        note=" (and no instruction)",
    ),
    Format(
        "openthoughts",
        {"conversation": "conversations"},
        read_conversation,
        uses=_CONVERSATION_USES,
        also=("bespoke_stratos",),
        # The last turn has the tags of this family, not `<think>`.
        holds={"conversation": lambda value, _: isinstance(value, list) and holds_reply(value, THINK_TAGS[1:])},
        note=" (with <|end_of_thought|>)",
    ),
    Format(
        "openthoughts",
        {"prompt": "problem", "cot": "deepseek_reasoning", "answer": "deepseek_solution"},
        read_columns,
        uses={"gold": "ground_truth_solution"},
    ),
    Format(
        "columns",
        {"prompt": "messages|conversations|conversation", "cot": _COT, "answer": "answer|response"},
        read_columns,
        uses=_COLUMNS_USES,
        holds={"prompt": _ends_with_question, "cot": _is_no_switch},
        note=" (turns that end with the user's)",
    ),
    Format(
        "messages",
        {"conversation": "messages|conversations|conversation"},
        read_conversation,
        uses=_CONVERSATION_USES,
        holds={"conversation": _is_turns},
        note=" (a list of turns)",
    ),
    Format(
        "columns",
        {
            "prompt": "prompt|problem|question|instruction|query|Question|input",
            "cot": _COT,
            "answer": "answer|response|solution|final_answer|output|Response|content",
        },
        read_columns,
        uses=_COLUMNS_USES,
        holds={"cot": _is_no_switch},
    ),
    Format(
        "prompt_response",
        {
            "prompt": "prompt|problem|question|instruction|query|input",
            "response": "response|completion|output|generated_solution|generation|generated_text|model_output"
            "|answer|solution",
        },
        read_response,
        uses={
            "gold": "gold|ground_truth|reference_answer|expected_answer|final_answer|answer",
            "system": "system|system_prompt",
        },
        holds={"response": holds_reply},
        note=" (with think tags inside)",
    ),
    Format(
        "gsm8k",
        {"prompt": "question", "response": "answer"},
        read_worked_solution,
        holds={"response": lambda value, _: isinstance(value, str) and "####" in value},
        note=" (with ####)",
    ),
)


def parse(row: Row, layout: Layout, location: str, teacher: str | None = None) -> Trace | Refusal:
    """Turn one row into a trace, or say why it cannot be one; its location stands in messages.

    `teacher` is the column that names the teacher of a trace, if there is one.
    """
    try:
        turns.check_text_only(row, turns.NOT_TEXT_OF_RECORD, "the record")
        turns.check_finished(row)
        trace = layout.form.read(row, layout.columns, layout.tags)
        if not any(turn["role"] == "user" and turn["content"].strip() for turn in trace.messages):
            raise Unusable("empty prompt", "no user turn with text")
        prompt = "\n".join(turn["content"] for turn in trace.messages)
        for name in _OF_PROMPT:
            is_used = name in layout.columns.values()
            if not is_used and any(part not in prompt for part in turns.texts_of(row.get(name))):
                reason = "a part of the question in a column of its own"
                raise Unusable(reason, f"{name!r} is not in the prompt; join the two")
        if teacher is not None and (name := value_of(row, teacher)) is not None:
            trace = replace(trace, teacher=records.text_or_number(name, teacher))
        turn_texts = (part for turn in trace.messages for part in turn.values())
        text = "".join((trace.cot, trace.answer, trace.teacher, *turn_texts))
        if b"\0" in text.encode():
            raise Unusable("NUL character in the text", "it is no text, or was damaged")
    except Unusable as fault:
        reason, detail = fault.args
        return Refusal(reason, detail, location)
    except UnicodeEncodeError:
        return Refusal("not valid UTF-8", "the text has one half of a surrogate pair", location)
    except RecursionError:
        return Refusal("nested too deeply", "lists in lists without end, where text is needed", location)
    return replace(trace, place=location)
