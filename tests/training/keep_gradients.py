"""One optimiser step of a recipe, under torchrun or alone; rank 0 writes the gradient the optimiser is given.

Usage: keep_gradients.py RECIPE FILE
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from leadspan.inputs import prepare_data
from leadspan.models.loading import load_model
from leadspan.recipe import Recipe
from leadspan.settings import load_settings
from leadspan.teacher.live import freeze
from leadspan.training.process import leave_ranks, process_state
from leadspan.training.schedule import schedule
from leadspan.training.trainer import DistillationTrainer, attach_objective


class KeepGradients(TrainerCallback):
    def __init__(self, path: Path):
        self.path = path

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = getattr(kwargs["model"], "module", kwargs["model"])
        if state.is_world_process_zero:
            torch.save({name: p.grad.clone() for name, p in model.named_parameters()}, self.path)


def main(recipe_path: str, path: str) -> None:
    recipe = load_settings(Recipe, Path(recipe_path))
    assert recipe.teacher is not None
    state = process_state()
    data = prepare_data(recipe)
    student = load_model(recipe.student, torch.float32)
    attach_objective(student, recipe.loss, None)
    plan = schedule(recipe.training, data.examples.lengths, state.num_processes, recipe.seed)
    arguments = TrainingArguments(
        output_dir=f"{path}.run",
        max_steps=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=plan.accumulation,
        max_grad_norm=0,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    teacher = freeze(load_model(recipe.teacher, torch.float32))
    trainer = DistillationTrainer(student, teacher, data.examples, None, plan.plan, [], arguments)
    trainer.add_callback(KeepGradients(Path(path)))
    trainer.train()
    del trainer
    leave_ranks()


if __name__ == "__main__":
    main(*sys.argv[1:])
