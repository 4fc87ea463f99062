"""The figures of a report: their data, which the page's script draws as plots, and their drawing as PNG files.

In the data, which is JSON in display units, shares are percentages and intervals are `[value, low, high]`. The files
are drawn from the same data by matplotlib (extra `figures`), which needs no browser.
"""

import io
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from statistics import fmean
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from leadspan.costs.flops import FlopsByPart
from leadspan.errors import RunError
from leadspan.files import file_names, write_atomically
from leadspan.report.captions import retention_text
from leadspan.report.content import Report, TaskFigures
from leadspan.report.rows import COST_TITLES, COST_WORDS, Cost, Row, amount
from leadspan.report.samples import MEASURES
from leadspan.settings import Settings
from leadspan.tables import CostName, percent, percent_interval, short, unit_for
from leadspan.text import plain, plain_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_COLOURS = 6
"""Colours of policies in style.css; further policies reuse them with another marker."""
MARKERS = ("o", "s", "D", "^", "P")
"""In the order of the symbols in figures.js."""
_STYLE_SHEET = (resources.files("leadspan.report") / "assets" / "style.css").read_text("utf-8")
PALETTE: dict[str, str] = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", _STYLE_SHEET.split("}")[0]))
"""Colours of the page's style sheet by name; its first block is the light theme, as paper is light."""
LOG_FACTOR = 50
"""Curves whose values span more than this factor are drawn on a logarithmic axis."""
QUALITY_TITLES = {
    "accuracy": "Strict accuracy (%)",
    "retention": "Share of the uncut student's accuracy (%)",
    "termination": "Terminated (% of samples)",
}
AXIS_TITLES = {
    "rates": "Share of samples (%)",
    "tenths": "Position in the uncut conversation (%)",
    "steps": "Optimiser steps",
    "validation": "Validation loss (nat per token)",
}


def chart_data(report: Report) -> dict[str, Any]:
    """The data of all figures, and the colour, a name in style.css, and number of the marker of each policy."""
    # How a base or a teacher was trained says nothing about cuts.
    students = [(report.policies[label], run) for label, run in report.runs.items() if run.role == "student"]
    trained = [(policy, run.train, run.prediction) for policy, run in students if run.train]
    rows: dict[str, list[tuple[str, _Parts, _Parts]]] = {"flops": [], "seconds": [], "memory": []}
    for policy, train, prediction in trained:
        rows["flops"].append((policy, train.flops, prediction and prediction.flops))
        if train.step_seconds:
            # Of time the total alone is predicted, of memory the total alone is measured.
            seconds = prediction and prediction.seconds
            rows["seconds"].append((policy, train.step_seconds, None if seconds is None else {"total": seconds}))
        if prediction:
            rows["memory"].append((policy, {"total": train.peak_memory_bytes}, prediction.memory))
    splits = {
        "flops": _split_chart("Training operations", "flops", rows["flops"]),
        "seconds": _split_chart("Time of all steps", "seconds", rows["seconds"]),
        "memory": _split_chart("Peak memory", "peak_memory_bytes", rows["memory"]),
    }
    validation: list[dict[str, Any]] = []
    for label, run in report.runs.items():
        if run.train and run.train.validation_loss:
            # Steps are keys of JSON, and so strings: they are ordered as numbers.
            by_step = sorted((int(step), loss) for step, loss in run.train.validation_loss.items())
            steps, losses = [step for step, _ in by_step], [loss for _, loss in by_step]
            validation.append({"label": label, "policy": report.policies[label], "steps": steps, "losses": losses})
    rows_of_tasks = [row for task in report.tasks for row in task.rows]
    roles = {row.policy: row.role for row in rows_of_tasks}
    roles |= {report.policies[label]: run.role for label, run in report.runs.items() if run.train}
    # Ink on every figure: a reader finds the baseline at once. Bases and teachers are muted.
    reference = next((row.reference for row in rows_of_tasks if row.reference), None)
    styles = {policy: {"colour": "ink" if policy == reference else "muted", "marker": 0} for policy in roles}
    coloured = [policy for policy, role in roles.items() if role == "student" and policy != reference]
    for number, policy in enumerate(coloured):
        marker, colour = divmod(number, NUM_COLOURS)
        styles[policy] = {"colour": f"policy-{colour + 1}", "marker": marker % len(MARKERS)}
    return {
        "styles": styles,
        "titles": {**QUALITY_TITLES, **AXIS_TITLES, **MEASURES},
        "log_factor": LOG_FACTOR,
        "tasks": [_task_chart(task) for task in report.tasks],
        "splits": {name: chart for name, chart in splits.items() if chart["bars"]},  # those that the runs recorded
        "curves": [curve.model_dump(exclude={"divergence_kind"}) for curve in report.curves],
        "validation": validation,
    }


