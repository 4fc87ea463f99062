"""The page: one HTML file that begins with the answer and needs no network.

A single file, unlike a notebook or a served dashboard, can be mailed, archived with the runs, printed, and opened in
ten years. The part of plotly.js that draws points, lines and bars is embedded once, compressed; the content security
policy of the page forbids it to load anything.
"""

import base64
import re
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from leadspan.report.charts import chart_data, policy_styles, short
from leadspan.report.document import sections
from leadspan.report.schema import Report
from leadspan.settings import dump_yaml
from leadspan.tables import Cell, percent_interval
from leadspan.text import plain, plain_values

_ASSETS = resources.files("leadspan.report") / "assets"
# labels.js defines what figures.js uses; page.js draws as soon as it runs, so it comes last.
_SCRIPTS = ("labels.js", "figures.js", "page.js")
_NO_BREAK = "\N{NO-BREAK SPACE}%"


def render_page(report: Report) -> str:
    """The page as HTML."""
    environment = Environment(
        # Names and texts are others' words: everything is escaped, and a mistyped name in a template raises.
        loader=PackageLoader("leadspan.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Markup was made from plain text already, and escaping it again would show its tags.
        finalize=lambda value: plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    # Jinja sorts keys by default, but parts have an order of their own; spaces would be a tenth of the figures' data.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters |= {
        "sentence": sentence,
        "name": lambda label: short(label).replace(" %", _NO_BREAK),
        "sorted_by": sorted_by,
        "interval": percent_interval,
        "count": "{:,.0f}".format,
        "yaml": dump_yaml,
        "type_name": lambda part: type(part).__name__,
    }
    # The script shows these texts unchanged, so control codes and secrets are removed here.
    data = plain_values(chart_data(report))
    script = "\n".join(['"use strict";', "(async () => {", *((_ASSETS / name).read_text("utf-8") for name in _SCRIPTS)])
    return environment.get_template("page.html.jinja").render(
        report=report,
        sections=sections(report, data),
        chart_data=_rounded(data),
        styles=policy_styles(report),
        policy_of=report.policies,
        style=Markup((_ASSETS / "style.css").read_text("utf-8")),
        script=Markup(script + "\n})();"),
        plotly=base64.b64encode((_ASSETS / "plotly-basic.min.js.gz").read_bytes()).decode(),
    )


def _rounded(value: Any) -> Any:  # Any: plain JSON
    """Nested values with every float to five figures: more than a figure shows, in half the bytes."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def sentence(text: str) -> Markup:
    """Text as HTML: escaped, text in backticks as code, no line break before a percent sign or within `[1, 2]`.

    >>> sentence("<b> (`leadspan power`)")
    Markup('&lt;b&gt; (<code>leadspan power</code>)')
    """
    # Escaped first, so that nothing in the text can be markup; backticks and brackets survive that.
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(plain(text))))
    unbroken = re.sub(r"\[[-+\d., ]+\]", lambda interval: interval[0].replace(" ", "\N{NO-BREAK SPACE}"), marked)
    return Markup(unbroken.replace(" %", _NO_BREAK))


def sorted_by(cell: str) -> str:
    """The sort key of a cell: its value, else the first number in it with its unit prefix, else its text.

    >>> sorted_by("1,234.5 (50 %)"), sorted_by("12 GFLOP/s"), sorted_by("lead 0.5")
    ('1234.5', '12000000000.0', 'lead 0.5')
    """
    if isinstance(cell, Cell):
        # A text that is its number is its own key, and counts are whole; six figures tell all other cells apart.
        if cell.value is None or re.fullmatch(r"-?\d+(\.\d+)?", cell):
            return "" if cell.value is None else cell
        return f"{cell.value:.6g}" if cell.value % 1 else f"{cell.value:.0f}"
    # Texts without a value, such as speeds, are ordered by what a reader sees.
    number = re.match(r"([-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?)\s*(?:([kMGTPE])FLOP)?", cell)
    if not number:
        return cell
    digits = number[1].replace(",", "")
    return str(float(digits) * 1000 ** (" kMGTPE".index(number[2]))) if number[2] else digits
