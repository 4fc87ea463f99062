"""The number of problems, samples and seeds that a claim about retention needs, before anything is trained.

The claim "retention is at least c" counts as shown when the lower end of the interval of retention is at least c. How
often that happens at a true retention r follows from the standard error of the ratio m_policy / m_full, to first order
(delta method):

    a^2 * SE^2 = B / P + W / (P * n * S) + R / S

with P problems, n samples per problem and S seeds per student, a the full student's accuracy, b = r * a the policy's,
and

    B = Var(q - r p)                     how differently the two fare from problem to problem,
    W = E[q (1 - q)] + r^2 E[p (1 - p)]  the chance of single answers,
    R = s^2 (1 + r^2)                    the standard deviation s of accuracy from seed to seed,

p and q being the chances of the full student and the policy's to solve a problem. With h the share of a single answer's
variance that lies between problems, Var(p) = h a (1 - a) and E[p (1 - p)] = (1 - h) a (1 - a), likewise for q; their
correlation over problems is rho.

With two seeds or more the interval takes the spread between runs from the runs themselves (`resampling.resample`): S
runs of a student show (s^2 + w) V with V = chi2_{S-1} / (S - 1) and w the noise of their samples, less w where that is
above 0, for each student alone. The lower end then varies with what the runs show as well as with the estimate, and
the probability is the mean over it; where nothing but the seeds varies it is that of the noncentral t distribution.

**Source**: Cochran, Sampling Techniques (1977), section 6.4 (ratios) and chapter 10 (two stages); Johnson, Kotz and
Balakrishnan, Continuous Univariate Distributions 2 (1995), chapter 31 (noncentral t).
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from math import inf, pi, sqrt
from statistics import NormalDist, fmean

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from leadspan.errors import EvaluationError
from leadspan.faults import Rule
from leadspan.settings import Settings, validate
from leadspan.statistics.resampling import Runs, Scores, runs_of, sample_means

_NORMAL = NormalDist()


class Claim(Settings):
    """The claim to show, and what is expected to be true."""

    claim: float = Field(default=0.91, gt=0)
    """Retention to show: its interval's lower end has to reach this."""
    retention: float = Field(default=0.95, gt=0)
    """True retention that is expected."""
    accuracy: float = Field(default=0.5, gt=0, lt=1)
    """Accuracy of the full student."""
    between: float = Field(default=0.6, ge=0, le=1)
    """Share of the variance of single answers that lies between problems: 0 if all are equally hard, 1 if each is
    solved always or never."""
    correlation: float = Field(default=0.9, ge=-1, le=1)
    """Correlation over problems of the two students' chances."""
    seed_sd: float = Field(default=0.01, ge=0, lt=1)
    """Standard deviation of a student's accuracy from training seed to training seed."""
    level: float = Field(default=0.95, gt=0, le=0.999999)  # beyond, its tails are lost to rounding
    """Confidence level of the interval, two-sided."""
    power: float = Field(default=0.8, gt=0, lt=1)
    """Probability with which the claim should be shown."""

    def conflicts(self) -> Iterator[Rule]:
        """The expected retention is above the claim, and the policy's accuracy below 1."""
        if self.retention <= self.claim:
            share = f" (a share: {self.claim / 100:g} is {self.claim:g} %)" if 2 <= self.claim <= 100 else ""
            text = (
                f"the expected retention {self.retention:g} is not above the claim {self.claim:g}{share}: no number of "
                "problems shows that; expect more or claim less"
            )
            yield ("retention", "claim"), text
        if self.retention * self.accuracy >= 1:
            text = f"retention {self.retention:g} of accuracy {self.accuracy:g} is not below 1; lower one of the two"
            yield ("retention", "accuracy"), text


def variance_terms(claim: Claim) -> tuple[float, float, float]:
    """B, W and R of a claim: the terms of a^2 SE^2, each before it is divided by the numbers below it."""
    full, policy, share = claim.accuracy, claim.retention * claim.accuracy, claim.between
    spread_full, spread_policy = full * (1 - full), policy * (1 - policy)
    covariance = claim.correlation * share * sqrt(spread_full * spread_policy)
    squared = claim.retention**2
    problems = max(0.0, share * (spread_policy + squared * spread_full) - 2 * claim.retention * covariance)
    answers = (1 - share) * (spread_policy + squared * spread_full)
    return problems, answers, claim.seed_sd**2 * (1 + squared)


def standard_error(claim: Claim, num_problems: int, num_samples: int, num_seeds: int) -> float:
    """Standard error of retention; with one seed, that of the trained models alone, as in `chance_to_show`."""
    problems, answers, seeds = variance_terms(claim)
    variance = problems / num_problems + answers / (num_problems * num_samples * num_seeds)
    return sqrt(variance + (seeds / num_seeds if num_seeds > 1 else 0.0)) / claim.accuracy


