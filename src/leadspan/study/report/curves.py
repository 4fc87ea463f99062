"""Figures by section and by place in the conversation, read from the `metrics.jsonl` of runs. Nothing is computed."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from leadspan.errors import RunError
from leadspan.settings import Settings
from leadspan.study.report.gathered import NamedRun

METRICS_FILE = "metrics.jsonl"
MEASURES = {
    "divergence": "Divergence (nat)",
    "cross_entropy": "Cross-entropy (nat)",
    "student_entropy": "Student's entropy (nat)",
    "teacher_entropy": "Teacher's entropy (nat)",
    "teacher_nll": "Teacher's NLL of the data (nat)",
    "agreement": "Agreement (share of positions)",
}
"""Column of `metrics.jsonl` to its name: means over positions, defined in docs/losses.md."""
NUM_TENTHS = 10
MAX_POINTS = 100
"""Log lines kept of a longer curve, evenly spaced; the first and the last are always among them."""

MeasuredOn = Literal["training batches", "validation set"]
_T = TypeVar("_T")
_KEY = re.compile(r"(?P<validation>eval_)?(?P<measure>[a-z_]+)/(?P<group>[a-z]+|tenth_\d)")


class RunCurves(Settings):
    """One run's figures by section and by tenth of the uncut conversation, on one kind of data.

    On training batches each figure is a mean since the log line before, over what the policy left; on the validation
    set a mean over full sequences.
    """

    label: str
    """Label of the run."""
    policy: str
    """The condition, without the seed."""
    measured_on: MeasuredOn
    """Training batches as cut, or uncut validation sequences."""
    divergence_kind: str
    """`loss.divergence.kind` of the recipe: what `divergence` is."""
    steps: list[int]
    """Optimiser steps of the log lines."""
    sections: dict[str, dict[str, list[float | None]]]
    """Measure to section to its figure at each of the steps; null where no position of that section was weighted."""
    tenths: dict[str, list[float | None]]
    """Measure to its ten figures by place at the last step, from the first tenth of the conversation to the last."""


def run_curves(named: Sequence[NamedRun]) -> list[RunCurves]:
    """The curves of every run that was trained against a teacher.

    Raises:
        RunError: A `metrics.jsonl` cannot be read.
    """
    found: list[RunCurves] = []
    for entry in named:
        path = entry.directory / METRICS_FILE
        if entry.run.train is None or not path.exists():
            continue
        lines = read_metrics(path)
        kinds: tuple[MeasuredOn, ...] = ("training batches", "validation set")
        curves = [_curves(entry, lines, kind) for kind in kinds]
        found += [curve for curve in curves if "divergence" in curve.sections]
    return found


def absent_metrics(named: Sequence[NamedRun]) -> list[str]:
    """One sentence for each trained run without a record of its training."""
    lacking = [entry for entry in named if entry.run.train and not (entry.directory / METRICS_FILE).exists()]
    return [f"{entry.label}: no {METRICS_FILE}, so no curves" for entry in lacking]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The log lines of a run; figures that are not finite become null.

    Raises:
        RunError: It cannot be read, or a line is no log line.
    """
    found: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read ({error}); remove the file to report without it") from None
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            found.append({key: _finite(value) for key, value in values.items()} | {"step": int(values["step"])})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RunError(f"{path}:{number}: no log line of a run; remove the file to report without it") from None
    return found


def thinned(lines: Sequence[_T], limit: int = MAX_POINTS) -> list[_T]:
    """At most `limit` lines, evenly spaced, the first and the last among them."""
    if len(lines) <= limit:
        return list(lines)
    return [lines[round(i * (len(lines) - 1) / (limit - 1))] for i in range(limit)]


def _finite(value: Any) -> Any:  # Any: log lines are plain JSON
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _curves(entry: NamedRun, lines: Iterable[Mapping[str, Any]], measured_on: MeasuredOn) -> RunCurves:
    parsed = [(line["step"], _figures(line, measured_on == "validation set")) for line in lines]
    kept = thinned([(step, figures) for step, figures in parsed if figures])
    sections: dict[str, dict[str, list[float | None]]] = {}
    for measure, group in dict.fromkeys(pair for _, figures in kept for pair in figures):
        if not group.startswith("tenth_"):
            sections.setdefault(measure, {})[group] = [figures.get((measure, group)) for _, figures in kept]
    last = kept[-1][1] if kept else {}
    return RunCurves(
        label=entry.label,
        policy=entry.policy,
        measured_on=measured_on,
        divergence_kind=_divergence_kind(entry.run.recipe),
        steps=[step for step, _ in kept],
        sections=sections,
        tenths={name: [last.get((name, f"tenth_{i}")) for i in range(NUM_TENTHS)] for name in sections},
    )


def _figures(line: Mapping[str, Any], is_validation: bool) -> dict[tuple[str, str], float | None]:
    """The figures of a log line on one kind of data, by measure and group."""
    matches = [match for key in line if (match := _KEY.fullmatch(key))]
    return {
        (match["measure"], match["group"]): line[match.string]
        for match in matches
        if match["measure"] in MEASURES and bool(match["validation"]) == is_validation
    }


def _divergence_kind(recipe: Mapping[str, Any]) -> str:
    return str(recipe.get("loss", {}).get("divergence", {}).get("kind", "")).replace("_", " ").replace("kl", "KL")
