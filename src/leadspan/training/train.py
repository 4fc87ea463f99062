"""One training run: load, plan, train, keep the best or the last weights, measure."""

import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from leadspan.costs.flops import FlopsByPart, Shapes, StepCounts
from leadspan.costs.settings import Device
from leadspan.data.examples import Examples
from leadspan.data.packing import plan_by_tokens
from leadspan.data.sections import Renderer
from leadspan.data.supervision import ScoredSelection, layout_sizes
from leadspan.errors import ModelError, RunError
from leadspan.files import seal, unseal
from leadspan.losses.settings import LossSettings
from leadspan.models.heads import head_of
from leadspan.models.loading import load_model, save_student
from leadspan.models.reading import check_vocabulary, load_own_tokenizer
from leadspan.models.settings import ModelSettings
from leadspan.models.shapes import shape_of, uses_bf16
from leadspan.processes import Terminated, deferred
from leadspan.ranks import PeakMemory, device_name, freed_memory_reused, peak_flops, process_state
from leadspan.rollout.source import Rollouts
from leadspan.teacher.source import TeacherSource
from leadspan.training.callbacks import Clock, EnergyMeter, MetricsFile, ProgressCallback, StepProfiler
from leadspan.training.checkpoints import check_best, checkpoint_to_resume, writing
from leadspan.training.result import ADAPTER_DIR, CHECKPOINTS_DIR, STUDENT_DIR, StageCost, TrainResult, typical_seconds
from leadspan.training.settings import ByTokens, Lora, TrainingSettings
from leadspan.training.steps import plan_steps, speed_figures, training_arguments
from leadspan.training.trainer import DistillationTrainer, StepEvents, attach_objective


@dataclass(frozen=True)
class TrainingInputs:
    """All that a run needs besides its settings."""

    student: ModelSettings  # where the student's starting weights come from
    teacher: TeacherSource
    renderer: Renderer  # tokenizer and template of the data
    examples: Examples
    validation: Examples | None  # validation examples, never cut, or None
    directory: Path
    seed: int  # seed of order, dropout and adapters
    device: Device | None = None  # figures of the device, when they are stated
    # What the objective selects among the weighted positions by the models' scores, or None.
    selection: ScoredSelection | None = None
    # Tokens that end a turn and are one outcome in the divergence; empty where each is its own outcome.
    end_ids: tuple[int, ...] = ()
    # Makes the examples of each step when it begins; None where they are the training examples.
    steps: Rollouts | None = None


@freed_memory_reused()
def train(
    inputs: TrainingInputs,
    settings: TrainingSettings,
    loss: LossSettings,
    before_first_step: Callable[[], None] = lambda: None,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Train a student, from the last checkpoint of the run directory on, and write it to `student/` there.

    `before_first_step` is called once the models are loaded and checked, before anything is written. `callbacks` get
    every event of training after the run's own callbacks, such as that of `metrics.jsonl`.

    Raises:
        ModelError: Student and teacher do not fit each other or the data.
        RunError: A loss, or a weight of the student, is not finite.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    checkpoint = checkpoint_to_resume(inputs.directory, settings.keep == "best")
    trainer = _trainer(inputs, settings, loss, checkpoint, callbacks)
    before_first_step()
    saved_step = trainer.args.max_steps
    # A signal to end is noted and takes effect after the step, when a checkpoint is written.
    with deferred():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if trainer.state.global_step < saved_step:
            raise Terminated(f"step {trainer.state.global_step} of {saved_step} is in a checkpoint")
    if inputs.steps is not None:
        inputs.steps.recall(saved_step)  # where the checkpoint was of the last step
    best_step = trainer.state.best_global_step
    if settings.keep == "best" and best_step and best_step != saved_step:
        saved_step, best = best_step, inputs.directory / CHECKPOINTS_DIR / f"checkpoint-{best_step}"
        check_best(best)
        trainer.state.best_model_checkpoint = str(best)
        trainer._load_best_model()
    # The loss of the last step is that of the weights before it, so these are looked at themselves.
    weights = list(cast(torch.nn.Module, trainer.model).parameters())
    shards = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights)
    num_broken = sum((~shard.isfinite().all()).float() for shard in shards)
    if trainer._summed(cast(torch.Tensor, num_broken)):  # over the ranks, so that all of them raise
        raise RunError(f"step {saved_step} has left weights that are not finite; lower training.learning_rate")
    result = _result(trainer, saved_step)
    is_sharded = any(isinstance(weight, DTensor) for weight in weights)
    gathered = trainer.accelerator.get_state_dict(trainer.model) if is_sharded else None  # by all ranks together
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        if gathered is not None:  # a model of the first rank alone takes them, since modules of FSDP stay sharded
            model = load_model(inputs.student, torch.float32, for_training=False)
            model = model if settings.lora is None else with_adapters(model, settings.lora)
            model.load_state_dict(gathered)
        _save(model, inputs.renderer, inputs.directory)
    return result


