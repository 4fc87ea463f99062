"""How long a run is: optimiser steps, micro-batches per step, and which examples are in each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from leadspan.data.packing import best_fit, plan_by_examples, plan_by_tokens
from leadspan.errors import SettingsError
from leadspan.training.config import ByExamples, TrainingSettings


@dataclass(frozen=True, slots=True)
class Schedule:
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


def schedule(settings: TrainingSettings, lengths: Sequence[int], num_ranks: int, seed: int) -> Schedule:
    """Plan a run over examples of the given lengths.

    Raises:
        SettingsError: A step does not divide among the ranks, or an example does not fit the token budget.
    """
    batching = settings.batching
    if isinstance(batching, ByExamples):
        per_step = batching.examples_per_step // batching.examples_per_batch
        steps_per_epoch = len(lengths) / batching.examples_per_step
    else:
        per_step = batching.batches_per_step
        packs = best_fit(lengths, batching.tokens_per_batch, range(len(lengths)))
        steps_per_epoch = len(packs) / per_step
    if per_step % num_ranks:
        raise SettingsError(
            f"training.batching: {per_step} batches per step do not divide among {num_ranks} ranks; "
            "choose a multiple of the number of ranks"
        )
    num_steps = settings.steps or math.ceil((settings.epochs or 0) * steps_per_epoch - 1e-9)
    if settings.schedule == "one_cycle" and num_steps < 2:
        raise SettingsError("training.schedule: one_cycle needs at least 2 steps; take another one")
    if isinstance(batching, ByExamples):
        plan = plan_by_examples(len(lengths), batching.examples_per_batch, num_steps * per_step, seed)
    else:
        plan = plan_by_tokens(lengths, batching.tokens_per_batch, num_steps * per_step, seed)
    validate_every = math.ceil(num_steps / settings.num_validations)
    checkpoint_every = settings.checkpoint_every or math.ceil(num_steps / 10)
    return Schedule(num_steps, per_step // num_ranks, plan, validate_every, checkpoint_every)
