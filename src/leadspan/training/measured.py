"""What a finished run did and cost, from its plan, its clock and its meters."""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any, cast

import torch
from transformers import TrainingArguments

from leadspan.costs.devices import Device, recognise
from leadspan.costs.flops import FlopsByPart
from leadspan.costs.measure import MemorySource
from leadspan.training.callbacks import Clock, EnergyMeter
from leadspan.training.result import StageCost, TrainResult
from leadspan.training.steps import Speed, StepCounts
from leadspan.training.trainer import DistillationTrainer


def measured(trainer: DistillationTrainer, speed: Speed, saved_step: int, memory_source: MemorySource) -> TrainResult:
    """The result of a run that has ended."""
    history = trainer.state.log_history  # restored from the checkpoint, so it is that of the whole run
    losses = [line["loss"] for line in history if "loss" in line]
    callbacks = trainer.callback_handler.callbacks
    clock = next(c for c in callbacks if isinstance(c, Clock))
    flops = [step.flops.total for step in speed.steps]
    cold, seconds = clock.num_cold_steps, clock.cold_seconds
    stages = []
    if cold:
        stages.append(StageCost(name="cold start", **_counted(speed.steps[:cold], seconds)))
        stages.append(StageCost(name="on-policy", **_counted(speed.steps[cold:], clock.seconds - seconds)))
    joules = next(c for c in callbacks if isinstance(c, EnergyMeter)).total
    # NaN survives the sum over ranks: one rank without a counter makes the total unknown, not too small.
    energy = torch.tensor(math.nan if joules is None else joules, device=trainer.args.device)
    energy = float(cast(torch.Tensor, trainer.accelerator.reduce(energy, "sum")))
    return TrainResult(
        **_counted(speed.steps, clock.seconds),
        stages=stages,
        peak_memory_bytes=trainer.peak_memory_bytes,
        memory_source=memory_source,
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
        # Drawing takes time that follows no count of operations, so that such steps have no typical rate.
        typical_seconds=None if "rollout" in clock.parts else typical_seconds(clock.durations, flops),
        # By convention MFU leaves recomputation out, unlike `flops`.
        mfu=speed.figures(0, len(speed.steps), clock.seconds).get("speed/mfu"),
        energy_joules=None if math.isnan(energy) else energy,
    )


def _counted(steps: Sequence[StepCounts], seconds: float) -> dict[str, Any]:
    """The fields of `StepsCost`."""
    return {
        "num_steps": len(steps),
        "num_examples": sum(step.examples for step in steps),
        "num_tokens": sum(step.tokens for step in steps),
        "num_weighted_tokens": sum(step.weighted for step in steps),
        "seconds": seconds,
        "flops": FlopsByPart.added(step.flops for step in steps),
    }


def typical_seconds(durations: Sequence[float], flops: Sequence[int]) -> float | None:
    """Time of a run from the median time per operation of its steps; None where not all steps were timed.

    The median of seconds / operations over the steps, times all operations. So steps of different lengths count by
    their work, and a burst of other load on the machine, which slows a few steps, does not count. The first step,
    which compiles and warms up, is left out where there are more.

    >>> typical_seconds([9.0, 1.0, 2.0, 30.0], [1, 1, 2, 1])
    5.0
    """
    if not durations or len(durations) != len(flops):
        return None
    pairs = [(seconds, number) for seconds, number in zip(durations, flops, strict=True) if number]
    rates = [seconds / number for seconds, number in pairs[1:] or pairs]
    return median(rates) * sum(flops) if rates else None


def peak_flops(arguments: TrainingArguments, stated: Device | None) -> float | None:
    """Peak operations per second of all ranks' devices, as stated or by the name of the GPU."""
    device = stated
    if device is None and arguments.device.type == "cuda":
        properties = torch.cuda.get_device_properties(arguments.device)
        device = recognise(properties.name, properties.total_memory)
    return None if device is None else device.peak_flops * arguments.world_size


def device_name(device: torch.device, num_ranks: int) -> str:
    """Name of the training device and the number of ranks."""
    if device.type == "cuda":
        return f"{num_ranks} x {torch.cuda.get_device_name(device)}"
    return f"{num_ranks} x {device.type} ({torch.get_num_threads()} threads)"
