"""Measured rates of this machine on a recipe's own models and data, from a few real optimiser steps and draws."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import ConcatDataset
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import SaveStrategy, set_seed

from leadspan.costs.flops import ExampleSize, ModelShape
from leadspan.costs.memory import BatchSize
from leadspan.data.examples import Examples
from leadspan.errors import SettingsError
from leadspan.losses.settings import LossSettings
from leadspan.models.loading import load_model
from leadspan.models.shapes import uses_bf16
from leadspan.planning.prediction import CostModel, planned
from leadspan.planning.rollouts import batch_work
from leadspan.planning.timing import Calibration, StepWork, fit_memory, fit_rates
from leadspan.ranks import PeakMemory, device_name, freed_memory_reused, process_device, process_state
from leadspan.rollout.drawing import RolloutInputs, draw_rollouts
from leadspan.rollout.rows import Rollout, Turn
from leadspan.training.callbacks import Clock, ProgressCallback
from leadspan.training.steps import StepPlan, training_arguments
from leadspan.training.train import TrainingInputs, load_models
from leadspan.training.trainer import DistillationTrainer

# Measured draws: share of the rows of a batch (at least one row), and new tokens. Few and many rows, short and long,
# so that the rates per pass, row and operation can be separated.
_DRAWS = ((0.0, 64), (1.0, 8), (1.0, 64), (0.5, 32))
_NUM_LENGTHS = 32  # rollouts drawn for their lengths: their mean is then known to about a tenth


@dataclass(eq=False)
class _Peaks(TrainerCallback):
    """Records the peak of memory up to the end of every step."""

    memory: PeakMemory = field(default_factory=PeakMemory)
    peaks: list[int] = field(default_factory=list)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the peak."""
        self.peaks.append(self.memory.read())


@freed_memory_reused()  # as a run is trained: without it steps of a large model take a fifth longer on a CPU
def calibrate(
    inputs: TrainingInputs, model: CostModel, loss: LossSettings, sides: Sequence[Examples], num_rounds: int = 4
) -> Calibration:
    """Train for a few steps and fit rates to their times; nothing is written, and the weights are discarded.

    The sides are the same traces under policies of different length. Of each, the first step is not counted: it
    allocates, and the very first creates the optimiser's moments. `num_rounds` steps follow its first two.

    Raises:
        SettingsError: Several processes were started, or the machine's precision is not that of the plan.
    """
    if process_state().num_processes > 1:
        raise SettingsError("plan --calibrate: measures one rank; start it without torchrun")
    use_bf16 = model.memory.use_bf16
    if uses_bf16(model.training.precision, inputs.student) != use_bf16:
        planned_type, own_type = ("bfloat16", "float32") if use_bf16 else ("float32", "bfloat16")
        raise SettingsError(
            f"plan --calibrate: plan.device = {model.machine.device!r} trains in {planned_type} and this machine in "
            f"{own_type}; calibrate on the device itself, or set training.precision, or bfloat16 among the figures of "
            "plan.device"
        )
    sides = sorted(sides, key=lambda side: sum(side.lengths))
    (course, sizes), num_rising = _course(model, sides, num_rounds), 2 * len(sides)
    flops = [model.flops(of_step) for of_step in sizes]
    clock, peaks = Clock(), _Peaks()
    set_seed(inputs.seed)
    # A constant rate and no trackers: nothing but the cost of the steps is measured.
    settings = model.training.model_copy(update={"report_to": [], "schedule": "constant"})
    trained, _ = load_models(inputs, settings, loss, use_bf16)
    examples: Any = ConcatDataset(cast(Any, sides))
    with tempfile.TemporaryDirectory() as directory:  # the trainer asks for one; nothing is saved in it
        arguments = training_arguments(Path(directory), settings, course, inputs.seed, False, use_bf16)
        arguments.save_strategy = SaveStrategy.NO
        trainer = DistillationTrainer(
            trained, inputs.teacher, examples, None, course.plan, [], arguments, selection=inputs.selection
        )
        trainer.remove_callback(PrinterCallback)  # it would print losses, which mean nothing here
        # Short steps come first: by their number alone, the time left would be a fraction of what it is.
        progress = ProgressCallback(f"calibrating {len(sides)} policies", work=[each.total for each in flops])
        for callback in (clock, peaks, progress):
            trainer.add_callback(callback)
        trainer.train()
    # Of the rising part every second step: the first of each side allocates.
    counted = [step for step in range(course.num_steps) if step >= num_rising or step % 2]
    work = [StepWork.of(flops[step], len(sizes[step])) for step in counted]
    rates, error = fit_rates(work, [clock.durations[step] for step in counted])
    # The peak after the second step of each side; it never falls, hence the running maximum of the predictions.
    risen = range(1, num_rising, 2)
    batches = ([BatchSize.of(batch) for batch in sizes[step - 1] + sizes[step]] for step in risen)
    predicted = [model.memory.peak(*few).total for few in batches]
    offset, factor = fit_memory(list(accumulate(predicted, max)), [peaks.peaks[step] for step in risen])
    return Calibration(
        device=device_name(arguments.device, arguments.world_size),
        fingerprint=model.fingerprint,
        num_steps=len(counted),
        rates=rates,
        largest_error=error,
        memory_offset=offset,
        memory_factor=factor,
    )


