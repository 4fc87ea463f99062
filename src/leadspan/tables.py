"""Tables, and formatted numbers: shares, differences and costs, with their intervals and units.

A table is a `Block`. It has three renderings: `rich_table` for a terminal, `markdown_table`, and the macro `block` of
the report's templates for HTML.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

from leadspan.statistics.intervals import Interval
from leadspan.text import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

CostName = Literal["seconds", "peak_memory_bytes", "flops", "tokens", "energy_joules", "money"]
MISSING = "\N{EN DASH}"

# From the largest on: `unit_for` takes the first that fits. The last one serves everything smaller.
_UNITS: dict[CostName, tuple[tuple[float, str], ...]] = {
    "seconds": ((3600.0, "h"), (60.0, "min"), (1.0, "s")),
    "peak_memory_bytes": ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")),
    "flops": ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1.0, "FLOP")),
    "tokens": ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1.0, "")),
    "energy_joules": ((3.6e6, "kWh"), (3.6e3, "Wh"), (1.0, "J")),
    "money": ((1.0, ""),),
}


def listed(labels: Iterable[str]) -> str:
    """Labels one after the other, with semicolons between them where one of them has a comma."""
    names = list(labels)
    return ("; " if any("," in name for name in names) else ", ").join(names)


class Cell(str):
    """Text of a cell, with the number by which a reader sorts its column; None sorts last."""

    value: float | None

    def __new__(cls, text: str, value: float | None = None) -> "Cell":
        """Make a cell from its text and its number."""
        cell = super().__new__(cls, text)
        cell.value = value
        return cell


@dataclass(frozen=True)
class Block:
    """A table with a heading."""

    title: str
    header: tuple[str, ...]  # names of the columns; empty for a list of names and values
    rows: tuple[tuple[str, ...], ...]  # text; a `Cell` also has the number that it is sorted by
    note: str = ""  # a sentence on how to read it
    num_text: int = 1  # columns, counted from the left, that hold text; the others hold numbers
    policies: tuple[str, ...] = ()  # of each row, for its colour; empty where rows belong to no policy


_NAME_WIDTH = 13  # columns of a terminal that a text gets at least, the length of `random_window`


def rich_table(block: Block) -> "Table":
    """A block as a table of rich, for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(block.title) if block.title else None,
        caption=Text(block.note) if block.note else None,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        show_header=bool(block.header),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    num_text = block.num_text if block.header else len(block.rows[0])
    for index, _ in enumerate(block.header or block.rows[0]):
        # Numbers and words of heads are never broken, and the name of a row stays legible: a narrow terminal breaks
        # heads between words, and long texts.
        is_number = index >= num_text
        longest = max((len(row[index]) for row in block.rows), default=0)
        name = block.header[index] if block.header else ""
        width = longest if is_number else min(longest, _NAME_WIDTH)
        width = max([width, *map(len, name.split())])
        table.add_column(name, justify="right" if is_number else "left", min_width=width)
    for row in block.rows:
        table.add_row(*map(Text, row))  # as `Text`: square brackets in a string would be markup of rich
    return table


def print_block(block: Block, console: "Console") -> None:
    """Print a block as a table; its lines are longer than a terminal that is too narrow for its numbers."""
    from rich.measure import Measurement

    table = rich_table(block)
    needed = Measurement.get(console, console.options, table).minimum
    table.width = needed if needed > console.width else None
    console.print(table, highlight=False, crop=False)


def markdown_table(block: Block) -> str:
    """The rows of a block as a GitHub Markdown table; empty without rows."""
    if not block.rows:
        return ""
    header = block.header or ("",) * len(block.rows[0])
    num_text = block.num_text if block.header else len(header)
    marks = [":--" if index < num_text else "--:" for index in range(len(header))]
    lines = [list(map(markdown_text, header)), marks, *(list(map(markdown_text, row)) for row in block.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_text(text: str) -> str:
    r"""Text on one line, escaped so that Markdown reads no HTML, link, image or end of a cell in it.

    >>> markdown_text("a|b <i> [x](y)")
    'a\\|b &lt;i&gt; [x]\\(y)'
    """
    # Backslashes first: one before a bar would escape its backslash, and the bar end the cell.
    line = escape(" ".join(plain(text).split()), quote=False).replace("\\", "\\\\")
    return line.replace("](", "]\\(").replace("|", "\\|")


def short(label: str) -> str:
    """A label with the paths in it shortened to their last two components.

    >>> short("base 1: runs/study/before/base/student")
    'base 1: \N{HORIZONTAL ELLIPSIS}/base/student'
    """
    # Two components tell runs apart; a whole path would fit beside no point of a figure.
    return re.sub(r"(?<!\S)(?:[^\s/]*/){2,}([^\s/]+/[^\s/]+)", "\N{HORIZONTAL ELLIPSIS}/\\1", plain(label))


def percent(share: float, digits: int | None = 0) -> str:
    """A share as a percentage, `46 %`, or `45.6 %` with one digit; with None all digits of one that was stated."""
    return f"{share * 100:.9g} %" if digits is None else f"{share * 100:z.{digits}f} %"  # z: no minus before a zero


def percent_interval(interval: Interval, digits: int = 0) -> str:
    """A share with its interval, `46 [40, 52] %`."""
    value, low, high = (f"{100 * end:z.{digits}f}" for end in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}] %"


def points(interval: Interval) -> str:
    """A difference of two shares in percentage points, signed, `-4 [-9, +1] points`."""
    value, low, high = (f"{round(100 * end):+d}" for end in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}] points"


def unit_for(cost: CostName, largest: float) -> tuple[float, str]:
    """Divisor and unit for a cost up to `largest`: the largest unit of which there is at least one, for time two."""
    floor = 2 if cost == "seconds" else 1  # 90 s reads better than 1.5 min
    return next(((size, unit) for size, unit in _UNITS[cost] if largest >= floor * size), _UNITS[cost][-1])


def quantity(cost: CostName, value: float) -> str:
    """A cost with its unit, to three figures.

    >>> quantity("seconds", 150.0)
    '2.5 min'
    """
    # Three figures: more would be noise in any measured cost.
    size, unit = unit_for(cost, value)
    number = f"{value / size:,.0f}" if value >= 100 * size else f"{value / size:.3g}"
    return f"{number} {unit}".rstrip()
