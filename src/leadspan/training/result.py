"""What one training run did and what it cost."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

from pydantic import Field

from leadspan.costs.flops import FlopsByPart
from leadspan.settings import Amount, Count, Settings

StepNumber = Annotated[str, Field(pattern=r"^[0-9]{1,18}$")]

STUDENT_DIR = "student"
"""Where in a run directory the trained model is written."""
ADAPTER_DIR = "adapter"
"""Where its adapters are, if it was trained with some."""
CHECKPOINTS_DIR = "checkpoints"
"""Where the checkpoints are from which it resumes."""
IDENTITY_FILE = "identity.json"
"""What a run is, in its directory and in its checkpoints."""


class StepSeconds(Settings):
    """Wall time of all optimiser steps by what was done, on the first rank."""

    rollout: Amount = 0.0
    """Drawing what the student learns from, before a step begins; part of `TrainResult.seconds`."""
    data: Amount = 0.0
    """Fetching and packing examples before a step begins; not part of `TrainResult.seconds`."""
    teacher: Amount = 0.0
    """Targets of the teacher."""
    student_forward: Amount = 0.0
    """Forward pass of the student with the loss, which forms the head's gradients on the way."""
    backward: Amount = 0.0
    """Backward pass below the head, recomputation and averaging over ranks included."""
    optimizer: Amount = 0.0
    """Clipping, update, and all else of a step."""


class StepsCost(Settings):
    """What some optimiser steps did and cost."""

    num_steps: Count
    """Optimiser steps."""
    num_examples: Count
    """Examples seen, repeats counted."""
    num_tokens: Count
    """Tokens through the student's forward pass."""
    num_weighted_tokens: Count
    """Positions with a loss."""
    seconds: Amount
    """Wall time of the training loop, drawing included, without loading and validation."""
    flops: FlopsByPart
    """Counted from the models' shapes and each example's own length."""


class StageCost(StepsCost):
    """What one stage of a training run did and cost."""

    name: Literal["cold start", "on-policy"]
    """Whether the student learnt from traces alone, or from rollouts too."""


class TrainResult(StepsCost):
    """What one training run did and what it cost, as measured."""

    peak_memory_bytes: Count
    """Peak memory of training above what the process held before the models were loaded."""
    memory_source: Literal["cuda allocator", "process resident set"]
    """What measured the peak."""
    stages: list[StageCost] = []
    """The same by stage, where a cold start came before the rollouts."""
    first_loss: float
    """Training loss first logged."""
    final_loss: float
    """Training loss last logged."""
    validation_loss: dict[StepNumber, float] = {}
    """Validation loss (full sequences) by step, steps as strings."""
    best_step: Count | None = None
    """Step with the lowest validation loss."""
    saved_step: Count
    """Step whose weights were written to `student/`."""
    device: str
    """Device name and number of ranks."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Type of the computation; weights are float32. Absent in results of earlier versions."""
    num_ranks: Count | None = None
    """Processes that trained together; absent in results of earlier versions."""
    step_seconds: StepSeconds | None = None
    """Where the time of the steps went."""
    first_step_seconds: Amount | None = None
    """Wall time of the first optimiser step, which compiles, allocates and warms up; part of `seconds`."""
    typical_seconds: Amount | None = None
    """Wall time of the training loop if every operation took the median time per operation over the steps. Times of
    runs are compared by it, since other work on the machine that slows some steps does not change it."""
    mfu: Amount | None = None
    """Model FLOPs utilisation: FLOPs per second without recomputation, as a share of the peak of all ranks' devices
    (Chowdhery et al., arXiv 2204.02311, appendix B); absent where no peak is known or stated."""
    energy_joules: Amount | None = None
    """Energy of the GPUs of all ranks from the first step to the last, validations included; absent without NVML."""

    @property
    def steady_seconds(self) -> float:
        """Wall time if the first step took as long as the others on average; this is what a prediction predicts."""
        if self.first_step_seconds is None or self.num_steps < 2:
            return self.seconds
        return (self.seconds - self.first_step_seconds) * self.num_steps / (self.num_steps - 1)

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second through the student's forward pass; 0 for a run without steps."""
        return self.num_tokens / self.seconds if self.seconds else 0.0

    @property
    def flops_per_second(self) -> float:
        """Counted operations per second, recomputation included."""
        return self.flops.total / self.seconds if self.seconds else 0.0


def remove_checkpoints(directory: Path) -> None:
    """Remove all checkpoints of a finished run."""
    shutil.rmtree(directory / CHECKPOINTS_DIR, ignore_errors=True)


def typical_seconds(durations: Sequence[float], flops: Sequence[int]) -> float | None:
    """Time of a run from the median time per operation of its steps; None where not all steps were timed.

    The median of seconds / operations over the steps, times all operations. So steps of different lengths count by
    their work, and a burst of other load on the machine, which slows a few steps, does not count. The first step,
    which compiles and warms up, is left out where there are more.

    >>> typical_seconds([9.0, 1.0, 2.0, 30.0], [1, 1, 2, 1])
    5.0
    """
    if not durations or len(durations) != len(flops):
        return None
    pairs = [(seconds, number) for seconds, number in zip(durations, flops, strict=True) if number]
    rates = [seconds / number for seconds, number in pairs[1:] or pairs]
    return median(rates) * sum(flops) if rates else None
