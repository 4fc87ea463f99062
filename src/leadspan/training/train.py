"""One training run: load, plan, train, keep the best or the last weights, measure."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from leadspan.costs.devices import Device
from leadspan.costs.flops import ModelShape
from leadspan.costs.measure import PeakMemory
from leadspan.data.examples import Examples
from leadspan.data.packing import plan_by_tokens
from leadspan.data.sections import Renderer
from leadspan.data.selection import ScoredSelection
from leadspan.errors import ModelError, RunError
from leadspan.losses.config import LossSettings
from leadspan.models.config import ModelSettings, Pretrained
from leadspan.models.heads import head_of
from leadspan.models.loading import (
    check_vocabularies,
    load_model,
    load_tokenizer,
    save_student,
)
from leadspan.models.shapes import shape_of
from leadspan.results import TrainResult
from leadspan.teacher.fit import shared_tokens, stored_head
from leadspan.teacher.live import freeze
from leadspan.teacher.store import TargetStore
from leadspan.training.arguments import training_arguments, uses_bf16
from leadspan.training.callbacks import Clock, EnergyMeter, MetricsFile, Milestones, Progress
from leadspan.training.checkpoints import checkpoint_to_resume, complete_checkpoints
from leadspan.training.config import ByTokens, Lora, TrainingSettings
from leadspan.training.measured import layout_sizes, measured, peak_flops
from leadspan.training.process import process_device, process_state
from leadspan.training.schedule import Schedule, schedule
from leadspan.training.speed import Speed, step_counts
from leadspan.training.trainer import DistillationTrainer, attach_objective

logger = logging.getLogger(__name__)

STUDENT_DIR = "student"


@dataclass(frozen=True)
class TrainingInputs:
    """All that a run needs besides its settings.

    Attributes:
        student: Where the student's starting weights come from.
        teacher: The live teacher, a store of its targets, or None.
        renderer: Tokenizer and template of the data.
        examples: Training examples.
        validation: Validation examples, never cut, or None.
        directory: Run directory.
        say: Told in words how far training is.
        seed: Seed of order, dropout and adapters.
        device: Figures of the device, when they are stated.
        selection: What the objective selects among the weighted positions by the models' own say, or None.
    """

    student: ModelSettings
    teacher: ModelSettings | TargetStore | None
    renderer: Renderer
    examples: Examples
    validation: Examples | None
    directory: Path
    say: Callable[[str], None]
    seed: int
    device: Device | None = None
    selection: ScoredSelection | None = None


def train(inputs: TrainingInputs, settings: TrainingSettings, loss: LossSettings, resume: bool) -> TrainResult:
    """Train a student and write it to `student/` of the run directory.

    Args:
        inputs: Models, data and place of the run.
        settings: Optimiser, batches, validation.
        loss: The objective.
        resume: Go on from the last complete checkpoint; without one, start.

    Raises:
        ModelError: Student and teacher do not fit each other or the data.
        RunError: The directory holds checkpoints and `resume` is off.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    device = process_device()
    checkpoint = checkpoint_to_resume(inputs.directory, resume)
    memory = PeakMemory(device)
    set_seed(inputs.seed)
    student, teacher, vocab_size = load_models(inputs, uses_bf16(settings))
    shapes = shape_of(student), _teacher_shape(teacher)
    attach_objective(student, loss, vocab_size, inputs.selection)
    model: torch.nn.Module = student
    if settings.lora is not None:
        model = with_adapters(student, settings.lora)
        shapes = replace(shapes[0], adapter_params=adapter_params(model)), shapes[1]
    examples = inputs.examples
    plan = schedule(settings, examples.lengths, process_state().num_processes, inputs.seed, examples.num_stages)
    trainer = _trainer(inputs, settings, plan, model, teacher)
    sizes, batches = layout_sizes(examples, inputs.selection), plan.accumulation * trainer.args.world_size
    counts = step_counts(sizes, plan.plan, batches, shapes, settings.gradient_checkpointing)
    trainer.speed = Speed(counts, peak_flops(trainer.args, inputs.device))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    saved_step = _keep(trainer, settings, plan)
    result = measured(trainer, trainer.speed, saved_step, memory)
    _write_student(trainer, inputs)
    return result


