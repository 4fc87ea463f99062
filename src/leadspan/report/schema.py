"""All content of a report as one typed object, from which the page, Markdown, figures and JSON are made."""

from typing import Literal

from leadspan.audit.findings import AuditResult
from leadspan.report.break_points import BreakPoint
from leadspan.report.curves import RunCurves
from leadspan.report.provenance import Measured, SettingsOverview
from leadspan.report.recommendation import Answer
from leadspan.report.rows import Row
from leadspan.report.samples import Comparison
from leadspan.results import RunResult
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
