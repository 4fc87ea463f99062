"""The arguments of `transformers.Trainer` that a run's settings and its plan amount to."""

import importlib.util
import os
from pathlib import Path
from typing import Any, cast

import torch
from transformers import TrainingArguments

from leadspan.errors import SettingsError
from leadspan.training.config import TrainingSettings
from leadspan.training.schedule import Schedule

_SCHEDULES = {
    "one_cycle": "constant",
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant_with_warmup",
}


def training_arguments(
    directory: Path, settings: TrainingSettings, plan: Schedule, seed: int, has_validation: bool
) -> TrainingArguments:
    """Transformers' arguments of a planned run in its directory.

    Raises:
        SettingsError: A tracker is not installed.
    """
    for tracker in settings.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise SettingsError(f"training.report_to: {tracker} is not installed; install it, or leave it out")
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(directory / "tensorboard")
    arguments = TrainingArguments(
        output_dir=str(directory / "checkpoints"),
        use_cpu=not torch.accelerator.is_available(),
        max_steps=plan.num_steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=_SCHEDULES[settings.schedule],
        warmup_steps=round(settings.warmup_share * plan.num_steps),
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        max_grad_norm=settings.max_grad_norm,
        bf16=uses_bf16(settings),
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=settings.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if has_validation else "no",
        eval_steps=plan.validate_every,
        save_strategy="steps",
        save_steps=plan.checkpoint_every,
        save_total_limit=2,
        metric_for_best_model="loss" if has_validation else None,
        greater_is_better=False if has_validation else None,
        report_to=cast(Any, settings.report_to or "none"),
        dataloader_num_workers=settings.num_workers,
        seed=seed,
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        restore_callback_states_from_checkpoint=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a GPU a process: nn.DataParallel would split a packed row
    return arguments


def uses_bf16(settings: TrainingSettings) -> bool:
    """Whether a run on this machine trains under bfloat16 autocast."""
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if settings.precision == "auto":
        return has_bf16
    return settings.precision == "bfloat16"
