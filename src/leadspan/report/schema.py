"""Everything a report says, as one typed object: the page, Markdown, figures and JSON are made from it."""

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
    """The answer; further ones for policies that are compared with another uncut run, such as another student's."""
    cuts_explained: list[str]
    """What the names of the students' cuts mean, one sentence for each kind."""
    warnings: list[str]
    """What a reader must know before the findings."""
    findings: list[str]
    """One sentence for each student."""
    break_points: list[BreakPoint]
    """From which p on each family of policies keeps the target: measured, and predicted before training."""
    break_point_sentences: list[str]
    """The same as sentences."""
    sample_size: str
    """Problems, samples and seeds behind the rows."""
    captions: list[str]
    """How the intervals were made, refused retentions, notes."""
    clock: str | None
    """Why the times of the runs cannot be compared, so that FLOPs rank them; null where they can."""
    cost_names: list[CostName]
    """Costs that every trained row has, the one that ranks the rows first: the axes of the frontier."""
    currency: str
    """Sign of the money among the costs."""
    rows: list[Row]
    """One for each condition, seeds aggregated."""
    single_runs: list[Row]
    """One for each run of the conditions that have several seeds."""

    @property
    def has_students(self) -> bool:
        """Whether a student was evaluated on it, not bases and teachers alone."""
        return any(row.role == "student" for row in self.rows)


class Report(Settings):
    """All that a report shows."""

    schema_version: Literal[2] = 2
    """Version of this schema."""
    title: str
    """Heading."""
    target: float
    """Retention that the recommended policy must be sure to reach."""
    measured: Measured
    """What all figures were measured on."""
    tasks: list[TaskFigures]
    """Answer, frontier and rows of each task."""
    studies: list[StudyRecord]
    """The studies as their records are: how far each trial is, why it failed, controls that could not be made."""
    curves: list[RunCurves]
    """Divergence and its companions by section and by tenth of the conversation."""
    audits: list[AuditResult]
    """Audits of the traces."""
    comparisons: list[Comparison]
    """Samples of the uncut and the cut students side by side."""
    damaged: list[str] = []
    """Files that are not what they should be, each with the reason; what they hold is in no figure."""
    absent: list[str]
    """Files of runs that are not there, and what is therefore not shown."""
    settings: SettingsOverview
    """What differs between the students, and what does not."""
    policies: dict[str, str]
    """The condition of every row and run, by its label."""
    runs: dict[str, RunResult]
    """Every run by its label as its `run.json` is: costs by part, what was cut and refused, losses, all settings."""
