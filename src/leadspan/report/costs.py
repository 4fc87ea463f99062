"""Training costs: means over seeds, as a share of the uncut run's, by part, and as predicted before the runs."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from leadspan.results import RunResult, predicted_and_measured
from leadspan.settings import Settings
from leadspan.tables import MISSING, CostName, percent, quantity
from leadspan.training.result import TrainResult

COST_NAMES: tuple[CostName, ...] = ("seconds", "peak_memory_bytes", "flops", "tokens")
"""Costs that every training run has."""
RARE_COSTS: tuple[CostName, ...] = ("energy_joules", "money")
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
MAX_RATE_RATIO = 1.5
"""Similar runs whose operations per second differ by more than this factor shared their device with other work."""


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
    predictions: list[dict[CostName, float | None]] = []
    for prediction, train in ((run.prediction, run.train) for run in runs):
        if prediction is not None and train is not None:
            predictions.append({"money": prediction.money})
            predictions[-1] |= {name: value for name, (value, _) in predicted_and_measured(prediction, train).items()}
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


def clock_fault(runs: Sequence[RunResult]) -> str | None:
    """Why the times of training runs cannot be compared, or None where they can.

    Runs are similar if they train the same student on the same device, and all have a live teacher or none has. Their
    operations per second differ by how well short sequences fill the device, but by no more than `MAX_RATE_RATIO`.
    Where they differ by more, or the devices differ, times say more about the machine than about the cuts.
    """
    trained = [(run, run.train) for run in runs if run.train is not None]
    devices = list(dict.fromkeys(train.device for _, train in trained))
    if len(devices) > 1:
        return f"times come from different devices ({'; '.join(devices)})"
    groups: dict[tuple[str, bool], list[float]] = {}
    for run, train in trained:
        seconds = train.typical_seconds or train.steady_seconds
        student = run.start.model_dump_json(exclude={"seed"}) if run.start else ""
        if seconds:
            groups.setdefault((student, train.flops.teacher_body > 0), []).append(train.flops.total / seconds)
    # Seeds and cuts are in one group: the greatest difference between them is the length of their sequences.
    for rates in groups.values():
        if max(rates) > MAX_RATE_RATIO * min(rates):
            slow, fast = (f"{quantity('flops', rate)}/s" for rate in (min(rates), max(rates)))
            return (
                f"runs on {devices[0]} trained at between {slow} and {fast}, more than a factor of {MAX_RATE_RATIO:g} "
                "apart, as they do where other work shares the device"
            )
    return None


def mean_by_part(splits: Sequence[Settings | Mapping[str, float] | None]) -> dict[str, float] | None:
    """Mean of each part over the runs of a policy; None where a run has no parts: a mean of the rest would mislead."""
    by_run = [dict(split) for split in splits if split is not None]
    if not by_run or len(by_run) < len(splits):
        return None
    names = dict.fromkeys(name for split in by_run for name in split)  # ordered, unlike a set
    return {name: fmean(split.get(name, 0.0) for split in by_run) for name in names}


def shares(values: Settings | Mapping[str, float]) -> dict[str, float]:
    """Part to its share of the sum of all parts."""
    by_part = dict(values)
    total = sum(by_part.values()) or 1.0
    return {name: value / total for name, value in by_part.items()}


def error_text(predicted: float | None, measured: float) -> str:
    """The signed error of a prediction, as a share of the measurement."""
    return MISSING if predicted is None or not measured else f"{100 * (predicted / measured - 1):+.0f} %"


def speed_figures(train: TrainResult) -> dict[str, str]:
    """Speed, utilisation, energy, and the share of each part in the step time; empty where they were not measured."""
    if train.step_seconds is None:
        return {}
    figures = {
        "tokens/s": f"{train.tokens_per_second:,.0f}",
        "FLOP/s": f"{quantity('flops', train.flops_per_second)}/s",
        "MFU": MISSING if train.mfu is None else f"{100 * train.mfu:.1f} %",
        "energy": MISSING if train.energy_joules is None else f"{train.energy_joules / 3.6e6:.3g} kWh",  # 3.6e6 J
    }
    if train.first_step_seconds is not None:
        # Shown apart, because it also compiles and allocates.
        figures["first step"] = quantity("seconds", train.first_step_seconds)
    return figures | {name.replace("_", " "): percent(share) for name, share in shares(train.step_seconds).items()}


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
