"""Other ways to run a recipe: what fits a device, a rank of several, and what each technique saves.

The size of a step is fixed, so more ranks share its micro-batches: the work of a rank shrinks with their number, its
traffic does not. Sending is assumed to overlap with computing, and to limit the step where it takes longer.

A saving has four causes: the cut, the chunked loss, a store of the teacher's targets, packing. They are switched on one
by one over a naive run: whole sequences, padded to the longest of each batch, logits of all positions of both models at
once, a live teacher. What one of them saves depends on what is on already (a store saves less of what a cut has
shortened), so its share is its Shapley value: the mean over all orders in which the four can be switched on. The shares
add up to the whole saving. Source: Shapley, "A value for n-person games", 1953.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from leadspan.costs.flops import ExampleSize, ModelShape, training_flops
from leadspan.costs.memory import BatchSize, MemoryByPart, MemoryModel, Sharding, TeacherPlacement, Traffic, traffic
from leadspan.data.examples import Examples
from leadspan.data.supervision import layout_sizes
from leadspan.models.activations import activation_bytes
from leadspan.planning.prediction import CostModel, planned, with_store
from leadspan.recipe import Recipe

Measure = Literal["cut", "chunked_loss", "store", "packing"]
MEASURES: tuple[Measure, ...] = ("cut", "chunked_loss", "store", "packing")
On = frozenset[Measure]
_MOST_TOKENS = 1 << 20  # no model has positions for more
# Ranks to try where an example does not fit: powers of two, as devices are rented.
_RANKS = (2, 4, 8, 16, 32, 64)


def largest_batch(model: MemoryModel, examples: Sequence[ExampleSize], limit: float) -> int:
    """How many examples fit into one micro-batch of `limit` bytes, whichever they are.

    Of `n` examples as many tokens are assumed as the `n` longest have, and as many weighted and scored positions as
    those with most of them have. At most the number of the examples; 0 when not even one fits.
    """
    # Each for itself: a short example may have more positions with a loss than a long one.
    columns = [sorted(sizes, reverse=True) for sizes in zip(*examples, strict=True)]

    def batch_of(number: int) -> BatchSize:
        tokens, weighted, scored = (sizes[:number] for sizes in columns)
        return BatchSize(sum(tokens), sum(weighted), sum(scored), lengths=tuple(tokens))

    return _largest(model, limit, len(examples), batch_of)


def largest_budget(model: MemoryModel, examples: Sequence[ExampleSize], limit: float) -> int:
    """The largest token budget of a micro-batch that fits, whatever is packed into it.

    Assumes packs of examples as long as the longest, with as many weighted and scored positions per token as the
    densest example. Training refuses examples that are longer than the budget. The budget is at most the tokens of all
    examples; 0 when not one fits into `limit` bytes alone.
    """
    used = [example for example in examples if example.tokens]
    # The worst density of any example: a pack may consist of such examples alone.
    weighted, scored = (max(example[i] / example.tokens for example in used) for i in (1, 2))
    longest = max(example.tokens for example in used)

    def batch_of(budget: int) -> BatchSize:
        num_longest, rest = divmod(budget, longest)
        lengths = (rest,) * (rest > 0) + (longest,) * num_longest
        return BatchSize(budget, math.ceil(weighted * budget), math.ceil(scored * budget), lengths)

    # An example is never split, so the most expensive one must fit whatever the budget.
    if not largest_batch(model, examples, limit):
        return 0
    return _largest(model, limit, sum(example.tokens for example in used), batch_of)


def longest_example(model: MemoryModel, examples: Sequence[ExampleSize], limit: float) -> int:
    """Tokens of the longest example that fits by itself, with as many positions per token as the densest; or 0."""
    weighted, scored = (max(example[i] / max(1, example.tokens) for example in examples) for i in (1, 2))
    return _largest(model, limit, _MOST_TOKENS, lambda n: BatchSize(n, math.ceil(weighted * n), math.ceil(scored * n)))


def _largest(model: MemoryModel, limit: float, high: int, batch_of: Callable[[int], BatchSize]) -> int:
    """The largest number up to `high` whose batch fits into `limit` bytes, 0 where none does."""
    # Bisection is right because the peak grows with the batch.
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        does_fit = model.peak(batch_of(middle)).total <= limit
        low, high = (middle, high) if does_fit else (low, middle - 1)
    return low


@dataclass(frozen=True, slots=True)
class RankCost:
    """One way to place a run on `num_ranks` devices that train."""

    sharding: Sharding  # of the student, and of a teacher on the same devices
    placement: TeacherPlacement | None  # of the teacher; None without one
    num_ranks: int  # devices that train; those of a teacher on its own ranks come on top
    memory: MemoryByPart  # of one rank, at the highest moment of the largest micro-batch
    traffic: Traffic  # of one rank in a step
    compute_seconds: float | None  # of one rank in a step, at the stated share of the peak; None where none is stated
    network_seconds: float | None  # of the traffic, at the stated bandwidth; None where none is stated
    # Fewest ranks, a power of two, from which sending takes longer than computing; None where no number of ranks that
    # can share a step is, or a figure is missing.
    network_bound_from: int | None
    teacher_ranks: int  # devices of the teacher that keep up with the students, on its own ranks; else 0
    longest: int | None  # longest example that fits the device by itself, tokens; None without a device


def rank_costs(live: CostModel, examples: Examples, stored: CostModel) -> tuple[RankCost, ...]:
    """Every sharding with every placement of a live teacher, where one is known, on the ranks of the plan.

    `stored` has the costs with a store: of hidden states every rank holds the teacher's head.
    """
    machine, ranks, device = live.machine, live.machine.num_ranks, live.machine.found_device
    has_teacher = live.memory.teacher is not None and live.memory.teacher_activations is not None
    placements: tuple[TeacherPlacement | None, ...] = ("beside", "ranks", "store") if has_teacher else (None,)
    shardings: tuple[Sharding, ...] = ("ddp", "fsdp2")
    (plan, batches), sizes = planned(live, examples), layout_sizes(examples.layouts, live.selection)
    step = batches[: plan.accumulation * ranks]
    # A step is shared by as many ranks as it has micro-batches, at most.
    numbers = [2**i for i in range(1, len(step).bit_length())]
    costs: list[RankCost] = []
    # A student whose teacher runs on other ranks receives its hidden states and holds its head, as with a store.
    apart = {"ranks": with_store(live, keeps_head=True), "store": stored}
    for sharding, placement in itertools.product(shardings, placements):
        model = apart.get(placement or "", live)
        memory, teacher = replace(model.memory, sharding=sharding), None if placement is None else live.memory.teacher
        sent: dict[int, Traffic] = {}
        for n in (ranks, *numbers):
            of_rank = [BatchSize.of(batch) for batch in step[::n]]
            sent[n] = traffic(replace(memory, num_ranks=n), teacher, placement or "store", of_rank)
        flops, compute, bound = model.flops(step).total, None, None
        if device is not None and machine.utilisation is not None:
            compute = flops / (ranks * device.peak_flops * machine.utilisation)
        seconds = {n: sent[n].total / (machine.bandwidth_gb * 1e9) for n in sent} if machine.bandwidth_gb else {}
        if compute is not None and seconds:
            bound = next((n for n in numbers if seconds[n] > compute * ranks / n), None)
        # The teacher's devices keep up where their passes last no longer than a step of the students.
        teacher_ranks = math.ceil((live.flops(step).total - flops) * ranks / flops) if placement == "ranks" else 0
        costs.append(
            RankCost(
                sharding=sharding,
                placement=placement,
                num_ranks=ranks,
                memory=memory.peak(*(BatchSize.of(batch) for batch in batches)),
                traffic=sent[ranks],
                compute_seconds=compute,
                network_seconds=seconds.get(ranks),
                network_bound_from=bound,
                teacher_ranks=teacher_ranks,
                longest=None if device is None else longest_example(memory, sizes, device.memory_bytes),
            )
        )
    return tuple(costs)


def what_would_fit(recipe: Recipe, model: CostModel, examples: Examples, limit: float) -> str:
    """Settings with which the longest example fits a device of `limit` bytes; if none do, the length that would fit."""
    sizes = layout_sizes(examples.layouts, model.selection)
    memories = {"": model.memory}
    if not model.training.gradient_checkpointing:
        recomputed = activation_bytes(recipe.student, model.memory.use_bf16, True)
        memories["training.gradient_checkpointing: true"] = replace(model.memory, student_activations=recomputed)
    # Fewer ranks first, and the cheaper setting: recomputing costs a forward pass, ranks cost money.
    for ranks in (model.memory.num_ranks, *(n for n in _RANKS if n > model.memory.num_ranks)):
        sharded = f"plan.num_ranks={ranks} plan.sharding=fsdp2" if ranks > 1 else ""
        if model.training.batching.batches_per_step % ranks:
            sharded += f" with a multiple of {ranks} batches in a step"
        for setting, memory in memories.items():
            spread = replace(memory, num_ranks=ranks, sharding="fsdp2" if ranks > 1 else memory.sharding)
            if largest_batch(spread, sizes, limit):
                return f"{' and '.join(filter(None, (setting, sharded)))} fits"
    longest = longest_example(list(memories.values())[-1], sizes, limit)
    advice = f"the longest trace that fits has {longest:,} tokens (data.max_tokens)" if longest else "set training.lora"
    return f"neither recomputing nor up to {_RANKS[-1]} ranks make it fit, since a trace is never split; {advice}"


@dataclass(frozen=True, slots=True)
class Saving:
    """How much of one cost the measures save: its value in the naive run and with all four.

    `alone` are the shares of the naive cost that each saves by itself, `shares` those that are each one's part in the
    whole saving; they add up to it.
    """

    naive: float
    all_on: float
    alone: dict[Measure, float]
    shares: dict[Measure, float]


class Workload(NamedTuple):
    """The micro-batches of a run, whole and cut: the size of each example in each batch."""

    uncut: Sequence[Sequence[ExampleSize]]
    cut: Sequence[Sequence[ExampleSize]]


def saving(cost: Callable[[On], float]) -> Saving:
    """Attribute a saving to the measures, from the cost with a set of them switched on."""
    subsets = [On(measures) for size in range(5) for measures in itertools.combinations(MEASURES, size)]
    costs = {on: cost(on) for on in subsets}
    naive = costs[On()]
    unit = naive or 1.0  # nothing can be saved of nothing
    shares: dict[Measure, float] = dict.fromkeys(MEASURES, 0.0)
    # 24 orders, 16 subsets: exact, and cheap because `costs` has every subset once.
    for order in itertools.permutations(MEASURES):
        for number, measure in enumerate(order):
            before, after = costs[On(order[:number])], costs[On(order[: number + 1])]
            shares[measure] += (before - after) / unit / math.factorial(len(MEASURES))
    alone: dict[Measure, float] = {m: (naive - costs[On([m])]) / unit for m in MEASURES}
    return Saving(naive, costs[On(MEASURES)], alone, shares)


def flops_with(
    on: On,
    load: Workload,
    student: ModelShape,
    teacher: ModelShape | None,
    recompute: bool,
    stored_teacher: ModelShape | None = None,
) -> int:
    """Operations of a run with some of the measures; padding and positions without a loss count as they would.

    `stored_teacher` is what a store leaves of the teacher: its head where hidden states are stored, else nothing.
    """
    examples = [example for batch in _shaped(on, load) for example in batch]
    return training_flops(student, stored_teacher if "store" in on else teacher, examples, recompute).total


def memory_with(on: On, load: Workload, model: MemoryModel, stored_teacher: ModelShape | None = None) -> int:
    """Peak memory of a run with some of the measures.

    Without the chunked loss, logits of all positions are there at once: in float32, the student's and their gradient,
    and those of a live teacher. `stored_teacher` is as in `flops_with`.
    """
    if "store" in on:
        model = replace(model, teacher=stored_teacher, teacher_activations=None)
    peak = 0
    for size in map(BatchSize.of, _shaped(on, load)):
        # One chunk of all weighted positions is the unchunked loss.
        of_batch = model if "chunked_loss" in on else replace(model, chunk_tokens=size.weighted)
        peak = max(peak, of_batch.peak(size).total)
    return peak


def _shaped(on: On, load: Workload) -> list[list[ExampleSize]]:
    """Batches as the measures leave them."""
    shaped = []
    for batch in load.cut if "cut" in on else load.uncut:
        # Without packing all examples are as long as their batch's longest. Without the chunked loss every position is
        # projected, once, so that a selection by scores needs no pass of its own.
        longest = max(example.tokens for example in batch)
        padded = [example if "packing" in on else example._replace(tokens=longest) for example in batch]
        shaped.append(padded if "chunked_loss" in on else [ExampleSize(size.tokens, size.tokens) for size in padded])
    return shaped
