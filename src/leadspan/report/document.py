"""A report as a document, built once for all formats: its elements, and the sections with the answers and the rows.

Markdown omits the figures, and the elements that only the page has. `evidence` has the other sections.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from leadspan.report.break_points import measured_text
from leadspan.report.captions import retention_text
from leadspan.report.content import Report, TaskFigures
from leadspan.report.figures import QUALITY_TITLES
from leadspan.report.rows import COST_TITLES, Row, amount, relative_text
from leadspan.statistics.intervals import Interval
from leadspan.tables import MISSING, Block, Cell, CostName, percent, percent_interval, points

INTRODUCTION = (
    "Small language models, the students, were trained on texts that a large model wrote while it solved problems, "
    "most of them on only a part of each text. This page shows how much of the accuracy each part kept, and what the "
    "training cost."
)
NUM_FINDINGS = 6
"""Number of findings that are shown before the others are folded away."""


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph: the answer, plain text, a warning, a note under a table or figure; or a heading in a section."""

    text: str
    style: Literal["lead", "text", "warning", "note", "heading"] = "text"


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of sentences."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Radio buttons above a figure.

    Attributes:
        name: Identifier of the buttons in the page's script.
        title: What a reader chooses.
        options: Value to words; the first one is chosen in a new page.
        draws: Identifiers of the figures that are drawn again, separated by spaces.
    """

    name: str
    title: str
    options: Mapping[str, str]
    draws: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure of the page; its numbers are in a table of their own.

    Attributes:
        kind: Which figure, see `assets/figures.js`.
        index: Which of that kind.
        label: What it shows, for screen readers.
        caption: How to read it, and what it was measured on.
        choices: What a reader can choose.
        group: Name of its legend; empty without one.
        policies: Entries of the legend, in order.
        num_shown: How many of them a new page draws.
        bar_parts: Parts of stacked bars to their names, for a legend of their colours.
    """

    kind: str
    index: int | str
    label: str
    caption: str
    choices: tuple[Choice, ...] = ()
    group: str = ""
    policies: tuple[str, ...] = ()
    num_shown: int = 1000  # more than any study has: all of them
    bar_parts: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Fold:
    """Elements behind a summary that a reader can open."""

    summary: str
    elements: "tuple[Element, ...]"
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class PageOnly:
    """An element with its own template, which Markdown omits: `pairs` of samples, or all `runs`."""

    template: Literal["pairs", "runs"]


