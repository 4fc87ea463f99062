import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadspan.data.packing import best_fit, pack, plan_by_tokens, plan_staged
from leadspan.data.truncation import Lead
from leadspan.errors import SettingsError
from toys import toy_examples


def test_best_fit_by_hand() -> None:
    assert best_fit([6, 5, 4, 3, 2], 10, range(5)) == [[0, 2], [1, 3, 4]]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(50, 120), st.integers(0, 3))
def test_packs_hold_every_example_once_within_the_budget(lengths: list[int], budget: int, seed: int) -> None:
    packs = plan_by_tokens(lengths, budget, seed)
    assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in pack) <= budget for pack in packs)


def test_an_example_above_the_budget_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"tokens_per_batch = 10: the longest example has 11 tokens"):
        best_fit([3, 11], 10, range(2))


@given(st.integers(1, 30), st.sampled_from([1, 2, 4, 8]), st.integers(0, 5))
def test_a_step_has_the_same_examples_however_it_is_split(num: int, size: int, seed: int) -> None:
    lengths = [5] * num
    whole = plan_staged(lengths, [5], seed, 8)
    parts = plan_staged(lengths, [5 * 8 // size], seed, size)
    assert [i for batch in whole for i in batch] == [i for batch in parts for i in batch]
    assert set(plan_staged(lengths, [1], seed, num)[0]) == set(range(num))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 30), st.integers(0, 3))
def test_one_stage_of_packs_is_the_plan_by_tokens(lengths: list[int], number: int, seed: int) -> None:
    expected: list[list[int]] = []
    for epoch in range(number):  # at least one pack an epoch
        order = list(range(len(lengths)))
        random.Random(f"{seed}:{epoch}").shuffle(order)
        packs = best_fit(lengths, 60, order)
        random.Random(f"{seed}:{epoch}").shuffle(packs)
        assert epoch or packs == plan_by_tokens(lengths, 60, seed)
        expected += packs
    assert plan_staged(lengths, [number], seed, None, 60) == expected[:number]


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 40)), min_size=1, max_size=20),
    st.lists(st.integers(1, 6), min_size=2, max_size=2),
    st.sampled_from([None, 1, 3]),
    st.integers(0, 3),
)
def test_stages_share_one_stream_of_epochs(
    traces: list[tuple[int, int]], batches: list[int], size: int | None, seed: int
) -> None:
    num = len(traces)
    lengths = [max(first, int(i == 0)) for i, (first, _) in enumerate(traces)] + [second for _, second in traces]
    plan = plan_staged(lengths, batches, seed, size, 60)
    assert len(plan) == sum(batches)
    assert all(size is None or len(batch) == size for batch in plan)
    for number, batch in enumerate(plan):
        stage = int(number >= batches[0])
        assert all(stage * num <= i < (stage + 1) * num and lengths[i] for i in batch)
    first, second = ([i % num for batch in part for i in batch] for part in (plan[: batches[0]], plan[batches[0] :]))
    times = [first.count(trace) for trace in range(num) if lengths[trace]]
    assert max(times) - min(times) <= 1  # reshuffled epochs: none is seen a second time before all are seen once
    if all(lengths):
        times = [(first + second).count(trace) for trace in range(num)]
        assert max(times) - min(times) <= 1  # an epoch goes on where the first stage ended


def test_more_batches_go_on_into_the_next_epoch() -> None:
    plan = plan_staged([4, 4, 4], [5], 0, None, 8)
    assert len(plan) == 5 and sorted(plan[0] + plan[1]) == [0, 1, 2] and sorted(plan[2] + plan[3]) == [0, 1, 2]


def test_packed_row_by_hand(tmp_path) -> None:
    examples, _ = toy_examples(tmp_path, Lead(p=0.5))
    first, second = examples[0], examples[1]
    batch = pack([first, second])
    n = len(first.input_ids)
    assert batch["borders"] == (0, n, n + len(second.input_ids))
    assert batch["position_ids"][0].tolist() == [*range(n), *range(len(second.input_ids))]
    assert batch["input_ids"][0].tolist() == [*first.input_ids, *second.input_ids]
    weights = [*first.weights, *second.weights]
    targets = [i for i, w in enumerate(weights) if w > 0]
    assert batch["positions"].tolist() == [i - 1 for i in targets]
    assert batch["labels"].tolist() == [batch["input_ids"][0, i].item() for i in targets]
    assert 0 not in batch["positions"] + 1 and n not in batch["positions"] + 1  # first tokens are predicted by nothing
