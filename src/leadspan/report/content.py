"""All content of a report as one typed object, built from the frontier, the runs and their files.

The page, Markdown, figures and JSON are made from it. Nothing is estimated here.
"""

from collections.abc import Sequence
from typing import Literal

from leadspan.audit.findings import AuditResult
from leadspan.data.truncation.policy import drop_warning
from leadspan.report.break_points import BreakPoint, break_points
from leadspan.report.curves import RunCurves, run_curves
from leadspan.report.frontier import build_frontiers
from leadspan.report.inputs import Measured, ReportInputs, SettingsOverview, measured, named_runs, settings_overview
from leadspan.report.recommendation import Answer, ranking_cost, recommend
from leadspan.report.rows import Frontier, Row
from leadspan.report.samples import Comparison, absent_samples, comparisons
from leadspan.report.sentences import (
    break_point_sentence,
    captions,
    cuts_explained,
    findings,
    sample_size,
    stop_warnings,
    teacher_warnings,
)
from leadspan.results import METRICS_FILE, RunResult
from leadspan.settings import Settings
from leadspan.study.record import StudyRecord
from leadspan.tables import CostName


class TaskFigures(Settings):
    """One task: the answer, its evidence, and every row."""

    task: str
    """Task name."""
    answers: list[Answer]
    """The answers: one for each uncut run with which policies are compared, such as those of two students."""
    cuts_explained: list[str]
    """One sentence on each kind of cut that explains its name."""
    warnings: list[str]
    """Sentences on what makes the findings doubtful, such as students that do not end their answers."""
    findings: list[str]
    """One sentence for each student."""
    break_points: list[BreakPoint]
    """The p from which on each family of policies keeps the target, as measured and as predicted before training."""
    break_point_sentences: list[str]
    """The break points as sentences."""
    sample_size: str
    """Problems, samples and seeds behind the rows."""
    captions: list[str]
    """How the intervals were made, why retentions were refused, and notes on comparing the rows."""
    clock: str | None
    """Why the times of the runs cannot be compared, so that FLOPs rank them; null where they can."""
    cost_names: list[CostName]
    """Costs that every trained row has, beginning with the one that ranks the rows: the axes of the frontier."""
    currency: str
    """Currency of the costs in money; empty where no cost is in money."""
    rows: list[Row]
    """One row for each condition, over all its seeds."""
    single_runs: list[Row]
    """One row for each run of a condition with several seeds."""

    @property
    def has_students(self) -> bool:
        """Whether a student was evaluated on the task, and not only bases and teachers."""
        return any(row.role == "student" for row in self.rows)


class Report(Settings):
    """All content of a report."""

    schema_version: Literal[2] = 2
    """Version of this schema."""
    title: str
    """Heading."""
    target: float
    """Retention that the recommended policy is shown to reach."""
    measured: Measured
    """Devices, dates, seeds and versions behind all figures."""
    tasks: list[TaskFigures]
    """Answer, frontier and rows of each task."""
    studies: list[StudyRecord]
    """The records of the studies: the state of each trial, why it failed, controls that could not be made."""
    curves: list[RunCurves]
    """Divergence and the other metrics of training, by section and by tenth of the conversation."""
    audits: list[AuditResult]
    """Audits of the traces."""
    comparisons: list[Comparison]
    """Samples of the uncut and the cut students side by side."""
    damaged: list[str] = []
    """Damaged files, each with the reason; their content is in no figure."""
    absent: list[str]
    """Missing files of runs, and what is not shown because of them."""
    settings: SettingsOverview
    """The settings in which the students differ, and those that they share."""
    policies: dict[str, str]
    """The condition of every row and run, by its label."""
    runs: dict[str, RunResult]
    """The `run.json` of every run by its label: costs by part, counts of the cut and of refused records, losses, all
    settings."""


TITLE = "What the cut kept, and what it cost"


def build_report(
    inputs: ReportInputs,
    title: str = TITLE,
    target: float = 0.9,
    cost: CostName = "seconds",
    samples_per_policy: int = 4,
) -> Report:
    """All content of a report on a set of runs.

    Args:
        inputs: Runs, studies, audits.
        title: Heading.
        target: Retention that the recommended policy is shown to reach.
        cost: The cost that ranks the policies; the figures show it first.
        samples_per_policy: Pairs of samples to show for each cut policy and task; 0 for none.

    Raises:
        RunError: There is no run, or none was evaluated.
        SettingsError: A trained run lacks the cost.
    """
    frontiers = build_frontiers(inputs.runs)
    named = named_runs(inputs)
    curves, no_curves = run_curves(named)
    pairs, no_pairs = comparisons(named, _references(frontiers), samples_per_policy) if samples_per_policy else ([], [])
    logless = [entry for entry in named if entry.run.train and not (entry.directory / METRICS_FILE).exists()]
    absent = [f"{entry.label}: no {METRICS_FILE}, so no curves" for entry in logless]
    policies = {row.label: row.policy for frontier in frontiers for row in frontier.rows}
    # Tasks with students come first: the others say nothing about cuts.
    tasks = sorted((_task(frontier, target, cost) for frontier in frontiers), key=lambda task: not task.has_students)
    return Report(
        title=title,
        target=target,
        measured=measured(inputs.runs),
        tasks=tasks,
        studies=list(inputs.studies),
        curves=curves,
        audits=list(inputs.audits),
        comparisons=pairs,
        damaged=[*inputs.refused, *no_curves, *no_pairs],
        absent=[*absent, *(absent_samples(named) if samples_per_policy else [])],
        settings=settings_overview(named),
        policies=policies | {entry.label: entry.policy for entry in named},
        runs={entry.label: entry.run for entry in named},
    )


def _task(frontier: Frontier, target: float, cost: CostName) -> TaskFigures:
    points = break_points(frontier, target)
    ranks_by = ranking_cost(frontier, cost)
    firsts = {row.label: row.runs[0] for row in frontier.rows}
    # Where a student also draws what it learns from, its traces are not all of its examples.
    on_traces = {label: run for label, run in firsts.items() if run.recipe is None or run.recipe.rollout is None}
    counts = {label: run.cut for label, run in on_traces.items() if run.cut is not None}
    return TaskFigures(
        task=frontier.task,
        answers=recommend(frontier, target, cost),
        cuts_explained=cuts_explained(frontier.rows),
        warnings=[*teacher_warnings(frontier), *stop_warnings(frontier), *filter(None, [drop_warning(counts)])],
        findings=findings(frontier),
        break_points=points,
        break_point_sentences=[break_point_sentence(point) for point in points],
        sample_size=sample_size(frontier),
        captions=captions(frontier),
        clock=frontier.clock,
        cost_names=sorted(frontier.cost_names, key=lambda name: name != ranks_by),
        currency=frontier.currency,
        rows=list(frontier.rows),
        single_runs=[single for row in frontier.rows if len(row.seeds) > 1 for single in row.single_runs],
    )


def _references(frontiers: Sequence[Frontier]) -> dict[str, str]:
    """Label of each run of a cut student to that of the uncut run with the same seed, else of the first uncut run."""
    references: dict[str, str] = {}
    for frontier in frontiers:
        for row in frontier.students:
            full = frontier.row(row.reference)
            if full is None:
                continue
            # Samples of one number have the same seed in runs of one seed, so that only the students differ.
            by_seed = {single.seeds[0]: single.label for single in full.single_runs}
            first = next(iter(by_seed.values()))
            # Without a partner of its seed it is compared with the first: any uncut run says more than none.
            references |= {single.label: by_seed.get(single.seeds[0], first) for single in row.single_runs}
    return references
