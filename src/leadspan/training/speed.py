"""Speed of training by log line: tokens and operations per second, and their share of the devices' peak."""

from collections.abc import Sequence
from dataclasses import dataclass

from leadspan.costs.flops import ExampleSize, FlopsByPart, ModelShape, training_flops


@dataclass(frozen=True, slots=True)
class StepCounts:
    """What one optimiser step does on all ranks.

    Attributes:
        examples: Examples.
        tokens: Through the student's forward pass.
        weighted: Positions with a loss.
        flops: Operations.
    """

    examples: int
    tokens: int
    weighted: int
    flops: FlopsByPart


@dataclass(frozen=True, slots=True)
class Speed:
    """Figures of the steps of a plan.

    Attributes:
        steps: All of them, in order.
        peak_flops: Operations a second of all ranks' devices; None where that is not known.
    """

    steps: Sequence[StepCounts]
    peak_flops: float | None

    def figures(self, first: int, last: int, seconds: float) -> dict[str, float]:
        """Figures of the steps from `first` up to `last`, which took `seconds`; none where there is no step.

        `speed/mfu` is as in `TrainResult.mfu`: operations without recomputation, as a share of the peak.
        """
        done = self.steps[first:last]
        if not done or seconds <= 0:
            return {}
        total = sum(step.flops.total for step in done)
        figures = {
            "speed/tokens_per_second": sum(step.tokens for step in done) / seconds,
            "speed/flops_per_second": total / seconds,
        }
        if self.peak_flops is not None:
            figures["speed/mfu"] = (total - sum(step.flops.recomputation for step in done)) / seconds / self.peak_flops
        return figures


def step_counts(
    sizes: Sequence[ExampleSize],
    plan: Sequence[Sequence[int]],
    batches_per_step: int,
    shapes: tuple[ModelShape, ModelShape | None],
    recompute: bool,
) -> list[StepCounts]:
    """Tokens and operations of every step.

    Args:
        sizes: Of the examples.
        plan: Examples of each micro-batch, all ranks.
        batches_per_step: Micro-batches of a step, over all ranks.
        shapes: Student and live teacher.
        recompute: Whether gradient checkpointing is on.
    """
    counts = []
    for start in range(0, len(plan), batches_per_step):
        of_step = [sizes[i] for batch in plan[start : start + batches_per_step] for i in batch]
        # All ranks' examples: the peak that MFU divides by is that of all ranks, too.
        flops = training_flops(*shapes, of_step, recompute)
        tokens, weighted = sum(size.tokens for size in of_step), sum(size.weighted for size in of_step)
        counts.append(StepCounts(len(of_step), tokens, weighted, flops))
    return counts
