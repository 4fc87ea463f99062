"""Frontier rows as text: numbers with intervals, sentences, a table for the terminal, a table in Markdown.

The sentences are computed from the rows and expect no outcome: a cut may keep everything or nothing.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from leadspan.results import Interval
from leadspan.study.frontier import CostName, Frontier, Row

MIN_TEACHER_ACCURACY = 0.95
"""A teacher below this has not learned the task, and its students learn its mistakes."""
MIN_TERMINATION_RATE = 0.9
"""A student below this cannot be trusted to end its answers."""
MISSING = "\N{EN DASH}"
WIDE = 110
"""Terminal columns from which the table shows memory, FLOPs and answer length too."""

_UNITS: dict[CostName, tuple[tuple[float, str], ...]] = {
    "seconds": ((3600.0, "h"), (60.0, "min"), (1.0, "s")),
    "peak_memory_bytes": ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")),
    "flops": (
        (1e18, "EFLOP"),
        (1e15, "PFLOP"),
        (1e12, "TFLOP"),
        (1e9, "GFLOP"),
        (1e6, "MFLOP"),
        (1.0, "FLOP"),
    ),
    "tokens": ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1.0, "")),
}


def percent(share: float) -> str:
    """A share as a whole percentage, `46 %`."""
    return f"{share * 100:.0f} %"


def percent_interval(interval: Interval) -> str:
    """A share with its interval, `46 [40, 52] %`."""
    value, low, high = (f"{100 * end:.0f}" for end in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}] %"


def points(interval: Interval) -> str:
    """A difference of two shares in percentage points, signed, `-4 [-9, +1] points`."""
    value, low, high = (f"{round(100 * end):+d}" for end in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}] points"


def unit_for(cost: CostName, largest: float) -> tuple[float, str]:
    """Divisor and unit in which a cost up to `largest` reads well; a time of 90 s stays in seconds."""
    floor = 2 if cost == "seconds" else 1
    return next(((size, unit) for size, unit in _UNITS[cost] if largest >= floor * size), _UNITS[cost][-1])


def quantity(cost: CostName, value: float) -> str:
    """A cost with its unit, to three figures.

    >>> quantity("seconds", 150.0)
    '2.5 min'
    """
    size, unit = unit_for(cost, value)
    number = f"{value / size:,.0f}" if value >= 100 * size else f"{value / size:.3g}"
    return f"{number} {unit}".rstrip()


def sample_size(frontier: Frontier) -> str:
    """How much the rows were measured on, `240 problems x 1 sample`; several sizes are all named."""
    sizes = dict.fromkeys((row.num_problems, row.samples_per_problem) for row in frontier.rows)
    return " or ".join(f"{problems:,} problems x {num} sample{'s' * (num > 1)}" for problems, num in sizes)


def kept_text(row: Row) -> str:
    """Retention, or the difference where it was refused, or how the row stands to the reference."""
    if row.kept is None:
        return "reference" if row.cut_kind == "full" else MISSING
    if row.kept.ratio:
        return percent_interval(row.kept.ratio)
    return points(row.kept.difference) if row.kept.difference else MISSING


def findings(frontier: Frontier) -> list[str]:
    """One sentence for each student compared with an uncut run; without an uncut run, for each student."""
    students = {row.label: row for row in frontier.students}
    compared = [row for row in students.values() if row.kept] or list(students.values())
    return [_finding(row, students.get(row.reference or "")) for row in compared]


def teacher_warnings(frontier: Frontier) -> list[str]:
    """One sentence for each teacher that fails the task; what follows it in a report is then moot."""
    return [
        f"The teacher has not learned this world: {row.label} solves {percent_interval(row.accuracy)} of "
        f"{row.task}, less than {percent(MIN_TEACHER_ACCURACY)}, and its students imitate its mistakes. "
        "Train it longer before comparing cuts."
        for row in frontier.rows
        if row.role == "teacher" and row.accuracy.value < MIN_TEACHER_ACCURACY
    ]


def stop_warnings(frontier: Frontier) -> list[str]:
    """One sentence on all students that do not end their answers, and on a mix that does, if there is one."""
    running_on = [row for row in frontier.students if row.termination.value < MIN_TERMINATION_RATE]
    mixes = [row for row in frontier.students if row.cut_kind == "mix" and row not in running_on]
    if not running_on:
        return []
    rates = ", ".join(f"{row.label} ({percent(row.termination.value)})" for row in running_on)
    remedy = (
        ", ".join(f"{row.label} kept {percent(row.termination.value)}" for row in mixes)
        or "keep some traces whole (cut.kind: mix) or append a stop (stop: append_eos)"
    )
    rule = f"termination below {percent(MIN_TERMINATION_RATE)}"
    return [f"{rates} never learned to stop reliably ({rule}); {remedy}."]


def recommendation(frontier: Frontier, target: float = 0.9) -> str:
    """The cheapest cut, in measured time, whose retention's lower bound meets a target.

    Args:
        frontier: All runs on one task.
        target: Share of the uncut run's accuracy to keep.
    """
    cut = [row for row in frontier.by_cost().students if row.cut_kind != "full"]
    ratios = [(row, row.kept.ratio) for row in cut if row.kept and row.kept.ratio]
    for row, ratio in ratios:
        if ratio.low >= target:
            cheapest = f"The cheapest cut shown to keep {percent(target)} of full accuracy is {row.label}"
            return f"{cheapest}: {percent_interval(ratio)}{_relative_costs(row)}."
    if not ratios:
        refused = next((row.kept.reason for row in cut if row.kept), "none was compared with an uncut run")
        return f"No cut can be recommended: {refused}."
    best, ratio = max(ratios, key=lambda pair: pair[1].low)
    return (
        f"No cut is shown to keep {percent(target)} of full accuracy; "
        f"{best.label} comes closest with {percent_interval(ratio)}{_relative_costs(best)}."
    )


def captions(frontier: Frontier) -> list[str]:
    """What belongs under a table of the rows: how the intervals were made, refused retentions, the notes."""
    rows = frontier.rows
    kept = [row.kept.ratio or row.kept.difference for row in rows if row.kept]
    intervals = [*(row.accuracy for row in rows), *(row.termination for row in rows), *filter(None, kept)]
    methods = "; ".join(method for method, _ in Counter(found.method for found in intervals).most_common())
    refused = dict.fromkeys(row.kept.reason for row in rows if row.kept and row.kept.reason)
    return [
        f"Intervals of {percent(rows[0].accuracy.level)}, which do not cover how seeds differ: {methods}.",
        *(f"Retention refused: {reason}." for reason in refused),
        *frontier.notes,
    ]


def rich_table(frontier: Frontier, width: int = WIDE) -> Table:
    """The rows for a terminal: quality and termination with intervals, costs as shares of the uncut run's.

    Args:
        frontier: All runs on one task, in the order to show.
        width: Columns of the terminal, 80 or more; below `WIDE`, memory, FLOPs and answer tokens stay out.
    """
    table = Table(
        title=Text(f"{frontier.task}: {sample_size(frontier)}"),
        caption=Text("\n".join(captions(frontier))),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    columns = [column for column in _COLUMNS if width >= WIDE or not column.is_wide_only]
    for column in columns:
        table.add_column(column.header, justify=column.justify, no_wrap=column.justify == "right")
    table.columns[0].min_width = 12
    for row in frontier.rows:
        table.add_row(*(Text(column.cell(row)) for column in columns))
    return table


def print_frontiers(frontiers: Sequence[Frontier]) -> None:
    """Write the table of each task to the terminal at its width, and the sentences below."""
    console = Console()
    for frontier in frontiers:
        console.print(rich_table(frontier, console.width))
        warnings = [*teacher_warnings(frontier), *stop_warnings(frontier)]
        for sentence in [*warnings, recommendation(frontier), *findings(frontier)]:
            console.print(Text(sentence))


def markdown_table(frontier: Frontier) -> str:
    """The rows as a GitHub Markdown table with every column, and the notes below."""
    lines = [
        [column.header.replace("\n", " ") for column in _COLUMNS],
        [":--" if column.justify == "left" else "--:" for column in _COLUMNS],
        *([_markdown(column.cell(row)) for column in _COLUMNS] for row in frontier.rows),
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *(_markdown(caption) for caption in captions(frontier))]) + "\n"


@dataclass(frozen=True, slots=True)
class _Column:
    header: str
    cell: Callable[[Row], str]
    justify: Literal["left", "right"] = "right"
    is_wide_only: bool = False


def _share_of_full(cost: CostName) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        if row.costs is None:
            return MISSING
        share = row.costs[cost].of_full
        return quantity(cost, row.costs[cost].value) if share is None else percent(share)

    return cell


_COLUMNS: Sequence[_Column] = (
    _Column("policy", lambda row: row.label, "left"),
    _Column("accuracy", lambda row: percent_interval(row.accuracy)),
    _Column("terminated", lambda row: percent_interval(row.termination)),
    _Column("of full's\naccuracy", kept_text),
    _Column("train\ntokens", _share_of_full("tokens")),
    _Column("time", _share_of_full("seconds")),
    _Column("memory", _share_of_full("peak_memory_bytes"), is_wide_only=True),
    _Column("FLOPs", _share_of_full("flops"), is_wide_only=True),
    _Column("answer\ntokens", lambda row: f"{row.tokens_p50:,.0f}", is_wide_only=True),
)


def _finding(row: Row, full: Row | None) -> str:
    counted = "problems" if row.samples_per_problem == 1 else "samples"
    ended = f"it terminated on {percent(row.termination.value)} of {counted}"
    if row.kept is None or full is None:
        return f"{row.label} reached {percent_interval(row.accuracy)} accuracy; {ended}."
    if row.kept.ratio:
        outcome = f"kept {percent_interval(row.kept.ratio)} of {full.policy}'s accuracy"
    elif row.kept.difference:
        outcome = f"scored {points(row.kept.difference)} against {full.policy} (retention refused)"
    else:
        outcome = f"reached {percent_interval(row.accuracy)} accuracy (not comparable with {full.policy})"
    beside = f"{full.policy}: {percent(full.termination.value)}"
    return f"{row.label} {outcome}{_relative_costs(row)}; {ended} ({beside})."


def _relative_costs(row: Row) -> str:
    """` at 50 % of the tokens and 52 % of the time`, or nothing without a reference."""
    named: tuple[tuple[CostName, str], ...] = (("tokens", "tokens"), ("seconds", "time"))
    shares = [(row.costs[cost].of_full if row.costs else None, word) for cost, word in named]
    words = [f"{percent(share)} of the {word}" for share, word in shares if share is not None]
    return f" at {' and '.join(words)}" if words else ""


def _markdown(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|").replace("\n", " ")
