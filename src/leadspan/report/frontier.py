"""From finished runs to the frontier: quality, termination and cost of every condition, compared with the uncut one.

Seeds are a level of resampling: the runs of one recipe with several seeds make one row, whose intervals cover the
variation between runs, problems and samples. The recipes decide what a row is compared with, see `conditions`.
"""

from collections.abc import Sequence
from statistics import fmean

from leadspan.errors import EvaluationError, RunError
from leadspan.evaluation.result import EvalResult
from leadspan.report.inputs import Condition, base_of, counterparts, find_conditions, find_references, flat
from leadspan.report.rows import (
    ControlComparison,
    Frontier,
    Row,
    RowRetention,
    costs_over,
    currencies_of,
    sampled_apart,
)
from leadspan.results import RunResult
from leadspan.statistics.intervals import (
    Interval,
    base_normalised_retention,
    retention,
    runs_mean,
    simultaneous_retention,
)
from leadspan.statistics.resampling import Runs, Scores, sign_flip_test
from leadspan.tables import listed, quantity
from leadspan.teacher.settings import Served, StoredTargets

MAX_RATE_RATIO = 1.5
"""Similar runs whose operations per second differ by more than this factor shared their device with other work."""


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


def _frontier(task: str, conditions: Sequence[Condition]) -> Frontier:
    evaluated: dict[str, tuple[Condition, list[Row]]] = {}
    notes: list[str] = []
    for condition in conditions:
        rows_of, excluded = _evaluated(task, condition)
        # A condition that was not evaluated on the task has no row there.
        if rows_of:
            evaluated[condition.name] = condition, rows_of
        reason = "was evaluated on other problems than its other seeds, and is left out."
        notes += [f"{label} {reason}" for label in excluded]
    conditions = [condition for condition, _ in evaluated.values()]
    references = find_references(conditions)
    rows: list[Row] = []
    candidates: dict[str, dict[str, tuple[Runs, Runs]]] = {}
    for name, (condition, (row, *alone)) in evaluated.items():
        reference, base = references[name], base_of(condition, conditions)
        full = evaluated[reference.name][1][0] if reference else None
        # A gain over the base is a figure of students alone.
        base_row = evaluated[base.name][1][0] if base and row.role == "student" else None
        row = _compared(row, full, base_row)
        single_runs = tuple(_compared(single, full, base_row) for single in alone) or (row,)
        controls: list[ControlComparison] = []
        for kind, counterpart in counterparts(condition, conditions):
            control = evaluated[counterpart.name][1][0]
            # The interval says by how much the two differ over seeds, the test whether these runs do.
            difference, p_value = _retention(row, control).difference, None
            if difference is not None:
                _, scores, of_control = _paired(row, control)
                p_value = sign_flip_test(scores, of_control).p_value
            controls.append(
                ControlComparison(control=kind, label=control.label, difference=difference, p_value=p_value)
            )
        rows.append(row.model_copy(update={"single_runs": single_runs, "against_controls": controls}))
        # Students of different uncut runs are never chosen among each other, so each group has its own level.
        if row.is_candidate and full and row.retention and row.retention.ratio:
            candidates.setdefault(full.label, {})[row.label] = _paired(row, full)[1:]
    for group in candidates.values():
        intervals = simultaneous_retention(group)
        for index, row in enumerate(rows):
            if row.label in intervals and row.retention:
                widened = row.retention.model_copy(update={"simultaneous": intervals[row.label]})
                rows[index] = row.model_copy(update={"retention": widened})
    # Base and teacher were trained for another purpose, or elsewhere: nothing is compared with their times.
    clock = clock_fault([run for row in rows if row.role == "student" for run in row.runs])
    return Frontier(task, tuple(rows), (*notes, *_notes(rows, clock)), clock)


def _evaluated(task: str, condition: Condition) -> tuple[list[Row], list[str]]:
    """The row of a condition on a task and those of its single runs, compared with nothing; and the excluded labels.

    Runs that were evaluated on other problems than the first are excluded.
    """
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
    groups = [(condition.name, runs)] if runs else []
    # A lone run that was evaluated keeps its seed in its label, by which its samples and its recipe are found.
    groups += [(single[0], [single]) for single in runs if len(condition.runs) > 1]
    rows: list[Row] = []
    for label, of_label in groups:
        _, same_runs, evaluations = zip(*of_label, strict=True)
        first, result = same_runs[0], evaluations[0]
        rows.append(
            Row(
                label=label,
                policy=condition.name,
                role=first.role,
                control=first.control if first.role == "student" else None,
                p=first.policy.proportion if first.policy else None,
                seeds=[run.seed for run in same_runs],
                num_problems=result.num_problems,
                samples_per_problem=result.samples_per_problem,
                accuracy=_over_runs([(of_run.accuracy_strict, of_run.correct) for of_run in evaluations]),
                termination=_over_runs([(of_run.termination_rate, of_run.terminated) for of_run in evaluations]),
                cap_hit_rate=fmean(of_run.cap_hit_rate for of_run in evaluations),
                tokens_p50=fmean(of_run.tokens_p50 for of_run in evaluations),
                runs=same_runs,
                evaluations=evaluations,
            )
        )
    return rows, excluded


