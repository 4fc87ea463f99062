"""Record layouts of reasoning data sets, as one table, and which of them a source has.

The table is tried from top to bottom, so a layout that contains another one comes before it: OpenR1-Math has
`messages` too, and s1K an empty `cot`. A new data set is a new row here, and needs a new reader only if none of the
five fits.

No single row decides on the layout of a source: the format is chosen that fits most of many rows, and its columns are
those that most rows fill, in the order of preference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leadspan.errors import DataError
from leadspan.traces import records, turns
from leadspan.traces.files import Record
from leadspan.traces.records import Columns, Refusal, Row, Trace, Unusable, is_missing, value_of
from leadspan.traces.settings import FormatName, TraceSource
from leadspan.traces.turns import THINK_TAGS, Tags, holds_reply

Holds = Callable[[Any, Tags], bool]  # Any: whatever a row holds

# Columns that belong to the question, and that only some data sets repeat in it.
_OF_PROMPT = ("history", "context", "passage", "choices", "options", "starter_code")
# Values of a column called `reasoning` or `thinking` that only turn it on or off.
_SWITCHES = {"on", "off", "true", "false", "yes", "no"}
# Formats whose columns the settings may name; the others have fixed names.
_MAPPABLE = ("columns", "prompt_response", "messages")
_SHOWN_COLUMNS = 40  # columns that a message lists


@dataclass(frozen=True, slots=True)
class Format:
    """One record layout; of its columns, names in order of preference are separated by `|`."""

    name: FormatName
    needs: Columns  # column of each role that every row must have
    read: Callable[[Row, Columns, Tags], Trace]
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


# Columns beside the turns of a conversation.
_CONVERSATION_USES = {
    "system": "system|system_prompt",
    "gold": "gold|ground_truth|ground_truth_solution|reference_answer|expected_answer|answer",
}
# Names of the chain of thought in a column of its own, the clearest first.
_COT = "cot|reasoning|thinking|reasoning_content|chain_of_thought|think|thought|rationale|reasoning_trace|Complex_CoT"
_COLUMNS_USES = {"gold": "gold|ground_truth|reference_answer|expected_answer", "system": "system|system_prompt"}

FORMATS = (
    Format("openr1_math", {"prompt": "problem", "generations": "generations", "verified": "correctness_math_verify"},
           turns.read_generations,
           uses={"gold": "answer", "judged": "correctness_llama", "complete": "is_reasoning_complete",
                 "finish": "finish_reasons"}),
    Format("s1k", {"prompt": "question", "cot": "deepseek_thinking_trajectory", "answer": "deepseek_attempt"},
           turns.read_columns, uses={"gold": "solution|answer"}),
    Format("s1k", {"prompt": "question", "cot": "thinking_trajectories", "answer": "attempt"},
           turns.read_columns, uses={"gold": "solution|answer"}),
    Format("synthetic_1", {"prompt": "prompt", "response": "llm_response"},
           turns.read_response, uses={"gold": "gold_standard_solution"}),
    # `input` is the whole prompt, where Alpaca has an `instruction` too, and `reasoning` is a mere switch.
    Format("llama_nemotron", {"prompt": "input", "response": "output"},
           turns.read_response, uses={"system": "system_prompt", "switch": "reasoning"},
           fits=lambda row: "instruction" not in row and row.get("reasoning") in (None, "on", "off"),
           note=" (and no instruction)"),
    # The last turn has the tags of this family, not `<think>`.
    Format("openthoughts", {"conversation": "conversations"},
           turns.read_conversation, uses=_CONVERSATION_USES, also=("bespoke_stratos",),
           holds={"conversation": lambda reply, _: isinstance(reply, list) and holds_reply(reply, THINK_TAGS[1:])},
           note=" (with <|end_of_thought|>)"),
    Format("openthoughts", {"prompt": "problem", "cot": "deepseek_reasoning", "answer": "deepseek_solution"},
           turns.read_columns, uses={"gold": "ground_truth_solution"}),
    Format("columns", {"prompt": "messages|conversations|conversation", "cot": _COT, "answer": "answer|response"},
           turns.read_columns, uses=_COLUMNS_USES, holds={"prompt": _ends_with_question, "cot": _is_no_switch},
           note=" (turns that end with the user's)"),
    Format("messages", {"conversation": "messages|conversations|conversation"},
           turns.read_conversation, uses=_CONVERSATION_USES, holds={"conversation": _is_turns},
           note=" (a list of turns)"),
    Format("columns", {"prompt": "prompt|problem|question|instruction|query|Question|input", "cot": _COT,
                       "answer": "answer|response|solution|final_answer|output|Response|content"},
           turns.read_columns, uses=_COLUMNS_USES, holds={"cot": _is_no_switch}),
    Format("prompt_response", {"prompt": "prompt|problem|question|instruction|query|input",
                               "response": "response|completion|output|generated_solution|generation|generated_text"
                                           "|model_output|answer|solution"},
           turns.read_response,
           uses={"gold": "gold|ground_truth|reference_answer|expected_answer|final_answer|answer",
                 "system": "system|system_prompt"},
           holds={"response": holds_reply}, note=" (with think tags inside)"),
    Format("gsm8k", {"prompt": "question", "response": "answer"},
           turns.read_worked_solution,
           holds={"response": lambda value, _: isinstance(value, str) and "####" in value}, note=" (with ####)"),
)  # fmt: skip


def detect(source: TraceSource, records: Sequence[Record]) -> list[Layout]:
    """The layouts of a source; the first one is that of most rows.

    Args:
        source: Its `format`, `columns` and think tags decide, where they are given.
        records: Many of its rows, at least one.

    Raises:
        DataError: No format fits, or the named one lacks columns; lists the columns of the source and those needed.
    """
    formats = _candidates(source)
    tags = THINK_TAGS if source.think_open is None else ((source.think_open, source.think_close or ""),)
    rows = [record.row for record in records]
    there = {name for row in rows for name in row}
    # What the settings name is searched for in all rows, and its misfits are refused one by one.
    is_named = source.format is not None or bool(source.columns.keys() - {"teacher"})
    layout = _best(formats, rows, tags, is_named) if there.issuperset(source.columns.values()) else None
    if layout is None:
        names = [name.encode("utf-8", "backslashreplace").decode()[:60] for name in rows[0]]
        columns = ", ".join(names[:_SHOWN_COLUMNS]) + (", ..." if len(names) > _SHOWN_COLUMNS else "") or "(none)"
        form_name = f"the format {source.format!r}" if source.format else "any known format"
        lines = [f"{records[0].place}: the columns {columns} are not those of {form_name}. Needed are ('|' means or):"]
        lines += [f"  {form.name}: {', '.join(form.needs.values())}{form.note}" for form in formats]
        lines += [
            f"  columns: {role} is set to {name!r}, and there is no such column"
            for role, name in source.columns.items()
            if name not in there
        ]
        if objects := [name for name, value in zip(names, rows[0].values(), strict=True) if isinstance(value, dict)]:
            lines.append(f"  objects are not looked into: {', '.join(objects)}; write their texts or turns as columns")
        remedy = "Name the layout with `format`, or map it with `columns: {prompt: ..., cot: ..., answer: ...}`"
        remedy = f"{remedy}, `{{prompt: ..., response: ...}}` or `{{conversation: ...}}`; think tags other than"
        tag_names = " and ".join(opening for opening, _ in tags)
        raise DataError("\n".join([*lines, f"{remedy} {tag_names} are set with `think_open` and `think_close`."]))
    layouts = []
    while layout is not None:
        layouts.append(layout)
        rows = [] if is_named else [row for row in rows if not layouts[-1].claims(row)]
        layout = _best(formats, rows, tags, is_named) if rows else None
    return layouts


def _candidates(source: TraceSource) -> list[Format]:
    """The formats that the settings leave, with the columns that they name."""
    format_name = source.format
    # The column of teachers belongs to any layout, so it takes no part in detecting one.
    columns: Columns = {role: name for role, name in source.columns.items() if role != "teacher"}
    if columns and format_name is not None and format_name not in _MAPPABLE:
        names = ", ".join(f"`format: {name}`" for name in _MAPPABLE)
        raise DataError(f"{source.path}: `columns` belongs to {names}, not to `format: {format_name}`; drop one")
    formats = [form for form in FORMATS if format_name is None or format_name in (form.name, *form.also)]
    if columns:
        names = _MAPPABLE if format_name is None else (format_name,)
        formats = [form for form in formats if form.name in names and columns.keys() <= {*form.needs, *form.uses}]
    if not formats:
        layout = f"`format: {format_name}` has" if format_name else f"one of {', '.join(_MAPPABLE)} has"
        raise DataError(f"{source.path}: no {layout} all the roles {', '.join(columns)} of `columns`; drop some")

    return [
        replace(
            form,
            needs={role: columns.get(role, names) for role, names in form.needs.items()},
            uses={role: columns.get(role, names) for role, names in form.uses.items()},
        )
        for form in formats
    ]


def _best(formats: Sequence[Format], rows: Sequence[Row], tags: Tags, is_named: bool) -> Layout | None:
    """The first format that fits at least half as many rows as the one that fits most, with its columns.

    Where the settings name the layout, columns of other content, and in the end empty ones, are taken too: their rows
    are refused, each with its reason.
    """
    # From the strictest rule to the laxest: what a lax rule alone accepts is taken only where the settings name it.
    for needs_value, needs_content in ((True, True), (True, False), (False, True), (False, False)):
        if not (needs_content or is_named):
            continue
        layouts: list[tuple[int, Layout]] = []
        for form in formats:
            holds = form.holds if needs_content else {}
            columns = {
                role: _fullest(rows, names.split("|"), holds.get(role), tags, needs_value)
                for role, names in form.needs.items()
            }
            number = sum(
                all(_fills(row, name, holds.get(role), tags, needs_value) for role, name in columns.items())
                and (is_named or form.fits(row))
                for row in rows
            )
            if number or (is_named and all(columns.values()) and not (needs_value or needs_content)):
                needed = set(columns.values())
                # Optional columns that the rows have, none of them a needed one.
                for role, names in form.uses.items():
                    free = [name for name in names.split("|") if name not in needed]
                    if column := _fullest(rows, free, None, tags, needs_value=True):
                        columns[role] = column
                layouts.append((number, Layout(form, columns, tags)))
        if layouts:
            most = max(number for number, _ in layouts)
            return next(layout for number, layout in layouts if 2 * number >= most)
    return None


def _fills(row: Row, column: str, holds: Holds | None, tags: Tags, needs_value: bool) -> bool:
    """Whether a row has a column, where asked for a value in it, and content that a test accepts."""
    if column not in row or (needs_value and is_missing(row[column])):
        return False
    try:
        return holds is None or holds(row[column], tags)
    except RecursionError:
        return False


def _fullest(rows: Sequence[Row], names: Sequence[str], holds: Holds | None, tags: Tags, needs_value: bool) -> str:
    """The first column that at least half as many rows fill as the one that most rows fill; "" where none is."""
    numbers = {name: sum(_fills(row, name, holds, tags, needs_value) for row in rows) for name in names}
    # Half as many is enough for a preferred name: rows may leave a good column empty now and then.
    most = max(numbers.values(), default=0)
    return next((name for name, number in numbers.items() if number and 2 * number >= most), "")


def parse(row: Row, layout: Layout, location: str, teacher: str | None = None) -> Trace | Refusal:
    """Turn one row into a trace, or say why it cannot be one; its location stands in messages.

    `teacher` is the column that names the teacher of a trace, if there is one.
    """
    try:
        records.check_text_only(row, records.NOT_TEXT_OF_RECORD, "the record")
        records.check_finished(row)
        trace = layout.form.read(row, layout.columns, layout.tags)
        if "gold" in layout.columns:
            gold, fault = turns.read_gold(row, layout.columns["gold"])
            trace = replace(trace, gold=gold, gold_fault=fault)
        if all(turn["role"] != "user" or records.is_blank(turn["content"]) for turn in trace.messages):
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
