"""The steps of a run, decided before it starts: how many, which examples are in each, and Transformers' arguments."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leadspan.costs.flops import ExampleSize, Shapes, StepCounts, training_flops
from leadspan.data.packing import best_fit, plan_staged
from leadspan.errors import SettingsError
from leadspan.ranks import process_device
from leadspan.training.settings import ByExamples, TrainingSettings

if TYPE_CHECKING:
    from transformers import TrainingArguments


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The whole run, decided before it starts."""

    num_steps: int
    accumulation: int  # micro-batches per optimiser step on one rank
    plan: list[list[int]]  # micro-batches in order, all ranks; micro-batch `i` goes to rank `i % num_ranks`
    validations: frozenset[int]  # numbers of steps, from 1, after which the student is validated
    checkpoint_every: int

    def counts(self, sizes: Sequence[ExampleSize], num_ranks: int, shapes: Shapes, recompute: bool) -> list[StepCounts]:
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


# `one_cycle` is set up by our Trainer; the name that Transformers sees only has to be harmless.
_SCHEDULES = {"one_cycle": "constant", "cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def training_arguments(
    directory: Path, settings: TrainingSettings, plan: StepPlan, seed: int, has_validation: bool, use_bf16: bool
) -> "TrainingArguments":
    """Transformers' arguments of a planned run in its directory."""
    from transformers import TrainingArguments  # loads PEFT and more, for two seconds: a study only plans steps

    arguments = TrainingArguments(
        output_dir=str(directory / "checkpoints"),
        use_cpu=process_device().type == "cpu",
        max_steps=plan.num_steps,
        # A batch comes packed from the collator: one row, whatever its number of examples.
        per_device_train_batch_size=1,
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=_SCHEDULES[settings.schedule],
        warmup_steps=round(settings.warmup_share * plan.num_steps),
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        max_grad_norm=settings.max_grad_norm,
        bf16=use_bf16,
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=settings.log_every,
        logging_first_step=True,
        # A loss that is not finite must be seen, not replaced by the mean of the losses before it.
        logging_nan_inf_filter=False,
        eval_strategy="steps" if has_validation else "no",
        eval_steps=plan.num_steps,  # and before by `StepEvents`
        save_strategy="steps",
        save_steps=plan.checkpoint_every,
        metric_for_best_model="loss" if has_validation else None,
        greater_is_better=False if has_validation else None,
        report_to="none",  # trackers get the recipe, not these arguments, and stay open for the evaluation
        dataloader_num_workers=settings.num_workers,
        seed=seed,
        disable_tqdm=True,
        # Our batches are not columns of a `datasets` table.
        remove_unused_columns=False,
        # Every weight takes part in every step, and the search costs a pass over the graph.
        ddp_find_unused_parameters=False,
        restore_callback_states_from_checkpoint=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a GPU a process: nn.DataParallel would split a packed row
    return arguments
