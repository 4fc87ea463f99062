"""All content of a report as one typed object, built from the frontier, the runs and their files.

The page, Markdown, figures and JSON are made from it. Nothing is estimated here.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Literal

from leadspan.audit.findings import AuditResult
from leadspan.data.truncation.policy import drop_warning
from leadspan.report.break_points import BreakPoint, break_points
from leadspan.report.conditions import without
from leadspan.report.frontier import build_frontiers
from leadspan.report.inputs import NamedRun, ReportInputs, RunCurves, named_runs, run_curves
from leadspan.report.recommendation import Answer, ranking_cost, recommend
from leadspan.report.rows import Frontier, Row
from leadspan.report.samples import Comparison, comparisons, lacks_samples
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
from leadspan.settings import Settings, flat_settings
from leadspan.study.record import StudyRecord
from leadspan.tables import MISSING, CostName


class Measured(Settings):
    """The devices, dates, seeds and versions behind all numbers of a report."""

    devices: list[str]
    """Devices that trained the students, with the number of ranks."""
    dates: list[str]
    """First and last day of the runs, or the only one."""
    seeds: list[int]
    """Seeds of the students."""
    versions: dict[str, list[str]]
    """Package, commit or platform to the versions in the order in which runs name them."""

    @property
    def sentence(self) -> str:
        """Devices, seeds, dates, and the versions of leadspan and its commit."""
        seeds = f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}" if self.seeds else ""
        versions = [f"{k} {' and '.join(self.versions[k])}" for k in ("leadspan", "commit") if k in self.versions]
        return ", ".join(filter(None, [" and ".join(self.devices), seeds, " to ".join(self.dates), *versions]))


class SettingsOverview(Settings):
    """The settings and versions of the students."""

    differing: dict[str, dict[str, str]]
    """The settings in which students differ: dotted name, or name of a version in parentheses, to label to value."""
    common: dict[str, str]
    """The settings that all students share."""

    def by_policy(self, policy_of: Mapping[str, str]) -> dict[str, list[str]]:
        """The differing settings as a row for each policy: the values of its runs, each once."""
        labels: dict[str, list[str]] = {}
        for label in next(iter(self.differing.values()), {}):
            labels.setdefault(policy_of[label], []).append(label)
        return {
            policy: [", ".join(dict.fromkeys(map(values.__getitem__, runs))) for values in self.differing.values()]
            for policy, runs in labels.items()
        }


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
    logless = [entry for entry in named if entry.run.train and not (entry.directory / METRICS_FILE).exists()]
    absent = [f"{entry.label}: no {METRICS_FILE}, so no curves" for entry in logless]
    pairs: list[Comparison] = []
    no_pairs: list[str] = []
    if samples_per_policy:
        pairs, no_pairs = comparisons(named, frontiers, samples_per_policy)
        answered = [(entry, result) for entry in named for result in entry.run.evaluations]
        sampleless = [(entry.label, result.task) for entry, result in answered if lacks_samples(entry, result)]
        absent += [f"{label}: its samples on {task} are missing" for label, task in sampleless]
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
        absent=absent,
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
        currency=frontier.currencies[0] if "money" in frontier.cost_names else "",
        rows=list(frontier.rows),
        single_runs=[single for row in frontier.rows if len(row.seeds) > 1 for single in row.single_runs],
    )


def measured(runs: Sequence[RunResult]) -> Measured:
    """Devices, dates, seeds and versions as the runs recorded them."""
    dates = sorted({run.environment["date"][:10] for run in runs if "date" in run.environment})
    # The date and the seed are shown in their own right.
    keys = dict.fromkeys(key for run in runs for key in run.environment if key not in ("date", "seed"))
    trained = [run for run in runs if run.train]
    # Bases and teachers that a study trained first may come from another machine, which none of the costs is of.
    trained = [run for run in trained if run.role == "student"] or trained
    return Measured(
        devices=list(dict.fromkeys(run.train.device for run in trained if run.train)),
        dates=dates[:: len(dates) - 1 or 1],  # the first and the last
        seeds=sorted({run.seed for run in runs if run.role == "student"}),
        versions={
            key: list(dict.fromkeys(run.environment[key] for run in runs if key in run.environment)) for key in keys
        },
    )


def settings_overview(named: Sequence[NamedRun]) -> SettingsOverview:
    """The settings and versions of the students, without the names of runs."""
    identity = ("name", "output", "seed", "trial", "push")  # which run it is and where it goes: no number depends on it
    flat: dict[str, dict[str, str]] = {}
    for label, run in ((entry.label, entry.run) for entry in named if entry.run.role == "student"):
        settings = without(flat_settings(run.recipe), identity) if run.recipe else {}
        shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
        # In parentheses, so that a package cannot be mistaken for a setting.
        versions = {f"({key})": value for key, value in run.environment.items() if key not in ("date", "seed")}
        flat[label] = shown | versions
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    # A key that a run lacks, such as that of another kind of cut, counts as a difference.
    table = {key: {label: values.get(key, MISSING) for label, values in flat.items()} for key in keys}
    differing = {key: values for key, values in table.items() if len(set(values.values())) > 1}
    common = {key: next(iter(values.values())) for key, values in table.items() if key not in differing}
    return SettingsOverview(differing=differing, common=common)