Element = Prose | Bullets | Plot | Block | Fold | PageOnly


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page, with its entry in the table of contents; an empty entry is not listed."""

    anchor: str
    title: str
    entry: str
    elements: tuple[Element, ...]


def answer_section(report: Report) -> Section:
    """The answers of all tasks, with what makes them doubtful and the findings behind them."""
    # A task on which only bases and teachers were evaluated says nothing about cuts.
    answered = [task for task in report.tasks if task.findings] or report.tasks
    elements: list[Element] = [Prose(INTRODUCTION)]
    for task in answered:
        elements += [Prose(task.task, "heading")] if len(answered) > 1 else []
        for answer in task.answers:
            rest = " ".join(filter(None, [answer.selection, answer.needed, *answer.against_controls]))
            elements += [Prose(answer.sentence, "lead"), *([Prose(rest)] if rest else [])]
        elements += [Prose(warning, "warning") for warning in task.warnings]
        # A break point that is neither measured nor predicted is in the table alone.
        located = [
            sentence
            for point, sentence in zip(task.break_points, task.break_point_sentences, strict=True)
            if point.measured or point.predicted
        ]
        elements += [Prose(" ".join(task.cuts_explained))] if task.cuts_explained else []
        elements.append(Bullets((*located, *task.findings[:NUM_FINDINGS])))
        # A study of many policies would push its figures off the screen.
        rest_of_findings = task.findings[NUM_FINDINGS:]
        if rest_of_findings:
            elements.append(Fold(f"{len(rest_of_findings)} more findings", (Bullets(tuple(rest_of_findings)),)))
    for study in report.studies:
        num_complete = len(study.of_state("done"))
        if num_complete < len(study.trials) or study.notes:
            no_controls = f", and {len(study.notes)} of its controls could not be made" if study.notes else ""
            complete = f"{num_complete} of {len(study.trials)} trials of the study {study.name} are complete"
            text = f"{complete}{no_controls}; the reasons are under Trials."
            elements.append(Prose(text, "warning"))
    if report.damaged:
        elements += [Prose("These files are damaged, and their figures are left out:", "warning")]
        elements += [Bullets(tuple(report.damaged))]
    return Section("answer", "Answer", "Answer", tuple(elements))


def task_section(report: Report, task: TaskFigures, index: int, chart: Mapping[str, Any]) -> Section:
    """The frontier of a task, its rows, break points, controls and rates."""
    measured_on = f"Measured on {task.task}, {task.sample_size}; {report.measured.sentence}."
    level = percent(task.rows[0].accuracy.level)
    elements: list[Element] = [_frontier_plot(task, index, chart, level, measured_on)] if task.cost_names else []
    elements.append(rows_block(task, task.rows, f"All policies on {task.task}"))
    shares = "Costs are shares of the uncut student's, with the amounts in brackets."
    elements += [Prose(f"{measured_on} {shares}", "note"), *(Prose(caption, "note") for caption in task.captions)]
    if task.single_runs:
        text = "Each run is compared with the uncut run of its seed, with all of them where none has it; intervals are "
        pairing = Prose(f"{text}over problems and, of several uncut runs, over these.", "note")
        block = rows_block(task, task.single_runs, f"Single runs on {task.task}")
        elements.append(Fold(f"Every single run ({len(task.single_runs)})", (block, pairing)))
    if task.break_points:
        rows: list[tuple[str, ...]] = []
        for point in task.break_points:
            # The reason stands in the cell, since an empty one would ask for it.
            predicted = point.not_predicted or MISSING
            if point.predicted:
                predicted = f"{point.predicted.value:.2f} [{point.predicted.low:.2f}, {point.predicted.high:.2f}]"
            rows.append((point.family, ", ".join(f"{p:g}" for p in point.tested), measured_text(point), predicted))
        note = (
            f"Measured: the smallest p from which on a family keeps {percent(report.target, None)} of the uncut "
            "accuracy, with straight lines between the tested p. Predicted before training, for leads only: LSP* = "
            "(|P| + f |CoT|) / T, where f is the share of the chain of thought before it first states the answer. "
            f"Intervals of {level}."
        )
        header = ("Family", "Tested p", "Measured", "Predicted (LSP*)")
        elements.append(Block(f"Break points on {task.task}", header, tuple(rows), note, num_text=4))
    against = [(row, control) for row in task.rows for control in row.against_controls]
    if against:
        rows = [
            (
                row.label,
                control.control.replace("_", " "),
                control.label,
                control.outcome,
                Cell(points(control.difference), control.difference.value) if control.difference else MISSING,
                MISSING if control.p_value is None else Cell(f"{control.p_value:.2g}", control.p_value),
            )
            for row, control in against
        ]
        header = ("Policy", "Control", "Its row", "Outcome", "Accuracy, policy minus control", "p")
        note = (
            f"Paired differences on the same problems, with {level} intervals; the outcome is unclear where the "
            "interval holds 0. p: sign-flip test over problems, which is about these runs and not about other seeds."
        )
        policies, title = tuple(row.policy for row, _ in against), f"Against the controls on {task.task}"
        elements.append(Block(title, header, tuple(rows), note, num_text=4, policies=policies))
    bars = (
        f"Share of right answers, and of samples that ended with an end-of-turn token, with {level} intervals. A "
        "student that is seldom right and seldom ends may know more than it finishes saying. The numbers are in the "
        "table above."
    )
    rates_label = "Bars of strict accuracy and termination rate for each policy"
    elements += [Prose("Accuracy and termination", "heading")]
    elements.append(Plot("rates", index, rates_label, f"{bars} {measured_on}"))
    # Of several tasks the first alone is in the table of contents, which is one line.
    title = "Quality and cost" + (f": {task.task}" if len(report.tasks) > 1 else "")
    return Section("frontier" if index == 0 else f"frontier-of-{index}", title, "" if index else title, tuple(elements))


def _frontier_plot(task: TaskFigures, index: int, chart: Mapping[str, Any], level: str, measured_on: str) -> Plot:
    qualities = {"accuracy": "Accuracy", "retention": "Of the uncut accuracy", "termination": "Termination"}
    # Without an uncut run the choice would draw an empty figure.
    if not any(row["retention"] for row in chart["rows"]):
        del qualities["retention"]
    assert set(qualities) <= set(QUALITY_TITLES), "every quality has an axis"
    students = [row for row in task.rows if row.role == "student"]
    notes = {
        f"Quality against the measured cost of training, with {level} intervals; up and to the left is better.": True,
        "The dotted line joins the policies that no cheaper policy beats.": True,
        f"Times cannot be compared, because {task.clock}.": task.clock,
        "Small points are single runs; horizontal bars are one standard deviation of the cost.": task.single_runs,
        "Hollow points are controls.": any(row.control for row in students),
        "Base and teacher are drawn as lines, because their training is no cost of a cut.": students != task.rows,
        measured_on: True,
    }
    return Plot(
        kind="frontier",
        index=index,
        label="Scatter plot of quality against training cost, one point for each policy; a table of them follows",
        caption=" ".join(note for note, holds in notes.items() if holds),
        choices=(
            Choice(f"cost-{index}", "Cost", {name: COST_TITLES[name] for name in task.cost_names}, f"frontier-{index}"),
            Choice(f"quality-{index}", "Quality", qualities, f"frontier-{index}"),
        ),
        group=f"task-{index}",
        policies=tuple(row.policy for row in task.rows if row.costs),
    )


def rows_block(task: TaskFigures, rows: Sequence[Row], title: str, width: int | None = None) -> Block:
    """Rows as a table.

    Args:
        task: Their task.
        rows: The rows, in the order in which they are shown.
        title: Heading.
        width: Columns of a terminal, which shows costs as shares alone and, where it is narrow, fewer of them; None for
            a page.
    """
    is_page = width is None
    # Header and cells of each column, and the width of a terminal from which on it is shown.
    columns: list[tuple[str, list[str], int]] = [
        ("Policy", [row.label for row in rows], 0),
        ("Accuracy", [_share(row.accuracy) for row in rows], 0),
        ("Terminated", [_share(row.termination) for row in rows], 0),
        ("Of the uncut\naccuracy", [_share(row.retention and row.retention.ratio, row) for row in rows], 0),
        ("Of the uncut\ngain", [_share(row.gain and row.gain.ratio) for row in rows], 130),
    ]
    # Where every row is one run, the column would say 1 throughout.
    if is_page and any(len(row.seeds) > 1 for row in rows):
        columns.insert(1, ("Seeds", [str(len(row.seeds)) for row in rows], 0))
    # Below 110 columns a terminal shows only the evidence of the recommendation, so that names do not wrap.
    widths: dict[CostName, int] = {"tokens": 0, "seconds": 0, "peak_memory_bytes": 110, "flops": 110}
    if task.clock:  # times that cannot be compared make room for the operations that can
        widths |= {"seconds": 130, "flops": 0}
    for name, from_width in dict.fromkeys(task.cost_names, 0).items() if is_page else widths.items():
        cells: list[str] = []
        for row in rows:
            cost = (row.costs or {}).get(name)
            text = amount(cost.value, name, task.currency) if cost else MISSING
            if cost and cost.of_full is not None:
                text = f"{relative_text(cost)} ({text})" if is_page else relative_text(cost)
            cells.append(Cell(text, cost.value if cost else None))
        columns.append((COST_TITLES[name] if is_page else _SHORT_TITLES[name], cells, from_width))
    if is_page:
        columns.append(("Cap hit", [Cell(percent(row.cap_hit_rate), row.cap_hit_rate) for row in rows], 0))
    columns.append(("Answer\ntokens", [Cell(f"{row.tokens_p50:,.0f}", row.tokens_p50) for row in rows], 110))
    shown = [(header, cells) for header, cells, from_width in columns if width is None or width >= from_width]
    return Block(
        title=title,
        header=tuple(header.replace("\n", " ") if is_page else header for header, _ in shown),
        rows=tuple(zip(*(cells for _, cells in shown), strict=True)),
        policies=tuple(row.policy for row in rows),
    )


# For terminals, with a line break where a title would be wider than its numbers.
_SHORT_TITLES: dict[CostName, str] = {
    "tokens": "Train\ntokens",
    "seconds": "Time",
    "peak_memory_bytes": "Memory",
    "flops": "FLOPs",
}


def _share(interval: Interval | None, row: Row | None = None) -> Cell:
    if interval is None:
        return Cell(retention_text(row) if row else MISSING)
    return Cell(percent_interval(interval), interval.value)
