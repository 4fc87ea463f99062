"""One training run: load, plan, train, keep the best or the last weights, measure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from leadspan.costs.flops import FlopsByPart, ModelShape, StepCounts
from leadspan.costs.settings import Device
from leadspan.data.examples import Examples
from leadspan.data.packing import plan_by_tokens
from leadspan.data.sections import Renderer
from leadspan.data.supervision import ScoredSelection, layout_sizes
from leadspan.errors import RunError
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
from leadspan.training.adapters import with_adapters
from leadspan.training.callbacks import Clock, EnergyMeter, MetricsFile, ProgressCallback, StepProfiler
from leadspan.training.checkpoints import check_best, checkpoint_to_resume, writing
from leadspan.training.result import ADAPTER_DIR, CHECKPOINTS_DIR, STUDENT_DIR, StageCost, TrainResult, typical_seconds
from leadspan.training.settings import ByTokens, TrainingSettings
from leadspan.training.steps import StepPlan, plan_steps, speed_figures
from leadspan.training.trainer import DistillationTrainer, StepEvents, attach_objective


@dataclass(frozen=True)
class TrainingInputs:
    """All that a run needs besides its settings.

    Attributes:
        student: Where the student's starting weights come from.
        renderer: Tokenizer and template of the data.
        validation: Validation examples, never cut, or None.
        seed: Seed of order, dropout and adapters.
        device: Figures of the device, when they are stated.
        selection: What the objective selects among the weighted positions by the models' scores, or None.
        end_ids: Tokens that end a turn and are one outcome in the divergence; empty where each is its own outcome.
        steps: Makes the examples of each step when it begins; None where they are the training examples.
    """

    student: ModelSettings
    teacher: TeacherSource
    renderer: Renderer
    examples: Examples
    validation: Examples | None
    directory: Path
    seed: int
    device: Device | None = None
    selection: ScoredSelection | None = None
    end_ids: tuple[int, ...] = ()
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
    # Begins before the models are loaded: what the process holds by then is subtracted from the peak.
    memory = PeakMemory()
    # Before the models: adapters and randomly built weights are drawn with it.
    set_seed(inputs.seed)
    use_bf16 = uses_bf16(settings.precision, inputs.student)
    model, shapes = load_models(inputs, settings, loss, use_bf16)
    num_ranks = process_state().num_processes
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
    trainer = _trainer(inputs, settings, plan, model, use_bf16, checkpoint, callbacks)
    trainer.memory, trainer.counts = memory, counts
    trainer.peak_flops = peak_flops(trainer.args.device, num_ranks, inputs.device)
    before_first_step()
    # A signal to end is noted and takes effect after the step, when a checkpoint is written.
    with deferred():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if trainer.state.global_step < plan.num_steps:
            raise Terminated(f"step {trainer.state.global_step} of {plan.num_steps} is in a checkpoint")
    if inputs.steps is not None:
        inputs.steps.recall(plan.num_steps)  # where the checkpoint was of the last step
    saved_step, best_step = plan.num_steps, trainer.state.best_global_step
    if settings.keep == "best" and best_step and best_step != saved_step:
        saved_step, best = best_step, inputs.directory / CHECKPOINTS_DIR / f"checkpoint-{best_step}"
        check_best(best)
        trainer.state.best_model_checkpoint = str(best)
        trainer._load_best_model()
    _check_finite(trainer, saved_step)
    result = _result(trainer, saved_step)
    with writing(inputs.directory / STUDENT_DIR):
        _write_student(trainer, inputs)
    return result


def load_models(
    inputs: TrainingInputs, settings: TrainingSettings, loss: LossSettings, use_bf16: bool
) -> tuple[torch.nn.Module, tuple[ModelShape, ModelShape | None]]:
    """Load the student in float32, with objective and adapters, and the teacher in the type of the run.

    Returns:
        The model to train, and the shapes of the student and of the part of the teacher that computes.

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
    attach_objective(student, loss, vocab_size, inputs.selection, inputs.end_ids)
    if settings.lora is None:
        return student, (student_shape, teacher_shape)
    model = with_adapters(student, settings.lora)
    return model, (replace(student_shape, adapter_params=model.get_nb_trainable_parameters()[0]), teacher_shape)


def _trainer(
    inputs: TrainingInputs,
    settings: TrainingSettings,
    plan: StepPlan,
    model: torch.nn.Module,
    use_bf16: bool,
    checkpoint: Path | None,
    callbacks: Sequence[TrainerCallback],
) -> DistillationTrainer:
    validation_plan: list[list[int]] = []
    if inputs.validation is not None:
        lengths = inputs.validation.lengths
        budget = settings.batching.tokens_per_batch if isinstance(settings.batching, ByTokens) else 0
        # Whole sequences may be longer than the training budget, which was made for cut ones.
        validation_plan = plan_by_tokens(lengths, max(budget, *lengths, 0), inputs.seed)
    trainer = DistillationTrainer(
        model,
        inputs.teacher,
        inputs.examples,
        inputs.validation,
        plan.plan,
        validation_plan,
        training_arguments(inputs.directory, settings, plan, inputs.seed, inputs.validation is not None, use_bf16),
        one_cycle=settings.schedule == "one_cycle",
        selection=inputs.selection,
        steps=inputs.steps,
    )
    # It prints every log line to the console; the status line and metrics.jsonl have them.
    trainer.remove_callback(PrinterCallback)
    # In the order in which they hear of every event.
    clock = Clock(num_cold_steps=0 if inputs.steps is None else inputs.steps.num_cold_steps)
    metrics, events = MetricsFile(inputs.directory / "metrics.jsonl"), StepEvents(trainer, checkpoint, plan.validations)
    for callback in (metrics, events, clock, EnergyMeter(), ProgressCallback()):
        trainer.add_callback(callback)
    if settings.profile is not None:
        trainer.add_callback(StepProfiler(settings.profile, inputs.directory / "profile", trainer.args.process_index))
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


def _check_finite(trainer: DistillationTrainer, step: int) -> None:
    """Refuse weights that are not finite: the loss of the last step is that of the weights before it."""
    weights = cast(torch.nn.Module, trainer.model).parameters()
    shards = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights)
    num_broken = sum((~shard.isfinite().all()).float() for shard in shards)
    if trainer._summed(cast(torch.Tensor, num_broken)):  # over the ranks, so that all of them raise
        raise RunError(f"step {step} has left weights that are not finite; lower training.learning_rate")


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


def _write_student(trainer: DistillationTrainer, inputs: TrainingInputs) -> None:
    """Write the student in Hugging Face form; adapters are saved to `adapter/` and merged into it."""
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel):
        adapter = inputs.directory / ADAPTER_DIR
        unseal(adapter)
        model.save_pretrained(str(adapter))
        (adapter / "README.md").unlink(missing_ok=True)  # PEFT's card is an empty form; the student's is the run's
        seal(adapter)
        model = model.merge_and_unload()
    renderer = inputs.renderer
    target = inputs.directory / STUDENT_DIR
    unseal(target)  # while files are replaced, an old seal would vouch for a mixture
    save_student(model, renderer.tokenizer, renderer.template_for_others, renderer.stop_token_id, target)
    seal(target)


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
