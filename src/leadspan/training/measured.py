"""What a finished run did and cost, from its plan, its clock and its meters."""

import math
from typing import cast

import torch
from transformers import TrainingArguments

from leadspan.costs.devices import Device, recognise
from leadspan.costs.flops import ExampleSize
from leadspan.costs.measure import PeakMemory
from leadspan.data.examples import Examples
from leadspan.data.selection import ScoredSelection
from leadspan.results import TrainResult
from leadspan.training.callbacks import Clock, EnergyMeter
from leadspan.training.speed import Speed
from leadspan.training.trainer import DistillationTrainer


def measured(trainer: DistillationTrainer, speed: Speed, saved_step: int, memory: PeakMemory) -> TrainResult:
    """The result of a run that has ended.

    Args:
        trainer: After training.
        speed: What its steps did.
        saved_step: Step whose weights were kept.
        memory: Peak of the process or the device.
    """
    history = trainer.state.log_history
    losses = [line["loss"] for line in history if "loss" in line]
    clock = next(c for c in trainer.callback_handler.callbacks if isinstance(c, Clock))
    flops = speed.flops
    return TrainResult(
        num_steps=len(speed.steps),
        num_examples=sum(step.examples for step in speed.steps),
        num_tokens=sum(step.tokens for step in speed.steps),
        num_weighted_tokens=sum(step.weighted for step in speed.steps),
        seconds=clock.seconds,
        peak_memory_bytes=memory.read(),
        memory_source=memory.source,
        flops=flops,
        first_loss=losses[0],
        final_loss=losses[-1],
        validation_loss={str(line["step"]): line["eval_loss"] for line in history if "eval_loss" in line},
        best_step=trainer.state.best_global_step,
        saved_step=saved_step,
        device=device_name(trainer.args.device, trainer.args.world_size),
        num_ranks=trainer.args.world_size,
        step_seconds=clock.by_part(),
        first_step_seconds=clock.first_step,
        mfu=speed.figures(0, len(speed.steps), clock.seconds).get("speed/mfu"),
        energy_joules=_energy(trainer),
    )


def layout_sizes(examples: Examples, selection: ScoredSelection | None) -> list[ExampleSize]:
    """Size of every example; positions are scored where a selection goes by scores."""
    is_scored = selection is not None
    return [ExampleSize(one.num_tokens, one.num_weighted, one.num_scored * is_scored) for one in examples.layouts]


def peak_flops(arguments: TrainingArguments, stated: Device | None) -> float | None:
    """Operations a second of all ranks' devices, as stated or by the name of the GPU."""
    device = stated
    if device is None and arguments.device.type == "cuda":
        found = torch.cuda.get_device_properties(arguments.device)
        device = recognise(found.name, found.total_memory)
    return None if device is None else device.peak_flops * arguments.world_size


def _energy(trainer: DistillationTrainer) -> float | None:
    """Joules of all ranks' GPUs; None when one of them has no counter."""
    own = next(c for c in trainer.callback_handler.callbacks if isinstance(c, EnergyMeter)).total
    value = torch.tensor(math.nan if own is None else own, device=trainer.args.device)
    joules = float(cast(torch.Tensor, trainer.accelerator.reduce(value, "sum")))
    return None if math.isnan(joules) else joules


def device_name(device: torch.device, num_ranks: int) -> str:
    """What trains, and how many of it."""
    if device.type == "cuda":
        return f"{num_ranks} x {torch.cuda.get_device_name(device)}"
    return f"{num_ranks} x {device.type} ({torch.get_num_threads()} threads)"
