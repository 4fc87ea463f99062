"""The largest micro-batch that fits a device."""

import math
from collections.abc import Callable, Sequence

from leadspan.costs.flops import ExampleSize
from leadspan.costs.memory import BatchSize, MemoryModel

_MOST_TOKENS = 1 << 20  # no model has positions for more


def largest_batch(model: MemoryModel, examples: Sequence[ExampleSize], limit: int) -> int:
    """How many examples fit into one micro-batch of `limit` bytes, whichever they are: the most expensive are assumed.

    At most the number of the examples; 0 when not even the most expensive one fits.
    """
    # Sizes compare by their tokens first, and the longest examples take most.
    ordered = sorted(examples, reverse=True)
    return _largest(len(ordered), lambda number: model.peak(BatchSize.of(ordered[:number])).total <= limit)


def largest_budget(model: MemoryModel, examples: Sequence[ExampleSize], limit: int) -> int:
    """The largest token budget of a micro-batch that fits, whatever is packed into it.

    Assumes packs of examples as long as the longest, with as many weighted and scored positions per token as the
    densest example. An example longer than the budget is a pack by itself. The budget is at most the tokens of all
    examples; 0 when the most expensive one does not fit into `limit` bytes alone.
    """
    used = [example for example in examples if example.tokens]
    # The worst density of any example: a pack may consist of such examples alone.
    weighted, scored = (max(example[i] / example.tokens for example in used) for i in (1, 2))
    longest = max(example.tokens for example in used)

    def does_fit(budget: int) -> bool:
        num_longest, rest = divmod(budget, longest)
        lengths = (rest,) * (rest > 0) + (longest,) * num_longest
        size = BatchSize(budget, math.ceil(weighted * budget), math.ceil(scored * budget), lengths)
        return model.peak(size).total <= limit

    num_tokens = _largest(sum(example.tokens for example in used), does_fit)
    # An example is never split, so the most expensive one must fit whatever the budget.
    return num_tokens if largest_batch(model, examples, limit) else 0


def longest_example(model: MemoryModel, examples: Sequence[ExampleSize], limit: int) -> int:
    """Tokens of the longest example that fits by itself, with as many positions per token as the densest; or 0."""
    weighted, scored = (max(example[i] / max(1, example.tokens) for example in examples) for i in (1, 2))

    def does_fit(tokens: int) -> bool:
        size = BatchSize(tokens, math.ceil(weighted * tokens), math.ceil(scored * tokens))
        return model.peak(size).total <= limit

    return _largest(_MOST_TOKENS, does_fit)


def _largest(high: int, does_fit: Callable[[int], bool]) -> int:
    """The largest number up to `high` that fits, 0 where none does."""
    # Bisection is right because the peak grows with the batch.
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if does_fit(middle) else (low, middle - 1)
    return low