def _compared(row: Row, reference: Row | None, base: Row | None) -> Row:
    """A row with what it keeps of the reference, of the gain over a base, and its costs beside the reference's."""
    is_reference = reference is not None and reference.policy == row.policy
    full = None if is_reference else reference
    gain = _retention(row, full, base) if full and base and base.policy != row.policy else None
    costs = {}
    # A base or a teacher is trained for another purpose: its cost is no cost of a cut.
    if row.role == "student" and reference is not None:
        seeds, of_full = shared_seeds(row.seeds, reference.seeds)
        of_seeds = [run for run in row.runs if run.seed in seeds]
        costs = costs_over(row.runs, of_seeds, [run for run in reference.runs if run.seed in of_full])
    elif row.role == "student":
        costs = costs_over(row.runs)
    compared = {
        "reference": full.label if full else None,
        "is_reference": is_reference,
        "retention": _retention(row, full) if full else None,
        "base": base.label if gain and base else None,
        "gain": gain,
        "costs": costs or None,
    }
    return row.model_copy(update=compared)


def _over_runs(runs: Sequence[tuple[Interval, Scores]]) -> Interval:
    """The recorded interval of a single run; for several, runs are resampled as a level above problems and samples."""
    intervals, scores = [interval for interval, _ in runs], [of_run for _, of_run in runs]
    if len(runs) == 1:
        return intervals[0]
    # Results without single answers cannot be resampled.
    if all(scores):
        return runs_mean(scores)
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


def _paired(row: Row, other: Row) -> tuple[tuple[int, ...], list[Scores], list[Scores]]:
    """The seeds of a row that are compared with another row, and the scores of both."""
    seeds, of_other = shared_seeds(row.seeds, other.seeds)
    return seeds, row.scores(seeds), other.scores(of_other)


def _retention(row: Row, full: Row, base: Row | None = None) -> RowRetention:
    """Retention, with a base that of the gain over it; or the reason to refuse it, such as different problems."""
    seeds, scores, of_full = _paired(row, full)
    # Under another cap or temperature a student has other answers, whatever it was trained on.
    if sampled := sampled_apart([full, row, *([base] if base else [])]):
        reason = f"answers were sampled with different settings ({sampled}); evaluate both alike"
        return RowRetention(ratio=None, difference=None, reason=reason, seeds=seeds)
    try:
        if base is None:
            result = retention(scores, of_full)
        else:
            # A base that was evaluated once serves all seeds; several are paired with the students of the same seeds.
            of_base = shared_seeds(seeds, base.seeds)[1] if len(base.runs) > 1 else base.seeds
            result = base_normalised_retention(scores, of_full, base.scores(of_base))
    except EvaluationError as error:
        return RowRetention(ratio=None, difference=None, reason=str(error), seeds=seeds)
    return RowRetention(ratio=result.ratio, difference=result.difference, reason=result.reason, seeds=seeds)


def clock_fault(runs: Sequence[RunResult]) -> str | None:
    """Why the times of training runs cannot be compared, or None where they can.

    Runs are similar if they train the same student on the same device, and all have a live teacher or none has. Their
    operations per second differ by how well short sequences fill the device, but by no more than `MAX_RATE_RATIO`.
    Where they differ by more, or the devices differ, times say more about the machine than about the cuts. Runs with
    rollouts are left out: a token takes longer to draw than to train on, so their rates follow from their horizons.
    """
    trained = [(run, run.train) for run in runs if run.train is not None]
    devices = list(dict.fromkeys(train.device for _, train in trained))
    if len(devices) > 1:
        return f"times come from different devices ({'; '.join(devices)})"
    groups: dict[tuple[str, bool], list[float]] = {}
    for run, train in trained:
        seconds = train.typical_seconds or train.steady_seconds
        student = run.start.model_dump_json(exclude={"seed"}) if run.start else ""
        if seconds and not (run.recipe and run.recipe.rollout):
            groups.setdefault((student, train.flops.teacher_body > 0), []).append(train.flops.total / seconds)
    # Seeds and cuts are in one group: the greatest difference between them is the length of their sequences.
    for rates in groups.values():
        if max(rates) > MAX_RATE_RATIO * min(rates):
            slow, fast = (f"{quantity('flops', rate)}/s" for rate in (min(rates), max(rates)))
            return (
                f"runs on {devices[0]} trained at between {slow} and {fast}, more than a factor of {MAX_RATE_RATIO:g} "
                "apart, as they do where other work shares the device"
            )
    return None


