"""Intervals for mean scores, and retention: one model's score as a share of another's, of one policy or of several.

A score is a number in [0, 1] for one sample of one problem. A mean is over problems, each with the mean of
its own samples; where a model was trained several times, also over its runs. All draws come from a seed: the
same scores give the same interval. An interval from one run covers problems and samples, not the training seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil, hypot, inf
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


class Retention(Settings):
    """The score of a policy's student as a share of the full student's."""

    ratio: Interval | None
    """The share; absent when refused."""
    difference: Interval
    """Policy minus full, always given."""
    reason: str | None = None
    """Why the ratio is refused."""


class SimultaneousInterval(Interval):
    """The interval of one policy among several; all of them together hold at `level`."""

    num_policies: int
    """Policies that the level holds for together."""
    level_alone: float
    """Confidence level of this interval if it were the only one."""


NEAR_ZERO = 0.05
"""Retention is refused where the lower bound of the full student's accuracy, or of its gain over the base, is at or
below this: the ratio would be noise."""
FEW = 5
"""Outcomes on fewer problems than this are rare: resamples hardly vary in them, so their intervals would be too
narrow."""
DRAWS_BEYOND = 16
"""Fewest resamples beyond an end of the strictest of several intervals: fewer would leave that end too uncertain."""

# Draws that are equal on paper differ by about 1e-16.
_ROUNDING = 1e-9
_BOOTSTRAP = "percentile bootstrap over problems, samples within"
_PAIRED = f"paired {_BOOTSTRAP}"
_WILSON = "Wilson score over problems, as all scores are equal"
_RUNS = ", runs above (Student's t)"
_RARE = ", what is rare by Wilson's score"


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
    return _mean_interval(resample({"scores": scores}, bootstrap)[0], bootstrap.level)


def bootstrap_mean(scores: Sequence[Sequence[float]], bootstrap: Bootstrap = USUAL) -> Interval:
    """Mean score with a two-level bootstrap interval, from the scores in [0, 1] of each problem's samples.

    Each resample draws P problems with replacement, each with its samples (see `resampling`), and takes the mean of
    the problems' means, stretched where problems are few; the interval reaches from the (1-level)/2 to the (1+level)/2
    quantile. Its variance is Var_p(m_p) / P, where the variance of the problems' means m_p holds both how problems
    differ and the noise of their samples.

    Where all scores are equal, all resamples are too; the Wilson interval over the P problems is given
    instead, and `method` says so. Where fewer than `FEW` problems are not all right, or not all wrong, the interval
    is widened to the Wilson interval. Samples of one problem are not independent and do not count as trials.

    **Source**: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13.

    Raises:
        EvaluationError: No problem, a problem without samples, or a score outside [0, 1].
    """
    return runs_mean({str(position): samples for position, samples in enumerate(scores)}, bootstrap)


def bootstrap_share(hits: Sequence[float], trials: Sequence[float]) -> Interval | None:
    """Sum of the hits over the sum of the trials, with a bootstrap interval over problems.

    For a rate among some of the samples, such as accuracy among the finished ones: each problem gives how many of
    its samples are trials, and how many of these are hits. Resamples without a trial are not used; without any trial
    there is no interval. Where fewer than `FEW` problems have a hit, or a miss, the interval is widened to the Wilson
    interval over the problems with trials, as in `bootstrap_mean`.
    """
    num_hits, num_trials = np.asarray(hits, dtype=float), np.asarray(trials, dtype=float)
    if num_trials.sum() == 0:
        return None
    drawn = drawn_means(num_trials, USUAL)  # the same problems as the hits': both use the same seed
    shares = np.clip(drawn_means(num_hits, USUAL)[drawn > 0] / drawn[drawn > 0], 0, 1)
    value = float(num_hits.sum() / num_trials.sum())
    # Problems are the independent trials; samples of one problem are not.
    rare = wilson(value, int(np.count_nonzero(num_trials)), USUAL.level)
    if np.ptp(shares) <= _ROUNDING:
        return rare
    interval = _percentile(value, shares, USUAL.level, "percentile bootstrap over problems")
    return _widened(interval, rare) if _is_rare(num_hits) or _is_rare(num_trials - num_hits) else interval


def retention(policy_scores: Runs, full_scores: Runs, bootstrap: Bootstrap = USUAL) -> Retention:
    """The policy's mean score as a share of that of the student trained on whole traces, m_policy / m_full.

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

    Raises:
        EvaluationError: The problems differ, or the scores break a rule of `bootstrap_mean`.
    """
    full, policy = resample({"full": full_scores, "policy": policy_scores}, bootstrap)
    return resampled_retention(policy, full, bootstrap.level)


def resampled_retention(policy: Model, full: Model, level: float, base: Model | None = None) -> Retention:
    """`retention`, or with a base `base_normalised_retention`, of models that are resampled on the same problems."""
    below = _mean_interval(full, level) if base is None else _paired_interval(full, base, level)
    difference = _paired_interval(policy, full, level)
    # Not the value: an accuracy or a gain that may be near zero gives a ratio that may be anything.
    if below.low <= NEAR_ZERO:
        quantity = "accuracy" if base is None else "gain over the base"
        reason = (
            f"the full student's {quantity} has a lower bound of {below.low:z.3f}, not above {NEAR_ZERO:g}: "
            "a share of so little is noise, so read the difference"
        )
        return Retention(ratio=None, difference=difference, reason=reason)
    base_mean, base_draws = (0.0, 0.0) if base is None else (base.mean, base.draws)
    # Draws of few runs may be negative, see `resample`; no accuracy is. A gain may be: a policy can be below its base.
    ratios = drawn_ratios(np.maximum(policy.draws, 0) - base_draws, full.draws - base_draws)
    ends = (0.0, 1 / below.low) if base is None else (-inf, inf)
    ratio = _paired_interval(policy, full, level, ((policy.mean - base_mean) / below.value, ratios), below.value, ends)
    return Retention(ratio=ratio, difference=difference)


def drawn_ratios(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quotients of draws; infinite where the bottom is not above 0.

    Too few are to reach the upper end of an interval, which is made only where the interval of the bottom is above 0.
    """
    return np.divide(top, bottom, out=np.full_like(top, np.inf), where=bottom > 0)


