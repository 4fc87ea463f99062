"""Attributes a saving to its causes: the cut, the chunked loss, a store of the teacher's targets, packing.

The four are switched on one by one over a naive run: whole sequences, padded to the longest of each batch, logits of
all positions of both models at once, a live teacher. What one of them saves depends on what is on already (a store
saves less of what a cut has shortened), so its share is its Shapley value: the mean over all orders in which the four
can be switched on. The shares add up to the whole saving. Source: Shapley, "A value for n-person games", 1953.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from leadspan.costs.flops import ExampleSize, ModelShape, training_flops
from leadspan.costs.memory import BatchSize, MemoryModel

Measure = Literal["cut", "chunked_loss", "store", "packing"]
MEASURES: tuple[Measure, ...] = ("cut", "chunked_loss", "store", "packing")
On = frozenset[Measure]


@dataclass(frozen=True, slots=True)
class Saving:
    """How much of one cost the measures save.

    Attributes:
        naive: The cost of the naive run.
        all_on: The cost with all four.
        alone: Share of the naive cost that each saves by itself.
        shares: Share of the naive cost that is each one's part in the whole saving; they add up to it.
    """

    naive: float
    all_on: float
    alone: dict[Measure, float]
    shares: dict[Measure, float]


@dataclass(frozen=True, slots=True)
class Workload:
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
    batches = load.cut if "cut" in on else load.uncut
    shaped = []
    is_chunked = "chunked_loss" in on
    for batch in batches:
        # Without packing all examples are as long as their batch's longest. Without the chunked loss every position is
        # projected, once, so that a selection by scores needs no pass of its own.
        longest = max(example.tokens for example in batch)
        padded = [example if "packing" in on else example._replace(tokens=longest) for example in batch]
        shaped.append([size if is_chunked else ExampleSize(size.tokens, size.tokens) for size in padded])
    return shaped
