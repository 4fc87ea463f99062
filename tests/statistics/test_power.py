import numpy as np
import pytest
from scipy import stats

from leadspan.errors import EvaluationError, SettingsError
from leadspan.settings import validate
from leadspan.statistics.intervals import retention
from leadspan.statistics.power import (
    Claim,
    chance_to_show,
    expected_from,
    problems_needed,
    standard_error,
    variance_terms,
)
from leadspan.statistics.resampling import Bootstrap


def simulate(claim: Claim, plan: tuple[int, int, int], generator: np.random.Generator):
    """Two students' answers under the assumptions of a claim: chances from a beta law, correlation 1."""
    size, samples, seeds = plan
    strength = 1 / claim.between - 1
    chances = generator.beta(claim.accuracy * strength, (1 - claim.accuracy) * strength, size)
    sides = []
    for factor in (claim.retention, 1.0):
        runs = []
        for _ in range(seeds):
            shift = generator.normal(0, claim.seed_sd)
            shifted = np.clip(factor * chances + shift, 0, 1)
            answers = generator.random((size, samples)) < shifted[:, None]
            runs.append({str(i): row for i, row in enumerate(answers.astype(float).tolist())})
        sides.append(runs)
    return sides


def test_one_problem_sort_reduces_to_two_proportions() -> None:
    claim = Claim(between=0, accuracy=0.4, retention=0.95, seed_sd=0)
    expected = (0.38 * 0.62 / 200 + 0.95**2 * 0.4 * 0.6 / 200) ** 0.5 / 0.4
    assert standard_error(claim, 100, 2, 1) == pytest.approx(expected)
    assert standard_error(claim, 50, 2, 2) == pytest.approx(expected)


def test_equal_students_differ_by_nothing_where_answers_are_certain() -> None:
    claim = Claim(between=1, correlation=1, retention=1.0, seed_sd=0)
    assert variance_terms(claim)[0] == pytest.approx(0, abs=1e-12)
    assert chance_to_show(claim, 5, 1, 1) == 1


@pytest.mark.parametrize("num_seeds", [2, 3, 4, 10])
@pytest.mark.parametrize("seed_sd", [0.0035, 0.0049, 0.01, 0.03])
def test_chance_is_noncentral_t_where_only_seeds_vary(num_seeds: int, seed_sd: float) -> None:
    claim = Claim(between=1, correlation=1, retention=0.95, claim=0.91, seed_sd=seed_sd)
    error = seed_sd * ((1 + 0.95**2) / num_seeds) ** 0.5 / 0.5
    assert standard_error(claim, 10**12, 1, num_seeds) == pytest.approx(error)
    freedom = num_seeds - 1
    exact = stats.nct.sf(stats.t.ppf(0.975, freedom), freedom, 0.04 / error)
    assert chance_to_show(claim, 10**12, 1, num_seeds) == pytest.approx(exact, abs=5e-4)


def test_chance_is_normal_where_no_seed_varies_and_answers_are_certain() -> None:
    claim = Claim(between=1, correlation=0.9, retention=0.95, claim=0.9, seed_sd=0)
    error = standard_error(claim, 400, 1, 3)
    expected = stats.norm.cdf(0.05 / error - stats.t.ppf(0.975, 399) * (400 / 399) ** 0.5)
    assert chance_to_show(claim, 400, 1, 3) == pytest.approx(expected, abs=1e-6)
    few = stats.norm.cdf(0.05 / standard_error(claim, 12, 1, 1) - stats.t.ppf(0.975, 11) * (12 / 11) ** 0.5)
    assert chance_to_show(claim, 12, 1, 1) == pytest.approx(few, abs=1e-3)


def test_needed_is_the_fewest_that_suffice() -> None:
    claim = Claim(claim=0.8, retention=1.0, seed_sd=0.005)
    for samples, seeds in ((1, 1), (4, 3), (16, 5)):
        needed = problems_needed(claim, samples, seeds)
        assert needed is not None
        assert chance_to_show(claim, needed, samples, seeds) >= claim.power
        assert chance_to_show(claim, needed - 1, samples, seeds) < claim.power
    assert problems_needed(Claim(seed_sd=0.1), 64, 3) is None
    assert problems_needed(claim, 4, 3, at_most=(problems_needed(claim, 4, 3) or 0) - 1) is None


