import itertools

import numpy as np
import pytest
from scipy import stats

from leadspan.errors import EvaluationError
from leadspan.statistics.intervals import (
    NEAR_ZERO,
    base_normalised_retention,
    bootstrap_mean,
    bootstrap_share,
    retention,
    runs_mean,
    wilson,
)
from leadspan.statistics.resampling import Bootstrap, resample

FINE = Bootstrap(num_resamples=20_000)


def by_problem(*scores: list[float]) -> dict[str, list[float]]:
    return {f"p{number}": samples for number, samples in enumerate(scores)}


def halves(num_right: int, num_wrong: int) -> dict[str, list[float]]:
    return by_problem(*[[1.0]] * num_right, *[[0.0]] * num_wrong)


@pytest.mark.parametrize(
    ("mean", "num_trials", "low", "high"),
    [
        pytest.param(0.0, 10, 0.0, 0.277533, id="none of ten"),
        pytest.param(0.5, 10, 0.236593, 0.763407, id="five of ten"),
        pytest.param(1.0, 30, 0.886487, 1.0, id="all of thirty"),
    ],
)
def test_wilson(mean: float, num_trials: int, low: float, high: float) -> None:
    interval = wilson(mean, num_trials)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-6)
    assert interval.value == mean


def test_mean_is_over_problems_not_samples() -> None:
    assert bootstrap_mean([[1], [0, 0, 0]]).value == 0.5


def test_one_sample_each_agrees_with_the_normal_interval() -> None:
    interval = bootstrap_mean([[1]] * 80 + [[0]] * 120, FINE)
    half = 1.959964 * (0.4 * 0.6 / 200) ** 0.5
    assert interval.value == 0.4
    assert (interval.low, interval.high) == pytest.approx((0.4 - half, 0.4 + half), abs=0.006)


@pytest.mark.slow
def test_variance_is_that_of_the_problems_means() -> None:
    scores = by_problem(*[[1, 0], [1, 1, 1, 0], [0], [0.5, 0.5]] * 3)
    means = np.array([0.5, 0.75, 0, 0.5])
    (model,) = resample({"model": scores}, Bootstrap(num_resamples=200_000))
    assert model.draws.mean() == pytest.approx(means.mean(), abs=0.002)
    # stretched by 12 / chi2, whose mean is 12 / (11 - 2)
    assert model.draws.var() == pytest.approx(means.var() / 12 * 12 / 9, rel=0.03)


def test_variance_holds_the_noise_of_samples_once() -> None:
    # all problems equally hard: the variance of the mean is p (1 - p) / (P n)
    scores = (np.random.default_rng(1).random((400, 4)) < 0.3).astype(float).tolist()
    (model,) = resample({"model": by_problem(*scores)}, Bootstrap(num_resamples=4000))
    assert model.draws.var() == pytest.approx(0.21 / 1600, rel=0.15)


def test_quantiles_are_those_of_all_resamples_stretched() -> None:
    policy, full = [1.0, 0.0, 0.5, 1.0], [1.0, 1.0, 0.25, 0.0]
    picks = list(itertools.product(range(4), repeat=4))
    distances = np.array([np.mean([policy[p] - full[p] for p in pick]) for pick in picks]) - 0.0625
    sides = {name: by_problem(*[[s] for s in of]) for name, of in (("policy", policy), ("full", full))}
    left, right = resample(sides, Bootstrap(num_resamples=50_000))
    assert np.mean(policy) - np.mean(full) == 0.0625
    for share in (0.1, 0.9):
        end = np.quantile(left.draws - right.draws, share) - 0.0625
        # distance * sqrt(4 / chi2) is beyond the end where chi2 is below 4 (distance / end)^2, on the end's side
        beyond = stats.chi2.cdf(4 * (distances / end) ** 2, 3) * (distances * end > 0)
        assert beyond.mean() == pytest.approx(0.1, abs=0.004)


