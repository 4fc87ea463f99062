from dataclasses import replace

import pytest

from leadspan.costs.flops import ExampleSize, head_only, training_flops
from leadspan.costs.memory import ActivationBytes, BatchSize
from leadspan.planning.fitting import MEASURES, On, Workload, flops_with, memory_with, saving
from toy_shapes import MODEL, SHAPE, TEACHER


def sizes(*examples: tuple[int, int]) -> list[ExampleSize]:
    return [ExampleSize(*example) for example in examples]


WHOLE = [sizes((10, 8), (4, 3)), sizes((6, 6))]
CUT = [sizes((5, 3), (2, 1)), sizes((3, 3))]
LOAD = Workload(uncut=WHOLE, cut=CUT)


def test_shares_add_up_and_a_measure_that_does_nothing_gets_nothing() -> None:
    prices = {"cut": 50, "store": 30}
    found = saving(lambda on: 100 - sum(prices.get(measure, 0) for measure in on))
    assert found.naive == 100 and found.all_on == 20
    expected = pytest.approx({"cut": 0.5, "chunked_loss": 0, "store": 0.3, "packing": 0})
    assert found.shares == expected and found.alone == expected


def test_shapley_shares_of_two_that_multiply() -> None:
    found = saving(lambda on: 100 * (0.5 if "cut" in on else 1) * (0.4 if "store" in on else 1))
    assert found.alone["cut"] == 0.5 and found.alone["store"] == 0.6
    # cut first 50, second 20; store first 60, second 30
    assert found.shares["cut"] == pytest.approx(0.35) and found.shares["store"] == pytest.approx(0.45)


def test_nothing_can_be_saved_of_nothing() -> None:
    assert set(saving(lambda on: 0).shares.values()) == {0}


def test_operations_of_the_naive_run_and_of_ours_by_hand() -> None:
    naive = sizes((10, 10), (10, 10), (6, 6))
    assert flops_with(On(), LOAD, SHAPE, TEACHER, True) == training_flops(SHAPE, TEACHER, naive, True).total
    ours = sizes((5, 3), (2, 1), (3, 3))
    assert flops_with(On(MEASURES), LOAD, SHAPE, TEACHER, True) == training_flops(SHAPE, None, ours, True).total
    head = head_only(TEACHER.hidden_size, TEACHER.vocab_size)
    assert flops_with(On(MEASURES), LOAD, SHAPE, TEACHER, True, head) == training_flops(SHAPE, head, ours, True).total
    assert flops_with(On(["packing", "chunked_loss"]), LOAD, SHAPE, TEACHER, False) == (
        training_flops(SHAPE, TEACHER, sizes((10, 8), (4, 3), (6, 6)), False).total
    )


def test_memory_falls_with_every_measure() -> None:
    live = replace(MODEL, teacher=TEACHER, teacher_activations=ActivationBytes(retained=16, peak=50), chunk_tokens=1)
    naive = memory_with(On(), LOAD, live)
    for measure in MEASURES:
        assert memory_with(On([measure]), LOAD, live) < naive
    assert memory_with(On(["store"]), LOAD, live, head_only(TEACHER.hidden_size, TEACHER.vocab_size)) > (
        memory_with(On(["store"]), LOAD, live)
    )
    stored = replace(live, teacher=None, teacher_activations=None)
    assert memory_with(On(MEASURES), LOAD, live) == stored.peak(BatchSize(tokens=7, weighted=4)).total
