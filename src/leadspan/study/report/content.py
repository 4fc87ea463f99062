"""Gathers everything a report says from the frontier, the runs and their files. Nothing is estimated here."""

from collections.abc import Mapping, Sequence

from leadspan.results import CutCounts
from leadspan.study.compare.break_points import break_points
from leadspan.study.compare.conditions import seed_of
from leadspan.study.compare.cost_axes import Cost, CostName
from leadspan.study.compare.frontier import build_frontiers
from leadspan.study.compare.recommendation import Recommendation, recommend
from leadspan.study.compare.rows import Frontier, Row
from leadspan.study.compare.sentences import (
    break_point_sentences,
    findings,
    kept_text,
    sample_size,
    stop_warnings,
    teacher_warnings,
)
from leadspan.study.compare.tables import captions
from leadspan.study.report.costs import cost_splits
from leadspan.study.report.curves import absent_metrics, run_curves
from leadspan.study.report.gathered import Gathered, NamedRun, named_runs
from leadspan.study.report.provenance import measured, refusals, settings_found, study_states
from leadspan.study.report.samples import absent_samples, comparisons
from leadspan.study.report.schema import Answer, CostFigures, CutRow, Report, RowFigures, TaskFigures, ValidationCurve

TITLE = "What the cut kept, and what it cost"


def build_report(
    gathered: Gathered,
    title: str = TITLE,
    target: float = 0.9,
    cost: CostName = "seconds",
    samples_per_policy: int = 4,
) -> Report:
    """Everything a report shows on a set of runs.

    Args:
        gathered: Runs, studies, audits.
        title: Heading.
        target: Retention that the recommended policy must be sure to reach.
        cost: The cost by which it is the cheapest; the first that the figures show.
        samples_per_policy: Pairs of samples to show of each cut policy and task; 0 for none.

    Raises:
        RunError: There is no run, none was evaluated, or a file of a run cannot be read.
        SettingsError: A trained run lacks the cost.
    """
    frontiers = build_frontiers(gathered.runs)
    named = named_runs(gathered)
    references = _references(frontiers)
    return Report(
        title=title,
        target=target,
        measured=measured(gathered.runs),
        tasks=sorted((_task(one, target, cost) for one in frontiers), key=lambda task: not task.has_students),
        studies=study_states(gathered.studies),
        costs=cost_splits(named),
        curves=run_curves(named),
        validation=[_validation(entry) for entry in named if entry.run.train and entry.run.train.validation_loss],
        cuts=[_cut(entry, entry.run.cut) for entry in named if entry.run.cut],
        audits=list(gathered.audits),
        comparisons=comparisons(named, references, samples_per_policy) if samples_per_policy else [],
        absent=[*absent_metrics(named), *(absent_samples(named) if samples_per_policy else [])],
        refused=refusals(named),
        settings=settings_found(named),
        runs={entry.label: entry.run for entry in named},
    )


def _task(frontier: Frontier, target: float, cost: CostName) -> TaskFigures:
    found = recommend(frontier, target, cost)
    points = break_points(frontier, target)
    return TaskFigures(
        task=frontier.task,
        answers=[_answer(one) for one in (found, *found.others)],
        warnings=[*teacher_warnings(frontier), *stop_warnings(frontier)],
        findings=findings(frontier),
        break_points=points,
        break_point_sentences=break_point_sentences(points),
        sample_size=sample_size(frontier),
        captions=captions(frontier),
        cost_names=sorted(frontier.cost_names, key=lambda name: name != cost),
        currency=frontier.currency,
        rows=[_row(row) for row in frontier.rows],
        single_runs=[_row(seed) for row in frontier.rows if row.num_seeds > 1 for seed in row.seeds],
    )


def _answer(found: Recommendation) -> Answer:
    return Answer(
        recommended=found.row.label if found.row else None,
        sentence=found.sentence,
        needed=found.needed,
        against_controls=list(found.controls),
    )


def _row(row: Row) -> RowFigures:
    return RowFigures(
        label=row.label,
        policy=row.policy,
        role=row.role,
        control=row.control,
        p=row.p,
        seeds=[seed_of(run) for run in row.runs],
        num_problems=row.num_problems,
        samples_per_problem=row.samples_per_problem,
        accuracy=row.accuracy,
        termination=row.termination,
        cap_hit_rate=row.cap_hit_rate,
        tokens_p50=row.tokens_p50,
        reference=row.reference,
        kept=row.kept,
        kept_text=kept_text(row),
        base=row.base,
        gained=row.gained,
        costs=_costs(row.costs) if row.costs else None,
        beside=list(row.beside),
    )


def _costs(costs: Mapping[CostName, Cost]) -> dict[CostName, CostFigures]:
    return {
        name: CostFigures(
            value=cost.value, sd=cost.sd, of_full=cost.of_full, predicted=cost.predicted, error=cost.error
        )
        for name, cost in costs.items()
    }


def _references(frontiers: Sequence[Frontier]) -> dict[str, str]:
    """Label of each run of a cut student to that of the uncut run of its seed, or of the first uncut run."""
    found: dict[str, str] = {}
    for frontier in frontiers:
        for row in frontier.students:
            reference = frontier.row(row.reference)
            if reference is None:
                continue
            uncut = {seed_of(alone.runs[0]): alone.label for alone in reference.seeds}
            first = next(iter(uncut.values()))
            found |= {alone.label: uncut.get(seed_of(alone.runs[0]), first) for alone in row.seeds}
    return found


def _validation(entry: NamedRun) -> ValidationCurve:
    assert entry.run.train is not None, "asked for"
    ordered = sorted((int(step), loss) for step, loss in entry.run.train.validation_loss.items())
    steps, losses = [step for step, _ in ordered], [loss for _, loss in ordered]
    return ValidationCurve(label=entry.label, policy=entry.policy, steps=steps, losses=losses)


def _cut(entry: NamedRun, counts: CutCounts) -> CutRow:
    return CutRow(label=entry.label, policy=entry.policy, counts=counts)
