"""What runs were predicted to cost beside what they cost, and where the time of their steps went."""

from collections.abc import Sequence
from dataclasses import dataclass

from leadspan.results import Prediction, RunResult, StepSeconds, TrainResult
from leadspan.study.frontier import CostName
from leadspan.study.tables import MISSING, percent, quantity


@dataclass(frozen=True, slots=True)
class Compared:
    """One cost of one run.

    Attributes:
        name: Which cost.
        predicted: Before the run; None where nothing was predicted.
        measured: By the run.
    """

    name: CostName
    predicted: float | None
    measured: float

    @property
    def predicted_text(self) -> str:
        """The prediction with its unit."""
        return MISSING if self.predicted is None else quantity(self.name, self.predicted)

    @property
    def measured_text(self) -> str:
        """The measurement with its unit."""
        return quantity(self.name, self.measured)

    @property
    def error_text(self) -> str:
        """How far the prediction was off, as a share of the measurement, signed."""
        if self.predicted is None or not self.measured:
            return MISSING
        return f"{100 * (self.predicted / self.measured - 1):+.0f} %"


def compared(prediction: Prediction | None, train: TrainResult) -> list[Compared]:
    """Tokens, operations, time and memory, predicted and measured; the time as if no step had to compile."""
    return [
        Compared("tokens", prediction and prediction.num_tokens, train.num_tokens),
        Compared("flops", prediction and prediction.flops.total, train.flops.total),
        Compared("seconds", prediction and prediction.seconds, train.steady_seconds),
        Compared("peak_memory_bytes", prediction and prediction.memory.total, train.peak_memory_bytes),
    ]


def compared_runs(named: Sequence[tuple[str, RunResult]]) -> list[tuple[str, list[Compared]]]:
    """The comparison of every run that was trained after a prediction."""
    return [(label, compared(run.prediction, run.train)) for label, run in named if run.prediction and run.train]


def throughput(named: Sequence[tuple[str, RunResult]]) -> list[tuple[str, dict[str, str]]]:
    """Speed, utilisation, energy, and shares of the step time, of every trained run that measured them."""
    return [(label, _speed(run.train)) for label, run in named if run.train and run.train.step_seconds]


def shares(steps: StepSeconds) -> dict[str, float]:
    """Part of a step to its share of all parts."""
    parts = steps.model_dump()
    total = sum(parts.values()) or 1.0
    return {name: seconds / total for name, seconds in parts.items()}


def _speed(train: TrainResult) -> dict[str, str]:
    assert train.step_seconds is not None, "asked for"
    found = {
        "tokens/s": f"{train.tokens_per_second:,.0f}",
        "FLOP/s": f"{quantity('flops', train.flops_per_second)}/s",
        "MFU": MISSING if train.mfu is None else f"{100 * train.mfu:.1f} %",
        "energy": MISSING if train.energy_joules is None else f"{train.energy_joules / 3.6e6:.3g} kWh",
    }
    if train.first_step_seconds is not None:
        found["first step"] = quantity("seconds", train.first_step_seconds)
    return found | {name.replace("_", " "): percent(share) for name, share in shares(train.step_seconds).items()}
