"""Where piecewise linear curves reach a target and remain at or above it: the arithmetic of `break_points`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leadspan.statistics.intervals import Interval


def crossing(cuts: NDArray[np.float64], ratios: NDArray[np.float64], target: float) -> NDArray[np.float64]:
    """Where a piecewise linear curve reaches the target for the last time, and remains at or above it.

    Args:
        cuts: `[K]`, ascending.
        ratios: `[K, curves]`; the last cut reaches the target.
        target: The height.

    Returns:
        `[curves]`, NaN for a curve that is nowhere below the target.
    """
    # All curves at once: a resample is a column.
    last, columns = last_below(ratios, target), np.arange(ratios.shape[1])
    below = np.maximum(last, 0)
    low, high = ratios[below, columns], ratios[below + 1, columns]
    # A curve that is nowhere below the target may divide by 0 here; the last line sets it to NaN.
    with np.errstate(divide="ignore", invalid="ignore"):
        p = cuts[below] + (cuts[below + 1] - cuts[below]) * (target - low) / (high - low)
    return np.where(last < 0, np.nan, p)


def bracket(
    cuts: NDArray[np.float64], ratios: NDArray[np.float64], target: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The neighbouring cuts between which each curve reaches the target for the last time.

    They are 0 and the first cut for a curve that is nowhere below the target.
    """
    last = last_below(ratios, target)
    return np.where(last < 0, 0.0, cuts[np.maximum(last, 0)]), cuts[last + 1]


def bracket_interval(
    cuts: NDArray[np.float64], drawn: NDArray[np.float64], target: float, level: float
) -> tuple[float, float]:
    """From the `(1 - level) / 2` quantile of the lower ends to the `(1 + level) / 2` quantile of the upper ends.

    Args:
        cuts: `[K]`, ascending.
        drawn: `[K, resamples]`; the last cut reaches the target in each.
        target: The height.
        level: Coverage of the interval, e.g. 0.95.
    """
    low, high = bracket(cuts, drawn, target)
    # `inverted_cdf` returns a tested cut or 0, where interpolation would return a p that nobody tested.
    first = np.quantile(low, (1 - level) / 2, method="inverted_cdf")
    last = np.quantile(high, (1 + level) / 2, method="inverted_cdf")
    return float(first), float(last)


def widen_to_significant(
    cuts: NDArray[np.float64], ratios: Sequence[Interval], target: float, ends: tuple[float, float]
) -> tuple[float, float]:
    """Widen the bracket to the nearest cuts whose own interval excludes the target.

    Args:
        cuts: `[K]`, ascending; the last one is the uncut run.
        ratios: Retention at the other cuts.
        target: The height.
        ends: The bracket from resampling.

    Returns:
        The lower end is at most the last cut whose interval lies below the target (0 without one); the upper end is
        at least the first cut from which on every interval lies at or above it (the last cut without one).
    """
    # The uncut run, the last cut, has no interval of its own.
    below = [cut for cut, ratio in zip(cuts, ratios, strict=False) if ratio.high < target]
    unsure = [i for i, ratio in enumerate(ratios) if ratio.low < target]
    first_sure = float(cuts[unsure[-1] + 1]) if unsure else float(cuts[0])
    return min(ends[0], float(below[-1]) if below else 0.0), max(ends[1], first_sure)


def last_below(ratios: NDArray[np.float64], target: float) -> NDArray[np.int64]:
    """Index of the last cut below the target, for each curve; -1 where there is none."""
    # Ratios of means that are equal on paper differ by about 1e-16.
    below = ratios < target - 1e-12
    # `argmax` finds the first, so the rows are read from the end.
    return np.where(below.any(axis=0), len(ratios) - 1 - below[::-1].argmax(axis=0), -1)
