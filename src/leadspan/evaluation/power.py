"""How many problems, samples and seeds a claim about retention needs, before anything is trained.

The claim "the policy keeps at least c" counts as shown when the lower end of retention's interval is at least c. How
often that happens at a true retention r follows from the standard error of the ratio m_policy / m_full, taken to
first order (delta method):

    a^2 * SE^2 = B / P + W / (P * n * S) + R / S

with P problems, n samples a problem and S seeds a student, a the full student's accuracy, b = r * a the policy's, and

    B = Var(q - r p)                     how differently the two fare from problem to problem,
    W = E[q (1 - q)] + r^2 E[p (1 - p)]  the chance of single answers,
    R = s^2 (1 + r^2)                    the standard deviation s of accuracy from seed to seed,

p and q being the chances of the full student and the policy's to solve a problem. With h the share of a single answer's
variance that lies between problems, Var(p) = h a (1 - a) and E[p (1 - p)] = (1 - h) a (1 - a), likewise for q; their
correlation over problems is rho.

**Source**: Cochran, Sampling Techniques (1977), section 6.4 (ratios) and chapter 10 (two stages); the probability is
that of a normal estimate against a normal or, for two seeds or more, a Student t bound.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from leadspan.errors import EvaluationError
from leadspan.evaluation.resampling import Runs, Scores, runs_of
from leadspan.settings import Settings, validate

_NORMAL = NormalDist()


class Claim(Settings):
    """What is to be shown, and what is expected to be true."""

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
    seed_sd: float = Field(default=0.01, ge=0)
    """Standard deviation of a student's accuracy from training seed to training seed."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Confidence level of the interval, two-sided."""
    power: float = Field(default=0.8, gt=0, lt=1)
    """Probability with which the claim should be shown."""

    @model_validator(mode="after")
    def _claim_can_be_true(self) -> "Claim":
        if self.retention <= self.claim:
            raise ValueError(
                f"the expected retention {self.retention:g} is not above the claim {self.claim:g}: no number of "
                "problems shows that; expect more or claim less"
            )
        if self.retention * self.accuracy >= 1:
            raise ValueError(
                f"retention {self.retention:g} of accuracy {self.accuracy:g} is not below 1; lower one of the two"
            )
        return self


@dataclass(frozen=True, slots=True)
class Parts:
    """The three parts of a^2 SE^2, each before it is divided by the numbers of problems, samples and seeds."""

    problems: float
    answers: float
    seeds: float


def parts_of(claim: Claim) -> Parts:
    """B, W and R of a claim."""
    full, policy, share = claim.accuracy, claim.retention * claim.accuracy, claim.between
    spread_full, spread_policy = full * (1 - full), policy * (1 - policy)
    covariance = claim.correlation * share * sqrt(spread_full * spread_policy)
    squared = claim.retention**2
    between = share * (spread_policy + squared * spread_full) - 2 * claim.retention * covariance
    return Parts(
        problems=max(0.0, between),
        answers=(1 - share) * (spread_policy + squared * spread_full),
        seeds=claim.seed_sd**2 * (1 + squared),
    )


def standard_error(claim: Claim, num_problems: int, num_samples: int, num_seeds: int) -> float:
    """Standard error of retention; with one seed, of the trained models, as `chance_to_show` has it."""
    parts = parts_of(claim)
    draws = num_problems * num_samples * num_seeds
    seeds = parts.seeds / num_seeds if num_seeds > 1 else 0.0
    variance = parts.problems / num_problems + parts.answers / draws + seeds
    return sqrt(variance) / claim.accuracy


def chance_to_show(claim: Claim, num_problems: int, num_samples: int, num_seeds: int) -> float:
    """Probability that the interval's lower end reaches the claim.

    One seed a student shows nothing of the spread between seeds, and its interval leaves it out: the claim, and this
    probability, are then about the two trained models and not about the recipes.
    """
    error = standard_error(claim, num_problems, num_samples, num_seeds)
    if error == 0:
        return 1.0
    margin = claim.retention - claim.claim - _width(claim, num_problems, num_samples, num_seeds)
    return _NORMAL.cdf(margin / error)


def problems_needed(claim: Claim, num_samples: int, num_seeds: int, at_most: int = 1_000_000) -> int | None:
    """The fewest problems with which the claim is shown as often as `claim.power` asks, None beyond `at_most`."""
    if chance_to_show(claim, at_most, num_samples, num_seeds) < claim.power:
        return None
    low, high = 1, at_most
    while low < high:
        middle = (low + high) // 2
        enough = chance_to_show(claim, middle, num_samples, num_seeds) >= claim.power
        low, high = (low, middle) if enough else (middle + 1, high)
    return low