def test_needed_is_found_where_many_problems_make_the_claim_harder() -> None:
    claim = Claim(seed_sd=0.003, power=0.42)  # of two seeds: what they happen to differ by decides, at many problems
    assert chance_to_show(claim, 1_000_000, 1, 2) < 0.42 < chance_to_show(claim, 10_000, 1, 2)
    needed = problems_needed(claim, 1, 2)
    assert needed is not None and chance_to_show(claim, needed - 1, 1, 2) < 0.42 <= chance_to_show(claim, needed, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "least", "seed_sd"),
    [
        pytest.param((60, 4, 1), 0.8, 0.0, id="one seed"),
        pytest.param((60, 2, 3), 0.62, 0.01, id="three seeds"),
        pytest.param((60, 8, 2), 0.7, 0.02, id="two seeds that differ"),
        pytest.param((60, 8, 3), 0.8, 0.02, id="three seeds that differ"),
    ],
)
def test_chance_is_that_of_the_intervals_themselves(plan: tuple[int, int, int], least: float, seed_sd: float) -> None:
    # beta chances times 0.95 have correlation 1 and `between` of the policy close to the full student's
    claim = Claim(claim=least, retention=0.95, between=0.4, correlation=1, seed_sd=seed_sd)
    generator, shown, runs = np.random.default_rng(5), 0, 150
    for number in range(runs):
        policy, full = simulate(claim, plan, generator)
        found = retention(policy, full, Bootstrap(num_resamples=300, seed=number)).ratio
        shown += found is not None and found.low >= claim.claim
    assert shown / runs == pytest.approx(chance_to_show(claim, *plan), abs=0.1)


@pytest.mark.slow
def test_what_runs_say_is_what_made_them() -> None:
    truth = Claim(accuracy=0.5, retention=0.9, claim=0.8, between=0.3, seed_sd=0.02)
    policy, full = simulate(truth, (3000, 8, 6), np.random.default_rng(2))
    found = expected_from(policy, full, {"claim": 0.8})
    assert found.claim == 0.8
    assert found.accuracy == pytest.approx(0.5, abs=0.03)
    assert found.retention == pytest.approx(0.9, abs=0.06)
    assert found.between == pytest.approx(0.28, abs=0.04)  # the policy's chances vary less: 0.9 of the full student's
    assert found.correlation > 0.97
    assert found.seed_sd == pytest.approx(0.02, abs=0.01)


def test_runs_that_cannot_tell_are_refused() -> None:
    single = {"a": [1.0], "b": [0.0]}
    with pytest.raises(EvaluationError, match="two answers to each"):
        expected_from(single, single, {})
    twice = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    with pytest.raises(EvaluationError, match=r"full, run 2 lacks 1 \['b'\]"):
        expected_from(twice, [twice, {"a": [1.0, 0.0]}], {})
    with pytest.raises(EvaluationError, match="different problems"):
        expected_from({"c": [1.0, 0.0], "b": [0.0, 1.0]}, twice, {})
    alike = {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    with pytest.raises(EvaluationError, match="answers every problem alike"):
        expected_from(alike, alike, {})


def test_a_claim_above_the_truth_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"retention 0.9 is not above the claim 0.95"):
        validate(Claim, {"claim": 0.95, "retention": 0.9}, "power")
    with pytest.raises(SettingsError, match="is not below 1"):
        validate(Claim, {"retention": 1.3, "accuracy": 0.9}, "power")
    # Points instead of a share, and a level whose quantile has no number.
    with pytest.raises(SettingsError, match="seed_sd"):
        validate(Claim, {"seed_sd": 1.0}, "power")
    with pytest.raises(SettingsError, match="level"):
        validate(Claim, {"level": 1 - 2**-53}, "power")
