"""A run or a report for its reader: in a terminal, or as one HTML page, Markdown, JSON or figures.

The page begins with the answer and needs no network. A single file, unlike a notebook or a served dashboard, can be
mailed, archived with the runs, printed, and opened in ten years. The part of plotly.js that draws points, lines and
bars is embedded once, compressed; the content security policy of the page forbids it to load anything.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from rich.console import Console
from rich.text import Text

from leadspan.files import write_atomically
from leadspan.report.content import Report
from leadspan.report.document import NUM_FINDINGS, Bullets, Element, Fold, Prose, rows_block
from leadspan.report.evidence import sections
from leadspan.report.figures import chart_data, draw_figures
from leadspan.report.rows import Row, by_cost, error_text, shares
from leadspan.results import Prediction, RunResult, predicted_and_measured
from leadspan.settings import dump_yaml
from leadspan.tables import (
    Block,
    Cell,
    CostName,
    markdown_table,
    markdown_text,
    percent,
    percent_interval,
    print_block,
    quantity,
    short,
)
from leadspan.text import plain, plain_values, without_secrets
from leadspan.training.result import TrainResult

Format = Literal["html", "md", "json", "png"]
_ASSETS = resources.files("leadspan.report") / "assets"
# labels.js defines what figures.js uses; page.js draws as soon as it runs, so it comes last.
_SCRIPTS = ("labels.js", "figures.js", "page.js")
_NO_BREAK = "\N{NO-BREAK SPACE}%"


def print_report(report: Report, console: Console) -> None:
    """Write the table and the sentences of each task, the rows ordered by the cost that ranks the policies."""
    for task in report.tasks:
        rows: Sequence[Row] = by_cost(task.rows, task.cost_names[0]) if task.cost_names else task.rows
        # The notes of the page become the caption, since a terminal has no place beside the table.
        block = rows_block(task, rows, f"{task.task}: {task.sample_size}", console.width)
        print_block(replace(block, note="\n".join(task.captions)), console)
        answers = [text for a in task.answers for text in (a.sentence, a.needed, *a.against_controls)]
        # The warnings come before the answer: a reader must not act on it without them.
        found = task.findings[:NUM_FINDINGS]  # the table has all of them
        for sentence in filter(None, [*task.warnings, *answers, *task.break_point_sentences, *found]):
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
    """A report as one text; Markdown has counts of the samples but no texts, and leaves the recipes to the JSON."""
    if format == "json":
        return without_secrets(report.model_dump_json(indent=1)) + "\n"
    if format == "md":
        lines = [f"# {_line(report.title)}", _line(f"Measured on {report.measured.sentence}.")]
        for section in sections(report, chart_data(report)):
            lines += [f"## {_line(section.title)}", *_rendered(section.elements)]
        return "\n\n".join(line for line in lines if line) + "\n"
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
        "plain": plain,
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
        styles=data["styles"],
        policy_of=report.policies,
        style=Markup((_ASSETS / "style.css").read_text("utf-8")),
        script=Markup(script + "\n})();"),
        plotly=base64.b64encode((_ASSETS / "plotly-basic.min.js.gz").read_bytes()).decode(),
    )


def run_summary(result: RunResult) -> Block:
    """The measured figures of one run, a name and a value in each row."""
    rows: list[tuple[str, str]] = []
    cut = result.cut
    if cut is not None:
        share = f" ({percent(cut.tokens_after / cut.tokens_before, 1)})" if cut.tokens_before else ""
        rows += [
            ("tokens kept", f"{cut.tokens_after:,} of {cut.tokens_before:,}{share}, {cut.num_kept} examples"),
            ("lost question / end of thinking", f"{cut.lost_question} / {cut.lost_think_end} examples"),
            ("lost answer / stop token", f"{cut.lost_answer} / {cut.lost_stop} examples"),
            *(("left out", f"{number} x {reason}") for reason, number in {**cut.dropped, **result.refused}.items()),
        ]
    # Before the figures that it puts in doubt.
    if warning := result.end_warning(result.label):
        rows.append(("warning", warning))
    if result.train is not None:
        rows += _training(result.train, result.prediction)
    for on_task in result.evaluations:
        size = f"{on_task.num_problems} problems x {on_task.samples_per_problem}"
        figures = {
            "accuracy (strict)": f"{percent_interval(on_task.accuracy_strict)} on {size}",
            "accuracy (flexible)": percent_interval(on_task.accuracy_flexible),
        }
        if on_task.accuracy_finished is not None:
            figures["accuracy given finished"] = percent_interval(on_task.accuracy_finished)
        for name, values in (("pass", on_task.pass_at), ("maj", on_task.majority_at)):
            # pass@1 and maj@1 are the accuracy above.
            if shown := [f"@{k} {percent_interval(value)}" for k, value in values.items() if k != "1"]:
                figures[name] = ", ".join(shown)
        figures["terminated"] = percent_interval(on_task.termination_rate)
        closed = percent(on_task.thinking_closed_rate, 1)
        figures["hit the cap / closed thinking"] = f"{percent(on_task.cap_hit_rate, 1)} / {closed}"
        # A task whose answers need no box has no share of answers without one.
        rates = {"loops": on_task.loop_rate, "no box": on_task.no_box_rate}
        if known := {name: percent(rate, 1) for name, rate in rates.items() if rate is not None}:
            figures[" / ".join(known)] = " / ".join(known.values())
        quantiles = f"median {on_task.tokens_p50:.0f}, 95th percentile {on_task.tokens_p95:.0f}"
        figures["new tokens"] = f"mean {on_task.tokens_mean:.0f}, {quantiles}"
        rows += [(f"{on_task.task}: {name}", text) for name, text in figures.items()]
    return Block(f"{result.name}: {result.label}", (), tuple(rows or [("nothing", "neither trained nor evaluated")]))


def _training(train: TrainResult, prediction: Prediction | None) -> Iterator[tuple[str, str]]:
    texts: dict[CostName, str] = {}
    for name, (predicted, measured) in predicted_and_measured(prediction, train).items():
        texts[name] = quantity(name, measured)
        if predicted is not None:
            kind = "predicted at most" if prediction is not None and prediction.is_bound else "predicted"
            texts[name] += f", {kind} {quantity(name, predicted)} ({error_text(predicted, measured)})"
    yield "trained", f"{train.num_steps} steps, {train.num_examples} examples"
    yield "tokens", texts["tokens"]
    yield "time", f"{texts['seconds']} ({train.tokens_per_second:,.0f} tokens/s on {train.device})"
    if train.step_seconds is not None:
        by_part = shares(train.step_seconds).items()
        yield (
            "time by part",
            ", ".join(f"{name.replace('_', ' ')} {percent(share)}" for name, share in by_part if share),
        )
    # A process holds more than its tensors, which only a calibration knows.
    source = train.memory_source
    if source == "process resident set" and prediction is not None and not prediction.memory.process:
        source += "; predicted: its tensors alone"
    yield "peak memory", f"{texts['peak_memory_bytes']} ({source})"
    yield "FLOPs", f"{texts['flops']}, {quantity('flops', train.flops_per_second)}/s"
    if train.mfu is not None:
        yield "model FLOPs utilisation", percent(train.mfu, 1)
    if train.energy_joules is not None:
        yield "energy", f"{train.energy_joules / 3.6e6:.3g} kWh"
    yield "training loss", f"{train.first_loss:.4f} -> {train.final_loss:.4f}"
    for step, loss in train.validation_loss.items():
        saved = " (saved)" if int(step) == train.saved_step else ""
        yield f"validation loss, step {step}", f"{loss:.4f}{saved}"


def _rendered(elements: Iterable[Element]) -> Iterator[str]:
    for element in elements:  # what a page folds away is written out: a paper has no buttons
        match element:
            # A quote is the nearest that Markdown has to a warning.
            case Prose():
                yield {"warning": "> ", "heading": "### "}.get(element.style, "") + _line(element.text)
            case Bullets():
                yield "\n".join(f"- {_line(text)}" for text in element.texts)
            case Block():
                yield from (f"### {_line(element.title)}", markdown_table(element), _line(element.note))
            case Fold():
                yield from _rendered(element.elements)
            case _:
                pass  # figures, samples and recipes are on the page alone


def _line(text: str) -> str:
    """A line of text, escaped so that it begins no list, heading, quote, code or table."""
    # A number begins a list with its dot: a digit cannot be escaped.
    return re.sub(r"^(?:(?=[-+*#>=~|]|```)|(\d+)(?=[.)](?:\s|$)))", r"\1\\", markdown_text(text))


def _rounded(value: Any) -> Any:  # Any: plain JSON
    """Nested values with every float to five figures: more than a figure shows, in half the bytes."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def sentence(text: str) -> Markup:
    r"""Text as HTML: escaped, text in backticks as code, no line break before a percent sign, in `[1, 2]` or `(3 s)`.

    >>> sentence("<b> (`leadspan power`)"), sentence("50 % (3 s)")
    (Markup('&lt;b&gt; (<code>leadspan power</code>)'), Markup('50\xa0% (3\xa0s)'))
    """
    # Escaped first, so that nothing in the text can be markup; backticks and brackets survive that.
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(plain(text))))
    whole = r"\[[-+\d., ]+\]|\(\d[\d.,]* \w+\)"
    unbroken = re.sub(whole, lambda part: part[0].replace(" ", "\N{NO-BREAK SPACE}"), marked)
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
