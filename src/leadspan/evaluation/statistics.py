"""Intervals for accuracies, and retention: what share of one model's score another one keeps.

A score is a number in [0, 1] for one sample of one problem. The mean is over problems, each with the mean of its own
samples. Everything is drawn from a seed, so the same scores give the same interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from leadspan.errors import EvaluationError
from leadspan.results import Interval
from leadspan.settings import Settings

Scores = Sequence[Sequence[float]]
"""For each problem the scores of its samples."""
ScoresByProblem = Mapping[str, Sequence[float]]
"""Problem id to the scores of its samples."""

NEAR_ZERO = 0.05
"""Retention is refused where the full model's lower bound is at or below this: the ratio would be noise."""
NUM_RESAMPLES = 4000
"""Bootstrap resamples; with 4,000 the ends of a 95 % interval move by about 2 % of its width from seed to seed."""

_DRAWS_AT_ONCE = 4_000_000
_BOOTSTRAP = "percentile bootstrap over problems, samples within"
_WILSON = "Wilson score over problems (all scores equal)"
_PAIRED = "paired percentile bootstrap over problems, samples within"
_COMBINED = "interval arithmetic on the single intervals, Bonferroni (some model's scores are all equal)"


class Retention(Settings):
    """How much of the full student's score a policy keeps."""

    ratio: Interval | None
    """The share kept; absent when refused."""
    difference: Interval
    """Policy minus full, always given."""
    reason: str | None = None
    """Why the ratio is refused."""


def wilson(mean: float, num_trials: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion; it has width even at 0 and 1.

    With z the normal quantile: (m + z²/2n ± z·sqrt(m(1-m)/n + z²/4n²)) / (1 + z²/n).

    **Source**: Wilson, J. Am. Stat. Assoc. 22 (1927), 209-212.

    Args:
        mean: The proportion m, in [0, 1].
        num_trials: Independent trials n, at least 1.
        level: Confidence level, in (0, 1).
    """
    z2_n = NormalDist().inv_cdf((1 + level) / 2) ** 2 / num_trials
    centre = mean + z2_n / 2
    spread = (z2_n * (mean * (1 - mean) + z2_n / 4)) ** 0.5
    low, high = ((centre + sign * spread) / (1 + z2_n) for sign in (-1, 1))
    return Interval(value=mean, low=max(low, 0.0), high=min(high, 1.0), level=level, method=_WILSON)


def bootstrap_mean(
    scores: Scores, level: float = 0.95, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """Mean score with a two-level bootstrap interval.

    Each resample draws P problems with replacement, then from each drawn problem as many samples as it has, with
    replacement, and takes the mean of problem means; the interval lies between the (1-level)/2 and (1+level)/2 quantiles.
    Its variance is (1/P)(Var_p(m_p) + mean_p(v_p / n_p)), with m_p, v_p, n_p a problem's mean, variance and number of
    samples; as Var_p(m_p) already holds sampling noise, the interval errs on the wide side for small n_p > 1.

    Where all scores are equal every resample is the same, and the Wilson interval over the P problems is given instead.
    Samples of one problem are not independent, so they do not count as trials. `method` says which one it is.

    **Source**: Efron & Tibshirani, *An Introduction to the Bootstrap* (1993), sections 8.3 and 13.3.

    Args:
        scores: For each problem the scores of its samples, in [0, 1]; numbers of samples may differ.
        level: Confidence level, in (0, 1).
        num_resamples: Bootstrap resamples.
        seed: Seed of the draws.

    Raises:
        EvaluationError: No problems, a problem without samples, or a score outside [0, 1].
    """
    table = _table({f"number {index}": samples for index, samples in enumerate(scores)}, "scores")
    return _mean_interval(table, _resample([table], num_resamples, seed)[0], level)


def retention(
    policy_scores: ScoresByProblem,
    full_scores: ScoresByProblem,
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Retention:
    """The policy's mean as a share of the full student's, m_policy / m_full.

    Paired bootstrap: each resample uses the same drawn problems for both models, since hard problems are hard for both,
    and draws samples within them separately. Where one model's scores are all equal the bootstrap cannot see its
    uncertainty; then the ends are the extreme quotients of the two single intervals, each at level 1-(1-level)/2.

    Refused when the lower end of the full student's own interval is at most `NEAR_ZERO`.

    **Source**: Efron & Tibshirani (1993), section 8.3 for pairs; design of the refusal ours.

    Args:
        policy_scores: Problem id to sample scores of the policy's student.
        full_scores: The same problems, for the student trained on full traces.
        level: Confidence level, in (0, 1).
        num_resamples: Bootstrap resamples.
        seed: Seed of the draws.

    Raises:
        EvaluationError: The problems differ, there are none, or scores are missing or outside [0, 1].
    """
    full, policy = _paired_tables({"full": full_scores, "policy": policy_scores})
    draws = _resample([full, policy], num_resamples, seed)
    difference = _contrast([policy, full], draws[[1, 0]], level)
    full_interval = _mean_interval(full, draws[0], level)
    if full_interval.low <= NEAR_ZERO:
        reason = (
            f"the full student's accuracy may be as low as {full_interval.low:.3f} (at most {NEAR_ZERO:g}), "
            "so a share of it means nothing; read the difference"
        )
        return Retention(ratio=None, difference=difference, reason=reason)
    return Retention(ratio=_ratio([policy], [full], draws[1], draws[0], level), difference=difference)