def test_few_problems_have_wider_intervals_than_resamples_show() -> None:
    # where resamples are about normal: Student's t and the unbiased variance of 20 problems
    scores = [[0.45 + i / 200] for i in range(20)]
    error = float(np.std(scores, ddof=1)) / 20**0.5
    interval = bootstrap_mean(scores, FINE)
    assert (interval.high - interval.low) / 2 == pytest.approx(2.093 * error, rel=0.03)


def test_same_seed_same_interval_and_other_seed_other() -> None:
    scores = np.random.default_rng(1).random((25, 3)).tolist()
    assert bootstrap_mean(scores) == bootstrap_mean(scores)
    assert bootstrap_mean(scores) != bootstrap_mean(scores, Bootstrap(seed=1))


def test_draws_do_not_depend_on_further_models() -> None:
    generator = np.random.default_rng(2)
    one, two = (by_problem(*generator.random((11, 3)).tolist()) for _ in range(2))
    (alone,) = resample({"one": one}, Bootstrap(num_resamples=500))
    first, _ = resample({"one": one, "two": two}, Bootstrap(num_resamples=500))
    assert np.array_equal(alone.draws, first.draws)


@pytest.mark.parametrize(
    ("scores", "low", "high"),
    [
        pytest.param([[1]] * 30, 0.886487, 1.0, id="all right"),
        pytest.param([[0, 0]] * 10, 0.0, 0.277533, id="all wrong, samples are no trials"),
        pytest.param([[0.5]] * 10, 0.236593, 0.763407, id="all one half"),
    ],
)
def test_equal_scores_get_a_wilson_interval(scores: list[list[float]], low: float, high: float) -> None:
    interval = bootstrap_mean(scores)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-6)
    assert interval.method.startswith("Wilson")


