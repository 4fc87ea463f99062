"""The rows of a frontier, one for each condition on one task, and the costs of training in them.

Rows and costs are part of the report's schema. A cost is a mean over seeds, also as a share of the uncut run's, and
stands beside the prediction that was made before the runs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from pydantic import Field

from leadspan.data.truncation import RandomWindow
from leadspan.evaluation.result import EvalResult
from leadspan.results import RunResult, predicted_and_measured
from leadspan.rollout.settings import RolloutSettings
from leadspan.settings import Settings
from leadspan.statistics.intervals import Interval, SimultaneousInterval
from leadspan.statistics.resampling import Scores
from leadspan.tables import MISSING, CostName, percent, quantity

COST_OPTIONS: dict[str, CostName] = {
    "time": "seconds",
    "memory": "peak_memory_bytes",
    "flops": "flops",
    "tokens": "tokens",
    "energy": "energy_joules",
    "money": "money",
}
"""Names of the costs on the command line. Every training run has the first four; energy needs NVML, and money a price
in the recipe (`plan.price_per_hour`)."""
COST_WORDS: dict[CostName, str] = {**{name: word for word, name in COST_OPTIONS.items()}, "flops": "FLOPs"}
"""Names of the costs in a sentence."""
COST_TITLES: dict[CostName, str] = {
    "seconds": "Training time",
    "peak_memory_bytes": "Peak memory",
    "flops": "FLOPs",
    "tokens": "Training tokens",
    "energy_joules": "Energy",
    "money": "Price",
}
"""Names of the costs over an axis or a column."""


class Cost(Settings):
    """One cost of training a condition."""

    values: tuple[float, ...]
    """The measured cost of each run, in the order of the seeds: seconds, bytes, operations, tokens, joules, or units
    of the recipe's currency."""
    value: float
    """Mean over the runs."""
    sd: float | None
    """Standard deviation over the runs, with n - 1; null for a single run."""
    of_full: float | None
    """The mean as a share of the reference's mean, both over the compared seeds; null without a reference."""
    predicted: float | None
    """Mean of the predictions made before the runs; null where a run has none."""
    error: float | None
    """Relative error of the prediction, predicted / measured - 1; null where there is none."""


def costs_over(
    runs: Sequence[RunResult], compared: Sequence[RunResult] = (), full: Sequence[RunResult] = ()
) -> dict[CostName, Cost]:
    """Costs of the runs of one condition; a cost that one run lacks is omitted.

    Args:
        runs: All runs of the condition; the values and the predictions are theirs.
        compared: The runs that are compared with the reference: those of the seeds over which retention is computed.
        full: The reference's runs of those seeds.
    """
    of_compared, of_full = _measured_by_all(compared), _measured_by_all(full)
    if len(currencies_of([*compared, *full])) > 1:
        of_full.pop("money", None)  # no share of another currency
    predictions: list[dict[CostName, float | None]] = []
    for run in runs:
        if run.prediction and run.train:
            pairs = predicted_and_measured(run.prediction, run.train)
            predictions.append({"money": run.prediction.money, **{name: pair[0] for name, pair in pairs.items()}})
    costs: dict[CostName, Cost] = {}
    for name, values in _measured_by_all(runs).items():
        mean = fmean(values)
        of_runs = [value for prediction in predictions if (value := prediction.get(name)) is not None]
        predicted = fmean(of_runs) if len(of_runs) == len(runs) else None  # a mean over other runs is no prediction
        full_mean = fmean(of_full[name]) if name in of_full else 0.0
        # A share needs the seeds that retention compares; value and spread are those of all runs.
        costs[name] = Cost(
            values=tuple(values),
            value=mean,
            sd=stdev(values) if len(values) > 1 else None,
            of_full=fmean(of_compared[name]) / full_mean if full_mean else None,
            predicted=predicted,
            error=None if predicted is None or not mean else predicted / mean - 1,
        )
    return costs


def _measured_by_all(runs: Sequence[RunResult]) -> dict[CostName, list[float]]:
    """The measured costs that every run has, one value for each run."""
    # A cost that some runs lack is left out, since a mean over the others would be one of other seeds.
    by_run = [measured_costs(run) for run in runs]
    names = by_run[0] if by_run else {}
    return {name: [costs[name] for costs in by_run] for name in names if all(name in costs for costs in by_run)}


def measured_costs(run: RunResult) -> dict[CostName, float]:
    """The measured costs of a run; empty where nothing was trained.

    Money is the price of an hour of one device, times ranks, times hours of the training loop.
    """
    train = run.train
    if train is None:
        return {}
    costs: dict[CostName, float] = {
        # Bursts of other work on the machine do not change the typical time; runs of earlier versions lack it.
        "seconds": train.typical_seconds or train.seconds,
        "peak_memory_bytes": train.peak_memory_bytes,
        "flops": train.flops.total,
        "tokens": train.num_tokens,
    }
    # Absent, not 0, where nothing measured it or no price is known: a mean would take 0 for a measurement.
    if train.energy_joules is not None:
        costs["energy_joules"] = train.energy_joules
    price = run.recipe.plan.price_per_hour if run.recipe else None
    if price is not None and train.num_ranks is not None:
        costs["money"] = float(price) * train.num_ranks * train.seconds / 3600
    return costs


