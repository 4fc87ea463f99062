import numpy as np
import pytest

from leadspan.errors import EvaluationError
from leadspan.statistics.resampling import sign_flip_test


def by_problem(scores: list[float]) -> dict[str, list[float]]:
    return {str(i): [score] for i, score in enumerate(scores)}


def test_five_wins_of_five_are_one_in_sixteen() -> None:
    found = sign_flip_test(by_problem([1.0] * 5 + [0.5] * 3), by_problem([0.0] * 5 + [0.5] * 3))
    assert (found.p_value, found.is_exact, found.num_flips) == (2 / 32, True, 32)
    assert found.difference == 5 / 8


def test_no_difference_is_no_evidence() -> None:
    same = by_problem([1.0, 0.0, 1.0])
    assert sign_flip_test(same, same).p_value == 1
    one_more = sign_flip_test(by_problem([1.0, 1.0, 1.0]), same)  # either sign is as likely
    assert (one_more.p_value, one_more.num_flips, one_more.is_exact) == (1, 2, True)
    assert one_more.difference == pytest.approx(1 / 3)


def test_random_flips_agree_with_the_binomial() -> None:
    # 14 of 20 problems won: two-sided sign test 0.1153
    left, right = by_problem([1.0] * 14 + [0.0] * 6), by_problem([0.0] * 14 + [1.0] * 6)
    found = sign_flip_test(left, right)
    assert not found.is_exact
    assert found.p_value == pytest.approx(0.1153, abs=0.01)


@pytest.mark.slow
def test_p_values_are_uniform_under_the_null() -> None:
    generator, rejected = np.random.default_rng(1), 0
    for _ in range(300):
        left, right = (by_problem((generator.random(25) < 0.5).astype(float).tolist()) for _ in range(2))
        rejected += sign_flip_test(left, right, num_flips=400).p_value <= 0.1
    assert 10 <= rejected <= 45  # at most 30 expected; the test is discrete, so fewer


def test_other_problems_are_refused() -> None:
    with pytest.raises(EvaluationError, match="different problems"):
        sign_flip_test({"a": [1.0]}, {"b": [1.0]})
