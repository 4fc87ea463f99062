"""What a run will cost, from its settings, its examples and its models' configs; no weights are read."""

import hashlib
from dataclasses import asdict, dataclass, replace

import torch

from leadspan.costs.config import PlanSettings
from leadspan.costs.fitting import largest_batch, largest_budget
from leadspan.costs.flops import ExampleSize, ModelShape, head_only, training_flops
from leadspan.costs.memory import BatchSize, MemoryModel, highest
from leadspan.costs.savings import Saving, Workload, flops_with, memory_with, saving
from leadspan.costs.timing import Calibration, StepWork
from leadspan.data.examples import Examples
from leadspan.data.selection import ScoredSelection
from leadspan.errors import SettingsError
from leadspan.losses.chunked import default_chunk
from leadspan.losses.config import LossSettings
from leadspan.models.activations import student_activations, teacher_activations
from leadspan.models.config import ModelSettings
from leadspan.models.loading import load_config, name_of
from leadspan.models.shapes import build_untrained, shape_from
from leadspan.results import FlopsByPart, Prediction
from leadspan.training.arguments import uses_bf16
from leadspan.training.config import ByExamples, TrainingSettings
from leadspan.training.measured import layout_sizes
from leadspan.training.schedule import Schedule, schedule
from leadspan.training.train import adapter_params, with_adapters


@dataclass(frozen=True)
class CostModel:
    """Everything about the cost of a recipe but its examples.

    Attributes:
        student: Shape of the student for counting operations: its head has the rows that are compared.
        teacher: The same of a live teacher, or of the head that a store of hidden states has; or None.
        memory: Memory of a step.
        training: Batches and epochs.
        machine: Devices, price, calibration.
        seed: Seed of the order.
        selection: How tokens are selected by scores, or None.
    """

    student: ModelShape
    teacher: ModelShape | None
    memory: MemoryModel
    training: TrainingSettings
    machine: PlanSettings
    seed: int
    selection: ScoredSelection | None = None

    @property
    def fingerprint(self) -> str:
        """What a calibration of the step time depends on: models, precision, checkpointing, selection by scores."""
        memory = replace(self.memory, num_ranks=1, sharding="none", chunk_tokens=0, accumulates=False)
        selection = self.selection and self.selection.kind
        known = repr((asdict(memory), self.training.gradient_checkpointing, selection))
        return hashlib.sha256(known.encode()).hexdigest()[:16]


def cost_model(
    student: ModelSettings,
    teacher: ModelSettings | ModelShape | None,
    training: TrainingSettings,
    loss: LossSettings,
    machine: PlanSettings,
    num_entries: int,
    seed: int,
    selection: ScoredSelection | None = None,
) -> CostModel:
    """Read the models' configs and trace their activations.

    Args:
        student: Where the student comes from.
        teacher: A live teacher, the shape of its head where hidden states are stored, or None.
        training: Precision, checkpointing, adapters, batches.
        loss: Chunk of logits.
        machine: Devices of the planned run.
        num_entries: Token ids of the tokenizer, on which heads of different sizes are compared.
        seed: Seed of the order.
        selection: How tokens are selected by scores, which takes a second pass of the heads; None for no such pass.

    Raises:
        ModelError: A config cannot be read, or its model not be traced.
    """
    use_bf16 = _will_use_bf16(training, machine)
    own = shape_from(student)
    live = None if isinstance(teacher, ModelShape) else teacher
    other = teacher if isinstance(teacher, ModelShape) else None if teacher is None else shape_from(teacher)
    if training.lora is not None:
        with torch.device("meta"):
            wrapped = with_adapters(build_untrained(load_config(student), name_of(student)), training.lora)
        own = replace(own, adapter_params=adapter_params(wrapped))
    entries = num_entries if other is not None and other.vocab_size != own.vocab_size else own.vocab_size
    on_gpu = torch.cuda.is_available() if machine.found_device is None else machine.found_device.bfloat16
    chunk = loss.chunk_tokens or default_chunk(torch.device("cuda" if on_gpu else "cpu"), entries)
    per_step = _batches_per_step(training)
    memory = MemoryModel(
        student=own,
        teacher=other,
        student_activations=student_activations(student, use_bf16, training.gradient_checkpointing),
        teacher_activations=None if live is None else teacher_activations(live, use_bf16),
        use_bf16=use_bf16,
        chunk_tokens=chunk,
        accumulates=per_step > machine.num_ranks,
        num_ranks=machine.num_ranks,
        sharding=machine.shared,
    )
    compared = [shape and replace(shape, vocab_size=entries) for shape in (own, other)]
    assert compared[0] is not None, "there is a student"
    return CostModel(compared[0], compared[1], memory, training, machine, seed, selection)


