"""From finished runs to the frontier: quality, termination and cost of every condition, compared with the uncut one.

Seeds are a level of resampling: the runs of one recipe with several seeds make one row, whose intervals cover the
variation between runs, problems and samples. The recipes decide what a row is compared with, see `conditions`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from leadspan.errors import EvaluationError, RunError
from leadspan.evaluation.result import EvalResult
from leadspan.report.conditions import Condition, base_of, counterparts, find_conditions, find_references
from leadspan.report.costs import clock_fault, costs_over
from leadspan.report.rows import ControlComparison, Frontier, Row, RowRetention
from leadspan.results import RunResult
from leadspan.statistics.intervals import (
    Interval,
    Retention,
    base_normalised_retention,
    retention,
    runs_mean,
    simultaneous_retention,
)
from leadspan.statistics.resampling import Runs, Scores, sign_flip_test
from leadspan.teacher.settings import Served, StoredTargets


def build_frontiers(runs: Sequence[RunResult]) -> list[Frontier]:
    """One frontier for each evaluated task; tasks and conditions keep their order.

    Raises:
        RunError: There is no run, or none was evaluated.
    """
    tasks = list(dict.fromkeys(evaluation.task for run in runs for evaluation in run.evaluations))
    if not tasks:
        raise RunError("no run has an evaluation; evaluate one before comparing")
    conditions = find_conditions(runs)
    return [_frontier(task, conditions) for task in tasks]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A condition on one task, with those of its runs that were evaluated on the same problems."""

    condition: Condition
    label: str
    runs: tuple[RunResult, ...]
    evaluations: tuple[EvalResult, ...]
    labels: tuple[str, ...]
    excluded: tuple[str, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    def of_seeds(self, seeds: Sequence[int]) -> list[RunResult]:
        """The runs of some seeds."""
        return [run for run in self.runs if run.seed in seeds]

    def scores(self, seeds: Sequence[int]) -> list[Scores]:
        """Strict scores of the runs of some seeds."""
        return [result.correct for run, result in zip(self.runs, self.evaluations, strict=True) if run.seed in seeds]


def _frontier(task: str, conditions: Sequence[Condition]) -> Frontier:
    entries = {condition.name: entry for condition in conditions if (entry := _entry(task, condition)) is not None}
    evaluated = [condition for condition in conditions if condition.name in entries]
    references = find_references(evaluated)
    rows: list[Row] = []
    for name, entry in entries.items():
        reference, base = references[name], base_of(entry.condition, evaluated)
        full_entry = entries[reference.name] if reference else None
        # A gain over the base is a figure of students alone.
        base_entry = entries[base.name] if base and entry.condition.role == "student" else None
        row = _row(entry, full_entry, base_entry)
        columns = zip(entry.labels, entry.runs, entry.evaluations, strict=True)
        alone = [_Entry(entry.condition, label, (run,), (result,), (label,)) for label, run, result in columns]
        single_runs = tuple(_row(single, full_entry, base_entry) for single in alone) if len(alone) > 1 else (row,)
        pairs = counterparts(entry.condition, evaluated)
        controls: list[ControlComparison] = []
        for kind, condition in pairs:
            control = entries[condition.name]
            # The interval says by how much the two differ over seeds, the test whether these runs do.
            difference, p_value = _retention(entry, control).difference, None
            if difference is not None:
                seeds, of_control = shared_seeds(entry.seeds, control.seeds)
                p_value = sign_flip_test(entry.scores(seeds), control.scores(of_control)).p_value
            controls.append(
                ControlComparison(control=kind, label=control.label, difference=difference, p_value=p_value)
            )
        rows.append(row.model_copy(update={"single_runs": single_runs, "against_controls": controls}))
    rows = _with_simultaneous(rows, entries)
    excluded = [label for entry in entries.values() for label in entry.excluded]
    notes = [f"{label} was evaluated on other problems than its other seeds, and is left out." for label in excluded]
    # Base and teacher were trained for another purpose, or elsewhere: nothing is compared with their times.
    clock = clock_fault([run for row in rows if row.role == "student" for run in row.runs])
    return Frontier(task, tuple(rows), (*notes, *notes_on(rows, clock)), clock)


def _entry(task: str, condition: Condition) -> _Entry | None:
    """The runs of a condition on a task; those on other problems than the first are excluded and named."""
    runs: list[tuple[str, RunResult, EvalResult]] = []
    excluded: list[str] = []
    for label, run in zip(condition.labels(), condition.runs, strict=True):
        for result in run.evaluations:
            if result.task != task:
                continue
            # Seeds are a level above problems only where all of them answered the same problems.
            if runs and result.correct.keys() != runs[0][2].correct.keys():
                excluded.append(label)
            else:
                runs.append((label, run, result))
    # A condition that was not evaluated on the task has no row there.
    if not runs:
        return None
    labels, same_runs, results = zip(*runs, strict=True)
    return _Entry(condition, condition.name, same_runs, results, labels, tuple(excluded))


def _row(entry: _Entry, reference: _Entry | None, base: _Entry | None) -> Row:
    """The row of a condition, or of a single run: that is compared with the reference's run of the same seed."""
    first, result, evaluations = entry.runs[0], entry.evaluations[0], entry.evaluations
    is_reference = reference is not None and reference.condition is entry.condition
    compared = None if is_reference else reference
    gain = None
    if compared and base and base.condition is not entry.condition:
        seeds, of_full = shared_seeds(entry.seeds, compared.seeds)
        # A base that was evaluated once serves all seeds; several are paired with the students of the same seeds.
        _, of_base = shared_seeds(seeds, base.seeds) if len(base.runs) > 1 else ((), base.seeds)
        scores = entry.scores(seeds), compared.scores(of_full), base.scores(of_base)
        gain = _or_refused(seeds, lambda: base_normalised_retention(*scores))
    is_student = first.role == "student"
    costs = {}
    # A base or a teacher is trained for another purpose: its cost is no cost of a cut.
    if is_student and reference is not None:
        seeds, of_full = shared_seeds(entry.seeds, reference.seeds)
        costs = costs_over(entry.runs, entry.of_seeds(seeds), reference.of_seeds(of_full))
    elif is_student:
        costs = costs_over(entry.runs)
    return Row(
        label=entry.label,
        policy=entry.condition.name,
        role=first.role,
        control=first.control if is_student else None,
        p=first.policy.proportion if first.policy else None,
        seeds=list(entry.seeds),
        num_problems=result.num_problems,
        samples_per_problem=result.samples_per_problem,
        accuracy=_over_runs(evaluations, lambda of_run: of_run.accuracy_strict, lambda of_run: of_run.correct),
        termination=_over_runs(evaluations, lambda of_run: of_run.termination_rate, lambda of_run: of_run.terminated),
        cap_hit_rate=fmean(of_run.cap_hit_rate for of_run in evaluations),
        tokens_p50=fmean(of_run.tokens_p50 for of_run in evaluations),
        reference=compared.label if compared else None,
        is_reference=is_reference,
        retention=_retention(entry, compared) if compared else None,
        base=base.label if gain and base else None,
        gain=gain,
        costs=costs or None,
        runs=entry.runs,
        evaluations=entry.evaluations,
    )


def _over_runs(
    evaluations: Sequence[EvalResult],
    interval: Callable[[EvalResult], Interval],
    scores: Callable[[EvalResult], Scores],
) -> Interval:
    """The recorded interval of a single run; for several, runs are resampled as a level above problems and samples."""
    intervals = [interval(result) for result in evaluations]
    if len(intervals) == 1:
        return intervals[0]
    # Results without single answers cannot be resampled.
    if all(scores(result) for result in evaluations):
        return runs_mean([scores(result) for result in evaluations])
    return Interval(
        value=fmean(of_run.value for of_run in intervals),
        low=min(of_run.low for of_run in intervals),
        high=max(of_run.high for of_run in intervals),
        level=intervals[0].level,
        method="extremes of the runs' intervals, as these results hold no single samples",
    )


def shared_seeds(first: Sequence[int], second: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The seeds of two conditions to compare: the shared ones, or all of both where they share none."""
    # Runs of one seed saw the same data in the same order, so what the seed does to both cancels.
    both = tuple(seed for seed in first if seed in second)
    return (both, both) if both else (tuple(first), tuple(second))


def _retention(entry: _Entry, full: _Entry) -> RowRetention:
    seeds, of_full = shared_seeds(entry.seeds, full.seeds)
    return _or_refused(seeds, lambda: retention(entry.scores(seeds), full.scores(of_full)))


def _or_refused(seeds: tuple[int, ...], compute: Callable[[], Retention]) -> RowRetention:
    """Retention, or the reason why it cannot be computed, such as different problems."""
    try:
        result = compute()
    except EvaluationError as error:
        return RowRetention(ratio=None, difference=None, reason=str(error), seeds=seeds)
    return RowRetention(ratio=result.ratio, difference=result.difference, reason=result.reason, seeds=seeds)


def _with_simultaneous(rows: Sequence[Row], entries: Mapping[str, _Entry]) -> list[Row]:
    """The rows; candidates of a recommendation get an interval that is simultaneous over those of one uncut run."""
    # Students of different uncut runs are never chosen among each other, so each group has its own level.
    pairs: dict[str, dict[str, tuple[Runs, Runs]]] = {}
    for row in rows:
        if row.is_candidate and row.reference and row.retention and row.retention.ratio:
            entry, full = entries[row.label], entries[row.reference]
            seeds, of_full = shared_seeds(entry.seeds, full.seeds)
            pairs.setdefault(row.reference, {})[row.label] = (entry.scores(seeds), full.scores(of_full))
    groups = [simultaneous_retention(group) for group in pairs.values()]
    intervals = {label: interval for group in groups for label, interval in group.items()}
    widened: list[Row] = []
    for row in rows:
        share = row.retention
        if share is not None and row.label in intervals:
            share = share.model_copy(update={"simultaneous": intervals[row.label]})
        widened.append(row.model_copy(update={"retention": share}))
    return widened


def notes_on(rows: Sequence[Row], clock: str | None) -> list[str]:
    """One sentence for each reason not to compare some rows, and for each choice behind the comparison.

    Args:
        rows: All rows of a task.
        clock: Why times cannot be compared; None where they can.
    """
    students = [row for row in rows if row.role == "student"]
    seeds = {row.label: tuple(row.seeds) for row in rows}
    # Comparisons that omit a run of the row's or of its reference's, or pair different seeds.
    labels: dict[str, list[str]] = {}
    for row in rows:
        if row.retention is None or row.reference is None:
            continue
        compared, of_reference = row.retention.seeds, seeds[row.reference]
        # All seeds were compared with their own: nothing to say.
        if compared == seeds[row.label] == of_reference:
            continue
        listed = ", ".join(map(str, compared))
        how = f"compared with {row.reference} over the shared seeds ({listed})."
        if not set(compared) <= set(of_reference):
            how = (
                f"no seed is shared with {row.reference}, so its seeds ({listed}) are compared with those of "
                f"{row.reference} ({', '.join(map(str, of_reference))})."
            )
        # Rows that share a reason share a sentence.
        labels.setdefault(how, []).append(row.label)
    notes = [*_reference_notes(students), *(f"{', '.join(names)}: {how}" for how, names in labels.items())]
    if clock:
        notes.append(f"Times are not compared, because {clock}; policies are ranked by FLOPs instead.")
    # A process counts what it holds, an allocator what it handed out.
    sources = dict.fromkeys(run.train.memory_source for row in students for run in row.runs if run.train)
    if len(sources) > 1:
        notes.append(f"Peak memory was measured in different ways ({'; '.join(sources)}) and cannot be compared.")
    recipes = [row.runs[0].recipe for row in students]
    if any(recipe and isinstance(recipe.targets, StoredTargets) for recipe in recipes):
        notes.append("Targets came from a store; no row's cost includes its capture, which ran once for all students.")
    if any(recipe and isinstance(recipe.teacher, Served) and recipe.store_path is None for recipe in recipes):
        notes.append("A server ran the teacher; costs include the time spent waiting for it, not its memory and FLOPs.")
    return notes


def _reference_notes(students: Sequence[Row]) -> list[str]:
    fulls = [row for row in students if row.cut_kind == "full"]
    references = list(dict.fromkeys(row.reference for row in students if row.reference))
    if not fulls:
        return ["No student was trained on uncut traces (cut.kind: full), so nothing can be compared with one."]
    notes: list[str] = []
    recipes = {row.label: row.runs[0].recipe for row in fulls if row.control is None}
    candidates = {label for label, recipe in recipes.items() if recipe is not None and recipe.has_teacher}
    alone = [row.label for row in students if row.reference is None and row.label not in {*references, *candidates}]
    if alone:
        rule = "of the same student was distilled from a teacher and is no control"
        notes.append(f"Compared with no uncut run, because none {rule}: {', '.join(alone)}.")
    # A reader has to know which of several baselines a row has.
    if len(references) > 1:
        rule = "each row is compared with the one whose recipe differs from its own in the fewest settings"
        notes.append(f"{len(references)} conditions are uncut ({', '.join(references)}): {rule}.")
    return notes