# The cut, and what changes no training.
_NOT_NAMED = ("cut.", "evaluation.", "data.cache_dir", "training.report_to", "training.log_every")


def _notes(rows: Sequence[Row], clock: str | None) -> list[str]:
    """One sentence for each reason not to compare some rows, and for each choice behind the comparison."""
    students = [row for row in rows if row.role == "student"]
    fulls = [row for row in students if row.cut_kind == "full"]
    notes = ["No student was trained on uncut traces (cut.kind: full), so nothing can be compared with one."]
    if any(row.is_reference for row in students):
        references = list(dict.fromkeys(row.reference for row in students if row.reference))
        recipes = {row.label: row.runs[0].recipe for row in fulls if row.control is None}
        candidates = {label for label, recipe in recipes.items() if recipe is not None and recipe.has_teacher}
        alone = [row.label for row in students if row.reference is None and row.label not in {*references, *candidates}]
        why = "because none of the same student was distilled from a teacher and is no control"
        notes = [f"Compared with no uncut run, {why}: {listed(alone)}."] if alone else []
        # A reader has to know which of several baselines a row has.
        if len(references) > 1:
            rule = "each row is compared with the one whose recipe differs from its own in the fewest settings"
            notes.append(f"{len(references)} conditions are uncut ({listed(references)}): {rule}.")
    notes += _other_differences(students)
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
        shared = ", ".join(map(str, compared))
        how = f"compared with {row.reference} over the shared seeds ({shared})."
        if not set(compared) <= set(of_reference):
            how = (
                f"no seed is shared with {row.reference}, so its seeds ({shared}) are compared with those of "
                f"{row.reference} ({', '.join(map(str, of_reference))})."
            )
        # Rows that share a reason share a sentence.
        labels.setdefault(how, []).append(row.label)
    notes += [f"{listed(names)}: {how}" for how, names in labels.items()]
    # A process counts what it holds, an allocator what it handed out.
    sources = dict.fromkeys(run.train.memory_source for row in students for run in row.runs if run.train)
    currencies = currencies_of(run for row in rows for run in row.runs)
    sampled = sampled_apart(rows)
    trained = [recipe for row in students if (recipe := row.runs[0].recipe)]
    is_stored = any(isinstance(recipe.targets, StoredTargets) for recipe in trained)
    is_served = any(isinstance(recipe.teacher, Served) and recipe.store_path is None for recipe in trained)
    of_all = {
        f"Times are not compared, because {clock}; policies are ranked by FLOPs instead.": clock is not None,
        f"Peak memory was measured in different ways ({'; '.join(sources)}) and cannot be compared.": len(sources) > 1,
        f"Answers were sampled with different settings ({sampled}) and cannot be compared.": bool(sampled),
        f"Prices are in different currencies ({', '.join(currencies)}) and are not compared.": len(currencies) > 1,
        "Targets came from a store; no row's cost includes its capture, which ran once for all students.": is_stored,
        "A server ran the teacher; costs include the time spent waiting for it, not its memory and FLOPs.": is_served,
    }
    return notes + [note for note, holds in of_all.items() if holds]


def _other_differences(students: Sequence[Row]) -> list[str]:
    """What differs between a student and its uncut run besides the cut; in a study the names of conditions say it."""
    settings = {row.label: flat(row.runs[0].recipe) for row in students}
    labels: dict[str, list[str]] = {}
    for row in students:
        recipe = row.runs[0].recipe
        if row.reference is None or recipe is None or recipe.trial is not None or row.control is not None:
            continue
        mine, full = settings[row.label], settings[row.reference]
        keys = [key for key in mine | full if mine.get(key) != full.get(key) and not key.startswith(_NOT_NAMED)]
        if names := dict.fromkeys(".".join(key.split(".")[:2]) for key in keys):
            text = f"besides the cut, these settings differ from those of {row.reference}: {', '.join(names)}."
            labels.setdefault(text, []).append(row.label)
    return [f"{listed(several)}: {text}" for text, several in labels.items()]
