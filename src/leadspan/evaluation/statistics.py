"""Intervals for mean scores, and retention: the share of one model's score that another one keeps.

A score is a number in [0, 1] for one sample of one problem. A mean is over problems, each with the mean of
its own samples; where a model was trained several times, also over its runs. All draws come from a seed: the
same scores give the same interval. An interval from one run covers problems and samples, not the training seed.
"""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from leadspan.evaluation.resampling import USUAL, Bootstrap, Model, Runs, resample
from leadspan.results import Interval
from leadspan.settings import Settings

NEAR_ZERO = 0.05
"""Retention is refused where the lower bound of the full student's accuracy, or of its gain over the base, is at or
below this: the ratio would be noise."""

_BOOTSTRAP = "percentile bootstrap over problems, samples within"
_PAIRED = f"paired {_BOOTSTRAP}"
_WILSON = "Wilson score over problems, as all scores are equal"
_RUNS = ", runs above (Student's t)"
_EXTREMES = "extremes of the single intervals, as resampling shows no spread"


class Retention(Settings):
    """How much of the full student's score a policy's student keeps."""

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
    low, high = ((centre + side * spread) / (1 + z2_n) for side in (-1, 1))
    return Interval(value=mean, low=max(low, 0.0), high=min(high, 1.0), level=level, method=_WILSON)


def runs_mean(scores: Runs, bootstrap: Bootstrap = USUAL) -> Interval:
    """Mean score over runs and problems, with runs as a level above both of `bootstrap_mean`; see `resample`."""
    (model,) = resample({"scores": scores}, bootstrap)
    return _mean_interval(model, bootstrap.level)


def bootstrap_mean(scores: Sequence[Sequence[float]], bootstrap: Bootstrap = USUAL) -> Interval:
    """Mean score with a two-level bootstrap interval.

    Each resample draws P problems with replacement, each with its samples (see `resampling`), and takes the mean of
    the problems' means; the interval reaches from the (1-level)/2 to the (1+level)/2 quantile. Its variance is
    Var_p(m_p) / P, where the variance of the problems' means m_p holds both how problems differ and the noise of their
    samples.

    Where all scores are equal, all resamples are too; the Wilson interval over the P problems is given
    instead, and `method` says so. Samples of one problem are not independent and do not count as trials.

    **Source**: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13.

    Args:
        scores: For each problem the scores of its samples, in [0, 1]; their numbers may differ.
        bootstrap: Level, number of resamples and seed.

    Raises:
        EvaluationError: No problem, a problem without samples, or a score outside [0, 1].
    """
    return runs_mean({str(position): samples for position, samples in enumerate(scores)}, bootstrap)


def bootstrap_share(parts: Sequence[float], wholes: Sequence[float], bootstrap: Bootstrap = USUAL) -> Interval | None:
    """Sum of the parts over the sum of the wholes, with a bootstrap interval over problems.

    For a rate among some of the samples, such as accuracy among the finished ones: each problem gives how many of
    its samples count for the part and how many for the whole. Resamples without any whole are left out.

    Args:
        parts: For each problem a number from 0 to its whole.
        wholes: For each problem the number of samples asked about.
        bootstrap: Level, number of resamples and seed.

    Returns:
        None where no problem has a whole.
    """
    part, whole = np.asarray(parts, dtype=float), np.asarray(wholes, dtype=float)
    if whole.sum() == 0:
        return None
    uniform = np.random.default_rng([bootstrap.seed, 0]).random((bootstrap.num_resamples, len(whole)))
    problems = (uniform * len(whole)).astype(np.int64)
    drawn = whole[problems].sum(axis=1)
    shares = part[problems].sum(axis=1)[drawn > 0] / drawn[drawn > 0]
    value = float(part.sum() / whole.sum())
    if not _has_spread(shares):
        return wilson(value, int(np.count_nonzero(whole)), bootstrap.level)
    return _percentile(value, shares, bootstrap.level, "percentile bootstrap over problems")


