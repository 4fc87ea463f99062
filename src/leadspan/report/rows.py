"""The rows of a frontier: one for each condition on one task. They are part of the report's schema."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from leadspan.data.truncation import RandomWindow
from leadspan.evaluation.result import EvalResult
from leadspan.report.costs import COST_NAMES, RARE_COSTS, Cost, measured_costs
from leadspan.results import RunResult
from leadspan.settings import Settings
from leadspan.statistics.intervals import Interval, SimultaneousInterval
from leadspan.tables import CostName


class RowRetention(Settings):
    """The accuracy of a row as a share of another row's, on the same problems."""

    ratio: Interval | None
    """Retention; null where it was refused."""
    difference: Interval | None
    """The row's accuracy minus the other row's; null where the problems differ."""
    reason: str | None = None
    """Why retention was refused; null where it was not."""
    seeds: tuple[int, ...] = ()
    """Seeds that were compared: the shared ones, or all where none is shared."""
    simultaneous: SimultaneousInterval | None = None
    """Retention with an interval that is simultaneous over all policies that are compared with the same uncut run;
    null for a row that is no candidate of a recommendation."""


class ControlComparison(Settings):
    """A policy against one of its controls."""

    control: str
    """`equal_tokens`, `equal_steps`, `random_window` or `cross_entropy`."""
    label: str
    """Label of the control's row."""
    difference: Interval | None
    """Accuracy of the policy minus that of the control, paired; null where the problems differ."""
    p_value: float | None = None
    """P-value of the sign-flip test on the same problems; null where the difference is."""

    @property
    def outcome(self) -> Literal["better", "worse", "unclear"]:
        """Whether the interval of the difference lies above 0, below it, or around it."""
        if self.difference is not None and self.difference.low > 0:
            return "better"
        # Both ends on one side of 0, or nothing is said.
        return "worse" if self.difference is not None and self.difference.high < 0 else "unclear"


class Row(Settings):
    """One condition on one task, over its seeds; or one of its runs alone."""

    label: str
    """Name, unique on the task; of a single run of several, with its seed."""
    policy: str
    """The condition, without the seed."""
    role: Literal["student", "base", "teacher"]
    """The part that the models play in the comparison."""
    control: str | None
    """Which control of a study the row is; null for a policy."""
    p: float | None
    """Proportion of the cut, or of the policy in a mix; null where it has none."""
    seeds: list[int]
    """Seeds of its runs, ascending."""
    num_problems: int
    """Problems of the task."""
    samples_per_problem: int
    """Samples of each problem in one run."""
    accuracy: Interval
    """Strict accuracy, mean over runs."""
    termination: Interval
    """Share of samples that ended with an end-of-turn token, mean over runs."""
    cap_hit_rate: float
    """Share of samples that ran into the cap on new tokens, mean over runs."""
    tokens_p50: float
    """Median number of new tokens, mean over runs."""
    reference: str | None
    """Label of the uncut condition that the row is compared with; null for that condition itself and for teachers."""
    is_reference: bool
    """Whether other rows are compared with this one."""
    retention: RowRetention | None
    """Accuracy as a share of the reference's; null without a reference."""
    base: str | None
    """Label of the base from which gains are measured; null without one."""
    gain: RowRetention | None
    """Base-normalised retention, (row - base) / (reference - base); null without a base."""
    costs: dict[CostName, Cost] | None
    """Costs of training by name; null for base and teacher."""
    against_controls: list[ControlComparison] = []
    """The policy against each of its controls."""
    runs: tuple[RunResult, ...] = Field(default=(), exclude=True)
    """The runs themselves, in the order of the seeds; a report file has each once, under `runs`."""
    evaluations: tuple[EvalResult, ...] = Field(default=(), exclude=True)
    """Their results on the task; in a report file, under `runs`."""
    single_runs: tuple["Row", ...] = Field(default=(), exclude=True)
    """A row for every run; in a report file, under `single_runs` of the task."""

    @property
    def cut_kind(self) -> str | None:
        """`cut.kind` of the recipe; None for base and teacher."""
        return getattr(self.runs[0].policy, "kind", None)

    @property
    def is_candidate(self) -> bool:
        """Whether it may be recommended: a student of a cut that is no control, neither by name nor by its settings."""
        # A random window among a study's axes does the work of a control, whatever it is called.
        is_cut = self.role == "student" and self.cut_kind != "full"
        policy = self.runs[0].policy
        return is_cut and self.control is None and policy is not None and not isinstance(policy.inner, RandomWindow)


@dataclass(frozen=True, slots=True)
class Frontier:
    """All conditions on one task.

    Attributes:
        task: Task name.
        rows: One for each condition, in the order given.
        notes: What a reader must know to compare the rows, such as that no run is uncut.
        clock: Why the times of its runs cannot be compared; None where they can.
    """

    task: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    clock: str | None = None

    @property
    def students(self) -> list[Row]:
        """The distilled students, controls included, in order."""
        return [row for row in self.rows if row.role == "student"]

    @property
    def cost_names(self) -> tuple[CostName, ...]:
        """Costs that every trained row has; empty where no row was trained."""
        costs_of_rows = [row.costs for row in self.rows if row.costs]
        # A cost that one row lacks cannot rank the rows, nor be an axis.
        names = (*COST_NAMES, *RARE_COSTS) if costs_of_rows else ()
        return tuple(name for name in names if all(name in costs for costs in costs_of_rows))

    @property
    def currency(self) -> str:
        """Currency of the costs in money, or all their currencies, joined by a slash; empty where there are none."""
        runs = [run for row in self.rows for run in row.runs]
        signs = [run.recipe.plan.currency for run in runs if run.recipe and "money" in measured_costs(run)]
        return "/".join(dict.fromkeys(signs))

    def row(self, label: str | None) -> Row | None:
        """The row of that label, if there is one."""
        return next((row for row in self.rows if row.label == label), None)


def by_cost(rows: list[Row], cost: CostName) -> list[Row]:
    """The rows, cheapest first, and rows without that cost last."""
    return sorted(rows, key=lambda row: row.costs[cost].value if row.costs and cost in row.costs else float("inf"))
