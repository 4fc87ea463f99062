"""What the figures draw, in display units: read as JSON by the script in the page, and by the drawing of PNG files.

Shares are percentages; intervals are `[value, low, high]`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from leadspan.results import FlopsByPart, Interval
from leadspan.settings import Settings
from leadspan.study.compare.cost_axes import CostName
from leadspan.study.compare.words import percent, quantity, unit_for
from leadspan.study.report.costs import CostSplit, mean_parts
from leadspan.study.report.curves import MEASURES, RunCurves
from leadspan.study.report.schema import CostFigures, Report, RowFigures, TaskFigures

NUM_COLOURS = 6
"""Policy colours in style.css; further policies reuse them with another marker."""
COST_TITLES: dict[CostName, str] = {
    "seconds": "Training time",
    "peak_memory_bytes": "Peak memory",
    "flops": "FLOPs",
    "tokens": "Training tokens",
    "energy_joules": "Energy",
    "money": "Price",
}
QUALITY_TITLES = {
    "accuracy": "Strict accuracy (%)",
    "kept": "Share of the uncut student's accuracy (%)",
    "termination": "Terminated (% of samples)",
}
PART_TITLES = {"data": "fetching data", "total": "total, not known by part"}


def chart_data(report: Report) -> dict[str, Any]:
    """Everything the figures draw."""
    colours = policy_colours(report)
    splits = [split for split in report.costs if split.role == "student"]
    return {
        "num_colours": NUM_COLOURS,
        "colours": colours,
        "quality": QUALITY_TITLES,
        "tasks": [_task_chart(task, colours) for task in report.tasks],
        "splits": {name: chart for name, chart in _split_charts(splits) if chart["bars"]},
        "measures": MEASURES,
        "curves": [_curves(curve) for curve in report.curves],
        "validation": [curve.model_dump() for curve in report.validation],
    }


def policy_colours(report: Report) -> dict[str, int | None]:
    """Colour number of each policy: null for base and teacher, 0 (ink) for the first uncut reference, then 1, 2, ..."""
    rows = [row for task in report.tasks for row in task.rows]
    roles = {entry.policy: entry.role for entry in [*rows, *report.costs]}
    reference = next((row.reference for row in rows if row.reference), None)
    others = [policy for policy, role in roles.items() if role == "student" and policy != reference]
    numbers: dict[str, int | None] = {policy: number for number, policy in enumerate(others, start=1)}
    return {policy: numbers.get(policy, 0 if policy == reference else None) for policy in roles}


def short(label: str) -> str:
    """A label with the paths in it cut to their last two parts.

    >>> short("base 1: runs/study/before/base/student")
    'base 1: \N{HORIZONTAL ELLIPSIS}/base/student'
    """
    return re.sub(r"(?:[^\s/]*/){2,}([^\s/]+/[^\s/]+)", "\N{HORIZONTAL ELLIPSIS}/\\1", label)


def amount(value: float, cost: CostName, currency: str = "") -> str:
    """A cost with its unit; money with its currency."""
    if cost != "money":
        return quantity(cost, value)
    return f"{value:,.2f} {currency}".rstrip() if value >= 1 else f"{value:.2g} {currency}".rstrip()


def _task_chart(task: TaskFigures, colours: Mapping[str, int | None]) -> dict[str, Any]:
    rows = [row for row in [*task.rows, *task.single_runs] if row.costs]
    units: dict[CostName, tuple[float, str]] = {
        name: unit_for(name, max(row.costs[name].value for row in rows if row.costs and name in row.costs))
        for name in task.cost_names
    }
    single = {row.policy: [one for one in task.single_runs if one.policy == row.policy] for row in task.rows}
    return {
        "task": task.task,
        "axes": {
            name: _with_unit(COST_TITLES[name], task.currency if name == "money" else unit)
            for name, (_, unit) in units.items()
        },
        "rows": [
            {
                **_point(row, units, task.currency),
                "colour": colours[row.policy],
                "runs": [_point(one, units, task.currency) for one in single[row.policy]],
            }
            for row in task.rows
        ],
    }


def _point(row: RowFigures, units: Mapping[CostName, tuple[float, str]], currency: str) -> dict[str, Any]:
    known = row.costs or {}
    costs: dict[CostName, CostFigures] = {name: known[name] for name in units if name in known}
    return {
        "label": short(row.label),
        "policy": row.policy,
        "role": row.role,
        "is_control": row.control is not None,
        "accuracy": _percentages(row.accuracy),
        "termination": _percentages(row.termination),
        "kept": _percentages(row.kept.ratio) if row.kept and row.kept.ratio else None,
        "kept_text": row.kept_text,
        "costs": {name: cost.value / units[name][0] for name, cost in costs.items()},
        "cost_sds": {name: cost.sd / units[name][0] for name, cost in costs.items() if cost.sd},
        "cost_texts": {name: _cost_text(name, cost, currency) for name, cost in costs.items()},
    }


def _cost_text(name: CostName, cost: CostFigures, currency: str) -> str:
    share = f", {percent(cost.of_full)} of the uncut" if cost.of_full is not None else ""
    return amount(cost.value, name, currency) + share


def _percentages(interval: Interval) -> list[float]:
    return [round(100 * end, 3) for end in (interval.value, interval.low, interval.high)]


def _with_unit(title: str, unit: str) -> str:
    return f"{title} ({unit})" if unit else title


def _split_charts(splits: Sequence[CostSplit]) -> list[tuple[str, dict[str, Any]]]:
    timed = [split for split in splits if split.step_seconds]
    foreseen = [split for split in splits if split.predicted_memory]
    flops = [(split.policy, split.flops, split.predicted_flops) for split in splits]
    seconds = [(split.policy, split.step_seconds, _total(split.predicted_seconds)) for split in timed]
    memory = [(split.policy, _total(split.memory_bytes), split.predicted_memory) for split in foreseen]
    return [
        ("flops", _split_chart("Training operations", "flops", flops)),
        ("seconds", _split_chart("Time of all steps", "seconds", seconds)),
        ("memory", _split_chart("Peak memory", "peak_memory_bytes", memory)),
    ]


def _total(value: float | None) -> dict[str, float] | None:
    return None if value is None else {"total": value}


_Parts = Settings | Mapping[str, float] | None


def _split_chart(title: str, cost: CostName, rows: Sequence[tuple[str, _Parts, _Parts]]) -> dict[str, Any]:
    """Two stacked bars for each policy, means over its runs, measured and predicted, where each is known."""
    bars = [
        {"label": policy, "policy": policy, "kind": kind, "parts": parts}
        for policy in dict.fromkeys(policy for policy, _, _ in rows)
        for kind, parts in (
            ("measured", mean_parts([measured for name, measured, _ in rows if name == policy])),
            ("predicted", mean_parts([predicted for name, _, predicted in rows if name == policy])),
        )
        if parts
    ]
    size, unit = unit_for(cost, max((sum(bar["parts"].values()) for bar in bars), default=0.0))
    names = dict.fromkeys(name for bar in bars for name, value in bar["parts"].items() if value)
    ordered = [name for name in (*FlopsByPart.model_fields, *names) if name in names]
    return {
        "title": _with_unit(title, unit),
        "unit": unit,
        "bars": [
            {**bar, "parts": {name: bar["parts"].get(name, 0) / size for name in dict.fromkeys(ordered)}}
            for bar in bars
        ],
        "parts": {name: PART_TITLES.get(name, name.replace("_", " ")) for name in dict.fromkeys(ordered)},
    }


def _curves(curve: RunCurves) -> dict[str, Any]:
    return curve.model_dump(exclude={"divergence_kind"})