def _course(
    model: CostModel, sides: Sequence[Examples], num_rounds: int
) -> tuple[StepPlan, list[list[list[ExampleSize]]]]:
    """The calibration steps, and the size of each example of each micro-batch of each.

    The plan's indices are those of the examples of all sides one after the other.
    """
    plans = [planned(model, side) for side in sides]
    accumulation = plans[0][0].accumulation * model.machine.num_ranks
    offsets = [sum(len(side) for side in sides[:number]) for number in range(len(sides))]
    # From the shortest side to the longest, two steps each, so that every new peak belongs to the side that set it.
    order = [(side, number) for side in range(len(sides)) for number in range(2)]
    # Then the sides take turns, so that machine load that drifts affects all of them equally.
    order += [(side, 2 + number) for number in range(num_rounds) for side in range(len(sides))]
    batches: list[list[int]] = []
    sizes: list[list[list[ExampleSize]]] = []
    for side, number in order:
        plan, of_side = plans[side]
        # A plan with fewer steps begins again: what is measured is their cost, not what they learn.
        start = number * accumulation % len(plan.plan)
        step = slice(start, start + accumulation)
        batches += [[i + offsets[side] for i in batch] for batch in plan.plan[step]]
        sizes.append(of_side[step])
    # Checkpoints come after the last step, so that no step's time has them in it.
    return StepPlan(len(order), accumulation, batches, frozenset(), checkpoint_every=len(order)), sizes


@freed_memory_reused()
def measure_drawing(
    inputs: RolloutInputs, student: ModelShape, use_bf16: bool
) -> tuple[dict[str, float], list[int | None]]:
    """Rates of this machine, and lengths of the run's first rollouts.

    Rates are those of draws of few and many rows, short and long; the first of each kind is not counted.

    Returns:
        Rates by term, and new tokens of some rollouts up to the longest cap of the run; None: not ended by then.
    """
    plain = load_model(inputs.student, torch.float32, for_training=False)
    model = cast(PreTrainedModel, cast(torch.nn.Module, plain).to(process_device())).eval()

    def draw(turns: Sequence[Turn], cap: int) -> tuple[list[Rollout], float]:
        begun = time.perf_counter()
        drawn = draw_rollouts(model, inputs, [(0, replace(turn, cap=cap)) for turn in turns], use_bf16)
        return drawn, time.perf_counter() - begun

    course, cold = inputs.course, inputs.course.settings.num_cold_steps
    turns = [turn for n in range(cold, course.num_steps) for turn in course.step(n, [1.0] * n).turns]
    together = turns[: min(course.settings.batch_size, len(course.step(cold).turns))]
    work, seconds = [], []
    for tries, (share, cap) in enumerate(_DRAWS * 3):
        rollouts, lasted = draw(together[: max(1, round(share * len(together)))], cap)
        if tries >= len(_DRAWS):  # the first draw of each kind allocates its memory
            work.append(batch_work(student, [(len(rollout.prompt.ids), len(rollout.new_ids)) for rollout in rollouts]))
            seconds.append(lasted)
    rollouts, _ = draw(turns[:_NUM_LENGTHS], max(turn.cap for turn in turns))
    lengths = [len(rollout.new_ids) if rollout.ending == "stop" else None for rollout in rollouts]
    return fit_rates(work, seconds)[0], lengths
