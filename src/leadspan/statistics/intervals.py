"""Intervals for mean scores, and retention: one model's score as a share of another's.

A score is a number in [0, 1] for one sample of one problem. A mean is over problems, each with the mean of
its own samples; where a model was trained several times, also over its runs. All draws come from a seed: the
same scores give the same interval. An interval from one run covers problems and samples, not the training seed.
"""

from collections.abc import Sequence
from math import hypot
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from leadspan.settings import Settings
from leadspan.statistics.resampling import USUAL, Bootstrap, Model, Runs, drawn_means, resample


class Interval(Settings):
    """A point estimate with its confidence interval."""

    value: float
    """The estimate."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Confidence level."""
    method: str = "percentile bootstrap over problems"
    """How the interval was made."""


NEAR_ZERO = 0.05
"""Retention is refused where the lower bound of the full student's accuracy, or of its gain over the base, is at or
below this: the ratio would be noise."""

_BOOTSTRAP = "percentile bootstrap over problems, samples within"
_PAIRED = f"paired {_BOOTSTRAP}"
_WILSON = "Wilson score over problems, as all scores are equal"
_RUNS = ", runs above (Student's t)"
_RARE = ", what is rare by Wilson's score"
FEW = 5
"""Outcomes on fewer problems than this are rare: resamples hardly vary in them, so their intervals would be too
narrow."""


class Retention(Settings):
    """The score of a policy's student as a share of the full student's."""

    ratio: Interval | None
    """The share; absent when refused."""
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
    low, high = min(max(low, 0.0), mean), max(min(high, 1.0), mean)  # rounding may leave 1 out at a mean of 1
    return Interval(value=mean, low=low, high=high, level=level, method=_WILSON)


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
    instead, and `method` says so. Where fewer than `FEW` problems are not all right, or not all wrong, the interval
    is widened to the Wilson interval. Samples of one problem are not independent and do not count as trials.

    **Source**: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13.

    Args:
        scores: For each problem the scores of its samples, in [0, 1]; their numbers may differ.
        bootstrap: Level, number of resamples and seed.

    Raises:
        EvaluationError: No problem, a problem without samples, or a score outside [0, 1].
    """
    return runs_mean({str(position): samples for position, samples in enumerate(scores)}, bootstrap)


def bootstrap_share(hits: Sequence[float], trials: Sequence[float], bootstrap: Bootstrap = USUAL) -> Interval | None:
    """Sum of the hits over the sum of the trials, with a bootstrap interval over problems.

    For a rate among some of the samples, such as accuracy among the finished ones: each problem gives how many of
    its samples are trials, and how many of these are hits. Resamples without a trial are not used.

    Args:
        hits: For each problem a number from 0 to its trials.
        trials: For each problem the number of samples that count.
        bootstrap: Level, number of resamples and seed.

    Returns:
        None where no problem has a trial.
    """
    num_hits, num_trials = np.asarray(hits, dtype=float), np.asarray(trials, dtype=float)
    if num_trials.sum() == 0:
        return None
    drawn = drawn_means(num_trials, bootstrap)  # the same problems as the hits': both use the seed of the bootstrap
    shares = drawn_means(num_hits, bootstrap)[drawn > 0] / drawn[drawn > 0]
    value = float(num_hits.sum() / num_trials.sum())
    if not _has_spread(shares):
        # Problems are the independent trials; samples of one problem are not.
        return wilson(value, int(np.count_nonzero(num_trials)), bootstrap.level)
    return _percentile(value, shares, bootstrap.level, "percentile bootstrap over problems")


def retention(policy_scores: Runs, full_scores: Runs, bootstrap: Bootstrap = USUAL) -> Retention:
    """The policy's mean score as a share of the full student's, m_policy / m_full.

    Paired bootstrap: each resample draws the same problems for both models (what is hard for one is hard for
    the other), each with its own samples of them. Refused where the lower end of the full student's own
    interval is at most `NEAR_ZERO`. Scores of several training runs (a list, in the order of their seeds) widen the
    interval by what the runs differ, see `resample`.

    Where the policy is better (or worse) on fewer than `FEW` of the P problems, resampling shows too little of that
    side. With m the mean over all problems of what it is better by, v its variance over problems and u the upper end of
    the Wilson interval of m over P problems, the upper end of the difference d moves to
    d + sqrt((high - d)^2 + max(0, (u - m)^2 - z^2 v / P)); likewise below with Wilson's lower end, mirrored for the
    other side, and divided by the full student's accuracy for the ratio. So two models that do the same on every
    problem are not taken for equal.

    **Source**: Efron and Tibshirani (1993), chapters 8 and 13; the combination of single intervals in squares: Zou and
    Donner, Stat. Med. 27 (2008), 1693-1702.

    Args:
        policy_scores: Scores of the policy's student.
        full_scores: Scores of the student trained on whole traces, on the same problems.
        bootstrap: Level, number of resamples and seed.

    Raises:
        EvaluationError: The problems differ, or the scores break a rule of `bootstrap_mean`.
    """
    full, policy = resample({"full": full_scores, "policy": policy_scores}, bootstrap)
    return resampled_retention(policy, full, bootstrap.level)


def resampled_retention(policy: Model, full: Model, level: float) -> Retention:
    """`retention` of models that are resampled on the same problems already."""
    accuracy = _mean_interval(full, level)
    difference = _difference_interval(policy, full, level)
    # Not the value: an accuracy that may be near zero gives a ratio that may be anything.
    if accuracy.low <= NEAR_ZERO:
        return _refuse(difference, "accuracy", accuracy.low)
    # Draws of few runs may be negative, see `resample`; no accuracy is.
    ratio = _ratio_interval(policy, full, np.maximum(policy.draws, 0), full.draws, accuracy, policy.mean / full.mean)
    return Retention(ratio=_bounded(ratio, 0.0, 1 / accuracy.low), difference=difference)


def drawn_ratios(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quotients of draws; infinite where the bottom is not above 0."""
    return np.divide(top, bottom, out=np.full_like(top, np.inf), where=bottom > 0)


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
    full_gain = _difference_interval(full, base, bootstrap.level)
    difference = _difference_interval(policy, full, bootstrap.level)
    if full_gain.low <= NEAR_ZERO:
        return _refuse(difference, "gain over the base", full_gain.low)
    gains = np.maximum(policy.draws, 0) - base.draws  # may be negative: a policy can be worse than its base
    value = (policy.mean - base.mean) / full_gain.value
    ratio = _ratio_interval(policy, full, gains, full.draws - base.draws, full_gain, value)
    return Retention(ratio=ratio, difference=difference)


