"""Predicts the cost of a run, and of a store of its teacher's targets, from settings, examples and models' configs.

No weights are read.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from leadspan.costs.flops import (
    ExampleSize,
    FlopsByPart,
    ModelShape,
    forward_attention,
    forward_body,
    forward_head,
    head_only,
    training_flops,
)
from leadspan.costs.memory import BatchSize, MemoryModel
from leadspan.costs.settings import PlanSettings
from leadspan.data.examples import Examples
from leadspan.data.sections import Renderer
from leadspan.data.supervision import ScoredSelection, layout_sizes
from leadspan.errors import SettingsError, TargetsError
from leadspan.inputs import PreparedData, Searched
from leadspan.losses.chunked import default_chunk
from leadspan.models.activations import activation_bytes
from leadspan.models.loading import build_untrained, load_config, name_of
from leadspan.models.shapes import shape_from, uses_bf16
from leadspan.planning.timing import Calibration, StepWork
from leadspan.recipe import Recipe
from leadspan.results import Prediction
from leadspan.stages import scored_selection, teacher_source
from leadspan.tables import percent
from leadspan.teacher.settings import Hidden, KeptTargets, Sampled, TopK, TopP
from leadspan.teacher.shards import bytes_of
from leadspan.training.settings import TrainingSettings
from leadspan.training.steps import StepPlan, plan_steps
from leadspan.training.train import with_adapters


@dataclass(frozen=True)
class CostModel:
    """Everything about the cost of a recipe but its examples."""

    student: ModelShape  # shape of the student for counting operations: its head has the rows that are compared
    teacher: ModelShape | None  # the same of a live teacher, or of the head that a store of hidden states has; or None
    memory: MemoryModel
    training: TrainingSettings
    machine: PlanSettings
    seed: int
    selection: ScoredSelection | None = None  # how tokens are selected by scores, or None

    @property
    def fingerprint(self) -> str:
        """Hash of what a calibration depends on: models, precision, checkpointing, selection by scores."""
        # Ranks, sharding, chunk and accumulation change the memory of a step, not its rates.
        memory = replace(self.memory, num_ranks=1, sharding="none", chunk_tokens=0, accumulates=False)
        selection = self.selection and self.selection.kind
        content = repr((asdict(memory), self.training.gradient_checkpointing, selection))
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def flops(self, batches: Iterable[Iterable[ExampleSize]]) -> FlopsByPart:
        """Operations of training on micro-batches once."""
        examples = (example for batch in batches for example in batch)
        return training_flops(self.student, self.teacher, examples, self.training.gradient_checkpointing)


def cost_model_of(recipe: Recipe, renderer: Renderer, num_ranks: int | None = None) -> CostModel:
    """Read the configs of a recipe's models, and trace their activations; ranks are `plan.num_ranks` unless given.

    Heads of different sizes are compared on the ids of the renderer's tokenizer.

    Raises:
        ModelError: A config cannot be read, or its model not be traced.
        CacheError: The manifest of the recipe's store is damaged.
    """
    machine = recipe.plan if num_ranks is None else recipe.plan.model_copy(update={"num_ranks": num_ranks})
    device, training = machine.found_device, recipe.training
    if training.precision == "auto" and device is not None:
        use_bf16 = device.bfloat16
    else:
        use_bf16 = uses_bf16(training.precision, recipe.student)
    student = student_shape(recipe)
    source, teacher, entries = None, None, student.vocab_size
    try:
        source = teacher_source(recipe)
    except TargetsError:
        # The store is yet to be captured; with hidden states, `capture` will write the teacher's head into it.
        if recipe.local_teacher is not None and isinstance(recipe.capture.codec, Hidden):
            shape = shape_from(recipe.local_teacher)
            teacher = head_only(shape.hidden_size, shape.vocab_size)
            entries = entries if shape.vocab_size == entries else renderer.num_ids
    else:
        teacher, entries = source.shape(), source.shared_tokens(entries, renderer.num_ids) or entries
    on_gpu = torch.cuda.is_available() if device is None else device.bfloat16
    chunk = recipe.loss.chunk_tokens or default_chunk(torch.device("cuda" if on_gpu else "cpu"), entries)
    memory = MemoryModel(
        student=student,
        teacher=teacher,
        student_activations=activation_bytes(recipe.student, use_bf16, training.gradient_checkpointing),
        teacher_activations=None if source is None else source.activations(use_bf16),
        use_bf16=use_bf16,
        chunk_tokens=chunk,
        accumulates=training.batching.batches_per_step > machine.num_ranks,
        num_ranks=machine.num_ranks,
        sharding=machine.shared,
    )
    # Only the shared tokens are computed and counted; padding rows of a head take memory all the same.
    counted_teacher = None if teacher is None else replace(teacher, vocab_size=entries)
    counted_student = replace(student, vocab_size=entries)
    selection = scored_selection(recipe)
    return CostModel(counted_student, counted_teacher, memory, training, machine, recipe.seed, selection)


def student_shape(recipe: Recipe) -> ModelShape:
    """The shape of a recipe's student, with the adapters that it is trained by.

    Raises:
        ModelError: Its config cannot be read, or its weights not be counted.
    """
    student = shape_from(recipe.student)
    if recipe.training.lora is None:
        return student
    # On the meta device adapters have shapes and no memory.
    with torch.device("meta"):
        untrained = build_untrained(load_config(recipe.student), f"model {name_of(recipe.student)}")
        wrapped = with_adapters(untrained, recipe.training.lora)
    return replace(student, adapter_params=wrapped.get_nb_trainable_parameters()[0])


def planned(model: CostModel, examples: Examples) -> tuple[StepPlan, list[list[ExampleSize]]]:
    """Steps of a run over examples, and the size of each example of each micro-batch, all ranks.

    Raises:
        SettingsError: The examples cannot be shared out among steps and ranks (`training.steps.plan_steps`).
    """
    lengths, ranks = examples.lengths, model.machine.num_ranks
    plan = plan_steps(model.training, lengths, ranks, model.seed, examples.num_stages)
    sizes = layout_sizes(examples.layouts, model.selection)
    return plan, [[sizes[i] for i in batch] for batch in plan.plan]


def predict(model: CostModel, examples: Examples, calibration: Calibration | None = None) -> Prediction:
    """Predict the cost of training on examples.

    Without measured rates of this machine and these models, the time is the operations over the stated share of the
    device's peak, or absent.

    Raises:
        SettingsError: The calibration is of other models or another setting.
    """
    (plan, batches), ranks = planned(model, examples), model.machine.num_ranks
    per_step = plan.accumulation * ranks
    steps = [model.flops(batches[start : start + per_step]) for start in range(0, len(batches), per_step)]
    flops, seconds, source = FlopsByPart.added(steps), None, None
    device, utilisation = model.machine.found_device, model.machine.utilisation
    if calibration is not None:
        check_calibration(calibration, model)
        # Ranks work side by side on equal shares, so the time of a step is that of one share.
        work = [StepWork.of(step, plan.accumulation) for step in steps]
        seconds = calibration.seconds([StepWork(batches, *(c // ranks for c in counts)) for batches, *counts in work])
        source = f"calibration of {calibration.num_steps} steps on {calibration.device}"
    elif device is not None and utilisation is not None:
        # Without measured rates the time is a roofline with a stated share of the peak.
        seconds = flops.total / (device.peak_flops * utilisation * ranks)
        source = f"{percent(utilisation)} of the peak of {ranks} x {device.name}"
    memory = model.memory.peak(*(BatchSize.of(batch) for batch in batches))
    return Prediction(
        num_steps=plan.num_steps,
        num_tokens=sum(size.tokens for batch in batches for size in batch),
        num_weighted_tokens=sum(size.weighted for batch in batches for size in batch),
        flops=flops,
        memory=memory if calibration is None else calibration.memory(memory),
        seconds=seconds,
        seconds_source=source,
        money=model.machine.money(seconds),
    )


def check_calibration(calibration: Calibration, model: CostModel) -> None:
    """Refuse rates that were measured on other models or settings.

    Raises:
        SettingsError: Other models, another precision, or other checkpointing.
    """
    if calibration.fingerprint != model.fingerprint:
        raise SettingsError(
            f"plan.calibration: measured on {calibration.device} with other models, another precision, other "
            "checkpointing or another token selection than this recipe's; measure again with leadspan plan --calibrate"
        )


def break_point_fields(search: Searched) -> dict[str, Any]:
    """The fields of a `Prediction` on the break point."""
    return {
        "break_point": search.summary.lsp_star,
        "break_point_traces": search.summary.num_traces,
        "break_point_left": search.num_left,
    }


def with_store(model: CostModel, keeps_head: bool) -> CostModel:
    """The costs with a store in place of the teacher; with stored hidden states, the teacher's head remains."""
    # Two heads: that of memory has all rows, that of the operations only those that are compared.
    in_memory, counted = (
        head_only(teacher.hidden_size, teacher.vocab_size) if keeps_head and teacher is not None else None
        for teacher in (model.memory.teacher, model.teacher)
    )
    memory = replace(model.memory, teacher=in_memory, teacher_activations=None)
    return replace(model, teacher=counted, memory=memory)


