"""From finished runs to the frontier: quality, termination and cost of every condition, beside the uncut one's.

Seeds are a level: the runs of one recipe under several seeds are one row, whose intervals hold how runs differ as well
as problems and samples. What a row is compared with is found from the recipes, see `conditions`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from leadspan.errors import EvaluationError, RunError
from leadspan.evaluation.resampling import Scores
from leadspan.evaluation.sign_flip import sign_flip_test
from leadspan.evaluation.statistics import Retention, base_normalised_retention, retention, runs_mean
from leadspan.results import RUN_FILE, EvalResult, Interval, RunResult, load_run
from leadspan.study.compare.conditions import (
    Condition,
    find_conditions,
    is_full,
    policy_names,
    seed_labels,
    seed_of,
    unique_labels,
)
from leadspan.study.compare.cost_axes import COST_NAMES, Cost, CostName, costs_over
from leadspan.study.compare.notes import notes_on
from leadspan.study.compare.references import base_of, counterparts, find_references
from leadspan.study.compare.rows import Beside, Frontier, Kept, Row
from leadspan.study.record import STUDY_FILE, done_trials

__all__ = [
    "COST_NAMES",
    "Beside",
    "Cost",
    "CostName",
    "Frontier",
    "Kept",
    "Row",
    "build_frontiers",
    "is_full",
    "load_runs",
    "policy_names",
    "stored_runs",
    "unique_labels",
]


def build_frontiers(runs: Sequence[RunResult]) -> list[Frontier]:
    """One frontier per evaluated task, tasks and conditions in the order given.

    Raises:
        RunError: There is no run, or none was evaluated.
    """
    tasks = list(dict.fromkeys(found.task for run in runs for found in run.evaluations))
    if not tasks:
        raise RunError(f"{len(runs)} runs without an evaluation among them; evaluate one before comparing")
    conditions = find_conditions(runs)
    return [_frontier(task, conditions) for task in tasks]


def load_runs(paths: Sequence[Path]) -> list[RunResult]:
    """Read the runs that paths stand for, see `stored_runs`.

    Raises:
        RunError: A path holds no run, or a run that cannot be read.
    """
    return [run for path in paths for _, run in stored_runs(path)]


def stored_runs(path: Path) -> list[tuple[Path, RunResult]]:
    """The runs of a path with their directories: its own, the complete trials of a study, or those one level below.

    Runs of a study carry the name and the control that its record says they have.

    Raises:
        RunError: It holds no run, or one that cannot be read.
    """
    if (path / STUDY_FILE).exists():
        found = [(path / trial.directory, trial) for trial in done_trials(path)]
        known = {place: {"control": trial.control, "name": trial.name} for place, trial in found}
        return [(place, load_run(place).model_copy(update=said)) for place, said in known.items()]
    found = [path] if (path / RUN_FILE).exists() else sorted(file.parent for file in path.glob(f"*/{RUN_FILE}"))
    if not found:
        raise RunError(f"{path}: no {RUN_FILE} in it or one level below; give a run directory or its parent")
    return [(directory, load_run(directory)) for directory in found]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A condition that was evaluated on the task, with the runs that were, on the same problems."""

    condition: Condition
    runs: tuple[RunResult, ...]
    evaluations: tuple[EvalResult, ...]
    left_out: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return self.condition.name

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(seed_of(run) for run in self.runs)

    def of_seeds(self, seeds: Sequence[int]) -> list[RunResult]:
        """The runs of some seeds."""
        return [run for run in self.runs if seed_of(run) in seeds]

    def scores(self, seeds: Sequence[int]) -> list[Scores]:
        """Strict scores of the runs of some seeds."""
        return [found.correct for run, found in zip(self.runs, self.evaluations, strict=True) if seed_of(run) in seeds]


def _frontier(task: str, conditions: Sequence[Condition]) -> Frontier:
    entries = {id(found): entry for found in conditions if (entry := _entry(task, found)) is not None}
    evaluated = [found for found in conditions if id(found) in entries]
    references = find_references(evaluated)
    left_out = [label for entry in entries.values() for label in entry.left_out]
    rows: list[Row] = []
    for entry in entries.values():
        reference, base = references[entry.label], base_of(entry.condition, evaluated)
        row = _row(
            entry,
            entries[id(reference)] if reference else None,
            entries[id(base)] if base and entry.condition.role == "student" else None,
        )
        beside = _beside(entry, [(name, entries[id(one)]) for name, one in _controls(entry.condition, evaluated)])
        rows.append(replace(row, beside=beside))
    notes = [f"{label}: evaluated on other problems than its other seeds, left out." for label in left_out]
    return Frontier(task, tuple(rows), (*notes, *notes_on(rows)))


def _controls(condition: Condition, conditions: Sequence[Condition]) -> list[tuple[str, Condition]]:
    is_policy = condition.role == "student" and condition.control is None and not condition.is_full
    return counterparts(condition, conditions) if is_policy else []


