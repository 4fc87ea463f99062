"""The inputs of a report, read from disk: runs, studies, audits, and the metrics of training.

Metrics are shown by section and by tenth of the conversation; they come from the `metrics.jsonl` of the runs.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter

from leadspan.audit.findings import AUDIT_FILE, AuditResult, load_audit
from leadspan.errors import RunError
from leadspan.recipe import TrialId
from leadspan.report.conditions import find_conditions
from leadspan.results import METRICS_FILE, RUN_FILE, RunResult, check_written, load_run
from leadspan.settings import Settings
from leadspan.study.record import STUDY_FILE, StudyRecord, TrialRecord, load_study

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


@dataclass(frozen=True, slots=True)
class ReportInputs:
    """Everything a report reads.

    Attributes:
        runs: Finished runs, in the order in which they are shown.
        directories: The directory of each run, with its metrics and samples.
        studies: Studies among the paths, for the trials that have no result.
        audits: Audits of the traces.
        skipped: Paths that hold no run.
        refused: Damaged files, each with the reason; their content is in no figure.
    """

    runs: tuple[RunResult, ...]
    directories: tuple[Path, ...]
    studies: tuple[StudyRecord, ...] = ()
    audits: tuple[AuditResult, ...] = ()
    skipped: tuple[Path, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NamedRun:
    """A run with the names that it has on the page.

    Attributes:
        label: Unique among the runs: the policy, with the seed where several runs share it.
        policy: The condition, without the seed.
        run: The run.
        directory: Its run directory.
    """

    label: str
    policy: str
    run: RunResult
    directory: Path


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


def _stored_at(path: Path) -> ReportInputs:
    """The runs of a path: the complete trials of a study, the run in it, or those one level below."""
    study: StudyRecord | None = None
    trials: dict[Path, TrialRecord | None]
    if (path / STUDY_FILE).exists():
        try:
            study = load_study(path)
        except RunError as error:
            return ReportInputs((), (), refused=(str(error),))
        trials = {path / trial.directory: trial for trial in study.of_state("done")}
    elif (path / RUN_FILE).exists():
        trials = {path: None}
    else:
        # Sorted, because the order of a directory differs between machines.
        trials = {file.parent: None for file in sorted(path.glob(f"*/{RUN_FILE}"))}
    runs: dict[Path, RunResult] = {}
    refused: list[str] = []
    for directory, trial in trials.items():
        try:
            run = load_run(directory)
        # One damaged run does not take the others with it.
        except RunError as error:
            refused.append(str(error))
            continue
        if study and trial:
            # The record has the last word on identity and price: a study that was changed may have renamed a condition.
            changes = {"trial": TrialId(study=study.name, axes=trial.axes, control=trial.control)}
            changes |= {"plan": trial.plan} if trial.plan else {}
            recipe = run.recipe and run.recipe.model_copy(update=changes)
            run = run.model_copy(update={"name": trial.name, "control": trial.control, "recipe": recipe})
        runs[directory] = run
    return ReportInputs(tuple(runs.values()), tuple(runs), studies=(study,) if study else (), refused=tuple(refused))


def read_inputs(paths: Sequence[Path | str], audits: Sequence[Path] = ()) -> ReportInputs:
    """Read runs, studies and audits.

    Args:
        paths: Run directories, directories of them, or studies' directories. An `audit.json` in one is read too. Among
            several paths, those that hold no run are skipped; a run that two of them hold counts once. A damaged file
            is named in `refused`, and everything else is read.
        audits: Further files that `leadspan audit --json` wrote.

    Raises:
        RunError: There is no path, one does not exist, none holds a readable run, or a file of `audits` is no audit.
    """
    stored = {path: _stored_at(path) for path in dict.fromkeys(map(Path, paths))}
    if not stored:
        raise RunError("no path was given to read runs from; give a run directory or its parent")
    # Keyed by the resolved path: a study and one of its trials may both be given, and the study's record counts.
    runs: dict[Path, tuple[Path, RunResult]] = {}
    for at in stored.values():
        for directory, run in zip(at.directories, at.runs, strict=True):
            if at.studies or directory.resolve() not in runs:
                runs[directory.resolve()] = directory, run
    refused = list(dict.fromkeys(reason for at in stored.values() for reason in at.refused))
    missing = [path for path in stored if not path.exists()]
    if missing or not runs:
        if refused and not missing:
            raise RunError("\n".join(refused))
        path = [*missing, *stored][0]
        for study in stored[path].studies:
            raise RunError(f"{path}: none of the {len(study.trials)} trials of the study is complete; run the study")
        raise RunError(f"{path}: no {RUN_FILE} in it or one level below; give a run directory or its parent")
    directories = [directory for directory, _ in runs.values()]
    loaded = {path.resolve(): load_audit(path) for path in audits}
    for path in (directory / AUDIT_FILE for directory in [*stored, *directories]):
        if path.exists() and path.resolve() not in loaded:
            try:
                loaded[path.resolve()] = load_audit(path)
            except RunError as error:
                refused.append(str(error))
    return ReportInputs(
        runs=tuple(run for _, run in runs.values()),
        directories=tuple(directories),
        studies=tuple(study for at in stored.values() for study in at.studies),
        audits=tuple(loaded.values()),
        skipped=tuple(path for path, at in stored.items() if not at.runs and not at.refused),
        refused=tuple(refused),
    )


def named_runs(inputs: ReportInputs) -> list[NamedRun]:
    """All runs with the names of the frontier's rows, in the order of the inputs."""
    # By identity: two runs may have equal contents.
    names = {
        id(run): (label, condition.name)
        for condition in find_conditions(inputs.runs)
        for label, run in zip(condition.labels(), condition.runs, strict=True)
    }
    runs = zip(inputs.runs, inputs.directories, strict=True)
    return [NamedRun(*names[id(run)], run, directory) for run, directory in runs]


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


def thinned(lines: Sequence[_T]) -> list[_T]:
    """At most `MAX_POINTS` lines, evenly spaced, with the first and the last."""
    # Rounding the places of even steps keeps both ends exact.
    if len(lines) <= MAX_POINTS:
        return list(lines)
    return [lines[round(i * (len(lines) - 1) / (MAX_POINTS - 1))] for i in range(MAX_POINTS)]


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