def _task_chart(task: TaskFigures) -> dict[str, Any]:
    # One unit for all points of an axis, that of the largest: single runs are drawn on it too.
    rows = [row for row in [*task.rows, *task.single_runs] if row.costs]
    units: dict[CostName, tuple[float, str]] = {
        name: unit_for(name, max(row.costs[name].value for row in rows if row.costs and name in row.costs))
        for name in task.cost_names
    }
    points: list[dict[str, Any]] = []
    for row in task.rows:
        costs: dict[CostName, Cost] = {name: row.costs[name] for name in units if row.costs and name in row.costs}
        texts = {
            name: amount(cost.value, name, task.currency)
            + (f", {percent(cost.of_full)} of the uncut" if cost.of_full is not None else "")
            for name, cost in costs.items()
        }
        of_row = {
            "policy": row.policy,
            "role": row.role,
            "is_control": row.control is not None,
            "retention_text": retention_text(row),
            "cost_sds": {name: cost.sd / units[name][0] for name, cost in costs.items() if cost.sd},
            "cost_texts": texts,
            "runs": [_point(run, units) for run in task.single_runs if run.policy == row.policy],
        }
        points.append(_point(row, units) | of_row)
    axes = dict[str, str]()
    for name, (_, unit) in units.items():
        unit = task.currency if name == "money" else unit
        axes[name] = f"{COST_TITLES[name]} ({unit})" if unit else COST_TITLES[name]
    return {"task": task.task, "axes": axes, "rows": points}


def _point(row: Row, units: Mapping[CostName, tuple[float, str]]) -> dict[str, Any]:
    """What is drawn of a single run, and of every row: no more, since a page may have many runs."""
    retention = row.retention and row.retention.ratio
    intervals = {"accuracy": row.accuracy, "termination": row.termination, "retention": retention}
    # In percent; three decimals are more than a figure shows, and keep the page small. As texts too, since a half is
    # rounded to the even number here and up in JavaScript.
    ends = {
        name: interval and [round(100 * end, 3) for end in (interval.value, interval.low, interval.high)]
        for name, interval in intervals.items()
    }
    texts = {name: percent_interval(interval) for name, interval in intervals.items() if interval}
    costs = {name: row.costs[name].value / units[name][0] for name in units if row.costs and name in row.costs}
    return {"label": short(row.label), **ends, "texts": texts, "costs": costs}


_Parts = Settings | Mapping[str, float] | None


def _split_chart(title: str, cost: CostName, rows: Sequence[tuple[str, _Parts, _Parts]]) -> dict[str, Any]:
    """Two stacked bars for each policy, means over its runs, measured and predicted, where each is known."""
    bars: list[dict[str, Any]] = []
    for policy in dict.fromkeys(policy for policy, _, _ in rows):
        of_runs = [(measured, predicted) for name, measured, predicted in rows if name == policy]
        for kind, splits in zip(("measured", "predicted"), zip(*of_runs, strict=True), strict=True):
            by_run = [dict(split) for split in splits if split is not None]
            # Where a run has no parts, a mean over the others would mislead.
            if len(by_run) < len(splits):
                continue
            names = dict.fromkeys(name for split in by_run for name in split)  # ordered, unlike a set
            parts = {name: fmean(split.get(name, 0.0) for split in by_run) for name in names}
            bars.append({"label": policy, "policy": policy, "kind": kind, "parts": parts})
    # One unit for all bars, that of the longest.
    size, unit = unit_for(cost, max((sum(bar["parts"].values()) for bar in bars), default=0.0))
    names = dict.fromkeys(name for bar in bars for name, value in bar["parts"].items() if value)
    # Operations in the order of a step, student before teacher; the parts of time and memory as they are declared.
    ordered = dict.fromkeys(name for name in (*FlopsByPart.model_fields, *names) if name in names)
    titles = {"data": "fetching data", "total": "total, parts unknown"}
    return {
        "title": f"{title} ({unit})",
        "unit": unit,
        "bars": [{**bar, "parts": {name: bar["parts"].get(name, 0) / size for name in ordered}} for bar in bars],
        "parts": {name: titles.get(name, name.replace("_", " ")) for name in ordered},
    }