def load_models(
    inputs: TrainingInputs, use_bf16: bool
) -> tuple[PreTrainedModel, PreTrainedModel | TargetStore | None, int | None]:
    """Student in float32, frozen teacher in the type of the run or its store, and the vocabulary both heads share."""
    tokenizer = inputs.renderer.tokenizer
    own = {"student": _own_tokenizer(inputs.student)}
    student = load_model(inputs.student, torch.float32)
    rows = {"student": head_of(student).weight.shape[0]}
    if inputs.teacher is None:
        check_vocabularies(tokenizer, own, rows)
        return student, None, None
    if isinstance(inputs.teacher, TargetStore):
        check_vocabularies(tokenizer, own, rows)
        return student, inputs.teacher, shared_tokens(inputs.teacher, rows["student"], len(tokenizer))
    teacher = freeze(load_model(inputs.teacher, torch.bfloat16 if use_bf16 else torch.float32))
    rows["teacher"] = head_of(teacher).weight.shape[0]
    check_vocabularies(tokenizer, own | {"teacher": _own_tokenizer(inputs.teacher)}, rows)
    return student, teacher, len(tokenizer) if len(set(rows.values())) > 1 else None


def _teacher_shape(teacher: PreTrainedModel | TargetStore | None) -> ModelShape | None:
    """What of a teacher computes in training: all of a live one, the head where hidden states are stored."""
    if isinstance(teacher, TargetStore):
        return stored_head(teacher.manifest)
    return None if teacher is None else shape_of(teacher)


def _own_tokenizer(model: ModelSettings) -> PreTrainedTokenizerBase | None:
    return load_tokenizer(model.path, model.revision) if isinstance(model, Pretrained) else None


def with_adapters(student: PreTrainedModel, settings: Lora) -> PeftModel:
    """The student wrapped with low-rank adapters, its own weights frozen.

    Raises:
        ModelError: The settings name no module of the model.
    """
    config = LoraConfig(
        r=settings.r,
        lora_alpha=cast(int, settings.alpha),
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        return cast(PeftModel, get_peft_model(student, config))
    except ValueError as error:
        raise ModelError(f"training.lora: {error}") from None


def adapter_params(model: torch.nn.Module) -> int:
    """Weights of a model's adapters: all that is trained of it."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _trainer(
    inputs: TrainingInputs,
    settings: TrainingSettings,
    plan: Schedule,
    model: torch.nn.Module,
    teacher: PreTrainedModel | TargetStore | None,
) -> DistillationTrainer:
    validation_plan: list[list[int]] = []
    if inputs.validation is not None:
        lengths = inputs.validation.lengths
        budget = settings.batching.tokens_per_batch if isinstance(settings.batching, ByTokens) else 0
        validation_plan = plan_by_tokens(lengths, max(budget, *lengths, 0), None, inputs.seed)
    trainer = DistillationTrainer(
        model,
        teacher,
        inputs.examples,
        inputs.validation,
        plan.plan,
        validation_plan,
        training_arguments(inputs.directory, settings, plan, inputs.seed, inputs.validation is not None),
        one_cycle=settings.schedule == "one_cycle",
        selection=inputs.selection,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(MetricsFile(inputs.directory / "metrics.jsonl"))
    trainer.add_callback(Clock())
    trainer.add_callback(EnergyMeter())
    trainer.add_callback(Milestones())
    trainer.add_callback(Progress(inputs.say))
    return trainer


def _keep(trainer: DistillationTrainer, settings: TrainingSettings, plan: Schedule) -> int:
    """Leave the best or the last weights in the model; returns their step."""
    best = trainer.state.best_global_step
    if settings.keep == "last" or not best or best == plan.num_steps:
        return plan.num_steps
    directory = Path(trainer.args.output_dir or "") / f"checkpoint-{best}"
    if directory not in complete_checkpoints(directory.parent):
        raise RunError(f"{directory}: the checkpoint of the best step is gone; set training.keep=last, or train anew")
    trainer.state.best_model_checkpoint = str(directory)
    trainer._load_best_model()
    return best


def _write_student(trainer: DistillationTrainer, inputs: TrainingInputs) -> None:
    """Write the student in Hugging Face form; adapters are kept beside it and merged into it."""
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel):
        model.save_pretrained(str(inputs.directory / "adapter"))
        model = model.merge_and_unload()
    renderer = inputs.renderer
    target = inputs.directory / STUDENT_DIR
    save_student(model, renderer.tokenizer, renderer.template, renderer.stop_token_id, target)
