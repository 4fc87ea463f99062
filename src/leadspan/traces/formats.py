"""Record layouts of reasoning data sets, as one table.

The table is tried from top to bottom, so a layout that contains another one comes before it: OpenR1-Math has
`messages` too, and s1K an empty `cot`. A new data set is a new row here, and needs a new reader only if none of the
five fits. The layout and columns of a source are detected from many of its rows, never from one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from leadspan.traces import parsing
from leadspan.traces.records import Columns, Refusal, Row, Trace, Unusable, value_of
from leadspan.traces.settings import FormatName
from leadspan.traces.turns import THINK_TAGS, Tags, check_prompt, check_record, holds_reply

# Values of a column called `reasoning` or `thinking` that only turn it on or off.
_SWITCHES = {"on", "off", "true", "false", "yes", "no"}
Holds = Callable[[Any, Tags], bool]  # Any: whatever a row holds


def _is_turns(value: Any, _tags: Tags) -> bool:
    return isinstance(value, list) or (
        isinstance(value, dict) and bool(value) and all(isinstance(part, list) for part in value.values())
    )


def _ends_with_question(value: Any, _tags: Tags) -> bool:
    """Whether a value is turns without a reply."""
    last = value[-1] if isinstance(value, list) and value else None
    return isinstance(last, dict) and value_of(last, "role|from") in ("user", "human")


def _is_no_switch(value: Any, _tags: Tags) -> bool:
    """Whether a value may be a chain of thought, and does not just say whether there is one."""
    return not isinstance(value, bool) and (not isinstance(value, str) or value.strip().lower() not in _SWITCHES)


@dataclass(frozen=True, slots=True)
class Format:
    """One record layout.

    Attributes:
        name: Its name in `TraceSource.format`.
        needs: Column of each role that every row must have; names in order of preference are separated by `|`.
        read: Makes a trace, without its place, of a row, the columns of its roles and the think tags.
        uses: Columns that are read from the rows that have them.
        also: Other names of the same layout.
        holds: Test of the content of a role's column that the format needs to be detected.
        fits: Test of a whole row that the format needs to be detected, besides having the columns.
        note: These tests in words, for messages.
    """

    name: FormatName
    needs: Columns
    read: parsing.Reader
    uses: Columns = field(default_factory=dict)
    also: tuple[FormatName, ...] = ()
    holds: Mapping[str, Holds] = field(default_factory=dict)
    fits: Callable[[Row], bool] = lambda _row: True
    note: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """A format with the columns that a source has.

    Attributes:
        form: The format.
        columns: Column of each role.
        tags: Think tags of the source.
    """

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
        parsing.read_generations,
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
        parsing.read_columns,
        uses={"gold": "solution|answer"},
    ),
    Format(
        "s1k",
        {"prompt": "question", "cot": "thinking_trajectories", "answer": "attempt"},
        parsing.read_columns,
        uses={"gold": "solution|answer"},
    ),
    Format(
        "synthetic_1",
        {"prompt": "prompt", "response": "llm_response"},
        parsing.read_response,
        uses={"gold": "gold_standard_solution"},
    ),
    Format(
        "llama_nemotron",
        {"prompt": "input", "response": "output"},
        parsing.read_response,
        uses={"system": "system_prompt", "switch": "reasoning"},
        # `input` is the whole prompt, where Alpaca has an `instruction` too, and `reasoning` is a mere switch.
        fits=lambda row: "instruction" not in row and row.get("reasoning") in (None, "on", "off"),
        note=" (and no instruction)",
    ),
    Format(
        "openthoughts",
        {"conversation": "conversations"},
        parsing.read_conversation,
        uses=_CONVERSATION_USES,
        also=("bespoke_stratos",),
        # The last turn has the tags of this family, not `<think>`.
        holds={"conversation": lambda value, _: isinstance(value, list) and holds_reply(value, THINK_TAGS[1:])},
        note=" (with <|end_of_thought|>)",
    ),
    Format(
        "openthoughts",
        {"prompt": "problem", "cot": "deepseek_reasoning", "answer": "deepseek_solution"},
        parsing.read_columns,
        uses={"gold": "ground_truth_solution"},
    ),
    Format(
        "columns",
        {"prompt": "messages|conversations|conversation", "cot": _COT, "answer": "answer|response"},
        parsing.read_columns,
        uses=_COLUMNS_USES,
        holds={"prompt": _ends_with_question, "cot": _is_no_switch},
        note=" (turns that end with the user's)",
    ),
    Format(
        "messages",
        {"conversation": "messages|conversations|conversation"},
        parsing.read_conversation,
        uses=_CONVERSATION_USES,
        holds={"conversation": _is_turns},
        note=" (a list of turns)",
    ),
    Format(
        "columns",
        {
            "prompt": "prompt|problem|question|instruction|query|Question",
            "cot": _COT,
            "answer": "answer|response|solution|final_answer|output|Response",
        },
        parsing.read_columns,
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
        parsing.read_response,
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
        parsing.read_worked_solution,
        holds={"response": lambda value, _: isinstance(value, str) and "####" in value},
        note=" (with ####)",
    ),
)


def parse(row: Row, layout: Layout, location: str) -> Trace | Refusal:
    """Turn one row into a trace, or say why it cannot be one; its location stands in messages."""
    try:
        check_record(row)
        trace = layout.form.read(row, layout.columns, layout.tags)
        if not any(turn["role"] == "user" and turn["content"].strip() for turn in trace.messages):
            raise Unusable("empty prompt", "no user turn with text")
        check_prompt(row, layout.columns.values(), "\n".join(turn["content"] for turn in trace.messages))
        text = "".join((trace.cot, trace.answer, *(part for turn in trace.messages for part in turn.values())))
        if b"\0" in text.encode():
            raise Unusable("NUL character in the text", "it is no text, or was damaged")
    except Unusable as fault:
        return Refusal(fault.reason, fault.detail, location)
    except UnicodeEncodeError:
        return Refusal("not valid UTF-8", "the text has one half of a surrogate pair", location)
    except RecursionError:
        return Refusal("nested too deeply", "lists in lists without end, where text is needed", location)
    return replace(trace, place=location)