def _save(model: torch.nn.Module, renderer: Renderer, directory: Path) -> None:
    """Write the trained student, and its adapters apart if it has some; both sealed."""
    adapter, student = directory / ADAPTER_DIR, directory / STUDENT_DIR
    with writing(student):
        if isinstance(model, PeftModel):  # the adapters are saved apart, and merged into the student
            unseal(adapter)
            model.save_pretrained(str(adapter))
            # PEFT's card is an empty form; the student's is the run's.
            (adapter / "README.md").unlink(missing_ok=True)
            seal(adapter)
            model = model.merge_and_unload()
        unseal(student)  # while files are replaced, an old seal would vouch for a mixture
        tokenizer, template = renderer.tokenizer, renderer.template_for_others
        save_student(cast(PreTrainedModel, model), tokenizer, template, renderer.stop_token_id, student)
        seal(student)


def _trainer(
    inputs: TrainingInputs,
    settings: TrainingSettings,
    loss: LossSettings,
    checkpoint: Path | None,
    callbacks: Sequence[TrainerCallback],
) -> DistillationTrainer:
    """Load the models, plan the steps, and wire both with the callbacks of the run."""
    # Begins before the models are loaded: what the process holds by then is subtracted from the peak.
    memory = PeakMemory()
    # Before the models: adapters and randomly built weights are drawn with it.
    set_seed(inputs.seed)
    use_bf16, num_ranks = uses_bf16(settings.precision, inputs.student), process_state().num_processes
    model, shapes = load_models(inputs, settings, loss, use_bf16)
    if inputs.steps is None:
        plan = plan_steps(settings, inputs.examples.lengths, num_ranks, inputs.seed, inputs.examples.num_stages)
        # Counted from the plan, not during training: it costs no time, and holds for a resumed run as well.
        sizes = layout_sizes(inputs.examples.layouts, inputs.selection)
        counts = plan.counts(sizes, num_ranks, shapes, settings.gradient_checkpointing)
    else:
        # The examples have no length before they are made.
        plan = plan_steps(settings, [1] * inputs.steps.num_examples, num_ranks, inputs.seed)
        inputs.steps.prepare(shapes, plan.num_steps, settings.gradient_checkpointing, use_bf16)
        counts = inputs.steps.counts
    validation_plan: list[list[int]] = []
    if inputs.validation is not None:
        lengths = inputs.validation.lengths
        budget = settings.batching.tokens_per_batch if isinstance(settings.batching, ByTokens) else 0
        # Whole sequences may be longer than the training budget, which was made for cut ones.
        validation_plan = plan_by_tokens(lengths, max(budget, *lengths, 0), inputs.seed)
    arguments = training_arguments(
        inputs.directory, settings, plan, inputs.seed, inputs.validation is not None, use_bf16
    )
    trainer = DistillationTrainer(
        model,
        inputs.teacher,
        inputs.examples,
        inputs.validation,
        plan.plan,
        validation_plan,
        arguments,
        one_cycle=settings.schedule == "one_cycle",
        selection=inputs.selection,
        steps=inputs.steps,
    )
    trainer.memory, trainer.counts = memory, counts
    trainer.peak_flops = peak_flops(arguments.device, num_ranks, inputs.device)
    # It prints every log line to the console; the status line and metrics.jsonl have them.
    trainer.remove_callback(PrinterCallback)
    # In the order in which they hear of every event.
    clock = Clock(num_cold_steps=0 if inputs.steps is None else inputs.steps.num_cold_steps)
    metrics, events = MetricsFile(inputs.directory / "metrics.jsonl"), StepEvents(trainer, checkpoint, plan.validations)
    of_run = [metrics, events, clock, EnergyMeter(), ProgressCallback()]
    if settings.profile is not None:
        of_run.append(StepProfiler(settings.profile, inputs.directory / "profile", arguments.process_index))
    for callback in (*of_run, *callbacks):
        trainer.add_callback(callback)
    return trainer


def load_models(
    inputs: TrainingInputs, settings: TrainingSettings, loss: LossSettings, use_bf16: bool
) -> tuple[torch.nn.Module, Shapes]:
    """Load the student in float32, with objective and adapters, and the teacher in the type of the run.

    Returns:
        The model to train, and the shapes of the student and of the part of the teacher that computes, as far as they
        compute.

    Raises:
        ModelError: Student and teacher do not fit each other, the data or the adapters.
    """
    tokenizer = inputs.renderer.tokenizer
    # AdamW updates float32 weights; bfloat16 comes in by autocast. Updates of bfloat16 weights would round to
    # nothing.
    student = load_model(inputs.student, torch.float32)
    num_rows = head_of(student).weight.shape[0]
    check_vocabulary(tokenizer, "student", load_own_tokenizer(inputs.student), num_rows)
    inputs.teacher.load(torch.bfloat16 if use_bf16 else torch.float32, tokenizer)
    vocab_size = inputs.teacher.shared_tokens(num_rows, inputs.renderer.num_ids)
    student_shape, teacher_shape = shape_of(student), inputs.teacher.shape()
    if vocab_size is not None:  # what pads either head is not projected
        student_shape = replace(student_shape, vocab_size=vocab_size)
        teacher_shape = teacher_shape and replace(teacher_shape, vocab_size=vocab_size)
    attach_objective(student, loss, vocab_size, inputs.selection, inputs.end_ids)
    if settings.lora is None:
        return student, (student_shape, teacher_shape)
    model = with_adapters(student, settings.lora)
    return model, (replace(student_shape, adapter_params=model.get_nb_trainable_parameters()[0]), teacher_shape)


