"""A report as files: the page, Markdown, JSON, or figures."""

from pathlib import Path
from typing import Literal

from leadspan.files import write_atomically
from leadspan.study.report.drawing import draw_figures
from leadspan.study.report.markdown import render_markdown
from leadspan.study.report.page import render_page
from leadspan.study.report.schema import Report

Format = Literal["html", "md", "json", "png"]


def write_report(report: Report, path: Path, format: Format = "html") -> list[Path]:
    """Write a report, each file atomically.

    Args:
        report: What it says.
        path: The file to write, for `png` a directory; directories are made.
        format: `html`: one self-contained page; `md`: sentences and tables; `json`: the `Report` itself; `png`: its
            figures, one file each.

    Returns:
        The files written.

    Raises:
        RunError: The format needs a library that is not installed.
    """
    match format:
        case "png":
            return draw_figures(report, path)
        case "html":
            text = render_page(report)
        case "md":
            text = render_markdown(report)
        case "json":
            text = report.model_dump_json(indent=1) + "\n"
    write_atomically(path, text)
    return [path]
