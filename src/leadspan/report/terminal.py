"""The report in a terminal: the rows of each task as a table at the terminal's width, and the sentences below."""

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from leadspan.report.document import rows_block
from leadspan.report.rows import Row, by_cost
from leadspan.report.schema import Report
from leadspan.tables import rich_table


def print_report(report: Report, console: Console) -> None:
    """Write the table and the sentences of each task, the rows ordered by the cost that ranks the policies."""
    for task in report.tasks:
        rows: Sequence[Row] = by_cost(task.rows, task.cost_names[0]) if task.cost_names else task.rows
        block = rows_block(task, rows, f"{task.task}: {task.sample_size}", console.width)
        console.print(rich_table(replace(block, note="\n".join(task.captions))))
        answers = [text for a in task.answers for text in (a.sentence, a.needed, *a.against_controls)]
        # The warnings come before the answer: a reader must not act on it without them.
        for sentence in filter(None, [*task.warnings, *answers, *task.break_point_sentences, *task.findings]):
            console.print(Text(sentence))
