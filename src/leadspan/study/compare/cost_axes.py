"""The costs of training as axes of a frontier: measured over seeds, predicted, and as a share of the uncut run's."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from leadspan.results import Prediction, RunResult, TrainResult

CostName = Literal["seconds", "peak_memory_bytes", "flops", "tokens", "energy_joules", "money"]
COST_NAMES: tuple[CostName, ...] = ("seconds", "peak_memory_bytes", "flops", "tokens")
"""Costs that every training run has."""
KNOWN_SOMETIMES: tuple[CostName, ...] = ("energy_joules", "money")
"""Costs that need NVML, or a price in the recipe (`plan.price_per_hour`)."""
COST_OPTIONS: dict[str, CostName] = {
    "time": "seconds",
    "memory": "peak_memory_bytes",
    "flops": "flops",
    "tokens": "tokens",
    "energy": "energy_joules",
    "money": "money",
}
"""Names of the costs on the command line."""
COST_WORDS: dict[CostName, str] = {**{name: word for word, name in COST_OPTIONS.items()}, "flops": "FLOPs"}
"""Names of the costs in a sentence."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One cost of training a condition.

    Attributes:
        values: Measured, one for each run, in the order of the seeds: seconds, bytes, operations, tokens, joules, or
            units of the recipe's currency.
        of_full: The mean as a share of the reference's mean, both over the compared seeds; None without a reference.
        predicted: Mean of what was predicted before the runs; None where one of them has no prediction of it.
    """

    values: tuple[float, ...]
    of_full: float | None
    predicted: float | None

    @property
    def value(self) -> float:
        """Mean over the runs."""
        return fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Standard deviation over the runs, with n - 1; None for a single run."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def error(self) -> float | None:
        """How far the prediction is off, predicted / measured - 1; None where there is none."""
        return None if self.predicted is None or not self.value else self.predicted / self.value - 1


def costs_over(
    runs: Sequence[RunResult], compared: Sequence[RunResult] = (), full: Sequence[RunResult] = ()
) -> dict[CostName, Cost]:
    """Costs of the runs of one condition, beside those of the reference; a cost that one run lacks is left out.

    Args:
        runs: All runs of the condition, whose values and predictions are taken.
        compared: Those of them that are compared with the reference: of the seeds that retention compares too.
        full: The reference's runs of those seeds.
    """
    own, part, reference = _all_measured(runs), _all_measured(compared), _all_measured(full)
    predictions = [predicted_costs(run.prediction) for run in runs]
    found: dict[CostName, Cost] = {}
    for name, values in own.items():
        whole = fmean(reference[name]) if name in reference else 0.0
        known = [prediction[name] for prediction in predictions if name in prediction]
        found[name] = Cost(
            values=tuple(values),
            of_full=fmean(part[name]) / whole if whole else None,
            predicted=fmean(known) if len(known) == len(runs) else None,
        )
    return found


def measured_costs(run: RunResult) -> dict[CostName, float]:
    """What a run cost, by measurement; empty where nothing was trained.

    Money is the price of an hour of one device, times ranks, times hours of the training loop.
    """
    train = run.train
    if train is None:
        return {}
    found: dict[CostName, float] = {
        "seconds": train.seconds,
        "peak_memory_bytes": train.peak_memory_bytes,
        "flops": train.flops.total,
        "tokens": train.num_tokens,
    }
    if train.energy_joules is not None:
        found["energy_joules"] = train.energy_joules
    money = _money(run, train)
    return found if money is None else {**found, "money": money}


def predicted_costs(prediction: Prediction | None) -> dict[CostName, float]:
    """What a run was predicted to cost; empty where nothing was predicted."""
    if prediction is None:
        return {}
    found: dict[CostName, float | None] = {
        "seconds": prediction.seconds,
        "peak_memory_bytes": prediction.memory.total,
        "flops": prediction.flops.total,
        "tokens": prediction.num_tokens,
        "money": prediction.money,
    }
    return {name: value for name, value in found.items() if value is not None}


def currency_of(runs: Sequence[RunResult]) -> str:
    """Sign of the money of some runs; several are all named."""
    signs = [str((run.recipe.get("plan") or {}).get("currency", "$")) for run in runs if "money" in measured_costs(run)]
    return "/".join(dict.fromkeys(signs))


def _money(run: RunResult, train: TrainResult) -> float | None:
    price = (run.recipe.get("plan") or {}).get("price_per_hour")
    if price is None or train.num_ranks is None:
        return None
    return float(price) * train.num_ranks * train.seconds / 3600


def _all_measured(runs: Sequence[RunResult]) -> dict[CostName, list[float]]:
    each = [measured_costs(run) for run in runs]
    return {name: [found[name] for found in each] for name in (each[0] if each else {}) if all(name in f for f in each)}
