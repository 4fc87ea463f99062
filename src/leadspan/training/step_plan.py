"""How long a run is: optimiser steps, micro-batches per step, and which examples are in each."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from leadspan.data.packing import best_fit, plan_staged
from leadspan.errors import SettingsError
from leadspan.training.settings import ByExamples, TrainingSettings


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The whole run, decided before it starts.

    Attributes:
        num_steps: Optimiser steps.
        accumulation: Micro-batches per optimiser step on one rank.
        plan: Micro-batches in order, all ranks; micro-batch `i` goes to rank `i % num_ranks`.
        validate_every: Steps between validations.
        checkpoint_every: Steps between checkpoints.
    """

    num_steps: int
    accumulation: int
    plan: list[list[int]]
    validate_every: int
    checkpoint_every: int


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
    num_steps = settings.steps or math.ceil((settings.epochs or 0) * steps_per_epoch - 1e-9)
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
    validate_every = math.ceil(num_steps / settings.num_validations)
    # Ten checkpoints a run: a kill costs at most a tenth of it.
    checkpoint_every = settings.checkpoint_every or math.ceil(num_steps / 10)
    return StepPlan(num_steps, per_step // num_ranks, plan, validate_every, checkpoint_every)
