"""The report in a terminal: the rows of each task as a table at the terminal's width, and the sentences below."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from leadspan.report.document import rows_block
from leadspan.report.rows import by_cost
from leadspan.report.schema import Report, TaskFigures
from leadspan.tables import Block, rich_table


def print_report(report: Report, console: Console) -> None:
    """Write the tables and sentences of a report, tasks one after the other; rows are ordered by the first cost."""
    for task in report.tasks:
        console.print(rich_table(_table(task, console.width)))
        answers = [text for a in task.answers for text in (a.sentence, a.needed, *a.against_controls)]
        for sentence in filter(None, [*task.warnings, *answers, *task.break_point_sentences, *task.findings]):
            console.print(Text(sentence))


def _table(task: TaskFigures, width: int) -> Block:
    # The cost that ranks the policies comes first in the list.
    rows: Sequence = by_cost(task.rows, task.cost_names[0]) if task.cost_names else task.rows
    block = rows_block(task, rows, f"{task.task}: {task.sample_size}", width)
    return Block(block.title, block.header, block.rows, note="\n".join(task.captions))