def _refuse(difference: Interval, quantity: str, low: float) -> Retention:
    reason = (
        f"the full student's {quantity} has a lower bound of {low:z.3f}, not above {NEAR_ZERO:g}: "
        "a share of so little is noise, so read the difference"
    )
    return Retention(ratio=None, difference=difference, reason=reason)


def _mean_interval(model: Model, level: float) -> Interval:
    if not _has_spread(model.draws):
        return wilson(model.mean, len(model.problem_means), level)
    interval = _percentile(model.mean, model.draws, level, _BOOTSTRAP + _runs_note(model))
    if min(_num_above_zero(model.problem_means), _num_above_zero(1 - model.problem_means)) < FEW:
        # Only ever wider: where resampling already covers Wilson's interval, its ends stay.
        rare = wilson(model.mean, len(model.problem_means), level)
        ends = {"low": min(interval.low, rare.low), "high": max(interval.high, rare.high)}
        interval = interval.model_copy(update={**ends, "method": interval.method + _RARE})
    return _bounded(interval, 0.0, 1.0)


def _difference_interval(first: Model, second: Model, level: float) -> Interval:
    draws, method = first.draws - second.draws, _PAIRED + _runs_note(first, second)
    interval = _percentile(first.mean - second.mean, draws, level, method)
    return _bounded(_widened(interval, first, second), -1.0, 1.0)


def _ratio_interval(
    policy: Model, full: Model, top: NDArray[np.float64], bottom: NDArray[np.float64], below: Interval, value: float
) -> Interval:
    """Interval of a ratio of means whose draws are top and bottom; `below` is the interval of the bottom, above 0."""
    ratios = drawn_ratios(top, bottom)  # too few are infinite to reach the upper end: the bottom's interval is above 0
    interval = _percentile(value, ratios, below.level, _PAIRED + _runs_note(policy, full))
    return _widened(interval, policy, full, below.value)


def _widened(interval: Interval, first: Model, second: Model, unit: float = 1.0) -> Interval:
    """The interval of a difference, in units, with the side that is seen on too few problems; see `retention`."""
    down, up = 0.0, 0.0
    for side, amounts in _sides(first, second):
        if _num_above_zero(amounts) >= FEW:
            continue
        rare = wilson(float(amounts.mean()), len(amounts), interval.level)
        # What the resamples show of this side already; only the excess of Wilson's interval over it is added.
        seen = NormalDist().inv_cdf((1 + interval.level) / 2) ** 2 * float(amounts.var()) / len(amounts)
        more, less = (max(0.0, end**2 - seen) for end in (rare.high - rare.value, rare.value - rare.low))
        up, down = (up + more, down + less) if side == 1 else (up + less, down + more)
    if not up and not down:
        return interval
    low = interval.value - hypot(interval.value - interval.low, down**0.5 / unit)
    high = interval.value + hypot(interval.high - interval.value, up**0.5 / unit)
    return interval.model_copy(update={"low": low, "high": high, "method": interval.method + _RARE})


def _sides(first: Model, second: Model) -> list[tuple[int, NDArray[np.float64]]]:
    """By how much the first model is better (1) and worse (-1) on each problem."""
    differences = first.problem_means - second.problem_means
    return [(1, np.maximum(differences, 0)), (-1, np.maximum(-differences, 0))]


def num_rare_sides(first: Model, second: Model) -> int:
    """How many of the two sides, better and worse, occur on fewer than `FEW` problems."""
    return sum(_num_above_zero(amounts) < FEW for _, amounts in _sides(first, second))


def _num_above_zero(amounts: NDArray[np.float64]) -> int:
    return int(np.count_nonzero(amounts > 1e-12))  # means of samples that are equal on paper differ by about 1e-16


def _bounded(interval: Interval, lowest: float, highest: float) -> Interval:
    return interval.model_copy(update={"low": max(interval.low, lowest), "high": min(interval.high, highest)})


def _runs_note(*models: Model) -> str:
    return _RUNS if any(len(model.tables) > 1 for model in models) else ""


def _has_spread(draws: NDArray[np.float64]) -> bool:
    return bool(draws.max() - draws.min() > 1e-9)  # rounding alone makes about 1e-16


def _percentile(value: float, draws: NDArray[np.float64], level: float, method: str) -> Interval:
    # Each quantile is one of the draws, never a value between two of them; ratios may be infinite.
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Interval(value=value, low=float(low), high=float(high), level=level, method=method)
