"""The figures as PNG files for papers, drawn by matplotlib (extra `figures`) from what the page's figures draw."""

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from leadspan.errors import RunError
from leadspan.files import file_names
from leadspan.report.charts import LOG_FACTOR, chart_data
from leadspan.report.content import Report
from leadspan.report.costs import COST_WORDS
from leadspan.tables import percent
from leadspan.text import plain, plain_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE_SHEET = (resources.files("leadspan.report") / "assets" / "style.css").read_text("utf-8")
PALETTE: dict[str, str] = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", _STYLE_SHEET.split("}")[0]))
"""Colours of the page's style sheet by name; its first block is the light theme, as paper is light."""
INK, MUTED = PALETTE["ink"], PALETTE["muted"]
MARKERS = ("o", "s", "D", "^", "P")
"""In the order of the symbols in figures.js."""
DPI = 200  # sharp in print at the width of a column


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
    directory.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure] = {}
    names = [name.lower() for name in file_names([task["task"] for task in data["tasks"]], "-")]
    level = f"{percent(report.tasks[0].rows[0].accuracy.level)} intervals"
    notes = {"frontier": f"Bars: {level} of accuracy; one standard deviation of the cost over seeds. "}
    notes["rates"] = f"Bars: {level}. "
    sizes = "; ".join(f"{task.task}, {task.sample_size}" for task in report.tasks)
    paths: list[Path] = []
    with rc_context({"text.parse_math": False}):  # a dollar sign in a name is a dollar sign
        for name, task in zip(names, data["tasks"], strict=True):
            for cost in task["axes"]:
                figures[f"frontier-{name}-{COST_WORDS[cost].lower()}"] = _frontier(task, cost, data)
            figures[f"rates-{name}"] = _rates(task, data)
        figures |= {f"cost-{name}": _split(chart) for name, chart in data["splits"].items()}
        figures |= _curves(data)
        for name, figure in figures.items():
            text = f"{notes.get(name.split('-')[0], '')}Measured on {sizes}; {report.measured.sentence}"
            figure.supxlabel("\n".join(wrap(plain(text), 110)), fontsize=6, color=MUTED)
            paths.append(directory / f"{name}.png")
            metadata = {"Title": report.title}
            figure.savefig(paths[-1], dpi=DPI, bbox_inches="tight", facecolor="white", metadata=metadata)
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
            axes.axhline(value, color=MUTED, linewidth=1, linestyle=style, label=f"{row['label']} {value:.0f} %")
    axes.set(xlabel=task["axes"][cost], ylabel=data["titles"]["accuracy"], xlim=(0, None), ylim=(0, None))
    _legend(axes)
    return figure


def _rates(task: Mapping[str, Any], data: Mapping[str, Any]) -> "Figure":
    rows = task["rows"]
    figure, axes = _axes(height=0.7 + 0.5 * len(rows))
    colours = [_style(row["policy"], data)[0] for row in rows]
    # Two bars of 0.36 around each row, with a gap to the next one; hatching survives a print in grey.
    for offset, key, hatch in ((-0.2, "accuracy", None), (0.2, "termination", "///")):
        values = [row[key] for row in rows]
        axes.barh(
            [i + offset for i in range(len(rows))], [value for value, _, _ in values], height=0.36,
            xerr=[[value - low for value, low, _ in values], [high - value for value, _, high in values]],
            color=["white"] * len(rows) if hatch else colours, edgecolor=colours, hatch=hatch,
            error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2}, label=key.replace("termination", "terminated"),
        )  # fmt: skip
    # Up to 104, so that the end of an interval at 100 % is seen; the first row is on top.
    axes.set(xlabel=data["titles"]["rates"], xlim=(0, 104), ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    _legend(axes)
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
    _legend(axes)
    return figure


def _curves(data: Mapping[str, Any]) -> "dict[str, Figure]":
    figures: dict[str, Figure] = {}
    titles = data["titles"]
    for measured_on in dict.fromkeys(curve["measured_on"] for curve in data["curves"]):
        chosen = [curve for curve in data["curves"] if curve["measured_on"] == measured_on]
        word = measured_on.replace(" ", "-")
        tenths = [([f"{10 * i}-{10 * i + 10}" for i in range(10)], curve["tenths"]["divergence"]) for curve in chosen]
        figures[f"divergence-by-place-{word}"] = _lines(chosen, tenths, titles["tenths"], titles["divergence"], data)
        for section in dict.fromkeys(name for curve in chosen for name in curve["sections"]["divergence"]):
            shown = [curve for curve in chosen if section in curve["sections"]["divergence"]]
            steps = [(curve["steps"], curve["sections"]["divergence"][section]) for curve in shown]
            y_title = f"{titles['divergence']}, {section}"
            figures[f"divergence-{section}-{word}"] = _lines(shown, steps, titles["steps"], y_title, data)
    if data["validation"]:
        steps = [(curve["steps"], curve["losses"]) for curve in data["validation"]]
        figures["validation-loss"] = _lines(data["validation"], steps, titles["steps"], titles["validation"], data)
    return figures


def _lines(
    curves: Sequence[Mapping[str, Any]],
    values: Sequence[tuple[Sequence[Any], Sequence[float | None]]],
    x_title: str,
    y_title: str,
    data: Mapping[str, Any],
) -> "Figure":
    figure, axes = _axes()
    for curve, (x, y) in zip(curves, values, strict=True):
        colour, marker = _style(curve["policy"], data)
        y_values = [float("nan") if value is None else value for value in y]  # a gap in the line
        axes.plot(x, y_values, color=colour, marker=marker, markersize=4, linewidth=1.3, label=curve["label"])
    positive = [value for _, y in values for value in y if value is not None and value > 0]
    if positive and max(positive) > LOG_FACTOR * min(positive):
        axes.set_yscale("log")
    axes.set(xlabel=x_title, ylabel=y_title)
    if values and isinstance(values[0][0][0], str):  # tenths keep the places of those without a value
        axes.set_xlim(-0.3, len(values[0][0]) - 0.7)
    _legend(axes)
    return figure


def _legend(axes: "Axes") -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8)
