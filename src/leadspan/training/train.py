"""One training run: load, plan, train, keep the best or the last weights, measure."""

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from leadspan.costs.devices import Device
from leadspan.costs.measure import PeakMemory
from leadspan.data.examples import Examples
from leadspan.data.packing import plan_by_tokens
from leadspan.data.sections import Renderer
from leadspan.data.supervision import ScoredSelection
from leadspan.digests import seal, unseal
from leadspan.errors import ModelError
from leadspan.losses.settings import LossSettings
from leadspan.models.heads import head_of
from leadspan.models.loading import load_model, save_student
from leadspan.models.precision import uses_bf16
from leadspan.models.settings import ModelSettings
from leadspan.models.shapes import shape_of
from leadspan.models.tokenizers import check_vocabulary, load_own_tokenizer
from leadspan.processes import Terminated, deferred
from leadspan.teacher.source import TeacherSource
from leadspan.training.callbacks import Clock, EnergyMeter, MetricsFile, Milestones, ProgressCallback, StepProfiler
from leadspan.training.checkpoints import check_best, checkpoint_to_resume, writing
from leadspan.training.measured import measured, peak_flops
from leadspan.training.process import freed_memory_reused, process_device, process_state
from leadspan.training.result import ADAPTER_DIR, STUDENT_DIR, TrainResult
from leadspan.training.settings import ByTokens, Lora, TrainingSettings
from leadspan.training.steps import Speed, StepPlan, StepSource, layout_sizes, plan_steps, step_counts
from leadspan.training.trainer import DistillationTrainer, EndsSteps, TakesOver, attach_objective

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingInputs:
    """All that a run needs besides its settings.

    Attributes:
        student: Where the student's starting weights come from.
        teacher: The teacher's side: live, stored or absent.
        renderer: Tokenizer and template of the data.
        examples: Training examples.
        validation: Validation examples, never cut, or None.
        directory: Run directory.
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
    steps: StepSource | None = None


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
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    checkpoint = checkpoint_to_resume(inputs.directory, settings.keep == "best")
    # Begins before the models are loaded: what the process holds by then is subtracted from the peak.
    memory = PeakMemory(process_device())
    # Before the models: adapters and randomly built weights are drawn with it.
    set_seed(inputs.seed)
    use_bf16 = uses_bf16(settings.precision, inputs.student)
    student, vocab_size = load_models(inputs, use_bf16)
    shapes = shape_of(student), inputs.teacher.shape()
    attach_objective(student, loss, vocab_size, inputs.selection, inputs.end_ids)
    model: torch.nn.Module = student
    if settings.lora is not None:
        model = with_adapters(student, settings.lora)
        shapes = replace(shapes[0], adapter_params=adapter_params(model)), shapes[1]
    plan = planned(inputs, settings)
    trainer = _trainer(inputs, settings, plan, model, use_bf16, checkpoint, callbacks)
    trainer.memory = memory
    if inputs.steps is None:
        # Counted from the plan, not during training: it costs no time, and holds for a resumed run as well.
        sizes = layout_sizes(inputs.examples.layouts, inputs.selection)
        batches = plan.accumulation * trainer.args.world_size
        counts = step_counts(sizes, plan.plan, batches, shapes, settings.gradient_checkpointing)
    else:
        counts = inputs.steps.counts
        inputs.steps.prepare(shapes, plan.num_steps, settings.gradient_checkpointing, use_bf16)
    trainer.speed = Speed(counts, peak_flops(trainer.args, inputs.device))
    before_first_step()
    # A signal to end is noted and takes effect after the step, when a checkpoint is written.
    with deferred():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if trainer.state.global_step < plan.num_steps:
            raise Terminated(f"step {trainer.state.global_step} of {plan.num_steps} is in a checkpoint")
    if inputs.steps is not None:
        inputs.steps.recall(plan.num_steps)  # where the checkpoint was of the last step
    saved_step = _keep(trainer, settings, plan)
    result = measured(trainer, trainer.speed, saved_step, memory.source)
    with writing(inputs.directory / STUDENT_DIR):
        _write_student(trainer, inputs)
    return result


def planned(inputs: TrainingInputs, settings: TrainingSettings) -> StepPlan:
    """Steps and micro-batches of a run; where steps make their examples, these have no length yet."""
    ranks, examples = process_state().num_processes, inputs.examples
    if inputs.steps is not None:
        return plan_steps(settings, [1] * inputs.steps.num_examples, ranks, inputs.seed)
    return plan_steps(settings, examples.lengths, ranks, inputs.seed, examples.num_stages)


def load_models(inputs: TrainingInputs, use_bf16: bool) -> tuple[PreTrainedModel, int | None]:
    """Load the student in float32, and the teacher in the type of the run.

    Returns:
        The student, and how many tokens the heads are compared on; None for all rows of the student's head.
    """
    tokenizer = inputs.renderer.tokenizer
    # AdamW updates float32 weights; bfloat16 comes in by autocast. Updates of bfloat16 weights would round to
    # nothing.
    student = load_model(inputs.student, torch.float32)
    num_rows = head_of(student).weight.shape[0]
    check_vocabulary(tokenizer, "student", load_own_tokenizer(inputs.student), num_rows)
    inputs.teacher.load(torch.bfloat16 if use_bf16 else torch.float32, tokenizer)
    return student, inputs.teacher.shared_tokens(num_rows, len(tokenizer))


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
    except ValueError as error:
        raise ModelError(f"training.lora: {error}") from None
    resolved = cast(LoraConfig, model.peft_config["default"])
    if isinstance(resolved.target_modules, set):
        resolved.target_modules = sorted(resolved.target_modules)  # a set is saved in another order by every process
    # "auto" would ask the Hub for the config of a directory that has a GGUF file alone. Embeddings are never resized.
    cast(Any, model).save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)
    return model


def adapter_params(model: torch.nn.Module) -> int:
    """Number of trained weights of a model with adapters: those of the adapters alone."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


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
    trainer.add_callback(MetricsFile(inputs.directory / "metrics.jsonl"))
    trainer.add_callback(EndsSteps(trainer))
    trainer.add_callback(Clock(num_cold_steps=0 if inputs.steps is None else inputs.steps.num_cold_steps))
    trainer.add_callback(EnergyMeter())
    trainer.add_callback(Milestones())
    trainer.add_callback(ProgressCallback())
    if settings.profile is not None:
        trainer.add_callback(StepProfiler(settings.profile, inputs.directory / "profile", trainer.args.process_index))
    if checkpoint is not None:
        trainer.add_callback(TakesOver(trainer, checkpoint))
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


def _keep(trainer: DistillationTrainer, settings: TrainingSettings, plan: StepPlan) -> int:
    """Load the best weights into the model, or leave the last ones; returns their step."""
    best = trainer.state.best_global_step
    if settings.keep == "last" or not best or best == plan.num_steps:
        return plan.num_steps
    directory = Path(trainer.args.output_dir or "") / f"checkpoint-{best}"
    check_best(directory)
    trainer.state.best_model_checkpoint = str(directory)
    trainer._load_best_model()
    return best


def _write_student(trainer: DistillationTrainer, inputs: TrainingInputs) -> None:
    """Write the student in Hugging Face form; adapters are saved to `adapter/` and merged into it."""
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel):
        adapter = inputs.directory / ADAPTER_DIR
        unseal(adapter)
        model.save_pretrained(str(adapter))
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