def draw_figures(report: Report, directory: Path) -> list[Path]:
    """Write every figure of a report as a PNG file.

    The frontier of each task is drawn over each cost; the page's other figures as they first show.

    Raises:
        RunError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError:
        raise RunError("--format png needs matplotlib: pip install 'leadspan[figures]'") from None
    data = plain_values(chart_data(report))
    figures: dict[str, tuple[Figure, str]] = {}  # with captions
    names = [name.lower() for name in file_names([task["task"] for task in data["tasks"]], "-")]
    level = f"{percent(report.tasks[0].rows[0].accuracy.level)} intervals"
    paths: list[Path] = []
    with rc_context({"text.parse_math": False}):  # a dollar sign in a name is a dollar sign
        for name, task, of_task in zip(names, data["tasks"], report.tasks, strict=True):
            measured = f"Measured on {of_task.task}, {of_task.sample_size}; {report.measured.sentence}"
            text = f"Bars: {level} of accuracy; one standard deviation of the cost over seeds. {measured}"
            for cost in task["axes"]:
                figures[f"frontier-{name}-{COST_WORDS[cost].lower()}"] = _frontier(task, cost, data), text
            figures[f"rates-{name}"] = _rates(task, data), f"Bars: {level}. {measured}"
        of_training = {f"cost-{name}": _split(chart) for name, chart in data["splits"].items()} | _curves(data)
        figures |= {name: (figure, f"Measured on {report.measured.sentence}") for name, figure in of_training.items()}
        for name, (figure, text) in figures.items():
            figure.supxlabel("\n".join(wrap(plain(text), 110)), fontsize=6, color=PALETTE["muted"])
            marks, labels = figure.axes[0].get_legend_handles_labels()
            marks = [getattr(mark, "lines", [mark])[0] for mark in marks]  # without their error bars
            figure.axes[0].legend(marks, labels, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8)
            # A legend that is taller than its axes would squeeze them and run into the caption.
            figure.set_figheight(max(figure.get_figheight(), 0.19 * len(labels) + 0.9))
            paths.append(directory / f"{name}.png")
            # 200 dots an inch are sharp in print at the width of a column.
            metadata, file = {"Title": report.title, "Description": text}, io.BytesIO()
            figure.savefig(file, format="png", dpi=200, bbox_inches="tight", facecolor="white", metadata=metadata)
            write_atomically(paths[-1], file.getvalue())
    return paths


def _axes(height: float = 3.8) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure in memory and looks for a display

    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    # Light and thin, behind the data.
    axes.grid(color="#e2e5e9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    return figure, axes


def _style(policy: str, data: Mapping[str, Any]) -> tuple[str, str]:
    """Colour and marker of a policy."""
    style = data["styles"][policy]
    return PALETTE[style["colour"]], MARKERS[style["marker"]]


def _frontier(task: Mapping[str, Any], cost: str, data: Mapping[str, Any]) -> "Figure":
    figure, axes = _axes()
    # Points are drawn over the axes (`clip_on`, `zorder`), so that one at 0 is seen whole.
    for row in task["rows"]:
        value, low, high = row["accuracy"]
        colour, marker = _style(row["policy"], data)
        if cost in row["costs"]:
            x = row["costs"][cost]
            axes.scatter(
                [run["costs"][cost] for run in row["runs"]], [run["accuracy"][0] for run in row["runs"]],
                color=colour, s=12, alpha=0.45, linewidths=0,
            )  # fmt: skip
            axes.errorbar(
                [x], [value], yerr=[[value - low], [high - value]], xerr=row["cost_sds"].get(cost),
                color=colour, marker=marker, markersize=7, capsize=3, elinewidth=1.2,
                markerfacecolor="white" if row["is_control"] else colour, linestyle="none", label=row["label"],
                clip_on=False, zorder=3,
            )  # fmt: skip
        elif row["role"] != "student":
            style = "--" if row["role"] == "teacher" else ":"
            label = f"{row['label']} {row['texts']['accuracy'].partition(' ')[0]} %"
            axes.axhline(value, color=PALETTE["muted"], linewidth=1, linestyle=style, label=label)
    axes.set(xlabel=task["axes"][cost], ylabel=data["titles"]["accuracy"], xlim=(0, None), ylim=(0, None))
    return figure


def _rates(task: Mapping[str, Any], data: Mapping[str, Any]) -> "Figure":
    rows = task["rows"]
    figure, axes = _axes(height=0.7 + 0.5 * len(rows))
    colours = [_style(row["policy"], data)[0] for row in rows]
    # Two bars of 0.36 around each row, with a gap to the next one; hatching survives a print in grey.
    for offset, key, label, hatch in (-0.2, "accuracy", "accuracy", None), (0.2, "termination", "terminated", "///"):
        values = [row[key] for row in rows]
        axes.barh(
            [i + offset for i in range(len(rows))], [value for value, _, _ in values], height=0.36,
            xerr=[[value - low for value, low, _ in values], [high - value for value, _, high in values]],
            color=["white"] * len(rows) if hatch else colours, edgecolor=colours, hatch=hatch,
            error_kw={"ecolor": PALETTE["ink"], "elinewidth": 1, "capsize": 2}, label=label,
        )  # fmt: skip
    # Up to 104, so that the end of an interval at 100 % is seen; the first row is on top.
    axes.set(xlabel=data["titles"]["rates"], xlim=(0, 104), ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    return figure


def _split(chart: Mapping[str, Any]) -> "Figure":
    policies = list(dict.fromkeys(bar["policy"] for bar in chart["bars"]))
    has_both = any(bar["kind"] == "predicted" for bar in chart["bars"])
    figure, axes = _axes(height=0.8 + 0.5 * len(policies))
    for bar in chart["bars"]:
        is_measured, left = bar["kind"] == "measured", 0.0
        for part in chart["parts"]:
            axes.barh(
                policies.index(bar["policy"]) + has_both * (-0.2 if is_measured else 0.2), bar["parts"][part],
                left=left, height=0.36, color=PALETTE[part.replace("_", "-")], alpha=1 if is_measured else 0.5,
                edgecolor="white", linewidth=0.5,
            )  # fmt: skip
            left += bar["parts"][part]
    for part, name in chart["parts"].items():
        # An empty mark for the legend: a bar would have one entry for every policy.
        axes.plot([], [], color=PALETTE[part.replace("_", "-")], marker="s", linestyle="none", label=name)
    title = chart["title"] + ("; above measured, below (fainter) predicted" if has_both else ", measured")
    axes.set(xlabel=title, xlim=(0, None), ylim=(len(policies) - 0.5, -0.5))
    axes.set_yticks(range(len(policies)), policies)
    return figure


def _curves(data: Mapping[str, Any]) -> "dict[str, Figure]":
    figures: dict[str, Figure] = {}
    titles = data["titles"]
    for measured_on in dict.fromkeys(curve["measured_on"] for curve in data["curves"]):
        chosen = [curve for curve in data["curves"] if curve["measured_on"] == measured_on]
        word = measured_on.replace(" ", "-")
        x = [f"{10 * i}-{10 * i + 10}" for i in range(10)]
        lines = [(curve, x, curve["tenths"]["divergence"]) for curve in chosen]
        by_tenth = _lines(lines, titles["tenths"], titles["divergence"], data)
        by_tenth.axes[0].set_xlim(-0.3, 9.3)  # those without a value take their room too
        figures[f"divergence-by-place-{word}"] = by_tenth
        for section in dict.fromkeys(name for curve in chosen for name in curve["sections"]["divergence"]):
            shown = [(curve, curve["sections"]["divergence"]) for curve in chosen]
            lines = [(curve, curve["steps"], values[section]) for curve, values in shown if section in values]
            y_title = f"{titles['divergence']}, {section}"
            figures[f"divergence-{section}-{word}"] = _lines(lines, titles["steps"], y_title, data)
    if data["validation"]:
        lines = [(curve, curve["steps"], curve["losses"]) for curve in data["validation"]]
        figures["validation-loss"] = _lines(lines, titles["steps"], titles["validation"], data)
    return figures


def _lines(
    lines: Sequence[tuple[Mapping[str, Any], Sequence[Any], Sequence[float | None]]],
    x_title: str,
    y_title: str,
    data: Mapping[str, Any],
) -> "Figure":
    """A line for each curve, given with its x and y."""
    figure, axes = _axes()
    for curve, x, y in lines:
        colour, marker = _style(curve["policy"], data)
        y_values = [float("nan") if value is None else value for value in y]  # a gap in the line
        axes.plot(x, y_values, color=colour, marker=marker, markersize=4, linewidth=1.3, label=curve["label"])
    positive = [value for _, _, y in lines for value in y if value is not None and value > 0]
    if positive and max(positive) > LOG_FACTOR * min(positive):
        axes.set_yscale("log")
    axes.set(xlabel=x_title, ylabel=y_title)
    return figure
