from collections.abc import Sequence

import numpy as np
import pytest

from leadspan.statistics.intervals import retention, simultaneous_retention
from leadspan.statistics.resampling import Bootstrap, Runs, Scores

POLICIES = ("a", "b", "c", "d", "e", "f")


def answers(chances: Sequence[float] | np.ndarray, generator: np.random.Generator, samples: int = 1) -> Scores:
    """One run that solves problems with these chances."""
    drawn = generator.random((len(chances), samples)) < np.asarray(chances)[:, None]
    return {str(i): row for i, row in enumerate(drawn.astype(float).tolist())}


def study(generator: np.random.Generator, kept: float, num_problems: int = 60) -> dict[str, tuple[Runs, Runs]]:
    """Six policies that truly keep the same share of one full student's chances."""
    chances = generator.uniform(0.3, 0.9, num_problems)
    full = answers(chances, generator)
    return {name: (answers(kept * chances, generator), full) for name in POLICIES}


def test_a_single_policy_has_its_own_interval() -> None:
    pairs = study(np.random.default_rng(0), 0.9)
    found = simultaneous_retention({"a": pairs["a"]})["a"]
    alone = retention(*pairs["a"]).ratio
    assert alone is not None and (found.low, found.high, found.level_alone) == (alone.low, alone.high, 0.95)


def test_policies_that_move_alike_cost_nothing_and_others_no_more_than_bonferroni() -> None:
    pairs = study(np.random.default_rng(0), 0.9)
    alike = simultaneous_retention(dict.fromkeys(POLICIES, pairs["a"]))
    assert alike["a"].level_alone == pytest.approx(0.95, abs=0.002)
    found = simultaneous_retention(pairs)
    # the full student's part is common to all, so that less than six independent tests is asked: 1 - 0.95^(1/6)
    assert 0.98 < found["a"].level_alone < 0.95 ** (1 / 6) < 1 - 0.05 / 6
    for name, (policy, full) in pairs.items():
        alone = retention(policy, full).ratio
        assert alone is not None and found[name].low < alone.low < alone.value == found[name].value < alone.high
        assert found[name].level == 0.95 and found[name].num_policies == 6


@pytest.mark.slow
def test_all_intervals_hold_a_resample_together_as_often_as_they_say() -> None:
    """The joint share is counted anew, from draws of problems made here."""
    pairs = study(np.random.default_rng(3), 0.8)
    found = simultaneous_retention(pairs)
    generator = np.random.default_rng(99)
    table = {name: np.array(list(policy.values()))[:, 0] for name, (policy, _) in pairs.items()}  # type: ignore[union-attr]
    full = np.array(list(pairs["a"][1].values()))[:, 0]  # type: ignore[union-attr]
    together, singly = [], []
    for _ in range(4000):
        drawn = generator.integers(len(full), size=len(full))
        inside = [
            found[name].low <= table[name][drawn].mean() / full[drawn].mean() <= found[name].high for name in table
        ]
        together.append(all(inside))
        singly.append(np.mean(inside))
    assert np.mean(together) == pytest.approx(0.95, abs=0.015)
    assert np.mean(singly) == pytest.approx(found["a"].level_alone, abs=0.005)


def test_a_policy_that_hardly_differs_is_not_taken_for_certain() -> None:
    """Resamples of equal scores are all equal: they do not tell how many policies there are, Bonferroni does."""
    full = answers(np.full(40, 0.7), np.random.default_rng(0))
    found = simultaneous_retention(dict.fromkeys(POLICIES, (full, full)))["a"]
    alone = retention(full, full).ratio
    assert alone is not None and found.level_alone == pytest.approx(1 - 0.05 / 6)
    assert found.low < alone.low and found.high > alone.high


def test_a_ratio_that_is_refused_alone_has_no_interval_with_others() -> None:
    generator = np.random.default_rng(0)
    full = answers(np.full(40, 0.05), generator)
    assert simultaneous_retention(dict.fromkeys(POLICIES, (full, full))) == {}
    assert simultaneous_retention({}) == {}


@pytest.mark.slow
def test_of_six_policies_at_the_target_hardly_any_study_shows_one() -> None:
    """All truly keep 90 %; "at least 90 %" of one of them is a mistake, and single intervals make it too often."""
    generator, bootstrap = np.random.default_rng(8), Bootstrap(num_resamples=3840)  # the least that six policies take
    alone, together, num_studies = 0, 0, 50
    for _ in range(num_studies):
        pairs = study(generator, 0.9)
        ratios = [retention(policy, full, bootstrap).ratio for policy, full in pairs.values()]
        alone += any(ratio is not None and ratio.low >= 0.9 for ratio in ratios)
        together += any(ratio.low >= 0.9 for ratio in simultaneous_retention(pairs, bootstrap).values())
    assert together <= 0.06 * num_studies
    assert alone >= 0.08 * num_studies  # what is guarded against
