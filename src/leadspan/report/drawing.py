"""The figures as PNG files for papers, drawn by matplotlib (extra `figures`) from what the page's figures draw."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from leadspan.errors import RunError
from leadspan.files import file_names
from leadspan.report.charts import chart_data
from leadspan.report.costs import COST_WORDS
from leadspan.report.schema import Report
from leadspan.text import plain, plain_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED = "#1a1f26", "#5d6773"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#c0609a", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "D", "^", "P")
PART_COLOURS = (
    "#0a4f8a", "#3f8fce", "#9cc9ec", "#a8480b", "#e0823a", "#f4c391", "#8b939c", "#5a8f5a", "#b7a6d9"
)  # fmt: skip
DPI = 200


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
    with rc_context({"text.parse_math": False}):  # a dollar sign in a name is a dollar sign
        return _draw_figures(report, directory)


def _draw_figures(report: Report, directory: Path) -> list[Path]:
    data = plain_values(chart_data(report))
    colours = data["colours"]
    directory.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure] = {}
    names = file_names([task["task"].lower() for task in data["tasks"]], "-")
    for name, task in zip(names, data["tasks"], strict=True):
        figures |= {f"frontier-{name}-{COST_WORDS[cost].lower()}": _frontier(task, cost, data) for cost in task["axes"]}
        figures[f"rates-{name}"] = _rates(task, colours)
    figures |= {f"cost-{name}": _split(chart) for name, chart in data["splits"].items()}
    figures |= _curves(data, colours)
    paths = [directory / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        bars = _bars(path.stem, report.tasks[0].rows[0].accuracy.level)
        figure.supxlabel(_measured_on(report, bars), fontsize=6, color=MUTED)
        figure.savefig(path, dpi=DPI, bbox_inches="tight", facecolor="white", metadata={"Title": report.title})
    return paths


def _bars(name: str, level: float) -> str:
    """What the bars of a figure are."""
    if name.startswith("frontier-"):
        return f"Bars: {level:.0%} intervals of accuracy; one standard deviation of the cost over seeds. "
    return f"Bars: {level:.0%} intervals. " if name.startswith("rates-") else ""


def _measured_on(report: Report, bars: str) -> str:
    sizes = "; ".join(f"{task.task}, {task.sample_size}" for task in report.tasks)
    return "\n".join(wrap(plain(f"{bars}Measured on {sizes}; {report.measured.sentence}"), 110))


def _axes(width: float = 6.4, height: float = 3.8) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e2e5e9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    return figure, axes


def _colour(policy: str, colours: Mapping[str, int | None]) -> str:
    number = colours[policy]
    return MUTED if number is None else INK if number == 0 else COLOURS[(number - 1) % len(COLOURS)]


def _marker(policy: str, colours: Mapping[str, int | None]) -> str:
    return MARKERS[((colours[policy] or 1) - 1) // len(COLOURS) % len(MARKERS)]


def _frontier(task: Mapping[str, Any], cost: str, data: Mapping[str, Any]) -> "Figure":
    figure, axes = _axes()
    colours = data["colours"]
    for row in task["rows"]:
        value, low, high = row["accuracy"]
        colour = _colour(row["policy"], colours)
        if cost in row["costs"]:
            x = row["costs"][cost]
            axes.scatter(
                [run["costs"][cost] for run in row["runs"]], [run["accuracy"][0] for run in row["runs"]],
                color=colour, s=12, alpha=0.45, linewidths=0,
            )  # fmt: skip
            axes.errorbar(
                [x], [value], yerr=[[value - low], [high - value]], xerr=row["cost_sds"].get(cost),
                color=colour, marker=_marker(row["policy"], colours), markersize=7, capsize=3, elinewidth=1.2,
                markerfacecolor="white" if row["is_control"] else colour, linestyle="none", label=row["label"],
                clip_on=False, zorder=3,
            )  # fmt: skip
        elif row["role"] != "student":
            style = "--" if row["role"] == "teacher" else ":"
            axes.axhline(value, color=MUTED, linewidth=1, linestyle=style, label=f"{row['label']} {value:.0f} %")
    axes.set(xlabel=task["axes"][cost], ylabel=data["quality"]["accuracy"], xlim=(0, None), ylim=(0, None))
    _legend(axes)
    return figure


def _rates(task: Mapping[str, Any], colours: Mapping[str, int | None]) -> "Figure":
    rows = task["rows"]
    figure, axes = _axes(height=0.7 + 0.5 * len(rows))
    for offset, key, hatch in ((-0.2, "accuracy", None), (0.2, "termination", "///")):
        values = [row[key] for row in rows]
        axes.barh(
            [i + offset for i in range(len(rows))], [value for value, _, _ in values], height=0.36,
            xerr=[[value - low for value, low, _ in values], [high - value for value, _, high in values]],
            color=["white" if hatch else _colour(row["policy"], colours) for row in rows],
            edgecolor=[_colour(row["policy"], colours) for row in rows], hatch=hatch,
            error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2}, label=key.replace("termination", "terminated"),
        )  # fmt: skip
    axes.set(xlabel="Share of samples (%)", xlim=(0, 104), ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    _legend(axes)
    return figure


def _split(chart: Mapping[str, Any]) -> "Figure":
    policies = list(dict.fromkeys(bar["policy"] for bar in chart["bars"]))
    figure, axes = _axes(height=0.8 + 0.5 * len(policies))
    for part, colour in zip(chart["parts"], PART_COLOURS, strict=False):
        for bar in chart["bars"]:
            is_measured = bar["kind"] == "measured"
            start = sum(value for name, value in bar["parts"].items() if _before(name, part, chart["parts"]))
            axes.barh(
                policies.index(bar["policy"]) + (-0.2 if is_measured else 0.2), bar["parts"][part], left=start,
                height=0.36, color=colour, alpha=1 if is_measured else 0.5, edgecolor="white", linewidth=0.5,
            )  # fmt: skip
        axes.plot([], [], color=colour, marker="s", linestyle="none", label=chart["parts"][part])
    is_predicted = any(bar["kind"] == "predicted" for bar in chart["bars"])
    title = chart["title"] + ("; above measured, below (fainter) predicted" if is_predicted else ", measured")
    axes.set(xlabel=title, xlim=(0, None), ylim=(len(policies) - 0.5, -0.5))
    axes.set_yticks(range(len(policies)), policies)
    _legend(axes)
    return figure


def _before(name: str, part: str, titles: Mapping[str, str]) -> bool:
    order = list(titles)
    return order.index(name) < order.index(part)


def _curves(data: Mapping[str, Any], colours: Mapping[str, int | None]) -> "dict[str, Figure]":
    figures: dict[str, Figure] = {}
    title = data["measures"]["divergence"]
    for measured_on in dict.fromkeys(curve["measured_on"] for curve in data["curves"]):
        chosen = [curve for curve in data["curves"] if curve["measured_on"] == measured_on]
        word = measured_on.replace(" ", "-")
        tenths = [([f"{10 * i}-{10 * i + 10}" for i in range(10)], curve["tenths"]["divergence"]) for curve in chosen]
        figures[f"divergence-by-place-{word}"] = _lines(
            chosen, tenths, "Place in the uncut conversation (%)", title, colours
        )
        for section in dict.fromkeys(name for curve in chosen for name in curve["sections"]["divergence"]):
            shown = [curve for curve in chosen if section in curve["sections"]["divergence"]]
            steps = [(curve["steps"], curve["sections"]["divergence"][section]) for curve in shown]
            name = f"divergence-{section}-{word}"
            figures[name] = _lines(shown, steps, "Optimiser steps", f"{title}, {section}", colours)
    if data["validation"]:
        steps = [(curve["steps"], curve["losses"]) for curve in data["validation"]]
        figures["validation-loss"] = _lines(
            data["validation"], steps, "Optimiser steps", "Validation loss (nat per token)", colours
        )
    return figures


def _lines(
    curves: Sequence[Mapping[str, Any]],
    values: Sequence[tuple[Sequence[Any], Sequence[float | None]]],
    x_title: str,
    y_title: str,
    colours: Mapping[str, int | None],
) -> "Figure":
    figure, axes = _axes()
    for curve, (x, y) in zip(curves, values, strict=True):
        policy = curve["policy"]
        y_values = [float("nan") if value is None else value for value in y]
        axes.plot(
            x, y_values, color=_colour(policy, colours), marker=_marker(policy, colours), markersize=4, linewidth=1.3,
            label=curve["label"],
        )  # fmt: skip
    positive = [value for _, y in values for value in y if value is not None and value > 0]
    # The page draws a logarithmic axis from the same factor on (figures.js).
    if positive and max(positive) > 50 * min(positive):
        axes.set_yscale("log")
    axes.set(xlabel=x_title, ylabel=y_title)
    if values and isinstance(values[0][0][0], str):
        axes.set_xlim(-0.3, len(values[0][0]) - 0.7)
    _legend(axes)
    return figure


def _legend(axes: "Axes") -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8)
