"""Rates of this machine on a recipe's own models and data, from a few real optimiser steps."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import SaveStrategy, set_seed

from leadspan.costs.flops import training_flops
from leadspan.costs.timing import Calibration, StepWork, fit_rates
from leadspan.data.examples import Examples
from leadspan.errors import SettingsError
from leadspan.losses.config import LossSettings
from leadspan.training.callbacks import Clock
from leadspan.training.prediction import CostModel, planned
from leadspan.training.process import process_state
from leadspan.training.schedule import Schedule
from leadspan.training.train import (
    TrainingInputs,
    device_name,
    load_models,
    training_arguments,
    uses_bf16,
    with_adapters,
)
from leadspan.training.trainer import DistillationTrainer, attach_objective

WARM_UP = 2
"""Steps that are not counted: the first allocate the optimiser's moments and warm caches."""


class _Laps(Clock):
    """A clock that keeps every step's time."""

    def __init__(self) -> None:
        super().__init__()
        self.laps: list[float] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop the clock."""
        before = self.seconds
        super().on_step_end(args, state, control, **kwargs)
        self.laps.append(self.seconds - before)


def calibrate(
    inputs: TrainingInputs, model: CostModel, loss: LossSettings, sides: Sequence[Examples], steps_per_side: int = 4
) -> Calibration:
    """Train for a few steps and fit rates to their times; nothing is written, the weights are thrown away.

    Args:
        inputs: Models and data of the recipe, as for training.
        model: Its counts.
        loss: The objective.
        sides: The same traces under policies of different length; their steps take turns, so that a change of load on
            the machine meets all alike.
        steps_per_side: Optimiser steps of each.

    Raises:
        SettingsError: Several processes were started, or the machine's precision is not that of the plan.
    """
    _check(model)
    plan, accumulation = _interleaved(model, sides, steps_per_side)
    with tempfile.TemporaryDirectory() as directory:
        laps, device = _train(replace(inputs, directory=Path(directory)), model, loss, sides, plan, accumulation)
    layouts = [layout for side in sides for layout in side.layouts]
    work = []
    for start in range(0, len(plan), accumulation):
        step = [i for batch in plan[start : start + accumulation] for i in batch]
        sizes = [(layouts[i].num_tokens, layouts[i].num_weighted) for i in step]
        flops = training_flops(model.student, model.teacher, sizes, model.training.gradient_checkpointing)
        work.append(StepWork.of(flops, accumulation))
    rates, error = fit_rates(work[WARM_UP:], laps[WARM_UP:])
    return Calibration(
        device=device, fingerprint=model.fingerprint, num_steps=len(work) - WARM_UP, rates=rates, largest_error=error
    )


def _check(model: CostModel) -> None:
    if process_state().num_processes > 1:
        raise SettingsError("plan --calibrate: measures one rank; start it without torchrun")
    if uses_bf16(model.training) != model.memory.use_bf16:
        raise SettingsError(
            f"plan --calibrate: plan.device = {model.machine.device!r} trains in bfloat16 and this machine in float32; "
            "calibrate on the device itself, or set training.precision"
        )


def _interleaved(model: CostModel, sides: Sequence[Examples], steps_per_side: int) -> tuple[list[list[int]], int]:
    """Micro-batches of steps that take turns over the sides; indices into all sides' examples, one after the other."""
    plans = [planned(model, side) for side in sides]
    accumulation = plans[0].accumulation * model.machine.num_ranks
    offsets = [sum(len(side) for side in sides[:number]) for number in range(len(sides))]

    def step(side: int, number: int) -> list[list[int]]:
        start = number * accumulation % len(plans[side].plan)
        return [[i + offsets[side] for i in batch] for batch in plans[side].plan[start : start + accumulation]]

    turns = [(side, number) for number in range(steps_per_side) for side in range(len(sides))]
    order = [(0, 0)] * WARM_UP + turns
    return [batch for side, number in order for batch in step(side, number)], accumulation


def _train(
    inputs: TrainingInputs,
    model: CostModel,
    loss: LossSettings,
    sides: Sequence[Examples],
    plan: list[list[int]],
    accumulation: int,
) -> tuple[list[float], str]:
    set_seed(inputs.seed)
    settings = model.training.model_copy(update={"report_to": [], "schedule": "constant"})
    student, teacher, vocab_size = load_models(inputs, uses_bf16(settings))
    attach_objective(student, loss, vocab_size)
    trained = student if settings.lora is None else with_adapters(student, settings.lora)
    whole = Schedule(len(plan) // accumulation, accumulation, plan, len(plan), len(plan))
    arguments = training_arguments(replace(inputs, validation=None), settings, whole)
    arguments.save_strategy = SaveStrategy.NO
    examples: Any = _Joined(sides)
    trainer = DistillationTrainer(trained, teacher, examples, None, plan, [], arguments)
    laps = _Laps()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(laps)
    inputs.say(f"calibrating: {whole.num_steps} steps")
    start = time.perf_counter()
    trainer.train()
    inputs.say(f"calibrated in {time.perf_counter() - start:.0f} s")
    return laps.laps, device_name(arguments.device, arguments.world_size)


class _Joined(torch.utils.data.Dataset[Any]):
    """Several sets of examples, one after the other."""

    def __init__(self, sides: Sequence[Examples]):
        self._examples = [(side, i) for side in sides for i in range(len(side))]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Any:
        side, i = self._examples[index]
        return side[i]