def retention(policy_scores: Runs, full_scores: Runs, bootstrap: Bootstrap = USUAL) -> Retention:
    """The policy's mean score as a share of the full student's, m_policy / m_full.

    Paired bootstrap: each resample draws the same problems for both models (what is hard for one is hard for
    the other), each with its own samples of them. Refused where the lower end of the full student's own
    interval is at most `NEAR_ZERO`. Where resampling shows no spread (a model's scores are all equal, or both
    models do the same on every problem), the ends are the extremes that the single intervals allow: as wide
    as any dependence between the two can ask for. Scores of several training runs (a list, in the order of their
    seeds) widen the interval by what the runs differ, see `resample`.

    **Source**: Efron and Tibshirani (1993), chapters 8 and 13.

    Args:
        policy_scores: Scores of the policy's student.
        full_scores: Scores of the student trained on whole traces, on the same problems.
        bootstrap: Level, number of resamples and seed.

    Raises:
        EvaluationError: The problems differ, or the scores break a rule of `bootstrap_mean`.
    """
    full, policy = resample({"full": full_scores, "policy": policy_scores}, bootstrap)
    top, bottom = (_mean_interval(model, bootstrap.level) for model in (policy, full))
    difference = _difference_interval(policy, full, bootstrap.level)
    if bottom.low <= NEAR_ZERO:
        return _refuse(difference, "accuracy", bottom.low)
    ratio = _ratio_interval(top, bottom, policy.draws, full.draws)
    return Retention(ratio=ratio, difference=difference)


def base_normalised_retention(
    policy_scores: Runs, full_scores: Runs, base_scores: Runs, bootstrap: Bootstrap = USUAL
) -> Retention:
    """The share of the full student's gain over the base, (m_policy - m_base) / (m_full - m_base).

    As `retention`, with the same problems drawn for all three. Refused where the lower end of the gain
    m_full - m_base is at most `NEAR_ZERO`.

    Args:
        policy_scores: Scores of the policy's student.
        full_scores: Scores of the student trained on whole traces, on the same problems.
        base_scores: Scores of the student before training, on the same problems.
        bootstrap: Level, number of resamples and seed.

    Raises:
        EvaluationError: The problems differ, or the scores break a rule of `bootstrap_mean`.
    """
    models = {"full": full_scores, "policy": policy_scores, "base": base_scores}
    full, policy, base = resample(models, bootstrap)
    top, bottom = (_difference_interval(model, base, bootstrap.level) for model in (policy, full))
    difference = _difference_interval(policy, full, bootstrap.level)
    if bottom.low <= NEAR_ZERO:
        return _refuse(difference, "gain over the base", bottom.low)
    ratio = _ratio_interval(top, bottom, policy.draws - base.draws, full.draws - base.draws)
    return Retention(ratio=ratio, difference=difference)


def _refuse(difference: Interval, whole: str, low: float) -> Retention:
    reason = (
        f"the full student's {whole} has a lower bound of {low:z.3f}, not above {NEAR_ZERO:g}: "
        "a share of so little is noise, so read the difference"
    )
    return Retention(ratio=None, difference=difference, reason=reason)


def _mean_interval(model: Model, level: float) -> Interval:
    if not _has_spread(model.draws):
        return wilson(model.mean, model.num_problems, level)
    return _percentile(model.mean, model.draws, level, _BOOTSTRAP + _runs_note(model))


def _difference_interval(left: Model, right: Model, level: float) -> Interval:
    value, paired = left.mean - right.mean, left.draws - right.draws
    if all(map(_has_spread, (left.draws, right.draws, paired))):
        return _percentile(value, paired, level, _PAIRED + (_runs_note(left) or _runs_note(right)))
    first, second = _mean_interval(left, level), _mean_interval(right, level)
    low, high = first.low - second.high, first.high - second.low
    return Interval(value=value, low=low, high=high, level=level, method=_EXTREMES)


def _ratio_interval(
    top: Interval, bottom: Interval, top_draws: NDArray[np.float64], bottom_draws: NDArray[np.float64]
) -> Interval:
    """Interval of top / bottom, where the lower end of the bottom is above 0."""
    value = top.value / bottom.value
    unbounded = np.full_like(top_draws, np.inf)  # too few to reach the upper end, as bottom.low > 0
    ratios = np.divide(top_draws, bottom_draws, out=unbounded, where=bottom_draws > 0)
    if all("bootstrap" in end.method for end in (top, bottom)) and _has_spread(ratios):
        has_runs = any(end.method.endswith(_RUNS) for end in (top, bottom))
        return _percentile(value, ratios, top.level, _PAIRED + (_RUNS if has_runs else ""))
    ends = [end / divisor for end in (top.low, top.high) for divisor in (bottom.low, bottom.high)]
    return Interval(value=value, low=min(ends), high=max(ends), level=top.level, method=_EXTREMES)


def _runs_note(model: Model) -> str:
    return _RUNS if len(model.tables) > 1 else ""


def _has_spread(draws: NDArray[np.float64]) -> bool:
    return bool(draws.max() - draws.min() > 1e-9)  # rounding alone makes about 1e-16


def _percentile(value: float, draws: NDArray[np.float64], level: float, method: str) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Interval(value=value, low=float(low), high=float(high), level=level, method=method)