def with_adapters(student: PreTrainedModel, settings: Lora) -> PeftModel:
    """The student wrapped with low-rank adapters, its own weights frozen.

    Raises:
        ModelError: The settings name no module of the model.
    """
    config = LoraConfig(
        r=settings.r,
        lora_alpha=cast(int, settings.alpha),  # annotated as int, used as a factor
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            # PEFT asks for a name that Transformers deprecates.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            model = cast(PeftModel, get_peft_model(student, config))
    except (ValueError, re.error) as error:
        raise ModelError(f"training.lora: {error}") from None
    # PEFT takes a list of which some name nothing.
    names = [f".{name}" for name in cast(Any, model.base_model).targeted_module_names]
    for target in settings.target_modules if isinstance(settings.target_modules, list) else ():
        if not any(name.endswith(f".{target}") for name in names):
            raise ModelError(f"training.lora.target_modules: the model has no module {target!r}; leave it out")
    resolved = cast(LoraConfig, model.peft_config["default"])
    if isinstance(resolved.target_modules, set):
        resolved.target_modules = sorted(resolved.target_modules)  # a set is saved in another order by every process
    # "auto" would ask the Hub for the config of a directory that has a GGUF file alone. Embeddings are never resized.
    cast(Any, model).save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)
    return model


def _result(trainer: DistillationTrainer, saved_step: int) -> TrainResult:
    """What a run that has ended did and cost, from its counts, its clock and its meters."""
    history = trainer.state.log_history  # restored from the checkpoint, so it is that of the whole run
    losses = [line["loss"] for line in history if "loss" in line]
    clock, memory, counts = trainer.clock, trainer.memory, trainer.counts
    assert clock is not None and memory is not None, "every run has them"

    def cost_of(steps: Sequence[StepCounts], seconds: float) -> dict[str, Any]:  # fields of `StepsCost`
        return {
            "num_steps": len(steps),
            "num_examples": sum(step.examples for step in steps),
            "num_tokens": sum(step.tokens for step in steps),
            "num_weighted_tokens": sum(step.weighted for step in steps),
            "seconds": seconds,
            "flops": FlopsByPart.added(step.flops for step in steps),
        }

    num_cold, cold_seconds, stages = clock.num_cold_steps, clock.cold_seconds, []
    if num_cold:
        stages.append(StageCost(name="cold start", **cost_of(counts[:num_cold], cold_seconds)))
        stages.append(StageCost(name="on-policy", **cost_of(counts[num_cold:], clock.seconds - cold_seconds)))
    joules = next(c for c in trainer.callback_handler.callbacks if isinstance(c, EnergyMeter)).total
    # NaN survives the sum over ranks: one rank without a counter makes the total unknown, not too small.
    energy = torch.tensor(math.nan if joules is None else joules, device=trainer.args.device)
    energy = float(cast(torch.Tensor, trainer.accelerator.reduce(energy, "sum")))
    # Drawing takes time that follows no count of operations, so that such steps have no typical rate.
    durations = [] if "rollout" in clock.parts else clock.durations
    return TrainResult(
        **cost_of(counts, clock.seconds),
        stages=stages,
        peak_memory_bytes=trainer.peak_memory_bytes,
        memory_source=memory.source,
        first_loss=losses[0],
        final_loss=losses[-1],
        validation_loss={str(line["step"]): line["eval_loss"] for line in history if "eval_loss" in line},
        best_step=trainer.state.best_global_step,
        saved_step=saved_step,
        device=device_name(trainer.args.device, trainer.args.world_size),
        precision="bfloat16" if trainer.args.bf16 else "float32",
        num_ranks=trainer.args.world_size,
        step_seconds=clock.by_part(),
        first_step_seconds=clock.first_step,
        typical_seconds=typical_seconds(durations, [step.flops.total for step in counts]),
        # By convention MFU leaves recomputation out, unlike `flops`.
        mfu=speed_figures(counts, clock.seconds, trainer.peak_flops).get("speed/mfu"),
        energy_joules=None if math.isnan(energy) else energy,
    )
