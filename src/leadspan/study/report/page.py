"""The page: one HTML file that answers first and needs no network.

Instead of a notebook or a served dashboard: a file that can be mailed, archived beside the runs, printed, and
opened in ten years. plotly.js is embedded once; the content security policy of the page forbids other loads.
"""

import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from leadspan.audit.rows import blocks
from leadspan.study.compare.predicted import compared_runs, throughput
from leadspan.study.compare.sentences import controls_note, place_text
from leadspan.study.compare.words import percent, percent_interval, points
from leadspan.study.report.charts import (
    COST_TITLES,
    NUM_COLOURS,
    QUALITY_TITLES,
    amount,
    chart_data,
    policy_colours,
    short,
)
from leadspan.study.report.curves import MEASURES
from leadspan.study.report.samples import OUTCOMES
from leadspan.study.report.schema import Report, TaskFigures

SECTIONS = {
    "answer": "Answer",
    "frontier": "Quality and cost",
    "costs": "Where the cost went",
    "divergence": "Divergence",
    "validation": "Validation",
    "cut": "What was cut",
    "audit": "The traces",
    "samples": "Samples",
    "missing": "Missing trials",
    "settings": "Settings",
}
"""Anchors to the words of the table of contents, top to bottom; sections without figures are left out."""
SECTION_WORDS = {"cot": "Chain of thought", "answer": "Answer", "prompt": "Prompt", "appended": "Appended stop"}
SPLIT_WORDS = [
    ("flops", "FLOPs", "Operations by part, counted from the models' shapes and the length of every example."),
    ("seconds", "Time", "Wall time of all steps by part on the first rank, fetching data included."),
    ("memory", "Memory", "Peak memory of training; its parts are known to the prediction only."),
]
MAX_LINES = 8
"""Policies drawn at first in figures of one line for each run; the legend adds the others."""
_SCRIPTS = ("labels.js", "figures.js", "page.js")


def render_page(report: Report) -> str:
    """The page as HTML."""
    environment = _environment()
    return environment.get_template("page.html.jinja").render(_context(report))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("leadspan.study.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {}  # the order of parts is theirs, not the alphabet's
    environment.filters |= {
        "percent": percent,
        "points": points,
        "interval": percent_interval,
        "count": "{:,.0f}".format,
        "quantity": amount,
        "sentence": sentence,
        "place": place_text,
        "controls_note": controls_note,
        "name": lambda label: short(label).replace(" %", "\N{NO-BREAK SPACE}%"),
        "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        "sortable": sortable,
    }
    return environment


def _context(report: Report) -> dict[str, Any]:
    data = chart_data(report)
    named = [(label, run) for label, run in report.runs.items()]
    policy_of = report.policy_of
    predicted = [(label, policy_of[label], costs) for label, costs in compared_runs(named)]
    speeds = throughput(named)
    context = {
        "report": report,
        "answered": [task for task in report.tasks if task.has_students] or report.tasks,
        "provenance": report.measured.sentence,
        "chart_data": data,
        "colours": policy_colours(report),
        "num_colours": NUM_COLOURS,
        "max_lines": MAX_LINES,
        "policy_of": policy_of,
        "differing": report.settings.by_policy(policy_of),
        "cost_headers": lambda task: list(_cost_choices(task).values()),
        "cost_choices": _cost_choices,
        "quality_choices": _quality_choices,
        "split_words": SPLIT_WORDS,
        "predicted": predicted,
        "predicted_headers": _predicted_headers(predicted),
        "speeds": [(label, policy_of[label], cells) for label, cells in speeds],
        "speed_headers": list(dict.fromkeys(name for _, cells in speeds for name in cells)),
        "section_names": list(dict.fromkeys(name for row in report.cuts for name in row.counts.section_tokens_before)),
        "audits": [(f"{found.source}, tokens of {found.tokenizer}", blocks(found)) for found in report.audits],
        "outcomes": list(OUTCOMES),
        "measured_by_task": "; ".join(f"{task.task}: {task.sample_size}" for task in report.tasks) + ".",
        **_curve_words(report),
        "style": Markup(_asset("style.css")),
        "script": Markup("\n".join(['"use strict";', "(() => {", *map(_asset, _SCRIPTS), "})();"])),
        "plotly": Markup(get_plotlyjs()),
    }
    return context | {"contents": _contents(report)}


def sentence(text: str) -> Markup:
    """Text as HTML: escaped, commands in backticks as code, no line break before a percent sign.

    >>> sentence("<b> (`leadspan power`)")
    Markup('&lt;b&gt; (<code>leadspan power</code>)')
    """
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(marked.replace(" %", "\N{NO-BREAK SPACE}%"))


def sortable(cell: str) -> str:
    """What a cell is sorted by: its first number, with the prefix of its unit, or its text.

    >>> sortable("1,234.5 (50 %)"), sortable("12 GFLOP/s"), sortable("lead 0.5")
    ('1234.5', '12000000000.0', 'lead 0.5')
    """
    found = re.match(r"([-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?)\s*(?:([kMGTPE])FLOP)?", cell)
    if not found:
        return cell
    number = found[1].replace(",", "")
    return str(float(number) * 1000 ** (" kMGTPE".index(found[2]))) if found[2] else number


def _cost_choices(task: TaskFigures) -> dict[str, str]:
    return {name: COST_TITLES[name] for name in task.cost_names}


def _quality_choices(chart: Mapping[str, Any]) -> dict[str, str]:
    """Accuracy and termination, and retention where one was given."""
    kept = any(row["kept"] for row in chart["rows"])
    words = {"accuracy": "Accuracy", "kept": "Of the uncut accuracy", "termination": "Termination"}
    return {name: words[name] for name in QUALITY_TITLES if name != "kept" or kept}


def _predicted_headers(predicted: list[tuple[str, str, Any]]) -> list[str]:
    costs = predicted[0][2] if predicted else []
    return ["Run", *(word for cost in costs for word in (COST_TITLES[cost.name], "error"))]


def _curve_words(report: Report) -> dict[str, Any]:
    kinds = list(dict.fromkeys(curve.divergence_kind for curve in report.curves if curve.divergence_kind))
    measured_on = dict.fromkeys(curve.measured_on for curve in report.curves)
    measures = [name for curve in report.curves for name in curve.sections]
    names = [name for curve in report.curves for figures in curve.sections.values() for name in figures]
    on_training = "on training batches each policy on what it kept, so places that it cut have no figure"
    on_validation = "on the validation set all policies on the same uncut sequences"
    said = [{"training batches": on_training, "validation set": on_validation}[kind] for kind in measured_on]
    return {
        "curves_words": f"Divergence is {' or '.join(kinds)}; {'; '.join(said)}.",
        "measured_on_choices": {kind: kind.capitalize() for kind in reversed(measured_on)},
        "measure_words": {name: word.split(" (")[0] for name, word in MEASURES.items() if name in measures},
        "section_choices": {name: word for name, word in SECTION_WORDS.items() if name in names},
    }


def _contents(report: Report) -> dict[str, str]:
    has = {
        "costs": report.costs,
        "divergence": report.curves,
        "validation": report.validation,
        "cut": report.cuts,
        "audit": report.audits,
        "samples": report.comparisons,
        "missing": report.studies,
    }
    return {anchor: words for anchor, words in SECTIONS.items() if has.get(anchor, True)}


def _asset(name: str) -> str:
    return (resources.files("leadspan.study.report") / "assets" / name).read_text(encoding="utf-8")
