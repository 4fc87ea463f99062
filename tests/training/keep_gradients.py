"""One optimiser step of a recipe, as one of several ranks or alone; rank 0 writes the gradient of the optimiser."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from leadspan.inputs import prepare_data
from leadspan.models.loading import load_model
from leadspan.ranks import leave_ranks, process_state
from leadspan.recipe import Recipe
from leadspan.teacher.source import LiveTeacher
from leadspan.training.steps import plan_steps
from leadspan.training.trainer import DistillationTrainer, attach_objective


class KeepGradients(TrainerCallback):
    def __init__(self, path: Path):
        self.path = path

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = getattr(kwargs["model"], "module", kwargs["model"])
        if state.is_world_process_zero:
            torch.save({name: p.grad.clone() for name, p in model.named_parameters()}, self.path)


def main(recipe: Recipe, path: Path) -> None:
    assert recipe.teacher is not None
    state = process_state()
    data = prepare_data(recipe)
    student = load_model(recipe.student, torch.float32)
    attach_objective(student, recipe.loss, None)
    plan = plan_steps(recipe.training, data.examples.lengths, state.num_processes, recipe.seed)
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
    teacher = LiveTeacher(recipe.teacher)
    teacher.load(torch.float32, data.renderer.tokenizer)
    trainer = DistillationTrainer(student, teacher, data.examples, None, plan.plan, [], arguments)
    trainer.add_callback(KeepGradients(path))
    trainer.train()
    del trainer
    leave_ranks()
