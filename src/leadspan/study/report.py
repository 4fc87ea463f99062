"""The report: one HTML file that answers first, draws from run results alone, and needs no network.

Instead of a notebook or a served dashboard: a file that can be mailed, archived beside the runs, printed, and
opened in ten years. plotly.js is embedded once; the content security policy of the page forbids other loads.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from leadspan.results import FlopsByPart, Interval, RunResult
from leadspan.study import tables
from leadspan.study.frontier import (
    COST_NAMES,
    CostName,
    Frontier,
    Row,
    build_frontiers,
    is_full,
    policy_names,
    unique_labels,
)
from leadspan.study.predicted import compared_runs, throughput

NUM_COLOURS = 6
"""Policy colours in report.css; further policies reuse them with another marker."""
COST_TITLES: dict[CostName, str] = {
    "seconds": "Training time",
    "peak_memory_bytes": "Peak memory",
    "flops": "FLOPs",
    "tokens": "Training tokens",
}


def write_report(runs: Sequence[RunResult], path: Path, title: str = "What the cut kept", target: float = 0.9) -> Path:
    """Write the report on a set of runs as one self-contained HTML file, atomically.

    Args:
        runs: Students, base and teacher, in the order to show.
        path: The file to write; its directory is made.
        title: Heading of the page.
        target: Retention that the recommended policy must be sure to reach.

    Returns:
        The path written.

    Raises:
        RunError: There is no run, or none was evaluated.
    """
    frontiers = build_frontiers(runs)
    page = _environment().get_template("report.html.jinja").render(_context(runs, frontiers, title, target))
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(path.suffix + ".tmp")
    staged.write_text(page, encoding="utf-8")
    staged.replace(path)
    return path


def chart_data(runs: Sequence[RunResult], frontiers: Sequence[Frontier]) -> dict[str, Any]:
    """Everything the figures draw, in display units: what the script in the page reads as JSON.

    Shares are percentages; intervals are `[value, low, high]`.
    """
    colours = policy_colours(runs)
    named = _named(runs)
    return {
        "num_colours": NUM_COLOURS,
        "tasks": [_task_chart(frontier, colours) for frontier in frontiers],
        "flops": _flops_chart([(label, run.train.flops) for label, _, run in named if run.train]),
        "validation": [
            {"label": label, "colour": colours[policy], **_curve(run.train.validation_loss)}
            for label, policy, run in named
            if run.train and run.train.validation_loss
        ],
    }


def policy_colours(runs: Sequence[RunResult]) -> dict[str, int | None]:
    """Colour number of each policy: absent for base and teacher, 0 (ink) for the reference, then 1, 2, ..."""
    named = _named(runs)
    reference = next((policy for _, policy, run in named if is_full(run)), None)
    students = dict.fromkeys(policy for _, policy, run in named if run.role == "student" and policy != reference)
    colours: dict[str, int | None] = {policy: None if policy != reference else 0 for _, policy, _ in named}
    return colours | {policy: number for number, policy in enumerate(students, start=1)}


def differing_settings(runs: Sequence[RunResult]) -> dict[str, list[str]]:
    """Dotted setting or version to its value in each student, where it is not the same in all of them."""
    students = [run for run in runs if run.role == "student"]
    flat = [{**dict(_flatten(run.recipe)), **_versions(run)} for run in students]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    values = {key: [settings.get(key, tables.MISSING) for settings in flat] for key in keys}
    return {key: found for key, found in values.items() if len(set(found)) > 1}


def _versions(run: RunResult) -> dict[str, str]:
    return {f"({key})": value for key, value in run.environment.items() if key not in ("date", "seed")}


def _named(runs: Sequence[RunResult]) -> list[tuple[str, str, RunResult]]:
    return list(zip(unique_labels(runs), policy_names(runs), runs, strict=True))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("leadspan", "study"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": tables.percent,
        "count": "{:,.0f}".format,
        "quantity": lambda value, cost: tables.quantity(cost, value),
        "sentence": lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%"),
        "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    }
    return environment


def _context(runs: Sequence[RunResult], frontiers: Sequence[Frontier], title: str, target: float) -> dict[str, Any]:
    folder = Path(__file__).parent
    named = _named(runs)
    cuts = [run.cut for run in runs if run.cut]
    return {
        "title": title,
        "target": target,
        "frontiers": frontiers,
        "named": named,
        "provenance": _provenance(runs),
        "refusals": _refusals(runs),
        "sections": list(dict.fromkeys(name for cut in cuts for name in cut.section_tokens_before)),
        "differing": differing_settings(runs),
        "chart_data": chart_data(runs, frontiers),
        "cost_titles": COST_TITLES,
        "predicted": compared_runs([(label, run) for label, _, run in named]),
        "speeds": throughput([(label, run) for label, _, run in named]),
        "colours": policy_colours(runs),
        "trained": list(dict.fromkeys(policy for _, policy, run in named if run.train)),
        "validated": list(dict.fromkeys(policy for _, policy, run in named if run.train and run.train.validation_loss)),
        "num_colours": NUM_COLOURS,
        "tables": tables,
        "style": Markup((folder / "report.css").read_text(encoding="utf-8")),
        "script": Markup((folder / "report.js").read_text(encoding="utf-8")),
        "plotly": Markup(get_plotlyjs()),
    }


def _provenance(runs: Sequence[RunResult]) -> str:
    """Devices, dates and versions as the runs recorded them."""
    dates = sorted({run.environment["date"][:10] for run in runs if "date" in run.environment})
    parts = [" and ".join(dict.fromkeys(run.train.device for run in runs if run.train))]
    parts += [" to ".join(dates[:: len(dates) - 1 or 1])] if dates else []
    for key in ("leadspan", "commit"):
        versions = dict.fromkeys(run.environment[key] for run in runs if key in run.environment)
        parts += [f"{key} {' and '.join(versions)}"] if versions else []
    return ", ".join(part for part in parts if part)


def _refusals(runs: Sequence[RunResult]) -> list[tuple[list[str], dict[str, int]]]:
    """Labels of the runs that refused the same records, and the number of them by reason."""
    groups: list[tuple[list[str], dict[str, int]]] = []
    for label, run in zip(unique_labels(runs), runs, strict=True):
        same = next((labels for labels, refused in groups if refused == run.refused), None)
        if same is not None:
            same.append(label)
        elif run.refused:
            groups.append(([label], run.refused))
    return groups


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            yield from _flatten(below, f"{path}.{key}" if path else str(key))
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)


def _task_chart(frontier: Frontier, colours: Mapping[str, int | None]) -> dict[str, Any]:
    units: dict[CostName, tuple[float, str]] = {
        name: tables.unit_for(name, max((row.costs[name].value for row in frontier.rows if row.costs), default=0))
        for name in COST_NAMES
    }
    return {
        "task": frontier.task,
        "axes": {
            name: f"{COST_TITLES[name]} ({unit})" if unit else COST_TITLES[name] for name, (_, unit) in units.items()
        },
        "rows": [{**_point(row, units), "colour": colours[row.policy]} for row in frontier.rows],
    }


def _point(row: Row, units: Mapping[CostName, tuple[float, str]]) -> dict[str, Any]:
    costs = row.costs or {}
    return {
        "label": row.label,
        "role": row.role,
        "accuracy": _percentages(row.accuracy),
        "termination": _percentages(row.termination),
        "kept": tables.kept_text(row),
        "costs": {name: cost.value / units[name][0] for name, cost in costs.items()},
        "cost_texts": {
            name: tables.quantity(name, cost.value)
            + (f", {tables.percent(cost.of_full)} of full" if cost.of_full is not None else "")
            for name, cost in costs.items()
        },
    }


def _percentages(interval: Interval) -> list[float]:
    return [round(100 * end, 3) for end in (interval.value, interval.low, interval.high)]


def _flops_chart(trained: Sequence[tuple[str, FlopsByPart]]) -> dict[str, Any]:
    size, unit = tables.unit_for("flops", max((flops.total for _, flops in trained), default=0))
    counted = [flops.model_dump() for _, flops in trained]
    return {
        "labels": [label for label, _ in trained],
        "unit": unit,
        "parts": [
            {
                "name": name,
                "title": name.replace("_", " "),
                "values": [flops[name] / size for flops in counted],
            }
            for name in FlopsByPart.model_fields
            if any(flops[name] for flops in counted)
        ],
    }


def _curve(losses: Mapping[str, float]) -> dict[str, list[float]]:
    ordered = sorted((int(step), loss) for step, loss in losses.items())
    return {"steps": [step for step, _ in ordered], "losses": [loss for _, loss in ordered]}
