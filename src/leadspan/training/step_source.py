"""Where a step's examples come from when they are not known before the run."""

from typing import Any, Protocol

import torch

from leadspan.costs.flops import ModelShape
from leadspan.data.packing import Batch
from leadspan.losses.settings import LossSettings
from leadspan.training.speed import StepCounts


class StepSource(Protocol):
    """Makes the examples of a step when the step begins, with the student as it is then.

    Attributes:
        num_examples: Examples of an epoch, for the length of a run.
        counts: Counts of the steps that were made or recalled so far.
        num_cold_steps: Steps of a first stage; 0 where there is one stage.
    """

    num_examples: int
    counts: list[StepCounts]
    num_cold_steps: int

    def loss_at(self, step: int) -> LossSettings | None:
        """The objective of a step; None where it is that of the run."""
        ...

    def prepare(
        self, shapes: tuple[ModelShape, ModelShape | None], num_steps: int, recompute: bool, use_bf16: bool
    ) -> None:
        """Receive the shapes and options by which the cost of a step is counted."""
        ...

    def recall(self, step: int) -> None:
        """Read back what the steps before this one were, when training resumes from a checkpoint."""
        ...

    def state(self) -> dict[str, Any]:
        """What was made for later steps, on all ranks, as JSON values."""
        ...

    def recorded(self) -> tuple[str, int, str]:
        """Name, size and SHA-256 of the file in the run directory that `recall` reads, as it stands."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with a `state`."""
        ...

    def batches(self, step: int, student: torch.nn.Module) -> list[Batch]:
        """This rank's micro-batches of a step, from 0."""
        ...

    def learn_of(self, agreement: torch.Tensor) -> None:
        """Receive the agreement of a micro-batch of the step (`losses.objective.LossOutput`)."""
        ...

    def end_step(self) -> None:
        """Record the step, after all its micro-batches."""
        ...

    def figures(self, first: int, last: int) -> dict[str, float]:
        """Of the steps from `first` up to `last`, for a log line."""
        ...
