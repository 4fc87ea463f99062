"""The data of the figures, in display units: for the page's script, as JSON, and for the drawing of PNG files.

Shares are percentages; intervals are `[value, low, high]`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from leadspan.costs.flops import FlopsByPart
from leadspan.report.content import Report, TaskFigures
from leadspan.report.costs import Cost, amount, mean_by_part
from leadspan.report.curves import MEASURES
from leadspan.report.rows import Row
from leadspan.report.sentences import retention_text
from leadspan.settings import Settings
from leadspan.statistics.intervals import Interval
from leadspan.tables import CostName, percent, unit_for
from leadspan.text import plain

NUM_COLOURS, NUM_MARKERS = 6, 5
"""Colours of policies in style.css, and markers; further policies reuse the colours with another marker."""
LOG_FACTOR = 50
"""Curves whose values span more than this factor are drawn on a logarithmic axis."""
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
    "retention": "Share of the uncut student's accuracy (%)",
    "termination": "Terminated (% of samples)",
}
AXIS_TITLES = {
    "rates": "Share of samples (%)",
    "tenths": "Position in the uncut conversation (%)",
    "steps": "Optimiser steps",
    "validation": "Validation loss (nat per token)",
}
PART_TITLES = {"data": "fetching data", "total": "total, parts unknown"}


def chart_data(report: Report) -> dict[str, Any]:
    """The data of all figures."""
    # How a base or a teacher was trained says nothing about cuts.
    students = [(report.policies[label], run) for label, run in report.runs.items() if run.role == "student"]
    trained = [(policy, run.train, run.prediction) for policy, run in students if run.train]
    flops = [(policy, train.flops, prediction and prediction.flops) for policy, train, prediction in trained]
    seconds = [
        (policy, train.step_seconds, _total(prediction and prediction.seconds))
        for policy, train, prediction in trained
        if train.step_seconds
    ]
    memory = [
        (policy, _total(train.peak_memory_bytes), prediction.memory)
        for policy, train, prediction in trained
        if prediction
    ]
    splits = {
        "flops": _split_chart("Training operations", "flops", flops),
        "seconds": _split_chart("Time of all steps", "seconds", seconds),
        "memory": _split_chart("Peak memory", "peak_memory_bytes", memory),
    }
    return {
        "styles": policy_styles(report),
        "titles": {**QUALITY_TITLES, **AXIS_TITLES, **MEASURES},
        "log_factor": LOG_FACTOR,
        "tasks": [_task_chart(task) for task in report.tasks],
        "splits": {name: chart for name, chart in splits.items() if chart["bars"]},  # those that the runs recorded
        "curves": [curve.model_dump(exclude={"divergence_kind"}) for curve in report.curves],
        "validation": [
            {"label": label, "policy": report.policies[label], "steps": sorted(map(int, losses))}
            | {"losses": [losses[step] for step in sorted(losses, key=int)]}
            for label, losses in validation_losses(report).items()
        ],
    }


def policy_styles(report: Report) -> dict[str, dict[str, Any]]:
    """Colour, a name in style.css, and number of the marker of each policy, for the page and for PNG files.

    Bases and teachers are muted, the first uncut reference is in ink, and the others take the colours in turn.
    """
    rows = [row for task in report.tasks for row in task.rows]
    roles = {row.policy: row.role for row in rows}
    roles |= {report.policies[label]: run.role for label, run in report.runs.items() if run.train}
    # Ink on every figure: a reader finds the baseline at once.
    reference = next((row.reference for row in rows if row.reference), None)
    students = [policy for policy, role in roles.items() if role == "student" and policy != reference]
    styles = {policy: {"colour": "ink" if policy == reference else "muted", "marker": 0} for policy in roles}
    for number, policy in enumerate(students):
        marker, colour = divmod(number, NUM_COLOURS)
        styles[policy] = {"colour": f"policy-{colour + 1}", "marker": marker % NUM_MARKERS}
    return styles


def short(label: str) -> str:
    """A label with the paths in it shortened to their last two components.

    >>> short("base 1: runs/study/before/base/student")
    'base 1: \N{HORIZONTAL ELLIPSIS}/base/student'
    """
    # Two components tell runs apart; a whole path would fit beside no point of a figure.
    return re.sub(r"(?<!\S)(?:[^\s/]*/){2,}([^\s/]+/[^\s/]+)", "\N{HORIZONTAL ELLIPSIS}/\\1", plain(label))


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
    axes = {
        name: _with_unit(COST_TITLES[name], task.currency if name == "money" else unit)
        for name, (_, unit) in units.items()
    }
    return {"task": task.task, "axes": axes, "rows": points}


def _point(row: Row, units: Mapping[CostName, tuple[float, str]]) -> dict[str, Any]:
    """What is drawn of a single run, and of every row: no more, since a page may have many runs."""
    return {
        "label": short(row.label),
        "accuracy": _percentages(row.accuracy),
        "termination": _percentages(row.termination),
        "retention": _percentages(row.retention.ratio) if row.retention and row.retention.ratio else None,
        "costs": {name: row.costs[name].value / units[name][0] for name in units if row.costs and name in row.costs},
    }


def _percentages(interval: Interval) -> list[float]:
    # Three decimals are more than a figure shows, and keep the page small.
    return [round(100 * end, 3) for end in (interval.value, interval.low, interval.high)]


def _with_unit(title: str, unit: str) -> str:
    return f"{title} ({unit})" if unit else title


def validation_losses(report: Report) -> dict[str, dict[str, float]]:
    """Label to validation loss by step, for every run with a validation set."""
    trained = {label: run.train for label, run in report.runs.items() if run.train}
    return {label: train.validation_loss for label, train in trained.items() if train.validation_loss}


def _total(value: float | None) -> dict[str, float] | None:
    return None if value is None else {"total": value}


_Parts = Settings | Mapping[str, float] | None


def _split_chart(title: str, cost: CostName, rows: Sequence[tuple[str, _Parts, _Parts]]) -> dict[str, Any]:
    """Two stacked bars for each policy, means over its runs, measured and predicted, where each is known."""
    bars = [
        {"label": policy, "policy": policy, "kind": kind, "parts": by_part}
        for policy in dict.fromkeys(policy for policy, _, _ in rows)
        for kind, by_part in (
            ("measured", mean_by_part([measured for name, measured, _ in rows if name == policy])),
            ("predicted", mean_by_part([predicted for name, _, predicted in rows if name == policy])),
        )
        if by_part
    ]
    # One unit for all bars, that of the longest.
    size, unit = unit_for(cost, max((sum(bar["parts"].values()) for bar in bars), default=0.0))
    names = dict.fromkeys(name for bar in bars for name, value in bar["parts"].items() if value)
    # Operations in the order of a step, student before teacher; the parts of time and memory as they are declared.
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
