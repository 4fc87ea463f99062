"""Summaries over traces: percentiles, histograms, and intervals by question."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from leadspan.audit.findings import Distribution
from leadspan.statistics.intervals import Interval, bootstrap_mean
from leadspan.statistics.resampling import Bootstrap

NUM_BINS = 20
# Draws of a bootstrap (questions times resamples) at most, so that an audit of a million questions takes seconds; and
# the fewest resamples that still give an interval.
_MOST_DRAWS = 20_000_000
_FEWEST_RESAMPLES = 200


def distribution(values: Sequence[float], low: float | None = None, high: float | None = None) -> Distribution | None:
    """Mean, percentiles and a histogram of 20 equal bins.

    Args:
        values: The values; nothing is returned for none.
        low: Lower edge of the first bin; the smallest value when absent.
        high: Upper edge of the last bin; the largest value when absent.
    """
    if not values:
        return None
    array = np.asarray(values, dtype=np.float64)
    first = float(array.min()) if low is None else low
    last = float(array.max()) if high is None else high
    # 1e-9: values that are all equal still need a bin of some width.
    counts, edges = np.histogram(array, bins=NUM_BINS, range=(first, max(last, first + 1e-9)))
    p10, p50, p90, p99 = (float(value) for value in np.percentile(array, [10, 50, 90, 99]))
    return Distribution(
        count=len(values), mean=float(array.mean()), p10=p10, p50=p50, p90=p90, p99=p99,
        edges=[float(edge) for edge in edges], counts=[int(count) for count in counts],
    )  # fmt: skip


def mean_by_question(values: Sequence[float], questions: Sequence[str], seed: int) -> Interval:
    """Mean over questions of the mean over their traces, with a bootstrap interval over questions.

    Traces of one question are not independent, so questions are resampled (`statistics.intervals.bootstrap_mean`).

    Args:
        values: One value in [0, 1] per trace; at least one.
        questions: The question of each trace.
        seed: Seed of the draws.
    """
    grouped: defaultdict[str, list[float]] = defaultdict(list)
    for value, question in zip(values, questions, strict=True):
        grouped[question].append(value)
    num_resamples = max(_FEWEST_RESAMPLES, min(4000, _MOST_DRAWS // len(grouped)))
    return bootstrap_mean(list(grouped.values()), Bootstrap(num_resamples=num_resamples, seed=seed))
