"""Retention of several policies at once: intervals that all hold together, for choosing among them.

An interval of 95 % holds the truth of one policy in 95 % of studies. The best of many policies looks better than it is,
so that some interval of theirs misses the truth far more often. Here every policy gets an interval of a stricter level
of its own, the same for all, chosen so that *all* intervals hold in 95 % of studies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from leadspan.statistics.intervals import Interval, drawn_ratios, num_rare_sides, resampled_retention
from leadspan.statistics.resampling import USUAL, Bootstrap, Model, Runs, resample

DRAWS_BEYOND = 16
"""Fewest resamples beyond an end of the strictest interval: with fewer, that end would be too uncertain."""


class SimultaneousInterval(Interval):
    """The interval of one policy among several; all of them together hold at `level`."""

    num_policies: int
    """Policies that the level holds for together."""
    level_alone: float
    """Confidence level of this interval if it were the only one."""


def simultaneous_retention(
    pairs: Mapping[str, tuple[Runs, Runs]], bootstrap: Bootstrap = USUAL
) -> dict[str, SimultaneousInterval]:
    """Retention of several policies, with intervals that hold together at the level of the bootstrap.

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
    if any(num_rare_sides(policy, full) for full, policy in models):
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