def base_normalised_retention(
    policy_scores: Runs, full_scores: Runs, base_scores: Runs, bootstrap: Bootstrap = USUAL
) -> Retention:
    """The share of the full student's gain over the base, (m_policy - m_base) / (m_full - m_base).

    As `retention`, with the same problems drawn for all three; the base is the student before training. Refused where
    the lower end of the gain m_full - m_base is at most `NEAR_ZERO`.

    Raises:
        EvaluationError: As `retention`.
    """
    models = {"full": full_scores, "policy": policy_scores, "base": base_scores}
    full, policy, base = resample(models, bootstrap)
    return resampled_retention(policy, full, bootstrap.level, base)


def simultaneous_retention(
    pairs: Mapping[str, tuple[Runs, Runs]], bootstrap: Bootstrap = USUAL
) -> dict[str, SimultaneousInterval]:
    """Retention of several policies, with intervals that hold together at the level of the bootstrap.

    The best of many policies looks better than it is: some interval of theirs misses the truth far more often than one
    alone. Here each gets an interval of a stricter level, the same for all.

    All policies are resampled on the same problems. With F_i the distribution of policy i's resampled retention, the
    depth of a resample is min_i 2 min(F_i, 1 - F_i): how far out the most extreme policy lies in it. The (1 - level)
    quantile of the depth is the share that every interval leaves out, half of it at each end, so that a share `level`
    of the resamples lies within all intervals at once. This is the max-t method with quantiles in place of t, and
    needs no symmetry. The share is never below Bonferroni's (1 - level) / m, and is that where some policy differs from
    its full student on too few problems to resample, see `retention`.

    **Source**: Beran, J. Am. Stat. Assoc. 83 (1988), 679-686 (balanced simultaneous sets); Mandel and Betensky, Comput.
    Stat. Data Anal. 52 (2008), 2158-2165 (with percentiles); Westfall and Young, Resampling-Based Multiple Testing
    (1993), section 2.6 (max-t).

    Args:
        pairs: For each policy its scores and those of its full student, on the same problems in all pairs.
        bootstrap: Level, seed, and the least number of resamples; many policies take more.

    Returns:
        The intervals by policy, none narrower than that of the policy alone. A policy is left out where its ratio is
        refused at its level, see `retention`.

    Raises:
        EvaluationError: As `retention`.
    """
    if not pairs:
        return {}
    enough = ceil(2 * DRAWS_BEYOND * len(pairs) / (1 - bootstrap.level))
    bootstrap = replace(bootstrap, num_resamples=max(bootstrap.num_resamples, enough))
    # The full student comes first: the order of its problems is then that of every pair, and resamples are shared.
    models = {name: resample({"full": full, "policy": policy}, bootstrap) for name, (policy, full) in pairs.items()}
    level_alone = _level_of_each(list(models.values()), bootstrap.level)
    intervals: dict[str, SimultaneousInterval] = {}
    for name, (full, policy) in models.items():
        alone, wide = (resampled_retention(policy, full, level).ratio for level in (bootstrap.level, level_alone))
        if alone is None or wide is None:
            continue
        intervals[name] = SimultaneousInterval(
            value=wide.value,
            low=min(alone.low, wide.low),  # rounding may put the level of all a hair below that of one
            high=max(alone.high, wide.high),
            level=bootstrap.level,
            method=wide.method,
            num_policies=len(pairs),
            level_alone=level_alone,
        )
    return intervals


