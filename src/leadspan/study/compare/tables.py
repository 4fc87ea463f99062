"""Frontier rows as tables, for the terminal and in Markdown, with what belongs under them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from leadspan.study.compare.break_points import break_points
from leadspan.study.compare.cost_axes import CostName
from leadspan.study.compare.recommendation import recommend
from leadspan.study.compare.rows import Frontier, Row
from leadspan.study.compare.savings import relative_text
from leadspan.study.compare.sentences import (
    break_point_sentences,
    findings,
    gained_text,
    kept_text,
    sample_size,
    stop_warnings,
    teacher_warnings,
)
from leadspan.study.compare.words import MISSING, percent, percent_interval, points, quantity, unit_for

__all__ = [
    "MISSING",
    "captions",
    "findings",
    "gained_text",
    "kept_text",
    "markdown_table",
    "percent",
    "percent_interval",
    "points",
    "print_frontiers",
    "quantity",
    "recommendation",
    "rich_table",
    "sample_size",
    "stop_warnings",
    "teacher_warnings",
    "unit_for",
]

WIDE = 110
"""Terminal columns from which the table shows memory, FLOPs and answer length too."""
WIDEST = 130
"""Terminal columns from which it also shows the share of the gain over the base."""


def recommendation(frontier: Frontier, target: float = 0.9, cost: CostName = "seconds") -> str:
    """The recommendation as one paragraph, see `recommend`."""
    return recommend(frontier, target, cost).text


def captions(frontier: Frontier) -> list[str]:
    """What belongs under a table of the rows: how the intervals were made, refused retentions, the notes."""
    rows = frontier.rows
    kept = [row.kept.ratio or row.kept.difference for row in rows if row.kept]
    intervals = [*(row.accuracy for row in rows), *(row.termination for row in rows), *filter(None, kept)]
    methods = "; ".join(method for method, _ in Counter(found.method for found in intervals).most_common())
    refused = dict.fromkeys(row.kept.reason for row in rows if row.kept and row.kept.reason)
    no_gain = dict.fromkeys(row.gained.reason for row in rows if row.gained and row.gained.reason)
    return [
        f"Intervals of {percent(rows[0].accuracy.level)}{_coverage(rows)}: {methods}.",
        *(f"Retention refused: {reason}." for reason in refused),
        *(f"Share of the gain refused: {reason}." for reason in no_gain),
        *frontier.notes,
    ]


def _coverage(rows: Sequence[Row]) -> str:
    """What the intervals say of other seeds."""
    few = [row.label for row in rows if row.role == "student" and row.num_seeds == 1]
    if not any(row.num_seeds > 1 for row in rows):
        return ", which do not cover how seeds differ"
    return f", which for {', '.join(few)} do not cover how seeds differ" if few else ", seeds included"


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
    columns = [column for column in _COLUMNS if width >= column.from_width]
    for column in columns:
        table.add_column(column.header, justify=column.justify, no_wrap=column.justify == "right")
    table.columns[0].min_width = 12
    for row in frontier.rows:
        table.add_row(*(Text(column.cell(row)) for column in columns))
    return table


def print_frontiers(frontiers: Sequence[Frontier], target: float = 0.9, cost: CostName = "seconds") -> None:
    """Write the table of each task to the terminal at its width, and the sentences below.

    Args:
        frontiers: The tasks.
        target: Share of the uncut run's accuracy to keep.
        cost: The cost that orders the rows and the recommendation.

    Raises:
        SettingsError: A trained row lacks that cost.
    """
    console = Console()
    for frontier in frontiers:
        found = recommend(frontier, target, cost)
        console.print(rich_table(frontier.by_cost(cost), console.width))
        warnings = [*teacher_warnings(frontier), *stop_warnings(frontier)]
        reached = break_point_sentences(break_points(frontier, target))
        answers = [text for one in (found, *found.others) for text in (one.sentence, one.needed, *one.controls)]
        for sentence in filter(None, [*warnings, *answers, *reached, *findings(frontier)]):
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
    from_width: int = 0


def _share_of_full(cost: CostName) -> Callable[[Row], str]:
    """The mean as a share of the reference's, with the standard deviation over seeds where it is half a percent."""

    def cell(row: Row) -> str:
        found = (row.costs or {}).get(cost)
        if found is None:
            return MISSING
        if found.of_full is None:
            return quantity(cost, found.value)
        return relative_text(found)

    return cell


_COLUMNS: Sequence[_Column] = (
    _Column("policy", lambda row: row.label, "left"),
    _Column("accuracy", lambda row: percent_interval(row.accuracy)),
    _Column("terminated", lambda row: percent_interval(row.termination)),
    _Column("of full's\naccuracy", kept_text),
    _Column("of its\ngain", gained_text, from_width=WIDEST),
    _Column("train\ntokens", _share_of_full("tokens")),
    _Column("time", _share_of_full("seconds")),
    _Column("memory", _share_of_full("peak_memory_bytes"), from_width=WIDE),
    _Column("FLOPs", _share_of_full("flops"), from_width=WIDE),
    _Column("answer\ntokens", lambda row: f"{row.tokens_p50:,.0f}", from_width=WIDE),
)


def _markdown(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|").replace("\n", " ")
