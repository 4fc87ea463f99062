"""Rates of this machine on a recipe's own models and data, from a few real optimiser steps."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import SaveStrategy, set_seed

from leadspan.costs.flops import ExampleSize, training_flops
from leadspan.costs.measure import PeakMemory
from leadspan.costs.memory import BatchSize, highest
from leadspan.costs.timing import Calibration, StepWork, fit_memory, fit_rates
from leadspan.data.examples import Examples
from leadspan.errors import SettingsError
from leadspan.losses.config import LossSettings
from leadspan.training.arguments import training_arguments, uses_bf16
from leadspan.training.callbacks import Clock, Progress
from leadspan.training.measured import device_name, layout_sizes
from leadspan.training.prediction import CostModel, planned
from leadspan.training.process import process_device, process_state
from leadspan.training.schedule import Schedule
from leadspan.training.train import (
    TrainingInputs,
    load_models,
    with_adapters,
)
from leadspan.training.trainer import DistillationTrainer, attach_objective


class _Laps(Clock):
    """A clock that keeps every step's time, and how high memory has been up to its end."""

    def __init__(self, memory: PeakMemory) -> None:
        super().__init__()
        self.memory = memory
        self.seconds_of: list[float] = []
        self.peaks: list[int] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop the clock, and read the peak."""
        before = self.seconds
        super().on_step_end(args, state, control, **kwargs)
        self.seconds_of.append(self.seconds - before)
        self.peaks.append(self.memory.read())


@dataclass(frozen=True)
class _Course:
    """Which steps are taken: `order[i]` is `(side, its step)`, and their micro-batches in a row.

    Attributes:
        order: The sides from the shortest to the longest, twice each, so that a peak is that of the longest side up to
            then; after that all sides in turn, so that a change of load on the machine meets all alike.
        plan: Micro-batches, as indices into the examples of all sides one after the other.
        accumulation: Micro-batches of a step.
        num_rising: Steps of the first, rising part.
        sides: Examples of each side.
    """

    sides: Sequence[Examples]
    order: list[tuple[int, int]]
    plan: list[list[int]]
    accumulation: int
    num_rising: int

    def batches(self, step: int) -> list[list[int]]:
        """Micro-batches of a step."""
        return self.plan[step * self.accumulation : (step + 1) * self.accumulation]


def calibrate(
    inputs: TrainingInputs, model: CostModel, loss: LossSettings, sides: Sequence[Examples], num_rounds: int = 4
) -> Calibration:
    """Train for a few steps and fit rates to their times; nothing is written, the weights are thrown away.

    The first step of each side is not counted: it allocates, and the very first makes the optimiser's moments.

    Args:
        inputs: Models and data of the recipe, as for training.
        model: Its counts.
        loss: The objective.
        sides: The same traces under policies of different length.
        num_rounds: Steps of each side besides its first two.

    Raises:
        SettingsError: Several processes were started, or the machine's precision is not that of the plan.
    """
    _check(model)
    course = _course(model, sorted(sides, key=lambda side: sum(side.lengths)), num_rounds)
    with tempfile.TemporaryDirectory() as directory:
        laps, device = _train(replace(inputs, directory=Path(directory)), model, loss, course)
    known = [size for side in course.sides for size in layout_sizes(side, model.selection)]

    def sizes(step: int) -> list[list[ExampleSize]]:
        return [[known[i] for i in batch] for batch in course.batches(step)]

    counted = [step for step in range(len(course.order)) if step >= course.num_rising or step % 2]
    work = [_work(model, sizes(step)) for step in counted]
    rates, error = fit_rates(work, [laps.seconds_of[step] for step in counted])
    risen = range(1, course.num_rising, 2)
    batches = ([BatchSize.of(batch) for batch in sizes(step - 1) + sizes(step)] for step in risen)
    predicted = [highest(model.memory, few).total for few in batches]
    offset, factor = fit_memory(list(accumulate(predicted, max)), [laps.peaks[step] for step in risen])
    return Calibration(
        device=device,
        fingerprint=model.fingerprint,
        num_steps=len(counted),
        rates=rates,
        largest_error=error,
        memory_offset=offset,
        memory_factor=factor,
    )


def _work(model: CostModel, batches: list[list[ExampleSize]]) -> StepWork:
    examples = [example for batch in batches for example in batch]
    flops = training_flops(model.student, model.teacher, examples, model.training.gradient_checkpointing)
    return StepWork.of(flops, len(batches))


def _check(model: CostModel) -> None:
    if process_state().num_processes > 1:
        raise SettingsError("plan --calibrate: measures one rank; start it without torchrun")
    use_bf16 = model.memory.use_bf16
    if uses_bf16(model.training) != use_bf16:
        raise SettingsError(
            f"plan --calibrate: plan.device = {model.machine.device!r} trains in {_precision(use_bf16)} and this "
            f"machine in {_precision(not use_bf16)}; calibrate on the device itself, or set "
            "training.precision, or the own figures' bfloat16"
        )


def _precision(use_bf16: bool) -> str:
    return "bfloat16" if use_bf16 else "float32"


def _course(model: CostModel, sides: Sequence[Examples], num_rounds: int) -> _Course:
    plans = [planned(model, side) for side in sides]
    accumulation = plans[0].accumulation * model.machine.num_ranks
    offsets = [sum(len(side) for side in sides[:number]) for number in range(len(sides))]

    def step(side: int, number: int) -> list[list[int]]:
        start = number * accumulation % len(plans[side].plan)
        return [[i + offsets[side] for i in batch] for batch in plans[side].plan[start : start + accumulation]]

    rising = [(side, number) for side in range(len(sides)) for number in range(2)]
    turns = [(side, 2 + number) for number in range(num_rounds) for side in range(len(sides))]
    order = rising + turns
    plan = [batch for side, number in order for batch in step(side, number)]
    return _Course(sides, order, plan, accumulation, len(rising))


def _train(inputs: TrainingInputs, model: CostModel, loss: LossSettings, course: _Course) -> tuple[_Laps, str]:
    memory = PeakMemory(process_device())
    set_seed(inputs.seed)
    settings = model.training.model_copy(update={"report_to": [], "schedule": "constant"})
    student, teacher, vocab_size = load_models(inputs, uses_bf16(settings))
    attach_objective(student, loss, vocab_size, inputs.selection)
    trained = student if settings.lora is None else with_adapters(student, settings.lora)
    num_steps = len(course.order)
    whole = Schedule(num_steps, course.accumulation, course.plan, num_steps, num_steps)
    arguments = training_arguments(inputs.directory, settings, whole, inputs.seed, has_validation=False)
    arguments.save_strategy = SaveStrategy.NO
    examples: Any = _Joined(course.sides)
    trainer = DistillationTrainer(
        trained, teacher, examples, None, course.plan, [], arguments, selection=inputs.selection
    )
    laps = _Laps(memory)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(laps)
    trainer.add_callback(Progress(lambda text: inputs.say(text.replace("training", "calibrating"))))
    trainer.train()
    return laps, device_name(arguments.device, arguments.world_size)


class _Joined(torch.utils.data.Dataset[Any]):
    """Several sets of examples, one after the other."""

    def __init__(self, sides: Sequence[Examples]):
        self._examples = [(side, i) for side in sides for i in range(len(side))]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Any:
        side, i = self._examples[index]
        return side[i]