def _width(claim: Claim, num_problems: int, num_samples: int, num_seeds: int) -> float:
    """Distance from the estimate to the interval's lower end: z for problems and answers, t for the spread of runs."""
    parts = parts_of(claim)
    tail = (1 + claim.level) / 2
    answers = parts.answers / (num_problems * num_samples * num_seeds)
    normal = sqrt(parts.problems / num_problems + answers)
    if num_seeds == 1:
        return _NORMAL.inv_cdf(tail) * normal / claim.accuracy
    runs = sqrt(parts.seeds / num_seeds)
    return _mixed_quantile(normal, runs, num_seeds - 1, tail) / claim.accuracy


def _mixed_quantile(normal: float, student: float, freedom: int, tail: float) -> float:
    """Quantile of normal * Z + student * T: the law of the interval's resamples, from fixed draws."""
    z, t = _fixed_draws(freedom)
    return float(np.quantile(np.abs(normal * z + student * t), 2 * tail - 1))


@cache
def _fixed_draws(freedom: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    generator = np.random.default_rng(0)
    return generator.standard_normal(40_000), generator.standard_t(freedom, 40_000)


def expected_from(policy: Runs, full: Runs, given: Mapping[str, float]) -> Claim:
    """A claim with what finished runs say of accuracy, retention, spread, correlation and seeds in place of guesses.

    Moments: a problem's answers, pooled over runs, give its chance and, unbiased, the variance of a single answer;
    that variance over the number of answers is taken off the variance of the chances. `seed_sd` keeps its default where
    every student has a single run. The estimates are as good as the runs are many.

    Args:
        policy: Scores of the policy's student, one run or several.
        full: Scores of the full student on the same problems.
        given: Fields of the claim that are known better; they take precedence.

    Raises:
        EvaluationError: The problems differ, a problem has fewer than two answers, or the runs contradict the claim.
    """
    sides = [_moments(name, runs_of(runs)) for name, runs in (("policy", policy), ("full", full))]
    if sides[0].chances.keys() != sides[1].chances.keys():
        raise EvaluationError("power: policy and full were evaluated on different problems; evaluate both on the same")
    left, right = (np.array([side.chances[problem] for problem in sides[1].chances]) for side in sides)
    spread = sqrt(sides[0].between * sides[1].between)
    correlation = float(np.cov(left, right)[0, 1]) / spread if spread > 0 else 0.0
    seeds = [side.seed_variance for side in sides if side.seed_variance is not None]
    values = {
        "retention": float(left.mean() / right.mean()) if right.mean() > 0 else inf,
        "accuracy": float(right.mean()),
        "between": float(np.mean([side.between / (side.between + side.within) for side in sides])),
        "correlation": float(np.clip(correlation, -1, 1)),
        **({"seed_sd": sqrt(float(np.mean(seeds)))} if seeds else {}),
        **given,
    }
    return validate(Claim, values, "power: what the runs say")


@dataclass(frozen=True, slots=True)
class _Moments:
    chances: dict[str, float]
    between: float
    within: float
    seed_variance: float | None


def _moments(name: str, runs: Sequence[Scores]) -> _Moments:
    pooled = {problem: np.concatenate([run[problem] for run in runs]) for problem in runs[0]}
    num_answers = np.array([len(answers) for answers in pooled.values()])
    if len(pooled) < 2 or num_answers.min() < 2:
        raise EvaluationError(
            f"power: {name} has {len(pooled)} problems with at least {num_answers.min()} answers; estimates need two "
            "problems and two answers to each, from several samples or several seeds"
        )
    within = np.array([answers.var(ddof=1) for answers in pooled.values()])
    chances = np.array([answers.mean() for answers in pooled.values()])
    between = max(0.0, float(chances.var(ddof=1) - (within / num_answers).mean()))
    if between + within.mean() == 0:
        raise EvaluationError(f"power: {name} answers every problem alike, so its runs show no spread to plan with")
    seeds = None
    if len(runs) > 1:
        means = [np.mean([np.mean(samples) for samples in run.values()]) for run in runs]
        noise = within.mean() / (num_answers.mean() / len(runs)) / len(pooled)
        seeds = max(0.0, float(np.var(means, ddof=1) - noise))
    return _Moments(dict(zip(pooled, chances.tolist(), strict=True)), between, float(within.mean()), seeds)