def _level_of_each(models: Sequence[Sequence[Model]], level: float) -> float:
    """The level of every interval alone at which the intervals of all pairs of full and policy hold together."""
    beyond = 1 - level
    strictest = beyond / len(models)  # Bonferroni
    # Resamples say little of a side that few problems show, so their depths would be too optimistic there.
    if any(_is_rare(amounts) for full, policy in models for _, amounts in _sides(policy, full)):
        return 1 - strictest
    # How far out every draw lies, from nearly 0 for the extremes to 1 for the median; equal draws lie equally far.
    depths: list[NDArray[np.float64]] = []
    for full, policy in models:
        draws = drawn_ratios(np.maximum(policy.draws, 0), full.draws)
        ordered = np.sort(draws)
        at_most = np.searchsorted(ordered, draws, "right") / len(draws)
        at_least = 1 - np.searchsorted(ordered, draws, "left") / len(draws)
        depths.append(np.minimum(2 * np.minimum(at_most, at_least), 1))
    share = float(np.quantile(np.min(depths, axis=0), beyond, method="inverted_cdf"))
    return 1 - min(max(share, strictest), beyond)


def _mean_interval(model: Model, level: float) -> Interval:
    if np.ptp(model.draws) <= _ROUNDING:
        return wilson(model.mean, len(model.problem_means), level)
    interval = _percentile(model.mean, model.draws, level, _BOOTSTRAP, model)
    if _is_rare(model.problem_means) or _is_rare(1 - model.problem_means):
        interval = _widened(interval, wilson(model.mean, len(model.problem_means), level))
    return interval.model_copy(update={"low": max(interval.low, 0.0), "high": min(interval.high, 1.0)})


def _widened(interval: Interval, rare: Interval) -> Interval:
    # Only ever wider: where resampling already covers Wilson's interval, its ends stay.
    ends = {"low": min(interval.low, rare.low), "high": max(interval.high, rare.high)}
    return interval.model_copy(update={**ends, "method": interval.method + _RARE})


def _paired_interval(
    first: Model,
    second: Model,
    level: float,
    share: tuple[float, NDArray[np.float64]] | None = None,
    unit: float = 1.0,
    ends: tuple[float, float] = (-1.0, 1.0),
) -> Interval:
    """The interval of the difference of two models, or of a share, given as value and draws in units of accuracy.

    The side that is seen on too few problems is widened, see `retention`; the ends are kept within bounds.
    """
    value, draws = share or (first.mean - second.mean, first.draws - second.draws)
    interval = _percentile(value, draws, level, _PAIRED, first, second)
    down, up = 0.0, 0.0
    for side, amounts in _sides(first, second):
        if not _is_rare(amounts):
            continue
        rare = wilson(float(amounts.mean()), len(amounts), interval.level)
        # What the resamples show of this side already; only the excess of Wilson's interval over it is added.
        seen = NormalDist().inv_cdf((1 + interval.level) / 2) ** 2 * float(amounts.var()) / len(amounts)
        more, less = (max(0.0, end**2 - seen) for end in (rare.high - rare.value, rare.value - rare.low))
        up, down = (up + more, down + less) if side == 1 else (up + less, down + more)
    low, high, method = interval.low, interval.high, interval.method
    if up or down:
        low, high = value - hypot(value - low, down**0.5 / unit), value + hypot(high - value, up**0.5 / unit)
        method += _RARE
    return Interval(value=value, low=max(low, ends[0]), high=min(high, ends[1]), level=level, method=method)


def _sides(first: Model, second: Model) -> list[tuple[int, NDArray[np.float64]]]:
    """By how much the first model is better (1) and worse (-1) on each problem."""
    differences = first.problem_means - second.problem_means
    return [(1, np.maximum(differences, 0)), (-1, np.maximum(-differences, 0))]


def _is_rare(amounts: NDArray[np.float64]) -> bool:
    """Whether fewer than `FEW` problems show any of it."""
    # Means of samples that are equal on paper differ by about 1e-16.
    return int(np.count_nonzero(amounts > 1e-12)) < FEW


def _percentile(value: float, draws: NDArray[np.float64], level: float, method: str, *models: Model) -> Interval:
    method += _RUNS if any(model.num_runs > 1 for model in models) else ""
    # Each quantile is one of the draws, never a value between two of them; ratios may be infinite.
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Interval(value=value, low=float(low), high=float(high), level=level, method=method)
