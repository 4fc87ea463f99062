"""What a frontier is made of: one row for each condition on one task, with its runs, its costs, and its comparisons."""

from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from leadspan.results import CutCounts, EvalResult, Interval, RunResult
from leadspan.study.compare.conditions import cut_of, proportion_of
from leadspan.study.compare.cost_axes import COST_NAMES, KNOWN_SOMETIMES, Cost, CostName, currency_of


@dataclass(frozen=True, slots=True)
class Kept:
    """Accuracy beside another condition's, on the same problems.

    Attributes:
        ratio: Retention; absent where it was refused.
        difference: Accuracy minus the other's; absent where the problems differ.
        reason: Why retention was refused.
        seeds: Seeds that were compared: those both have, or all where they share none.
    """

    ratio: Interval | None
    difference: Interval | None
    reason: str | None = None
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Beside:
    """A policy against one of its controls.

    Attributes:
        control: `equal_tokens`, `equal_steps`, `random_window` or `cross_entropy`.
        label: Label of the control's row.
        difference: Accuracy of the policy minus that of the control, paired; absent where the problems differ.
        p_value: Of the sign-flip test on the same problems; absent with the difference.
    """

    control: str
    label: str
    difference: Interval | None
    p_value: float | None = None

    @property
    def outcome(self) -> Literal["better", "worse", "not told apart"]:
        """The policy against the control, by the interval of the difference."""
        if self.difference is not None and self.difference.low > 0:
            return "better"
        return "worse" if self.difference is not None and self.difference.high < 0 else "not told apart"


@dataclass(frozen=True, slots=True)
class Row:
    """One condition on one task, over its seeds; or one of its runs alone.

    Attributes:
        label: Name of the condition, unique in the frontier; of a single run of several, with its seed.
        policy: The same without the seed.
        runs: The runs, in the order of their seeds.
        evaluations: Their results on the task.
        accuracy: Strict accuracy, mean over runs.
        termination: Share of samples that ended with an end-of-turn token, mean over runs.
        is_reference: Whether others are compared with this row.
        reference: Label of the uncut condition this row is compared with; absent for itself and for teachers.
        kept: Retention against the reference, absent without one.
        base: Label of the base that gains are counted from; absent without one.
        gained: Base-normalised retention, (row - base) / (reference - base); absent without a base or reference.
        costs: Training costs by name, those that are known; absent for base and teacher.
        beside: The policy against each of its controls.
        seeds: The same for every run alone; empty for such a row.
    """

    label: str
    policy: str
    runs: tuple[RunResult, ...]
    evaluations: tuple[EvalResult, ...]
    accuracy: Interval
    termination: Interval
    reference: str | None
    kept: Kept | None
    base: str | None
    gained: Kept | None
    costs: dict[CostName, Cost] | None
    is_reference: bool = False
    beside: tuple[Beside, ...] = ()
    seeds: tuple["Row", ...] = ()

    @property
    def role(self) -> Literal["student", "base", "teacher"]:
        """What the models are to the others."""
        return self.runs[0].role

    @property
    def control(self) -> str | None:
        """Which control of a study the row is; absent for a policy."""
        return self.runs[0].control if self.role == "student" else None

    @property
    def cut_kind(self) -> str | None:
        """`cut.kind` of the recipe, absent for base and teacher."""
        return cut_of(self.runs[0]).get("kind")

    @property
    def p(self) -> float | None:
        """`p` of the cut, or of the policy in a mix."""
        return proportion_of(self.runs[0])

    @property
    def task(self) -> str:
        """Task name."""
        return self.evaluations[0].task

    @property
    def num_seeds(self) -> int:
        """Runs in the row."""
        return len(self.runs)

    @property
    def num_problems(self) -> int:
        """Problems of the task."""
        return self.evaluations[0].num_problems

    @property
    def samples_per_problem(self) -> int:
        """Samples of each problem, of one run."""
        return self.evaluations[0].samples_per_problem

    @property
    def cap_hit_rate(self) -> float:
        """Share of samples that ran into the new-token cap, mean over runs."""
        return fmean(found.cap_hit_rate for found in self.evaluations)

    @property
    def tokens_p50(self) -> float:
        """Median number of tokens generated, mean over runs."""
        return fmean(found.tokens_p50 for found in self.evaluations)

    @property
    def cut(self) -> CutCounts | None:
        """What the cut took from the training examples of the first run, absent for base and teacher."""
        return self.runs[0].cut


@dataclass(frozen=True, slots=True)
class Frontier:
    """All conditions on one task.

    Attributes:
        task: Task name.
        rows: One for each condition, in the order given.
        notes: What a reader must know to compare the rows, e.g. that no run is uncut.
    """

    task: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def students(self) -> list[Row]:
        """The distilled students, controls included, in order."""
        return [row for row in self.rows if row.role == "student"]

    @property
    def cost_names(self) -> tuple[CostName, ...]:
        """Costs that every trained row has."""
        trained = [row.costs for row in self.rows if row.costs]
        names = (*COST_NAMES, *KNOWN_SOMETIMES) if trained else ()
        return tuple(name for name in names if all(name in costs for costs in trained))

    @property
    def currency(self) -> str:
        """Sign of the money among the costs."""
        return currency_of([run for row in self.rows for run in row.runs])

    def row(self, label: str | None) -> Row | None:
        """The row of that label, if there is one."""
        return next((row for row in self.rows if row.label == label), None)

    def by_cost(self, cost: CostName = "seconds") -> "Frontier":
        """The same rows, cheapest first; rows without that cost come last."""
        known = [row for row in self.rows if cost in (row.costs or {})]
        unknown = [row for row in self.rows if cost not in (row.costs or {})]
        known.sort(key=lambda row: row.costs[cost].value if row.costs else 0.0)
        return Frontier(self.task, (*known, *unknown), self.notes)
