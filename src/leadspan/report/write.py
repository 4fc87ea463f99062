"""A report as files: the page, Markdown, JSON, or figures."""

from pathlib import Path
from typing import Literal

from leadspan.files import write_atomically
from leadspan.report.drawing import draw_figures
from leadspan.report.markdown import render_markdown
from leadspan.report.page import render_page
from leadspan.report.schema import Report
from leadspan.text import without_secrets

Format = Literal["html", "md", "json", "png"]


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
