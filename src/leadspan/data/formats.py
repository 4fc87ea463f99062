"""Record layouts of reasoning data sets, as one table.

The table is tried from top to bottom, so a layout that contains another one stands above it: OpenR1-Math has
`messages` too, and s1K an empty `cot`. A new data set is a new row here, and a new reader only if none of the
five fits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from leadspan.data import parsing
from leadspan.data.config import FormatName, TraceSource
from leadspan.data.parsing import Columns, Row, Unusable
from leadspan.data.records import Refusal, Trace
from leadspan.errors import DataError


def _always(_row: Row) -> bool:
    return True


def _has_thought_tags(row: Row) -> bool:
    """Whether the last turn of `conversations` has the tags of the OpenThoughts family."""
    turns = row["conversations"]
    return isinstance(turns, list) and bool(turns) and "_of_thought|>" in str(turns[-1])


def _has_turns(row: Row) -> bool:
    return any(isinstance(row.get(name), list) for name in ("messages", "conversations"))


def _is_nemotron(row: Row) -> bool:
    """Whether `input` is the whole prompt (Alpaca has an `instruction` too) and `reasoning` a mere switch."""
    return "instruction" not in row and row.get("reasoning") in (None, "on", "off")


def _has_result_marker(row: Row) -> bool:
    return "####" in str(row["answer"])


@dataclass(frozen=True, slots=True)
class Format:
    """One record layout.

    Attributes:
        name: Its name in `TraceSource.format`.
        needs: Column of each role that every row must have.
        read: Makes a trace, without its place, of a row and the columns of its roles.
        uses: Columns that are read from the rows that have them.
        also: Other names of the same layout.
        fits: What a row must satisfy beyond having the columns, for the format to be detected.
        note: The same in words, for messages.
    """

    name: FormatName
    needs: Columns
    read: Callable[[Row, Columns], Trace]
    uses: Columns = field(default_factory=dict)
    also: tuple[FormatName, ...] = ()
    fits: Callable[[Row], bool] = _always
    note: str = ""


_CONVERSATION_USES = {
    "system": "system|system_prompt",
    "gold": "gold|ground_truth|ground_truth_solution|reference_answer|answer",
}

FORMATS = (
    Format(
        "openr1_math",
        {"prompt": "problem", "generations": "generations", "verified": "correctness_math_verify"},
        parsing.read_generations,
        uses={"gold": "answer", "judged": "correctness_llama", "complete": "is_reasoning_complete"},
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
        fits=_is_nemotron,
        note=" (and no instruction)",
    ),
    Format(
        "openthoughts",
        {"conversation": "conversations"},
        parsing.read_conversation,
        uses=_CONVERSATION_USES,
        also=("bespoke_stratos",),
        fits=_has_thought_tags,
        note=" (with <|end_of_thought|>)",
    ),
    Format(
        "openthoughts",
        {"prompt": "problem", "cot": "deepseek_reasoning", "answer": "deepseek_solution"},
        parsing.read_columns,
        uses={"gold": "ground_truth_solution"},
    ),
    Format(
        "messages",
        {"conversation": "messages|conversations"},
        parsing.read_conversation,
        uses=_CONVERSATION_USES,
        fits=_has_turns,
        note=" (a list of turns)",
    ),
    Format(
        "columns",
        {
            "prompt": "prompt|problem|question|instruction",
            "cot": "cot|reasoning|thinking|reasoning_content|chain_of_thought",
            "answer": "answer|response|solution|final_answer|output",
        },
        parsing.read_columns,
        uses={"gold": "gold|ground_truth|reference_answer", "system": "system|system_prompt"},
    ),
    Format(
        "gsm8k",
        {"prompt": "question", "response": "answer"},
        parsing.read_worked_solution,
        fits=_has_result_marker,
        note=" (with ####)",
    ),
)


def bind(source: TraceSource, row: Row, place: str) -> Format:
    """The format of a source with the columns it has, told from one of its rows.

    Args:
        source: Its `format` and `columns` decide, where they are given.
        row: The first record.
        place: Where that record stands.

    Raises:
        DataError: No format fits, or the named one lacks columns; tells what was found and what is needed.
    """
    wanted = source.format or ("columns" if source.columns else None)
    if source.columns and wanted != "columns":
        raise DataError(f"{source.path}: `columns` belongs to `format: columns`, not to `format: {wanted}`; drop one")
    known = [form for form in FORMATS if wanted is None or wanted in (form.name, *form.also)]
    known = [_renamed(form, source.columns) for form in known]
    are_there = all(name in row for name in source.columns.values())
    for form in known:
        needs = {role: _column_of(row, names) for role, names in form.needs.items()}
        if are_there and all(needs.values()) and (wanted is not None or form.fits(row)):
            return replace(form, needs=needs)
    raise DataError(_describe_misfit(known, wanted, source, row, place))


def parse(row: Row, form: Format, place: str) -> Trace | Refusal:
    """Turn one row into a trace, or say why it cannot be one.

    Args:
        row: The record.
        form: Its format, as `bind` gives it.
        place: Where it stands.
    """
    try:
        trace = form.read(row, {**form.uses, **form.needs})
        if not any(turn["role"] == "user" and turn["content"].strip() for turn in trace.messages):
            raise Unusable("empty prompt", "no user turn with text")
        "".join((trace.cot, trace.answer, *(turn["content"] for turn in trace.messages))).encode()
    except Unusable as fault:
        return Refusal(fault.reason, fault.detail, place)
    except UnicodeEncodeError:
        return Refusal("not valid UTF-8", "the text has one half of a surrogate pair", place)
    return replace(trace, place=place)


def _column_of(row: Row, names: str) -> str:
    """The first of these columns that has a value, else the first one there, else nothing."""
    there = [name for name in names.split("|") if name in row]
    return next((name for name in there if row[name] is not None), there[0] if there else "")


def _renamed(form: Format, columns: Mapping[Any, str]) -> Format:  # Any: the roles are a Literal in the settings
    chosen = {role: columns.get(role, names) for role, names in {**form.needs, **form.uses}.items()}
    return replace(
        form,
        needs={role: chosen[role] for role in form.needs},
        uses={role: chosen[role] for role in form.uses},
    )


def _describe_misfit(known: list[Format], wanted: str | None, source: TraceSource, row: Row, place: str) -> str:
    found = ", ".join(row) or "(none)"
    fit = "are not those of any known format" if wanted is None else f"are not those of the format {wanted!r}"
    needed = [f"  {form.name}: {', '.join(form.needs.values())}{form.note}" for form in known]
    mapped = [f"  columns: {role} is to be {name!r}" for role, name in source.columns.items() if name not in row]
    return "\n".join(
        [
            f"{place}: the columns {found} {fit}; needed are ('|' means or)",
            *needed,
            *mapped,
            "Name the layout with `format`, or map it with `columns: {prompt: ..., cot: ..., answer: ...}`.",
        ]
    )
