"""The layouts of a source, detected from many of its rows.

No single row decides: the format is chosen that fits most rows, and its columns are those that most rows fill, in the
order of preference. A row that lacks one of them is refused by itself. Rows that have none of the columns of the chosen
layout, for example where files of several data sets lie together, may have another layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from leadspan.errors import DataError
from leadspan.traces.files import Record
from leadspan.traces.formats import FORMATS, Format, Layout
from leadspan.traces.records import Columns, Row, is_missing
from leadspan.traces.settings import TraceSource
from leadspan.traces.turns import THINK_TAGS, Tags

# Formats whose columns the settings may name; the others have fixed names.
_MAPPABLE = ("columns", "prompt_response", "messages")
# Columns that an error message lists.
_SHOWN_COLUMNS = 40


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
    is_named = source.format is not None or bool(source.columns)
    layout = _best(formats, rows, tags, is_named) if there.issuperset(source.columns.values()) else None
    if layout is None:
        names = [name.encode("utf-8", "backslashreplace").decode()[:60] for name in rows[0]]
        columns = ", ".join(names[:_SHOWN_COLUMNS]) + (", ..." if len(names) > _SHOWN_COLUMNS else "") or "(none)"
        form_name = f"the format {source.format!r}" if source.format else "any known format"
        lines = [f"{records[0].place}: the columns {columns} are not those of {form_name}; needed are ('|' means or)"]
        lines += [f"  {form.name}: {', '.join(form.needs.values())}{form.note}" for form in formats]
        lines += [f"  columns: {role} is to be {name!r}" for role, name in source.columns.items() if name not in there]
        remedy = "Name the layout with `format`, or map it with `columns: {prompt: ..., cot: ..., answer: ...}`"
        raise DataError("\n".join([*lines, f"{remedy}, `{{prompt: ..., response: ...}}` or `{{conversation: ...}}`."]))
    layouts = []
    while layout is not None:
        layouts.append(layout)
        rows = [] if is_named else [row for row in rows if not layouts[-1].claims(row)]
        layout = _best(formats, rows, tags, is_named) if rows else None
    return layouts


def layout_of(row: Row, layouts: Sequence[Layout]) -> Layout:
    """The first layout of which a row has a column, else that of most rows, whose refusal says what the row lacks."""
    return next((layout for layout in layouts if layout.claims(row)), layouts[0])


def _candidates(source: TraceSource) -> list[Format]:
    """The formats that the settings leave, with the columns that they name."""
    format_name = source.format
    columns: Columns = {**source.columns}
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

    def named(roles: Columns) -> Columns:
        return {role: columns.get(role, names) for role, names in roles.items()}

    return [replace(form, needs=named(form.needs), uses=named(form.uses)) for form in formats]


@dataclass(frozen=True, slots=True)
class _Rule:
    """When a row counts as filling a column: it has the column, a value in it, and content that the format needs."""

    tags: Tags
    needs_value: bool
    needs_content: bool

    def fills(self, row: Row, column: str, form: Format, role: str) -> bool:
        if column not in row or (self.needs_value and is_missing(row[column])):
            return False
        holds = form.holds.get(role) if self.needs_content else None
        try:
            return holds is None or holds(row[column], self.tags)
        except RecursionError:
            return False

    def fullest(self, rows: Sequence[Row], names: str, form: Format, role: str) -> str:
        """The first column that at least half as many rows fill as the one that most rows fill; "" where none is."""
        numbers = {name: sum(self.fills(row, name, form, role) for row in rows) for name in names.split("|")}
        most = max(numbers.values())
        # Half as many is enough for a preferred name: rows may leave a good column empty now and then.
        return next((name for name, number in numbers.items() if number and 2 * number >= most), "")


def _best(formats: Sequence[Format], rows: Sequence[Row], tags: Tags, is_named: bool) -> Layout | None:
    """The first format that fits at least half as many rows as the one that fits most, with its columns.

    Where the settings name the layout, columns of other content, and in the end empty ones, are taken too: their rows
    are refused, each with its reason.
    """
    optional = _Rule((), needs_value=True, needs_content=False)
    # From the strictest rule to the laxest: what a lax rule alone accepts is taken only where the settings name it.
    for needs_value, needs_content in ((True, True), (True, False), (False, True), (False, False)):
        if not (needs_content or is_named):
            continue
        rule = _Rule(tags, needs_value, needs_content)
        layouts: list[tuple[int, Layout]] = []
        for form in formats:
            columns = {role: rule.fullest(rows, names, form, role) for role, names in form.needs.items()}
            number = sum(
                all(rule.fills(row, column, form, role) for role, column in columns.items())
                and (is_named or form.fits(row))
                for row in rows
            )
            if number or (is_named and all(columns.values()) and not (needs_value or needs_content)):
                # Optional columns that the rows have, none of them a needed one.
                free = {r: [n for n in names.split("|") if n not in columns.values()] for r, names in form.uses.items()}
                uses = {role: optional.fullest(rows, "|".join(names), form, role) for role, names in free.items()}
                columns |= {role: column for role, column in uses.items() if column}
                layouts.append((number, Layout(form, columns, tags)))
        if layouts:
            most = max(number for number, _ in layouts)
            return next(layout for number, layout in layouts if 2 * number >= most)
    return None
