"""Predicted memory and traffic of one rank of a run on several devices, by sharding and placement of the teacher.

The size of a step is fixed, so more ranks share its micro-batches: the work of a rank shrinks with their number, its
traffic does not. Sending is assumed to overlap with computing, and to limit the step where it takes longer.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from leadspan.costs.flops import ExampleSize, training_flops
from leadspan.costs.memory import BatchSize, MemoryByPart, Sharding, highest
from leadspan.costs.network import TeacherPlacement, Traffic, traffic
from leadspan.data.examples import Examples
from leadspan.models.activations import student_activations
from leadspan.planning.fitting import largest_batch, longest_example
from leadspan.planning.prediction import CostModel, planned, sizes_of, with_store
from leadspan.recipe import Recipe
from leadspan.training.steps import layout_sizes

# Ranks to try where an example does not fit: powers of two, as devices are rented.
_RANKS = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class RankCost:
    """One way to place a run on `num_ranks` devices that train.

    Attributes:
        sharding: Of the student, and of a teacher on the same devices.
        placement: Of the teacher; None without one.
        num_ranks: Devices that train; those of a teacher on its own ranks come on top.
        memory: Of one rank, at the highest moment of the largest micro-batch.
        traffic: Of one rank in a step.
        compute_seconds: Of one rank in a step, at the stated share of the peak; None where none is stated.
        network_seconds: Of the traffic, at the stated bandwidth; None where none is stated.
        network_bound_from: Fewest ranks, a power of two, from which sending takes longer than computing; None where no
            number of ranks that can share a step is, or a figure is missing.
        teacher_ranks: Devices of the teacher that keep up with the students, on its own ranks; else 0.
        longest: Longest example that fits the device by itself, tokens; None without a device.
    """

    sharding: Sharding
    placement: TeacherPlacement | None
    num_ranks: int
    memory: MemoryByPart
    traffic: Traffic
    compute_seconds: float | None
    network_seconds: float | None
    network_bound_from: int | None
    teacher_ranks: int
    longest: int | None


def rank_costs(live: CostModel, examples: Examples) -> tuple[RankCost, ...]:
    """Every sharding with every placement of a live teacher, where one is known, on the ranks of the plan."""
    machine, ranks, device = live.machine, live.machine.num_ranks, live.machine.found_device
    has_teacher = live.memory.teacher is not None and live.memory.teacher_activations is not None
    placements: tuple[TeacherPlacement | None, ...] = ("beside", "ranks", "store") if has_teacher else (None,)
    shardings: tuple[Sharding, ...] = ("ddp", "fsdp2")
    plan, sizes = planned(live, examples), layout_sizes(examples.layouts, live.selection)
    batches = sizes_of(live, plan, examples)
    step = batches[: plan.accumulation * ranks]
    # A step is shared by as many ranks as it has micro-batches, at most.
    numbers = [2**i for i in range(1, len(step).bit_length())]
    costs: list[RankCost] = []
    for sharding, placement in itertools.product(shardings, placements):
        # A student whose teacher runs on other ranks receives its hidden states and holds its head, as with a store.
        model = live if placement in ("beside", None) else with_store(live, keeps_head=placement == "ranks")
        memory, teacher = replace(model.memory, sharding=sharding), None if placement is None else live.memory.teacher
        sent: dict[int, Traffic] = {}
        for n in (ranks, *numbers):
            of_rank = [BatchSize.of(batch) for batch in step[::n]]
            sent[n] = traffic(replace(memory, num_ranks=n), teacher, placement or "store", of_rank)
        flops, compute, bound = _step_flops(model, step), None, None
        if device is not None and machine.utilisation is not None:
            compute = flops / (ranks * device.peak_flops * machine.utilisation)
        seconds = {n: sent[n].total / (machine.bandwidth_gb * 1e9) for n in sent} if machine.bandwidth_gb else {}
        if compute is not None and seconds:
            bound = next((n for n in numbers if seconds[n] > compute * ranks / n), None)
        # The teacher's devices keep up where their passes last no longer than a step of the students.
        teacher_ranks = math.ceil((_step_flops(live, step) - flops) * ranks / flops) if placement == "ranks" else 0
        costs.append(
            RankCost(
                sharding=sharding,
                placement=placement,
                num_ranks=ranks,
                memory=highest(memory, [BatchSize.of(batch) for batch in batches]),
                traffic=sent[ranks],
                compute_seconds=compute,
                network_seconds=seconds.get(ranks),
                network_bound_from=bound,
                teacher_ranks=teacher_ranks,
                longest=None if device is None else longest_example(memory, sizes, device.memory_bytes),
            )
        )
    return tuple(costs)


def _step_flops(model: CostModel, step: Sequence[Sequence[ExampleSize]]) -> int:
    examples = [example for batch in step for example in batch]
    return training_flops(model.student, model.teacher, examples, model.training.gradient_checkpointing).total


def what_would_fit(recipe: Recipe, model: CostModel, examples: Examples, limit: int) -> str:
    """Settings with which the longest example fits a device of `limit` bytes; if none do, the length that would fit."""
    sizes = layout_sizes(examples.layouts, model.selection)
    memories = {"": model.memory}
    if not model.training.gradient_checkpointing:
        recomputed = student_activations(recipe.student, model.memory.use_bf16, True)
        memories["training.gradient_checkpointing: true"] = replace(model.memory, student_activations=recomputed)
    # Fewer ranks first, and the cheaper setting: recomputing costs a forward pass, ranks cost money.
    for ranks in (model.memory.num_ranks, *(n for n in _RANKS if n > model.memory.num_ranks)):
        sharded = f"plan={{num_ranks: {ranks}, sharding: fsdp2}}" if ranks > 1 else ""
        for setting, memory in memories.items():
            spread = replace(memory, num_ranks=ranks, sharding="fsdp2" if ranks > 1 else memory.sharding)
            if largest_batch(spread, sizes, limit):
                return f"{' and '.join(filter(None, (setting, sharded)))} fits"
    longest = longest_example(list(memories.values())[-1], sizes, limit)
    advice = (
        f"the longest trace that does is of {longest:,} tokens (data.max_tokens)" if longest else "set training.lora"
    )
    return f"neither recomputing nor up to {_RANKS[-1]} ranks make it fit, since a trace is never split; {advice}"
