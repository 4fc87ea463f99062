"""Predicts the time of optimiser steps from measured ones.

The model is a sum of non-negative terms, each a count times a rate: steps, micro-batches, operations of the linear
layers, of attention, and of the head. The rates have the least absolute relative error over the measured steps:
relative, so that short steps count as much as long ones; absolute and not squared, so that an outlier (a step that
compiled, or ran under other load) does not bend them.
The head has a rate of its own because its products are large and its rows stream through memory; steps have one because
of the optimiser, micro-batches because of what a forward pass costs before its first token.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import Field
from scipy.optimize import linprog

from leadspan.costs.flops import FlopsByPart
from leadspan.costs.memory import MemoryByPart
from leadspan.settings import Settings, load_json


class StepWork(NamedTuple):
    """What one rank does in one optimiser step: micro-batches, and operations of both models, with recomputation."""

    batches: int
    linear: int
    attention: int
    head: int

    @classmethod
    def of(cls, flops: FlopsByPart, batches: int) -> "StepWork":
        """The work of counted operations."""
        attention = flops.student_attention + flops.teacher_attention
        head = flops.student_head + flops.teacher_head
        return cls(batches=batches, linear=flops.total - attention - head, attention=attention, head=head)


class DrawingWork(NamedTuple):
    """What drawing one batch of rollouts takes."""

    passes: int  # new tokens of its longest row: forward passes of one token, each of which reads all weights
    rows: int  # rows in these passes
    operations: int  # counted operations, those of the prompts included


# The step itself, which costs the same whatever is in it, then the fields of `StepWork`.
_TERMS = ("step", "batch", "linear", "attention", "head")


class Calibration(Settings):
    """Rates measured on a few real steps, and what they were measured on."""

    device: str
    """Device and number of ranks."""
    fingerprint: str
    """Models, precision and checkpointing the steps were measured with."""
    num_steps: int = Field(ge=1)
    """Steps measured."""
    rates: dict[str, float]
    """Seconds per step, per micro-batch, and per operation, by term."""
    largest_error: float
    """Largest relative error of the rates on the measured steps themselves."""
    memory_offset: float = Field(default=0.0, ge=0)
    """Bytes that the process takes beyond the prediction, independent of the batch."""
    memory_factor: float = Field(default=1.0, ge=0)
    """Measured growth of the peak per predicted byte: an allocator holds on to freed blocks."""
    drawing: dict[str, float] = {}
    """Of rollouts: seconds per pass of a batch, per row in a pass, and per operation, by term."""
    rollout_lengths: list[int | None] = []
    """New tokens of rollouts that the student drew as it begins; null: not ended by the longest cap of the run."""

    def seconds(self, steps: Sequence[StepWork]) -> float:
        """Predicted wall time of steps."""
        rates = np.array([self.rates.get(term, 0.0) for term in _TERMS])
        return float(sum(np.array([1, *step], dtype=np.float64) @ rates for step in steps))

    def drawing_seconds(self, batches: Sequence[DrawingWork]) -> float:
        """Predicted wall time of drawing batches of rollouts."""
        return sum(self.drawing.get(term, 0.0) * count for batch in batches for term, count in batch._asdict().items())

    def memory(self, predicted: MemoryByPart) -> MemoryByPart:
        """Predicted memory of the tensors with what the process adds."""
        # The tensors are there whatever was measured, so what the process adds is never negative.
        measured = self.memory_offset + self.memory_factor * predicted.total
        return predicted.model_copy(update={"process": max(0, round(measured - predicted.total))})

    def room(self, limit: int) -> float:
        """Bytes that the tensors may take where `memory` is to be at most a limit."""
        rest = limit - self.memory_offset
        if not self.memory_factor:
            return limit if rest >= 0 else 0
        return min(limit, rest / self.memory_factor)


def load_calibration(path: Path | None) -> Calibration | None:
    """The calibration in a file; None without a path.

    Raises:
        SettingsError: The file cannot be read, or is of another kind.
    """
    return None if path is None else load_json(Calibration, path, "write it with `leadspan plan --calibrate`")


def fit_rates(
    work: Sequence[StepWork] | Sequence[DrawingWork], seconds: Sequence[float]
) -> tuple[dict[str, float], float]:
    """Non-negative rates that fit measured steps or draws, by term, and their largest relative error on these."""
    terms = _TERMS if isinstance(work[0], StepWork) else DrawingWork._fields
    rows = [(1, *each) if isinstance(each, StepWork) else each for each in work]
    rates, largest = _fit(np.array(rows, dtype=np.float64), np.array(seconds))
    return {term: float(rate) for term, rate in zip(terms, rates, strict=True) if rate}, largest


def fit_memory(predicted: Sequence[int], measured: Sequence[int]) -> tuple[float, float]:
    """Offset and factor, neither negative, from predicted to measured peaks.

    A peak of 0, where the process already had enough memory, says nothing and is left out; without any other peak, the
    prediction is that of the tensors alone. Peaks of one size do not show what grows with it: the tensors do.
    """
    pairs = [(size, peak) for size, peak in zip(predicted, measured, strict=True) if peak > 0]
    if not pairs:
        return 0.0, 1.0
    if len({size for size, _ in pairs}) == 1:
        return float(max(0, *(peak - size for size, peak in pairs))), 1.0
    rows = np.array([[1, size] for size, _ in pairs], dtype=np.float64)
    (offset, factor), _ = _fit(rows, np.array([peak for _, peak in pairs], dtype=np.float64))
    return float(offset), float(factor)


def _fit(rows: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    """Non-negative rates with the least absolute relative error, and the largest relative error.

    `min sum t` over rates and errors `t >= 0` with `-t <= rows @ rates / values - 1 <= t`, a linear program.

    Source: Charnes, Cooper and Ferguson, Optimal estimation of executive compensation by linear programming (1955).
    """
    # Columns and values differ by many orders of magnitude (1 step, 1e15 operations, 1e10 bytes); the solver takes a
    # coefficient below 1e-9 for 0, so both are scaled to 1.
    scale = rows.max(axis=0) / values.max()
    scale[scale == 0] = 1.0
    # Divided by the measured values: the fit's residuals are then relative errors.
    relative = rows / scale / values[:, None]
    num_rows, num_terms = relative.shape
    costs = np.concatenate([np.zeros(num_terms), np.ones(num_rows)])
    bounds = np.block([[relative, -np.eye(num_rows)], [-relative, -np.eye(num_rows)]])
    ends = np.concatenate([np.ones(num_rows), -np.ones(num_rows)])
    rates = linprog(costs, A_ub=bounds, b_ub=ends).x[:num_terms]
    return rates / scale, float(np.abs(relative @ rates - 1).max())
