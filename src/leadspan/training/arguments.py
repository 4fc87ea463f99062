"""The arguments of `transformers.Trainer` for a run's settings and its plan."""

from pathlib import Path

import torch
from transformers import TrainingArguments

from leadspan.training.settings import TrainingSettings
from leadspan.training.step_plan import StepPlan

# `one_cycle` is set up by our Trainer; the name that Transformers sees only has to be harmless.
_SCHEDULES = {"one_cycle": "constant", "cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def training_arguments(
    directory: Path, settings: TrainingSettings, plan: StepPlan, seed: int, has_validation: bool, use_bf16: bool
) -> TrainingArguments:
    """Transformers' arguments of a planned run in its directory."""
    arguments = TrainingArguments(
        output_dir=str(directory / "checkpoints"),
        use_cpu=not torch.accelerator.is_available(),
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
        eval_steps=plan.validate_every,
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
