"""Where a step's examples come from when they are not known before the run."""

from typing import Any, Protocol

import torch

from leadspan.costs.flops import ModelShape
from leadspan.data.packing import Batch
from leadspan.losses.settings import LossSettings
from leadspan.training.speed import StepCounts


class StepSource(Protocol):
    """Makes the examples of a step when it begins, from the student as it is then."""

    @property
    def num_examples(self) -> int:
        """Examples of an epoch, for the length of a run."""
        ...

    @property
    def counts(self) -> list[StepCounts]:
        """What the steps made so far, or recalled, do."""
        ...

    @property
    def num_cold_steps(self) -> int:
        """Steps of a first stage; 0 where there is one stage."""
        ...

    def loss_at(self, step: int) -> LossSettings | None:
        """The objective of a step, where it is not the run's."""
        ...

    def prepare(
        self, shapes: tuple[ModelShape, ModelShape | None], num_steps: int, recompute: bool, use_bf16: bool
    ) -> None:
        """Learn what a step costs, and how it is computed."""
        ...

    def recall(self, step: int) -> None:
        """Learn what the steps before this one were, where training goes on from a checkpoint."""
        ...

    def state(self) -> dict[str, Any]:
        """What is made for steps to come, all ranks; for JSON."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with a `state`."""
        ...

    def batches(self, step: int, student: torch.nn.Module) -> list[Batch]:
        """This rank's micro-batches of a step, from 0."""
        ...

    def learn_of(self, agreement: torch.Tensor) -> None:
        """Take what a micro-batch of the step showed (`losses.objective.LossOutput`)."""
        ...

    def end_step(self) -> None:
        """Write down what the step was; all its micro-batches are through."""
        ...

    def figures(self, first: int, last: int) -> dict[str, float]:
        """Of the steps from `first` up to `last`, for a log line."""
        ...
