"""Everything a report says, as one typed object: the page, Markdown, figures and JSON are made from it."""

from typing import Literal

from leadspan.audit.findings import AuditResult
from leadspan.results import CutCounts, Interval, RunResult
from leadspan.settings import Settings
from leadspan.study.compare.break_points import BreakPoint
from leadspan.study.compare.cost_axes import CostName
from leadspan.study.compare.rows import Beside, Kept
from leadspan.study.report.costs import CostSplit
from leadspan.study.report.curves import RunCurves
from leadspan.study.report.provenance import Measured, Refused, SettingsFound, StudyState
from leadspan.study.report.samples import Comparison


class CostFigures(Settings):
    """One cost of one row."""

    value: float
    """Mean over seeds: seconds, bytes, operations, tokens, joules, or units of the currency."""
    sd: float | None
    """Standard deviation over seeds; null for one."""
    of_full: float | None
    """The mean as a share of the uncut condition's; null without one."""
    predicted: float | None
    """Mean of the predictions stored before the runs; null where there is none."""
    error: float | None
    """predicted / measured - 1; null without a prediction."""


class RowFigures(Settings):
    """One condition over its seeds, or one of its runs alone, on one task."""

    label: str
    """Name, unique on the task."""
    policy: str
    """The condition, without the seed."""
    role: Literal["student", "base", "teacher"]
    """What the models are to the others."""
    control: str | None
    """Which control of a study it is; null for a policy."""
    p: float | None
    """Lead-span proportion of the cut, where it has one."""
    seeds: list[int]
    """Seeds of its runs."""
    num_problems: int
    """Problems of the task."""
    samples_per_problem: int
    """Samples of each, of one run."""
    accuracy: Interval
    """Strict accuracy."""
    termination: Interval
    """Share of samples that ended with an end-of-turn token."""
    cap_hit_rate: float
    """Share of samples that ran into the new-token cap."""
    tokens_p50: float
    """Median number of new tokens."""
    reference: str | None
    """The uncut condition it is compared with."""
    kept: Kept | None
    """Retention against it, or the difference and the reason why retention was refused."""
    kept_text: str
    """The same as text."""
    base: str | None
    """The base that gains are counted from."""
    gained: Kept | None
    """Base-normalised retention: (row - base) / (reference - base)."""
    costs: dict[CostName, CostFigures] | None
    """Costs of training by name; null for base and teacher."""
    beside: list[Beside]
    """The policy against each of its controls."""


class Answer(Settings):
    """What is recommended among the policies that are compared with one uncut run."""

    recommended: str | None
    """Label of the cheapest policy whose retention's lower bound meets the target; null where there is none."""
    sentence: str
    """The same as a sentence with its evidence, or which comes closest, or why nothing can be said."""
    needed: str
    """What it would take to show the target, where it is not shown; may be empty."""
    against_controls: list[str]
    """The recommended or closest policy against each of its controls."""


class TaskFigures(Settings):
    """One task: the answer, its evidence, and every row."""

    task: str
    """Task name."""
    answers: list[Answer]
    """The answer; further ones for policies that are compared with another uncut run, such as another student's."""
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
    cost_names: list[CostName]
    """Costs that every trained row has: the axes of the frontier."""
    currency: str
    """Sign of the money among the costs."""
    rows: list[RowFigures]
    """One for each condition, seeds aggregated."""
    single_runs: list[RowFigures]
    """One for each run of the conditions that have several seeds."""

    @property
    def has_students(self) -> bool:
        """Whether a student was evaluated on it, not bases and teachers alone."""
        return any(row.role == "student" for row in self.rows)


class CutRow(Settings):
    """What one policy cut from the training set."""

    label: str
    """Label of the run."""
    policy: str
    """The condition, without the seed."""
    counts: CutCounts
    """Counted before training."""


class ValidationCurve(Settings):
    """Validation loss of one run."""

    label: str
    """Label of the run."""
    policy: str
    """The condition, without the seed."""
    steps: list[int]
    """Optimiser steps at which it was measured."""
    losses: list[float]
    """Loss on full, uncut validation sequences, nat per token."""


class Report(Settings):
    """All that a report shows."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    title: str
    """Heading."""
    target: float
    """Retention that the recommended policy must be sure to reach."""
    measured: Measured
    """What all figures were measured on."""
    tasks: list[TaskFigures]
    """Answer, frontier and rows of each task."""
    studies: list[StudyState]
    """How far the studies are, and their missing trials with the reasons."""
    costs: list[CostSplit]
    """Operations, time and memory of every trained run by part, predicted beside measured."""
    curves: list[RunCurves]
    """Divergence and its companions by section and by place."""
    validation: list[ValidationCurve]
    """Validation losses."""
    cuts: list[CutRow]
    """What each policy cut."""
    audits: list[AuditResult]
    """Audits of the traces."""
    comparisons: list[Comparison]
    """Samples of the uncut and the cut students side by side."""
    absent: list[str]
    """Files of runs that are not there, and what is therefore not shown."""
    refused: list[Refused]
    """Records of the trace sources that could not be used."""
    settings: SettingsFound
    """What differs between the students, and what does not."""
    runs: dict[str, RunResult]
    """Every run by its label, with all settings and versions."""

    @property
    def policy_of(self) -> dict[str, str]:
        """The condition of every row and run by its label; the label itself where it is all that is known."""
        rows = [row for task in self.tasks for row in [*task.rows, *task.single_runs]]
        known = {entry.label: entry.policy for entry in [*rows, *self.costs, *self.cuts]}
        return {label: known.get(label, label) for label in [*known, *self.runs]}