def _entry(task: str, condition: Condition) -> _Entry | None:
    """The runs of a condition on a task; one on other problems than the first is left out, and said so."""
    pairs = [(label, run, found) for label, run in seed_labels(condition) for found in run.evaluations]
    pairs = [(label, run, found) for label, run, found in pairs if found.task == task]
    if not pairs:
        return None
    same = [(run, found) for _, run, found in pairs if found.correct.keys() == pairs[0][2].correct.keys()]
    other = [label for label, _, found in pairs if found.correct.keys() != pairs[0][2].correct.keys()]
    return _Entry(condition, tuple(run for run, _ in same), tuple(found for _, found in same), tuple(other))


def _row(entry: _Entry, reference: _Entry | None, base: _Entry | None) -> Row:
    """The row of a condition, and within it those of its runs, each compared with the reference's run of its seed."""
    row = _single_row(entry, reference, base)
    if len(entry.runs) == 1:
        return replace(row, seeds=(row,))
    labels = {id(run): label for label, run in seed_labels(entry.condition)}
    alone = [
        _Entry(entry.condition, (run,), (found,)) for run, found in zip(entry.runs, entry.evaluations, strict=True)
    ]
    seeds = [replace(_single_row(one, reference, base), label=labels[id(one.runs[0])]) for one in alone]
    return replace(row, seeds=tuple(seeds))


def _single_row(entry: _Entry, reference: _Entry | None, base: _Entry | None) -> Row:
    is_reference = reference is not None and reference.condition is entry.condition
    compared = None if is_reference else reference
    gained = _gained(entry, compared, base) if compared and base and base.condition is not entry.condition else None
    is_student = entry.condition.role == "student"
    return Row(
        label=entry.label,
        policy=entry.label,
        runs=entry.runs,
        evaluations=entry.evaluations,
        accuracy=_over_runs(entry, lambda found: found.accuracy_strict, lambda found: found.correct),
        termination=_over_runs(entry, lambda found: found.termination_rate, lambda found: found.terminated),
        reference=compared.label if compared else None,
        is_reference=is_reference,
        kept=_kept(entry, compared) if compared else None,
        base=base.label if gained and base else None,
        gained=gained,
        costs=(_costs(entry, reference) or None) if is_student else None,
    )


def _costs(entry: _Entry, reference: _Entry | None) -> dict[CostName, Cost]:
    if reference is None:
        return costs_over(entry.runs)
    own, other = shared_seeds(entry.seeds, reference.seeds)
    return costs_over(entry.runs, entry.of_seeds(own), reference.of_seeds(other))


def _over_runs(
    entry: _Entry, interval: Callable[[EvalResult], Interval], scores: Callable[[EvalResult], Scores]
) -> Interval:
    """The recorded interval of a single run; of several, runs as a level above problems and samples."""
    intervals = [interval(found) for found in entry.evaluations]
    if len(intervals) == 1:
        return intervals[0]
    if all(scores(found) for found in entry.evaluations):
        return runs_mean([scores(found) for found in entry.evaluations])
    return Interval(
        value=fmean(found.value for found in intervals),
        low=min(found.low for found in intervals),
        high=max(found.high for found in intervals),
        level=intervals[0].level,
        method="extremes of the runs' intervals, as these results hold no single samples",
    )


def shared_seeds(own: Sequence[int], other: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which seeds of two conditions to compare: those both have, or all of both where they share none."""
    both = tuple(seed for seed in own if seed in other)
    return (both, both) if both else (tuple(own), tuple(other))


def _kept(entry: _Entry, full: _Entry) -> Kept:
    own, other = shared_seeds(entry.seeds, full.seeds)
    return _asked(own, lambda: retention(entry.scores(own), full.scores(other)))


def _gained(entry: _Entry, full: _Entry, base: _Entry) -> Kept:
    own, other = shared_seeds(entry.seeds, full.seeds)
    _, of_base = shared_seeds(own, base.seeds)
    of_base = of_base if len(base.runs) > 1 else base.seeds
    return _asked(own, lambda: base_normalised_retention(entry.scores(own), full.scores(other), base.scores(of_base)))


def _asked(seeds: tuple[int, ...], ask: Callable[[], Retention]) -> Kept:
    try:
        found = ask()
    except EvaluationError as error:
        return Kept(None, None, str(error), seeds)
    return Kept(found.ratio, found.difference, found.reason, seeds)


def _beside(entry: _Entry, controls: Sequence[tuple[str, _Entry]]) -> tuple[Beside, ...]:
    return tuple(_against(entry, name, control) for name, control in controls)


def _against(entry: _Entry, name: str, control: _Entry) -> Beside:
    difference = _kept(entry, control).difference
    if difference is None:
        return Beside(name, control.label, None)
    own, other = shared_seeds(entry.seeds, control.seeds)
    return Beside(name, control.label, difference, sign_flip_test(entry.scores(own), control.scores(other)).p_value)