@dataclass(frozen=True, slots=True)
class StoreCost:
    """A store of the teacher's targets at every position that training passes through, each trace once."""

    # Its rows as `teacher.shards` writes them, those of the uncut validation set included, and the head where hidden
    # states are stored; what frames an Arrow file comes on top. Of `top_p` and `sampled`, whose supports the data
    # decides, the most that it can be.
    num_bytes: int
    # One forward pass of the teacher over these traces and the uncut validation set; 0 where the teacher is not known.
    capture_flops: int
    validation_flops: int  # part of `capture_flops` that is the validation set
    # What a run with a live teacher saves by reading it: the teacher's passes, but its head where states are stored.
    saved_flops: int

    @property
    def net_flops(self) -> int:
        """What is saved when this run alone pays for the capture; negative where the capture costs more."""
        return self.saved_flops - self.capture_flops


def planned_targets(recipe: Recipe) -> KeptTargets:
    """What is kept in the store a recipe reads; of one that is not there yet, as `capture` would write it."""
    try:
        kept_targets = teacher_source(recipe).kept_targets
    except TargetsError:  # the store is yet to be captured
        kept_targets = None
    return kept_targets or recipe.capture.kept_targets


def store_cost(
    recipe: Recipe, model: CostModel, data: PreparedData, examples: Examples, flops: FlopsByPart
) -> StoreCost | None:
    """What a store for some examples costs and saves; None where nothing is known of the teacher.

    `model` and `flops`, those of training on the examples, are with a live teacher, where one is known.
    """
    teacher = model.memory.teacher
    if teacher is None:
        return None
    num_rows, by_stage = len(examples.rows), examples.lengths
    # A policy that changes over training needs of every trace the longest stage; shorter ones are its prefixes.
    lengths = [max(by_stage[row::num_rows]) for row in range(num_rows)]
    kept_targets = planned_targets(recipe)
    of_validation = [] if data.validation is None else list(data.validation.lengths)
    # Stored as the run computes, unless the codec names a type; the head always is.
    run_dtype, dtype, once = "bfloat16" if model.memory.use_bf16 else "float32", None, 0
    match codec := kept_targets.codec:
        case Hidden():
            num_values, dtype = teacher.hidden_size, run_dtype if codec.dtype == "teacher" else codec.dtype
            once = (2 if run_dtype == "bfloat16" else 4) * teacher.head_params
        case TopK(k=most) | TopP(max_tokens=most) | Sampled(num_samples=most):
            num_values = min(most, teacher.vocab_size)
    num_bytes = round(bytes_of(kept_targets, num_values, lengths + of_validation, dtype)[1]) + once
    is_hidden = isinstance(codec, Hidden)
    trained, validated = (
        sum(
            forward_body(teacher, length)
            + forward_attention(teacher, length)
            + (0 if is_hidden else forward_head(teacher, length - 1))
            for length in ([] if teacher.is_head_only else split)  # a teacher without a body is not run
        )
        for split in (lengths, of_validation)
    )
    return StoreCost(
        num_bytes=num_bytes,
        capture_flops=trained + validated,
        validation_flops=validated,
        saved_flops=flops.teacher_body + flops.teacher_attention + (0 if is_hidden else flops.teacher_head),
    )