def currencies_of(runs: Iterable[RunResult]) -> list[str]:
    """Currencies of the costs in money, each once."""
    signs = [run.recipe.plan.currency for run in runs if run.recipe and "money" in measured_costs(run)]
    return list(dict.fromkeys(signs))


def shares(values: Settings | Mapping[str, float]) -> dict[str, float]:
    """Part to its share of the sum of all parts."""
    by_part = dict(values)
    total = sum(by_part.values()) or 1.0
    return {name: value / total for name, value in by_part.items()}


def error_text(predicted: float | None, measured: float) -> str:
    """The signed error of a prediction, as a share of the measurement."""
    return MISSING if predicted is None or not measured else f"{100 * (predicted / measured - 1):+z.0f} %"


def amount(value: float, cost: CostName, currency: str = "") -> str:
    """A cost with its unit; money with its currency."""
    if cost != "money":
        return quantity(cost, value)
    number = f"{value:,.2f}" if value >= 1 else f"{value:.2g}"  # small runs cost fractions of a cent
    return f"{number} {currency}".rstrip()


def relative_text(cost: Cost) -> str:
    """The mean as a share of the uncut run's, `50 ± 14 %`, with its standard deviation unless that rounds to 0."""
    assert cost.of_full is not None, "the caller picks costs with a reference"
    spread = 100 * cost.of_full * (cost.sd or 0.0) / cost.value if cost.value else 0.0
    return percent(cost.of_full) if spread < 0.5 else f"{100 * cost.of_full:.0f} ± {spread:.0f} %"


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
    reference: str | None = None
    """Label of the uncut condition that the row is compared with; null for that condition itself and for teachers."""
    is_reference: bool = False
    """Whether other rows are compared with this one."""
    retention: RowRetention | None = None
    """Accuracy as a share of the reference's; null without a reference."""
    base: str | None = None
    """Label of the base from which gains are measured; null without one."""
    gain: RowRetention | None = None
    """Base-normalised retention, (row - base) / (reference - base); null without a base."""
    costs: dict[CostName, Cost] | None = None
    """Costs of training by name; null for base and teacher."""
    against_controls: list[ControlComparison] = []
    """The policy against each of its controls."""
    runs: tuple[RunResult, ...] = Field(default=(), exclude=True)
    """The runs themselves, in the order of the seeds; a report file has each once, under `runs`."""
    evaluations: tuple[EvalResult, ...] = Field(default=(), exclude=True)
    """Their results on the task; in a report file, under `runs`."""
    single_runs: tuple["Row", ...] = Field(default=(), exclude=True)
    """A row for every run; in a report file, under `single_runs` of the task."""

    def scores(self, seeds: Sequence[int]) -> list[Scores]:
        """Strict scores of the runs of some seeds."""
        return [result.correct for run, result in zip(self.runs, self.evaluations, strict=True) if run.seed in seeds]

    @property
    def cut_kind(self) -> str | None:
        """`cut.kind` of the recipe; None for base and teacher."""
        return getattr(self.runs[0].policy, "kind", None)

    @property
    def rollout(self) -> RolloutSettings | None:
        """How its students draw what they learn from; None where they learn from traces alone."""
        recipe = self.runs[0].recipe
        return recipe and recipe.rollout

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
        # A cost that one row lacks, or that is in several currencies, cannot rank the rows, nor be an axis.
        unusable = "money" if len(currencies_of(run for row in self.rows for run in row.runs)) > 1 else None
        names = COST_OPTIONS.values() if costs_of_rows else ()
        return tuple(name for name in names if name != unusable and all(name in costs for costs in costs_of_rows))

    def row(self, label: str | None) -> Row | None:
        """The row of that label, if there is one."""
        return next((row for row in self.rows if row.label == label), None)


_SAMPLING = ("temperature", "top_p", "top_k", "max_new_tokens", "thinking_budget")


def sampled_apart(rows: Sequence[Row]) -> str:
    """The settings of sampling in which the answers of rows differ, `temperature 0.6 or 1.0`; "" where in none."""
    results = [result for row in rows for result in row.evaluations]
    # What a sample writes by itself does not depend on the budget after which another is made to answer.
    names = [name for name in _SAMPLING if name != "thinking_budget" or results[0].answering == "made to answer"]
    values = {
        name: dict.fromkeys(str(r.sampling[name]).lower() for r in results if name in r.sampling) for name in names
    }
    return "; ".join(f"{name} {' or '.join(texts)}" for name, texts in values.items() if len(texts) > 1)


def by_cost(rows: list[Row], cost: CostName) -> list[Row]:
    """The rows, cheapest first, and rows without that cost last."""
    return sorted(rows, key=lambda row: row.costs[cost].value if row.costs and cost in row.costs else float("inf"))
