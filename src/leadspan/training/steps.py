"""The steps of a run: how many they are, which examples are in each, and what each of them counts.

`plan_steps` decides them before the run starts; a `StepSource` makes the examples of a step when it begins.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from leadspan.costs.flops import ExampleSize, FlopsByPart, ModelShape, training_flops
from leadspan.data.packing import Batch, best_fit, plan_staged
from leadspan.data.supervision import Layout, ScoredSelection
from leadspan.errors import SettingsError
from leadspan.losses.settings import LossSettings
from leadspan.training.settings import ByExamples, TrainingSettings


@dataclass(frozen=True, slots=True)
class StepCounts:
    """What one optimiser step does on all ranks: tokens through the student, weighted positions, operations."""

    examples: int
    tokens: int
    weighted: int
    flops: FlopsByPart

    @classmethod
    def of(cls, sizes: Sequence[ExampleSize], flops: FlopsByPart) -> "StepCounts":
        """Those of a step with examples of some sizes."""
        return cls(len(sizes), sum(size.tokens for size in sizes), sum(size.weighted for size in sizes), flops)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The whole run, decided before it starts.

    Attributes:
        accumulation: Micro-batches per optimiser step on one rank.
        plan: Micro-batches in order, all ranks; micro-batch `i` goes to rank `i % num_ranks`.
        validations: Numbers of steps, from 1, after which the student is validated.
    """

    num_steps: int
    accumulation: int
    plan: list[list[int]]
    validations: frozenset[int]
    checkpoint_every: int

    def counts(
        self,
        sizes: Sequence[ExampleSize],
        num_ranks: int,
        shapes: tuple[ModelShape, ModelShape | None],
        recompute: bool,
    ) -> list[StepCounts]:
        """Tokens and operations of every step on all ranks; the teacher's shape is that of a live one."""
        counts, per_step = [], self.accumulation * num_ranks
        for start in range(0, len(self.plan), per_step):
            of_step = [sizes[i] for batch in self.plan[start : start + per_step] for i in batch]
            # All ranks' examples: the peak that MFU divides by is that of all ranks, too.
            counts.append(StepCounts.of(of_step, training_flops(*shapes, of_step, recompute)))
        return counts


def plan_steps(
    settings: TrainingSettings, lengths: Sequence[int], num_ranks: int, seed: int, num_stages: int = 1
) -> StepPlan:
    """Plan a run over examples of the given lengths.

    A cut that changes over training has its examples stage after stage (`data.examples.Examples`), each stage an equal
    share of the optimiser steps; an epoch is then counted by the harmonic mean of the stages' steps per epoch.

    Raises:
        SettingsError: A step does not divide among the ranks, an example does not fit the token budget, or there are
            fewer steps than stages.
    """
    batching, num_traces = settings.batching, len(lengths) // num_stages
    per_step = batching.batches_per_step
    steps: list[float] = []
    for offset in range(0, len(lengths), num_traces):
        # Length 0: the cut of this stage leaves the example no weighted position, and it is in no batch.
        usable = [i for i in range(offset, offset + num_traces) if lengths[i]]
        if isinstance(batching, ByExamples):
            steps.append(len(usable) / batching.examples_per_step)
        else:
            steps.append(len(best_fit(lengths, batching.tokens_per_batch, usable)) / per_step)
    # Harmonic mean over the stages, which share the steps of a run equally, and not its epochs.
    steps_per_epoch = num_stages / sum(1 / number for number in steps)
    if per_step % num_ranks:
        raise SettingsError(
            f"training.batching: {per_step} batches per step do not divide among {num_ranks} ranks; "
            "choose a multiple of the number of ranks"
        )
    # 1e-9: in floating point 1.1 epochs of 50 steps are a little more than 55, and would be rounded up to 56.
    num_steps = settings.steps or max(1, math.ceil((settings.epochs or 0) * steps_per_epoch - 1e-9))
    if settings.schedule == "one_cycle" and num_steps < 2:
        raise SettingsError("training.schedule: one_cycle needs at least 2 steps; take another one")
    if num_steps < num_stages:
        raise SettingsError(
            f"cut.num_stages = {num_stages}: the run has only {num_steps} steps; lower it or train longer"
        )
    # Borders are rounded down at the step, not at the micro-batch: a stage never ends inside an optimiser step.
    ends = [stage * num_steps // num_stages * per_step for stage in range(num_stages + 1)]
    batches = [end - start for start, end in itertools.pairwise(ends)]
    # Planned for all ranks at once, so that any number of them takes the same steps.
    if isinstance(batching, ByExamples):
        plan = plan_staged(lengths, batches, seed, batching.examples_per_batch)
    else:
        plan = plan_staged(lengths, batches, seed, None, batching.tokens_per_batch)
    parts = settings.num_validations
    validations = frozenset(-(-number * num_steps // parts) for number in range(1, parts + 1))
    # Ten checkpoints a run: a kill costs at most a tenth of it.
    checkpoint_every = settings.checkpoint_every or math.ceil(num_steps / 10)
    return StepPlan(num_steps, per_step // num_ranks, plan, validations, checkpoint_every)


def speed_figures(steps: Sequence[StepCounts], seconds: float, peak_flops: float | None) -> dict[str, float]:
    """Figures of some steps that took `seconds`, for a log line; none where there is no step.

    `speed/mfu` is as in `TrainResult.mfu`: operations without recomputation, as a share of the operations that all
    ranks' devices can do in that time; left out where their peak is not known.
    """
    if not steps or seconds <= 0:
        return {}
    total = sum(step.flops.total for step in steps)
    figures = {
        "speed/tokens_per_second": sum(step.tokens for step in steps) / seconds,
        "speed/flops_per_second": total / seconds,
    }
    if peak_flops is not None:
        figures["speed/mfu"] = (total - sum(step.flops.recomputation for step in steps)) / seconds / peak_flops
    return figures


def layout_sizes(layouts: Iterable[Layout], selection: ScoredSelection | None) -> list[ExampleSize]:
    """Sizes of examples by their layouts; positions are scored where a selection goes by scores."""
    is_scored = selection is not None
    return [ExampleSize(each.num_tokens, each.num_weighted, each.num_scored * is_scored) for each in layouts]


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

    def state(self) -> tuple[dict[str, Any], tuple[str, int, str]]:
        """What a checkpoint keeps.

        Returns:
            What was made for later steps, on all ranks, as JSON values; and of the file in the run directory that
            `recall` reads, as it stands, the name, size and SHA-256.
        """
        ...

    def restore(self, made: dict[str, Any]) -> None:
        """Go on with what was made for later steps."""
        ...

    def batches(self, step: int, student: torch.nn.Module) -> list[Batch]:
        """This rank's micro-batches of a step, from 0."""
        ...

    def end_step(self, agreements: Sequence[torch.Tensor]) -> None:
        """Record the step, with the agreement of each of its micro-batches (`losses.objective.LossOutput`)."""
        ...

    def figures(self, first: int, last: int) -> dict[str, float]:
        """Of the steps from `first` up to `last`, for a log line."""
        ...