def test_method_names_the_bootstrap() -> None:
    assert bootstrap_mean([[1], [0]] * 5).method == "percentile bootstrap over problems, samples within"
    assert bootstrap_mean([[1]] * 9 + [[0]]).method.endswith("samples within, what is rare by Wilson's score")


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        pytest.param([], "scores: there are no problems", id="no problems"),
        pytest.param([[1], []], r"problem '1': scores are \[\]; give at least one sample", id="no samples"),
        pytest.param([[1.5]], r"problem '0': scores are \[1.5\]; .* from 0 to 1", id="above one"),
        pytest.param([[float("nan")]], "from 0 to 1", id="not a number"),
    ],
)
def test_unusable_scores_are_refused(scores: list[list[float]], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        bootstrap_mean(scores)


def test_retention_is_the_ratio_of_means() -> None:
    found = retention(halves(40, 60), halves(80, 20))
    assert found.ratio is not None and found.reason is None
    assert found.ratio.value == pytest.approx(0.5)
    assert found.difference.value == pytest.approx(-0.4)
    assert found.ratio.method.startswith("paired percentile bootstrap over problems, samples within")
    # delta method with policy a subset of full: var = (1/P) Var(x - 0.5 y) / 0.8², x y = x
    half = 1.96 * ((0.4 * 0.25 + 0.4 * 0.25) / 100) ** 0.5 / 0.8
    assert (found.ratio.low, found.ratio.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.015)


def test_pairing_narrows_the_interval() -> None:
    easy, hard = [[1.0, 1.0, 0.0, 1.0]] * 20, [[0.0, 0.0, 1.0, 0.0]] * 20
    worse_easy, worse_hard = [[1.0, 1.0, 0.0, 0.0]] * 20, [[0.0, 0.0, 0.5, 0.0]] * 20
    full = by_problem(*easy, *hard)
    same, mixed = by_problem(*worse_easy, *worse_hard), by_problem(*worse_hard, *worse_easy)
    paired, crossed = (retention(policy, full).difference for policy in (same, mixed))
    assert paired.value == crossed.value == -0.1875
    assert paired.high - paired.low < 0.5 * (crossed.high - crossed.low)


@pytest.mark.parametrize(
    ("full", "is_refused"),
    [
        pytest.param(halves(0, 30), True, id="zero"),
        pytest.param(halves(1, 29), True, id="one of thirty"),
        pytest.param(halves(2, 28), True, id="two of thirty"),
        pytest.param(halves(10, 20), False, id="a third"),
    ],
)
def test_retention_is_refused_near_zero(full: dict[str, list[float]], is_refused: bool) -> None:
    found = retention(halves(3, 27), full)
    assert (found.ratio is None) == is_refused
    assert ("not above 0.05" in (found.reason or "")) == is_refused
    assert found.difference.low < found.difference.high


def test_models_that_do_the_same_are_not_known_to_be_equal() -> None:
    # neither is better on any of 30 problems; either may be on up to 11.35 % of all problems (Wilson)
    for right, unit in ((30, 1.0), (15, 0.5)):
        found = retention(halves(right, 30 - right), halves(right, 30 - right))
        assert found.ratio is not None
        assert (found.difference.low, found.difference.high) == pytest.approx((-0.113513, 0.113513), abs=1e-5)
        ends = (1 - 0.113513 / unit, min(1 + 0.113513 / unit, 1 / runs_mean(halves(right, 30 - right)).low))
        assert (found.ratio.low, found.ratio.high) == pytest.approx(ends, abs=1e-5)
        assert found.ratio.method.endswith("what is rare by Wilson's score")


def test_a_side_seen_on_few_problems_widens_its_end() -> None:
    full, policy = halves(200, 0), halves(140, 60)
    found = retention(policy, full).difference
    half, unseen = 1.959964 * (0.3 * 0.7 / 200) ** 0.5, wilson(0, 200).high
    assert found.low == pytest.approx(-0.3 - half, abs=0.006)
    assert found.high == pytest.approx(-0.3 + (half**2 + unseen**2) ** 0.5, abs=0.006)


def test_intervals_do_not_shrink_from_none_to_few() -> None:
    highs = [bootstrap_mean([[1]] * right + [[0]] * (600 - right)).high for right in range(12)]
    assert all(after > 0.97 * before for before, after in itertools.pairwise(highs))
    found = [retention(halves(300 + more, 300 - more), halves(300, 300)).difference for more in range(12)]
    assert all(after.high > 0.95 * before.high for before, after in itertools.pairwise(found))


def test_base_normalised_retention_is_the_share_of_the_gain() -> None:
    found = base_normalised_retention(halves(50, 50), halves(75, 25), halves(25, 75))
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(0.5)
    assert found.ratio.low < 0.5 < found.ratio.high
    assert found.difference.value == pytest.approx(-0.25)


@pytest.mark.parametrize(
    "base", [halves(75, 25), halves(80, 20), halves(72, 28)], ids=["equal", "better", "hardly worse"]
)
def test_base_normalised_retention_needs_a_gain(base: dict[str, list[float]]) -> None:
    mixed = dict(zip(base, reversed(list(base.values())), strict=True))
    found = base_normalised_retention(halves(50, 50), halves(75, 25), mixed)
    assert found.ratio is None
    assert "gain over the base has a lower bound of -" in (found.reason or "")


def test_base_normalised_retention_is_refused_near_zero_as_retention_is() -> None:
    # a gain of 9 points whose lower bound is above 0 and not above NEAR_ZERO
    base, full = halves(40, 60), halves(49, 51)
    gain = retention(full, base).difference
    assert 0 < gain.low <= NEAR_ZERO
    found = base_normalised_retention(halves(43, 57), full, base)
    assert found.ratio is None and found.difference.value == pytest.approx(-0.06)
    assert found.reason is not None and f"lower bound of {gain.low:.3f}, not above 0.05" in found.reason
    assert base_normalised_retention(halves(46, 54), halves(60, 40), base).ratio is not None


def test_different_problems_are_named() -> None:
    full, policy = {"a": [1.0], "b": [0.0], "c": [1.0]}, {"b": [1.0], "d": [0.0]}
    message = r"policy lacks 2 \['a', 'c'\] and has 1 more \['d'\]; evaluate both"
    with pytest.raises(EvaluationError, match=message):
        retention(policy, full)


@pytest.mark.slow
@pytest.mark.parametrize("num_samples", [1, 4], ids=["one sample", "four samples"])
def test_coverage(num_samples: int) -> None:
    # problems of difficulty Beta(2, 2); the policy keeps 80 % of the chance on each
    generator = np.random.default_rng(3)
    num_runs, mean_hits, ratio_hits = 200, 0, 0
    for run in range(num_runs):
        chance = generator.beta(2, 2, (40, 1))
        full, policy = (
            by_problem(*(generator.random((40, num_samples)) < p).astype(float).tolist())
            for p in (chance, 0.8 * chance)
        )
        bootstrap = Bootstrap(num_resamples=400, seed=run)
        mean, ratio = bootstrap_mean(list(full.values()), bootstrap), retention(policy, full, bootstrap).ratio
        assert ratio is not None
        mean_hits += mean.low <= 0.5 <= mean.high
        ratio_hits += ratio.low <= 0.8 <= ratio.high
    assert 0.91 <= mean_hits / num_runs <= 0.985  # 95 % less or more two and a half standard errors
    assert 0.91 <= ratio_hits / num_runs <= 0.985


def few_runs(num_runs: int, spread: float, generator: np.random.Generator, chance: np.ndarray, factor: float):
    """Training runs whose accuracy varies by `spread` from run to run, one or two answers a problem."""
    shifted = np.clip(factor * chance + generator.normal(0, spread, (num_runs, 1, 1)), 0, 1)
    answers = (generator.random((num_runs, len(chance), 2)) < shifted).astype(float)
    return [by_problem(*run) for run in answers.tolist()]


@pytest.mark.slow
@pytest.mark.parametrize(("num_runs", "spread"), [(2, 0.05), (3, 0.08), (5, 0.0)])
def test_coverage_over_seeds(num_runs: int, spread: float) -> None:
    generator = np.random.default_rng(num_runs)
    num_studies, mean_hits, ratio_hits = 150, 0, 0
    for study in range(num_studies):
        chance = generator.uniform(0.3, 0.9, (40, 1))
        full, policy = (few_runs(num_runs, spread, generator, chance, factor) for factor in (1.0, 0.85))
        bootstrap = Bootstrap(num_resamples=300, seed=study)
        mean = runs_mean(full, bootstrap)
        found = retention(policy, full, bootstrap)
        mean_hits += mean.low <= 0.6 <= mean.high
        # refused ratios have no interval; their differences are judged instead
        kept, truth = (found.ratio, 0.85) if found.ratio else (found.difference, -0.09)
        ratio_hits += kept.low <= truth <= kept.high
    assert 0.9 <= mean_hits / num_studies <= 0.99  # 95 % less or more than two standard errors
    assert ratio_hits / num_studies >= 0.9


@pytest.mark.parametrize("rights", [((5, 60), (50, 70)), ((0, 2), (60, 62)), ((97, 70), (100, 90))])
def test_few_seeds_give_no_accuracy_outside_its_range(rights: tuple[tuple[int, int], tuple[int, int]]) -> None:
    policy, full = ([halves(right, 100 - right) for right in side] for side in rights)
    found = retention(policy, full)
    intervals = [runs_mean(policy), runs_mean(full), *([found.ratio] if found.ratio else [])]
    assert all(0 <= interval.low <= interval.value <= interval.high for interval in intervals)
    assert all(interval.high <= 1 for interval in intervals[:2])
    assert -1 <= found.difference.low <= found.difference.value <= found.difference.high <= 1


def test_what_paired_seeds_share_does_not_hide_their_difference() -> None:
    # Student's t over three paired differences of 0.255, 0.38 and 0.39 is [+0.155, +0.529]; both students near 1
    better, worse = ([halves(right, 200 - right) for right in rights] for rights in ((139, 199, 131), (88, 123, 53)))
    found = retention(better, worse).difference
    assert (found.low, found.high) == pytest.approx((0.155, 0.529), abs=0.04)


def test_few_seeds_give_no_negative_retention() -> None:
    # without the bounds of an accuracy Student's t of two runs reaches to -1.5 and beyond
    policy, full = [halves(5, 95), halves(45, 55)], [halves(74, 26), halves(76, 24)]
    ratio = retention(policy, full).ratio
    assert ratio is not None and ratio.low == 0 and ratio.value == pytest.approx(1 / 3)
    assert ratio.high <= 1 / runs_mean(full).low


def test_leaving_the_seeds_out_is_far_too_narrow() -> None:
    generator, hits = np.random.default_rng(3), 0
    for study in range(100):
        runs = few_runs(3, 0.08, generator, generator.uniform(0.3, 0.9, (40, 1)), 1.0)
        one = runs_mean(runs[0], Bootstrap(num_resamples=200, seed=study))
        hits += one.low <= 0.6 <= one.high
    assert hits < 85


@pytest.mark.slow
def test_coverage_of_base_normalised_retention() -> None:
    generator, hits, given = np.random.default_rng(8), 0, 0
    for study in range(150):
        chance = generator.uniform(0.1, 0.5, (60, 1))
        chances = chance, chance + 0.4, chance + 0.3
        base, full, policy = (
            by_problem(*(generator.random((60, 2)) < value).astype(float).tolist()) for value in chances
        )
        found = base_normalised_retention(policy, full, base, Bootstrap(num_resamples=300, seed=study)).ratio
        given += found is not None
        hits += found is not None and found.low <= 0.75 <= found.high
    assert given > 140 and hits / given >= 0.91


def test_runs_that_differ_widen_and_pairs_of_runs_narrow() -> None:
    generator = np.random.default_rng(0)
    chance = generator.uniform(0.4, 0.8, (50, 1))
    full = few_runs(4, 0.1, generator, chance, 1.0)
    assert runs_mean(full).high - runs_mean(full).low > 1.2 * (runs_mean(full[0]).high - runs_mean(full[0]).low)
    assert "Student" in runs_mean(full).method and "Student" not in runs_mean(full[0]).method
    policy = [{problem: [0.9 * score for score in samples] for problem, samples in run.items()} for run in full]
    paired, crossed = retention(policy, full).difference, retention(policy[::-1], full).difference
    assert paired.value == pytest.approx(crossed.value)
    assert paired.high - paired.low < 0.6 * (crossed.high - crossed.low)


def test_runs_are_told_apart_when_their_problems_differ() -> None:
    with pytest.raises(EvaluationError, match=r"policy, run 2 lacks 1 \['b'\]"):
        retention([{"a": [1.0], "b": [0.0]}, {"a": [1.0]}], {"a": [1.0], "b": [0.0]})
    with pytest.raises(EvaluationError, match="policy: there are no runs"):
        retention([], {"a": [1.0]})


def test_share_of_some_samples() -> None:
    found = bootstrap_share([3, 0, 1, 2], [4, 0, 2, 4])
    assert found is not None and found.value == 0.6 and found.low < 0.6 < found.high
    assert bootstrap_share([0, 0], [0, 0]) is None
    rare, mean = bootstrap_share([1] + [0] * 39, [1] * 40), bootstrap_mean([[1]] + [[0]] * 39)
    assert rare is not None and (rare.low, rare.high) == (mean.low, mean.high)
    certain = bootstrap_share([2, 2, 0], [2, 2, 0])
    assert certain is not None and certain.value == 1 and certain.low == pytest.approx(wilson(1, 2).low)