def predict(model: CostModel, examples: Examples, calibration: Calibration | None = None) -> Prediction:
    """Predict the cost of training on examples.

    Args:
        model: Models and machine.
        examples: Under the policy of the run.
        calibration: Measured rates of this machine and these models; without them, the time is the operations over the
            stated share of the device's peak, or absent.

    Raises:
        SettingsError: The calibration is of other models or another setting.
    """
    plan, ranks = planned(model, examples), model.machine.num_ranks
    batches = sizes_of(model, plan, examples)
    steps = [
        training_flops(
            model.student,
            model.teacher,
            [example for batch in group for example in batch],
            model.training.gradient_checkpointing,
        )
        for group in _groups(batches, plan.accumulation * ranks)
    ]
    flops = FlopsByPart(**{part: sum(getattr(step, part) for step in steps) for part in FlopsByPart.model_fields})
    memory = highest(model.memory, [BatchSize.of(batch) for batch in batches])
    seconds, source = None, None
    device, utilisation = model.machine.found_device, model.machine.utilisation
    if calibration is not None:
        check_calibration(calibration, model)
        seconds = calibration.seconds([_share(step, plan.accumulation, ranks) for step in steps])
        source = f"calibration of {calibration.num_steps} steps on {calibration.device}"
    elif device is not None and utilisation is not None:
        seconds = flops.total / (device.peak_flops * utilisation * ranks)
        source = f"{utilisation:.0%} of the peak of {ranks} x {device.name}"
    price = model.machine.price_per_hour
    return Prediction(
        num_steps=plan.num_steps,
        num_tokens=sum(example.tokens for batch in batches for example in batch),
        num_weighted_tokens=sum(example.weighted for batch in batches for example in batch),
        flops=flops,
        memory=memory if calibration is None else calibration.memory(memory),
        seconds=seconds,
        seconds_source=source,
        money=None if seconds is None or price is None else price * ranks * seconds / 3600,
    )


def fits(model: CostModel, examples: Examples, memory_bytes: int) -> int:
    """Examples that fit into one micro-batch whichever they are; 0 when the longest does not fit alone."""
    return largest_batch(model.memory, layout_sizes(examples, model.selection), memory_bytes)


def budget_that_fits(model: CostModel, examples: Examples, memory_bytes: int) -> int:
    """Largest `tokens_per_batch` that fits whatever is packed; 0 when the longest example does not fit alone."""
    return largest_budget(model.memory, layout_sizes(examples, model.selection), memory_bytes)


def with_store(model: CostModel, keeps_head: bool) -> CostModel:
    """The costs of reading a store instead of running the teacher; one of hidden states keeps the teacher's head."""

    def left(teacher: ModelShape | None) -> ModelShape | None:
        return head_only(teacher.hidden_size, teacher.vocab_size) if keeps_head and teacher is not None else None

    memory = replace(model.memory, teacher=left(model.memory.teacher), teacher_activations=None)
    return replace(model, teacher=left(model.teacher), memory=memory)


def savings(model: CostModel, stored: CostModel, examples: Examples, whole: Examples) -> tuple[Saving, Saving]:
    """Where the operations and the peak memory that are saved come from.

    Args:
        model: Models and machine, with a live teacher.
        stored: The same with a store; `model` itself where no live teacher is known.
        examples: Under the policy.
        whole: The same examples, uncut.
    """
    plan = planned(model, examples)
    load = Workload(whole=sizes_of(model, plan, whole), cut=sizes_of(model, plan, examples))
    recompute = model.training.gradient_checkpointing
    return (
        saving(lambda on: flops_with(on, load, model.student, model.teacher, recompute, stored.teacher)),
        saving(lambda on: memory_with(on, load, model.memory, stored.memory.teacher)),
    )


def planned(model: CostModel, examples: Examples) -> Schedule:
    """Steps and micro-batches of a run over examples."""
    return schedule(model.training, examples.lengths, model.machine.num_ranks, model.seed, examples.num_stages)


def sizes_of(model: CostModel, plan: Schedule, examples: Examples) -> list[list[ExampleSize]]:
    """Size of each example of each micro-batch, all ranks."""
    sizes = layout_sizes(examples, model.selection)
    return [[sizes[i] for i in batch] for batch in plan.plan]


def check_calibration(calibration: Calibration, model: CostModel) -> None:
    """Refuse rates that were measured on something else.

    Raises:
        SettingsError: Other models, another precision, or other checkpointing.
    """
    if calibration.fingerprint != model.fingerprint:
        raise SettingsError(
            f"plan.calibration: measured on {calibration.device} with other models, another precision, other "
            "checkpointing or another token selection than this recipe's; measure anew with leadspan plan --calibrate"
        )


def _share(flops: FlopsByPart, batches: int, ranks: int) -> StepWork:
    """One rank's part of a step."""
    work = StepWork.of(flops, batches)
    return work.model_copy(update={part: getattr(work, part) // ranks for part in ("linear", "attention", "head")})


def _groups(batches: list[list[ExampleSize]], size: int) -> list[list[list[ExampleSize]]]:
    return [batches[start : start + size] for start in range(0, len(batches), size)]


def _batches_per_step(training: TrainingSettings) -> int:
    batching = training.batching
    if isinstance(batching, ByExamples):
        return batching.examples_per_step // batching.examples_per_batch
    return batching.batches_per_step


def _will_use_bf16(training: TrainingSettings, machine: PlanSettings) -> bool:
    """As the run on the planned machine will decide; without a device it is this one."""
    device = machine.found_device
    if training.precision == "auto" and device is not None:
        return device.bfloat16
    return uses_bf16(training)