def chance_to_show(claim: Claim, num_problems: int, num_samples: int, num_seeds: int) -> float:
    """Probability that the interval's lower end reaches the claim.

    One seed a student shows nothing of the spread between seeds, and its interval leaves it out: the claim, and this
    probability, are then about the two trained models and not about the recipes.
    """
    from scipy.special import stdtrit  # a third of a second to import

    error = standard_error(claim, num_problems, num_samples, num_seeds)
    if error == 0:
        return 1.0
    problems, answers, _ = variance_terms(claim)
    tail, noise = (1 + claim.level) / 2, answers / (num_problems * num_samples)
    # As `drawn_means` stretches resamples: Student's t and the unbiased variance. One problem counts as two.
    freedom, z = max(num_problems - 1, 1), _NORMAL.inv_cdf(tail)
    stretch = float(stdtrit(freedom, tail)) / z * sqrt((freedom + 1) / freedom)
    normal = stretch * sqrt(problems / num_problems + noise / num_seeds)
    # Distances from the estimate to the interval's lower end, all equally probable: z, stretched, for problems and
    # answers, t for the spread of runs, which differs with what the runs happen to show.
    if num_seeds == 1:
        widths = [z * normal / claim.accuracy]
    else:
        runs = _seen_spread(claim, noise, num_seeds - 1) / sqrt(num_seeds)
        angles, quantiles = _mixed_quantiles(num_seeds - 1, tail)
        hypotenuses = np.hypot(normal, runs) * np.interp(np.arctan2(runs, normal), angles, quantiles)
        widths = (hypotenuses / claim.accuracy).tolist()
    margin = claim.retention - claim.claim
    return fmean(_NORMAL.cdf((margin - width) / error) for width in widths)


def problems_needed(claim: Claim, num_samples: int, num_seeds: int, at_most: int = 1_000_000) -> int | None:
    """The fewest problems with which the claim is shown with probability `claim.power`; None beyond `at_most`.

    Sizes are doubled until one suffices and then halved in between: with two or three seeds the probability can fall
    again towards very many problems, as the samples' noise no longer hides what the runs happen to differ by.
    """

    def is_enough(num_problems: int) -> bool:
        return chance_to_show(claim, num_problems, num_samples, num_seeds) >= claim.power

    sizes = [*(2**power for power in range((at_most - 1).bit_length())), at_most]
    first = next((index for index, size in enumerate(sizes) if is_enough(size)), None)
    if first is None:
        return None
    low = sizes[first - 1] + 1 if first else 1
    return low + bisect_left(range(low, sizes[first]), True, key=is_enough)


def _seen_spread(claim: Claim, noise: float, freedom: int) -> NDArray[np.float64]:
    """Standard deviations between runs that the interval finds, a * sqrt(S) SE of them, in 200 equally probable steps.

    With d the deviations of the S runs from their mean, of the policy and of r times the full student, it is that of
    k_policy d_policy - k_full d_full, where k^2 = max(0, 1 - w / s^2) takes off the samples' noise as `resample` does.
    """
    full, policy = claim.accuracy, claim.retention * claim.accuracy
    sides = [policy * (1 - policy), claim.retention**2 * full * (1 - full)]
    noises = [noise * side / sum(sides) for side in sides]
    totals = [claim.seed_sd**2 + noises[0], (claim.retention * claim.seed_sd) ** 2 + noises[1]]
    of_policy, of_full = (sqrt(total / sum(totals)) if sum(totals) else 0.0 for total in totals)
    difference, orthogonal = _deviations(freedom)
    deviations = of_policy * difference + of_full * orthogonal, of_policy * orthogonal - of_full * difference
    scaled = []
    for deviation, total, of_samples in zip(deviations, totals, noises, strict=True):
        seen = total * (deviation**2).sum(axis=0) / freedom
        # A floor far below any variance of scores: it keeps 0 / 0 out, and changes no quotient.
        share = np.sqrt(np.maximum(0, 1 - of_samples / np.maximum(seen, 1e-300)))
        scaled.append(share * sqrt(total) * deviation)
    # Sorted and averaged in 200 groups: the mean over them is what `chance_to_show` takes.
    deviations_seen = np.sqrt(((scaled[0] - scaled[1]) ** 2).sum(axis=0) / freedom)
    return np.sort(deviations_seen).reshape(200, -1).mean(axis=1)


