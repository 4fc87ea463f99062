from dataclasses import replace
from itertools import combinations

import pytest

from leadspan.costs.flops import ExampleSize
from leadspan.costs.memory import BatchSize
from leadspan.planning.fitting import largest_batch, largest_budget
from toy_shapes import MODEL


@pytest.mark.parametrize("limit", [0, 1000, 3000, 10_000, 10**9])
def test_largest_batch_fits_and_one_more_does_not(limit: int) -> None:
    examples = [ExampleSize(tokens, tokens) for tokens in (3, 30, 10, 20)]
    found = largest_batch(MODEL, examples, limit)
    ordered = sorted((e.tokens for e in examples), reverse=True)

    def needed(number: int) -> int:
        tokens = sum(ordered[:number])
        return MODEL.peak(BatchSize(tokens, tokens)).total

    assert found == 0 or needed(found) <= limit
    assert found == len(examples) or needed(found + 1) > limit


@pytest.mark.parametrize("limit", [0, 1000, 3000, 10_000, 10**9])
def test_every_pack_within_the_largest_budget_fits(limit: int) -> None:
    examples = [ExampleSize(*size) for size in ((3, 3), (30, 9), (10, 2), (20, 20), (8, 8))]
    budget = largest_budget(MODEL, examples, limit)
    assert (budget == 0) == (largest_batch(MODEL, examples, limit) == 0)
    packs = [pack for number in range(1, 6) for pack in combinations(examples, number)]
    for pack in packs if budget else []:
        size = BatchSize.of(pack)
        assert size.tokens > budget or MODEL.peak(size).total <= limit
    assert budget in (0, sum(e.tokens for e in examples)) or MODEL.peak(BatchSize(budget + 1, budget + 1)).total > limit


def test_a_batch_fits_whichever_examples_are_in_it() -> None:
    examples = [ExampleSize(100, 1), ExampleSize(99, 90), ExampleSize(98, 95)]
    model = replace(MODEL, chunk_tokens=1000)
    needs = [model.peak(BatchSize.of(pair)).total for pair in combinations(examples, 2)]
    assert needs[0] < needs[2]  # the two longest take less than two others
    assert largest_batch(model, examples, needs[2] - 1) < 2 <= largest_batch(model, examples, 2 * needs[2])
