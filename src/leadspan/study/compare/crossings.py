"""Where piecewise linear curves reach a target for good: the arithmetic of break points, see `break_points`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leadspan.results import Interval


def crossing(places: NDArray[np.float64], kept: NDArray[np.float64], target: float) -> NDArray[np.float64]:
    """Where a piecewise linear curve is at the target and stays there to its right.

    Args:
        places: `[K]`, ascending.
        kept: `[K, curves]`; the last place meets the target.
        target: The height.

    Returns:
        `[curves]`, NaN for a curve that is nowhere below the target.
    """
    last, columns = last_below(kept, target), np.arange(kept.shape[1])
    left = np.maximum(last, 0)
    low, high = kept[left, columns], kept[left + 1, columns]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = places[left] + (places[left + 1] - places[left]) * (target - low) / (high - low)
    return np.where(last < 0, np.nan, found)


def bracket(
    places: NDArray[np.float64], kept: NDArray[np.float64], target: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The neighbouring places between which each curve reaches the target for good; 0 and the first where all do."""
    last = last_below(kept, target)
    return np.where(last < 0, 0.0, places[np.maximum(last, 0)]), places[last + 1]


def bracket_interval(
    places: NDArray[np.float64], drawn: NDArray[np.float64], target: float, level: float
) -> tuple[float, float]:
    """From the `(1 - level) / 2` quantile of the lower ends to the `(1 + level) / 2` quantile of the upper ends.

    Args:
        places: `[K]`, ascending.
        drawn: `[K, resamples]`; the last place meets the target in each.
        target: The height.
        level: Coverage of the interval, e.g. 0.95.
    """
    low, high = bracket(places, drawn, target)
    shares = ((1 - level) / 2, (1 + level) / 2)
    ends = zip((low, high), shares, strict=True)
    first, last = (float(np.quantile(values, share, method="inverted_cdf")) for values, share in ends)
    return first, last


def widened(
    places: NDArray[np.float64], kept: Sequence[Interval], target: float, ends: tuple[float, float]
) -> tuple[float, float]:
    """The ends, moved out to the places that are told from the target by their own intervals.

    Args:
        places: `[K]`, ascending; the last one is the uncut run.
        kept: Retention at the other places.
        target: The height.
        ends: What resampling found.

    Returns:
        At most the last place that is surely below the target, 0 without one; at least the first from which on every
        place is surely at it, the last one without.
    """
    below = [place for place, ratio in zip(places, kept, strict=False) if ratio.high < target]
    unsure = [i for i, ratio in enumerate(kept) if ratio.low < target]
    first_sure = float(places[unsure[-1] + 1]) if unsure else float(places[0])
    return min(ends[0], float(below[-1]) if below else 0.0), max(ends[1], first_sure)


def last_below(kept: NDArray[np.float64], target: float) -> NDArray[np.int64]:
    """Index of the last place with less than the target, -1 where there is none."""
    below = kept < target - 1e-12
    return np.where(below.any(axis=0), len(kept) - 1 - below[::-1].argmax(axis=0), -1)