@cache
def _deviations(freedom: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two independent standard normal vectors of `freedom` entries, `[2, draws]`, in the plane that they span.

    The first lies on the first axis; its length runs through the quantiles of its law, so that nothing is left to
    chance where samples have no noise. The second is drawn.
    """
    variances, weights = _variance_law(freedom, 8001)
    number = 8000  # 200 groups of 40, see `_seen_spread`
    generator = np.random.default_rng(0)
    quantiles = (generator.permutation(number) + 0.5) / number
    lengths = np.exp(np.interp(quantiles, np.cumsum(weights) - weights / 2, np.log(freedom * variances)) / 2)
    across = np.sqrt(generator.chisquare(freedom - 1, number)) if freedom > 1 else np.zeros(number)
    return np.stack([lengths, np.zeros(number)]), np.stack([generator.standard_normal(number), across])


@cache
def _variance_law(freedom: int, number: int = 201) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values of V = chi2 / freedom and their probabilities, from the density of log V at equal distances."""
    logs = np.linspace(-30, 10, number) * sqrt(2 / freedom)  # in about standard deviations of log V
    density = freedom / 2 * (logs - np.exp(logs))  # without the constant, which the division below cancels
    weights = np.exp(density - density.max())
    return np.exp(logs), weights / weights.sum()


@cache
def _mixed_quantiles(freedom: int, tail: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The quantile `tail` of cos(angle) Z + sin(angle) T, the law of the interval's resamples, by angle.

    T is Z / sqrt(V), so that given V the sum is normal with the variance cos^2 + sin^2 / V.
    """
    variances, weights = _variance_law(freedom)
    angles = np.linspace(0, pi / 2, 33)  # the quantile is smooth in the angle, so few suffice to interpolate between
    quantiles: list[float] = []
    for angle in angles:
        spreads = np.sqrt(np.cos(angle) ** 2 + np.sin(angle) ** 2 / variances).tolist()
        # The tail is above one half, so that the quantile is above 0.
        low, high = 0.0, 1.0
        while _mixture_cdf(high, spreads, weights.tolist()) < tail:
            low, high = high, 2 * high
        # 30 halvings reach 1e-9 of the bracket.
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if _mixture_cdf(middle, spreads, weights.tolist()) < tail else (low, middle)
        quantiles.append(high)
    return angles, np.array(quantiles)


def _mixture_cdf(end: float, spreads: Sequence[float], weights: Sequence[float]) -> float:
    """The chance that a mixture of centred normals is below an end."""
    return sum(weight * _NORMAL.cdf(end / spread) for spread, weight in zip(spreads, weights, strict=True))


def expected_from(policy: Runs, full: Runs, stated: Mapping[str, float]) -> Claim:
    """A claim whose accuracy, retention, spread, correlation and seed spread are estimated from finished runs.

    Moments: a problem's answers, pooled over runs, give its chance and, unbiased, the variance of a single answer;
    that variance over the number of answers is taken off the variance of the chances. `seed_sd` keeps its default where
    every student has a single run. The estimates are as good as the runs are many.

    Args:
        policy: Scores of the policy's student, one run or several.
        full: Scores of the full student on the same problems.
        stated: Fields of the claim that are stated; they take precedence.

    Raises:
        EvaluationError: The problems differ, a problem has fewer than two answers, or the runs contradict the claim.
    """
    both = {"policy": policy, "full": full}
    sample_means(both)  # refuses runs on different problems
    # The policy's chances in the order of the full student's: runs may list the same problems in different orders.
    chances, between, within, seed_variances = zip(*(_moments(name, runs_of(both[name])) for name in both), strict=True)
    of_policy, of_full = (np.array([side[problem] for problem in chances[1]]) for side in chances)
    spread = sqrt(between[0] * between[1])
    correlation = float(np.cov(of_policy, of_full)[0, 1]) / spread if spread > 0 else 0.0
    seeds = [variance for variance in seed_variances if variance is not None]
    values = {
        "retention": float(of_policy.mean() / of_full.mean()) if of_full.mean() > 0 else inf,
        "accuracy": float(of_full.mean()),
        "between": float(np.mean([b / (b + w) for b, w in zip(between, within, strict=True)])),
        "correlation": float(np.clip(correlation, -1, 1)),
        **({"seed_sd": sqrt(float(np.mean(seeds)))} if seeds else {}),
        **stated,
    }
    return validate(Claim, values, "power: what the runs say")


def _moments(name: str, runs: Sequence[Scores]) -> tuple[dict[str, float], float, float, float | None]:
    """Chances by problem, variances of chances and of single answers, and the variance from seed to seed, if seen."""
    pooled = {problem: np.concatenate([run[problem] for run in runs]) for problem in runs[0]}
    num_answers = np.array([len(answers) for answers in pooled.values()])
    if len(pooled) < 2 or num_answers.min() < 2:
        raise EvaluationError(
            f"power: {name} has {len(pooled)} problems with at least {num_answers.min()} answers; estimates need two "
            "problems and two answers to each, from several samples or several seeds"
        )
    within = np.array([answers.var(ddof=1) for answers in pooled.values()])
    chances = np.array([answers.mean() for answers in pooled.values()])
    # Chances vary by the noise of their own answers too; what is left may be below 0 by chance.
    between = max(0.0, float(chances.var(ddof=1) - (within / num_answers).mean()))
    if between + within.mean() == 0:
        raise EvaluationError(f"power: {name} answers every problem alike, so its runs show no spread to plan with")
    seeds = None
    if len(runs) > 1:
        means = [np.mean([np.mean(samples) for samples in run.values()]) for run in runs]
        # The runs' means differ by the noise of their answers, even where seeds make no difference.
        noise = within.mean() / (num_answers.mean() / len(runs)) / len(pooled)
        seeds = max(0.0, float(np.var(means, ddof=1) - noise))
    return dict(zip(pooled, chances.tolist(), strict=True)), between, float(within.mean()), seeds
