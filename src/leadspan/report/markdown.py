"""The report as Markdown: its sentences, and its tables ready for a paper."""

import re
from collections.abc import Iterable, Iterator

from leadspan.report.charts import chart_data
from leadspan.report.document import sections
from leadspan.report.elements import Bullets, Element, Fold, Heading, Prose
from leadspan.report.schema import Report
from leadspan.tables import Block, markdown_table, markdown_text


def render_markdown(report: Report) -> str:
    """The report as GitHub Markdown, with counts of the samples but no texts, and without the recipes (see JSON)."""
    lines = [f"# {_line(report.title)}", _line(f"Measured on {report.measured.sentence}.")]
    for section in sections(report, chart_data(report)):
        lines += [f"## {_line(section.title)}", *_rendered(section.elements)]
    return "\n\n".join(line for line in lines if line) + "\n"


def _rendered(elements: Iterable[Element]) -> Iterator[str]:
    for element in elements:  # what a page folds away is written out: a paper has no buttons
        match element:
            # A quote is the nearest that Markdown has to a warning.
            case Prose():
                yield ("> " if element.style == "warning" else "") + _line(element.text)
            case Bullets():
                yield "\n".join(f"- {_line(text)}" for text in element.texts)
            case Block():
                yield from (f"### {_line(element.title)}", markdown_table(element), _line(element.note))
            case Fold():
                yield from _rendered(element.elements)
            case Heading():
                yield f"### {_line(element.text)}"
            case _:
                pass  # figures, samples and recipes are on the page alone


def _line(text: str) -> str:
    """A line of text, escaped so that it begins no list, heading, quote, code or table."""
    return re.sub(r"^(?=[-+*#>=~|]|\d+[.)]\s|```)", r"\\", markdown_text(text))
