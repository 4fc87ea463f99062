"""A report in a terminal, or as files: the page, Markdown, JSON, or figures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from leadspan.files import write_atomically
from leadspan.report.document import rows_block
from leadspan.report.drawing import draw_figures
from leadspan.report.markdown import render_markdown
from leadspan.report.page import render_page
from leadspan.report.rows import Row, by_cost
from leadspan.report.schema import Report
from leadspan.tables import rich_table
from leadspan.text import without_secrets

Format = Literal["html", "md", "json", "png"]


def print_report(report: Report, console: Console) -> None:
    """Write the table and the sentences of each task, the rows ordered by the cost that ranks the policies."""
    for task in report.tasks:
        rows: Sequence[Row] = by_cost(task.rows, task.cost_names[0]) if task.cost_names else task.rows
        # The notes of the page become the caption, since a terminal has no place beside the table.
        block = rows_block(task, rows, f"{task.task}: {task.sample_size}", console.width)
        console.print(rich_table(replace(block, note="\n".join(task.captions))))
        answers = [text for a in task.answers for text in (a.sentence, a.needed, *a.against_controls)]
        # The warnings come before the answer: a reader must not act on it without them.
        for sentence in filter(None, [*task.warnings, *answers, *task.break_point_sentences, *task.findings]):
            console.print(Text(sentence))


def write_report(report: Report, path: Path, format: Format = "html") -> list[Path]:
    """Write a report, each file atomically.

    Args:
        report: The report.
        path: The file to write, for `png` a directory; missing directories are created.
        format: `html`: one self-contained page; `md`: sentences and tables; `json`: the `Report` itself; `png`: its
            figures, one file each.

    Returns:
        The files written.

    Raises:
        RunError: The format needs a library that is not installed.
    """
    if format == "png":
        return draw_figures(report, path)
    write_atomically(path, report_text(report, format))
    return [path]


def report_text(report: Report, format: Literal["html", "md", "json"]) -> str:
    """A report as one text."""
    match format:
        case "html":
            return render_page(report)
        case "md":
            return render_markdown(report)
        case "json":
            return without_secrets(report.model_dump_json(indent=1)) + "\n"
