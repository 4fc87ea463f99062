"""Metrics by section and by tenth of the conversation, read from the `metrics.jsonl` of runs."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter

from leadspan.errors import RunError
from leadspan.report.inputs import NamedRun
from leadspan.results import METRICS_FILE, check_written
from leadspan.settings import Settings

MEASURES = {
    "divergence": "Divergence (nat)",
    "cross_entropy": "Cross-entropy (nat)",
    "student_entropy": "Student's entropy (nat)",
    "teacher_entropy": "Teacher's entropy (nat)",
    "teacher_nll": "Teacher's NLL of the data (nat)",
    "agreement": "Agreement (share of positions)",
}
"""Column of `metrics.jsonl` to its name on the page: means over positions, defined in docs/losses.md."""
NUM_TENTHS = 10
MAX_POINTS = 100
"""Points that are drawn of a longer curve, evenly spaced, with the first and the last: they keep the page small."""

MeasuredOn = Literal["training batches", "validation set"]
_T = TypeVar("_T")
_LINE = TypeAdapter(dict[str, Any])
_STEP = TypeAdapter(Annotated[int, Field(strict=True, ge=0, lt=2**63)])
# Such as `divergence/cot`, `eval_divergence/tenth_3`; all other keys of a log line are of no section.
_KEY = re.compile(r"(?P<validation>eval_)?(?P<measure>[a-z_]+)/(?P<group>[a-z]+|tenth_\d)")


class RunCurves(Settings):
    """The metrics of one run by section and by tenth of the uncut conversation, on one kind of data.

    On training batches each value is a mean since the previous log line, over the tokens that the policy keeps; on the
    validation set it is a mean over full sequences.
    """

    label: str
    """Label of the run."""
    policy: str
    """The condition, without the seed."""
    measured_on: MeasuredOn
    """Training batches as cut, or uncut validation sequences."""
    divergence_kind: str
    """`loss.divergence.kind` of the recipe, in words: which divergence it is."""
    steps: list[int]
    """Optimiser steps of the log lines."""
    sections: dict[str, dict[str, list[float | None]]]
    """Metric to section to value at each step; null where no position of that section had a weight."""
    tenths: dict[str, list[float | None]]
    """Metric to its ten values at the last step, from the first tenth of the conversation to the last."""


def run_curves(named: Sequence[NamedRun]) -> tuple[list[RunCurves], list[str]]:
    """The curves of every run that was trained against a teacher, and a sentence for each damaged file."""
    curves: list[RunCurves] = []
    refused: list[str] = []
    for entry in named:
        path = entry.directory / METRICS_FILE
        if entry.run.train is None or not path.exists():
            continue
        try:
            lines = read_metrics(path)
        except RunError as error:
            refused.append(f"{entry.label}: no curves: {error}")
            continue
        # Runs without a teacher log no divergence, and have nothing to compare here.
        kinds: tuple[MeasuredOn, ...] = ("training batches", "validation set")
        curves += [curve for kind in kinds if "divergence" in (curve := _curves(entry, lines, kind)).sections]
    return curves, refused


def read_metrics(path: Path) -> list[tuple[int, dict[str, float | None]]]:
    """The step and the values of every log line of a run; values that are not finite become null.

    Raises:
        RunError: The file is damaged or cannot be read, or a line is no log line.
    """
    check_written(path)  # a figure from a damaged file would look like any other
    remedy = "repair the file, or remove it to report without it"
    steps: list[tuple[int, dict[str, float | None]]] = []
    number = 0
    try:
        if not path.is_file():
            raise RunError(f"{path}: is not a file; {remedy}")
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):  # noqa: B007  # the number of the line that fails
                values = _LINE.validate_json(line)
                figures = {key: _figure(value) for key, value in values.items() if _KEY.fullmatch(key)}
                steps.append((_STEP.validate_python(values["step"]), figures))
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, KeyError, OverflowError):
        raise RunError(f"{path}:{number}: no log line of a run; {remedy}") from None
    return steps


def thinned(lines: Sequence[_T], limit: int = MAX_POINTS) -> list[_T]:
    """At most `limit` lines, evenly spaced, with the first and the last."""
    # Rounding the places of even steps keeps both ends exact.
    if len(lines) <= limit:
        return list(lines)
    return [lines[round(i * (len(lines) - 1) / (limit - 1))] for i in range(limit)]


def _figure(value: Any) -> float | None:  # Any: log lines are plain JSON
    # `type`, not `isinstance`: JSON's true is an instance of int.
    if value is None or (type(value) in (int, float) and math.isfinite(value)):
        return value
    if type(value) is float:
        return None
    raise ValueError("a figure is a number or null")


def _curves(
    entry: NamedRun, lines: Iterable[tuple[int, Mapping[str, float | None]]], measured_on: MeasuredOn
) -> RunCurves:
    parsed: list[tuple[int, dict[tuple[str, str], float | None]]] = []
    for step, line in lines:
        matches = [match for key in line if (match := _KEY.fullmatch(key)) and match["measure"] in MEASURES]
        of_kind = [match for match in matches if bool(match["validation"]) == (measured_on == "validation set")]
        # Lines of the other kind of data have no figures here, and would thin out those that do.
        if of_kind:
            parsed.append((step, {(match["measure"], match["group"]): line[match.string] for match in of_kind}))
    shown = thinned(parsed)
    sections: dict[str, dict[str, list[float | None]]] = {}
    for measure, group in dict.fromkeys(pair for _, figures in shown for pair in figures):
        if not group.startswith("tenth_"):
            sections.setdefault(measure, {})[group] = [figures.get((measure, group)) for _, figures in shown]
    kind = entry.run.recipe.loss.divergence.kind if entry.run.recipe else ""
    # The tenths are compared at one moment of training; the last log line is the one that all runs have.
    last = shown[-1][1] if shown else {}
    return RunCurves(
        label=entry.label,
        policy=entry.policy,
        measured_on=measured_on,
        divergence_kind=kind.replace("_", " ").replace("kl", "KL"),
        steps=[step for step, _ in shown],
        sections=sections,
        tenths={name: [last.get((name, f"tenth_{i}")) for i in range(NUM_TENTHS)] for name in sections},
    )
